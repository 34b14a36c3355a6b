"""Writes bytes to a Tornado WebSocket.

The hub writes frames that are built once for all listeners. Tornado's `write_message` would build every frame again and
start a task for it, which costs much more than the system call. `SocketTransport` therefore writes to the socket
directly if the stream's buffer is empty, and to the stream otherwise. It falls back to `write_message` if this version
of Tornado lacks the needed internals.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from tornado.iostream import IOStream
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from ragkit_server.transport.frames import payloads
from ragkit_server.transport.protocol import StrictProtocol


class SocketTransport:
    """The hub's `Transport` over one open socket.

    Args:
        handler: The socket's handler.
        drained: Called when the data that `write` had to buffer has been written.
        lost: Called when writing has failed.
        direct: Whether to write frames directly, without `write_message`.
    """

    __slots__ = ("_clear", "_drained", "_ended", "_handler", "_lost", "_send", "_stream", "_unwritten")

    def __init__(
        self, handler: WebSocketHandler, *, drained: Callable[[], None], lost: Callable[[], None], direct: bool = True
    ) -> None:
        self._handler = handler
        self._drained = drained
        self._lost = lost
        self._clear: asyncio.Event | None = None  # created on demand, because most sockets never fill up
        self._ended = False
        self._stream: IOStream | None = None
        self._send: Callable[[bytes], int] | None = None
        self._unwritten: deque[Any] = deque()
        connection = handler.ws_connection
        if direct and type(connection) is StrictProtocol and connection._compressor is None:
            connection.ending = self._end
            self._stream = stream = connection.stream
            # Tornado has no public way to ask for unwritten data. Without this deque, and for other streams such as
            # TLS, all data is written to the stream.
            plain = type(stream) is IOStream and isinstance(getattr(stream, "_write_futures", None), deque)
            if plain and not stream.closed():  # the client may have disconnected during the handshake
                self._send, self._unwritten = stream.socket.send, stream._write_futures

    def _end(self) -> None:
        self._ended = True

    def write(self, data: bytes) -> bool:
        """Write whole frames; see `ragkit_server.hub.ports.Transport`."""
        if self._ended:
            raise WebSocketClosedError
        if self._send is None or self._unwritten:
            return self._write_to_stream(data)
        # As the stream does, but without its bookkeeping, which costs as much as the system call.
        try:
            sent = self._send(data)
        except BlockingIOError:
            sent = 0
        return sent == len(data) or self._write_to_stream(memoryview(data)[sent:])

    def _write_to_stream(self, data: bytes | memoryview) -> bool:
        if self._stream is not None:
            return self._wait_for(self._stream.write(data))
        connection = self._handler.ws_connection
        if connection is None or connection.is_closing():
            raise WebSocketClosedError
        return self._wait_for(asyncio.ensure_future(_write_messages(self._handler, bytes(data))))

    def _wait_for(self, written: asyncio.Future[Any]) -> bool:
        if written.done():
            written.result()
            return True
        self._clear = self._clear or asyncio.Event()
        self._clear.clear()
        written.add_done_callback(self._on_written)
        return False

    def _on_written(self, written: asyncio.Future[Any]) -> None:
        if self._clear is not None:
            self._clear.set()
        if written.cancelled() or written.exception() is not None:
            self._lost()
        else:
            self._drained()

    async def wait_drained(self) -> None:
        """Wait until all data is written, or the connection is lost."""
        if self._clear is not None:
            await self._clear.wait()

    def close(self, code: int, reason: str) -> None:
        """Send a close frame after the data written so far; the reason is cut to 123 bytes."""
        self._handler.close(code, reason.encode()[:123].decode(errors="ignore"))


async def _write_messages(handler: WebSocketHandler, data: bytes) -> None:
    for payload in payloads(data):
        await handler.write_message(payload)
