"""What experiments have computed, by everything that it depends on: a result is computed once and kept.

One mechanism serves resuming, sharing and editing: whoever needs a result asks for its key
(`ragkit.experiments.fingerprint` makes it), computes what is missing, and puts it here in one transaction. Killed at
any moment, what was put is there and nothing is half there. Unlike a cache it is never trimmed, and what goes wrong
with it is an error: each value has a checksum, for SQLite would give back a changed one.
"""

from __future__ import annotations

import contextlib
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ragkit.errors import ResultCacheError
from ragkit.sqlite import SharedDatabase, select_in, transaction

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
        self._database = SharedDatabase(self.path, _SCHEMA)

    def __repr__(self) -> str:
        return f"ResultCache({str(self.path)!r})"

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """Read what there is of n keys: key -> value.

        Raises:
            ResultCacheError: The file cannot be read, or is damaged.
        """
        found: dict[str, Any] = {}
        with self._opened() as db:
            for key, value, crc32 in select_in(
                db, "SELECT key, CAST(value AS BLOB), crc32 FROM results WHERE key", keys
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
            with transaction(db):  # whoever was first has computed the same
                db.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)", rows)
            self.computed[stage] += len(rows)

    def close(self) -> None:
        """Let go of the file; the next use opens it again."""
        self._database.close()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database.connection() as db:
                yield db
        except (sqlite3.Error, OSError) as error:
            raise ResultCacheError(self.path, str(error)) from error
