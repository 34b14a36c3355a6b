"""The history on disk: one SQLite file, from which a restarted server continues.

Theory of operation
===================

One process has the file locked exclusively. The hub writes a batch of events in one transaction, together with the
publishers' event numbers, and only then sends the events to listeners and acknowledges them. A server that is killed at
any time therefore continues from the state that its listeners and publishers have seen.

Transactions are written to a write-ahead log without waiting for the disk: they survive a crash of the process, but not
a power failure. After a crash of the machine, the file may lack events that listeners have seen. The next start detects
that by the boot id and starts a new epoch. A regular shutdown waits for the disk and marks the file as closed.

All events except superseded progress are kept, up to ``max_bytes``. Beyond that the oldest are deleted, except the
newest state of unfinished tasks. A replay can start at `Stored.horizon`.

All functions block; `ragkit_server.history.worker` runs them in a thread.
"""

from __future__ import annotations

import contextlib
import importlib
import secrets
import sqlite3
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ragkit.live.messages import Broadcast
from ragkit.sqlite import make_private, primary_code, transaction

FORMAT = 1
ROW_BYTES = 100  # approximate size of a row without its payload
READ_ROWS = 2_000  # examined in one read, so that a write does not wait long
SNAPSHOT_EVENTS = 20  # of each kind, as many as in a snapshot
SUPERSEDED = (
    "task IS NOT NULL AND NOT ended AND EXISTS (SELECT 1 FROM events AS newer "
    "WHERE newer.publisher = events.publisher AND newer.task = events.task AND newer.seq > events.seq)"
)

SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    topic TEXT NOT NULL,
    publisher TEXT NOT NULL,
    task TEXT,               -- of progress events and results
    ended INTEGER NOT NULL,  -- whether that task has, or it is a result: nothing supersedes it
    payload BLOB NOT NULL    -- the message as listeners get it
);
CREATE INDEX tasks ON events (publisher, task, seq) WHERE task IS NOT NULL;
CREATE TABLE publishers (id TEXT PRIMARY KEY, numbers TEXT NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = {FORMAT};
"""


class ArchiveLockedError(Exception):
    """Another server has locked the file."""


@dataclass(frozen=True, slots=True)
class Record:
    """One stamped event: ``payload`` is the encoded message, the other fields describe it."""

    seq: int
    topic: str
    publisher: str
    task: str | None
    ended: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """The changes written in one transaction.

    Attributes:
        epoch: The epoch of the history.
        seq: The last sequence number assigned.
        events: The records, with the messages that their payloads encode.
        forget: The seqs of superseded progress events, to delete.
        numbers: The received event numbers by publisher, as text; None to delete a publisher.
    """

    epoch: str
    seq: int
    events: list[tuple[Record, Broadcast]] = field(default_factory=list)
    forget: list[int] = field(default_factory=list)
    numbers: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """The contents of an archive when it was opened.

    Attributes:
        epoch: The epoch to continue.
        seq: The last sequence number assigned.
        horizon: Events after this seq can be read.
        log_after: ``records`` after this seq are the end of the log, without gaps. Earlier records are needed for the
            snapshot: unfinished tasks, and recent events of other kinds.
        records: The records, in order.
        numbers: The received event numbers by publisher, least recently used first.
    """

    epoch: str
    seq: int
    horizon: int = 0
    log_after: int = 0
    records: list[Record] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)


class Archive:
    """An open archive; to be used by one thread at a time.

    Args:
        path: The file. If it does not exist it is created, readable only by this user, because questions are private.
        max_bytes: Size limit for events; beyond it the oldest are deleted.

    Attributes:
        id: Identifies the file as long as it exists.

    Raises:
        ArchiveLockedError: Another process has locked the file.
        OSError, sqlite3.Error: The file cannot be opened, or is damaged.
    """

    def __init__(self, path: Path, *, max_bytes: int = 64 * 2**20) -> None:
        self.path = path
        self._max_bytes = max_bytes
        make_private(path)
        self._db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute(
                "PRAGMA locking_mode = EXCLUSIVE"
            )  # also avoids shared memory, which network disks do not support
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._begin()
        except sqlite3.Error as problem:
            self._db.close()
            if primary_code(problem) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                raise ArchiveLockedError(str(path)) from problem
            raise
        self._db.execute("PRAGMA synchronous = NORMAL")

    def _begin(self) -> None:
        with transaction(self._db):
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version not in (0, FORMAT):
                raise sqlite3.DatabaseError(f"format {version} is not known to this version of ragkit")
            if version == 0:
                for statement in SCHEMA.split(";\n"):
                    self._db.execute(statement)
            meta = self._meta()
            if not meta.get("closed") and meta.get("boot") != _boot():
                # New, or after a crash of the machine: the newest events may be missing, so nothing is replayed.
                self._set(epoch=secrets.token_hex(8), horizon=meta["seq"])
            self.id = str(meta.get("id") or secrets.token_hex(8))
            self._set(id=self.id, closed=0, boot=_boot(), seq=meta["seq"])
            self._horizon: int = self._meta()["horizon"]
        size = f"SELECT coalesce(sum(length(payload) + {ROW_BYTES}), 0) FROM events"
        (self._bytes,) = self._db.execute(size).fetchone()

    def load(self, *, max_events: int, max_bytes: int) -> Stored:
        """Return the end of the log within the limits, and the earlier records that the snapshot needs.

        Raises:
            sqlite3.Error: The file is damaged.
        """
        meta = self._meta()
        log: list[Record] = []
        size = 0
        log_after = meta["seq"]
        for record in self._records("ORDER BY seq DESC LIMIT ?", max_events):
            size += len(record.payload)
            if record.seq != log_after or record.seq <= meta["horizon"] or (log and size > max_bytes):
                break
            log.append(record)
            log_after = record.seq - 1
        with transaction(self._db):  # superseded events that were not yet deleted when the server was killed
            old = self._db.execute(f"SELECT seq FROM events WHERE seq <= ? AND {SUPERSEDED}", (log_after,)).fetchall()
            freed = self._delete(seq for (seq,) in old)
        self._bytes -= freed
        newest = "seq IN (SELECT seq FROM events WHERE seq <= ?1 AND {} ORDER BY seq DESC LIMIT {})".format
        results = "SELECT max(seq) FROM events WHERE seq <= ?1 AND topic = 'experiment_result' GROUP BY publisher, task"
        needed = (
            "seq <= ?1 AND task IS NOT NULL AND NOT ended",  # unfinished tasks
            newest("ended AND topic != 'experiment_result'", SNAPSHOT_EVENTS),
            newest("topic = 'follow_up_questions'", SNAPSHOT_EVENTS),
            newest(f"seq IN ({results})", SNAPSHOT_EVENTS),
            newest("topic = 'engines'", 1),
        )
        before = self._records(f"WHERE {' OR '.join(needed)} ORDER BY seq", log_after)
        return Stored(
            epoch=meta["epoch"],
            seq=meta["seq"],
            horizon=meta["horizon"],
            log_after=log_after,
            records=[*before, *reversed(log)],
            numbers=dict(self._db.execute("SELECT id, numbers FROM publishers ORDER BY seq")),
        )

    def write(self, batch: Batch) -> int:
        """Write a batch in one transaction.

        Returns:
            The horizon: events after this seq can be read.

        Raises:
            sqlite3.Error: Writing failed; nothing has changed.
        """
        rows = [(r.seq, r.topic, r.publisher, r.task, r.ended, r.payload) for r, _ in batch.events]
        updated = [(id, numbers, batch.seq) for id, numbers in batch.numbers.items() if numbers is not None]
        removed = [(id,) for id, numbers in batch.numbers.items() if numbers is None]
        size = self._bytes + sum(len(record.payload) + ROW_BYTES for record, _ in batch.events)
        horizon = self._horizon
        with transaction(self._db):
            self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._db.executemany("INSERT OR REPLACE INTO publishers VALUES (?, ?, ?)", updated)
            if removed:
                self._db.executemany("DELETE FROM publishers WHERE id = ?", removed)
            size -= self._delete(batch.forget)
            if size > self._max_bytes:
                self._set(seq=batch.seq)  # the newest event may be among the deleted ones
                freed, horizon = self._trim(size - self._max_bytes * 9 // 10)
                size -= freed
        self._bytes, self._horizon = size, horizon
        return horizon

    def reset(self, *, epoch: str, seq: int) -> None:
        """Delete everything and start a new epoch, after a write has failed.

        Args:
            epoch: The new epoch.
            seq: The seq at which it starts.

        Raises:
            sqlite3.Error: Writing still fails.
        """
        with transaction(self._db):
            self._db.execute("DELETE FROM events")
            self._db.execute("DELETE FROM publishers")
            self._set(epoch=epoch, seq=seq, horizon=seq)
        self._bytes, self._horizon = 0, seq

    def read(
        self, after: int, until: int, topics: frozenset[str] | None, max_bytes: int
    ) -> tuple[list[bytes] | None, int]:
        """Read the payloads after one seq up to another, about ``max_bytes`` of them.

        Returns:
            The payloads, or None if they have been deleted; and the seq up to which they were read.

        Raises:
            sqlite3.Error: Reading failed.
        """
        if after < self._horizon:
            return None, self._horizon
        payloads: list[bytes] = []
        size = rows = 0
        for seq, topic, payload in self._db.execute(
            "SELECT seq, topic, payload FROM events WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",
            (after, until, READ_ROWS),
        ):
            rows += 1
            if topics is None or topic in topics:
                if payloads and size + len(payload) > max_bytes:
                    return payloads, after
                payloads.append(payload)
                size += len(payload)
            after = seq
        return payloads, after if rows == READ_ROWS else until

    def close(self) -> None:
        """Write everything to disk, mark the file as closed, and close it."""
        try:
            self._db.execute("PRAGMA synchronous = FULL")
            with transaction(self._db):
                self._set(closed=1)
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self._db.close()

    def _meta(self) -> dict[str, Any]:
        meta = dict(self._db.execute("SELECT key, value FROM meta"))
        ((newest,),) = self._db.execute("SELECT max(seq) FROM events")
        return meta | {"seq": max(newest or 0, meta.get("seq", 0))}

    def _set(self, **values: object) -> None:
        self._db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())

    def _records(self, where: str, *values: int) -> Iterator[Record]:
        query = f"SELECT seq, topic, publisher, task, ended, payload FROM events {where}"
        for seq, topic, publisher, task, ended, payload in self._db.execute(query, values):
            yield Record(seq, topic, publisher, task, bool(ended), payload)

    def _delete(self, seqs: Iterable[int]) -> int:
        freed = 0
        for seq in seqs:
            deleted = self._db.execute("DELETE FROM events WHERE seq = ? RETURNING length(payload)", (seq,)).fetchall()
            freed += sum(length + ROW_BYTES for (length,) in deleted)
        return freed

    def _trim(self, excess: int) -> tuple[int, int]:
        freed, deleted = 0, [self._horizon]
        for seq, length in self._db.execute(
            "SELECT seq, length(payload) FROM events WHERE task IS NULL OR ended ORDER BY seq"
        ):
            if freed >= excess:
                break
            deleted.append(seq)
            freed += length + ROW_BYTES
        self._db.executemany("DELETE FROM events WHERE seq = ?", ((seq,) for seq in deleted))
        self._set(horizon=max(deleted))
        return freed, max(deleted)


def _boot() -> str:
    """Return an id that changes when the machine restarts."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return str(round(importlib.import_module("psutil").boot_time()))


def open_archive(
    folder: Path, name: str, *, max_bytes: int, log_events: int, log_bytes: int
) -> tuple[Archive, Stored, str | None]:
    """Open the first archive of this name that is not locked by another server.

    Args:
        folder: The folder of the file.
        name: The file is ``name.sqlite``; if another server has it, ``name-2.sqlite``, and so on.
        max_bytes: See `Archive`.
        log_events: See `Archive.load`.
        log_bytes: See `Archive.load`.

    Returns:
        The archive, its contents, and a description of the damage if the existing file was damaged. The damaged file is
        kept as ``.damaged``.

    Raises:
        OSError, sqlite3.Error: No archive can be opened in the folder.
    """
    path, number = folder / f"{name}.sqlite", 1
    trouble: str | None = None
    while True:
        try:
            archive = Archive(path, max_bytes=max_bytes)
            try:
                return archive, archive.load(max_events=log_events, max_bytes=log_bytes), trouble
            except BaseException:
                archive.close()
                raise
        except ArchiveLockedError:
            number += 1
            path = folder / f"{name}-{number}.sqlite"
        except sqlite3.OperationalError:
            raise  # a problem of the disk, not of the file
        except (sqlite3.DatabaseError, LookupError, TypeError, ValueError) as problem:
            if trouble is not None:
                raise
            trouble = f"'{path}' is damaged ({problem}); it is kept as '{path.name}.damaged'"
            for file in (
                path,
                path.with_name(f"{path.name}-wal"),
            ):  # also the write-ahead log, which would be applied to the new file
                with contextlib.suppress(FileNotFoundError):
                    file.replace(file.with_name(f"{file.name}.damaged"))
