"""RFC 6455 in the order of its sections, which name the tests: what is allowed works, what is not fails as it should.

Two independent clients (websockets, aiohttp) say what they can; the rest is built byte for byte. Beside every
test stands a bystander, another connection, which must not notice any of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import socket
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from tests.server.live_server import TOKEN, Server, StartServer, receive, receive_type, say, within
from tests.server.raw_client import (
    ACCEPT,
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Closed,
    RawClient,
    close,
    fragments,
    frame,
    handshake,
    raw,
    request,
    tcp,
    text,
)

pytestmark = pytest.mark.anyio

LISTENERS, PUBLISHERS = "api/v1/ws", "api/v1/engine"
SOCKETS = [LISTENERS, PUBLISHERS]
LIMITS = {LISTENERS: 2**20, PUBLISHERS: 8 * 2**20}
OPCODES = {"continuation": CONTINUATION, "text": TEXT, "binary": BINARY, "close": CLOSE, "ping": PING, "pong": PONG}

both = pytest.mark.parametrize("path", SOCKETS, ids=["ws", "engine"])


def each(name: str, *cases: Any, **named: Any) -> pytest.MarkDecorator:
    """Parametrise by values that name themselves, or by named values."""
    values = [pytest.param(case, id=str(case)) for case in cases]
    values += [pytest.param(case, id=id.replace("_", "-")) for id, case in named.items()]
    return pytest.mark.parametrize(name, values)


@pytest.fixture(autouse=True)
async def bystander(server: Server) -> AsyncIterator[None]:
    async with server.open() as other:
        yield
        await say(other, type="ping", id="bystander")
        assert (await receive_type(other, "pong"))["id"] == "bystander"


async def fails(server: Server, path: str, code: int, *frames: bytes) -> None:
    """The frames are answered by a close frame with this code and a reason, and nothing more."""
    async with raw(server, path) as client:
        client.send(*frames)
        closed = await client.closed()
        assert (closed.code, len(closed.reason) > 5) == (code, True), closed
        assert await client.hang_up() == b""


def padded(size: int) -> str:
    """A ping that has this many bytes."""
    return '{"type":"ping"'.ljust(size - 1) + "}"


# ---------------------------------------------------------------------- 4 opening handshake


@both
async def test_4_2_2_the_answer_to_a_good_handshake(server: Server, path: str) -> None:
    async with tcp(server) as (reader, writer):
        writer.write(request(server, path, Sec_WebSocket_Protocol="chat, superchat"))
        status, headers = await handshake(reader)
    assert status == 101
    assert headers["upgrade"].lower() == "websocket"
    assert headers["connection"].lower() == "upgrade"
    assert headers["sec-websocket-accept"] == ACCEPT
    assert "sec-websocket-protocol" not in headers, "none is spoken here"


@both
@each(
    "change",
    upgrade_case={"Upgrade": "WebSocket"},
    connection_list={"Connection": "keep-alive, Upgrade"},
    header_case={"Upgrade": None, "UPGRADE": "websocket"},
)
async def test_4_2_1_variants_of_a_good_handshake(server: Server, path: str, change: dict[str, str]) -> None:
    async with tcp(server) as (reader, writer):
        writer.write(request(server, path, **change))
        assert (await handshake(reader))[0] == 101
        assert await RawClient(reader, writer).answers()


@both
@each(
    "change",
    method={"line": "POST {} HTTP/1.1", "status": 405},
    http_1_0={"line": "GET {} HTTP/1.0", "status": 400},
    no_host={"Host": None, "status": 400},
    no_upgrade={"Upgrade": None, "status": 400},
    another_upgrade={"Upgrade": "h2c", "status": 400},
    no_connection={"Connection": None, "status": 400},
    another_connection={"Connection": "keep-alive", "status": 400},
    no_key={"Sec_WebSocket_Key": None, "status": 400},
    empty_key={"Sec_WebSocket_Key": "", "status": 400},
    key_of_13_bytes={"Sec_WebSocket_Key": "SGVsbG8sIHdvcmxkIQ==", "status": 400},
    key_without_padding={"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ", "status": 400},
    key_not_base64={"Sec_WebSocket_Key": "!!!!dGhlIHNhbXBsZSBub25jZQ==", "status": 400},
    no_version={"Sec_WebSocket_Version": None, "status": 426},
    empty_version={"Sec_WebSocket_Version": "", "status": 426},
    old_version={"Sec_WebSocket_Version": "8", "status": 426},
    two_versions={"Sec_WebSocket_Version": "13, 8", "status": 426},
    word_as_version={"Sec_WebSocket_Version": "thirteen", "status": 426},
)
async def test_4_2_1_what_is_missing_or_wrong_is_refused(server: Server, path: str, change: dict[str, Any]) -> None:
    change = dict(change)
    expected = change.pop("status")
    async with tcp(server) as (reader, writer):
        writer.write(request(server, path, **change))
        status, headers = await handshake(reader)
    assert status == expected
    if status == 426:
        assert headers["sec-websocket-version"] == "13", "4.4: which version would do"


@both
@each("offer", "permessage-deflate; client_max_window_bits", "x-unknown; a=1, y", ";;=,,", "x; a*0*=%; a*=1")
async def test_4_2_2_no_extension_is_negotiated(server: Server, path: str, offer: str) -> None:
    async with tcp(server) as (reader, writer):
        writer.write(request(server, path, Sec_WebSocket_Extensions=offer))
        status, headers = await handshake(reader)
        assert status == 101
        assert "sec-websocket-extensions" not in headers
        assert await RawClient(reader, writer).answers()


@both
async def test_4_2_2_frames_may_travel_with_the_handshake(server: Server, path: str) -> None:
    async with raw(server, path, text(), frame(PING, b"early")) as client:
        assert await client.message() == {"type": "pong"}
        assert await client.frame() == (PONG, b"early")


@each("query", "epoch=%ff&seq=1", "epoch=e&seq=-1", "epoch=e&seq=1e400", "epoch=" + 500 * "e" + "&seq=1", "seq=1&seq=2")
async def test_4_1_a_query_that_is_nonsense_is_a_new_listener(server: Server, query: str) -> None:
    async with raw(server, f"{LISTENERS}?{query}") as client:
        assert await client.answers()


@both
@each("how", "shutdown", "reset")
async def test_4_2_a_client_that_leaves_during_the_handshake(server: Server, path: str, how: str) -> None:
    for n in range(30):
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(request(server, path) + text())
            await asyncio.sleep(n * 0.0002)
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                client.shutdown(socket.SHUT_WR)


SLOW = """
import asyncio
from jupyter_server.auth import Authorizer

class Slow(Authorizer):
    async def is_authorized(self, handler, user, action, resource):
        await asyncio.sleep(0.3)
        return True

c.ServerApp.authorizer_class = Slow
"""


async def test_4_2_nobody_is_kept_who_left_while_the_rights_were_looked_up(start: StartServer, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "jupyter_server_config.py").write_text(SLOW)
    slow = start()
    async with slow.open(), aiohttp.ClientSession(headers={"Authorization": f"token {TOKEN}"}) as session:
        for _ in range(5):
            async with tcp(slow) as (_, writer):
                writer.write(request(slow, LISTENERS))
                await within(writer.drain())
                await asyncio.sleep(0.05)
        await asyncio.sleep(0.5)
        async with session.get(slow.url("metrics").replace("ws", "http", 1)) as response:
            assert "\nragkit_listeners 1.0\n" in await response.text()
    assert "Traceback" not in slow.log()


# ---------------------------------------------------------------------- 5.1 masking


@both
@each("opcode", **OPCODES)
async def test_5_1_a_frame_without_a_mask(server: Server, path: str, opcode: int) -> None:
    await fails(server, path, 1002, frame(opcode, b"", mask=None))


@both
async def test_5_1_a_message_without_a_mask(server: Server, path: str) -> None:
    await fails(server, path, 1002, text(mask=None))


@both
async def test_5_1_a_fragment_without_a_mask(server: Server, path: str) -> None:
    await fails(server, path, 1002, text("{", fin=False), frame(CONTINUATION, b"}", mask=None))


@both
@each("mask", zeros=bytes(4), ones=b"\xff" * 4, bytes_that_differ=b"\0\x80\x7f\xff")
async def test_5_3_every_mask_and_every_place_in_it(server: Server, path: str, mask: bytes) -> None:
    async with raw(server, path) as client:
        for size in range(10):
            client.send(frame(PING, bytes(range(size)), mask=mask))
            assert await client.frame() == (PONG, bytes(range(size)))


# ---------------------------------------------------------------------- 5.2 framing


@both
@each("rsv", *range(1, 8))
async def test_5_2_reserved_bits(server: Server, path: str, rsv: int) -> None:
    for opcode in OPCODES.values():
        await fails(server, path, 1002, frame(opcode, b"", rsv=rsv))


@both
async def test_5_2_reserved_bits_in_the_middle_of_a_message(server: Server, path: str) -> None:
    await fails(server, path, 1002, text("{", fin=False), frame(CONTINUATION, b"}", rsv=4))


@both
@each("opcode", *range(0x3, 0x8), *range(0xB, 0x10))
async def test_5_2_reserved_opcodes(server: Server, path: str, opcode: int) -> None:
    await fails(server, path, 1002, frame(opcode))
    await fails(server, path, 1002, frame(opcode, b"payload", fin=False))


@both
@each("size", 15, 125, 126, 127, 128, 65_535, 65_536, 65_537)
async def test_5_2_lengths_of_7_16_and_64_bits(server: Server, path: str, size: int) -> None:
    async with raw(server, path) as client:
        client.send(text(padded(size)))
        assert await client.message() == {"type": "pong"}


@both
async def test_5_2_an_empty_message(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        client.send(text(""))
        assert (await client.message())["content"]["code"] == "INVALID_JSON"
        assert await client.answers()


@both
@each("form", (0, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65_535, 8))
async def test_5_2_a_length_that_is_not_in_its_shortest_form(server: Server, path: str, form: tuple[int, int]) -> None:
    size, length_bytes = form
    await fails(server, path, 1002, text(b" " * size, length_bytes=length_bytes))


async def test_5_2_what_the_server_sends_is_in_its_shortest_form(server: Server) -> None:
    async with raw(server) as client, server.publisher() as publisher:
        for n, size in enumerate([10, 100, 1_000, 60_000, 65_500, 70_000], 1):
            questions = ["?" * size]
            await say(publisher, type="publish", n=n, event={"type": "follow_up_questions", "questions": questions})
            assert (await client.message())["questions"] == questions


@both
async def test_5_2_a_frame_that_comes_byte_by_byte(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        for byte in text(padded(130)):
            client.send(bytes([byte]))
            await asyncio.sleep(0.001)
        assert await client.message() == {"type": "pong"}


# ---------------------------------------------------------------------- 5.4 fragmentation


@both
async def test_5_4_a_message_may_be_split_anywhere(server: Server, path: str) -> None:
    payload = '{"type":"ping","id":"é€😀"}'.encode()
    async with raw(server, path) as client:
        for at in range(len(payload) + 1):
            client.send(*fragments(TEXT, payload[:at], payload[at:]))
            assert await client.message() == {"type": "pong", "id": "é€😀"}


@both
async def test_5_4_many_fragments_some_of_them_empty(server: Server, path: str) -> None:
    pieces = [piece for byte in b'{"type":"ping","id":"1"}' for piece in (b"", bytes([byte]), b"")]
    async with raw(server, path) as client:
        client.send(*fragments(TEXT, *pieces))
        assert await client.message() == {"type": "pong", "id": "1"}


@both
async def test_5_4_control_frames_between_fragments(server: Server, path: str) -> None:
    first, second, third = fragments(TEXT, b'{"type":', b'"ping"', b"}")
    async with raw(server, path) as client:
        client.send(first, frame(PING, b"1"), frame(PONG), second, frame(PING, b"2"))
        assert await client.frame() == (PONG, b"1")
        assert await client.frame() == (PONG, b"2")
        client.send(third)
        assert await client.message() == {"type": "pong"}


@both
async def test_5_4_a_close_frame_between_fragments(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        client.send(text("{", fin=False), close(1001), frame(CONTINUATION, b"}"))
        assert await client.closed() == Closed(1001, "")
        assert await client.end() == b""


@both
@each(
    "frames",
    at_the_start=[frame(CONTINUATION, b"{}")],
    at_the_start_not_final=[frame(CONTINUATION, b"{}", fin=False)],
    empty=[frame(CONTINUATION)],
    after_a_message=[frame(PONG), *fragments(TEXT, b"", b""), frame(CONTINUATION)],
)
async def test_5_4_a_continuation_of_nothing(server: Server, path: str, frames: list[bytes]) -> None:
    async with raw(server, path) as client:
        client.send(*frames)
        opcode, payload = await client.frame()
        if opcode == TEXT:  # the answer to the message before
            opcode, payload = await client.frame()
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", 1002))
        assert await client.hang_up() == b""


@both
@each("second", TEXT, BINARY)
@each("first", TEXT, BINARY)
@each("fin", True, False)
async def test_5_4_a_message_inside_a_message(server: Server, path: str, first: int, second: int, fin: bool) -> None:
    await fails(server, path, 1002, frame(first, b"{", fin=False), frame(second, b"}", fin=fin))


@both
@each("opcode", CLOSE, PING, PONG)
async def test_5_4_a_control_frame_in_fragments(server: Server, path: str, opcode: int) -> None:
    await fails(server, path, 1002, frame(opcode, b"", fin=False))
    await fails(server, path, 1002, text("{", fin=False), frame(opcode, b"", fin=False))


@both
async def test_5_4_fragments_that_say_nothing_cost_nothing(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        client.send(text("", fin=False))
        client.send(frame(CONTINUATION, fin=False) * 20_000)
        client.send(frame(CONTINUATION, b'{"type":"ping"}'))
        assert await client.message() == {"type": "pong"}


# ---------------------------------------------------------------------- 5.5 control frames

VALID_CODES = [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999]
INVALID_CODES = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535]


@both
async def test_5_5_1_close_without_a_code(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        client.send(close())
        assert await client.closed() == Closed(None, "")
        assert await client.end() == b""


@both
@each("code", *VALID_CODES)
async def test_5_5_1_a_code_is_echoed(server: Server, path: str, code: int) -> None:
    for reason in (b"", "à bientôt".encode(), b"x" * 123):
        async with raw(server, path) as client:
            client.send(close(code, reason))
            assert await client.closed() == Closed(code, "")
            assert await client.end() == b""


@both
@each("code", *INVALID_CODES)
async def test_7_4_a_code_that_must_not_be_sent(server: Server, path: str, code: int) -> None:
    await fails(server, path, 1002, close(code))
    await fails(server, path, 1002, close(code, b"reason"))


@both
@each("payload", *[bytes([byte]) for byte in (0x00, 0x03, 0xFF)])
async def test_5_5_1_half_a_code(server: Server, path: str, payload: bytes) -> None:
    await fails(server, path, 1002, frame(CLOSE, payload))


@both
async def test_5_5_1_nothing_is_said_or_heard_after_a_close_frame(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        client.send(close(1000), frame(PING, b"still there?"), text(), close(1001), b"\xff" * 1_000)
        assert await client.closed() == Closed(1000, "")
        assert await client.end() == b""


@both
@each("size", 0, 1, 2, 124, 125)
async def test_5_5_2_a_ping_is_echoed(server: Server, path: str, size: int) -> None:
    payload = secrets.token_bytes(size)
    async with raw(server, path) as client:
        client.send(frame(PING, payload))
        assert await client.frame() == (PONG, payload)


@both
async def test_5_5_3_many_pings_may_get_one_pong_which_is_for_the_last(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        client.send(*(frame(PING, str(n).encode()) for n in range(1_000)))
        pongs = []
        while pongs[-1:] != [999]:
            opcode, payload = await client.frame()
            assert opcode == PONG
            pongs.append(int(payload))
        assert pongs == sorted(set(pongs))
        assert await client.answers()


@both
@each("opcode", CLOSE, PING, PONG)
@each("size", 126, 70_000)
async def test_5_5_a_control_frame_has_125_bytes_at_most(server: Server, path: str, opcode: int, size: int) -> None:
    await fails(server, path, 1002, frame(opcode, struct.pack("!H", 1000).ljust(size, b"x")))


@both
async def test_5_5_3_a_pong_that_nobody_asked_for(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        client.send(frame(PONG), frame(PONG, b"x" * 125))
        assert await client.answers()


# ---------------------------------------------------------------------- 5.6 data frames


@both
@each("pieces", whole=[b'{"type":"ping"}'], empty=[b""], in_fragments=[b"\xff", b"", b"\xfe"])
async def test_5_6_binary_is_no_violation_but_not_spoken_here(server: Server, path: str, pieces: list[bytes]) -> None:
    async with raw(server, path) as client:
        client.send(*fragments(BINARY, *pieces))
        assert (await client.message())["content"]["code"] == "INVALID_MESSAGE"
        assert await client.answers()


@both
async def test_5_6_text_and_binary_in_turn(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        client.send(*fragments(BINARY, b"\xff", b"\xff"), *fragments(TEXT, b'{"type":', b'"ping"}'), frame(BINARY))
        assert [(await client.message())["type"] for _ in range(3)] == ["error", "pong", "error"]


# ---------------------------------------------------------------------- 7 closing


@both
async def test_7_1_1_the_server_ends_the_tcp_connection_first_and_at_once(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        started = time.monotonic()
        client.send(close(1000))
        assert await client.closed() == Closed(1000, "")
        assert await client.end() == b""
        assert time.monotonic() - started < 0.4, "not after the half second that one who broke the rules may take"


@both
async def test_7_1_7_the_server_ends_it_after_a_violation_too(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        client.send(frame(0x3))
        assert (await client.closed()).code == 1002
        started = time.monotonic()
        client.send(text(), frame(PING), close(1002))  # an answer as it should be; the first two are not heard
        assert await client.end() == b""
        assert time.monotonic() - started < 3


@each("ending", violation=frame(0x3), close=close(1000))
async def test_7_1_7_the_others_hear_of_the_end_at_once(server: Server, ending: bytes) -> None:
    async with server.open() as listener, raw(server, PUBLISHERS, hello()) as client:
        client.send(text('{"type":"offer","engine":{"id":"e","index":"i"}}'))
        assert len((await receive_type(listener, "engines"))["engines"]) == 1
        started = time.monotonic()
        client.send(ending)
        assert (await receive_type(listener, "engines"))["engines"] == []
        assert time.monotonic() - started < 0.4, "not when the TCP connection has ended at last"


@both
@each("violation", opcode=frame(0x3), utf_8=text(b"\xff"), close_code=close(1005))
async def test_7_1_7_one_that_goes_on_writing_is_told_why(server: Server, path: str, violation: bytes) -> None:
    async with raw(server, path) as client:
        client.send(violation)
        for _ in range(20):
            client.send(b"\xff" * 1_000_000)
            await within(client.writer.drain())
        assert (await client.closed()).code in (1002, 1007)
        assert await client.hang_up() == b""


async def test_7_1_7_one_that_reads_late_is_told_why_after_all_that_was_said_before(server: Server) -> None:
    async with raw(server) as client, server.publisher() as publisher:
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        event = {"type": "follow_up_questions", "questions": ["?" * 190_000] * 20}
        for n in (1, 2):
            await say(publisher, type="publish", n=n, event=event)
        while (await receive_type(publisher, "ack"))["n"] < 2:
            pass
        client.send(frame(0x3))
        await asyncio.sleep(1)
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        opcode = TEXT
        while opcode == TEXT:
            opcode, payload = await client.frame()
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", 1002))


async def test_7_1_7_what_follows_a_violation_is_not_heard(server: Server) -> None:
    event = {"type": "follow_up_questions", "questions": ["after the end"]}
    publish = text(json.dumps({"type": "publish", "n": 1, "event": event}))
    async with server.open() as listener:
        for ending in (frame(0x3), close(1000)):
            async with raw(server, PUBLISHERS, hello()) as client:
                assert (await client.message())["type"] == "welcome"
                client.send(ending, publish)
                await client.closed()
                assert await client.hang_up() == b""
        await say(listener, type="ping")
        assert (await receive(listener))["type"] == "pong"


def hello(publisher: str = "") -> bytes:
    origin = {"kind": "script", "name": "s", "run_id": "r"}
    return text(json.dumps({"type": "hello", "publisher": publisher or secrets.token_hex(4), "origin": origin}))


@contextlib.asynccontextmanager
async def closed_by_server(server: Server) -> AsyncIterator[RawClient]:
    """A publisher that has been replaced by a newer connection: it is the server that closes."""
    id = secrets.token_hex(4)
    async with raw(server, PUBLISHERS, hello(id)) as client:
        assert (await client.message())["type"] == "welcome"
        async with raw(server, PUBLISHERS, hello(id)) as newer:
            assert (await newer.message())["type"] == "welcome"
            assert (await client.closed()).code == 1008
            yield client
            assert await newer.answers()


async def test_7_1_2_the_server_closes_and_waits_for_the_answer(server: Server) -> None:
    async with closed_by_server(server) as client:
        client.send(frame(PING, b"?"), text(), frame(BINARY), *fragments(TEXT, b"{", b"}"), frame(PONG))
        with pytest.raises(TimeoutError):
            await within(client.reader.read(1), 0.7)
        client.send(close(1008))
        assert await client.end() == b""


@each("violation", opcode=frame(0x3), utf_8=text(b"\xff"), too_big=text(b"", length=2**40), close_code=close(1005))
async def test_7_1_2_a_violation_after_the_servers_close_frame_ends_it(server: Server, violation: bytes) -> None:
    async with closed_by_server(server) as client:
        client.send(violation)
        assert await client.end() == b"", "one close frame is all that may be sent"


@both
@each("cut", 1, 2, 5, -1)
@each("how", "shutdown", "reset")
async def test_7_1_5_a_client_that_leaves_in_the_middle_of_a_frame(
    server: Server, path: str, cut: int, how: str
) -> None:
    async with raw(server, path) as client:
        client.send(text(padded(200))[:cut])
        if how == "shutdown":
            assert await client.hang_up() == b""
        else:
            client.writer.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )


# ---------------------------------------------------------------------- 8.1 UTF-8

INVALID = {
    "lone continuation": "80",
    "last continuation": "bf",
    "two continuations": "80 bf",
    "start without continuation": "c3 20",
    "overlong slash in 2": "c0 af",
    "overlong slash in 3": "e0 80 af",
    "overlong slash in 4": "f0 80 80 af",
    "overlong NUL": "c0 80",
    "overlong 7f": "c1 bf",
    "overlong 7ff": "e0 9f bf",
    "overlong ffff": "f0 8f bf bf",
    "high surrogate": "ed a0 80",
    "low surrogate": "ed bf bf",
    "pair of surrogates": "ed a0 bd ed b8 80",
    "above 10ffff": "f4 90 80 80",
    "five bytes": "f8 88 80 80 80",
    "six bytes": "fc 84 80 80 80 80",
    "fe": "fe",
    "ff": "ff",
    "kosme": "ce ba e1 bd b9 cf 83 ce bc ce b5 ed a0 80 65 64 69 74 65 64",
    "1 of 2": "c3",
    "1 of 3": "e2",
    "2 of 3": "e2 82",
    "1 of 4": "f0",
    "3 of 4": "f0 9f 98",
}
VALID = [
    "\x7f",
    "\x80",
    "\u07ff",
    "\u0800",
    "\ud7ff",
    "\ue000",
    "\ufffd",
    "\ufffe",
    "\uffff",
    "\U00010000",
    "\U0010ffff",
]


@both
@each("sequence", **INVALID)
async def test_8_1_text_that_is_not_utf_8(server: Server, path: str, sequence: str) -> None:
    data = bytes.fromhex(sequence)
    await fails(server, path, 1007, text(b'{"id":"' + data + b'"}'))
    await fails(server, path, 1007, text(data), text())  # also if the next message is valid
    await fails(server, path, 1007, *fragments(TEXT, *(bytes([byte]) for byte in b'"' + data)))


@both
@each("sequence", **INVALID)
async def test_8_1_a_reason_that_is_not_utf_8(server: Server, path: str, sequence: str) -> None:
    await fails(server, path, 1007, close(1000, bytes.fromhex(sequence)))


@both
async def test_8_1_the_borders_of_utf_8(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        for character in VALID:
            message = json.dumps({"type": "ping", "id": character}, ensure_ascii=False)
            client.send(text(message), *fragments(TEXT, *(bytes([byte]) for byte in message.encode())))
            for _ in range(2):
                assert await client.message() == {"type": "pong", "id": character}


# ---------------------------------------------------------------------- 10.4 limits


async def too_big(client: RawClient, path: str) -> None:
    """It is explained to the session, then by a close frame."""
    problem = await client.message()
    assert problem["content"]["code"] == "MESSAGE_TOO_BIG"
    closed = await client.closed()
    assert closed.code == 1009
    assert str(LIMITS[path]) in closed.reason
    assert await client.hang_up() == b""


@both
async def test_10_4_a_message_may_have_as_much_as_the_limit(server: Server, path: str) -> None:
    limit = LIMITS[path]
    payload = padded(limit).encode()
    async with raw(server, path) as client:
        client.send(text(payload))
        assert await client.message() == {"type": "pong"}
        client.send(*fragments(TEXT, payload[:-1], payload[-1:], b""))
        assert await client.message() == {"type": "pong"}


@both
async def test_10_4_a_ping_passes_when_the_message_has_no_room_left(server: Server, path: str) -> None:
    payload = padded(LIMITS[path]).encode()
    async with raw(server, path) as client:
        client.send(text(payload, fin=False), frame(PING, b"x" * 125), frame(CONTINUATION))
        assert await client.frame() == (PONG, b"x" * 125)
        assert await client.message() == {"type": "pong"}


@both
async def test_10_4_a_frame_that_is_too_big_is_refused_by_its_header(server: Server, path: str) -> None:
    async with raw(server, path) as client:
        client.send(text(b"", length=LIMITS[path] + 1))
        await too_big(client, path)


@both
@each("opcode", TEXT, BINARY)
@each("last", 1, 125, 126, 1_000)
async def test_10_4_fragments_that_are_too_big_together(server: Server, path: str, opcode: int, last: int) -> None:
    async with raw(server, path) as client:
        client.send(*fragments(opcode, b" " * LIMITS[path], b" " * last))
        await too_big(client, path)


@both
@each("length", 2**32, 2**63 - 1, 2**63, 2**64 - 1)
async def test_10_4_lengths_that_nobody_has(server: Server, path: str, length: int) -> None:
    async with raw(server, path) as client:
        client.send(text(b"", length=length))
        await too_big(client, path)


# ---------------------------------------------------------------------- two real clients


@contextlib.asynccontextmanager
async def aio(server: Server, path: str, **options: Any) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"token {TOKEN}"}) as session,
        session.ws_connect(server.url(path), max_msg_size=0, **options) as client,
    ):
        yield client


async def test_extensions_that_real_clients_offer_are_not_used(server: Server) -> None:
    async with server.open(compression="deflate") as client:
        assert client.protocol.extensions == []
    async with aio(server, LISTENERS, compress=15) as page:
        assert page.compress == 0


@both
async def test_websockets_speaks_with_it(server: Server, path: str) -> None:
    async with server.open(path) as client:
        await within(client.send([b'{"type":"pi', b"", 'ng","id":"é'.encode()[:-1], b"\xa9", b'"}'], text=True))
        assert await receive(client) == {"type": "pong", "id": "é"}
        for size in (0, 1, 125):
            await within(await client.ping(secrets.token_bytes(size)))
        await client.pong(b"unasked")
        await client.send(b"\xff")
        assert (await receive(client))["content"]["code"] == "INVALID_MESSAGE"
        await client.send(padded(70_000))
        assert (await receive(client))["type"] == "pong"


@both
async def test_aiohttp_speaks_with_it(server: Server, path: str) -> None:
    async with aio(server, path, autoping=False) as client:
        await client.send_str('{"type":"ping","id":"é"}')
        assert await within(client.receive_json()) == {"type": "pong", "id": "é"}
        for size in (0, 1, 125):
            payload = secrets.token_bytes(size)
            await client.ping(payload)
            answer = await within(client.receive())
            assert (answer.type, bytes(answer.data)) == (aiohttp.WSMsgType.PONG, payload)
        await client.pong(b"unasked")
        await client.send_bytes(b"\xff")
        assert (await within(client.receive_json()))["content"]["code"] == "INVALID_MESSAGE"
        await client.send_str(padded(70_000))
        assert await within(client.receive_json()) == {"type": "pong"}


@both
@each("code", *VALID_CODES)
async def test_both_clients_close_with_every_code(server: Server, path: str, code: int) -> None:
    async with server.open(path) as client:
        await within(client.close(code, "à bientôt"))
        assert client.protocol.close_rcvd is not None
        assert client.protocol.close_rcvd.code == code
    async with aio(server, path) as page:
        assert await within(page.close(code=code, message="à bientôt".encode()))
        assert page.close_code == code


@both
async def test_both_clients_are_told_what_they_did_wrong(server: Server, path: str) -> None:
    violations = {text(mask=None): 1002, frame(0xB): 1002, text(b"\xff"): 1007, close(1005): 1002}
    for violation, code in violations.items():
        async with server.open(path) as client:
            client.transport.write(violation)
            assert await failure(client) == code
        async with aio(server, path) as page:
            page._writer.transport.write(violation)
            said = await within(page.receive())
            assert (said.type, said.data) == (aiohttp.WSMsgType.CLOSE, code)


async def failure(client: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed) as closed:
        await within(client.recv())
    return closed.value.rcvd.code if closed.value.rcvd is not None else None


@both
async def test_both_clients_hear_that_a_message_is_too_big(server: Server, path: str) -> None:
    message = "x" * (LIMITS[path] + 1)
    async with server.open(path) as client:
        await within(client.send(message))
        assert (await receive(client))["content"]["code"] == "MESSAGE_TOO_BIG"
        assert await failure(client) == 1009
    async with aio(server, path) as page:
        await page.send_str(message)
        assert (await within(page.receive_json()))["content"]["code"] == "MESSAGE_TOO_BIG"
        said = await within(page.receive())
        assert (said.type, said.data) == (aiohttp.WSMsgType.CLOSE, 1009)
