"""The hub: connects listeners and publishers.

`WebSocketManager` combines `History` (the log of broadcasts), `Commits` (writing it to disk), `Engines` (routing of
queries), sessions (the protocol of each connection) and transports (the sockets). It does no I/O itself: a `Transport`
writes bytes, and ``timers`` is an event loop or a fake.

Broadcasts are committed to the history in batches. After each batch, every listener that is behind is *pumped*: the
events that it has not received are written in as few writes as possible, and the bytes are built once for all listeners
at the same position. A socket whose buffer is full is skipped until it has drained, so a slow listener costs one flag
check per batch. A socket that raises an exception is dropped. Many listeners are pumped in slices, so that the event
loop can do other work in between.
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

SLICE = 500  # listeners pumped per turn of the event loop: about 5 ms


class WebSocketManager:
    """Connects listeners and publishers, and routes messages between them.

    Other code in the server gets the manager of a running Jupyter server with
    ``serverapp.web_app.settings["ragkit_manager"]`` and calls `connect`, `disconnect` and `broadcast`.

    Args:
        history: The log to broadcast from; an empty one in memory by default.
        timers: The event loop, in whose thread all methods run; by default the running loop.
        log: Logs events for the server's operator; by default the logger ``ragkit_server``.
        publisher_grace_seconds: How long a publisher may be disconnected before its running tasks are broadcast as
            failed.
        max_queue_bytes: How many bytes may be queued for one connection, not counting broadcasts.
        query_timeout_seconds: See `Engines`.
        start_timeout_seconds: See `Engines`.
        max_queries_per_listener: See `Engines`.
        max_queries_per_minute: See `Engines`.
        archive: Stores the history on disk; None to keep it in memory.
        thread: Runs the operations of the archive.
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
        # The same as a list, rebuilt when a listener connects or disconnects. Building the pairs for each broadcast
        # would trigger Python's garbage collection of all connections: half a second, every few seconds.
        self._audience: list[tuple[ListenerSession, SessionSocket]] | None = None
        self._by_websocket: dict[int, ListenerSession] = {}  # by the id() of the connected object
        self._publishers: dict[PublisherSession, SessionSocket] = {}
        self._ready: dict[str, PublisherSession] = {}  # by the publisher's own id
        self._graces: dict[str, Timer] = {}
        self._closing: tuple[int, str] | None = None
        self._empty = asyncio.Event()

    # ------------------------------------------------------------------ listeners

    def connect(self, websocket: Transport | Any, *, since: Since | None = None) -> ListenerSession:
        """Add a listener; it gets every broadcast from now on (or after ``since``), in order.

        Args:
            websocket: An open WebSocket with ``write_message`` (a Tornado handler), ``send_text`` or ``send_json``
                (Starlette, FastAPI), or a `Transport`. Each broadcast is sent as one text message. The caller reads
                and handles incoming messages.
            since: The last event that the listener has received.

        Returns:
            The listener's session; the existing one if the WebSocket is already connected.

        Raises:
            TypeError: The object is none of these.
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
                f"{type(websocket).__name__} is not a WebSocket that the hub can write to. It needs write_message (as "
                "in Tornado), send_text or send_json (as in Starlette), or write and close of "
                "ragkit_server.hub.ports.Transport."
            )
        return websocket

    def disconnect(self, session: Session | Transport | Any) -> None:
        """Remove a connection; safe at any time, during a broadcast, and if called twice.

        Args:
            session: The result of `connect` or `attach`, or the WebSocket that was passed to `connect`.
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

        For code in the server; notebooks call ``ragkit.broadcast``. Returns when the event is committed: it has a
        sequence number, is written to disk if the history is kept there, and is being sent to listeners. A slow or dead
        listener delays neither this call nor other listeners.

        Args:
            message: A broadcast of `ragkit.live.messages`, or the same as a dict with its ``type``. The hub adds
                ``epoch``, ``seq`` and ``time``, but no ``origin``.

        Raises:
            InputError: The message is not a valid broadcast; the error names the key.
            ServerError: The server is stopping.
            RuntimeError: The call was not made in the server's event loop.
        """
        event = to_broadcast(message)
        if isinstance(self._timers, asyncio.AbstractEventLoop) and self._timers is not asyncio.get_running_loop():
            raise RuntimeError(
                "broadcast() must run in the server's event loop. From another thread use "
                "asyncio.run_coroutine_threadsafe(manager.broadcast(...), loop)."
            )
        if self._closing is not None:
            raise ServerError("The server is stopping and broadcasts no more events. Try again after it has restarted.")
        self.append(event)
        await self.commits.wait_for_disk()

    def append(
        self, event: Broadcast, *, publisher: str = "", origin: Origin | msgspec.UnsetType = msgspec.UNSET
    ) -> Broadcast:
        """Stamp a validated event; it is sent to every listener when it is committed.

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
            # The hub's inner loop. Most listeners are up to date and have only broadcasts to receive, so they share
            # the bytes that were built for the first of them.
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
        """Write the session's output; call this after each change of the session."""
        self._pump(session)

    def drained(self, session: Session) -> None:
        """Continue to write, after the socket's buffer has drained."""
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
                self._handle_wait(session, socket)
        except Exception as problem:
            self._drop(session, socket, problem)

    def _drop(self, session: Session, socket: SessionSocket, problem: Exception) -> None:
        # An error of this connection must not affect the others.
        self._log.debug("ragkit: a connection was dropped: %r", problem)
        self.counters.dropped += 1
        self.disconnect(session)
        with contextlib.suppress(Exception):  # it is broken already
            socket.transport.close(1011, "the connection broke")

    def _handle_wait(self, session: Session, socket: SessionSocket) -> None:
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
        """Handle one frame from a publisher."""
        if session.state in (SessionState.CLOSING, SessionState.CLOSED):
            return  # not acknowledged, so the publisher sends it again after reconnecting
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
            # It has reconnected before the hub detected that its old socket is dead.
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
        """Broadcast a publisher's event unless it is a duplicate; return whether it is new.

        Raises:
            RejectedError: A publisher may not broadcast this event.
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
        """Start the grace period of a disconnected publisher; when it ends, the publisher's tasks fail."""
        if publisher in self._ready or publisher in self._graces or self._closing is not None:
            return
        self._graces[publisher] = self._timers.call_later(self._grace_seconds, self._give_up, publisher)

    def _give_up(self, publisher: str) -> None:
        self._graces.pop(publisher, None)
        if self.history.seq < self.history.last:  # the disk is slow, and the end of a task may not be committed yet
            self.expect(publisher)
            return
        for task in self.history.state.live_tasks_of(publisher):
            self.append(
                msgspec.structs.replace(
                    task,
                    state="failed",
                    time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                    message="The process that ran this task disconnected. Run the task again to resume it.",
                ),
                publisher=publisher,
            )

    def resume(self) -> None:
        """Update the state restored from the history after a restart, when nothing is connected yet."""
        if self.history.state.engines:
            self._engines_changed([])
        for publisher, _ in self.history.state.live_tasks():
            self.expect(publisher)

    def _engines_changed(self, engines: list[Engine]) -> None:
        self.append(EnginesChanged(engines=engines))

    @property
    def listeners(self) -> Collection[SessionSocket]:
        """The sockets of all listeners."""
        return self._listeners.values()

    @property
    def publishers(self) -> list[Origin]:
        """The origins of the connected publishers."""
        return [session.hello.origin for session in self._ready.values() if session.hello is not None]

    # ------------------------------------------------------------------ the end

    async def close(
        self, *, code: int = 1001, reason: str = "the server is stopping", timeout_seconds: float = 2
    ) -> None:
        """Send the queued messages and close every connection; return when all are closed or after the time-out."""
        self._closing = (code, reason)
        for grace in self._graces.values():
            grace.cancel()
        self._graces.clear()
        with contextlib.suppress(TimeoutError):  # a disk that hangs must not prevent the server from exiting
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
            if socket is not None and not socket.closing:  # its queued messages could not be sent in time
                socket.transport.close(code, reason)
            self.disconnect(session)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.commits.close(), timeout_seconds)
