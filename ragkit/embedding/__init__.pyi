from .base import Embedder as Embedder
from .cache import EmbeddingCache as EmbeddingCache
from .hashed import HashEmbedder as HashEmbedder
from .openai import OpenAIEmbedder as OpenAIEmbedder
from .sentence_transformer import SentenceTransformerEmbedder as SentenceTransformerEmbedder
