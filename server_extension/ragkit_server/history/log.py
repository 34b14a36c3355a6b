"""What has been broadcast: one log for everybody, and who has had how much of it.

Theory of operation
===================

The hub keeps no queue per listener. It keeps one log, and every listener is a *cursor* into it: the
``seq`` of the last event that it was sent. So a slow listener costs the same memory as a fast one,
to replay is to set the cursor back, and nobody can be skipped or see events in another order.

::

    append() --stamp--> pending --take()--> archive (disk) --commit()--> log --> listeners

An event is *stamped* with ``epoch`` and ``seq`` when it comes, and enters the log, which is all that
listeners see, when it is on disk: so a server that is killed goes on in the same epoch, and never gives a
number that somebody has seen to another event. Without an archive the two are one step.

The log is a window, bounded in events and bytes, over the archive, which is deeper. A cursor that lags
is helped in three steps:

- More than ``coalesce_bytes`` behind, it is spared the progress events that a newer one of the same
  task has superseded. Terminal states are never superseded.
- Behind the log, it reads from the archive, which does not hold superseded progress either.
- Behind the archive, it gets `Gap` with a snapshot.

``seq`` has no gaps within an ``epoch``. A listener may see holes (topics it did not choose, superseded
progress), and each hole is something that it does not need.
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

RUN_BYTES = 65_536  # about one kernel socket buffer: more at once only moves the queue there


class _Entry:
    """One event in the log. ``superseded`` turns true when newer progress of its task arrives."""

    __slots__ = ("frame", "seq", "start", "superseded", "topic")

    def __init__(self, seq: int, frame: bytes, topic: str, start: int) -> None:
        self.seq = seq
        self.frame = frame
        self.topic = topic
        self.start = start  # the bytes ever logged before it
        self.superseded = False


class History:
    """The log, the state that follows from it, and which events have been seen.

    Args:
        max_events: Events kept in memory for replay.
        max_bytes: Bytes of frames kept in memory for replay.
        coalesce_bytes: How far a listener may lag before superseded progress is left out for it.
        epoch: The name of this history; a new one by default.
        stored: What the archive holds; with it, events have to be committed before they are seen.
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
        self._end = 0  # the bytes ever logged
        self._newest: dict[TaskKey, _Entry] = {}  # the newest progress of each live task
        self._horizon = 0  # the archive holds what follows this seq
        self._last = 0  # the last seq given
        self._pending: list[tuple[Record, Broadcast]] = []
        self.pending_bytes = 0
        """What waits to be taken."""
        self._forget: list[int] = []  # what the archive need not hold any longer
        self.runs: dict[int, tuple[bytes, int]] = {}
        """What `run` returns for a cursor, as far as it has been asked."""
        self._special_runs: dict[tuple[int, int | None, frozenset[str] | None, int], tuple[bytes, int]] = {}
        self._gap: tuple[bytes, int] | None = None
        self._first_gap: tuple[bytes, int] | None = None  # what stands between the last epoch and this one
        self.gaps = 0
        """How often a listener had to be told of one."""
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
                continue  # of a version that had other messages: still to be replayed
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
            publisher: Whose it is; "" for the hub's own.
            origin: Taken where the event does not name one.
            now: The time to stamp it with if it has none, or none that can be read.

        Returns:
            The event as listeners will get it, once it is committed.
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
            # Newer results supersede older ones in the snapshot only.
            ended=isinstance(stamped, ExperimentResult)
            or (isinstance(stamped, TaskProgress) and stamped.state in TERMINAL),
            payload=encode(stamped),
        )
        self._last += 1  # now that nothing can go wrong any more
        self._pending.append((record, stamped))
        self.pending_bytes += len(record.payload)
        if not self.durable:
            self.commit(self.take())
        return stamped

    @property
    def last(self) -> int:
        """The last seq given; those after `seq` are not committed yet."""
        return self._last

    @property
    def has_pending(self) -> bool:
        """Whether there is anything to `take`."""
        return bool(self._pending)

    def take(self) -> Batch:
        """Return what has to be written to the archive before it can be committed. One batch at a time."""
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
        """Let listeners see a batch.

        Args:
            batch: The last one taken; it is safe now.
            horizon: Where the archive begins now; see `Archive.write`.
        """
        for record, event in batch.events:
            self._remember(record, event, self._log(record))
        self.seq = batch.seq
        self._horizon = max(self._horizon, horizon)
        self.publishers.commit(batch.numbers)

    def begin_epoch(self, batch: Batch | None = None, *, epoch: str = "", seq: int = 0, durable: bool = False) -> None:
        """Begin a new epoch with the same state; every listener gets a gap, and nothing is lost.

        Args:
            batch: One that could not be written. Its events come again, under the new epoch.
            epoch: Its name, if the archive knows it already.
            seq: The seq to begin at, if the archive knows it already.
            durable: Whether events are to be written to the archive.
        """
        again = [*(batch.events if batch is not None else ()), *self._pending]
        self._pending, self._forget = [], []
        self.pending_bytes = 0
        self.epoch = epoch or secrets.token_hex(8)
        # One more than was ever given: so no cursor stands here, and each of them is due for a gap.
        self._last = self.seq = self._horizon = max(seq, self._last + 1)
        self._entries.clear()
        self._newest.clear()
        self._forget_frames()
        self.durable = durable
        self.publishers.touch_all()
        self._first_gap = self._make_gap()
        if durable:  # or a restarted server would not know whose tasks it has to give up
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
            gone = entries.popleft()
            gone.frame = b""  # the newest of a live task is still known by its seq
            if gone.superseded:
                self._forget.append(gone.seq)
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
        """How many are in the log."""
        return len(self._entries)

    @property
    def log_bytes(self) -> int:
        """How many bytes of frames are in the log."""
        return self._end - self._entries[0].start if self._entries else 0

    def reaches(self, cursor: int) -> bool:
        """Return whether everything after ``cursor`` is still in the log."""
        return self.seq - len(self._entries) <= cursor <= self.seq

    def archived_until(self, cursor: int) -> int | None:
        """Return how far the archive has to be read for who stands at ``cursor``; None if it does not help."""
        first = self.seq - len(self._entries)
        return first if self.durable and self._horizon <= cursor < first else None

    def run(
        self, cursor: int, *, until: int | None = None, topics: frozenset[str] | None = None, max_bytes: int = RUN_BYTES
    ) -> tuple[bytes, int]:
        """Return the frames after ``cursor`` (up to seq ``until``), joined, and the cursor after them.

        The same bytes object serves every listener at the same cursor. ``max_bytes`` is where a run
        stops growing; it holds at least one frame, unless ``topics`` leaves none.

        Raises:
            ValueError: The log does not reach back to ``cursor``.
        """
        key = (cursor, until, topics, max_bytes)
        if (known := self._special_runs.get(key)) is not None:
            return known
        if not self.reaches(cursor):
            raise ValueError(f"the log no longer holds what follows seq {cursor}")
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
        if len(self._special_runs) > 1_000:  # listeners at as many different places: sharing no longer pays
            self._special_runs.clear()
            self.runs.clear()
        self._special_runs[key] = result = joined, at
        if until is None and topics is None and max_bytes == RUN_BYTES:
            self.runs[cursor] = result
        return result

    def snapshot(self, *, id: str | UnsetType = UNSET) -> Snapshot:
        """Return the state as of the newest event: live and just ended tasks, engines, follow-ups, results."""
        return self.state.snapshot(epoch=self.epoch, seq=self.seq, id=id)

    def gap(self) -> tuple[bytes, int]:
        """Return `Gap` with a snapshot as a frame, which listeners share, and the seq that it stands for."""
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
