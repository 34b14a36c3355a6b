"""SQLite files: how they are opened, shared between threads and processes, and written."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

_KEYS_PER_QUERY = 500


class SharedDatabase:
    """One SQLite file that any number of threads and processes share.

    It is opened when it is first used, and again after `close` and after a fork, which a connection must not cross.

    Args:
        path: The file; it and its folder are made if they are not there.
        schema: Statements that are run whenever the file is opened.
        busy_seconds: How long to wait for another process that writes.
        synchronous: NORMAL survives the end of the process at any moment; FULL a power failure, too.
        private: Whether only this user may read it.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        busy_seconds: float = 60.0,
        synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
        private: bool = False,
    ) -> None:
        self.path = path
        self._schema = schema
        self._busy_seconds = busy_seconds
        self._synchronous = synchronous
        self._private = private
        # Re-entrant: the garbage collector may end an abandoned stream, which writes, in the middle of a statement.
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._pid = 0

    def __del__(self) -> None:
        if getattr(self, "_db", None) is not None:
            self.close()

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to one thread at a time.

        Raises:
            OSError, sqlite3.Error: The file cannot be opened, or what is done with it fails.
        """
        with self._lock:
            if self._db is None or self._pid != os.getpid():
                if self._private:
                    make_private(self.path)
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._db = connect(
                    self.path, schema=self._schema, busy_seconds=self._busy_seconds, synchronous=self._synchronous
                )
                self._pid = os.getpid()
            yield self._db

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the connection to one thread at a time, in a transaction; see `transaction`."""
        with self.connection() as db, transaction(db):
            yield db

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._db is not None and self._pid == os.getpid():
                with contextlib.suppress(sqlite3.Error):  # of a damaged file; what was committed is written
                    self._db.close()
            self._db = None

    def delete(self) -> None:
        """Delete the file; the next use makes a new one."""
        with self._lock:
            self.close()
            for suffix in ("", "-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def connect(
    path: Path,
    *,
    schema: str | None = None,
    busy_seconds: float = 30.0,
    synchronous: Literal["NORMAL", "FULL"] = "NORMAL",
) -> sqlite3.Connection:
    """Open a file, in autocommit mode; the caller sees to it that one thread at a time uses the connection."""
    db = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, check_same_thread=False)
    try:
        db.execute(f"PRAGMA synchronous = {synchronous}")
        if schema is not None:
            create(db, schema)
    except BaseException:
        db.close()
        raise
    return db


def create(db: sqlite3.Connection, schema: str) -> None:
    """Create tables in a file that is written ahead, so that readers and a writer do not wait for each other."""
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(schema)


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Do all of it or, whatever is raised, nothing. The file is locked against other writers from the beginning."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:  # Ctrl-C, too
        with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
            db.execute("ROLLBACK")
        raise


def select_in(db: sqlite3.Connection, select: str, keys: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Give the rows of ``select ... WHERE column``, for those of n keys that are in that column."""
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        part = keys[start : start + _KEYS_PER_QUERY]
        yield from db.execute(f"{select} IN ({','.join('?' * len(part))})", part)


def make_private(path: Path) -> None:
    """Create a file, and its folder, that only this user can read, unless it is there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # to open and close a file would drop this process's locks on it
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def primary_code(error: BaseException) -> int:
    """Return which of SQLite's primary result codes (``sqlite3.SQLITE_BUSY``, ...) an error is; 0 if it is none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
