"""The result cache of experiments: each result is computed once and stored under a key of all that it depends on.

The same mechanism resumes runs, shares results between experiments and handles edits: a caller looks up the keys
(made by `ragkit.experiments.fingerprint`), computes the missing values and stores them in one transaction. After a
kill at any moment, stored values are complete. Nothing is ever evicted, and a damaged file is an error rather than a
cache miss: each value has a checksum, because SQLite does not detect changed bytes.
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
    """Results on disk, in one SQLite file that threads and processes can share.

    Args:
        path: The file; its folder is created on first use.

    Attributes:
        computed: The number of results stored through this object, by stage.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.computed: Counter[str] = Counter()
        self._database = SharedDatabase(self.path, _SCHEMA)

    def __repr__(self) -> str:
        return f"ResultCache({str(self.path)!r})"

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """Return the values of those keys that are stored: key -> value.

        Raises:
            ResultCacheError: The file cannot be read or is damaged.
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
        """Store values in one transaction.

        Args:
            stage: The stage that computed them, for people who inspect the file.
            values: Key -> value: None, numbers, strings, bytes, and lists and dicts of these.

        Raises:
            ResultCacheError: The file cannot be written.
        """
        encoded = {key: msgspec.msgpack.encode(value) for key, value in values.items()}
        rows = [(key, stage, value, zlib.crc32(value)) for key, value in encoded.items()]
        with self._opened() as db:
            with transaction(db):  # a value that is already stored is the same
                db.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, ?, ?)", rows)
            self.computed[stage] += len(rows)

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        self._database.close()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._database.connection() as db:
                yield db
        except (sqlite3.Error, OSError) as error:
            raise ResultCacheError(self.path, str(error)) from error
