"""A WebSocket client that holds to nothing: frames built byte for byte, and read as strictly as can be."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

from tests.server.live_server import TOKEN, Server, within

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK = b"\x12\x34\x56\x78"
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the RFC's own, and so is the answer to it
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    length_bytes: int | None = None,
    length: int | None = None,
) -> bytes:
    """Return one frame, right or wrong: ``length_bytes`` is the form of the length, ``length`` a lie about it."""
    size = len(payload) if length is None else length
    if length_bytes is None:
        length_bytes = 1 if size < 126 else 2 if size <= 0xFFFF else 8
    masked = 0x80 if mask is not None else 0
    head = struct.pack("!B", fin << 7 | rsv << 4 | opcode)
    if length_bytes == 1:
        head += struct.pack("!B", masked | size)
    elif length_bytes == 2:
        head += struct.pack("!BH", masked | 126, size)
    else:
        head += struct.pack("!BQ", masked | 127, size)
    if mask is None:
        return head + payload
    stream = mask * (len(payload) // 4 + 1)
    xored = int.from_bytes(payload, "big") ^ int.from_bytes(stream[: len(payload)], "big")
    return head + mask + xored.to_bytes(len(payload), "big")


def text(payload: bytes | str = '{"type":"ping"}', **options: Any) -> bytes:
    return frame(TEXT, payload.encode() if isinstance(payload, str) else payload, **options)


def close(code: int | None = None, reason: bytes = b"", **options: Any) -> bytes:
    return frame(CLOSE, (b"" if code is None else struct.pack("!H", code)) + reason, **options)


def fragments(opcode: int, *pieces: bytes) -> list[bytes]:
    """Return one message as a frame for each piece."""
    last = len(pieces) - 1
    return [frame(CONTINUATION if n else opcode, piece, fin=n == last) for n, piece in enumerate(pieces)]


class Closed(NamedTuple):
    """What a close frame said."""

    code: int | None
    reason: str


class RawClient:
    """One connection after its handshake."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, *frames: bytes) -> None:
        self.writer.write(b"".join(frames))

    async def next_frame(self) -> tuple[int, bytes]:
        """Return the next frame's opcode and payload, whenever it comes; it is as a server's has to be."""
        first, second = await self.reader.readexactly(2)
        assert first & 0xF0 == 0x80, "final, no reserved bits"
        assert second < 0x80, "a server does not mask"
        size = second
        if second == 126:
            size = int.from_bytes(await self.reader.readexactly(2), "big")
            assert size >= 126
        elif second == 127:
            size = int.from_bytes(await self.reader.readexactly(8), "big")
            assert size > 0xFFFF
        return first & 0x0F, await self.reader.readexactly(size)

    async def frame(self) -> tuple[int, bytes]:
        """Return the next frame's opcode and payload, with a deadline."""
        opcode, payload = await within(self.next_frame())
        return opcode, payload

    async def message(self) -> Any:
        """Return the next frame, which is a text, as the JSON that it is."""
        opcode, payload = await self.frame()
        assert opcode == TEXT, (opcode, payload)
        return json.loads(payload)

    async def answers(self) -> bool:
        """Return whether the server is still there and says nothing but what it is asked."""
        self.send(text('{"type":"ping","id":"are you there?"}'))
        return bool(await self.message() == {"type": "pong", "id": "are you there?"})

    async def closed(self) -> Closed:
        """Return what the next frame, a close frame, says."""
        opcode, payload = await self.frame()
        assert opcode == CLOSE, (opcode, payload)
        if not payload:
            return Closed(None, "")
        return Closed(int.from_bytes(payload[:2], "big"), payload[2:].decode())

    async def end(self) -> bytes:
        """Return what comes until the server ends the TCP connection."""
        return bytes(await within(self.reader.read()))

    async def hang_up(self) -> bytes:
        """End the TCP connection from this side; return what comes until the server does, too."""
        self.writer.write_eof()
        return await self.end()


def request(server: Server, path: str, *, line: str = "GET {} HTTP/1.1", **headers: str | None) -> bytes:
    """Return a handshake; a header that is None is left out, ``_`` in its name stands for ``-``."""
    default = {
        "Host": f"127.0.0.1:{server.port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        "Authorization": f"token {TOKEN}",
    }
    fields = default | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [line.format(server.base_url + path)]
    lines += [f"{name}: {value}" for name, value in fields.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode()


async def handshake(reader: asyncio.StreamReader) -> tuple[int, dict[str, str]]:
    """Return the status and the headers of the server's answer."""
    lines = (await within(reader.readuntil(b"\r\n\r\n"))).decode().splitlines()
    headers = (line.split(": ", 1) for line in lines[1:] if line)
    return int(lines[0].split()[1]), {name.lower(): value for name, value in headers}


@contextlib.asynccontextmanager
async def tcp(server: Server) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**26)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await within(writer.wait_closed())


@contextlib.asynccontextmanager
async def raw(server: Server, path: str = "api/v1/ws", *frames: bytes) -> AsyncIterator[RawClient]:
    """Open a connection; ``frames`` travel with its handshake."""
    async with tcp(server) as (reader, writer):
        writer.write(request(server, path) + b"".join(frames))
        status, _ = await handshake(reader)
        assert status == 101
        yield RawClient(reader, writer)
