from .base import Chunk as Chunk
from .base import Chunker as Chunker
from .recursive import RecursiveChunker as RecursiveChunker
from .semantic import SemanticChunker as SemanticChunker
from .sentence import SentenceChunker as SentenceChunker
from .structure import StructureChunker as StructureChunker
from .token import TokenChunker as TokenChunker
