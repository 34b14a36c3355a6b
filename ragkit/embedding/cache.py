"""The embedding cache, which all indexes and experiments of a user share.

The cache is content-addressed: a vector's key is a hash of the text and of everything else that determines the vector
(the model and its revision, the prompt, the normalisation, the precision: `Embedder.fingerprint`), so a hit is never
stale. It is one SQLite file that several processes can use at the same time. A cache error raises one warning; the
program then continues without the cache.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import platformdirs

from ragkit.embedding.base import Embedder, Kind, Vectors, embedding_errors
from ragkit.errors import require_count
from ragkit.sqlite import SharedDatabase, primary_code, select_in, transaction

MAX_BYTES = 2 * 2**30
_ROW_BYTES = 48  # approximate overhead of a row: key, date, SQLite's own bytes
_KEEP = 0.9  # the fraction of the limit that eviction leaves
_DAY_SECONDS = 86_400

_SCHEMA = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, used INTEGER NOT NULL, vector BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS vectors_by_use ON vectors (used);
CREATE TABLE IF NOT EXISTS size (bytes INTEGER NOT NULL);
INSERT INTO size SELECT 0 WHERE NOT EXISTS (SELECT * FROM size);
"""


class EmbeddingCache:
    """Store vectors on disk. Safe for concurrent use by threads and processes.

    Args:
        path: The SQLite file. Default: ``embeddings.db`` in the folder that RAGKIT_CACHE_DIR names, or in the user's
            cache folder.
        max_bytes: The size limit; above it, the least recently used vectors are evicted.

    Attributes:
        hits: The number of texts that this object found in the cache.
        misses: The number of texts that it did not find.
    """

    def __init__(self, path: str | Path | None = None, *, max_bytes: int = MAX_BYTES) -> None:
        require_count("max_bytes", max_bytes)
        self.path = Path(path) if path is not None else _folder() / "embeddings.db"
        self.hits = self.misses = 0
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._database = SharedDatabase(self.path, _SCHEMA, busy_seconds=30.0, private=True)
        self._is_broken = False

    def __repr__(self) -> str:
        return f"EmbeddingCache({str(self.path)!r})"

    def get(self, fingerprint: str, texts: Sequence[str]) -> dict[int, Vectors]:
        """Look up vectors.

        Args:
            fingerprint: See `Embedder.fingerprint`.
            texts: n texts.

        Returns:
            A dict from the position in ``texts`` to the vector, of shape (dimension,); misses are absent.
        """
        keys = [_key(fingerprint, text) for text in texts]
        found: dict[bytes, Vectors] = {}
        today = int(time.time()) // _DAY_SECONDS

        def select(db: sqlite3.Connection) -> None:
            old: list[tuple[int, bytes]] = []
            for key, used, vector in select_in(db, "SELECT key, used, vector FROM vectors WHERE key", keys):
                found[key] = np.frombuffer(vector, dtype="<f4")
                if used < today:
                    old.append((today, key))
            if old:  # at most one write per key and day keeps the LRU order precise enough
                with transaction(db):
                    db.executemany("UPDATE vectors SET used = ? WHERE key = ?", old)

        self._try(select)
        known = {at: found[key] for at, key in enumerate(keys) if key in found}
        self.hits += len(known)
        self.misses += len(keys) - len(known)
        return known

    def put(self, fingerprint: str, texts: Sequence[str], vectors: Vectors) -> None:
        """Store the vectors, of shape (n, dimension), of n texts."""
        today = int(time.time()) // _DAY_SECONDS
        rows = [
            (_key(fingerprint, text), today, vector.astype("<f4").tobytes())
            for text, vector in zip(texts, vectors, strict=True)
        ]

        def insert(db: sqlite3.Connection) -> None:
            with transaction(db):
                added = sum(
                    len(row[2]) + _ROW_BYTES
                    for row in rows
                    if db.execute("INSERT OR IGNORE INTO vectors VALUES (?, ?, ?)", row).rowcount
                )
                ((size,),) = db.execute("UPDATE size SET bytes = bytes + ? RETURNING bytes", (added,)).fetchall()
                if size > self._max_bytes:
                    self._trim(db, size)

        self._try(insert)

    def clear(self) -> None:
        """Delete all vectors."""

        def delete(db: sqlite3.Connection) -> None:
            with transaction(db):
                db.execute("DELETE FROM vectors")
                db.execute("UPDATE size SET bytes = 0")
            db.execute("VACUUM")

        self._try(delete)

    def close(self) -> None:
        """Close the file; the next use reopens it."""
        self._database.close()

    def size(self) -> tuple[int, int]:
        """Return the number of vectors and their approximate size in bytes."""
        rows: list[tuple[int, int]] = []
        self._try(lambda db: rows.extend(db.execute("SELECT (SELECT count(*) FROM vectors), bytes FROM size")))
        return rows[0] if rows else (0, 0)

    def _trim(self, db: sqlite3.Connection, size: int) -> None:
        evicted = []
        excess = size - int(self._max_bytes * _KEEP)
        for rowid, length in db.execute("SELECT rowid, length(vector) FROM vectors ORDER BY used, rowid"):
            if excess <= 0:
                break
            evicted.append((rowid,))
            excess -= length + _ROW_BYTES
            size -= length + _ROW_BYTES
        db.executemany("DELETE FROM vectors WHERE rowid = ?", evicted)
        db.execute("UPDATE size SET bytes = ?", (size,))

    def _try(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Run an operation on the database. An error disables the cache with a warning; the caller continues."""
        with self._lock:
            if self._is_broken:
                return
            try:
                with self._database.connection() as db:
                    work(db)
            except (sqlite3.Error, OSError) as error:
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            self._database.delete()  # a damaged cache is worthless
            what = "is damaged and was deleted; ragkit creates a new one"
        else:
            self._database.close()
            self._is_broken = True
            what = "cannot be used; ragkit embeds texts without it"
        warnings.warn(f"The embedding cache '{self.path}' {what} ({error}).", RuntimeWarning, stacklevel=5)


class CachedEmbedder:
    """Wrap an embedder with a cache. Without a fingerprint (`HashEmbedder`), nothing is cached.

    Any exception that the embedder raises becomes an `EmbeddingError`.

    Args:
        embedder: The embedder to wrap.
        cache: The cache; None uses `default_cache`, False disables caching.
    """

    # `__getattr__` takes these from the wrapped embedder.
    name: str
    dimension: int
    max_tokens: int
    languages: frozenset[str] | None

    def __init__(self, embedder: Embedder, cache: EmbeddingCache | Literal[False] | None = None) -> None:
        self.inner = embedder
        self.cache = default_cache() if cache is None else (None if cache is False else cache)

    def __repr__(self) -> str:
        return f"CachedEmbedder({self.inner!r})"

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not set yet: the object is being copied or unpickled
            raise AttributeError(name)
        return getattr(self.inner, name)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        with embedding_errors(self.inner):
            return self.inner.count_tokens(texts)

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        with embedding_errors(self.inner):
            return self.inner.token_spans(text)

    def fingerprint(self, kind: Kind) -> str | None:
        method = getattr(self.inner, "fingerprint", None)  # a user's own embedder may lack it
        found: str | None = method(kind) if method is not None else None
        return found

    def known(self, texts: Sequence[str], *, kind: Kind = "passage") -> dict[int, Vectors]:
        """Return the cached vectors by position; see `EmbeddingCache.get`."""
        key = self.fingerprint(kind)
        return self.cache.get(key, texts) if self.cache is not None and key is not None else {}

    def keep(self, texts: Sequence[str], vectors: Vectors, *, kind: Kind = "passage") -> None:
        """Store vectors that were computed elsewhere in the cache."""
        if self.cache is not None and (key := self.fingerprint(kind)) is not None:
            self.cache.put(key, texts, vectors)

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        """See `Embedder.embed`. Only texts that are not in the cache are embedded."""
        known = self.known(texts, kind=kind)
        missing = list(dict.fromkeys(text for at, text in enumerate(texts) if at not in known))
        if len(missing) == len(texts):
            vectors = self._embed(texts, kind)
            self.keep(texts, vectors, kind=kind)
            return vectors
        if missing:
            fresh = self._embed(missing, kind)
            self.keep(missing, fresh, kind=kind)
            row = {text: fresh[at] for at, text in enumerate(missing)}
            known |= {at: row[text] for at, text in enumerate(texts) if at not in known}
        return np.stack([known[at] for at in range(len(texts))])

    def _embed(self, texts: Sequence[str], kind: Kind) -> Vectors:
        with embedding_errors(self.inner):
            return self.inner.embed(texts, kind=kind)


_default: dict[Path, EmbeddingCache] = {}


def default_cache() -> EmbeddingCache:
    """Return the user's cache: one object per process."""
    return _default.setdefault(_folder(), EmbeddingCache())


def _folder() -> Path:
    given = os.environ.get("RAGKIT_CACHE_DIR")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("ragkit", appauthor=False)


def _key(fingerprint: str, text: str) -> bytes:
    return hashlib.blake2b(text.encode(), key=hashlib.blake2b(fingerprint.encode()).digest(), digest_size=16).digest()
