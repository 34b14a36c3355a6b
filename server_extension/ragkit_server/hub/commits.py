"""Commits events to the archive in batches, one batch at a time, outside of the event loop.

::

    append, acknowledge --> next turn of the event loop --> archive (thread) --> committed

While a batch is written, the next one is collected, so a slow disk leads to larger batches and not to a longer queue.
If writing fails, the history continues in memory with a new epoch (events of the old epoch may be missing on disk), and
the archive is retried every minute.

The same thread reads for listeners that are far behind, one excerpt at a time, so that a write never waits for more
than one read.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from msgspec import UNSET, UnsetType

from ragkit.live.messages import Broadcast, Origin
from ragkit_server.history.archive import Archive, Batch
from ragkit_server.history.log import RUN_BYTES, History
from ragkit_server.hub.counters import Counters
from ragkit_server.hub.ports import Thread, Timers
from ragkit_server.hub.sessions import Excerpt, ListenerSession, PublisherSession

RETRY_SECONDS = 60
MAX_PENDING_BYTES = 8 * 2**20  # not counting the batch that is being written
MARGIN = 1_000_000  # more than the number of events that arrive while the archive is reset

Acks = dict[PublisherSession, int]


class Commits:
    """Commits events and reports when they are committed.

    Args:
        history: The log, to which committed events are added.
        committed: Called after each commit, with the event numbers that can be acknowledged.
        fed: Called when a listener has received events from the archive.
        timers: An event loop.
        log: Logs problems with the disk.
        counters: Counts commits.
        archive: Stores events on disk; None to keep them in memory.
        thread: Runs the operations of the archive.
    """

    def __init__(
        self,
        history: History,
        *,
        committed: Callable[[Acks], None],
        fed: Callable[[ListenerSession], None],
        timers: Timers,
        log: logging.Logger,
        counters: Counters,
        archive: Archive | None = None,
        thread: Thread | None = None,
    ) -> None:
        self.history = history
        self._committed = committed
        self._fed = fed
        self._timers = timers
        self._log = log
        self._counters = counters
        self._archive = archive
        self._thread = thread
        self._acks: Acks = {}
        self._scheduled = False
        self._writing = False
        self._waiters: list[tuple[int, asyncio.Future[None]]] = []
        self._readers: dict[ListenerSession, Excerpt] = {}  # longest waiting first
        self._reading: Excerpt | None = None

    # ------------------------------------------------------------------ writing

    def append(self, event: Broadcast, *, publisher: str = "", origin: Origin | UnsetType = UNSET) -> Broadcast:
        """Stamp an event and schedule its commit."""
        stamped = self.history.append(event, publisher=publisher, origin=origin)
        self._schedule()
        return stamped

    def acknowledge(self, session: PublisherSession, n: int) -> None:
        """Acknowledge ``n`` to the publisher when all events so far are committed."""
        self._acks[session] = max(n, self._acks.get(session, 0))
        self._schedule()

    @property
    def backlogged(self) -> bool:
        """Whether so many events wait for the disk that publishers should wait; see `wait_for_disk`."""
        return self.history.pending_bytes > MAX_PENDING_BYTES

    def _schedule(self) -> None:
        if not self._scheduled and not self._writing:
            self._scheduled = True
            self._timers.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self._writing:
            return  # _written() schedules the next batch
        acks, self._acks = self._acks, {}
        if self._archive is None or self._thread is None or not self.history.has_pending:
            self._finish(acks)
            return
        self._writing = True
        batch = self.history.take()
        self._thread.submit(partial(_timed_write, self._archive, batch), partial(self._written, batch, acks))

    def _written(self, batch: Batch, acks: Acks, result: tuple[int, float] | BaseException) -> None:
        self._writing = False
        if isinstance(result, BaseException):
            self._counters.commit_failures += 1
            self._continue_in_memory(batch, result)
        else:
            horizon, seconds = result
            self._counters.commits += 1
            self._counters.commit_seconds += seconds
            self.history.commit(batch, horizon=horizon)
        self._finish(acks)
        if self.history.has_pending or self._acks:
            self._schedule()

    def _finish(self, acks: Acks) -> None:
        self._committed(acks)
        seq = self.history.seq
        for waiter in [waiter for waiter in self._waiters if waiter[0] <= seq]:
            self._waiters.remove(waiter)
            if not waiter[1].done():
                waiter[1].set_result(None)

    async def wait_for_disk(self) -> None:
        """Wait until all events appended so far are committed."""
        if self.history.seq < self.history.last:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append((self.history.last, future))
            await future

    # ------------------------------------------------------------------ disk errors

    def _continue_in_memory(self, batch: Batch, problem: BaseException) -> None:
        path = self._archive.path if self._archive is not None else ""
        self._log.warning(
            "ragkit: the history cannot be written to '%s' (%s). It continues in memory and is lost at a restart. Free "
            "some space, or set --RagkitApp.history_dir. The server retries every minute.", path, problem,
        )  # fmt: skip
        self.history.begin_epoch(batch)
        self._timers.call_later(RETRY_SECONDS, self._retry)

    def _retry(self) -> None:
        if self._archive is not None and self._thread is not None:
            epoch, seq = secrets.token_hex(8), self.history.seq + MARGIN
            work = partial(self._archive.reset, epoch=epoch, seq=seq)
            self._thread.submit(work, partial(self._retried, epoch, seq))

    def _retried(self, epoch: str, seq: int, result: BaseException | None) -> None:
        if isinstance(result, BaseException):
            self._timers.call_later(RETRY_SECONDS, self._retry)
            return
        self._log.info("ragkit: the history is written to disk again")
        self.history.begin_epoch(epoch=epoch, seq=seq, durable=True)
        self._finish({})
        self._schedule()

    # ------------------------------------------------------------------ reading

    def fetch(self, session: ListenerSession) -> None:
        """Queue a read of the excerpt that a listener `wants`; repeated calls have no effect."""
        if session.wants is not None and session.wants is not self._reading:
            self._readers[session] = session.wants
            self._read_next()

    def _read_next(self) -> None:
        if self._archive is None or self._thread is None:
            return
        while self._reading is None and self._readers:
            session = next(iter(self._readers))
            wanted = self._readers.pop(session)
            if session.wants is wanted:  # it may have disconnected or want another excerpt
                self._reading = wanted
                work = partial(self._archive.read, wanted.after, wanted.until, wanted.topics, RUN_BYTES)
                self._thread.submit(work, partial(self._have_read, session, wanted))

    def _have_read(
        self, session: ListenerSession, wanted: Excerpt, result: tuple[list[bytes] | None, int] | BaseException
    ) -> None:
        self._reading = None
        if isinstance(result, BaseException):
            self._log.warning("ragkit: the history could not be read for a listener (%s); it gets a gap", result)
            session.feed(wanted, None, -1)
        else:
            session.feed(wanted, *result)
        self._fed(session)
        self._read_next()

    # ------------------------------------------------------------------ the end

    async def close(self) -> None:
        """Commit the remaining events and close the archive."""
        if self._archive is None or self._thread is None:
            return
        self._readers.clear()
        closed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.history.has_pending and not self._writing:
            self._flush()
        await self.wait_for_disk()

        def done(result: BaseException | None) -> None:
            if not closed.done():  # the caller has stopped waiting
                closed.set_result(result)

        self._thread.submit(self._archive.close, done)
        problem = await closed
        if isinstance(problem, BaseException):
            self._log.warning("ragkit: the history could not be closed (%s)", problem)
        self._archive = None
        await asyncio.to_thread(self._thread.stop)


def _timed_write(archive: Archive, batch: Batch) -> tuple[int, float]:
    began = time.perf_counter()
    return archive.write(batch), time.perf_counter() - began
