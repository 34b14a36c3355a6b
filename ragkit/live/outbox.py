"""What a publisher has to tell the hub and has not been told to forget.

Theory of operation
===================

::

    publish() --> Mailbox --> waiting --number--> sent --ack--> gone
                                 |                 ^
                                 +--number--> journal

The caller only touches the `Mailbox`. Everything behind it belongs to the publisher's thread:

- **waiting**: events without a number yet. When many wait, progress that newer progress of the same
  task replaces is left out; so numbers never have holes.
- **sent**: numbered frames that the hub has not acknowledged, at most ``window`` of them. After a
  reconnection they are sent again, except those that the hub's `Welcome` says it has.
- **journal**: while one is open, every event is numbered into it, and what is sent is read from it, so
  the order is the same. It holds everything that is not acknowledged, so it can be left behind at
  any time. When all of it is acknowledged, it is removed, and events go the short way again.

There is no other I/O and no clock here.
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
"""An event with the time when it was published, or something to do in the publisher's thread."""

_log = logging.getLogger("ragkit.live.publisher")


class Mailbox:
    """Where callers leave things for the publisher's thread, in microseconds and without waiting for a lock.

    ``asleep`` and ``items`` are safe without one: the thread sets ``asleep``, then looks at ``items``
    once more; callers append, then look at ``asleep``. One of the two sees the other.

    The sleeper is woken through a bell, a lock that callers only release: that keeps the interpreter's
    lock. Writing to the event loop's pipe would give it up, and the caller would then wait
    until the thread has done its work. Even so it is a system call, so the thread sleeps only when
    nothing has come for a while, and looks by itself until then.
    """

    __slots__ = ("_bell", "_closed", "asleep", "items")

    def __init__(self) -> None:
        self.items: deque[Item] = deque()
        self.asleep = False
        self._closed = False
        self._bell = threading.Lock()
        self._bell.acquire()

    def put(self, item: Item) -> None:
        """Leave ``item``; safe from any thread and from a signal handler."""
        self.items.append(item)
        if self.asleep:
            self.ring()

    def ring(self) -> None:
        """Wake the thread."""
        self.asleep = False
        with contextlib.suppress(RuntimeError):  # it rings already: two callers came at once
            self._bell.release()

    def wait_for_rings(self, wake: Callable[[], None]) -> None:
        """Call ``wake`` whenever somebody rings, until `close`. Blocks: for a thread that does nothing else."""
        while True:
            self._bell.acquire()
            if self._closed:
                return
            wake()

    def close(self) -> None:
        """End `wait_for_rings`; what is put from now on stays where it is."""
        self._closed = True
        self.ring()


@dataclass(frozen=True, slots=True)
class Counts:
    """What has become of the events of one publisher.

    Attributes:
        acknowledged: The hub has them.
        waiting: In memory, neither sent nor in a file.
        unacknowledged: Sent, and not acknowledged yet.
        journalled: Ever written to the journal, for the hub to get later.
        coalesced: Progress left out because newer progress of the same task came while many waited.
        dropped: Lost: there was no room left anywhere, or the publisher was closed.
        rejected: No message of the protocol, or too big; the log says why.
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
    key: int  # what is_safe() compares; read back from a journal, it is safe anyway
    frame: bytes


def is_coalescable(event: object) -> bool:
    """True for progress that newer progress of the same task makes worthless."""
    return isinstance(event, IndexingProgress | ExperimentProgress) and event.state in ("queued", "running")


class Outbox:
    """See the top of this module.

    Args:
        origin: Stamped on every event that has none.
        max_events: How many may wait in memory; `is_full` then.
        window: How many may be sent without an acknowledgement.
        watchers: Called with each event that is added, with its time and origin.
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
        self._urgent = 0  # how many of them are not coalescable
        self._sent: deque[_Sent] = deque()
        self._resend_from = 0  # how many of them this connection has had
        self._numbered = 0  # the last number given
        self._read = 0  # the last number read back from the journal

    def add(self, published: float, event: Broadcast) -> None:
        """Take an event that was published at that time (seconds since the epoch)."""
        self.added += 1
        self._waiting[self.added] = (published, event)
        self._urgent += not is_coalescable(event)
        if len(self._waiting) > self._compact_at:
            self.compact()
            self._compact_at = min(max(2 * len(self._waiting), self._coalesce_above), self._max_events)
        for watcher in tuple(self._watchers):  # one may be closed meanwhile
            try:
                watcher(self._stamped(published, event))
            except Exception as problem:  # a view of theirs must not keep the event from the hub
                _log.warning("A watcher of the publisher failed: %s: %s", type(problem).__name__, problem)

    def compact(self) -> None:
        """Leave out waiting progress that newer waiting progress of the same task replaces."""
        seen: set[tuple[type, str]] = set()
        for key, (_, event) in reversed(list(self._waiting.items())):
            if isinstance(event, IndexingProgress | ExperimentProgress):
                task = (type(event), str(event.task_id))  # whatever it is: events are checked later
                if is_coalescable(event) and task in seen:
                    del self._waiting[key]
                    self.coalesced += 1
                seen.add(task)

    # ------------------------------------------------------------------------------- the hub

    def take(self, limit: int = 64) -> list[bytes]:
        """Return the next frames to send, and count them as sent."""
        if self._resend_from < len(self._sent):
            again = [sent.frame for sent in self._sent][self._resend_from : self._resend_from + limit]
            self._resend_from += len(again)
            return again
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
        """Forget every event up to ``n``."""
        while self._sent and self._sent[0].n <= n:
            self._sent.popleft()
            self.acknowledged += 1
            self._resend_from = max(self._resend_from - 1, 0)
        if self.journal is not None and self.journal.is_read and not self._sent:
            self.journal.remove()
            self.journal = None

    def resume(self, n: int) -> None:
        """Begin a new connection, to a hub that has every event up to ``n``."""
        self._resend_from = 0
        self.acknowledge(n)

    def _number(self, limit: int) -> list[_Sent]:
        """Take up to ``limit`` waiting events and encode them under the numbers that come next."""
        numbered: list[_Sent] = []
        while self._waiting and len(numbered) < limit:
            key = next(iter(self._waiting))
            published, event = self._waiting.pop(key)
            self._urgent -= not is_coalescable(event)
            n = self._numbered + len(numbered) + 1
            try:
                numbered.append(_Sent(n, key, self._encode(n, published, event)))
            except (AttributeError, TypeError, ValueError, RecursionError, msgspec.MsgspecError) as problem:
                # What the hub would not understand must not be sent to it again and again.
                self.rejected += 1
                _log.error("Not published, because it is no valid message: %s (%.200r)", problem, event)
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
            raise ValueError(f"it has {len(frame)} bytes, and {MAX_MESSAGE_BYTES} is the most")
        decode_engine_message(frame)
        return frame

    # ------------------------------------------------------------------------------- the journal

    def open_journal(self, journal: Journal) -> None:
        """Put everything that is not acknowledged into ``journal``, and go on from there.

        Raises:
            OSError: The disk refused; nothing has changed.
        """
        journal.append(sent.frame for sent in self._sent)
        journal.skip_to_end()
        self.journalled += len(self._sent)
        self._read = self._numbered
        self.journal = journal
        self.store()

    def store(self) -> None:
        """Move all that waits to the open journal.

        Raises:
            OSError: The disk refused; what was not stored still waits.
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
        """Lose what no longer fits: progress first, then the oldest."""
        if not self.is_full:
            return
        self.compact()
        excess = len(self._waiting) - self._max_events
        by_worth = sorted(self._waiting, key=lambda key: (not is_coalescable(self._waiting[key][1]), key))
        for key in by_worth[: max(excess, 0)]:
            self._urgent -= not is_coalescable(self._waiting.pop(key)[1])
            self.dropped += 1

    # ------------------------------------------------------------------------------- what is left

    def is_safe(self, mark: int) -> bool:
        """True if the first ``mark`` events added are acknowledged or in the journal."""
        if self._waiting and next(iter(self._waiting)) <= mark:
            return False
        return self.journal is not None or not self._sent or self._sent[0].key > mark

    @property
    def is_empty(self) -> bool:
        """True if the hub has everything."""
        return not self._waiting and not self._sent and self.journal is None

    @property
    def is_full(self) -> bool:
        """True if no more may wait in memory."""
        return len(self._waiting) > self._max_events

    @property
    def has_waiting(self) -> bool:
        """True if something is in memory that is neither sent nor stored."""
        return bool(self._waiting)

    @property
    def has_urgent(self) -> bool:
        """True if something waits that newer progress will not make worthless."""
        return self._urgent > 0

    def counts(self) -> Counts:
        """Count what has become of the events."""
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
