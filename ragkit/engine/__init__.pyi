from .answer import Answer as Answer
from .answer import Citation as Citation
from .engine import RAGEngine as RAGEngine
from .extractive import ExtractiveLLM as ExtractiveLLM
