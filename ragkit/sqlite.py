"""SQLite files that are shared between threads and processes."""

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
    """A SQLite file that is shared by any number of threads and processes.

    It is opened at first use, and again after `close` and after a fork, because a connection must not cross a fork.

    Args:
        path: The file. It and its folder are created if they do not exist.
        schema: Statements to run whenever the file is opened.
        busy_seconds: How long to wait while another process writes.
        synchronous: NORMAL survives a crash of the process; FULL also survives a power failure.
        private: Whether only this user may read the file.
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
        # Re-entrant: the garbage collector may close an abandoned stream, which writes, in the middle of a statement.
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._pid = 0

    def __del__(self) -> None:
        if getattr(self, "_db", None) is not None:
            self.close()

    @contextlib.contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection to one thread at a time.

        Raises:
            OSError, sqlite3.Error: The file cannot be opened, or a statement fails.
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
        """Lend the connection to one thread at a time, in a transaction; see `transaction`."""
        with self.connection() as db, transaction(db):
            yield db

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._db is not None and self._pid == os.getpid():
                with contextlib.suppress(sqlite3.Error):  # the file is damaged; what was committed is on disk
                    self._db.close()
            self._db = None

    def delete(self) -> None:
        """Delete the file; the next use creates a new one."""
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
    """Open a file in autocommit mode. The caller must use the connection from one thread at a time."""
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
    """Create tables, in WAL mode: readers and a writer do not wait for each other."""
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(schema)


@contextlib.contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run a block as one transaction, rolled back on any exception. Other writers are locked out from the start."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:  # Ctrl-C, too
        with contextlib.suppress(sqlite3.Error):  # a full disk has rolled it back already
            db.execute("ROLLBACK")
        raise


def select_in(db: sqlite3.Connection, select: str, keys: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of ``select ... WHERE column`` whose column is one of the keys."""
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        part = keys[start : start + _KEYS_PER_QUERY]
        yield from db.execute(f"{select} IN ({','.join('?' * len(part))})", part)


def make_private(path: Path) -> None:
    """Create a file, and its folder, that only this user can read, unless it exists."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):  # opening and closing the file would drop this process's locks on it
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))


def primary_code(error: BaseException) -> int:
    """Return an error's primary SQLite result code (``sqlite3.SQLITE_BUSY``, ...); 0 if it has none."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
