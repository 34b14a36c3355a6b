"""Measure the latency of `retrieve` on an index of 100,000 passages, including the embedding of the question.

The passages are random texts of SciFact's words, five per document; the questions are SciFact's claims, so that posting
lists are as long as real ones. Embedding 100,000 passages would take half an hour, so their vectors are MiniLM's of
SciFact's titles plus random noise, which keeps the distribution of real passages, and the graph as hard to search.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.corpora import SHARED, Words, claims, rows
from ragkit.chunking.structure import StructureChunker
from ragkit.embedding.base import Vectors
from ragkit.embedding.hashed import HashEmbedder
from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
from ragkit.indexing.index import Index
from ragkit.retrieval.base import Retriever
from ragkit.retrieval.retrievers import BM25, Dense, Hybrid
from ragkit.retrieval.search import retrieve

__all__ = ["ask"]

QUESTIONS = 200
WARM_UP = 10
PASSAGES_A_DOCUMENT = 5
WORDS_A_PASSAGE = 150
TITLES = 2_000
NOISE = 0.8  # length relative to a title's vector: two passages of one title have a cosine similarity of 0.6
RETRIEVERS: tuple[Retriever, ...] = (Hybrid(), Dense(), BM25("passages"), BM25("documents"))
EXACT = Dense(exact=True)  # last: it reads 150 MB, which evicts the model from the CPU cache


class NearTitles:
    """Embeds questions with MiniLM; passages get vectors near those of titles."""

    name = "bench/near-titles"
    max_tokens = 100_000

    def __init__(self) -> None:
        self._model = SentenceTransformerEmbedder()
        self.dimension = self._model.dimension
        self.languages = self._model.languages
        self._titles: Vectors | None = None
        self._made = 0

    def embed(self, texts: Sequence[str], *, kind: Any = "passage") -> Vectors:
        import numpy as np

        if kind == "query":
            return self._model.embed(texts, kind=kind)
        if self._titles is None:
            titles = [row["title"] for row in rows(SHARED / "scifact" / "corpus.jsonl")[:TITLES]]
            self._titles = self._model.embed(titles)
        random = np.random.default_rng(self._made)
        self._made += len(texts)
        noise = random.standard_normal((len(texts), self.dimension)) * NOISE / self.dimension**0.5
        vectors = self._titles[random.integers(0, len(self._titles), len(texts))] + noise
        return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)

    def fingerprint(self, kind: Any) -> None:
        return None

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [text.count(" ") + 1 for text in texts]

    def token_spans(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
        return HashEmbedder().token_spans(texts)


def corpus(path: Path, passages: int) -> None:
    """Write documents that a chunker with ``WORDS_A_PASSAGE`` tokens divides into ``passages`` passages."""
    words = Words(seed=1)
    with path.open("w", encoding="utf-8") as file:
        for number in range(passages // PASSAGES_A_DOCUMENT):
            paragraphs = [words.text(WORDS_A_PASSAGE) for _ in range(PASSAGES_A_DOCUMENT)]
            row = {"_id": str(number), "title": words.text(8), "text": "\n\n".join(paragraphs)}
            file.write(json.dumps(row) + "\n")


def ask(folder: str, passages: int) -> tuple[int, dict[str, tuple[float, float]], float]:
    """Index, and ask every retriever the same number of questions, each only once; call it in a separate process.

    Returns:
        The number of passages; for each retriever the median and the 99th percentile, in milliseconds; the median of
        embedding a question alone.
    """
    source = Path(folder) / "corpus.jsonl"
    corpus(source, passages)
    index = Index(f"{folder}/index", embedder=NearTitles(), chunker=StructureChunker(max_tokens=WORDS_A_PASSAGE))
    index.update(source)
    indexed = index.passages()
    questions = iter(claims())  # a repeated question would use the cached embedding
    for retriever in RETRIEVERS:
        for question in itertools.islice(questions, WARM_UP):
            retrieve(question, indexed, retriever=retriever)
    took: dict[str, list[float]] = {retriever.name: [] for retriever in (*RETRIEVERS, EXACT)}
    embedding = []

    def timed(retriever: Retriever) -> str:
        question = next(questions)
        began = time.perf_counter()
        retrieve(question, indexed, retriever=retriever)
        took[retriever.name].append(1_000 * (time.perf_counter() - began))
        return question

    for _ in range(QUESTIONS):
        for retriever in RETRIEVERS:  # alternate, so that other load affects all of them
            question = timed(retriever)
        began = time.perf_counter()
        index.embedder.embed([question], kind="query")
        embedding.append(1_000 * (time.perf_counter() - began))
    for _ in range(QUESTIONS):
        timed(EXACT)
    found = {name: (statistics.median(each), statistics.quantiles(each, n=100)[98]) for name, each in took.items()}
    return len(indexed), found, statistics.median(embedding)
