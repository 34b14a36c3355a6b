"""How bytes leave a Tornado WebSocket, and how one that is sent too much ends.

The hub writes frames that are built once for everybody. Tornado's `write_message` would build each
anew and start a task for each, at five times the cost, so `SocketTransport` writes to the stream
itself where Tornado is as we know it, and falls back to `write_message` where it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol, WebSocketProtocol13

from ragkit_server.frames import payloads

__all__ = ["BoundedProtocol", "SocketTransport", "bounded"]

LINGER_SECONDS = 5
QUIET_SECONDS = 0.5  # nothing more comes: the client has seen the close frame


class SocketTransport:
    """The hub's `Transport` over one open socket.

    Args:
        handler: The socket's handler.
        drained: Called when what `write` could not get rid of has gone.
        lost: Called when it never will.
    """

    def __init__(
        self, handler: WebSocketHandler, *, drained: Callable[[], None], lost: Callable[[], None], direct: bool = True
    ) -> None:
        self._handler = handler
        self._drained = drained
        self._lost = lost
        self._direct = direct
        self._clear = asyncio.Event()
        self._clear.set()

    def write(self, data: bytes) -> bool:
        """Write whole frames; see `ragkit_server.hub.Transport`."""
        connection = self._handler.ws_connection
        if connection is None or connection.is_closing():
            raise WebSocketClosedError
        if self._direct and type(connection) is BoundedProtocol and connection._compressor is None:
            written: asyncio.Future[Any] = connection.stream.write(data)
        else:
            written = asyncio.ensure_future(_write_messages(self._handler, data))
        if written.done():
            written.result()
            return True
        self._clear.clear()
        written.add_done_callback(self._on_written)
        return False

    def _on_written(self, written: asyncio.Future[Any]) -> None:
        self._clear.set()
        if written.cancelled() or written.exception() is not None:
            self._lost()
        else:
            self._drained()

    async def wait_drained(self) -> None:
        """Return when nothing waits for the kernel, or the connection is gone."""
        await self._clear.wait()

    def close(self, code: int, reason: str) -> None:
        """Send a close frame after what has been written; the reason may have 123 bytes."""
        self._handler.close(code, reason.encode()[:123].decode(errors="ignore"))


async def _write_messages(handler: WebSocketHandler, data: bytes) -> None:
    for payload in payloads(data):
        await handler.write_message(payload)


class BoundedProtocol(WebSocketProtocol13):
    """Tornado's protocol, but the close frame for a message that is too big gets through.

    Tornado writes the close frame and closes the socket in the same breath. As the rest of the
    message is still coming in, the kernel answers it with a reset, and the reason is often lost.
    This reads on for a moment and throws away what comes.
    """

    explain_too_big: Callable[[], str]
    """Tells the session; returns the reason for the close frame."""
    _lingering: asyncio.Task[None] | None = None
    _too_big = False

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        if code == 1009 and not self.server_terminated:
            self._too_big = True
            reason = self.explain_too_big()
        super().close(code, reason)

    def _abort(self) -> None:
        if self._too_big and self._lingering is None:
            self.client_terminated = True  # ends the loop that reads frames
            self._lingering = asyncio.ensure_future(self._linger())
        elif self._lingering is None or self._lingering.done():
            super()._abort()

    async def _linger(self) -> None:
        try:
            with contextlib.suppress(StreamClosedError, TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    while True:
                        await asyncio.wait_for(self.stream.read_bytes(65_536, partial=True), QUIET_SECONDS)
        finally:
            super()._abort()


def bounded(
    handler: WebSocketHandler, protocol: WebSocketProtocol | None, *, explain_too_big: Callable[[], str]
) -> WebSocketProtocol | None:
    """Return ``protocol`` as a `BoundedProtocol`; unchanged if this Tornado is not as we know it."""
    if type(protocol) is not WebSocketProtocol13:
        return protocol
    ours = BoundedProtocol(handler, False, protocol.params)
    ours.explain_too_big = explain_too_big
    return ours
