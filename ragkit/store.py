"""Vectors: where they lie and how the nearest are found.

The store knows ids and unit vectors and nothing else; texts, offsets and what belongs to which
document are the index's records. ChromaDB keeps it, embedded on disk or as a server of its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ragkit.embedding import Vectors
from ragkit.errors import IndexCorruptError, IndexWriteError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

__all__ = ["ChromaStore", "VectorStore"]

_COLLECTION = "passages"


class VectorStore(Protocol):
    """What the index needs of a vector database."""

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Write vectors of shape (n, dimension) under n ids; an id that exists is overwritten."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove ids; those that do not exist are ignored."""
        ...

    def search(self, vector: Vectors, *, k: int) -> list[tuple[str, float]]:
        """Find up to k nearest (id, cosine similarity), nearest first; ``vector`` has shape (dimension,)."""
        ...

    def get(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """Read vectors back; ids that do not exist are left out."""
        ...

    def count(self) -> int: ...

    def clear(self) -> None:
        """Remove everything."""
        ...

    def refresh(self) -> None:
        """Forget what was cached, after another process has written."""
        ...


class ChromaStore:
    """A ChromaDB collection with cosine distance.

    Args:
        path: Folder of an embedded database, made if it does not exist. One process may write at a time.
        host: Address of a Chroma server to use instead; then ``collection`` must say which one is ours.
        port: The server's port.
        ssl: Whether the server speaks TLS.
        collection: Name of the collection.

    Raises:
        IndexCorruptError: The database cannot be opened.
        IndexWriteError: It cannot be written.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        host: str | None = None,
        port: int = 8001,
        ssl: bool = False,
        collection: str = _COLLECTION,
    ) -> None:
        self._path = Path(path) if path is not None else None
        self._host, self._port, self._ssl = host, port, ssl
        self._name = collection
        self._where = str(path) if host is None else f"{host}:{port}"
        self._collection: Any = None

    def _open(self) -> Any:
        if self._collection is None:
            with self._translated("opened"):
                client = self._client()
                # Chroma's own embedding function would fetch a model at import of the collection; vectors are ours.
                self._collection = client.get_or_create_collection(
                    self._name, configuration={"hnsw": {"space": "cosine", "ef_search": 200}}, embedding_function=None
                )
                self._max_batch = client.get_max_batch_size()
        return self._collection

    def _client(self) -> ClientAPI:
        import chromadb
        from chromadb.config import Settings

        settings = Settings(anonymized_telemetry=False)
        if self._host is not None:
            return chromadb.HttpClient(host=self._host, port=self._port, ssl=self._ssl, settings=settings)
        assert self._path is not None
        self._path.mkdir(parents=True, exist_ok=True)
        return chromadb.PersistentClient(path=str(self._path), settings=settings)

    @contextlib.contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        from chromadb.errors import ChromaError

        try:
            yield
        except (ChromaError, OSError, ValueError) as error:
            text = f"the vector database could not be {what}: {str(error).strip() or type(error).__name__}"
            if what == "written" or isinstance(error, OSError):
                raise IndexWriteError(self._where, text) from error
            raise IndexCorruptError(self._where, text) from error

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        collection = self._open()
        with self._translated("written"):
            for start in range(0, len(ids), self._max_batch):
                stop = start + self._max_batch
                collection.upsert(ids=list(ids[start:stop]), embeddings=vectors[start:stop])

    def delete(self, ids: Sequence[str]) -> None:
        collection = self._open()
        with self._translated("written"):
            for start in range(0, len(ids), self._max_batch):
                collection.delete(ids=list(ids[start : start + self._max_batch]))

    def search(self, vector: Vectors, *, k: int) -> list[tuple[str, float]]:
        collection = self._open()
        with self._translated("searched"):
            k = min(k, collection.count())
            if k < 1:
                return []
            found = collection.query(query_embeddings=[vector], n_results=k, include=["distances"])
        return [(id_, 1.0 - float(d)) for id_, d in zip(found["ids"][0], found["distances"][0], strict=True)]

    def get(self, ids: Sequence[str]) -> dict[str, Vectors]:
        if not ids:
            return {}
        collection = self._open()
        with self._translated("read"):
            found = collection.get(ids=list(ids), include=["embeddings"])
        rows = np.asarray(found["embeddings"], dtype=np.float32)
        return dict(zip(found["ids"], rows, strict=True))

    def count(self) -> int:
        collection = self._open()
        with self._translated("read"):
            return int(collection.count())

    def clear(self) -> None:
        self._open()
        with self._translated("written"):
            self._client().delete_collection(self._name)
        self._collection = None

    def refresh(self) -> None:
        # An embedded client caches its HNSW graph for the life of the process; only a new system reads the disk again.
        if self._host is None and self._collection is not None:
            from chromadb.api.shared_system_client import SharedSystemClient

            systems: dict[str, Any] = SharedSystemClient._identifier_to_system
            system = systems.pop(str(self._path), None)
            if system is not None:
                system.stop()
        self._collection = None
