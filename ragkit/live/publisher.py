"""The publisher: sends events to the hub without blocking the caller.

`Publisher.publish` puts the event into a mailbox, which takes microseconds. A daemon thread with its own event loop
does the rest (`ragkit.live.connection`). The kernel's event loop is never used.

Delivery of an event:

- With a server: the event is numbered and sent, kept until the hub acknowledges it, and sent again after a
  reconnection.
- Without a server, or if the server accepts nothing for some seconds, or if memory is full: the event is written to
  the journal (`ragkit.live.journal`). From there it is sent when a server is found, or the server extension adopts the
  journal after this process has ended.
- When the process ends: the remaining events are sent within a deadline, or written to the journal.

After ``os.fork`` the child publishes with an id of its own; events that the parent published are sent by the parent.
"""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import os
import sys
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragkit.live.discovery import Server, find_server, journal_dir
from ragkit.live.messages import Broadcast, Engine, Hello, Origin, to_broadcast
from ragkit.live.origin import find_origin
from ragkit.live.outbox import Counts, Mailbox, Outbox, is_coalescable
from ragkit.live.serving import AnswerQuery, Serving

if TYPE_CHECKING:
    from ragkit.live.connection import Connection

_log = logging.getLogger("ragkit.live.publisher")
_now = time.time


class Publisher:
    """Publishes events to the hub and answers queries from it.

    The constructor starts the thread and returns at once.

    Args:
        server: The server of the hub. By default `ragkit.live.find_server` finds it before each connection.
        origin: The origin of the events; `ragkit.live.find_origin` by default.
        max_queue: How many events may wait in memory before they are written to the journal.
        journal_folder: The journal's folder; `ragkit.live.discovery.journal_dir` by default.
        exit_timeout_seconds: How long to delay the end of the process in order to send the remaining events.

    Attributes:
        watchers: A list of functions; each is called with every event of this process, in the publisher's thread. They
            must be fast, because nothing is sent while they run.
    """

    def __init__(
        self,
        *,
        server: Server | None = None,
        origin: Origin | None = None,
        max_queue: int = 10_000,
        journal_folder: Path | None = None,
        exit_timeout_seconds: float = 2.0,
    ) -> None:
        self.exit_timeout_seconds = exit_timeout_seconds
        self._server = server
        self._given_origin = origin
        self._max_queue = max_queue
        self._journal_folder = journal_folder
        self._begin()
        _publishers.add(self)
        _register()
        self._start()

    def _begin(self) -> None:
        self.id = uuid.uuid4().hex
        self.watchers: list[Callable[[Broadcast], object]] = []
        self._mailbox = Mailbox()
        self._items = self._mailbox.items
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = False
        self._accepts = False  # the thread runs and is not closed
        self._dropped = 0
        self.__dict__.pop("origin", None)

    @functools.cached_property
    def origin(self) -> Origin:
        """The origin that is added to every event without one."""
        return self._given_origin or find_origin()

    # ------------------------------------------------------------------------------ for callers

    def publish(self, event: Broadcast) -> None:
        """Publish an event: send it to the hub, and through the hub to every listener.

        Takes microseconds (some tens of microseconds if the thread sleeps, after seconds without events), never blocks
        and never raises. Do not modify the event afterwards: it is encoded later, in the publisher's thread.
        """
        # Few steps and no calls: half the cost of a single event is code that is no longer in the CPU's caches.
        if (self._accepts or self._start()) and (len(self._items) < self._max_queue or self._has_room(event)):
            self._items.append((_now(), event))
            if self._mailbox.asleep:
                self._mailbox.ring()
        else:
            self._dropped += 1

    def _has_room(self, event: Broadcast) -> bool:
        # The thread gets no CPU time. Newer progress will replace this one; other events are kept up to a limit.
        return not is_coalescable(event) and len(self._items) < 10 * self._max_queue

    def flush(self, timeout_seconds: float = 5.0) -> bool:
        """Wait until all events published so far are acknowledged by the hub or written to the journal.

        Returns:
            True if they are; False after the time-out.
        """
        safe = threading.Event()
        return self._do(lambda connection: connection.flush(safe)) and safe.wait(timeout_seconds)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Send the remaining events, or write them to the journal if that takes too long; then stop the thread.

        Takes at most ``timeout_seconds``, and about a second more if the disk is slow. Events published afterwards are
        dropped and counted.
        """
        self._closed, self._accepts = True, False
        thread = self._thread
        if thread is None or not thread.is_alive() or thread is threading.current_thread():
            return
        self._mailbox.put(lambda: self._need_connection().finish())
        thread.join(timeout_seconds)
        if thread.is_alive():
            self._mailbox.put(lambda: self._need_connection().stop())
            thread.join(1.5)

    def serve(self, engine: Engine, answer: AnswerQuery) -> Serving:
        """Offer an engine to listeners, now and after every reconnection.

        Args:
            engine: The engine; it replaces an engine with the same id.
            answer: Called for each query with its content and a `Reply`, each time in a thread of its own, up to four
                at once. If it raises an error, the asking listener receives it.
        """
        serving = Serving(
            engine,
            answer,
            stop=lambda serving: self._do(lambda connection: connection.withdraw(serving)),
            update=lambda serving: self._do(lambda connection: connection.update(serving)),
        )
        self._do(lambda connection: connection.offer(serving))
        return serving

    @property
    def state(self) -> str:
        """A readable description of the connection: the server it is connected to, or why it is not connected."""
        if self._connection is not None:
            return self._connection.state
        return "closed" if self._closed else "looking for a server"

    @property
    def counts(self) -> Counts:
        """How many events were delivered, are waiting, or were lost; see `Counts`."""
        counts = self._connection.outbox.counts() if self._connection is not None else Counts()
        return Counts(
            acknowledged=counts.acknowledged,
            waiting=counts.waiting + len(self._mailbox.items),
            unacknowledged=counts.unacknowledged,
            journalled=counts.journalled,
            coalesced=counts.coalesced,
            dropped=counts.dropped + self._dropped,
            rejected=counts.rejected,
        )

    def __repr__(self) -> str:
        return f"Publisher({self.state})"

    # ------------------------------------------------------------------------------ the thread

    def _start(self) -> bool:
        with self._starting:
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._run, name="ragkit-publisher", daemon=True)
                try:
                    thread.start()
                except RuntimeError as problem:  # no more threads, or the interpreter is ending
                    _log.error("Events cannot be published: %s", problem)
                    return False
                self._thread = thread
                self._accepts = True
                _finish_with_multiprocessing(self)
        return self._accepts

    def _run(self) -> None:
        from ragkit.live.connection import Connection

        async def work() -> None:
            self._connection = Connection(
                self._mailbox,
                Outbox(self.origin, max_events=self._max_queue, watchers=self.watchers),
                Hello(publisher=self.id, origin=self.origin),
                find=lambda: self._server or find_server(),
                journal_dir=lambda: self._journal_folder or journal_dir(),
            )
            await self._connection.run()

        # Not asyncio.run: it waits without a deadline, and an event loop policy may give it another kind of loop.
        loop = asyncio.SelectorEventLoop()
        try:
            loop.run_until_complete(work())
        finally:
            self._closed, self._accepts = True, False
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    def _do(self, action: Callable[[Connection], None]) -> bool:
        """Run ``action`` in the publisher's thread; return False if the thread has ended."""
        if not self._accepts and not self._start():
            return False
        self._mailbox.put(lambda: action(self._need_connection()))
        return True

    def _need_connection(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("this must be called in the publisher's thread")
        return self._connection

    def _after_fork(self) -> None:
        # The parent's event loop and socket must not be closed here, because the child shares their file descriptors
        # and selector. This reference keeps them from being garbage collected.
        _kept_from_parent.append(dict(vars(self)))
        self._begin()


_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()
_kept_from_parent: list[dict[str, object]] = []
_default: Publisher | None = None
_default_lock = threading.Lock()


def default_publisher() -> Publisher:
    """Return the publisher of this process; the first call creates it."""
    global _default
    with _default_lock:
        if _default is None or _default._closed:
            _default = Publisher()
        return _default


def broadcast(message: Broadcast | Mapping[str, Any], *, publisher: Publisher | None = None) -> None:
    """Send a message to every listener: browsers, widgets, notebooks and programs.

        ragkit.broadcast({"type": "follow_up_questions", "questions": ["How is BM25 tuned?"]})

    Returns at once. Without a server the message is written to the journal and broadcast when a server starts.

    Args:
        message: A broadcast of `ragkit.live.messages`, or the same as a dict with its ``type``. The hub adds ``epoch``
            and ``seq``; ``time`` and ``origin`` are added if they are missing.
        publisher: The publisher that sends it; the one of this process by default.

    Raises:
        InputError: The message is not a valid broadcast; the error names the key. See
            `ragkit.live.messages.to_broadcast`.
    """
    event = to_broadcast(message)
    (publisher or default_publisher()).publish(event)


@functools.cache
def _register() -> None:
    atexit.register(_close_all)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)


def _close_all() -> None:
    for publisher in list(_publishers):
        publisher.close(publisher.exit_timeout_seconds)


def _after_fork() -> None:
    global _default_lock
    _default_lock = threading.Lock()
    for publisher in list(_publishers):
        publisher._after_fork()


def _finish_with_multiprocessing(publisher: Publisher) -> None:
    """Also close the publisher at the end of a multiprocessing child, which does not run atexit functions."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, publisher.close, args=(publisher.exit_timeout_seconds,), exitpriority=10)
