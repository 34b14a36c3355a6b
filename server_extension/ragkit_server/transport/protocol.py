"""A strict RFC 6455 server: every violation of the protocol ends with a close frame that gives the reason.

Tornado handles most violations by dropping the connection without a reason, and ignores others: frames without a mask,
invalid close codes. The parser of `websockets` checks the rules, so it reads the frames here, from Tornado's stream.
Section numbers below refer to the RFC. The states of a connection::

    OPEN --violation or close frame--> DISCARDING (has replied; reads until no more data arrives) --> CLOSED
    OPEN --close()--> CLOSING (sends nothing, ignores messages) --violation or close frame--> DISCARDING

In any case it is CLOSED after 5 s.
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
# The private methods and attributes of Tornado that are overridden or used.
PARTS = (
    "_fragmented_message_buffer", "_handle_message", "_handle_websocket_headers", "_parse_extensions_header",
    "_read_bytes", "_receive_frame", "_run_callback", "_wire_bytes_in",
)  # fmt: skip


class StrictProtocol(WebSocketProtocol13):
    """Tornado's protocol with strict validation.

    The session is informed of a violation at once. The client receives the close frame even if it continues to write:
    closing a socket while data arrives would reset it, and the close frame would be lost.
    """

    handler: WebSocketHandler
    explain_too_big: Callable[[], str]
    """Informs the session and returns the reason for the close frame."""
    ending: Callable[[], object] = staticmethod(lambda: None)
    """Called at least once, when no more data may be written (5.5.1)."""
    _inbox: bytearray  # received, but not yet parsed
    _text: bool  # whether the fragmented message being received is text
    _discarding = False

    # ------------------------------------------------------------------ handshake (4.2.1)

    def _handle_websocket_headers(self, handler: WebSocketHandler) -> None:
        super()._handle_websocket_headers(handler)
        if handler.request.version == "HTTP/1.0":
            raise ValueError("HTTP/1.0 has no Upgrade")
        if len(base64.b64decode(handler.request.headers["Sec-WebSocket-Key"], validate=True)) != 16:
            raise ValueError("Sec-WebSocket-Key is not 16 bytes in base64")

    def _parse_extensions_header(self, headers: HTTPHeaders) -> list[tuple[str, dict[str, str]]]:
        return []  # no extension is used, and Tornado's parser raises TypeError for some headers

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
        # The parser yields what its reader yields, which are futures, so this generator can be awaited.
        frame = yield from Frame.parse(
            lambda size: self._read_bytes(size).__await__(),
            mask=True,
            max_size=max(self._room(), MAX_CONTROL_BYTES),  # a ping may arrive when the message has reached its limit
        )
        return frame

    async def _read_bytes(self, n: int) -> bytes:
        inbox = self._inbox
        while len(inbox) < n:  # one read for all available data, not several for each frame
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
                # 7.1.1: the client sends no more and waits for the server to close the connection.
                self.stream.write(b"").add_done_callback(self._shut_down)  # after all earlier writes
            case Opcode.PING | Opcode.PONG:
                if not self.server_terminated:
                    return self._handle_message(frame.opcode, data)
            case _:
                message = self._assemble(frame, data)
                if message is not None and not self.server_terminated:  # 1.4: data after a close frame is discarded
                    return self._run_callback(self.handler.on_message, message)
        return None

    def _assemble(self, frame: Frame, data: bytes) -> str | bytes | None:
        """Return the message if the frame completes it (5.4, 5.6)."""
        if len(data) > (room := self._room()):
            raise PayloadTooBig(len(data), room)
        begun = self._fragmented_message_buffer
        if frame.opcode is Opcode.CONT:
            if begun is None:
                raise ProtocolError("nothing to continue")
            begun += data
        elif begun is not None:
            raise ProtocolError("the previous message has not ended")
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
        """Send a close frame unless one was sent; then send nothing and discard what arrives.

        Tornado's `close` sets a timer that ends the connection if the client does not.
        """
        self._discarding = True
        self.handler.close(code, reason)
        self.handler.on_ws_connection_close(self.close_code, self.close_reason)

    async def _discard(self) -> None:
        self._inbox.clear()
        read = asyncio.ensure_future(self.stream.read_bytes(READ_BYTES, partial=True))
        while not (await asyncio.wait([read], timeout=QUIET_SECONDS))[0]:
            if not self.stream.writing():
                self._abort()  # no more data arrives, so the client has read the close frame
        self._wire_bytes_in += len(await read)

    def _shut_down(self, _: object) -> None:
        if not self.stream.closed():
            with contextlib.suppress(OSError):  # the client has reset the connection, which also ends the reading
                self.stream.socket.shutdown(socket.SHUT_WR)


def strict(
    handler: WebSocketHandler, protocol: WebSocketProtocol | None, *, explain_too_big: Callable[[], str]
) -> WebSocketProtocol | None:
    """Return ``protocol`` as a `StrictProtocol`; unchanged if this version of Tornado lacks the needed `PARTS`."""
    if type(protocol) is not WebSocketProtocol13 or not all(hasattr(protocol, part) for part in PARTS):
        return protocol
    ours = StrictProtocol(handler, False, protocol.params)
    ours.explain_too_big = explain_too_big
    ours._inbox = bytearray()
    return ours
