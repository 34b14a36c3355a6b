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
    from ragkit.beir import write_dataset
    from ragkit.budgets import Budget
    from ragkit.cache import EmbeddingCache
    from ragkit.choices import between, choose
    from ragkit.chunkers import RecursiveChunker, SemanticChunker, SentenceChunker, TokenChunker
    from ragkit.chunking import Chunk, StructureChunker
    from ragkit.datasets import Dataset, load_dataset
    from ragkit.documents import Document
    from ragkit.embedding import Embedder, HashEmbedder, SentenceTransformerEmbedder
    from ragkit.engine import RAGEngine
    from ragkit.errors import RagkitError
    from ragkit.experiment import Experiment
    from ragkit.hosted import OpenAIEmbedder
    from ragkit.judging import Faithfulness, Relevance
    from ragkit.llm import LLM, ExtractiveLLM, OpenAILLM, ScriptedLLM
    from ragkit.measures import SpanIoU, SpanPrecision, SpanRecall
    from ragkit.metering import Metered, Price
    from ragkit.questions import make_questions
    from ragkit.report import IndexReport
    from ragkit.reranking import CrossEncoderReranker, LLMReranker
    from ragkit.retrieval import BM25, Dense, Hit, Hybrid
    from ragkit.rewriting import HyDE, MultiQuery
    from ragkit.runs import RunStore, record
    from ragkit.searches import search
    from ragkit.systems import System

_HOME = {
    "Answer": "answer",
    "between": "choices",
    "BM25": "retrieval",
    "Budget": "budgets",
    "choose": "choices",
    "Chunk": "chunking",
    "Citation": "answer",
    "CrossEncoderReranker": "reranking",
    "Dataset": "datasets",
    "Dense": "retrieval",
    "Document": "documents",
    "Embedder": "embedding",
    "EmbeddingCache": "cache",
    "Experiment": "experiment",
    "ExtractiveLLM": "llm",
    "Faithfulness": "judging",
    "HashEmbedder": "embedding",
    "Hit": "retrieval",
    "Hybrid": "retrieval",
    "HyDE": "rewriting",
    "IndexReport": "report",
    "LLM": "llm",
    "LLMReranker": "reranking",
    "load_dataset": "datasets",
    "make_questions": "questions",
    "Metered": "metering",
    "MultiQuery": "rewriting",
    "OpenAIEmbedder": "hosted",
    "OpenAILLM": "llm",
    "Price": "metering",
    "RAGEngine": "engine",
    "RagkitError": "errors",
    "record": "runs",
    "RecursiveChunker": "chunkers",
    "Relevance": "judging",
    "RunStore": "runs",
    "ScriptedLLM": "llm",
    "search": "searches",
    "SemanticChunker": "chunkers",
    "SentenceChunker": "chunkers",
    "SentenceTransformerEmbedder": "embedding",
    "SpanIoU": "measures",
    "SpanPrecision": "measures",
    "SpanRecall": "measures",
    "StructureChunker": "chunking",
    "System": "systems",
    "TokenChunker": "chunkers",
    "write_dataset": "beir",
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
