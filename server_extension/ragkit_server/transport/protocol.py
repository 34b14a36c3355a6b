"""RFC 6455 as a server has to hold to it: whatever breaks it ends with a close frame that says why.

Tornado answers most of what is not allowed by dropping the connection, so that its author learns
nothing, and lets the rest pass: frames without a mask, close codes that do not exist. `websockets`
knows the rules, so its parser reads the frames here, from Tornado's stream. Section numbers below
are the RFC's. A connection::

    OPEN --violation or close frame--> DISCARDING (has answered; reads, until nothing comes) --> CLOSED
    OPEN --close()--> CLOSING (says nothing, takes no message) --violation or close frame--> DISCARDING

and is CLOSED after 5 s in any case.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import types
from collections.abc import Awaitable, Callable, Generator
from typing import Any

from tornado.httputil import HTTPHeaders
from tornado.websocket import WebSocketHandler, WebSocketProtocol, WebSocketProtocol13
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Close, CloseCode, Frame, Opcode

MAX_CONTROL_BYTES = 125
QUIET_SECONDS = 0.5
READ_BYTES = 65_536
# What is overridden or called of Tornado's.
PARTS = (
    "_fragmented_message_buffer", "_handle_message", "_handle_websocket_headers", "_parse_extensions_header",
    "_read_bytes", "_receive_frame", "_run_callback", "_wire_bytes_in",
)  # fmt: skip


class StrictProtocol(WebSocketProtocol13):
    """Tornado's protocol, but strict.

    The session hears of a violation at once. The client gets the close frame even if it goes on
    writing: a socket that is closed while data comes in is reset, and what it said last is lost.
    """

    handler: WebSocketHandler
    explain_too_big: Callable[[], str]
    """Tells the session; returns the reason for the close frame."""
    ending: Callable[[], object] = staticmethod(lambda: None)
    """Called when nothing may be written any more (5.5.1), at least once."""
    _inbox: bytearray  # come, and not yet interpreted
    _text: bool  # what the message is that comes in fragments
    _discarding = False

    # ------------------------------------------------------------------ handshake (4.2.1)

    def _handle_websocket_headers(self, handler: WebSocketHandler) -> None:
        super()._handle_websocket_headers(handler)
        if handler.request.version == "HTTP/1.0":
            raise ValueError("HTTP/1.0 knows no Upgrade")
        if len(base64.b64decode(handler.request.headers["Sec-WebSocket-Key"], validate=True)) != 16:
            raise ValueError("Sec-WebSocket-Key is not 16 bytes in base64")

    def _parse_extensions_header(self, headers: HTTPHeaders) -> list[tuple[str, dict[str, str]]]:
        return []  # none is used here, and Tornado's parser raises TypeError for some

    # ------------------------------------------------------------------ frames in (5)

    async def _receive_frame(self) -> None:
        if self._discarding:
            await self._discard()
            return
        handled: Awaitable[None] | None = None
        try:
            handled = self._handle(await self._read_frame())
        except PayloadTooBig:
            self._end(CloseCode.MESSAGE_TOO_BIG, self.explain_too_big())
        except ProtocolError as violation:
            self._end(CloseCode.PROTOCOL_ERROR, str(violation))
        except UnicodeDecodeError as violation:
            self._end(CloseCode.INVALID_DATA, f"invalid UTF-8: {violation.reason} at byte {violation.start}")
        if handled is not None:
            await handled

    async def _read_frame(self) -> Frame:
        start = self._wire_bytes_in
        frame = await self._parse_frame()
        size = len(frame.data)
        header = 6 if size < 126 else 8 if size <= 0xFFFF else 14
        if self._wire_bytes_in - start != header + size:
            raise ProtocolError("length not in its shortest form")  # 5.2
        return frame

    @types.coroutine
    def _parse_frame(self) -> Generator[Any, Any, Frame]:
        # The parser yields what its reader yields. These are futures: so it can be awaited as it is.
        frame = yield from Frame.parse(
            lambda size: self._read_bytes(size).__await__(),
            mask=True,
            max_size=max(self._room(), MAX_CONTROL_BYTES),  # a ping may come when a message has no room left
        )
        return frame

    async def _read_bytes(self, n: int) -> bytes:
        inbox = self._inbox
        while len(inbox) < n:  # one read for all that has come, and not three or four for each frame
            inbox += await self.stream.read_bytes(READ_BYTES, partial=True)
        self._wire_bytes_in += n
        data = bytes(inbox[:n])
        del inbox[:n]
        return data

    def _room(self) -> int:
        return self.params.max_message_size - len(self._fragmented_message_buffer or b"")

    def _handle(self, frame: Frame) -> Awaitable[None] | None:
        data = bytes(frame.data)
        match frame.opcode:
            case Opcode.CLOSE:
                close = Close.parse(data)
                if data:
                    self.close_code, self.close_reason = close.code, close.reason or None
                self._end(self.close_code)
                # 7.1.1: the client waits for our end, and says no more itself.
                self.stream.write(b"").add_done_callback(self._shut_down)  # done when all before it is
            case Opcode.PING | Opcode.PONG:
                if not self.server_terminated:
                    return self._handle_message(frame.opcode, data)
            case _:
                message = self._assemble(frame, data)
                if message is not None and not self.server_terminated:  # 1.4: what follows a close frame is discarded
                    return self._run_callback(self.handler.on_message, message)
        return None

    def _assemble(self, frame: Frame, data: bytes) -> str | bytes | None:
        """Return the message that the frame completes, if it does (5.4, 5.6)."""
        if len(data) > (room := self._room()):
            raise PayloadTooBig(len(data), room)
        begun = self._fragmented_message_buffer
        if frame.opcode is Opcode.CONT:
            if begun is None:
                raise ProtocolError("nothing to continue")
            begun += data
        elif begun is not None:
            raise ProtocolError("the message before has not ended")
        else:
            self._text = frame.opcode is Opcode.TEXT
        if not frame.fin:
            self._fragmented_message_buffer = bytearray(data) if begun is None else begun
            return None
        self._fragmented_message_buffer = None
        whole = data if begun is None else begun
        return whole.decode() if self._text else bytes(whole)

    # ------------------------------------------------------------------ the end (7)

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        self.ending()
        super().close(code, reason)

    def _end(self, code: int | None, reason: str | None = None) -> None:
        """Send a close frame unless one was sent; from now on say nothing and listen to nothing.

        Tornado's `close` sets a timer, which ends it where the client does not.
        """
        self._discarding = True
        self.handler.close(code, reason)
        self.handler.on_ws_connection_close(self.close_code, self.close_reason)

    async def _discard(self) -> None:
        self._inbox.clear()
        read = asyncio.ensure_future(self.stream.read_bytes(READ_BYTES, partial=True))
        while not (await asyncio.wait([read], timeout=QUIET_SECONDS))[0]:
            if not self.stream.writing():
                self._abort()  # nothing more comes: the client has seen the close frame
        self._wire_bytes_in += len(await read)

    def _shut_down(self, _: object) -> None:
        if not self.stream.closed():
            with contextlib.suppress(OSError):  # the client has reset it: that ends the reading, too
                self.stream.socket.shutdown(socket.SHUT_WR)


def strict(
    handler: WebSocketHandler, protocol: WebSocketProtocol | None, *, explain_too_big: Callable[[], str]
) -> WebSocketProtocol | None:
    """Return ``protocol`` as a `StrictProtocol`; unchanged if this Tornado is not as we know it."""
    if type(protocol) is not WebSocketProtocol13 or not all(hasattr(protocol, part) for part in PARTS):
        return protocol
    ours = StrictProtocol(handler, False, protocol.params)
    ours.explain_too_big = explain_too_big
    ours._inbox = bytearray()
    return ours
