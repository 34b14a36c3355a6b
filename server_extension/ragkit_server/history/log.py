"""The log of broadcasts: one log for all listeners, each with a cursor.

Theory of operation
===================

The hub has no queue per listener. It has one log, and every listener has a *cursor*: the ``seq`` of the last event that
was sent to it. A slow listener therefore needs as little memory as a fast one, a replay only sets the cursor back, and
all listeners see events in the same order.

::

    append() --stamp--> pending --take()--> archive (disk) --commit()--> log --> listeners

An event is *stamped* with ``epoch`` and ``seq`` when it arrives. It is added to the log, from which listeners are
served, when it is on disk. A server that is killed can therefore continue in the same epoch, and never assigns a number
that a listener has seen to another event. Without an archive the two steps are one.

The log is a window, limited in events and bytes, over the larger archive. A listener that is behind is handled in three
ways:

- If its cursor lags by more than ``coalesce_bytes``, progress events that are superseded by a newer one of the same
  task are not sent. Terminal states are never superseded.
- If its cursor is before the start of the log, it is served from the archive, which has no superseded progress either.
- If its cursor is before the start of the archive, it gets a `Gap` with a snapshot.

``seq`` has no gaps within an ``epoch``. A listener may not receive every ``seq``, because of its topics or because of
superseded progress.
"""

from __future__ import annotations

import secrets
from collections import deque
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET, UnsetType

from ragkit.live.messages import (
    TERMINAL,
    Broadcast,
    ExperimentResult,
    Gap,
    Origin,
    Snapshot,
    decode_broadcast,
    encode,
)
from ragkit.live.snapshot import SnapshotState, TaskKey, TaskProgress, task_name
from ragkit_server.history.archive import Batch, Record, Stored
from ragkit_server.history.numbers import Publishers
from ragkit_server.transport.frames import text_frame

RUN_BYTES = 65_536  # about one kernel socket buffer; larger writes are only queued there


class _Entry:
    """One event in the log. ``superseded`` turns true when newer progress of its task arrives."""

    __slots__ = ("frame", "seq", "start", "superseded", "topic")

    def __init__(self, seq: int, frame: bytes, topic: str, start: int) -> None:
        self.seq = seq
        self.frame = frame
        self.topic = topic
        self.start = start  # total bytes logged before this entry
        self.superseded = False


class History:
    """The log, the snapshot state computed from it, and the publishers' event numbers.

    Args:
        max_events: How many events are kept in memory for replay.
        max_bytes: How many bytes of frames are kept in memory for replay.
        coalesce_bytes: How far a listener may lag before superseded progress is not sent to it.
        epoch: The epoch of this history; a new one by default.
        stored: The contents of the archive. With an archive, events must be committed before listeners see them.
    """

    def __init__(
        self,
        *,
        max_events: int = 10_000,
        max_bytes: int = 4 * 2**20,
        coalesce_bytes: int = 2**20,
        epoch: str = "",
        stored: Stored | None = None,
    ) -> None:
        self.epoch = epoch or secrets.token_hex(8)
        self.seq = 0
        self.state = SnapshotState()
        self.publishers = Publishers(stored.numbers if stored is not None else None)
        self.durable = stored is not None
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._coalesce_bytes = coalesce_bytes
        self._entries: deque[_Entry] = deque()
        self._end = 0  # total bytes logged
        self._newest: dict[TaskKey, _Entry] = {}  # the newest progress of each unfinished task
        self._horizon = 0  # the archive has the events after this seq
        self._last = 0  # the last seq assigned
        self._pending: list[tuple[Record, Broadcast]] = []
        self.pending_bytes = 0
        """Bytes of the events that wait to be taken."""
        self._forget: list[int] = []  # seqs that the archive may delete
        self.runs: dict[int, tuple[bytes, int]] = {}
        """Cached results of `run`, by cursor."""
        self._special_runs: dict[tuple[int, int | None, frozenset[str] | None, int], tuple[bytes, int]] = {}
        self._gap: tuple[bytes, int] | None = None
        self._first_gap: tuple[bytes, int] | None = None  # between the previous epoch and this one
        self.gaps = 0
        """How many times a `Gap` was sent."""
        if stored is not None:
            self._restore(stored)

    def _restore(self, stored: Stored) -> None:
        self.epoch = stored.epoch
        self._horizon = stored.horizon
        for record in stored.records:
            entry = self._log(record, logged=record.seq > stored.log_after)
            try:
                self._remember(record, decode_broadcast(record.payload), entry)
            except (msgspec.MsgspecError, RecursionError):
                continue  # written by a version with other messages; it can still be replayed
            if record.seq <= stored.log_after:
                entry.frame = b""
        self._last = self.seq = stored.seq

    # ------------------------------------------------------------------ writing

    def append(
        self, event: Broadcast, *, publisher: str = "", origin: Origin | UnsetType = UNSET, now: datetime | None = None
    ) -> Broadcast:
        """Stamp ``event`` with epoch and seq (and time and origin where it has none).

        Args:
            event: Any broadcast.
            publisher: The id of its publisher; "" for the hub itself.
            origin: Used if the event has no origin.
            now: The time to use if the event has no valid time.

        Returns:
            The stamped event, as listeners receive it after the commit.
        """
        stamped = msgspec.structs.replace(
            event,
            epoch=self.epoch,
            seq=self._last + 1,
            time=event.time if _is_time(event.time) else (now or datetime.now(UTC)).isoformat(timespec="milliseconds"),
            origin=origin if event.origin is UNSET else event.origin,
        )
        record = Record(
            seq=self._last + 1,
            topic=str(type(stamped).__struct_config__.tag),
            publisher=publisher,
            task=task_name(stamped) if isinstance(stamped, TaskProgress | ExperimentResult) else None,
            # Newer results replace older ones only in the snapshot.
            ended=isinstance(stamped, ExperimentResult)
            or (isinstance(stamped, TaskProgress) and stamped.state in TERMINAL),
            payload=encode(stamped),
        )
        self._last += 1  # only after everything that can raise
        self._pending.append((record, stamped))
        self.pending_bytes += len(record.payload)
        if not self.durable:
            self.commit(self.take())
        return stamped

    @property
    def last(self) -> int:
        """The last seq assigned; events after `seq` are not committed yet."""
        return self._last

    @property
    def has_pending(self) -> bool:
        """Whether there are events to `take`."""
        return bool(self._pending)

    def take(self) -> Batch:
        """Return the changes to write to the archive before `commit`. Only one batch may be taken at a time."""
        batch = Batch(
            epoch=self.epoch,
            seq=self._last,
            events=self._pending,
            forget=self._forget,
            numbers=self.publishers.take_changes(),
        )
        self._pending, self._forget = [], []
        self.pending_bytes = 0
        return batch

    def commit(self, batch: Batch, *, horizon: int = 0) -> None:
        """Add a batch to the log, so that listeners receive it.

        Args:
            batch: The last batch taken, which has been written.
            horizon: The new horizon of the archive; see `Archive.write`.
        """
        for record, event in batch.events:
            self._remember(record, event, self._log(record))
        self.seq = batch.seq
        self._horizon = max(self._horizon, horizon)
        self.publishers.commit(batch.numbers)

    def begin_epoch(self, batch: Batch | None = None, *, epoch: str = "", seq: int = 0, durable: bool = False) -> None:
        """Start a new epoch with the same state; every listener gets a `Gap`, and no event is lost.

        Args:
            batch: A batch that could not be written; its events are added again in the new epoch.
            epoch: The new epoch, if the archive has been reset to it.
            seq: The first seq, if the archive has been reset to it.
            durable: Whether events are written to the archive.
        """
        again = [*(batch.events if batch is not None else ()), *self._pending]
        self._pending, self._forget = [], []
        self.pending_bytes = 0
        self.epoch = epoch or secrets.token_hex(8)
        # Larger than any assigned seq, so that no cursor equals it and every listener gets a Gap.
        self._last = self.seq = self._horizon = max(seq, self._last + 1)
        self._entries.clear()
        self._newest.clear()
        self._forget_frames()
        self.durable = durable
        self.publishers.touch_all()
        self._first_gap = self._make_gap()
        if durable:  # so that a restarted server knows the unfinished tasks
            for (publisher, _), event in self.state.live_tasks().items():
                self.append(event, publisher=publisher)
        for record, event in again:
            self.append(event, publisher=record.publisher)

    def _log(self, record: Record, *, logged: bool = True) -> _Entry:
        entry = _Entry(record.seq, text_frame(record.payload), record.topic, self._end)
        if not logged:
            return entry
        self.seq = record.seq
        self._entries.append(entry)
        self._end += len(entry.frame)
        entries = self._entries
        while len(entries) > 1 and (self._end - entries[0].start > self._max_bytes or len(entries) > self._max_events):
            removed = entries.popleft()
            removed.frame = b""  # the entry may still be in _newest, but only its seq is needed
            if removed.superseded:
                self._forget.append(removed.seq)
        self._forget_frames()
        return entry

    def _remember(self, record: Record, event: Broadcast, entry: _Entry) -> None:
        if record.task is not None:
            key = (record.publisher, record.task)
            if (older := self._newest.pop(key, None)) is not None:
                self._supersede(older)
            if not record.ended:
                self._newest[key] = entry
        forgotten = self.state.apply(event, publisher=record.publisher, size=len(entry.frame))
        if forgotten is not None and (oldest := self._newest.pop(forgotten, None)) is not None:
            self._supersede(oldest)

    def _supersede(self, entry: _Entry) -> None:
        entry.superseded = True
        if not self._entries or entry.seq < self._entries[0].seq:
            self._forget.append(entry.seq)

    def _forget_frames(self) -> None:
        self.runs.clear()
        self._special_runs.clear()
        self._gap = None

    # ------------------------------------------------------------------ reading

    @property
    def log_events(self) -> int:
        """The number of events in the log."""
        return len(self._entries)

    @property
    def log_bytes(self) -> int:
        """The number of bytes of frames in the log."""
        return self._end - self._entries[0].start if self._entries else 0

    def reaches(self, cursor: int) -> bool:
        """Return whether all events after ``cursor`` are in the log."""
        return self.seq - len(self._entries) <= cursor <= self.seq

    def archived_until(self, cursor: int) -> int | None:
        """Return the seq up to which to read the archive for ``cursor``; None if the archive has no such events."""
        first = self.seq - len(self._entries)
        return first if self.durable and self._horizon <= cursor < first else None

    def run(
        self, cursor: int, *, until: int | None = None, topics: frozenset[str] | None = None, max_bytes: int = RUN_BYTES
    ) -> tuple[bytes, int]:
        """Return the joined frames after ``cursor`` (up to seq ``until``), and the cursor after them.

        All listeners at the same cursor share the same bytes object. A run has at most ``max_bytes``, but at least one
        frame, unless ``topics`` excludes all.

        Raises:
            ValueError: The log does not reach back to ``cursor``.
        """
        key = (cursor, until, topics, max_bytes)
        if (known := self._special_runs.get(key)) is not None:
            return known
        if not self.reaches(cursor):
            raise ValueError(f"the log no longer has the events after seq {cursor}")
        frames: list[bytes] = []
        size = 0
        at = cursor
        first = self.seq - len(self._entries)
        lag = self._end - self._entries[cursor - first].start if cursor < self.seq else 0
        coalesce = lag > self._coalesce_bytes
        for index in range(cursor - first, len(self._entries) if until is None else until - first):
            entry = self._entries[index]
            if not (coalesce and entry.superseded) and (topics is None or entry.topic in topics):
                if frames and size + len(entry.frame) > max_bytes:
                    break
                frames.append(entry.frame)
                size += len(entry.frame)
            at += 1
        joined = frames[0] if len(frames) == 1 else b"".join(frames)
        if len(self._special_runs) > 1_000:  # too many different cursors for sharing to be useful
            self._special_runs.clear()
            self.runs.clear()
        self._special_runs[key] = result = joined, at
        if until is None and topics is None and max_bytes == RUN_BYTES:
            self.runs[cursor] = result
        return result

    def snapshot(self, *, id: str | UnsetType = UNSET) -> Snapshot:
        """Return the state as of the newest event: tasks, engines, follow-up questions and results."""
        return self.state.snapshot(epoch=self.epoch, seq=self.seq, id=id)

    def gap(self) -> tuple[bytes, int]:
        """Return the frame of a `Gap` with a snapshot, which listeners share, and the seq of the snapshot."""
        self.gaps += 1
        if self._first_gap is not None and self.reaches(self._first_gap[1]):
            return self._first_gap
        if self._gap is None:
            self._gap = self._make_gap()
        return self._gap

    def _make_gap(self) -> tuple[bytes, int]:
        return text_frame(encode(Gap(snapshot=self.snapshot()))), self.seq


def _is_time(value: str | UnsetType) -> bool:
    if not isinstance(value, str) or len(value) > 64:
        return False
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False
