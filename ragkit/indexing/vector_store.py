"""Vector stores: storage of vectors and nearest-neighbour search.

A store contains ids and unit vectors only. Texts, offsets and document ids are in the index's records.
The implementation is ChromaDB, embedded on disk or as a server.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ragkit.embedding.base import Vectors
from ragkit.errors import IndexCorruptError, IndexingError, IndexWriteError, InputError

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_COLLECTION = "passages"
_PAGE = 10_000


class VectorStore(Protocol):
    """The interface of a vector database for the index."""

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        """Write vectors of shape (n, dimension) under n ids, overwriting existing ones."""
        ...

    def delete(self, ids: Sequence[str]) -> None:
        """Remove ids. Ids that do not exist are ignored."""
        ...

    def search(self, vector: Vectors, *, k: int) -> list[tuple[str, float]]:
        """Return up to k (id, cosine similarity), most similar first. ``vector`` has shape (dimension,)."""
        ...

    def get(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """Return the vectors of ids. Ids that do not exist are left out."""
        ...

    def count(self) -> int: ...

    def ids(self) -> Iterator[str]:
        """Yield every id."""
        ...

    def clear(self) -> None:
        """Remove everything, even if the store is damaged."""
        ...

    def refresh(self) -> None:
        """Discard caches, after another process has written."""
        ...

    def close(self) -> None:
        """Close files and connections; the next use opens them again."""
        ...


class _Opened:
    """An open collection, shared by every `ChromaStore` of the same database in this process.

    The client library has one system per path, and stopping it (`ChromaStore.refresh`) stops it for all clients.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.collection: Any = None
        self.max_batch = 1


_opened: dict[tuple[str, str], _Opened] = {}
_opened_lock = threading.Lock()


class ChromaStore:
    """A ChromaDB collection with cosine distance. Thread-safe; one process may have several for the same database.

    Args:
        path: Folder of an embedded database, created if it does not exist. Only one process may write at a time.
        host: Address of a Chroma server to use instead; then ``collection`` must name this index's collection.
        port: The server's port.
        ssl: Whether to use TLS.
        collection: Name of the collection.

    Raises (at first use):
        IndexCorruptError: The database cannot be opened.
        IndexWriteError: It cannot be written.
        IndexingError: The server does not answer.
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
        if (path is None) == (host is None):
            raise InputError("Give either the path of an embedded database or the host of a Chroma server.")
        self._path = Path(path).absolute() if path is not None else None
        self._host, self._port, self._ssl = host, port, ssl
        self._name = collection
        self._where = str(path) if host is None else f"{host}:{port}"
        with _opened_lock:
            place = str(self._path.resolve()) if self._path is not None else self._where
            self._opened = _opened.setdefault((place, collection), _Opened())

    @contextlib.contextmanager
    def _using(self, what: str) -> Iterator[Any]:
        """Yield the open collection for one operation, under its lock, and translate errors to ragkit's."""
        import httpx  # used by chromadb's client
        from chromadb.errors import ChromaError

        with self._opened.lock:
            try:
                if self._opened.collection is None:
                    client = self._client()
                    # No embedding function, which would download a model: we provide the vectors.
                    self._opened.collection = client.get_or_create_collection(
                        self._name,
                        configuration={"hnsw": {"space": "cosine", "ef_search": 200}},
                        embedding_function=None,
                    )
                    self._opened.max_batch = client.get_max_batch_size()
                yield self._opened.collection
            except httpx.HTTPError as error:
                raise IndexingError(
                    self._where,
                    f"The Chroma server at {self._where} does not answer: {error}. Check the address, or start it: "
                    f"chroma run --path FOLDER --port {self._port}",
                ) from error
            except (ChromaError, OSError, ValueError) as error:
                if self._host is not None and self._opened.collection is None:
                    raise IndexingError(
                        self._where, f"The Chroma server at {self._where} could not be used: {error}"
                    ) from error
                text = f"the vector database could not be {what}: {str(error).strip() or type(error).__name__}"
                if what == "written" or isinstance(error, OSError):
                    raise IndexWriteError(self._where, text) from error
                raise IndexCorruptError(self._where, text) from error

    def _client(self) -> ClientAPI:
        import chromadb
        from chromadb.config import Settings

        settings = Settings(anonymized_telemetry=False)
        if self._path is None:
            return chromadb.HttpClient(host=str(self._host), port=self._port, ssl=self._ssl, settings=settings)
        self._path.mkdir(parents=True, exist_ok=True)
        return chromadb.PersistentClient(path=str(self._path), settings=settings)

    def add(self, ids: Sequence[str], vectors: Vectors) -> None:
        with self._using("written") as collection:
            for start in range(0, len(ids), self._opened.max_batch):
                stop = start + self._opened.max_batch
                collection.upsert(ids=list(ids[start:stop]), embeddings=vectors[start:stop])

    def delete(self, ids: Sequence[str]) -> None:
        with self._using("written") as collection:
            for start in range(0, len(ids), self._opened.max_batch):
                collection.delete(ids=list(ids[start : start + self._opened.max_batch]))

    def search(self, vector: Vectors, *, k: int) -> list[tuple[str, float]]:
        with self._using("searched") as collection:
            # Not min(k, count()), which reads every row; Chroma returns fewer if there are fewer.
            found = collection.query(query_embeddings=[vector], n_results=k, include=["distances"])
        return [(id_, 1.0 - float(d)) for id_, d in zip(found["ids"][0], found["distances"][0], strict=True)]

    def get(self, ids: Sequence[str]) -> dict[str, Vectors]:
        vectors: dict[str, Vectors] = {}
        with self._using("read") as collection:
            for start in range(0, len(ids), self._opened.max_batch):
                found = collection.get(ids=list(ids[start : start + self._opened.max_batch]), include=["embeddings"])
                rows = np.asarray(found["embeddings"], dtype=np.float32)
                vectors |= dict(zip(found["ids"], rows, strict=True))
        return vectors

    def count(self) -> int:
        with self._using("read") as collection:
            return int(collection.count())

    def ids(self) -> Iterator[str]:
        at = 0
        while True:
            with self._using("read") as collection:
                found = collection.get(include=[], limit=_PAGE, offset=at)["ids"]
            yield from found
            at += len(found)
            if len(found) < _PAGE:
                return

    def clear(self) -> None:
        try:
            self._clear()
        except (IndexCorruptError, IndexWriteError):
            if self._path is None:
                raise
            self.refresh()
            shutil.rmtree(self._path)  # the folder belongs to this store, and its data cannot be read

    def _clear(self) -> None:
        with self._using("written"):
            self._client().delete_collection(self._name)
            self._opened.collection = None

    def close(self) -> None:
        self.refresh()
        with self._opened.lock:
            self._opened.collection = None

    def refresh(self) -> None:
        # An embedded client caches its HNSW graph until the process ends; only a new system reads the disk again.
        if self._path is None or "chromadb" not in sys.modules:  # nothing can be cached
            return
        from chromadb.api.shared_system_client import SharedSystemClient

        # The client's `close` does not stop a system that other clients use, or one that failed to start.
        systems: dict[str, Any] = SharedSystemClient._identifier_to_system
        with self._opened.lock:
            self._opened.collection = None
            system = systems.pop(str(self._path), None)
            if system is not None:
                with contextlib.suppress(AttributeError):  # it was never started
                    system.stop()
