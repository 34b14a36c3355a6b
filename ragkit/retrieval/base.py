"""What a retriever, a query rewriter and a reranker are, and what they find."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ragkit.chunking.base import Chunk
from ragkit.indexing.records import DocumentRecord
from ragkit.retrieval.corpus import Passages

__all__ = ["Hit", "QueryRewriter", "Reranker", "Retriever", "Scores"]

Scores = Mapping[int, float]
"""Candidates: position of a passage in `Passages` -> score, higher is better."""


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage.

    Attributes:
        chunk: The passage with its offsets into the document.
        document: The document that it stands in.
        score: What it is ranked by: the retriever's score, that of `fused` rankings, or the reranker's; comparable
            within one question only.
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


class QueryRewriter(Protocol):
    """Finds the texts to search with for a question: `ragkit.retrieval.rewriting` has two."""

    def rewrite(self, question: str, *, language: str, cancelled: Callable[[], bool] = ...) -> list[str]:
        """Return one or more texts, the question first unless it is replaced.

        Args:
            question: As it was asked.
            language: ISO 639-1 code of the question.
            cancelled: Asked several times a second; True stops the work.

        Raises:
            LLMError: A language model did not give any.
            OperationCancelled: ``cancelled`` said so.
        """
        ...


class Reranker(Protocol):
    """Reads the best passages together with the question, and ranks them anew: `ragkit.retrieval.reranking` has two.

    Attributes:
        depth: How many passages it reads at most.
    """

    @property
    def depth(self) -> int: ...

    def scores(self, question: str, texts: Sequence[str], *, cancelled: Callable[[], bool] = ...) -> Sequence[float]:
        """Score passages, higher is better.

        Args:
            question: As it was asked.
            texts: n passages under their titles and headings, best first.
            cancelled: Asked several times a second; True stops the work.

        Returns:
            A finite score for each, shape (n,); equal ones leave the passages in their order.

        Raises:
            RerankingError, LLMError: The model failed.
            OperationCancelled: ``cancelled`` said so.
        """
        ...
