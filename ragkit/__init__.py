"""ragkit: the live RAG lab for Jupyter.

>>> from ragkit import RAGEngine
>>> engine = RAGEngine("indexes/handbook")
>>> engine.index("data/handbook")
>>> engine.ask("How do I choose k1 for BM25?")

Names are imported when they are first used, so that ``import ragkit`` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ragkit.answer import Answer, Citation
    from ragkit.cache import EmbeddingCache
    from ragkit.choices import choose
    from ragkit.chunkers import RecursiveChunker, SemanticChunker, SentenceChunker, TokenChunker
    from ragkit.chunking import Chunk, StructureChunker
    from ragkit.datasets import Dataset, load_dataset
    from ragkit.documents import Document
    from ragkit.embedding import Embedder, HashEmbedder, SentenceTransformerEmbedder
    from ragkit.engine import RAGEngine
    from ragkit.errors import RagkitError
    from ragkit.experiment import Experiment
    from ragkit.hosted import OpenAIEmbedder
    from ragkit.llm import LLM, ExtractiveLLM, OpenAILLM, ScriptedLLM
    from ragkit.measures import SpanIoU, SpanPrecision, SpanRecall
    from ragkit.report import IndexReport
    from ragkit.retrieval import BM25, Dense, Hit, Hybrid
    from ragkit.runs import RunStore, record
    from ragkit.systems import System

_HOME = {
    "Answer": "answer",
    "BM25": "retrieval",
    "choose": "choices",
    "Chunk": "chunking",
    "Citation": "answer",
    "Dataset": "datasets",
    "Dense": "retrieval",
    "Document": "documents",
    "Embedder": "embedding",
    "EmbeddingCache": "cache",
    "Experiment": "experiment",
    "ExtractiveLLM": "llm",
    "HashEmbedder": "embedding",
    "Hit": "retrieval",
    "Hybrid": "retrieval",
    "IndexReport": "report",
    "LLM": "llm",
    "load_dataset": "datasets",
    "OpenAIEmbedder": "hosted",
    "OpenAILLM": "llm",
    "RAGEngine": "engine",
    "RagkitError": "errors",
    "record": "runs",
    "RecursiveChunker": "chunkers",
    "RunStore": "runs",
    "ScriptedLLM": "llm",
    "SemanticChunker": "chunkers",
    "SentenceChunker": "chunkers",
    "SentenceTransformerEmbedder": "embedding",
    "SpanIoU": "measures",
    "SpanPrecision": "measures",
    "SpanRecall": "measures",
    "StructureChunker": "chunking",
    "System": "systems",
    "TokenChunker": "chunkers",
}

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ragkit' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"ragkit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
