"""The hub: everybody who is connected, and what passes between them.

`WebSocketManager` joins the parts: `History` (what was broadcast), `Engines` (who answers),
sessions (what each party says) and transports (the sockets). It does no I/O itself: a `Transport`
writes bytes, ``timers`` is an event loop or a fake.

A broadcast is appended to the history, at once and in order; then, once per turn of the event
loop, every listener that is behind is *pumped*: it gets all that it has not had in as few writes
as possible, made once for everybody at the same place. A socket whose buffer is full is left alone
until it has drained, so a slow listener costs one flag check per broadcast, and one that raises is
dropped on the spot. Large audiences are pumped in slices, so that the server's other work gets
its turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime
from typing import Protocol

import msgspec
from msgspec import Struct

from ragkit.events import (
    Broadcast,
    Engine,
    EnginesChanged,
    Error,
    ErrorCode,
    Hello,
    Offer,
    Origin,
    Publish,
    Response,
    ResponseDelta,
    Since,
    Welcome,
    Withdraw,
)
from ragkit_server.engines import Engines, Timer, Timers
from ragkit_server.history import History
from ragkit_server.sessions import ListenerSession, PublisherSession, State, error

__all__ = ["Transport", "WebSocketManager"]

Session = ListenerSession | PublisherSession

SLICE = 500  # listeners pumped before other work of the event loop gets its turn: some 5 ms


class Transport(Protocol):
    """A socket, as the hub sees it. Neither method blocks."""

    def write(self, data: bytes) -> bool:
        """Write whole frames.

        Returns:
            True if the kernel has taken them all; False if the rest waits, in which case
            `WebSocketManager.drained` is called once it has gone.

        Raises:
            Exception: Any; the connection is then given up.
        """
        ...

    def close(self, code: int, reason: str) -> None:
        """Send a close frame after what has been written."""
        ...


class _Link:
    """A session with its socket. ``blocked``: the socket's buffer is full."""

    __slots__ = ("blocked", "closing", "transport")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.blocked = False
        self.closing = False


class WebSocketManager:
    """Listeners, publishers, and what passes between them.

    Args:
        history: The log to broadcast from.
        timers: An event loop; everything here runs on its thread.
        log: Where events of interest to the server's operator go.
        publisher_grace_seconds: How long a publisher that went away may take to come back before
            its running tasks are broadcast as failed.
        max_queue_bytes: What may wait for one connection beside broadcasts.
        query_timeout_seconds: See `Engines`.
        start_timeout_seconds: See `Engines`.
        max_queries_per_listener: See `Engines`.
    """

    def __init__(
        self,
        *,
        history: History,
        timers: Timers,
        log: logging.Logger,
        publisher_grace_seconds: float = 10,
        max_queue_bytes: int = 2**20,
        query_timeout_seconds: float = 120,
        start_timeout_seconds: float = 120,
        max_queries_per_listener: int = 8,
    ) -> None:
        self.history = history
        self.engines = Engines(
            tell_asker=self._tell_asker,
            tell_publisher=self._tell_publisher,
            changed=self._engines_changed,
            timers=timers,
            query_timeout_seconds=query_timeout_seconds,
            start_timeout_seconds=start_timeout_seconds,
            max_queries_per_listener=max_queries_per_listener,
        )
        self._timers = timers
        self._log = log
        self._grace_seconds = publisher_grace_seconds
        self._max_queue_bytes = max_queue_bytes
        self._listeners: dict[ListenerSession, _Link] = {}
        self._publishers: dict[PublisherSession, _Link] = {}
        self._ready: dict[str, PublisherSession] = {}  # by the publisher's own id
        self._graces: dict[str, Timer] = {}
        self._flushing = False
        self._closing: tuple[int, str] | None = None
        self._empty = asyncio.Event()

    # ------------------------------------------------------------------ listeners

    def connect(self, transport: Transport, *, since: Since | None = None) -> ListenerSession:
        """Add a listener; it gets every broadcast from now on (or ``since``), in order."""
        session = ListenerSession(self.history, since=since, max_reply_bytes=self._max_queue_bytes)
        self._listeners[session] = _Link(transport)
        if self._closing is not None:
            session.close(*self._closing)
        self._pump(session)
        return session

    def disconnect(self, session: Session) -> None:
        """Forget a connection; safe at any time, also in the middle of a broadcast, also twice."""
        session.closed()
        if isinstance(session, ListenerSession):
            if self._listeners.pop(session, None) is not None:
                self.engines.asker_gone(session)
        elif self._publishers.pop(session, None) is not None:
            self._publisher_gone(session)
        if not self._listeners and not self._publishers:
            self._empty.set()

    def broadcast(
        self, event: Broadcast, *, publisher: str = "", origin: Origin | msgspec.UnsetType = msgspec.UNSET
    ) -> Broadcast:
        """Stamp an event and send it to every listener.

        Returns at once: the listeners are written to when the event loop next turns, and one that
        is slow or dead neither delays nor breaks another.

        Returns:
            The event with its ``epoch`` and ``seq``.
        """
        stamped = self.history.append(event, publisher=publisher, origin=origin)
        if not self._flushing:
            self._flushing = True
            self._timers.call_soon(self._flush)
        return stamped

    def _flush(self) -> None:
        self._flushing = False
        self._flush_slice(list(self._listeners), 0)

    def _flush_slice(self, listeners: list[ListenerSession], start: int) -> None:
        end = start + SLICE
        for session in listeners[start:end]:
            self._pump(session)
        if end < len(listeners):
            self._timers.call_soon(self._flush_slice, listeners, end)

    # ------------------------------------------------------------------ bytes out

    def wake(self, session: Session) -> None:
        """Write what the session has to say; call it after anything was said to the session."""
        self._pump(session)

    def drained(self, session: Session) -> None:
        """Go on writing: the socket's buffer has emptied."""
        if (link := self._link(session)) is not None:
            link.blocked = False
            self._pump(session)

    def _link(self, session: Session) -> _Link | None:
        if isinstance(session, ListenerSession):
            return self._listeners.get(session)
        return self._publishers.get(session)

    def _pump(self, session: Session) -> None:
        link = self._link(session)
        if link is None or link.blocked or link.closing:
            return
        try:
            while data := session.data_to_send():
                if not link.transport.write(data):
                    link.blocked = True
                    return
            if session.close_code is not None:
                link.closing = True
                link.transport.close(*session.close_code)
        except Exception as problem:
            # Whatever is wrong with this connection must not reach the others.
            self._log.debug("ragkit: a connection was dropped: %r", problem)
            self.disconnect(session)
            with contextlib.suppress(Exception):  # it is broken already
                link.transport.close(1011, "the connection broke")

    def _tell_asker(self, session: ListenerSession, message: Struct) -> None:
        session.reply(message)
        self._pump(session)

    def _tell_publisher(self, session: PublisherSession, message: Struct) -> bool:
        taken = session.send(message)
        self._pump(session)
        return taken

    # ------------------------------------------------------------------ publishers

    def attach(self, transport: Transport) -> PublisherSession:
        """Add a publisher's connection."""
        session = PublisherSession(max_queue_bytes=self._max_queue_bytes)
        self._publishers[session] = _Link(transport)
        if self._closing is not None:
            session.close(*self._closing)
            self._pump(session)
        return session

    def receive(self, session: PublisherSession, frame: str | bytes) -> None:
        """Act upon one frame from a publisher."""
        if session.state in (State.CLOSING, State.CLOSED):
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
        session.send(Welcome(n=self.history.last_n(hello.publisher), epoch=self.history.epoch))

    def _publish(self, session: PublisherSession, message: Publish) -> None:
        if session.hello is not None and self.adopt(session.hello, message) is None:
            session.send(error(ErrorCode.INVALID_MESSAGE, "Only the hub broadcasts 'engines'. Send 'offer' instead."))
        session.acknowledge(message.n)

    def adopt(self, hello: Hello, message: Publish) -> bool | None:
        """Broadcast a publisher's event unless it has come before.

        Returns:
            True if it was broadcast, False if it has come before, None if it is not for publishers.
        """
        if isinstance(message.event, EnginesChanged):
            return None
        if not self.history.is_new(hello.publisher, message.n):
            return False
        self.broadcast(message.event, publisher=hello.publisher, origin=hello.origin)
        return True

    def _publisher_gone(self, session: PublisherSession) -> None:
        self.engines.publisher_gone(session)
        if session.id and self._ready.get(session.id) is session:
            del self._ready[session.id]
            self.expect(session.id)

    def expect(self, publisher: str) -> None:
        """Give a publisher that is not here the grace period to come back; then its tasks failed."""
        if publisher in self._ready or publisher in self._graces or not self.history.live_tasks(publisher):
            return
        self._graces[publisher] = self._timers.call_later(self._grace_seconds, self._give_up, publisher)

    def _give_up(self, publisher: str) -> None:
        self._graces.pop(publisher, None)
        for task in self.history.live_tasks(publisher):
            self.broadcast(
                msgspec.structs.replace(
                    task,
                    state="failed",
                    time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                    message="The process that ran this task went away. Run it again: it goes on from there.",
                ),
                publisher=publisher,
            )

    def _engines_changed(self, engines: list[Engine]) -> None:
        self.broadcast(EnginesChanged(engines=engines))

    # ------------------------------------------------------------------ the end

    async def close(
        self, *, code: int = 1001, reason: str = "the server is stopping", timeout_seconds: float = 2
    ) -> None:
        """Close every connection after what is queued for it; return when all have gone, or in time."""
        self._closing = (code, reason)
        for grace in self._graces.values():
            grace.cancel()
        self._graces.clear()
        sessions: list[Session] = [*self._listeners, *self._publishers]
        self._empty.clear()
        for session in sessions:
            session.close(code, reason)
            self._pump(session)
        if self._listeners or self._publishers:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), timeout_seconds)
        for session in sessions:
            link = self._link(session)
            if link is not None and not link.closing:  # it has not even taken what was queued for it
                link.transport.close(code, reason)
            self.disconnect(session)
