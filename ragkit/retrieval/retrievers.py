"""Retrievers: lexical, dense and hybrid."""

from __future__ import annotations

import dataclasses
from typing import Literal

from ragkit.errors import InputError
from ragkit.retrieval.base import Scores
from ragkit.retrieval.corpus import Passages
from ragkit.retrieval.fusion import reciprocal_rank_fusion, weighted_fusion
from ragkit.retrieval.lexical import best_of, tokenize
from ragkit.space import has_choices


@dataclasses.dataclass(frozen=True, slots=True)
class BM25:
    """Okapi BM25 (Robertson and Zaragoza 2009) in Lucene's form, stemmed in each document's language.

    Args:
        over: Score each passage, or the whole document that contains it.
        depth: Number of candidates.
    """

    over: Literal["passages", "documents"] = "passages"
    depth: int = 100

    def __post_init__(self) -> None:
        if not has_choices(self) and self.over not in ("passages", "documents"):
            raise InputError(f"over must be 'passages' or 'documents', not {self.over!r}.")

    @property
    def name(self) -> str:
        return f"BM25({self.over})"

    def scores(self, query: str, passages: Passages) -> Scores:
        terms = tokenize(query, passages.language_of(query))
        if self.over == "passages":
            return best_of(passages.passage_bm25.scores(terms), self.depth, positive=True)
        documents = best_of(passages.document_bm25.scores(terms), self.depth, positive=True)
        return {p: score for document, score in documents.items() for p in passages.members(document)}


@dataclasses.dataclass(frozen=True, slots=True)
class Dense:
    """Cosine similarity of embeddings.

    Args:
        exact: Compare with all vectors, in memory, instead of using the store's approximate search.
        depth: Number of candidates.
    """

    exact: bool = False
    depth: int = 100

    @property
    def name(self) -> str:
        return "Dense(exact)" if self.exact else "Dense()"

    def scores(self, query: str, passages: Passages) -> Scores:
        if self.exact:
            return best_of(passages.cosines(query), self.depth)
        return passages.nearest(query, k=self.depth)


@dataclasses.dataclass(frozen=True, slots=True)
class Hybrid:
    """BM25 and dense similarity, fused.

    Args:
        dense_weight: Weight of the dense view if the embedder knows the question's language; BM25 has the rest.
        foreign_dense_weight: The same if the embedder does not know the language.
        exact: See `Dense`.
        depth: Number of candidates of each view.
        fusion: ``"weighted"`` adds the scaled scores of three views; BM25 over passages and over documents share
            their weight equally. ``"rrf"`` is reciprocal rank fusion of two views, BM25 over passages and dense; with
            the default dense_weight both have the same weight, as in Cormack, Clarke and Büttcher (2009).
    """

    dense_weight: float = 0.5
    foreign_dense_weight: float = 0.2
    exact: bool = False
    depth: int = 100
    fusion: Literal["weighted", "rrf"] = "weighted"

    def __post_init__(self) -> None:
        if has_choices(self):
            return
        if self.fusion not in ("weighted", "rrf"):
            raise InputError(f"fusion must be 'weighted' or 'rrf', not {self.fusion!r}.")
        for weight in (self.dense_weight, self.foreign_dense_weight):
            if not 0 <= weight <= 1:
                raise InputError(f"Weights must be between 0 and 1, not {weight}.")

    @property
    def name(self) -> str:
        fusion = "" if self.fusion == "weighted" else f", fusion={self.fusion!r}"
        return f"Hybrid(dense_weight={self.dense_weight}, foreign_dense_weight={self.foreign_dense_weight}{fusion})"

    def scores(self, query: str, passages: Passages) -> Scores:
        query = passages.query(query)
        known = passages.embedder.languages
        foreign = known is not None and passages.language_of(query) not in known
        dense = self.foreign_dense_weight if foreign else self.dense_weight
        by_passage = BM25("passages", self.depth).scores(query, passages)
        nearest = Dense(self.exact, self.depth).scores(query, passages)
        if self.fusion == "rrf":
            return reciprocal_rank_fusion([(1 - dense, by_passage), (dense, nearest)])
        by_document = BM25("documents", self.depth).scores(query, passages)
        lexical = (1 - dense) / 2
        return weighted_fusion([(lexical, by_passage), (lexical, by_document), (dense, nearest)])
