"""The publisher's thread: one event loop and one WebSocket to the hub.

Two tasks run in it. The *pump* moves events from the mailbox to the outbox and, if they cannot be sent, to the journal.
The *connector* repeatedly finds the server, connects, and exchanges messages until the connection is lost. Neither task
waits for the other, so events reach the journal even if the hub does not read.

The publisher's thread imports this module, so that the notebook does not wait for the import of websockets.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import random
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, WebSocketException

from ragkit.errors import AmbiguousServerError, ServerError
from ragkit.live.discovery import Server
from ragkit.live.handshake import CLOSE_SECONDS, RefusedError, closing, open_socket
from ragkit.live.journal import Journal
from ragkit.live.messages import (
    Ack,
    Cancel,
    EngineQuery,
    Error,
    Hello,
    Offer,
    Ping,
    Pong,
    Withdraw,
    decode_hub_message,
    encode,
)
from ragkit.live.outbox import Mailbox, Outbox
from ragkit.live.serving import QueryDispatcher, Send, Serving

POLL_SECONDS = 0.01  # between two checks of the mailbox while events arrive
AWAKE_SECONDS = 5.0  # without events, until the thread stops polling and has to be woken
TICK_SECONDS = 0.25
SEARCH_SECONDS = 3.0  # between two searches for a server
REFUSED_SECONDS = 60.0  # a wrong token or a missing extension has to be fixed by the user
FIRST_DELAY_SECONDS = 0.25
MAX_DELAY_SECONDS = 5.0  # the hub waits ten seconds before it counts the tasks of a lost publisher as failed
SPILL_SECONDS = 5.0  # events that the hub has not acknowledged after this time go to the journal
JOURNAL_PROGRESS_SECONDS = 1.0  # between two writes of progress events to the journal while disconnected
SEND_SECONDS = 60.0

_log = logging.getLogger("ragkit.live.publisher")


class Connection:
    """The pump and the connector; see the top of this module.

    Args:
        mailbox: Receives events and actions from other threads.
        outbox: Holds the events that the hub has not acknowledged.
        hello: The first message on each connection.
        find: Finds the server; called before each connection, because a server may restart at another address.
        journal_dir: Returns the folder for the journal.
    """

    def __init__(
        self,
        mailbox: Mailbox,
        outbox: Outbox,
        hello: Hello,
        *,
        find: Callable[[], Server],
        journal_dir: Callable[[], Path],
    ) -> None:
        self.outbox = outbox
        self.state = "looking for a server"
        self._mailbox = mailbox
        self._hello = hello
        self._find = find
        self._journal_dir = journal_dir
        self._loop = asyncio.get_running_loop()
        self._dispatcher = QueryDispatcher()
        self._socket: ClientConnection | None = None
        self._awake = asyncio.Event()
        self._outgoing = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stop = asyncio.Event()
        self._finishing = False
        self._serverless = False
        self._failed_attempts = 0
        self._progressed_at = self._stored_at = self._journal_from = self._loop.time()
        self._flushes: list[tuple[int, threading.Event]] = []
        self._warned: set[str] = set()
        self._sending: set[asyncio.Task[None]] = set()

    def _wake(self) -> None:
        # RuntimeError: the loop is closed; the mailbox has been emptied or close() empties it.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._awake.set)

    async def run(self) -> None:
        """Run until `stop`, or after `finish` until all events are safe; leave no events in memory."""
        threading.Thread(
            target=self._mailbox.wait_for_rings, args=(self._wake,), name="ragkit-publisher-bell", daemon=True
        ).start()
        pump = asyncio.create_task(self._pump())
        connector = asyncio.create_task(self._keep_connected())
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({pump, connector, stop}, return_when=asyncio.FIRST_COMPLETED)
            for task in (pump, connector):
                if task.done() and (error := task.exception()):
                    _log.error("The publisher has stopped because of an error in ragkit", exc_info=error)
        finally:
            pump.cancel()
            self._mailbox.close()
            self._store_remaining()
            connector.cancel()
            await asyncio.wait({pump, connector}, timeout=2 * CLOSE_SECONDS)
            stop.cancel()

    # ------------------------------------------------------------- called through the mailbox

    def offer(self, serving: Serving) -> None:
        """Offer an engine, now and after every reconnection."""
        self._dispatcher.offer(serving)
        self._send_soon(Offer(engine=serving.engine))

    def update(self, serving: Serving) -> None:
        """Send a new description of an engine, if it is still on offer."""
        if self._dispatcher.has(serving):
            self._send_soon(Offer(engine=serving.engine))

    def withdraw(self, serving: Serving) -> None:
        """Withdraw the offer of an engine."""
        if self._dispatcher.withdraw(serving):
            self._send_soon(Withdraw(engine_id=serving.engine.id))

    def flush(self, safe: threading.Event) -> None:
        """Set ``safe`` when all events so far are acknowledged or in the journal; retry to connect now."""
        self._flushes.append((self.outbox.added, safe))
        self._hurry.set()

    def finish(self) -> None:
        """Stop when all events are safe, or after one more failed attempt to connect."""
        self._finishing = True
        self._hurry.set()

    def stop(self) -> None:
        """Stop now and write the remaining events to the journal."""
        self._stop.set()

    # ------------------------------------------------------------------------------- the pump

    async def _pump(self) -> None:
        quiet_since = self._loop.time()
        while True:
            if self._empty_mailbox(1_000):
                quiet_since = self._loop.time()
                self._outgoing.set()
            self._check_outbox()
            if len(self._mailbox.items) >= 1_000:
                await asyncio.sleep(0)
            elif self._loop.time() - quiet_since < AWAKE_SECONDS:
                await asyncio.sleep(POLL_SECONDS)
            else:
                await self._sleep()

    async def _sleep(self) -> None:
        idle = not self.outbox.has_waiting and (self.outbox.is_empty or self.outbox.journal is not None)
        self._awake.clear()
        self._mailbox.asleep = True
        if not self._mailbox.items:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if idle and not self._flushes else TICK_SECONDS):
                    await self._awake.wait()
        self._mailbox.asleep = False

    def _empty_mailbox(self, limit: int) -> int:
        items, taken = self._mailbox.items, 0
        if items and self.outbox.is_empty:
            self._progressed_at = self._loop.time()
        while items and taken < limit:
            item = items.popleft()
            taken += 1
            if callable(item):
                item()
            else:
                self.outbox.add(*item)
        return taken

    def _check_outbox(self) -> None:
        outbox, now = self.outbox, self._loop.time()
        try:
            if now >= self._journal_from:
                self._store(now)
        except OSError as problem:
            self._journal_from = now + SEARCH_SECONDS
            self._warn_once(
                "journal",
                f"Events cannot be written to the journal in '{self._journal_dir()}' ({problem}). They stay in memory; "
                "when the queue is full, the oldest are lost. Free some space, or set RAGKIT_JOURNAL_DIR.",
            )
        outbox.shed()
        if outbox.dropped:
            self._warn_once("dropped", "Events were lost because the queue was full; see Publisher.counts.")
        for flush in [flush for flush in self._flushes if outbox.is_safe(flush[0])]:
            self._flushes.remove(flush)
            flush[1].set()
        done = not self._mailbox.items and outbox.is_safe(outbox.added)
        # With a connection, the journal is sent before stopping; without one, the server extension adopts it later.
        if self._finishing and done and (outbox.journal is None or self._socket is None):
            self._stop.set()

    def _store(self, now: float) -> None:
        outbox = self.outbox
        stuck = not outbox.is_empty and now - self._progressed_at > SPILL_SECONDS
        if outbox.journal is None:
            if not outbox.is_empty and (self._serverless or stuck or outbox.is_full):
                self._open_journal()
                self._outgoing.set()
            return
        disconnected = self._socket is None
        can_wait = disconnected and not (outbox.has_urgent or self._flushes or self._finishing)
        if outbox.has_waiting and (not can_wait or now - self._stored_at > JOURNAL_PROGRESS_SECONDS):
            if disconnected:
                outbox.compact()
            outbox.store()
            self._stored_at = now
            self._outgoing.set()

    def _open_journal(self) -> None:
        journal = Journal(self._journal_dir(), self._hello)
        try:
            self.outbox.open_journal(journal)
        except OSError:
            if self.outbox.journal is None:
                journal.remove()
            raise
        self._stored_at = self._loop.time()
        if self._serverless:
            self.state = f"journal {journal.path} ({self.state})"

    def _store_remaining(self) -> None:
        while self._empty_mailbox(1_000):
            pass
        try:
            if self.outbox.journal is None and not self.outbox.is_empty:
                self._open_journal()
            self.outbox.store()
        except OSError as problem:
            lost = self.outbox.counts()
            self.outbox.dropped += lost.waiting + lost.unacknowledged
            _log.error(
                "%d events were lost at exit: the server did not accept them, and the journal in '%s' could not be "
                "written (%s).", lost.waiting + lost.unacknowledged, self._journal_dir(), problem,
            )  # fmt: skip
        if self.outbox.journal is not None:
            self.outbox.journal.close()
            self.outbox.journal = None
        for _, safe in self._flushes:
            safe.set()
        self.state = "closed"

    # ------------------------------------------------------------------------------ the connector

    async def _keep_connected(self) -> None:
        while True:
            delay = await self._attempt()
            if self._finishing:
                self._stop.set()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._hurry.wait()
            self._hurry.clear()

    async def _attempt(self) -> float:
        """Connect and stay connected until the connection is lost; return the seconds until the next attempt."""
        try:
            server = self._find()
        except (ServerError, OSError, ValueError) as problem:  # OSError, ValueError: an invalid runtime file
            # Scripts often run without a server, so that is no warning; the user has to resolve an ambiguity.
            if isinstance(problem, AmbiguousServerError):
                self._warn_once("find", str(problem))
            self._serverless = True
            self._set_state(f"looking for a server: {problem}")
            return SEARCH_SECONDS
        self._serverless = False
        began = self._loop.time()
        try:
            await self._connect(server)
        except RefusedError as problem:
            self._set_state(f"refused: {problem}")
            self._warn_once("refused", str(problem))
            return REFUSED_SECONDS
        except (OSError, WebSocketException, ServerError, RuntimeError, ValueError) as problem:
            # RuntimeError: no thread to resolve a name, at interpreter exit. ValueError: an invalid host name.
            self._set_state(f"no connection to {server.url}: {str(problem) or type(problem).__name__}")
        if self._loop.time() - began > MAX_DELAY_SECONDS:
            self._failed_attempts = 0
        self._failed_attempts += 1
        delay = min(FIRST_DELAY_SECONDS * 2 ** min(self._failed_attempts - 1, 10), MAX_DELAY_SECONDS)
        return float(delay) * random.uniform(0.5, 1.5)  # jitter: many kernels may reconnect to the same server

    async def _connect(self, server: Server) -> None:
        socket, welcome = await open_socket(server, self._hello)
        async with closing(socket):
            for engine in self._dispatcher.engines:
                await socket.send(encode(Offer(engine=engine)), text=True)
            self.outbox.resume(welcome.n)
            self._progressed_at = self._loop.time()
            self._warned.discard("refused")
            self._socket = socket
            self._set_state(f"connected to {server.url}")
            tasks = {asyncio.create_task(self._send_events(socket)), asyncio.create_task(self._receive(socket))}
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._socket = None
                self._dispatcher.lost()
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            task.result()

    async def _send_events(self, socket: ClientConnection) -> None:
        while True:
            frames = self.outbox.take()
            for frame in frames:
                await socket.send(frame, text=True)
            if not frames:
                self._outgoing.clear()
                await self._outgoing.wait()

    async def _receive(self, socket: ClientConnection) -> None:
        while True:
            frame = await socket.recv()
            try:
                message = decode_hub_message(frame)
            except msgspec.MsgspecError as problem:
                _log.debug("Ignored a message of the hub that this version does not know: %s", problem)
                continue
            match message:
                case Ack(n=n):
                    self.outbox.acknowledge(n)
                    self._progressed_at = self._loop.time()
                    self._outgoing.set()
                    self._awake.set()
                case EngineQuery():
                    self._dispatcher.dispatch(message, self._sender(socket))
                case Cancel(id=id):
                    self._dispatcher.cancel(id)
                case Ping(id=id):
                    await socket.send(encode(Pong(id=id)), text=True)
                case Error(content=content):
                    _log.warning("The hub did not accept a message: %s (%s)", content.message, content.code)

    # ---------------------------------------------------------------------------------- sending

    def _sender(self, socket: ClientConnection) -> Send:
        async def send(message: msgspec.Struct) -> None:
            await socket.send(encode(message), text=True)

        def send_and_wait(message: msgspec.Struct) -> None:
            coroutine = send(message)
            try:
                asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(SEND_SECONDS)
            except (ConnectionClosed, concurrent.futures.CancelledError, TimeoutError, RuntimeError) as problem:
                coroutine.close()
                raise ConnectionError("The connection to the hub is lost.") from problem

        return send_and_wait

    def _send_soon(self, message: Offer | Withdraw) -> None:
        if (socket := self._socket) is not None:
            task = self._loop.create_task(self._send_one(socket, message))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def _send_one(self, socket: ClientConnection, message: Offer | Withdraw) -> None:
        with contextlib.suppress(ConnectionClosed):  # engines are offered again after a reconnection
            await socket.send(encode(message), text=True)

    def _set_state(self, state: str) -> None:
        if self._serverless and self.outbox.journal is not None:
            state = f"journal {self.outbox.journal.path} ({state})"
        self.state = state

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            _log.warning(message)
