"""Judged sets: documents, queries, and which documents, or which of their characters, answer them.

`ragkit.evaluation.load_dataset` reads one.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ragkit.documents.document import Document
from ragkit.errors import InputError
from ragkit.evaluation.trec import as_grade
from ragkit.hashing import hash_values

_Named = TypeVar("_Named", "Query", Document)


@dataclasses.dataclass(frozen=True, slots=True)
class GoldSpan:
    """Characters of a document that answer a query: ``document.text[start:end]``."""

    document_id: str
    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise InputError(f"A span of '{self.document_id}' goes from {self.start} to {self.end}: it holds nothing.")


@dataclasses.dataclass(frozen=True, slots=True)
class Query:
    """A question of a judged set.

    Attributes:
        id: Names it within its set.
        text: What is asked.
        language: ISO 639-1 code; "und" if the set does not say.
        answers: Right answers, in words.
        answerable: Whether the documents answer it; None if the set does not say.
        synthetic: Whether a program made it up.
    """

    id: str
    text: str
    language: str = "und"
    answers: tuple[str, ...] = ()
    answerable: bool | None = None
    synthetic: bool = False

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise InputError(f"The query '{self.id}' is empty. Give it words, or take it out.")


@dataclasses.dataclass(frozen=True, slots=True)
class Dataset:
    """A judged set. A query that has spans and no judgements is judged by them: grade 1 for each document with one.

    Attributes:
        name: What it is called.
        documents: What is searched.
        queries: What is asked.
        qrels: Query id -> document id -> grade, 1 and more for relevant. Judged documents need not be among
            `documents`: they count, and cannot be found.
        spans: Query id -> where the answers stand.

    Raises:
        InputError: Nothing is asked or searched, an id stands twice, or gold is for what is not there.
    """

    name: str
    documents: Sequence[Document]
    queries: Sequence[Query]
    qrels: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    spans: Mapping[str, Sequence[GoldSpan]] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        documents = _by_id(self.documents, f"documents of '{self.name}'")
        queries = _by_id(self.queries, f"queries of '{self.name}'")
        for query_id in (*self.qrels, *self.spans):
            if query_id not in queries:
                raise InputError(
                    f"'{self.name}' has judgements or spans for '{query_id}', which is not among its queries. Add the "
                    "query, or take them out."
                )
        for query_id, found in self.spans.items():
            for span in found:
                if span.document_id not in documents:
                    raise InputError(
                        f"A span for the query '{query_id}' is in '{span.document_id}', which is none of the documents."
                    )
                if span.end > (length := len(documents[span.document_id].text)):
                    raise InputError(
                        f"A span for the query '{query_id}' ends at {span.end}, and '{span.document_id}' at {length}."
                    )
        spans = {query_id: tuple(found) for query_id, found in self.spans.items() if found}
        qrels = {
            query_id: {d: as_grade(grade, where=f"'{d}' for the query '{query_id}'") for d, grade in judged.items()}
            for query_id, judged in self.qrels.items()
            if judged
        }
        for query_id, found in spans.items():
            qrels.setdefault(query_id, dict.fromkeys((span.document_id for span in found), 1))
        # Copies of its own: what was given may change.
        object.__setattr__(self, "documents", tuple(self.documents))
        object.__setattr__(self, "queries", tuple(self.queries))
        object.__setattr__(self, "qrels", qrels)
        object.__setattr__(self, "spans", spans)

    def __repr__(self) -> str:
        parts = [f"{len(self.documents):,} documents", f"{len(self.queries):,} queries"]
        parts.append(f"{sum(map(len, self.qrels.values())):,} judgements")
        if self.spans:
            parts.append(f"{sum(map(len, self.spans.values())):,} spans")
        if unanswerable := sum(query.answerable is False for query in self.queries):
            parts.append(f"{unanswerable:,} queries without an answer")
        return f"Dataset({self.name!r}: {', '.join(parts)})"

    def digest(self) -> str:
        """Return the hash of everything but the name."""
        spans = {query_id: [dataclasses.astuple(span) for span in found] for query_id, found in self.spans.items()}
        return hash_values(self.documents_digest(), self.queries_digest(), self.qrels, spans)

    def documents_digest(self) -> str:
        """Return the hash of the documents, as far as they are indexed, in their order."""
        return hash_values([[document.id, document.digest()] for document in self.documents])

    def queries_digest(self) -> str:
        """Return the hash of the queries, without what is right."""
        return hash_values([dataclasses.astuple(query) for query in self.queries])

    def check_queries(self, what: str, by_query: Mapping[str, object]) -> None:
        """Raise `InputError` for rankings or answers none of which is for a query of this set."""
        if by_query and not any(query.id in by_query for query in self.queries):
            raise InputError(
                f"None of the {len(by_query)} {what} is for a query of '{self.name}': the first is for "
                f"{next(iter(by_query))!r:.100}, the dataset's first query is '{self.queries[0].id}'."
            )

    def head(self, n: int) -> Dataset:
        """Return the set with its first ``n`` queries, or as many as there are, and all documents."""
        return self._of(self.queries[: max(n, 0)], f"first {n}")

    def sample(self, n: int, *, seed: int = 0) -> Dataset:
        """Return the set with ``n`` queries drawn at random, in their order, and all documents.

        Raises:
            InputError: There are not so many.
        """
        if not 1 <= n <= len(self.queries):
            raise InputError(f"'{self.name}' has {len(self.queries)} queries, so that {n} cannot be drawn from them.")
        return self._of(self._drawn(n, seed)[0], f"{n} drawn, seed {seed}")

    def split(self, fraction: float, *, seed: int = 0) -> tuple[Dataset, Dataset]:
        """Part the queries at random; both sets have all documents.

        Args:
            fraction: How many of the queries are in the first set, between 0 and 1.
            seed: The same seed parts them the same way.

        Returns:
            A set to choose by (train), and one to report (test).

        Raises:
            InputError: One of them would be empty.
        """
        n = round(len(self.queries) * fraction) if 0 < fraction < 1 else 0
        if not 1 <= n < len(self.queries):
            raise InputError(
                f"With {fraction} of {len(self.queries)} queries one part would be empty. Give a fraction like 0.5."
            )
        train, test = self._drawn(n, seed)
        return self._of(train, f"train {fraction}, seed {seed}"), self._of(test, f"test {fraction}, seed {seed}")

    def _drawn(self, n: int, seed: int) -> tuple[list[Query], list[Query]]:
        chosen = set(random.Random(seed).sample(range(len(self.queries)), n))
        pairs = list(enumerate(self.queries))
        return [q for at, q in pairs if at in chosen], [q for at, q in pairs if at not in chosen]

    def _of(self, queries: Sequence[Query], which: str) -> Dataset:
        return self.with_queries(queries, name=f"{self.name} ({which})")

    def with_queries(self, queries: Sequence[Query], *, name: str | None = None) -> Dataset:
        """Return the set with only these of its queries, and all documents."""
        ids = {query.id for query in queries}
        return Dataset(
            name or self.name,
            self.documents,
            queries,
            {query_id: judged for query_id, judged in self.qrels.items() if query_id in ids},
            {query_id: spans for query_id, spans in self.spans.items() if query_id in ids},
        )


def _by_id(items: Sequence[_Named], what: str) -> dict[str, _Named]:
    twice = [each for each, count in Counter(item.id for item in items).items() if count > 1]
    if twice:
        raise InputError(f"Two {what} have the id '{twice[0]}'. Give one of them another id, or take it out.")
    if not items:
        raise InputError(f"There are no {what}, so that nothing could be measured.")
    return {item.id: item for item in items}
