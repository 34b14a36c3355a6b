"""WebSockets of other frameworks, which take whole messages and not bytes.

Code in the server that has a socket of its own (a Tornado handler of another extension, Starlette's or FastAPI's
`WebSocket`) can let the hub broadcast to it. One run of frames is under way at a time: the hub gives the next when
that is sent, so a slow socket costs no more than any other.
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
    """Return what sends one text message on a WebSocket; None if it is none that is known."""
    for name in ("write_message", "send_text"):  # Tornado's; Starlette's and FastAPI's
        send: Sender | None = getattr(websocket, name, None)
        if callable(send):
            return send
    send_json: Callable[[Any], Awaitable[Any]] | None = getattr(websocket, "send_json", None)
    return (lambda text: send_json(json.loads(text))) if callable(send_json) else None


class MessageTransport:
    """The hub's `Transport` over a WebSocket that takes whole messages.

    Args:
        websocket: An open one.
        send: Sends one text message on it.
        drained: Called when what was written has been sent.
        lost: Called when it never will.
    """

    def __init__(self, websocket: Any, send: Sender, *, drained: Callable[[], None], lost: Callable[[], None]) -> None:
        self.websocket = websocket
        self._send = send
        self._drained = drained
        self._lost = lost
        self._tasks: set[asyncio.Future[Any]] = set()  # the event loop itself would let go of them

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
        """Send a close frame, if the socket has a way to."""
        if callable(close := getattr(self.websocket, "close", None)):
            closing = close(code, reason.encode()[:123].decode(errors="ignore"))
            if inspect.isawaitable(closing):
                # It may be closed already: then there is nothing left to do.
                self._start(closing, lambda closed: closed.cancelled() or closed.exception())

    def _start(self, work: Awaitable[Any], done: Callable[[asyncio.Future[Any]], object]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(done)
