"""A small hub on a real socket, in a thread of its own, for the publisher's tests and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any

import msgspec
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ragkit.live import messages
from ragkit.live.discovery import Server

DEADLINE_SECONDS = 20.0


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """Return the condition's first true value; fail after the deadline."""
    ends = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < ends, what or "it did not happen in time"
        time.sleep(0.01)
    return value


class Hub:
    """Accepts publishers, stores and acknowledges their messages, and discards duplicates.

    Attributes:
        events: The received events as (publisher id, n, event), without duplicates.
        repeats: How many duplicates were received.
        others: All other messages: offers, replies, ...
        hellos: The `Hello` of each connection.
    """

    def __init__(
        self,
        *,
        token: str = "t0ken",
        acknowledge: bool = True,
        reads: bool = True,
        status: int = 0,
        max_message_bytes: int = messages.MAX_MESSAGE_BYTES,
    ) -> None:
        self.max_message_bytes = max_message_bytes
        self.token = token
        self.acknowledge = acknowledge
        self.reads = reads
        self.status = status
        self.events: list[tuple[str, int, Any]] = []
        self.repeats = 0
        self.others: list[Any] = []
        self.hellos: list[messages.Hello] = []
        self.requests: list[Request] = []
        self.port = 0
        self._last: dict[str, int] = {}
        self._sockets: list[ServerConnection] = []
        self._loop = asyncio.new_event_loop()
        self._thread: threading.Thread | None = None
        self._server: Any = None

    @property
    def server(self) -> Server:
        return Server(f"http://127.0.0.1:{self.port}/base/", self.token)

    def start(self) -> Hub:
        """Start the server; after a `stop`, on the same port."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
            self._thread.start()
        self._server = self.do(self._serve())
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def stop(self) -> None:
        """Stop as a killed process does: no close frames, and the port refuses connections."""
        self.do(self._abort())

    def end(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        assert self._thread is not None
        self._thread.join(DEADLINE_SECONDS)
        self._loop.close()

    def do(self, what: Awaitable[Any]) -> Any:
        async def run() -> Any:
            return await what

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(DEADLINE_SECONDS)

    def say(self, *outgoing: msgspec.Struct) -> None:
        """Send messages on the newest connection."""
        for message in outgoing:
            self.do(self._sockets[-1].send(messages.encode(message), text=True))

    def numbers(self) -> list[int]:
        return [n for _, n, _ in self.events]

    def received(self, kind: type[Any]) -> list[Any]:
        return [message for message in list(self.others) if isinstance(message, kind)]

    async def _serve(self) -> Any:
        return await serve(
            self._handle,
            "127.0.0.1",
            self.port,
            process_request=self._check,
            compression=None,
            ping_interval=None,
            max_size=self.max_message_bytes,
        )

    async def _abort(self) -> None:
        server, self._server = self._server, None
        for socket in self._sockets:
            socket.transport.abort()
        self._sockets.clear()
        if server is not None:
            server.close()
            await server.wait_closed()

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        if self.status:
            response = connection.respond(HTTPStatus(self.status), "no\n")
            if 300 <= self.status < 400:
                response.headers["Location"] = "/base/login"
            return response
        if request.headers.get("Authorization") != f"token {self.token}":
            return connection.respond(HTTPStatus.FORBIDDEN, "who are you?\n")
        return None

    async def _handle(self, socket: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await self._receive(socket)

    async def _receive(self, socket: ServerConnection) -> None:
        hello = messages.decode_engine_message(await socket.recv())
        assert isinstance(hello, messages.Hello)
        await socket.send(messages.encode(messages.Welcome(n=self._last.get(hello.publisher, 0), epoch="e")), text=True)
        self.hellos.append(hello)
        self._sockets.append(socket)
        if not self.reads:
            socket.transport.pause_reading()
            await socket.wait_closed()
        async for frame in socket:
            message = messages.decode_engine_message(frame)
            if not isinstance(message, messages.Publish):
                self.others.append(message)
                continue
            if message.n <= self._last.get(hello.publisher, 0):
                self.repeats += 1
            else:
                self._last[hello.publisher] = message.n
                self.events.append((hello.publisher, message.n, message.event))
            if self.acknowledge:
                await socket.send(messages.encode(messages.Ack(n=message.n)), text=True)


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Hub]:
    hub = Hub(**options).start()
    try:
        yield hub
    finally:
        hub.end()
