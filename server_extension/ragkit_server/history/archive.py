"""The history on disk: one SQLite file, which a restarted server goes on from.

Theory of operation
===================

One process has the file, exclusively, for as long as it lives. The hub writes a batch of events in one
transaction, together with the numbers under which publishers sent them, and only then shows them to
anybody or acknowledges them. So a server that is killed, at any moment, goes on where its listeners and
publishers believe it to be.

Transactions go to a write-ahead log without waiting for the disk: they survive the end of the process,
not a power failure. Should the machine go down, a later start may find less than was shown. It sees
that by the boot id, and begins a new epoch; the end of a server is waited for, and marked.

What is kept: every event but superseded progress, up to ``max_bytes``; then the oldest go, except the
newest state of tasks that still run. `Stored.horizon` is how far back a replay can go.

Everything here blocks; `ragkit_server.history.worker` runs it in a thread.
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
ROW_BYTES = 100  # what a row costs beside its payload, about
READ_ROWS = 2_000  # looked at in one read, so that writing need not wait long
SAID = 20  # of each kind: as many as a snapshot has
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
    """Another server has the file."""


@dataclass(frozen=True, slots=True)
class Record:
    """One stamped event: ``payload`` is the message, the rest says what it is."""

    seq: int
    topic: str
    publisher: str
    task: str | None
    ended: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """What is written in one transaction.

    Attributes:
        epoch: Of the history that it belongs to.
        seq: The last one given.
        events: With the messages that their payloads encode.
        forget: The seqs of superseded progress that nobody will ask for any longer.
        numbers: By publisher, which of its events have come, as text; None: forgotten.
    """

    epoch: str
    seq: int
    events: list[tuple[Record, Broadcast]] = field(default_factory=list)
    forget: list[int] = field(default_factory=list)
    numbers: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stored:
    """What an archive held when it was opened.

    Attributes:
        epoch: To go on in.
        seq: The last one given in it.
        horizon: What follows this seq can be read.
        log_after: From here on ``records`` are the end of the log without a hole; those before tell of
            tasks that still ran, and of the last things that were said.
        records: In order.
        numbers: By publisher, which of its events have come; the least recently heard first.
    """

    epoch: str
    seq: int
    horizon: int = 0
    log_after: int = 0
    records: list[Record] = field(default_factory=list)
    numbers: dict[str, str] = field(default_factory=dict)


class Archive:
    """An open archive; any one thread at a time may use it.

    Args:
        path: The file; made, for this user alone (questions are private), if it is not there.
        max_bytes: Of events; the oldest are deleted beyond.

    Attributes:
        id: Names it, for as long as the file exists.

    Raises:
        ArchiveLockedError: Another process has it.
        OSError, sqlite3.Error: It cannot be opened, or is damaged.
    """

    def __init__(self, path: Path, *, max_bytes: int = 64 * 2**20) -> None:
        self.path = path
        self._max_bytes = max_bytes
        make_private(path)
        self._db = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")  # and no shared memory, which network disks lack
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
                # New, or the machine went down: what was shown last may be missing, so nothing is replayed.
                self._set(epoch=secrets.token_hex(8), horizon=meta["seq"])
            self.id = str(meta.get("id") or secrets.token_hex(8))
            self._set(id=self.id, closed=0, boot=_boot(), seq=meta["seq"])
            self._horizon: int = self._meta()["horizon"]
        size = f"SELECT coalesce(sum(length(payload) + {ROW_BYTES}), 0) FROM events"
        (self._bytes,) = self._db.execute(size).fetchone()

    def load(self, *, max_events: int, max_bytes: int) -> Stored:
        """Return what there is: the end of the log as far as the bounds allow, and what the state follows from.

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
        with transaction(self._db):  # what was superseded and not yet forgotten when the server was killed
            old = self._db.execute(f"SELECT seq FROM events WHERE seq <= ? AND {SUPERSEDED}", (log_after,)).fetchall()
            freed = self._delete(seq for (seq,) in old)
        self._bytes -= freed
        newest = "seq IN (SELECT seq FROM events WHERE seq <= ?1 AND {} ORDER BY seq DESC LIMIT {})".format
        results = "SELECT max(seq) FROM events WHERE seq <= ?1 AND topic = 'experiment_result' GROUP BY publisher, task"
        told = (
            "seq <= ?1 AND task IS NOT NULL AND NOT ended",  # of those still there, what runs
            newest("ended AND topic != 'experiment_result'", SAID),
            newest("topic = 'follow_up_questions'", SAID),
            newest(f"seq IN ({results})", SAID),
            newest("topic = 'engines'", 1),
        )
        before = self._records(f"WHERE {' OR '.join(told)} ORDER BY seq", log_after)
        return Stored(
            epoch=meta["epoch"],
            seq=meta["seq"],
            horizon=meta["horizon"],
            log_after=log_after,
            records=[*before, *reversed(log)],
            numbers=dict(self._db.execute("SELECT id, numbers FROM publishers ORDER BY seq")),
        )

    def write(self, batch: Batch) -> int:
        """Write a batch, all of it or nothing.

        Returns:
            The horizon: what follows this seq is still there.

        Raises:
            sqlite3.Error: The disk refused; nothing has changed.
        """
        rows = [(r.seq, r.topic, r.publisher, r.task, r.ended, r.payload) for r, _ in batch.events]
        heard = [(id, numbers, batch.seq) for id, numbers in batch.numbers.items() if numbers is not None]
        gone = [(id,) for id, numbers in batch.numbers.items() if numbers is None]
        size = self._bytes + sum(len(record.payload) + ROW_BYTES for record, _ in batch.events)
        horizon = self._horizon
        with transaction(self._db):
            self._db.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", rows)
            self._db.executemany("INSERT OR REPLACE INTO publishers VALUES (?, ?, ?)", heard)
            if gone:
                self._db.executemany("DELETE FROM publishers WHERE id = ?", gone)
            size -= self._delete(batch.forget)
            if size > self._max_bytes:
                self._set(seq=batch.seq)  # the newest event may be among those that go
                freed, horizon = self._trim(size - self._max_bytes * 9 // 10)
                size -= freed
        self._bytes, self._horizon = size, horizon
        return horizon

    def reset(self, *, epoch: str, seq: int) -> None:
        """Forget everything and begin again, after the disk had refused.

        Args:
            epoch: The new one.
            seq: Where it begins.

        Raises:
            sqlite3.Error: It still does.
        """
        with transaction(self._db):
            self._db.execute("DELETE FROM events")
            self._db.execute("DELETE FROM publishers")
            self._set(epoch=epoch, seq=seq, horizon=seq)
        self._bytes, self._horizon = 0, seq

    def read(
        self, after: int, until: int, topics: frozenset[str] | None, max_bytes: int
    ) -> tuple[list[bytes] | None, int]:
        """Return the payloads after one seq and up to another, about ``max_bytes`` of them, and how far they go.

        None in their place: they are no longer there.

        Raises:
            sqlite3.Error: The disk refused.
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
        """Close it, and note that all of it is on disk."""
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
        freed, doomed = 0, [self._horizon]
        for seq, length in self._db.execute(
            "SELECT seq, length(payload) FROM events WHERE task IS NULL OR ended ORDER BY seq"
        ):
            if freed >= excess:
                break
            doomed.append(seq)
            freed += length + ROW_BYTES
        self._db.executemany("DELETE FROM events WHERE seq = ?", ((seq,) for seq in doomed))
        self._set(horizon=max(doomed))
        return freed, max(doomed)


def _boot() -> str:
    """Name this run of the machine."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return str(round(importlib.import_module("psutil").boot_time()))


def open_archive(
    folder: Path, name: str, *, max_bytes: int, log_events: int, log_bytes: int
) -> tuple[Archive, Stored, str | None]:
    """Open the first archive of this name that no other server has.

    Args:
        folder: Where it is.
        name: ``name.sqlite``; the second server of that name gets ``name-2.sqlite``, and so on.
        max_bytes: See `Archive`.
        log_events: How much of the log is wanted; see `Archive.load`.
        log_bytes: Likewise.

    Returns:
        The archive, what it holds, and what was wrong with the one before if it is damaged: that one is
        kept as ``.damaged``.

    Raises:
        OSError, sqlite3.Error: None can be opened here.
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
            raise  # of the disk, not of the file
        except (sqlite3.DatabaseError, LookupError, TypeError, ValueError) as problem:
            if trouble is not None:
                raise
            trouble = f"'{path}' is damaged ({problem}); it is kept as '{path.name}.damaged'"
            for file in (path, path.with_name(f"{path.name}-wal")):  # or it would be replayed into the new one
                with contextlib.suppress(FileNotFoundError):
                    file.replace(file.with_name(f"{file.name}.damaged"))
