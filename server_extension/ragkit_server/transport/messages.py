"""Transport for WebSockets of other frameworks, which send whole messages instead of bytes.

Code in the server with a socket of its own (a Tornado handler of another extension, Starlette's or FastAPI's
`WebSocket`) can let the hub broadcast to it. One run of frames is sent at a time; the hub passes the next one when that
is sent, so a slow socket needs no more memory than others.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any

from ragkit_server.transport.frames import payloads

Sender = Callable[[str], Awaitable[Any]]


def message_sender(websocket: Any) -> Sender | None:
    """Return a function that sends one text message on a WebSocket; None for an unknown type of object."""
    for name in ("write_message", "send_text"):  # Tornado's; Starlette's and FastAPI's
        send: Sender | None = getattr(websocket, name, None)
        if callable(send):
            return send
    send_json: Callable[[Any], Awaitable[Any]] | None = getattr(websocket, "send_json", None)
    return (lambda text: send_json(json.loads(text))) if callable(send_json) else None


class MessageTransport:
    """The hub's `Transport` over a WebSocket that sends whole messages.

    Args:
        websocket: An open WebSocket.
        send: Sends one text message on it.
        drained: Called when the written frames have been sent.
        lost: Called when sending has failed.
    """

    def __init__(self, websocket: Any, send: Sender, *, drained: Callable[[], None], lost: Callable[[], None]) -> None:
        self.websocket = websocket
        self._send = send
        self._drained = drained
        self._lost = lost
        self._tasks: set[asyncio.Future[Any]] = set()  # the event loop only keeps weak references

    def write(self, data: bytes) -> bool:
        """Write whole frames; see `ragkit_server.hub.ports.Transport`."""
        self._start(self._send_all(data), self._on_sent)
        return False

    async def _send_all(self, frames: bytes) -> None:
        for payload in payloads(frames):
            await self._send(payload.decode())

    def _on_sent(self, sent: asyncio.Future[Any]) -> None:
        if sent.cancelled() or sent.exception() is not None:
            self._lost()
        else:
            self._drained()

    def close(self, code: int, reason: str) -> None:
        """Close the socket, if it has a ``close`` method."""
        if callable(close := getattr(self.websocket, "close", None)):
            closing = close(code, reason.encode()[:123].decode(errors="ignore"))
            if inspect.isawaitable(closing):
                # An exception means that the socket is already closed.
                self._start(closing, lambda closed: closed.cancelled() or closed.exception())

    def _start(self, work: Awaitable[Any], done: Callable[[asyncio.Future[Any]], object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(done)
