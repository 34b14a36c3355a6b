"""From a question to ranked passages.

Three views of relevance are fused: BM25 over passages, BM25 over whole documents (a passage of the
right document beats an equal passage of another), and cosine similarity of embeddings. Scores are
scaled to 0..1 over each view's best candidates and added with weights, the convex combination of
Bruch, Gai and Ingber (2023), which kept a weak view from dragging a strong one down where
reciprocal rank fusion did not; ``make bench-retrieval`` prints both. An embedder that does not know
the question's language gets a small weight.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from ragkit.analysis import tokenize
from ragkit.chunking import Chunk
from ragkit.documents import detect_language
from ragkit.embedding import Vectors
from ragkit.errors import EmptyIndexError, EmptyQuestionError, InputError
from ragkit.index import Index
from ragkit.passages import passage_text
from ragkit.records import DocumentRecord, StoredChunk

__all__ = ["BM25", "Dense", "Hit", "Hybrid", "Passages", "Retriever", "reciprocal_rank_fusion", "weighted_fusion"]

Scores = Mapping[int, float]
"""Candidates: position of a passage in `Passages` -> score, higher is better."""


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage.

    Attributes:
        chunk: The passage with its offsets into the document.
        document: The document that it stands in.
        score: The retriever's score; comparable within one question only.
        similarity: Cosine of question and passage embeddings; None if the retriever does not embed.
        rank: 1 for the best.
    """

    chunk: Chunk
    document: DocumentRecord
    score: float
    similarity: float | None
    rank: int


class Retriever(Protocol):
    """Ranks passages for a question."""

    @property
    def name(self) -> str: ...

    def scores(self, question: str, passages: Passages) -> Scores:
        """Score candidate passages; what is not in the result is not a candidate."""
        ...


# ----------------------------------------------------------------------------------- the corpus


class Passages:
    """Every passage of an index at one generation, with what retrievers need of them; built lazily, then read-only."""

    def __init__(self, index: Index) -> None:
        self.index = index
        snapshot = index.records.snapshot()
        self.generation = snapshot.generation
        self.documents: list[DocumentRecord] = list(snapshot.documents.values())
        self.stored: list[StoredChunk] = []
        owners: list[int] = []
        for number, document in enumerate(self.documents):
            for stored in snapshot.chunks[document.id]:
                self.stored.append(stored)
                owners.append(number)
        self.owner: npt.NDArray[np.int64] = np.asarray(owners, dtype=np.int64)
        self.position = {s.vector_id: i for i, s in enumerate(self.stored)}
        self.languages = Counter(d.language for d in self.documents)
        embedder = index.embedder

        # Over the embedder and not over self: the cache would keep this generation's texts alive in a circle.
        @functools.lru_cache(maxsize=256)
        def embed(question: str) -> Vectors:
            vector: Vectors = embedder.embed([question], kind="query")[0]
            return vector

        self._embed = embed
        self._nearest: tuple[str, dict[int, float]] = "", {}  # the last search's

    def __len__(self) -> int:
        return len(self.stored)

    def language_of(self, question: str) -> str:
        """Guess which of the corpus's languages a question is in; rare ones (under 2 % of documents) do not count.

        Short questions are easily mistaken, so a corpus in one language leaves nothing to guess.
        """
        common = [language for language, n in self.languages.most_common() if n >= 0.02 * len(self.documents)]
        known = [language for language in common if language != "und"]
        if len(known) < 2:
            return known[0] if known else "und"
        return detect_language(question, among=known, default=known[0])

    def sections(self, document: int) -> list[tuple[str, tuple[str, ...]]]:
        """List the (document id, headings) of a document's passages, in order, each once."""
        document_id = self.documents[document].id
        members = np.flatnonzero(self.owner == document).tolist()
        return list(dict.fromkeys((document_id, self.stored[p].chunk.headings) for p in members))

    def text(self, position: int) -> str:
        return passage_text(self.documents[self.owner[position]].title, self.stored[position].chunk)

    @functools.cached_property
    def passage_bm25(self) -> _BM25:
        languages = [d.language for d in self.documents]
        return _BM25([tokenize(self.text(i), languages[o]) for i, o in enumerate(self.owner.tolist())])

    @functools.cached_property
    def document_bm25(self) -> _BM25:
        return _BM25([tokenize(f"{d.title}\n{d.text}", d.language) for d in self.documents])

    @functools.cached_property
    def vectors(self) -> Vectors:
        """All vectors in memory, shape (len(self), dimension), for exact search."""
        found = self.index.store.get([s.vector_id for s in self.stored])
        # Zero for what a writer has replaced since: similar to nothing, and gone in the next generation.
        gone = np.zeros(self.index.embedder.dimension, dtype=np.float32)
        return np.stack([found.get(s.vector_id, gone) for s in self.stored])

    def embed(self, question: str) -> Vectors:
        """Embed a question; the vectors of the last 256 are kept."""
        return self._embed(question)

    def nearest(self, question: str, *, k: int) -> dict[int, float]:
        """Find the passages nearest to a question by the store's approximate search: position -> cosine similarity."""
        found = self.index.store.search(self.embed(question), k=k)
        nearest = {self.position[i]: s for i, s in found if i in self.position}
        self._nearest = question, nearest
        return nearest

    def similarities(self, question: str, positions: Sequence[int]) -> dict[int, float]:
        """Cosine similarity of the question to these passages."""
        asked, nearest = self._nearest
        known = {p: nearest[p] for p in positions if p in nearest} if asked == question else {}
        ids = {p: self.stored[p].vector_id for p in positions if p not in known}
        vectors = self.index.store.get(list(ids.values())) if ids else {}
        query = self.embed(question)
        known |= {p: float(vectors[i] @ query) for p, i in ids.items() if i in vectors}
        return {p: max(-1.0, min(1.0, known[p])) for p in positions if p in known}


class _BM25:
    """bm25s over token lists; asking costs one sparse product."""

    def __init__(self, tokens: list[list[str]], *, k1: float = 1.2, b: float = 0.75) -> None:
        import bm25s

        self._empty = not any(tokens)
        if not self._empty:
            self._model: Any = bm25s.BM25(method="lucene", k1=k1, b=b)
            self._model.index(tokens, show_progress=False)
        self._size = len(tokens)

    def scores(self, query: list[str]) -> npt.NDArray[np.float32]:
        known = [] if self._empty else [t for t in query if t in self._model.vocab_dict]
        if not known:
            return np.zeros(self._size, dtype=np.float32)
        found: npt.NDArray[np.float32] = self._model.get_scores(known)
        return found


# ----------------------------------------------------------------------------------- retrievers


@dataclasses.dataclass(frozen=True, slots=True)
class BM25:
    """Okapi BM25 (Robertson and Zaragoza 2009) in Lucene's form, stemmed by each document's language.

    Args:
        over: Score each passage by itself, or by the whole document that it stands in.
        depth: How many candidates.
    """

    over: Literal["passages", "documents"] = "passages"
    depth: int = 100

    def __post_init__(self) -> None:
        if self.over not in ("passages", "documents"):
            raise InputError(f"over must be 'passages' or 'documents', not {self.over!r}.")

    @property
    def name(self) -> str:
        return f"BM25({self.over})"

    def scores(self, question: str, passages: Passages) -> Scores:
        query = tokenize(question, passages.language_of(question))
        if self.over == "passages":
            return _top(passages.passage_bm25.scores(query), self.depth)
        documents = _top(passages.document_bm25.scores(query), self.depth)
        members = np.flatnonzero(np.isin(passages.owner, list(documents)))
        return {int(p): documents[int(passages.owner[p])] for p in members}


@dataclasses.dataclass(frozen=True, slots=True)
class Dense:
    """Cosine similarity of embeddings.

    Args:
        exact: Compare with every vector, in memory, instead of asking the store's approximate graph.
        depth: How many candidates.
    """

    exact: bool = False
    depth: int = 100

    @property
    def name(self) -> str:
        return "Dense(exact)" if self.exact else "Dense()"

    def scores(self, question: str, passages: Passages) -> Scores:
        if self.exact:
            return _top(passages.vectors @ passages.embed(question), self.depth, positive=False)
        return passages.nearest(question, k=self.depth)


@dataclasses.dataclass(frozen=True, slots=True)
class Hybrid:
    """BM25 over passages and documents and dense similarity, fused.

    Args:
        dense_weight: Share of the dense view where the embedder knows the question's language; the two BM25
            views share the rest.
        foreign_dense_weight: The same where it does not.
        exact: See `Dense`.
        depth: How many candidates each view gives.
    """

    dense_weight: float = 0.5
    foreign_dense_weight: float = 0.2
    exact: bool = False
    depth: int = 100

    def __post_init__(self) -> None:
        for weight in (self.dense_weight, self.foreign_dense_weight):
            if not 0 <= weight <= 1:
                raise InputError(f"A weight lies between 0 and 1, not {weight}.")

    @property
    def name(self) -> str:
        return f"Hybrid(dense_weight={self.dense_weight}, foreign_dense_weight={self.foreign_dense_weight})"

    def scores(self, question: str, passages: Passages) -> Scores:
        known = passages.index.embedder.languages
        foreign = known is not None and passages.language_of(question) not in known
        dense = self.foreign_dense_weight if foreign else self.dense_weight
        lexical = (1 - dense) / 2
        return weighted_fusion(
            [
                (lexical, BM25("passages", self.depth).scores(question, passages)),
                (lexical, BM25("documents", self.depth).scores(question, passages)),
                (dense, Dense(self.exact, self.depth).scores(question, passages)),
            ]
        )


def retrieve(
    question: str, passages: Passages, *, retriever: Retriever, k: int = 5, similarities: bool = True
) -> list[Hit]:
    """Rank the k best passages.

    Args:
        question: In any words.
        passages: The corpus.
        retriever: What ranks.
        k: How many.
        similarities: Whether to look up each hit's cosine, whatever the retriever scores by.

    Raises:
        EmptyQuestionError: The question has no words.
        InputError: k is less than 1.
        EmptyIndexError: There is nothing to search.
    """
    if not question.strip():
        raise EmptyQuestionError
    if not isinstance(k, int) or k < 1:
        raise InputError(f"k must be a whole number of at least 1, not {k!r}.")
    if not len(passages):
        raise EmptyIndexError(passages.index.path)
    scores = retriever.scores(question, passages)
    best = sorted(scores, key=lambda p: (-scores[p], p))[:k]
    similarity = passages.similarities(question, best) if similarities else {}
    return [
        Hit(passages.stored[p].chunk, passages.documents[passages.owner[p]], scores[p], similarity.get(p), rank)
        for rank, p in enumerate(best, start=1)
    ]


class PassagesCache:
    """The newest `Passages` of an index; looks before each use whether another process has changed it."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._passages: Passages | None = None

    def get(self) -> Passages:
        """Raises `EmptyIndexError` where nothing was indexed yet, `IndexMismatchError` for another embedder's index."""
        if not self._index.exists:
            raise EmptyIndexError(self._index.path)
        self._index.check()
        with self._lock:
            if self._passages is None or self._passages.generation != self._index.records.generation():
                self._index.catch_up()
                self._passages = Passages(self._index)
            return self._passages


# --------------------------------------------------------------------------------------- fusion


def weighted_fusion(views: Sequence[tuple[float, Scores]]) -> dict[int, float]:
    """Add views after scaling each to 0..1 between its worst and best candidate (Bruch, Gai and Ingber 2023).

    A candidate that a view does not know counts as that view's worst.
    """
    fused: dict[int, float] = {}
    for weight, scores in views:
        if not scores:
            continue
        low, high = min(scores.values()), max(scores.values())
        for candidate, score in scores.items():
            scaled = (score - low) / (high - low) if high > low else 1.0
            fused[candidate] = fused.get(candidate, 0.0) + weight * scaled
    return fused


def reciprocal_rank_fusion(views: Sequence[tuple[float, Scores]], *, k: int = 60) -> dict[int, float]:
    """Add weight / (k + rank) over views (Cormack, Clarke and Büttcher 2009)."""
    fused: dict[int, float] = {}
    for weight, scores in views:
        ranked = sorted(scores, key=lambda p: (-scores[p], p))
        for rank, candidate in enumerate(ranked, start=1):
            fused[candidate] = fused.get(candidate, 0.0) + weight / (k + rank)
    return fused


def _top(scores: npt.NDArray[np.float32], depth: int, *, positive: bool = True) -> dict[int, float]:
    """The depth best as {position: score}; with ``positive``, only those above zero."""
    depth = min(depth, len(scores))
    best = np.argpartition(-scores, depth - 1)[:depth] if depth else np.zeros(0, dtype=np.int64)
    return {int(i): float(scores[i]) for i in best if not positive or scores[i] > 0}
