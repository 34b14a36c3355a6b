"""The publisher's thread: one event loop, one WebSocket to the hub.

Two tasks. The *pump* empties the mailbox into the outbox, and the outbox into the journal when there is
no other way. The *connector* finds the server, connects, and talks until the connection is lost, over and
over. Neither waits for the other, so a hub that does not read never keeps events from being safe.

Imported in that thread: a notebook need not wait for websockets.
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

GLANCE_SECONDS = 0.01  # between two looks into the mailbox while events come
AWAKE_SECONDS = 5.0  # without events, before the thread sleeps and has to be woken
TICK_SECONDS = 0.25
LOOK_SECONDS = 3.0  # between two searches when there is no server
REFUSED_SECONDS = 60.0  # a token or a missing extension does not mend itself
FIRST_DELAY_SECONDS = 0.25
MAX_DELAY_SECONDS = 5.0  # the hub gives a lost publisher ten before its tasks count as failed
SPILL_SECONDS = 5.0  # what the hub has not acknowledged by then goes to the journal
JOURNAL_PROGRESS_SECONDS = 1.0  # progress that nobody watches is written down this often
SEND_SECONDS = 60.0

_log = logging.getLogger("ragkit.live.publisher")


class Connection:
    """See the top of this module.

    Args:
        mailbox: What callers leave.
        outbox: What is not the hub's yet.
        hello: Who we are.
        find: Finds the server, anew before each connection: it may have come back elsewhere.
        journal_dir: Says where the journal goes.
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
        self._moved_at = self._stored_at = self._journal_from = self._loop.time()
        self._flushes: list[tuple[int, threading.Event]] = []
        self._warned: set[str] = set()
        self._sending: set[asyncio.Task[None]] = set()

    def _wake(self) -> None:
        with contextlib.suppress(
            RuntimeError
        ):  # the loop is closed: put_away() has emptied the mailbox, or close() will
            self._loop.call_soon_threadsafe(self._awake.set)

    async def run(self) -> None:
        """Work until `stop`, or until all is done after `finish`; leave nothing in memory."""
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
            self._put_away()
            connector.cancel()
            await asyncio.wait({pump, connector}, timeout=2 * CLOSE_SECONDS)
            stop.cancel()

    # ------------------------------------------------------------- called through the mailbox

    def offer(self, serving: Serving) -> None:
        """Put an engine on offer, now and after every reconnection."""
        self._dispatcher.offer(serving)
        self._send_soon(Offer(engine=serving.engine))

    def update(self, serving: Serving) -> None:
        """Describe an engine anew, if it is still on offer."""
        if self._dispatcher.has(serving):
            self._send_soon(Offer(engine=serving.engine))

    def withdraw(self, serving: Serving) -> None:
        """Take it off offer."""
        if self._dispatcher.withdraw(serving):
            self._send_soon(Withdraw(engine_id=serving.engine.id))

    def flush(self, safe: threading.Event) -> None:
        """Set ``safe`` when all that was published before is the hub's or in the journal; hurry."""
        self._flushes.append((self.outbox.added, safe))
        self._hurry.set()

    def finish(self) -> None:
        """Stop when all is safe, or when one more attempt to connect has failed."""
        self._finishing = True
        self._hurry.set()

    def stop(self) -> None:
        """Stop now; what is left goes to the journal."""
        self._stop.set()

    # ------------------------------------------------------------------------------- the pump

    async def _pump(self) -> None:
        quiet_since = self._loop.time()
        while True:
            if self._empty_mailbox(1_000):
                quiet_since = self._loop.time()
                self._outgoing.set()
            self._look_after_outbox()
            if len(self._mailbox.items) >= 1_000:
                await asyncio.sleep(0)
            elif self._loop.time() - quiet_since < AWAKE_SECONDS:
                await asyncio.sleep(GLANCE_SECONDS)
            else:
                await self._sleep()

    async def _sleep(self) -> None:
        resting = not self.outbox.has_waiting and (self.outbox.is_empty or self.outbox.journal is not None)
        self._awake.clear()
        self._mailbox.asleep = True
        if not self._mailbox.items:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if resting and not self._flushes else TICK_SECONDS):
                    await self._awake.wait()
        self._mailbox.asleep = False

    def _empty_mailbox(self, limit: int) -> int:
        items, taken = self._mailbox.items, 0
        if items and self.outbox.is_empty:
            self._moved_at = self._loop.time()
        while items and taken < limit:
            item = items.popleft()
            taken += 1
            if callable(item):
                item()
            else:
                self.outbox.add(*item)
        return taken

    def _look_after_outbox(self) -> None:
        outbox, now = self.outbox, self._loop.time()
        try:
            if now >= self._journal_from:
                self._store(now)
        except OSError as problem:
            self._journal_from = now + LOOK_SECONDS
            self._warn_once(
                "journal",
                f"Events cannot be written to the journal in '{self._journal_dir()}' ({problem}). They stay in memory; "
                "when it is full, the oldest will be lost. Free some space, or set RAGKIT_JOURNAL_DIR.",
            )
        outbox.shed()
        if outbox.dropped:
            self._warn_once("dropped", "Events were lost: there was no room for them; see Publisher.counts.")
        for flush in [flush for flush in self._flushes if outbox.is_safe(flush[0])]:
            self._flushes.remove(flush)
            flush[1].set()
        done = not self._mailbox.items and outbox.is_safe(outbox.added)
        # A journal goes over the socket now if it can; if not, the extension adopts it.
        if self._finishing and done and (outbox.journal is None or self._socket is None):
            self._stop.set()

    def _store(self, now: float) -> None:
        outbox = self.outbox
        stuck = not outbox.is_empty and now - self._moved_at > SPILL_SECONDS
        if outbox.journal is None:
            if not outbox.is_empty and (self._serverless or stuck or outbox.is_full):
                self._open_journal()
                self._outgoing.set()
            return
        unwatched = self._socket is None
        patient = unwatched and not (outbox.has_urgent or self._flushes or self._finishing)
        if outbox.has_waiting and (not patient or now - self._stored_at > JOURNAL_PROGRESS_SECONDS):
            if unwatched:
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

    def _put_away(self) -> None:
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
                "%d events were lost at the end: the server did not take them, and the journal in '%s' could not be "
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
        """Connect and stay so as long as it goes; return the seconds to wait before the next attempt."""
        try:
            server = self._find()
        except (ServerError, OSError, ValueError) as problem:  # the last two: a runtime file holds nonsense
            # Not finding one is an everyday matter for a script; having to choose is the user's.
            if isinstance(problem, AmbiguousServerError):
                self._warn_once("find", str(problem))
            self._serverless = True
            self._set_state(f"looking for a server: {problem}")
            return LOOK_SECONDS
        self._serverless = False
        began = self._loop.time()
        try:
            await self._converse(server)
        except RefusedError as problem:
            self._set_state(f"refused: {problem}")
            self._warn_once("refused", str(problem))
            return REFUSED_SECONDS
        except (OSError, WebSocketException, ServerError, RuntimeError, ValueError) as problem:
            # RuntimeError: no thread to resolve a name, at interpreter exit. ValueError: an impossible host name.
            self._set_state(f"no connection to {server.url}: {str(problem) or type(problem).__name__}")
        if self._loop.time() - began > MAX_DELAY_SECONDS:
            self._failed_attempts = 0
        self._failed_attempts += 1
        delay = min(FIRST_DELAY_SECONDS * 2 ** min(self._failed_attempts - 1, 10), MAX_DELAY_SECONDS)
        return float(delay) * random.uniform(0.5, 1.5)  # many kernels lost the same server at the same moment

    async def _converse(self, server: Server) -> None:
        socket, welcome = await open_socket(server, self._hello)
        async with closing(socket):
            for engine in self._dispatcher.engines:
                await socket.send(encode(Offer(engine=engine)), text=True)
            self.outbox.resume(welcome.n)
            self._moved_at = self._loop.time()
            self._warned.discard("refused")
            self._socket = socket
            self._set_state(f"connected to {server.url}")
            talking = {asyncio.create_task(self._send_events(socket)), asyncio.create_task(self._receive(socket))}
            try:
                done, _ = await asyncio.wait(talking, return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._socket = None
                self._dispatcher.lost()
                for task in talking:
                    task.cancel()
                await asyncio.gather(*talking, return_exceptions=True)
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
                _log.debug("The hub said something that this version does not know: %s", problem)
                continue  # a newer hub; what it adds may be ignored
            match message:
                case Ack(n=n):
                    self.outbox.acknowledge(n)
                    self._moved_at = self._loop.time()
                    self._outgoing.set()
                    self._awake.set()
                case EngineQuery():
                    self._dispatcher.take(message, self._sender(socket))
                case Cancel(id=id):
                    self._dispatcher.cancel(id)
                case Ping(id=id):
                    await socket.send(encode(Pong(id=id)), text=True)
                case Error(content=content):
                    _log.warning("The hub did not accept a message: %s (%s)", content.message, content.code)

    # ----------------------------------------------------------------------------- small things

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
        with contextlib.suppress(ConnectionClosed):  # it is said again after the reconnection
            await socket.send(encode(message), text=True)

    def _set_state(self, state: str) -> None:
        if self._serverless and self.outbox.journal is not None:
            state = f"journal {self.outbox.journal.path} ({state})"
        self.state = state

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            _log.warning(message)
