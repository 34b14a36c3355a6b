"""Both sockets of a real Jupyter server, with real clients."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import sys
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import aiohttp
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.server.live_server import DEADLINE_SECONDS, TOKEN, Server, StartServer, receive, receive_type, say, within

pytestmark = pytest.mark.anyio

SOCKETS = ["api/v1/ws", "api/v1/engine"]
ELSEWHERE = "https://elsewhere.example"


async def publish(publisher: ClientConnection, n: int, text: str = "?", **event: Any) -> None:
    event = {"type": "follow_up_questions", "questions": [text]} | event
    await say(publisher, type="publish", n=n, event=event)


async def offer(publisher: ClientConnection, id: str = "e", index: str = "indexes/handbook") -> None:
    await say(publisher, type="offer", engine={"id": id, "index": index})


async def ask(listener: ClientConnection, question: str = "Why?", **message: Any) -> None:
    await say(listener, **({"type": "query", "content": {"question": question, "context": {}}} | message))


async def status(server: Server, path: str, **options: Any) -> int:
    """The handshake's HTTP status."""
    try:
        async with server.open(path, **options):
            return 101
    except InvalidStatus as refusal:
        return refusal.response.status_code


# ---------------------------------------------------------------------- who gets in


@pytest.mark.parametrize("path", SOCKETS)
async def test_a_wrong_token_or_none_is_403_and_no_redirect(server: Server, path: str) -> None:
    assert await status(server, path) == 101
    assert await status(server, path, token="wrong") == 403
    assert await status(server, path, token=None) == 403
    assert await status(server, path + "?token=wrong", token=None) == 403
    assert await status(server, path + f"?token={TOKEN}", token=None) == 101


@pytest.mark.parametrize("path", SOCKETS)
async def test_another_origin_is_403_with_a_token_too(server: Server, path: str) -> None:
    assert await status(server, path, origin=ELSEWHERE) == 403
    assert await status(server, path + f"?token={TOKEN}", token=None, origin=ELSEWHERE) == 403
    assert await status(server, path, origin=f"http://127.0.0.1:{server.port}") == 101
    assert await status(server, path, origin="null") == 403


async def test_a_cookie_counts_for_this_origin_only(server: Server) -> None:
    def log_in() -> str:
        request = Request(server.url(f"api/status?token={TOKEN}").replace("ws", "http", 1))
        with urlopen(request, timeout=DEADLINE_SECONDS) as response:
            jar = SimpleCookie()
            for header in response.headers.get_all("Set-Cookie"):
                jar.load(header)
        return "; ".join(f"{name}={morsel.coded_value}" for name, morsel in jar.items())

    headers = {"Cookie": await asyncio.to_thread(log_in)}
    here = f"http://127.0.0.1:{server.port}"
    assert await status(server, "api/v1/ws", token=None, additional_headers=headers, origin=here) == 101
    assert await status(server, "api/v1/ws", token=None, additional_headers=headers, origin=ELSEWHERE) == 403


async def test_allowed_origins(start: StartServer, tmp_path: Path) -> None:
    one = start(f"--ServerApp.allow_origin={ELSEWHERE}", folder=tmp_path / "one")
    assert await status(one, "api/v1/ws", origin=ELSEWHERE) == 101
    assert await status(one, "api/v1/ws", origin="https://third.example") == 403
    assert await status(one, "api/v1/ws", origin=ELSEWHERE, token="wrong") == 403
    two = start("--RagkitApp.allow_any_origin_with_token=True", folder=tmp_path / "two")
    assert await status(two, "api/v1/ws", origin=ELSEWHERE) == 101
    assert await status(two, "api/v1/ws", origin=ELSEWHERE, token="wrong") == 403


AUTHORIZER = """
from jupyter_server.auth import Authorizer

class OnlyRead(Authorizer):
    async def is_authorized(self, handler, user, action, resource):
        return resource != "ragkit" or action == "read"

class Nothing(Authorizer):
    def is_authorized(self, handler, user, action, resource):
        return resource != "ragkit"

c.ServerApp.authorizer_class = {name}
"""


async def test_the_authorizer_is_respected(start: StartServer, tmp_path: Path) -> None:
    for name in ("OnlyRead", "Nothing"):
        (tmp_path / name / "config").mkdir(parents=True)
        (tmp_path / name / "config" / "jupyter_server_config.py").write_text(AUTHORIZER.replace("{name}", name))
    reader = start(folder=tmp_path / "OnlyRead")
    assert await status(reader, "api/v1/engine") == 403
    async with reader.open() as listener:
        await ask(listener, id="7")
        refusal = await receive(listener)
        assert (refusal["id"], refusal["content"]["code"]) == ("7", "NOT_AUTHORIZED")
        await say(listener, type="subscribe")
        assert (await receive(listener))["type"] == "snapshot"
    nobody = start(folder=tmp_path / "Nothing")
    assert [await status(nobody, path) for path in SOCKETS] == [403, 403]


async def test_tokens_are_not_in_the_log(server: Server) -> None:
    for token in (TOKEN, "wrong-token-that-is-a-secret-elsewhere"):
        for path in SOCKETS:
            await status(server, f"{path}?token={token}", token=None)
            await status(server, path, token=token, origin=ELSEWHERE)
        assert token not in server.log()


async def test_it_is_a_websocket_only(server: Server) -> None:
    async with aiohttp.ClientSession(headers={"Authorization": f"token {TOKEN}"}) as session:
        for path in SOCKETS:
            async with session.get(server.url(path).replace("ws", "http", 1)) as response:
                assert response.status == 400


# ---------------------------------------------------------------------- broadcasts


async def test_a_plain_client_gets_every_broadcast(server: Server) -> None:
    """What a browser's ``new WebSocket(url)`` and ``JSON.parse`` amount to."""
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(server.url(f"api/v1/ws?token={TOKEN}")) as page,
        server.publisher() as publisher,
    ):
        await publish(publisher, 1, questions=["Question 1 ?", "Question 2 ?", "Question 3 ?"])
        message = json.loads((await within(page.receive())).data)
        assert message["type"] == "follow_up_questions"
        assert message["questions"] == ["Question 1 ?", "Question 2 ?", "Question 3 ?"]
        assert isinstance(message["epoch"], str)
        assert isinstance(message["seq"], int)
        assert message["origin"]["name"] == "demo.ipynb"
        assert message["time"].startswith("20")


async def test_two_publishers_three_listeners(server: Server) -> None:
    count = 300
    async with (
        server.open() as first,
        server.open() as second,
        server.open() as third,
        server.publisher("one-" + secrets.token_hex(3)) as one,
        server.publisher("two-" + secrets.token_hex(3)) as two,
    ):

        async def publish_all(publisher: ClientConnection, name: str) -> None:
            for n in range(1, count + 1):
                await publish(publisher, n, f"{name} {n}")
            while (await receive_type(publisher, "ack"))["n"] < count:
                pass

        async def listen(listener: ClientConnection) -> list[tuple[int, str]]:
            messages = [await receive(listener) for _ in range(2 * count)]
            return [(message["seq"], message["questions"][0]) for message in messages]

        *heard, _, _ = await asyncio.gather(
            listen(first), listen(second), listen(third), publish_all(one, "one"), publish_all(two, "two")
        )
    assert heard[0] == heard[1] == heard[2]
    sequence = [seq for seq, _ in heard[0]]
    assert sequence == list(range(sequence[0], sequence[0] + 2 * count))
    for name in ("one", "two"):
        assert [text for _, text in heard[0] if text.startswith(name)] == [f"{name} {n}" for n in range(1, count + 1)]


@pytest.mark.parametrize("how", ["reset", "vanish"])
async def test_a_listener_that_dies_during_broadcasts_does_not_affect_others(server: Server, how: str) -> None:
    async with (
        server.open() as before,
        server.open(close_timeout=0.1) as dying,
        server.open() as after,
        server.publisher() as publisher,
    ):
        for n in range(1, 101):
            await publish(publisher, n, str(n))
            if n == 50 and how == "reset":
                raw = dying.transport.get_extra_info("socket")
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
                dying.transport.abort()
            elif n == 50:
                dying.transport.close()
        for listener in (before, after):
            assert [(await receive(listener))["questions"] for _ in range(100)] == [[str(n)] for n in range(1, 101)]


def resident_mib(pid: int) -> float:
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_listener_that_reads_late_needs_bounded_memory_and_gets_a_gap(
    start: StartServer,
) -> None:
    server = start("--RagkitApp.history_bytes=2000000", "--RagkitApp.history_disk_bytes=5000000")
    async with server.open() as listener, server.publisher() as publisher, server.open(max_queue=1) as stuck:
        stuck.transport.pause_reading()
        before = resident_mib(server.process.pid)
        for n in range(1, 401):
            await publish(publisher, n, "x" * 100_000)
            assert (await receive(listener))["seq"] == n
        grown = resident_mib(server.process.pid) - before
        assert grown < 20, "40 MB were sent; 2 MB of history are kept"
        stuck.transport.resume_reading()
        gap = await receive_type(stuck, "gap")
        assert gap["snapshot"]["seq"] > 300
        await publish(publisher, 401, "again")
        last = await receive(stuck)
        while last["questions"] != ["again"]:
            last = await receive(stuck)
        assert last["seq"] == 401


async def test_resuming_by_url_and_by_subscribe(server: Server) -> None:
    async with server.open() as listener, server.publisher() as publisher:
        for n in range(1, 11):
            await publish(publisher, n, str(n))
        seen = [await receive(listener) for _ in range(10)][3]
        async with server.open(f"api/v1/ws?epoch={seen['epoch']}&seq={seen['seq']}") as back:
            assert [(await receive(back))["questions"] for _ in range(6)] == [[str(n)] for n in range(5, 11)]
        async with server.open() as back:
            await say(back, type="subscribe", since={"epoch": seen["epoch"], "seq": seen["seq"]}, id="s")
            replies = [await receive(back) for _ in range(7)]
            assert [m.get("questions") for m in replies] == [[str(n)] for n in range(5, 11)] + [None]
            assert replies[-1]["id"] == "s"
        async with server.open("api/v1/ws?epoch=other&seq=1") as back:
            assert (await receive(back))["type"] == "gap"
        async with server.open("api/v1/ws?epoch=&seq=nonsense") as new:
            await publish(publisher, 11, "11")
            assert (await receive(new))["questions"] == ["11"]


async def test_frames_written_by_tornado_are_the_same(start: StartServer) -> None:
    server = start("--RagkitApp.write_frames_directly=False")
    async with server.open() as listener, server.publisher() as publisher:
        for n in range(1, 101):
            await publish(publisher, n, str(n) * 200)
        assert [(await receive(listener))["questions"] for _ in range(100)] == [[str(n) * 200] for n in range(1, 101)]


async def raw_socket(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A listener's connection after its handshake, without a client that would answer by itself."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(
        (
            f"GET {server.base_url}api/v1/ws?token={TOKEN} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        ).encode()
    )
    assert b" 101 " in await within(reader.readuntil(b"\r\n\r\n"))
    return reader, writer


async def test_pings_are_counted_in_seconds(server: Server) -> None:
    reader, writer = await raw_socket(server)
    with pytest.raises(TimeoutError):
        await within(reader.read(1), 0.5)  # 25 milliseconds would be many pings by now
    writer.close()


async def test_a_half_open_connection_is_found(start: StartServer) -> None:
    server = start("--RagkitApp.ping_interval_seconds=0.2")
    reader, writer = await raw_socket(server)
    async with server.open() as alive:
        assert (await within(reader.read())).startswith(b"\x89\x00"), "a ping, and then the end"
        await say(alive, type="ping")
        assert (await receive(alive))["type"] == "pong"
    writer.close()


# ---------------------------------------------------------------------- messages in


async def test_every_bad_message_gets_an_error_and_the_socket_stays_open(server: Server) -> None:
    async with server.open() as listener:
        for frame, code in [
            ("nonsense", "INVALID_JSON"),
            (b"\0\1", "INVALID_MESSAGE"),
            ("[]", "INVALID_MESSAGE"),
            ('{"type":"nonsense"}', "UNKNOWN_TYPE"),
            ('{"type":"query","content":{"question":7}}', "INVALID_MESSAGE"),
            ('{"type":"query","content":{"question":""}}', "EMPTY_QUESTION"),
            ('{"type":"cancel","id":"x"}', "UNKNOWN_REQUEST"),
            ("[" * 500_000, "INVALID_MESSAGE"),
        ]:
            await listener.send(frame)
            assert (await receive(listener))["content"]["code"] == code
        await say(listener, type="ping", id="p")
        assert await receive(listener) == {"type": "pong", "id": "p"}


async def test_invalid_utf8_closes_that_connection_only(server: Server) -> None:
    async with server.open() as listener, server.open() as other:
        await listener.send(b'{"type":"ping","id":"\xff"}', text=True)
        with pytest.raises(ConnectionClosed):
            await receive(listener)
        await say(other, type="ping")
        assert (await receive(other))["type"] == "pong"


@pytest.mark.parametrize(("path", "limit"), [("api/v1/ws", 2**20), ("api/v1/engine", 8 * 2**20)])
async def test_a_message_that_is_too_big_gets_an_error_and_is_not_buffered(
    server: Server, path: str, limit: int
) -> None:
    async with server.open() as other, server.open(path) as big:
        before = resident_mib(server.process.pid)

        async def send() -> None:
            await within(big.send("x" * 50_000_000))
            while True:
                assert (await receive(big))["content"]["code"] == "MESSAGE_TOO_BIG"

        with pytest.raises(ConnectionClosed) as closed:
            await send()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1009
        assert str(limit) in closed.value.rcvd.reason
        assert resident_mib(server.process.pid) - before < 15
        await say(other, type="ping")
        assert (await receive(other))["type"] == "pong"


async def test_a_client_that_reads_late_still_gets_the_close_reason(server: Server) -> None:
    reader, writer = await raw_socket(server)
    writer.write(b"\x81\xff" + (20_000_000).to_bytes(8, "big") + b"\0\0\0\0")
    for _ in range(20):
        writer.write(b"x" * 1_000_000)
        await within(writer.drain())
    assert b"\x03\xf1A message may have 1048576 bytes" in await within(reader.read())
    writer.close()


async def test_no_more_is_read_from_a_client_that_never_reads(start: StartServer) -> None:
    server = start("--RagkitApp.max_queue_bytes=100000")
    async with server.open() as rude, server.open() as other, server.publisher() as publisher:
        await publish(publisher, 1, "x" * 50_000)
        await receive(rude)
        rude.transport.pause_reading()
        before = resident_mib(server.process.pid)

        async def flood() -> None:
            for n in range(1_000):
                await say(rude, type="subscribe", id=str(n))

        flooding = asyncio.create_task(flood())
        await asyncio.wait([flooding], timeout=2)
        await say(other, type="ping")
        assert (await receive_type(other, "pong"))["type"] == "pong"
        assert resident_mib(server.process.pid) - before < 20, "the answers have 50 MB"
        rude.transport.resume_reading()
        for n in range(1_000):
            assert (await receive(rude))["id"] == str(n)
        await within(flooding)


# ---------------------------------------------------------------------- questions


async def test_a_query_without_an_engine(server: Server) -> None:
    async with server.open() as listener:
        await ask(listener)
        reply = await receive_type(listener, "error")
        assert reply["content"]["code"] == "NO_ENGINE"
        assert reply["id"]


async def test_a_publisher_answers_streams_fails_and_dies(server: Server) -> None:
    async with server.open() as listener, server.open() as bystander, server.publisher() as engine:
        await offer(engine)
        assert (await receive_type(listener, "engines"))["engines"][0]["index"] == "indexes/handbook"
        for id in ("1", "2"):
            await ask(listener, id=id)
        first, second = [await receive_type(engine, "engine_query") for _ in range(2)]
        for piece in ("A", "B"):
            await say(engine, type="response_delta", id=first["id"], content={"delta": piece})
        await say(engine, type="response", id=first["id"], content={"answer": "AB", "sources": []})
        await say(engine, type="error", id=second["id"], content={"message": "no model", "code": "ENGINE_FAILED"})
        replies = [await receive_type(listener, "response", "response_delta", "error") for _ in range(4)]
        assert [(m["type"], m["id"]) for m in replies] == [
            ("response_delta", "1"),
            ("response_delta", "1"),
            ("response", "1"),
            ("error", "2"),
        ]
        assert replies[2]["content"]["answer"] == "AB"
        await ask(listener, id="3")
        await receive_type(engine, "engine_query")
        engine.transport.abort()
        lost = await receive_type(listener, "error")
        assert (lost["id"], lost["content"]["code"]) == ("3", "ENGINE_LOST")
        assert (await receive_type(listener, "engines"))["engines"] == []
        await say(bystander, type="ping", id="end")
        heard = []
        while (message := await receive(bystander))["type"] != "pong":
            heard.append(message["type"])
        assert set(heard) == {"engines"}, "replies are for the asker alone"


async def test_a_reply_that_cannot_be_read_fails_its_query_at_once(server: Server) -> None:
    async with server.open() as listener, server.publisher() as engine:
        await offer(engine)
        await ask(listener, id="1")
        query = await receive_type(engine, "engine_query")
        await say(engine, type="response", id=query["id"], content={"answer": "A", "sources": [{"number": -1}]})
        failed = await receive_type(listener, "response", "error")
        assert (failed["id"], failed["content"]["code"]) == ("1", "ENGINE_FAILED")
        assert "cannot be read" in failed["content"]["message"]
        assert (await receive_type(engine, "error"))["content"]["code"] == "INVALID_MESSAGE"


async def test_cancel_deadline_duplicate_and_limit(start: StartServer) -> None:
    server = start("--RagkitApp.query_timeout_seconds=1", "--RagkitApp.max_queries_per_listener=2")
    async with server.open() as listener, server.publisher() as engine:
        await offer(engine)
        await receive_type(listener, "engines")
        for id in ("1", "1", "2", "3"):
            await ask(listener, id=id)
        await say(listener, type="cancel", id="1")
        replies = [await receive(listener) for _ in range(4)]
        assert [(m["id"], m["content"]["code"]) for m in replies] == [
            ("1", "DUPLICATE_ID"),
            ("3", "RATE_LIMITED"),
            ("1", "CANCELLED"),
            ("2", "TIMEOUT"),
        ]
        asked = [await receive_type(engine, "engine_query") for _ in range(2)]
        stopped = [(await receive_type(engine, "cancel"))["id"] for _ in range(2)]
        assert stopped == [query["id"] for query in asked]


async def test_a_disconnected_listener_cancels_its_answer(server: Server) -> None:
    async with server.publisher() as engine:
        async with server.open() as listener:
            await offer(engine)
            await receive_type(listener, "engines")
            await ask(listener)
            query = await receive_type(engine, "engine_query")
        assert (await receive_type(engine, "cancel"))["id"] == query["id"]


async def test_the_tasks_of_a_process_that_died_are_failed(server: Server) -> None:
    async with server.open() as listener:
        async with server.publisher() as publisher:
            await publish(publisher, 1, type="indexing_progress", task_id="t", index="i", state="running")
            assert (await receive_type(listener, "indexing_progress"))["state"] == "running"
            publisher.transport.abort()
        end = await receive_type(listener, "indexing_progress")
        assert (end["task_id"], end["state"]) == ("t", "failed")
        assert "disconnected" in end["message"]


async def test_events_are_acknowledged_and_not_repeated(server: Server) -> None:
    id = secrets.token_hex(4)
    async with server.open() as listener:
        async with server.publisher(id) as publisher:
            await publish(publisher, 1, "1")
            assert await receive(publisher) == {"type": "ack", "n": 1}
        async with server.open("api/v1/engine") as publisher:
            origin = {"kind": "script", "name": "s", "run_id": "r"}
            await say(publisher, type="hello", publisher=id, origin=origin)
            welcome = await receive(publisher)
            assert (welcome["type"], welcome["n"]) == ("welcome", 1)
            await publish(publisher, 1, "1")
            await publish(publisher, 2, "2")
        assert [(await receive(listener))["questions"] for _ in range(2)] == [["1"], ["2"]]
