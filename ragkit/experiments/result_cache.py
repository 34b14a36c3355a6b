"""What experiments have computed, by everything that it depends on: a result is computed once and kept.

One mechanism serves resuming, sharing and editing: whoever needs a result asks for its key
(`ragkit.experiments.fingerprint` makes it), computes what is missing, and puts it here in one transaction. Killed at
any moment, what was put is there and nothing is half there. Unlike a cache it is never trimmed, and what goes wrong
with it is an error: each value has a checksum, for SQLite would give back a changed one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ragkit.errors import ResultCacheError

__all__ = ["ResultCache"]

_AT_ONCE = 500  # keys in one question
_BUSY_SECONDS = 60.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    key TEXT PRIMARY KEY, stage TEXT NOT NULL, value BLOB NOT NULL, crc32 INTEGER NOT NULL) WITHOUT ROWID;
"""


class ResultCache:
    """Results on disk: one SQLite file, which any number of threads and processes share.

    Args:
        path: The file; its folder is made when it is first used.

    Attributes:
        computed: By stage, how many results were put by this object.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.computed: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._pid = 0

    def __repr__(self) -> str:
        return f"ResultCache({str(self.path)!r})"

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """Read what there is of n keys: key -> value.

        Raises:
            ResultCacheError: The file cannot be read, or is damaged.
        """
        found: dict[str, Any] = {}
        with self._opened() as db:
            for start in range(0, len(keys), _AT_ONCE):
                part = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                for key, value, crc32 in db.execute(
                    f"SELECT key, CAST(value AS BLOB), crc32 FROM results WHERE key IN ({marks})", part
                ):
                    if zlib.crc32(value) != crc32:
                        raise ResultCacheError(self.path, f"the value of result {key} is damaged")
                    found[key] = msgspec.msgpack.decode(value)
        return found

    def put(self, stage: str, values: Mapping[str, Any]) -> None:
        """Keep values, all of them or none.

        Args:
            stage: What computed them, for people who look into the file.
            values: Key -> None, numbers, strings, bytes, lists and dicts of them.

        Raises:
            ResultCacheError: The file cannot be written.
        """
        encoded = {key: msgspec.msgpack.encode(value) for key, value in values.items()}
        rows = [(key, stage, value, zlib.crc32(value)) for key, value in encoded.items()]
        with self._opened() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                # Whoever was first has computed the same.
                db.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)", rows)
                db.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise
            self.computed[stage] += len(rows)

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        with self._lock:
            if self._db is not None and self._pid == os.getpid():
                self._db.close()
            self._db = None

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._db is None or self._pid != os.getpid():  # a connection must not cross a fork
                    self.path.parent.mkdir(parents=True, exist_ok=True)
                    db = sqlite3.connect(
                        self.path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
                    )
                    db.execute("PRAGMA journal_mode = WAL")
                    db.execute("PRAGMA synchronous = NORMAL")
                    db.executescript(_SCHEMA)
                    self._db, self._pid = db, os.getpid()
                yield self._db
            except (sqlite3.Error, OSError) as error:
                raise ResultCacheError(self.path, str(error)) from error
