"""The corpus as seen by retrievers: passages, their documents, BM25 over both, and vectors.

`Passages` is read-only and builds its data structures at first use. An index provides one for its current
state; an experiment makes one for each chunking of the same `Documents`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from ragkit.chunking.context import passage_text
from ragkit.embedding.base import Embedder, Vectors
from ragkit.indexing.record_types import DocumentRecord, StoredChunk
from ragkit.retrieval.lexical import BM25Scores, best_of, tokenize
from ragkit.retrieval.query import QueryBatch, SearchQuery, guess_language


class Searchable(Protocol):
    """The part of `ragkit.indexing.VectorStore` that retrieval needs."""

    def get(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """Return the vectors of ids. Ids that do not exist are left out."""
        ...

    def search(self, vector: Vectors, *, k: int) -> list[tuple[str, float]]:
        """Return up to k (id, cosine similarity), most similar first. ``vector`` has shape (dimension,)."""
        ...


class Documents:
    """The whole documents of a corpus."""

    def __init__(self, records: Iterable[DocumentRecord]) -> None:
        self.records = list(records)
        self.languages = Counter(record.language for record in self.records)

    @functools.cached_property
    def bm25(self) -> BM25Scores:
        return BM25Scores([tokenize(f"{d.title}\n{d.text}", d.language) for d in self.records])


class Passages:
    """All passages of a corpus, with the data structures for retrieval; built lazily, then read-only.

    Args:
        documents: The documents.
        chunks: The chunks of each document, with the ids of their vectors.
        embedder: The embedder of the passages and of queries.
        vectors: A vector store; or all vectors, shape (passages, dimension), for exact search; or a function that
            returns all vectors, called at first use.
        path: The index's path, for error messages.
        generation: The index's generation when this was read.
    """

    def __init__(
        self,
        documents: Documents,
        chunks: Sequence[Sequence[StoredChunk]],
        *,
        embedder: Embedder,
        vectors: Searchable | Vectors | Callable[[], Vectors],
        path: Path = Path(),
        generation: int = 0,
    ) -> None:
        self.path = path
        self.generation = generation
        self.embedder = embedder
        self.documents = documents.records
        self.languages = documents.languages
        self.stored: list[StoredChunk] = []
        owners: list[int] = []
        for number, of_one in enumerate(chunks):
            self.stored += of_one
            owners += [number] * len(of_one)
        self.owner: npt.NDArray[np.int64] = np.asarray(owners, dtype=np.int64)
        self._first = np.searchsorted(self.owner, np.arange(len(self.documents) + 1)).tolist()
        self.position = {s.vector_id: i for i, s in enumerate(self.stored)}
        self._documents = documents
        self._searchable: Searchable | None = None
        self._make_vectors: Callable[[], Vectors] | None = None
        if isinstance(vectors, np.ndarray):
            self.vectors = vectors
        elif callable(vectors):
            self._make_vectors = vectors
        else:
            self._searchable = vectors
        # Caches per query batch: exact cosines, and those found by the store.
        self._cosines: WeakKeyDictionary[QueryBatch, Vectors] = WeakKeyDictionary()
        self._nearest: WeakKeyDictionary[QueryBatch, dict[str, dict[int, float]]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self.stored)

    @functools.cached_property
    def _common_languages(self) -> list[str]:
        return [
            language
            for language, count in self.languages.most_common()
            if language != "und" and count >= 0.02 * len(self.documents)
        ]

    def query(self, text: str) -> SearchQuery:
        """Make a query from a text, detecting its language; a `SearchQuery` is returned unchanged."""
        if isinstance(text, SearchQuery):
            return text
        return SearchQuery(text, guess_language(text, self.languages), embedder=self.embedder)

    def language_of(self, query: str) -> str:
        """Return the language for searching: the query's own if at least 2 % of the documents have it.

        Otherwise the corpus's most common language, because the language of short queries is often misdetected.
        """
        common = self._common_languages
        if len(common) < 2:
            return common[0] if common else "und"
        language = self.query(query).language
        return language if language in common else common[0]

    def members(self, document: int) -> range:
        """Return the positions of a document's passages."""
        return range(self._first[document], self._first[document + 1])

    def sections(self, document: int) -> list[tuple[str, tuple[str, ...]]]:
        """Return the distinct (document id, headings) of a document's passages, in order."""
        document_id = self.documents[document].id
        return list(dict.fromkeys((document_id, self.stored[p].chunk.headings) for p in self.members(document)))

    def text(self, position: int) -> str:
        return passage_text(self.documents[self.owner[position]].title, self.stored[position].chunk)

    @functools.cached_property
    def passage_bm25(self) -> BM25Scores:
        languages = [d.language for d in self.documents]
        return BM25Scores([tokenize(self.text(i), languages[o]) for i, o in enumerate(self.owner.tolist())])

    @property
    def document_bm25(self) -> BM25Scores:
        return self._documents.bm25

    @functools.cached_property
    def vectors(self) -> Vectors:
        """All vectors in memory, shape (len(self), dimension), for exact search."""
        if self._make_vectors is not None:
            return self._make_vectors()
        assert self._searchable is not None
        found = self._searchable.get([s.vector_id for s in self.stored])
        # Zero for vectors replaced since this was read: similar to nothing, and absent from the next generation.
        zero = np.zeros(self.embedder.dimension, dtype=np.float32)
        return np.stack([found.get(s.vector_id, zero) for s in self.stored])

    def cosines(self, query: str) -> Vectors:
        """Return the cosine similarities of a query to all passages, shape (len(self),).

        For a batch of queries, all similarities are computed in one matrix product.
        """
        query = self.query(query)
        if len(query.batch) == 1:
            similarities: Vectors = self.vectors @ query.embedded_by(self.embedder)
            return similarities
        if (cosines := self._cosines.get(query.batch)) is None:
            cosines = self._cosines[query.batch] = query.batch.embedded_by(self.embedder) @ self.vectors.T
        return query.row_of(cosines)

    def nearest(self, query: str, *, k: int) -> dict[int, float]:
        """Return the k passages most similar to a query, by the store's search: position -> cosine similarity."""
        query = self.query(query)
        if self._searchable is None:
            return best_of(self.cosines(query), k)
        found = self._searchable.search(query.embedded_by(self.embedder), k=k)
        nearest = {self.position[i]: s for i, s in found if i in self.position}
        self._nearest.setdefault(query.batch, {}).setdefault(query.text, {}).update(nearest)
        return nearest

    def similarities(self, query: str, positions: Sequence[int]) -> dict[int, float]:
        """Return the cosine similarities of a query to some passages: position -> cosine similarity."""
        query = self.query(query)
        if self._searchable is None:
            cosines = self.cosines(query)
            return {p: max(-1.0, min(1.0, float(cosines[p]))) for p in positions}
        nearest = self._nearest.get(query.batch, {}).get(query.text, {})
        known = {p: nearest[p] for p in positions if p in nearest}
        ids = {p: self.stored[p].vector_id for p in positions if p not in known}
        vectors = self._searchable.get(list(ids.values())) if ids else {}
        known |= {p: float(vectors[i] @ query.embedded_by(self.embedder)) for p, i in ids.items() if i in vectors}
        return {p: max(-1.0, min(1.0, known[p])) for p in positions if p in known}
