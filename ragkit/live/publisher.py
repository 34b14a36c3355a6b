"""Telling the hub, in microseconds and without ever hurting the notebook.

`Publisher.publish` leaves the event in a mailbox; a daemon thread with an event loop of its own does the
rest (`ragkit.live.connection`). Nothing here touches the kernel's event loop.

What happens to an event:

- A server is there: it is sent, numbered, and kept until the hub acknowledges it; sent again after a
  reconnection.
- No server, or it takes nothing for some seconds, or memory is full: it goes to the journal
  (`ragkit.live.journal`), and from there over the socket when a server comes, or to the extension that
  adopts the journal when this process has ended.
- The process ends: what is left is sent within a deadline, or goes to the journal.

After ``os.fork`` the child publishes under its own id; what its parent had published stays the parent's.
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
    """Publishes events to the hub, and answers the queries that come back.

    Making one starts its thread; nothing is waited for.

    Args:
        server: Where the hub is; found and found again by `ragkit.live.find_server` if not given.
        origin: Who publishes; `ragkit.live.find_origin` by default.
        max_queue: Events that may wait in memory before they go to the journal.
        journal_folder: Where that is; `ragkit.live.discovery.journal_dir` by default.
        exit_timeout_seconds: How long the end of the process may be held up to send what is left.

    Attributes:
        watchers: Called with each event of this process, in the publisher's thread; add to it and remove from it.
            They are to be quick: nothing is sent meanwhile.
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
        self._takes = False  # the thread runs, and is not closed
        self._dropped = 0
        self.__dict__.pop("origin", None)

    @functools.cached_property
    def origin(self) -> Origin:
        """Who publishes: stamped on every event that names none."""
        return self._given_origin or find_origin()

    # ------------------------------------------------------------------------------ for callers

    def publish(self, event: Broadcast) -> None:
        """Tell the hub, and through it every listener.

        Takes microseconds (some tens when nothing was published for seconds, because the thread sleeps
        then), never blocks, never raises. Do not change what the event holds afterwards:
        it is encoded later, in the publisher's thread.
        """
        # Few steps and no calls: half of what a lone event costs is code that has gone cold.
        if (self._takes or self._start()) and (len(self._items) < self._max_queue or self._has_room(event)):
            self._items.append((_now(), event))
            if self._mailbox.asleep:
                self._mailbox.ring()
        else:
            self._dropped += 1

    def _has_room(self, event: Broadcast) -> bool:
        # The thread gets no time to run. Newer progress will follow; the rest is kept as long as that is sane.
        return not is_coalescable(event) and len(self._items) < 10 * self._max_queue

    def flush(self, timeout_seconds: float = 5.0) -> bool:
        """Wait until all that was published before is safe.

        Returns:
            True if the hub has acknowledged it or it is in the journal; False if time ran out.
        """
        safe = threading.Event()
        return self._do(lambda connection: connection.flush(safe)) and safe.wait(timeout_seconds)

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Send what is left, or put it into the journal if that takes too long; then end.

        Takes ``timeout_seconds`` at most, and about a second more if the disk is slow. Events published
        afterwards are dropped, and counted.
        """
        self._closed, self._takes = True, False
        thread = self._thread
        if thread is None or not thread.is_alive() or thread is threading.current_thread():
            return
        self._mailbox.put(lambda: self._need_connection().finish())
        thread.join(timeout_seconds)
        if thread.is_alive():
            self._mailbox.put(lambda: self._need_connection().stop())
            thread.join(1.5)

    def serve(self, engine: Engine, answer: AnswerQuery) -> Serving:
        """Offer an engine to whoever asks on the socket, now and after every reconnection.

        Args:
            engine: What is offered; it replaces one with the same id.
            answer: Called in a thread of its own for each query, up to four at once, with the query
                and a `Reply`. What it raises goes to the asker.
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
        """What it does now, for people: connected to which server, or what is in the way."""
        if self._connection is not None:
            return self._connection.state
        return "closed" if self._closed else "looking for a server"

    @property
    def counts(self) -> Counts:
        """What has become of the events so far."""
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
                self._takes = True
                _finish_with_multiprocessing(self)
        return self._takes

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

        # Not asyncio.run: it waits without a deadline, and a policy may give it another kind of loop.
        loop = asyncio.SelectorEventLoop()
        try:
            loop.run_until_complete(work())
        finally:
            self._closed, self._takes = True, False
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    def _do(self, action: Callable[[Connection], None]) -> bool:
        """Have the thread do something; False if there is none any more."""
        if not self._takes and not self._start():
            return False
        self._mailbox.put(lambda: action(self._need_connection()))
        return True

    def _need_connection(self) -> Connection:
        if self._connection is None:
            raise RuntimeError("this runs in the publisher's thread only")
        return self._connection

    def _after_fork(self) -> None:
        # The parent's loop and socket must not be closed here: their file descriptors and the
        # selector are shared with the parent. So they are kept, untouched, for ever.
        _kept_from_parent.append(dict(vars(self)))
        self._begin()


_publishers: weakref.WeakSet[Publisher] = weakref.WeakSet()
_kept_from_parent: list[dict[str, object]] = []
_default: Publisher | None = None
_default_lock = threading.Lock()


def default_publisher() -> Publisher:
    """The publisher of this process, made when it is first asked for."""
    global _default
    with _default_lock:
        if _default is None or _default._closed:
            _default = Publisher()
        return _default


def broadcast(message: Broadcast | Mapping[str, Any], *, publisher: Publisher | None = None) -> None:
    """Send a message to everybody who listens: browsers, widgets, notebooks, programs.

        ragkit.broadcast({"type": "follow_up_questions", "questions": ["How is BM25 tuned?"]})

    Returns at once. Without a server the message waits in the journal, and is broadcast when a server starts.

    Args:
        message: One of the broadcasts in `ragkit.live.messages`, or the same as a dict with its ``type``. The hub adds
            ``epoch`` and ``seq``; ``time`` and ``origin`` are added where they are missing.
        publisher: Sends it; the one of this process by default.

    Raises:
        InputError: It is not a message that may be broadcast; the reason names the key. See
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
    """Close at the end of a multiprocessing child too: those skip atexit."""
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        from multiprocessing.util import Finalize

        Finalize(None, publisher.close, args=(publisher.exit_timeout_seconds,), exitpriority=10)
