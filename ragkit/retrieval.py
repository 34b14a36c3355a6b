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
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from ragkit.analysis import tokenize
from ragkit.choices import is_open
from ragkit.chunking import Chunk
from ragkit.corpus import Passages, best_of
from ragkit.errors import EmptyIndexError, EmptyQuestionError, InputError
from ragkit.records import DocumentRecord

__all__ = ["BM25", "Dense", "Hit", "Hybrid", "Retriever", "reciprocal_rank_fusion", "retrieve", "weighted_fusion"]

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
        if not is_open(self) and self.over not in ("passages", "documents"):
            raise InputError(f"over must be 'passages' or 'documents', not {self.over!r}.")

    @property
    def name(self) -> str:
        return f"BM25({self.over})"

    def scores(self, question: str, passages: Passages) -> Scores:
        query = tokenize(question, passages.language_of(question))
        if self.over == "passages":
            return best_of(passages.passage_bm25.scores(query), self.depth, positive=True)
        documents = best_of(passages.document_bm25.scores(query), self.depth, positive=True)
        return {p: score for document, score in documents.items() for p in passages.members(document)}


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
            return best_of(passages.cosines(question), self.depth)
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
        if is_open(self):
            return
        for weight in (self.dense_weight, self.foreign_dense_weight):
            if not 0 <= weight <= 1:
                raise InputError(f"A weight lies between 0 and 1, not {weight}.")

    @property
    def name(self) -> str:
        return f"Hybrid(dense_weight={self.dense_weight}, foreign_dense_weight={self.foreign_dense_weight})"

    def scores(self, question: str, passages: Passages) -> Scores:
        known = passages.embedder.languages
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
        raise EmptyIndexError(passages.path)
    scores = retriever.scores(question, passages)
    best = sorted(scores, key=lambda p: (-scores[p], p))[:k]
    similarity = passages.similarities(question, best) if similarities else {}
    return [
        Hit(passages.stored[p].chunk, passages.documents[passages.owner[p]], scores[p], similarity.get(p), rank)
        for rank, p in enumerate(best, start=1)
    ]


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
