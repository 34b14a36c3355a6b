"""What has been broadcast: one log for everybody, and the state that follows from it.

Theory of operation
===================

The hub keeps no queue per listener. It keeps one log, bounded in events and bytes, and every
listener is a *cursor* into it: the ``seq`` of the last event that it was sent. So a slow listener
costs the same memory as a fast one, to replay is to set the cursor back, and nobody can be skipped
or see events in another order.

A cursor that lags is helped in two steps. More than ``coalesce_bytes`` behind, it is spared the
progress events that a newer one of the same task has superseded (terminal states are never
superseded). Once the log no longer reaches back to it, it gets `Gap` with a snapshot.

``seq`` has no gaps within an ``epoch``; a new history has a new epoch. A listener may see holes
(topics it did not choose, superseded progress), and each hole is something that it does not need.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict, deque
from datetime import UTC, datetime

import msgspec
from msgspec import UNSET, UnsetType

from ragkit.events import (
    TERMINAL,
    Broadcast,
    Engine,
    EnginesChanged,
    ExperimentProgress,
    FollowUpQuestions,
    Gap,
    IndexingProgress,
    Origin,
    Snapshot,
    encode,
)
from ragkit_server.frames import text_frame

__all__ = ["TOPICS", "History", "Numbers", "Progress"]

Progress = IndexingProgress | ExperimentProgress

TOPICS = frozenset({"follow_up_questions", "indexing_progress", "experiment_progress", "experiment_result", "engines"})
"""The types that a listener may subscribe to."""

MAX_LIVE_TASKS = 1_000
MAX_ENDED_TASKS = 20
MAX_FOLLOW_UPS = 20
MAX_PUBLISHERS = 10_000
SNAPSHOT_FAILURES = 20
SNAPSHOT_EVENT_BYTES = 65_536  # of one event; what is larger is remembered in short, or not at all

TaskKey = tuple[str, str]  # publisher id (or "" for the hub's own), task id


class _Entry:
    """One event in the log. ``superseded`` turns true when newer progress of its task arrives."""

    __slots__ = ("frame", "start", "superseded", "topic")

    def __init__(self, frame: bytes, topic: str, start: int) -> None:
        self.frame = frame
        self.topic = topic
        self.start = start  # the bytes ever logged before it
        self.superseded = False


class Numbers:
    """The event numbers that one publisher's events have been seen under, as disjoint ranges.

    A range list and not the highest number: a journal with 1..50 may be adopted after its
    publisher, connected again, has already sent 51.
    """

    __slots__ = ("_ranges",)

    MAX_RANGES = 256

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []

    @property
    def last(self) -> int:
        """The highest number seen; 0 before the first."""
        return self._ranges[-1][1] if self._ranges else 0

    def add(self, n: int) -> bool:
        """Note ``n``; return whether it was new."""
        ranges = self._ranges
        at = len(ranges)
        while at and ranges[at - 1][0] > n:
            at -= 1
        if at and n <= ranges[at - 1][1]:
            return False
        low = high = n
        if at < len(ranges) and ranges[at][0] == n + 1:
            high = ranges.pop(at)[1]
        if at and ranges[at - 1][1] == n - 1:
            at -= 1
            low = ranges.pop(at)[0]
        ranges.insert(at, (low, high))
        if len(ranges) > self.MAX_RANGES:
            # Only a publisher that skips numbers at random comes here; forgetting its oldest holes
            # can drop a late event of it, never repeat one.
            (first, _), (_, second) = ranges[:2]
            ranges[:2] = [(first, second)]
        return True


class History:
    """The log, the newest state of every task, and which events have been seen.

    Args:
        max_events: Events kept for replay.
        max_bytes: Bytes of frames kept for replay.
        coalesce_bytes: How far a listener may lag before superseded progress is left out for it.
    """

    def __init__(
        self, *, max_events: int = 50_000, max_bytes: int = 16 * 2**20, coalesce_bytes: int = 2**20, epoch: str = ""
    ) -> None:
        self.epoch = epoch or secrets.token_hex(8)
        self.seq = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._coalesce_bytes = coalesce_bytes
        self._entries: deque[_Entry] = deque()
        self._end = 0  # the bytes ever logged
        self._newest: dict[TaskKey, _Entry] = {}
        self._live: OrderedDict[TaskKey, Progress] = OrderedDict()
        self._ended: deque[Progress] = deque(maxlen=MAX_ENDED_TASKS)
        self._follow_ups: deque[FollowUpQuestions] = deque(maxlen=MAX_FOLLOW_UPS)
        self._engines: list[Engine] = []
        self._numbers: OrderedDict[str, Numbers] = OrderedDict()
        self._runs: dict[tuple[int, int | None, frozenset[str] | None, int], tuple[bytes, int]] = {}
        self._gap: bytes | None = None

    # ------------------------------------------------------------------ writing

    def append(
        self, event: Broadcast, *, publisher: str = "", origin: Origin | UnsetType = UNSET, now: datetime | None = None
    ) -> Broadcast:
        """Stamp ``event`` with epoch and seq (and time and origin where it has none) and log it.

        Args:
            event: Any broadcast.
            publisher: Whose it is; "" for the hub's own.
            origin: Taken where the event does not name one.
            now: The time to stamp it with if it has none, or none that can be read.

        Returns:
            The event as listeners will get it.
        """
        self.seq += 1
        stamped = msgspec.structs.replace(
            event,
            epoch=self.epoch,
            seq=self.seq,
            time=event.time if _is_time(event.time) else (now or datetime.now(UTC)).isoformat(timespec="milliseconds"),
            origin=origin if event.origin is UNSET else event.origin,
        )
        entry = _Entry(text_frame(encode(stamped)), str(type(stamped).__struct_config__.tag), self._end)
        self._entries.append(entry)
        self._end += len(entry.frame)
        self._runs.clear()
        self._gap = None
        self._remember(stamped, entry, publisher)
        entries = self._entries
        while len(entries) > 1 and (self._end - entries[0].start > self._max_bytes or len(entries) > self._max_events):
            entries.popleft()
        return stamped

    def _remember(self, event: Broadcast, entry: _Entry, publisher: str) -> None:
        if isinstance(event, FollowUpQuestions):
            if len(entry.frame) <= SNAPSHOT_EVENT_BYTES:
                self._follow_ups.append(event)
        elif isinstance(event, EnginesChanged):
            self._engines = event.engines
        elif isinstance(event, Progress):
            key = (publisher, event.task_id)
            if (older := self._newest.pop(key, None)) is not None:
                older.superseded = True
            self._live.pop(key, None)
            if event.state in TERMINAL:
                self._ended.append(_for_snapshot(event, len(entry.frame)))
            else:
                self._newest[key] = entry
                self._live[key] = _for_snapshot(event, len(entry.frame))
                if len(self._live) > MAX_LIVE_TASKS:
                    oldest, _ = self._live.popitem(last=False)
                    self._newest.pop(oldest, None)

    def is_new(self, publisher: str, n: int) -> bool:
        """Note that event ``n`` of ``publisher`` has come; return whether it is the first time."""
        numbers = self._numbers.get(publisher)
        if numbers is None:
            numbers = self._numbers[publisher] = Numbers()
            if len(self._numbers) > MAX_PUBLISHERS:
                self._numbers.popitem(last=False)
        self._numbers.move_to_end(publisher)
        return numbers.add(n)

    def last_n(self, publisher: str) -> int:
        """Return the highest number that has come from ``publisher``; 0 if none has."""
        numbers = self._numbers.get(publisher)
        return numbers.last if numbers is not None else 0

    def live_tasks(self, publisher: str) -> list[Progress]:
        """Return the newest event of each task of ``publisher`` that has not ended."""
        return [event for (owner, _), event in self._live.items() if owner == publisher]

    # ------------------------------------------------------------------ reading

    def reaches(self, cursor: int) -> bool:
        """Return whether everything after ``cursor`` is still in the log."""
        return self.seq - len(self._entries) <= cursor <= self.seq

    def run(
        self, cursor: int, *, until: int | None = None, topics: frozenset[str] | None = None, max_bytes: int = 65_536
    ) -> tuple[bytes, int]:
        """Return the frames after ``cursor`` (up to seq ``until``), joined, and the cursor after them.

        The same bytes object serves every listener at the same cursor. ``max_bytes`` is where a run
        stops growing; it holds at least one frame, unless ``topics`` leaves none.

        Raises:
            ValueError: The log does not reach back to ``cursor``.
        """
        key = (cursor, until, topics, max_bytes)
        if (known := self._runs.get(key)) is not None:
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
        if len(self._runs) > 1_000:  # listeners at as many different places: sharing no longer pays
            self._runs.clear()
        self._runs[key] = joined, at
        return joined, at

    def snapshot(self, *, id: str | UnsetType = UNSET) -> Snapshot:
        """Return the state as of the newest event: live and just ended tasks, engines, follow-ups."""
        return Snapshot(
            epoch=self.epoch,
            seq=self.seq,
            tasks=[*self._ended, *self._live.values()],
            engines=self._engines,
            follow_ups=list(self._follow_ups),
            id=id,
        )

    def gap_frame(self) -> bytes:
        """Return `Gap` with the current snapshot as a frame; listeners share it."""
        if self._gap is None:
            self._gap = text_frame(encode(Gap(snapshot=self.snapshot())))
        return self._gap


def _is_time(value: str | UnsetType) -> bool:
    if not isinstance(value, str) or len(value) > 64:
        return False
    try:
        return datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


def _for_snapshot(event: Progress, size: int) -> Progress:
    # A thousand tasks with a hundred failures each would make a snapshot of many megabytes.
    large = size > SNAPSHOT_EVENT_BYTES
    if large and event.message is not None:
        event = msgspec.structs.replace(event, message=event.message[:1_000])
    if isinstance(event, IndexingProgress) and len(event.failures) > SNAPSHOT_FAILURES * (not large):
        event = msgspec.structs.replace(event, failures=[] if large else event.failures[:SNAPSHOT_FAILURES])
    return event
