"""The hub: everybody who is connected, and what passes between them.

`WebSocketManager` joins the parts: `History` (what was broadcast), `Commits` (how it gets safe),
`Engines` (who answers), sessions (what each party says) and transports (the sockets). It does no I/O
itself: a `Transport` writes bytes, ``timers`` is an event loop or a fake.

Broadcasts are committed to the history in batches; after each, every listener that is behind is
*pumped*: it gets all that it has not had in as few writes as possible, made once for everybody at the
same place. A socket whose buffer is full is left alone until it has drained, so a slow listener costs
one flag check per batch, and one that raises is dropped on the spot. Large audiences are pumped in
slices, so that the server's other work gets its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import Struct

from ragkit.errors import ServerError
from ragkit.live.messages import (
    Broadcast,
    Engine,
    EnginesChanged,
    Error,
    Hello,
    Offer,
    Origin,
    Publish,
    Response,
    ResponseDelta,
    Since,
    Welcome,
    Withdraw,
    to_broadcast,
)
from ragkit_server.history.archive import Archive
from ragkit_server.history.log import History
from ragkit_server.hub.commits import Acks, Commits
from ragkit_server.hub.counters import Counters
from ragkit_server.hub.engines import Engines
from ragkit_server.hub.inbound import RejectedError, check_event
from ragkit_server.hub.ports import RunningLoop, SessionSocket, Thread, Timer, Timers, Transport
from ragkit_server.hub.sessions import ListenerSession, PublisherSession, SessionState
from ragkit_server.transport.messages import MessageTransport, message_sender

Session = ListenerSession | PublisherSession

SLICE = 500  # listeners pumped before other work of the event loop gets its turn: some 5 ms


class WebSocketManager:
    """Listeners, publishers, and what passes between them.

    Other code in the server reaches the one of a running Jupyter server as
    ``serverapp.web_app.settings["ragkit_manager"]``, and calls `connect`, `disconnect` and `broadcast`.

    Args:
        history: The log to broadcast from; an empty one in memory by default.
        timers: An event loop; everything here runs on its thread. By default the loop that runs when it is needed.
        log: Where events of interest to the server's operator go; by default the logger ``ragkit_server``.
        publisher_grace_seconds: How long a publisher that went away may take to come back before
            its running tasks are broadcast as failed.
        max_queue_bytes: What may wait for one connection beside broadcasts.
        query_timeout_seconds: See `Engines`.
        start_timeout_seconds: See `Engines`.
        max_queries_per_listener: See `Engines`.
        max_queries_per_minute: See `Engines`.
        archive: Where the history is kept; in memory without it.
        thread: Where the archive is worked with.
    """

    def __init__(
        self,
        *,
        history: History | None = None,
        timers: Timers | None = None,
        log: logging.Logger | None = None,
        publisher_grace_seconds: float = 10,
        max_queue_bytes: int = 2**20,
        query_timeout_seconds: float = 120,
        start_timeout_seconds: float = 120,
        max_queries_per_listener: int = 8,
        max_queries_per_minute: float = 120,
        archive: Archive | None = None,
        thread: Thread | None = None,
    ) -> None:
        self.history = history = history if history is not None else History()
        timers = timers if timers is not None else RunningLoop()
        log = log if log is not None else logging.getLogger("ragkit_server")
        self.counters = Counters()
        self.commits = Commits(
            history,
            committed=self._committed,
            fed=self._pump,
            timers=timers,
            log=log,
            counters=self.counters,
            archive=archive,
            thread=thread,
        )
        self.engines = Engines(
            send_to_asker=self._send_to_asker,
            send_to_publisher=self._send_to_publisher,
            changed=self._engines_changed,
            timers=timers,
            query_timeout_seconds=query_timeout_seconds,
            start_timeout_seconds=start_timeout_seconds,
            max_queries_per_listener=max_queries_per_listener,
            max_queries_per_minute=max_queries_per_minute,
        )
        self._timers = timers
        self._log = log
        self._grace_seconds = publisher_grace_seconds
        self._max_queue_bytes = max_queue_bytes
        self._listeners: dict[ListenerSession, SessionSocket] = {}
        # The same, in a row that is made anew when somebody comes or goes. For each broadcast, its pairs would make
        # Python look for garbage in all that thousands of connections hold: half a second, every few seconds.
        self._audience: list[tuple[ListenerSession, SessionSocket]] | None = None
        self._by_websocket: dict[int, ListenerSession] = {}  # by the id of what was connected
        self._publishers: dict[PublisherSession, SessionSocket] = {}
        self._ready: dict[str, PublisherSession] = {}  # by the publisher's own id
        self._graces: dict[str, Timer] = {}
        self._closing: tuple[int, str] | None = None
        self._empty = asyncio.Event()

    # ------------------------------------------------------------------ listeners

    def connect(self, websocket: Transport | Any, *, since: Since | None = None) -> ListenerSession:
        """Add a listener; it gets every broadcast from now on (or ``since``), in order.

        Args:
            websocket: Where the broadcasts go: an open WebSocket with ``write_message`` (a Tornado handler),
                ``send_text`` or ``send_json`` (Starlette, FastAPI), or a `Transport`. Each message is one text. What
                comes in on it stays with whoever reads it.
            since: The last event that it has seen.

        Returns:
            Its session; the one that there is if it is connected already.

        Raises:
            TypeError: It is none of these.
        """
        if (known := self._by_websocket.get(id(websocket))) is not None:
            return known
        session = ListenerSession(self.history, since=since, max_reply_bytes=self._max_queue_bytes)
        self._listeners[session] = SessionSocket(self._transport(websocket, session))
        self._by_websocket[id(websocket)] = session
        self._audience = None
        self.counters.connections["listener"] += 1
        if self._closing is not None:
            session.close(*self._closing)
        self._pump(session)
        return session

    def _transport(self, websocket: Transport | Any, session: ListenerSession) -> Transport:
        if (send := message_sender(websocket)) is not None:
            return MessageTransport(
                websocket, send, drained=lambda: self.drained(session), lost=lambda: self.disconnect(session)
            )
        write = getattr(websocket, "write", None)
        if not callable(write) or inspect.iscoroutinefunction(write) or not callable(getattr(websocket, "close", None)):
            raise TypeError(
                f"{type(websocket).__name__} is no WebSocket that the hub can write to: it needs write_message (as a "
                "Tornado handler has), send_text or send_json (as Starlette's has), or write and close of "
                "ragkit_server.hub.ports.Transport."
            )
        return websocket

    def disconnect(self, session: Session | Transport | Any) -> None:
        """Forget a connection; safe at any time, also in the middle of a broadcast, also twice.

        Args:
            session: What `connect` or `attach` returned, or the WebSocket that was given to `connect`.
        """
        if not isinstance(session, ListenerSession | PublisherSession):
            if (known := self._by_websocket.get(id(session))) is None:
                return
            session = known
        session.closed()
        if isinstance(session, ListenerSession):
            if (socket := self._listeners.pop(session, None)) is not None:
                given = (
                    socket.transport.websocket if isinstance(socket.transport, MessageTransport) else socket.transport
                )
                self._by_websocket.pop(id(given), None)
                self._audience = None
                self.engines.asker_gone(session)
        elif self._publishers.pop(session, None) is not None:
            self._publisher_gone(session)
        if not self._listeners and not self._publishers:
            self._empty.set()

    async def broadcast(self, message: Broadcast | Mapping[str, Any]) -> None:
        """Send a message to every listener: ``await manager.broadcast({"type": "follow_up_questions", ...})``.

        For code in the server; a notebook calls ``ragkit.broadcast``. Returns when the event is committed: it has its
        number, is safe on disk where the history is kept there, and is on its way to whoever listens. A listener that
        is slow or dead neither delays nor breaks this or another one.

        Args:
            message: One of the broadcasts in `ragkit.live.messages`, or the same as a dict with its ``type``. The hub
                adds ``epoch``, ``seq`` and ``time``, and no ``origin``.

        Raises:
            InputError: It is not a message that may be broadcast; the reason names the key.
            ServerError: The server is stopping.
            RuntimeError: This is not the server's event loop.
        """
        event = to_broadcast(message)
        if isinstance(self._timers, asyncio.AbstractEventLoop) and self._timers is not asyncio.get_running_loop():
            raise RuntimeError(
                "Broadcast in the server's event loop: from another thread with "
                "asyncio.run_coroutine_threadsafe(manager.broadcast(...), loop)."
            )
        if self._closing is not None:
            raise ServerError("The server is stopping and broadcasts nothing more. Publish again when it is back.")
        self.append(event)
        await self.commits.wait_for_disk()

    def append(
        self, event: Broadcast, *, publisher: str = "", origin: Origin | msgspec.UnsetType = msgspec.UNSET
    ) -> Broadcast:
        """Stamp an event, which has been checked, and send it to every listener soon: when it is committed.

        Returns:
            The event with its ``epoch`` and ``seq``.
        """
        stamped = self.commits.append(event, publisher=publisher, origin=origin)
        self.counters.broadcasts[str(type(event).__struct_config__.tag)] += 1
        return stamped

    def _committed(self, acks: Acks) -> None:
        for session, n in acks.items():
            session.acknowledge(n)
            self._pump(session)
        if self._audience is None:
            self._audience = list(self._listeners.items())
        self._pump_slice(self._audience, 0)

    def _pump_slice(self, listeners: list[tuple[ListenerSession, SessionSocket]], start: int) -> None:
        end = start + SLICE
        runs, seq = self.history.runs, self.history.seq
        writes = size = 0
        for session, socket in listeners[start:end]:
            # The hub's inner loop. Nearly always: a listener that keeps up, as others do, and has nothing coming to
            # it alone. What they all get has been put together for the first of them.
            if session.plain and not socket.blocked and (run := runs.get(session.cursor)) is not None and run[1] == seq:
                session.cursor = seq
                writes += 1
                size += len(run[0])
                try:
                    socket.blocked = not socket.write(run[0])
                except Exception as problem:
                    self._drop(session, socket, problem)
            else:
                self._pump_socket(session, socket)
        self.counters.writes += writes
        self.counters.bytes += size
        if end < len(listeners):
            self._timers.call_soon(self._pump_slice, listeners, end)

    # ------------------------------------------------------------------ bytes out

    def wake(self, session: Session) -> None:
        """Write what the session has to say; call it after anything was said to the session."""
        self._pump(session)

    def drained(self, session: Session) -> None:
        """Go on writing: the socket's buffer has emptied."""
        if (socket := self._socket_of(session)) is not None:
            socket.blocked = socket.closing
            self._pump(session)

    def _socket_of(self, session: Session) -> SessionSocket | None:
        if isinstance(session, ListenerSession):
            return self._listeners.get(session)
        return self._publishers.get(session)

    def _pump(self, session: Session) -> None:
        if (socket := self._socket_of(session)) is not None:
            self._pump_socket(session, socket)

    def _pump_socket(self, session: Session, socket: SessionSocket) -> None:
        if socket.blocked:
            return
        try:
            while data := session.data_to_send():
                self.counters.writes += 1
                self.counters.bytes += len(data)
                if not socket.write(data):
                    socket.blocked = True
                    return
            if session.waits:
                self._look_after(session, socket)
        except Exception as problem:
            self._drop(session, socket, problem)

    def _drop(self, session: Session, socket: SessionSocket, problem: Exception) -> None:
        # Whatever is wrong with this connection must not reach the others.
        self._log.debug("ragkit: a connection was dropped: %r", problem)
        self.counters.dropped += 1
        self.disconnect(session)
        with contextlib.suppress(Exception):  # it is broken already
            socket.transport.close(1011, "the connection broke")

    def _look_after(self, session: Session, socket: SessionSocket) -> None:
        if session.close_code is not None:
            socket.blocked = True
            socket.closing = True
            socket.transport.close(*session.close_code)
        elif isinstance(session, ListenerSession):
            self.commits.fetch(session)

    def _send_to_asker(self, session: ListenerSession, message: Struct) -> None:
        if isinstance(message, Response | Error):
            self.counters.replies[message.content.code if isinstance(message, Error) else "response"] += 1
        session.reply(message)
        self._pump(session)

    def _send_to_publisher(self, session: PublisherSession, message: Struct) -> bool:
        taken = session.send(message)
        self._pump(session)
        return taken

    # ------------------------------------------------------------------ publishers

    def attach(self, transport: Transport) -> PublisherSession:
        """Add a publisher's connection."""
        session = PublisherSession(max_queue_bytes=self._max_queue_bytes)
        self._publishers[session] = SessionSocket(transport)
        self.counters.connections["publisher"] += 1
        if self._closing is not None:
            session.close(*self._closing)
            self._pump(session)
        return session

    def receive(self, session: PublisherSession, frame: str | bytes) -> None:
        """Act upon one frame from a publisher."""
        if session.state in (SessionState.CLOSING, SessionState.CLOSED):
            return  # not acknowledged, so it will be sent again, to the next connection or server
        match session.receive(frame):
            case Hello() as hello:
                self._welcome(session, hello)
            case Publish() as publish:
                self._publish(session, publish)
            case Offer() as offer:
                if (problem := self.engines.offer(session, offer)) is not None:
                    session.send(problem)
            case Withdraw(engine_id=engine_id):
                self.engines.withdraw(session, engine_id)
            case Response() | ResponseDelta() | Error() as answer:
                self.engines.answer(session, answer)
        self._pump(session)

    def _welcome(self, session: PublisherSession, hello: Hello) -> None:
        if (older := self._ready.pop(hello.publisher, None)) is not None:
            # It has come back before its old socket was found to be dead.
            self.engines.publisher_gone(older)
            older.close(1008, "replaced by a newer connection of this publisher")
            self._pump(older)
        if (grace := self._graces.pop(hello.publisher, None)) is not None:
            grace.cancel()
        self._ready[hello.publisher] = session
        session.send(Welcome(n=self.history.publishers.last(hello.publisher), epoch=self.history.epoch))

    def _publish(self, session: PublisherSession, message: Publish) -> None:
        if session.hello is not None:
            try:
                self.adopt(session.hello, message)
            except RejectedError as rejected:
                session.send(rejected.reply)
        self.commits.acknowledge(session, message.n)

    def adopt(self, hello: Hello, message: Publish) -> bool:
        """Broadcast a publisher's event unless it has come before; return whether it is new.

        Raises:
            RejectedError: It is no event that a publisher may broadcast.
        """
        check_event(message.event)
        if not self.history.publishers.is_new(hello.publisher, message.n):
            self.counters.repeats += 1
            return False
        self.append(message.event, publisher=hello.publisher, origin=hello.origin)
        return True

    def _publisher_gone(self, session: PublisherSession) -> None:
        self.engines.publisher_gone(session)
        if session.id and self._ready.get(session.id) is session:
            del self._ready[session.id]
            self.expect(session.id)

    def expect(self, publisher: str) -> None:
        """Give a publisher that is not here the grace period to come back; then its tasks failed."""
        if publisher in self._ready or publisher in self._graces or self._closing is not None:
            return
        self._graces[publisher] = self._timers.call_later(self._grace_seconds, self._give_up, publisher)

    def _give_up(self, publisher: str) -> None:
        self._graces.pop(publisher, None)
        if self.history.seq < self.history.last:  # the disk is slow; what it waits for may be the end of a task
            self.expect(publisher)
            return
        for task in self.history.state.live_tasks_of(publisher):
            self.append(
                msgspec.structs.replace(
                    task,
                    state="failed",
                    time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                    message="The process that ran this task went away. Run it again: it goes on from there.",
                ),
                publisher=publisher,
            )

    def resume(self) -> None:
        """Go on from what the history tells of an earlier life of the server: nobody is here yet."""
        if self.history.state.engines:
            self._engines_changed([])
        for publisher, _ in self.history.state.live_tasks():
            self.expect(publisher)

    def _engines_changed(self, engines: list[Engine]) -> None:
        self.append(EnginesChanged(engines=engines))

    @property
    def listeners(self) -> Collection[SessionSocket]:
        """The connections of all who listen."""
        return self._listeners.values()

    @property
    def publishers(self) -> list[Origin]:
        """Who is connected to publish."""
        return [session.hello.origin for session in self._ready.values() if session.hello is not None]

    # ------------------------------------------------------------------ the end

    async def close(
        self, *, code: int = 1001, reason: str = "the server is stopping", timeout_seconds: float = 2
    ) -> None:
        """Close every connection after what is queued for it; return when all have gone, or in time."""
        self._closing = (code, reason)
        for grace in self._graces.values():
            grace.cancel()
        self._graces.clear()
        with contextlib.suppress(TimeoutError):  # a disk that hangs must not keep the server from ending
            await asyncio.wait_for(self.commits.wait_for_disk(), timeout_seconds)
        sessions: list[Session] = [*self._listeners, *self._publishers]
        self._empty.clear()
        for session in sessions:
            session.close(code, reason)
            self._pump(session)
        if self._listeners or self._publishers:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_seconds)
        for session in sessions:
            socket = self._socket_of(session)
            if socket is not None and not socket.closing:  # it has not even taken what was queued for it
                socket.transport.close(code, reason)
            self.disconnect(session)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.commits.close(), timeout_seconds)
