"""The outbox: the events of a publisher that the hub has not acknowledged.

Theory of operation
===================

::

    publish() --> Mailbox --> waiting --number--> sent --ack--> removed
                                 |                 ^
                                 +--number--> journal

Callers use only the `Mailbox`. Everything after it belongs to the publisher's thread:

- **waiting**: events without a number. If many wait, progress events are coalesced: an event is removed if a newer one
  of the same task waits. Numbers are assigned afterwards and have no gaps.
- **sent**: numbered frames that the hub has not acknowledged, at most ``window`` of them. After a reconnection they
  are sent again, except those that the hub already has according to its `Welcome`.
- **journal**: while a journal is open, every event is numbered and written to it, and frames to send are read from it,
  so the order is the same. It contains all unacknowledged events, so the process may end at any time. When all of
  them are acknowledged, the journal is removed, and events are sent directly again.

This module has no other I/O and reads no clock.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from ragkit.live.journal import Journal
from ragkit.live.messages import (
    MAX_MESSAGE_BYTES,
    Broadcast,
    ExperimentProgress,
    IndexingProgress,
    Origin,
    Publish,
    decode_engine_message,
    encode,
)

Item = tuple[float, Broadcast] | Callable[[], None]
"""An event with its time of publication, or a function to call in the publisher's thread."""

_log = logging.getLogger("ragkit.live.publisher")


class Mailbox:
    """A queue from callers to the publisher's thread; `put` takes microseconds and never waits for a lock.

    ``asleep`` and ``items`` need no lock: the thread sets ``asleep`` and then checks ``items`` again; callers append
    to ``items`` and then check ``asleep``. At least one of the two sees the other's change.

    Callers wake the thread by releasing a lock (`ring`), which keeps the GIL. Writing to the event loop's pipe would
    release the GIL, and the caller would wait until the thread has done its work. Releasing the lock is still a system
    call, so the thread polls while events arrive and sleeps only after a while without events.
    """

    __slots__ = ("_bell", "_closed", "asleep", "items")

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.asleep = False
        self._closed = False
        self._bell = threading.Lock()
        self._bell.acquire()

    def put(self, item: Item) -> None:
        """Add an item; safe in any thread and in a signal handler."""
        self.items.append(item)
        if self.asleep:
            self.ring()

    def ring(self) -> None:
        """Wake the thread."""
        self.asleep = False
        with contextlib.suppress(RuntimeError):  # already released by another caller
            self._bell.release()

    def wait_for_rings(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` after each `ring`, until `close`. Blocks, so it needs a thread of its own."""
        while True:
            self._bell.acquire()
            if self._closed:
                return
            wake()

    def close(self) -> None:
        """End `wait_for_rings`; items that are put later are not processed."""
        self._closed = True
        self.ring()


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of the events of one publisher.

    Attributes:
        acknowledged: Acknowledged by the hub.
        waiting: In memory, neither sent nor in the journal.
        unacknowledged: Sent but not acknowledged yet.
        journalled: Written to the journal at any time, to be sent later.
        coalesced: Progress events removed because newer progress of the same task was waiting.
        dropped: Lost, because the queue was full or the publisher was closed.
        rejected: Not valid messages, or too large; the log has the reason.
    """

    acknowledged: int = 0
    waiting: int = 0
    unacknowledged: int = 0
    journalled: int = 0
    coalesced: int = 0
    dropped: int = 0
    rejected: int = 0


@dataclass(frozen=True, slots=True)
class _Sent:
    n: int
    key: int  # for is_safe(); 0 if read from a journal, where it is safe anyway
    frame: bytes


def is_coalescable(event: object) -> bool:
    """Return whether newer progress of the same task makes this event redundant."""
    return isinstance(event, IndexingProgress | ExperimentProgress) and event.state in ("queued", "running")


class Outbox:
    """The events that the hub has not acknowledged; see the top of this module.

    Args:
        origin: Added to every event without an origin.
        max_events: How many events may wait in memory; with more, `is_full` is true.
        window: How many events may be sent without an acknowledgement.
        watchers: Called with each event that is added, including its time and origin.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        max_events: int = 10_000,
        window: int = 512,
        watchers: Iterable[Callable[[Broadcast], object]] = (),
    ) -> None:
        self.origin = origin
        self._watchers = watchers
        self.added = 0
        self.acknowledged = self.journalled = self.coalesced = self.dropped = self.rejected = 0
        self.journal: Journal | None = None
        self._max_events = max_events
        self._window = window
        self._coalesce_above = max(max_events // 10, 1)
        self._compact_at = self._coalesce_above
        self._waiting: dict[int, tuple[float, Broadcast]] = {}
        self._urgent = 0  # how many waiting events are not coalescable
        self._sent: deque[_Sent] = deque()
        self._resend_from = 0  # how many of the sent events were sent on this connection
        self._numbered = 0  # the last number given
        self._read = 0  # the last number read back from the journal

    def add(self, published: float, event: Broadcast) -> None:
        """Add an event with its time of publication, in seconds since the epoch."""
        self.added += 1
        self._waiting[self.added] = (published, event)
        self._urgent += not is_coalescable(event)
        if len(self._waiting) > self._compact_at:
            self.compact()
            self._compact_at = min(max(2 * len(self._waiting), self._coalesce_above), self._max_events)
        for watcher in tuple(self._watchers):  # a copy: watchers may be removed meanwhile
            try:
                watcher(self._stamped(published, event))
            except Exception as problem:  # a broken watcher must not prevent delivery
                _log.warning("A watcher of the publisher raised an error: %s: %s", type(problem).__name__, problem)

    def compact(self) -> None:
        """Coalesce waiting progress: keep only the newest event of each task."""
        seen: set[tuple[type, str]] = set()
        for key, (_, event) in reversed(list(self._waiting.items())):
            if isinstance(event, IndexingProgress | ExperimentProgress):
                task = (type(event), str(event.task_id))  # events are validated later, so it may have any type
                if is_coalescable(event) and task in seen:
                    del self._waiting[key]
                    self.coalesced += 1
                seen.add(task)

    # ------------------------------------------------------------------------------- the hub

    def take(self, limit: int = 64) -> list[bytes]:
        """Return the next frames to send, and record them as sent."""
        if self._resend_from < len(self._sent):
            frames = [sent.frame for sent in self._sent][self._resend_from : self._resend_from + limit]
            self._resend_from += len(frames)
            return frames
        limit = min(limit, self._window - len(self._sent))
        if self.journal is not None:
            fresh = []
            for frame in self.journal.read(limit):
                self._read += 1
                fresh.append(_Sent(self._read, 0, frame))
        else:
            fresh = self._number(limit)
            self._numbered += len(fresh)
        self._sent.extend(fresh)
        self._resend_from = len(self._sent)
        return [sent.frame for sent in fresh]

    def acknowledge(self, n: int) -> None:
        """Remove every event up to ``n``, which the hub has acknowledged."""
        while self._sent and self._sent[0].n <= n:
            self._sent.popleft()
            self.acknowledged += 1
            self._resend_from = max(self._resend_from - 1, 0)
        if self.journal is not None and self.journal.is_read and not self._sent:
            self.journal.remove()
            self.journal = None

    def resume(self, n: int) -> None:
        """Start a new connection to a hub that has every event up to ``n``."""
        self._resend_from = 0
        self.acknowledge(n)

    def _number(self, limit: int) -> list[_Sent]:
        """Take up to ``limit`` waiting events and encode them with the next numbers."""
        numbered: list[_Sent] = []
        while self._waiting and len(numbered) < limit:
            key = next(iter(self._waiting))
            published, event = self._waiting.pop(key)
            self._urgent -= not is_coalescable(event)
            n = self._numbered + len(numbered) + 1
            try:
                numbered.append(_Sent(n, key, self._encode(n, published, event)))
            except (AttributeError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as problem:
                # The hub would reject it too, and it would be sent again after every reconnection.
                self.rejected += 1
                _log.error("An event was not published, because it is not a valid message: %s (%.200r)", problem, event)
        return numbered

    def _stamped(self, published: float, event: Broadcast) -> Broadcast:
        changes: dict[str, object] = {}
        if event.time is msgspec.UNSET:
            changes["time"] = _rfc3339(published)
        if event.origin is msgspec.UNSET:
            changes["origin"] = self.origin
        return msgspec.structs.replace(event, **changes)

    def _encode(self, n: int, published: float, event: Broadcast) -> bytes:
        frame = encode(Publish(n=n, event=self._stamped(published, event)))
        if len(frame) > MAX_MESSAGE_BYTES:
            raise ValueError(f"it has {len(frame)} bytes; the limit is {MAX_MESSAGE_BYTES}")
        decode_engine_message(frame)
        return frame

    # ------------------------------------------------------------------------------- the journal

    def open_journal(self, journal: Journal) -> None:
        """Write all unacknowledged events to ``journal`` and send from it from now on.

        Raises:
            OSError: Writing failed; if the sent events could not be written, nothing has changed.
        """
        journal.append(sent.frame for sent in self._sent)
        journal.skip_to_end()
        self.journalled += len(self._sent)
        self._read = self._numbered
        self.journal = journal
        self.store()

    def store(self) -> None:
        """Move all waiting events to the open journal.

        Raises:
            OSError: Writing failed; events that were not written are still waiting.
        """
        while self.journal is not None and self._waiting:
            before = dict(self._waiting), self._urgent
            numbered = self._number(1_000)
            try:
                self.journal.append(sent.frame for sent in numbered)
            except OSError:
                self._waiting, self._urgent = before
                raise
            self._numbered += len(numbered)
            self.journalled += len(numbered)

    def shed(self) -> None:
        """Drop events if too many wait: coalescable progress first, then the oldest."""
        if not self.is_full:
            return
        self.compact()
        excess = len(self._waiting) - self._max_events
        by_priority = sorted(self._waiting, key=lambda key: (not is_coalescable(self._waiting[key][1]), key))
        for key in by_priority[: max(excess, 0)]:
            self._urgent -= not is_coalescable(self._waiting.pop(key)[1])
            self.dropped += 1

    # ------------------------------------------------------------------------------- the state

    def is_safe(self, mark: int) -> bool:
        """Return whether the first ``mark`` events added are acknowledged or in the journal."""
        if self._waiting and next(iter(self._waiting)) <= mark:
            return False
        return self.journal is not None or not self._sent or self._sent[0].key > mark

    @property
    def is_empty(self) -> bool:
        """True if the hub has acknowledged all events."""
        return not self._waiting and not self._sent and self.journal is None

    @property
    def is_full(self) -> bool:
        """True if more events wait in memory than allowed."""
        return len(self._waiting) > self._max_events

    @property
    def has_waiting(self) -> bool:
        """True if events are neither sent nor in the journal."""
        return bool(self._waiting)

    @property
    def has_urgent(self) -> bool:
        """True if events are waiting that newer progress does not make redundant."""
        return self._urgent > 0

    def counts(self) -> Counts:
        """Return the counts of the events so far."""
        return Counts(
            acknowledged=self.acknowledged,
            waiting=len(self._waiting),
            unacknowledged=len(self._sent),
            journalled=self.journalled,
            coalesced=self.coalesced,
            dropped=self.dropped,
            rejected=self.rejected,
        )


def _rfc3339(seconds: float) -> str:
    stamp = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return stamp.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"
