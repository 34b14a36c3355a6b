"""The `Passages` of an index, reloaded when the index changes."""

from __future__ import annotations

import threading

from ragkit.errors import EmptyIndexError
from ragkit.indexing.index import Index
from ragkit.retrieval.corpus import Documents, Passages


class IndexPassages:
    """The current `Passages` of an index. Each use checks whether any process has changed the index."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._lock = threading.Lock()
        self._passages: Passages | None = None

    def get(self) -> Passages:
        """Return the current passages.

        Raises:
            EmptyIndexError: Nothing was indexed yet.
            IndexMismatchError: The index was built with another embedder.
        """
        if not self._index.exists:
            raise EmptyIndexError(self._index.path)
        self._index.check()
        with self._lock:
            if self._passages is None or self._passages.generation != self._index.records.generation():
                self._index.catch_up()
                self._passages = self._read()
            return self._passages

    def _read(self) -> Passages:
        snapshot = self._index.records.snapshot()
        return Passages(
            Documents(snapshot.documents.values()),
            [snapshot.chunks[document_id] for document_id in snapshot.documents],
            embedder=self._index.embedder,
            vectors=self._index.vector_store,
            path=self._index.path,
            generation=snapshot.generation,
        )
