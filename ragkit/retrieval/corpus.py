"""A corpus as retrievers see it: passages, their documents, BM25 over both, and vectors.

`Passages` is read-only and builds what it needs when it is first asked. An index gives one of what it
holds now; an experiment makes one for each way of cutting the same `Documents`.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ragkit.chunking.context import passage_text
from ragkit.documents.language import detect_language
from ragkit.embedding.base import Embedder, Vectors
from ragkit.indexing.stored import DocumentRecord, StoredChunk
from ragkit.retrieval.lexical import BM25Scores, best_of, tokenize

__all__ = ["Documents", "Passages", "Searchable"]


class Searchable(Protocol):
    """Where an index's vectors lie: a `ragkit.indexing.VectorStore`."""

    def get(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """Read vectors; ids that do not exist are left out."""
        ...

    def search(self, vector: Vectors, *, k: int) -> list[tuple[str, float]]:
        """Find up to k nearest (id, cosine similarity), nearest first; ``vector`` has shape (dimension,)."""
        ...


class Documents:
    """The documents of a corpus, uncut."""

    def __init__(self, records: Iterable[DocumentRecord]) -> None:
        self.records = list(records)
        self.languages = Counter(record.language for record in self.records)

    @functools.cached_property
    def bm25(self) -> BM25Scores:
        return BM25Scores([tokenize(f"{d.title}\n{d.text}", d.language) for d in self.records])


class Passages:
    """Every passage of a corpus, with what retrievers need of them; built lazily, then read-only.

    Args:
        documents: The documents.
        chunks: Of each document, its chunks with their vectors' ids.
        embedder: What embedded them, and embeds questions.
        vectors: Where the vectors are; or all of them, shape (passages, dimension), to be searched exactly; or what
            makes these when they are first needed.
        path: The index, for messages.
        generation: The index's, when this was read.
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

        # Over the embedder and not over self: the cache would keep this generation's texts alive in a circle.
        @functools.lru_cache(maxsize=256)
        def embed(question: str) -> Vectors:
            vector: Vectors = embedder.embed([question], kind="query")[0]
            return vector

        self._embed = embed
        self._nearest: tuple[str, dict[int, float]] = "", {}  # the last search's
        self._expected: dict[str, int] = {}
        self._asked: Vectors | None = None  # the expected questions' vectors
        self._cosines: Vectors | None = None  # of each expected question to each passage

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

    def members(self, document: int) -> range:
        """The positions of a document's passages."""
        return range(self._first[document], self._first[document + 1])

    def sections(self, document: int) -> list[tuple[str, tuple[str, ...]]]:
        """List the (document id, headings) of a document's passages, in order, each once."""
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
        # Zero for what a writer has replaced since: similar to nothing, and gone in the next generation.
        gone = np.zeros(self.embedder.dimension, dtype=np.float32)
        return np.stack([found.get(s.vector_id, gone) for s in self.stored])

    def expect(self, questions: Sequence[str], vectors: Callable[[], Vectors] | None = None) -> None:
        """Say which questions come next, and forget those before.

        Args:
            questions: n questions, which are searched in one product where search is exact.
            vectors: Makes their embeddings, shape (n, dimension), if they are asked for; the embedder does if None.
        """
        distinct = list(dict.fromkeys(questions))
        self._expected = {question: row for row, question in enumerate(distinct)}
        self._embed_expected = vectors or (lambda: self.embedder.embed(distinct, kind="query"))
        self._asked = None
        self._cosines = None
        self._embed.cache_clear()

    def embed(self, question: str) -> Vectors:
        """Embed a question; the vectors of the last 256, and of the expected ones, are kept."""
        if question in self._expected:
            if self._asked is None:
                self._asked = self._embed_expected()
            vector: Vectors = self._asked[self._expected[question]]
            return vector
        return self._embed(question)

    def cosines(self, question: str) -> Vectors:
        """Cosine similarity of a question to every passage, shape (len(self),)."""
        vector = self.embed(question)
        if question not in self._expected:
            cosines: Vectors = self.vectors @ vector
            return cosines
        if self._cosines is None:
            assert self._asked is not None  # embed has just made them
            self._cosines = self._asked @ self.vectors.T
        row: Vectors = self._cosines[self._expected[question]]
        return row

    def nearest(self, question: str, *, k: int) -> dict[int, float]:
        """Find the passages nearest to a question by the store's own search: position -> cosine similarity."""
        if self._searchable is None:
            return best_of(self.cosines(question), k)
        found = self._searchable.search(self.embed(question), k=k)
        nearest = {self.position[i]: s for i, s in found if i in self.position}
        self._nearest = question, nearest
        return nearest

    def similarities(self, question: str, positions: Sequence[int]) -> dict[int, float]:
        """Cosine similarity of the question to these passages."""
        if self._searchable is None:
            cosines = self.cosines(question)
            return {p: max(-1.0, min(1.0, float(cosines[p]))) for p in positions}
        asked, nearest = self._nearest
        known = {p: nearest[p] for p in positions if p in nearest} if asked == question else {}
        ids = {p: self.stored[p].vector_id for p in positions if p not in known}
        vectors = self._searchable.get(list(ids.values())) if ids else {}
        query = self.embed(question)
        known |= {p: float(vectors[i] @ query) for p, i in ids.items() if i in vectors}
        return {p: max(-1.0, min(1.0, known[p])) for p in positions if p in known}
