"""StrictProtocol with a Tornado handler, and with another version of Tornado."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler, WebSocketProtocol, WebSocketProtocol13, _WebSocketParams

from ragkit_server.transport.protocol import PARTS, StrictProtocol, strict
from tests.server.live_server import StartServer, receive, receive_type, say
from tests.server.raw_client import BINARY, PING, TEXT, Closed, close, fragments, frame, raw, text

pytestmark = pytest.mark.anyio


class Recorder(WebSocketHandler):
    """Records what it receives; closes on request."""

    def initialize(self, heard: list[Any]) -> None:
        self.heard = heard

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        return strict(self, super().get_websocket_protocol(), explain_too_big=lambda: "too big")

    def on_message(self, message: str | bytes) -> None:
        self.heard.append(message)
        if message == "close":
            self.close(1001, "enough")

    def on_pong(self, data: bytes) -> None:
        self.heard.append(("pong", data))

    def on_close(self) -> None:
        self.heard.append(("closed", self.close_code, self.close_reason))


@pytest.fixture
def heard() -> list[Any]:
    return []


@pytest.fixture
async def server(heard: list[Any]) -> AsyncIterator[Any]:
    """The address of a Tornado server in this process."""
    sockets = bind_sockets(0, "127.0.0.1")
    http = HTTPServer(Application([("/", Recorder, {"heard": heard})], websocket_max_message_size=1_000))
    http.add_sockets(sockets)
    yield SimpleNamespace(port=sockets[0].getsockname()[1], base_url="/")
    http.stop()
    await http.close_all_connections()


async def test_a_handler_receives_messages_and_pongs_in_order(server: Any, heard: list[Any]) -> None:
    async with raw(server, "") as client:
        client.send(text("é"), frame(BINARY, b"\xff"), frame(0xA, b"p"), *fragments(TEXT, b"\xe2", b"\x82\xac"))
        client.send(frame(PING))
        assert (await client.frame())[1] == b""
    assert heard[:4] == ["é", b"\xff", ("pong", b"p"), "€"]


@pytest.mark.parametrize(
    ("ending", "code", "reason"),
    [
        (close(), None, None),
        (close(4_000), 4_000, None),
        (close(1_001, "à bientôt".encode()), 1_001, "à bientôt"),
        (close(1_005), None, None),
        (frame(0x3), None, None),
        (text(b"\xff"), None, None),
        (text(b"", length=2**40), None, None),
    ],
    ids=["empty", "code", "reason", "bad-code", "opcode", "utf-8", "too-big"],
)
async def test_a_handler_is_notified_of_the_close_once(
    server: Any, heard: list[Any], ending: bytes, code: int | None, reason: str | None
) -> None:
    async with raw(server, "") as client:
        client.send(text("before"), ending, text("after"), ending)
        await client.closed()
        assert await client.hang_up() == b""
    assert heard == ["before", ("closed", code, reason)]


async def test_a_closed_handler_receives_only_the_close_reply(server: Any, heard: list[Any]) -> None:
    async with raw(server, "") as client:
        client.send(text("close"))
        assert await client.closed() == Closed(1_001, "enough")
        client.send(text("late"), frame(PING), frame(0xA), *fragments(BINARY, b"1", b"2"), close(1_001, b"so be it"))
        assert await client.end() == b""
    assert heard == ["close", ("closed", 1_001, "so be it")]


# ---------------------------------------------------------------------- another Tornado


def known() -> WebSocketProtocol13:
    return WebSocketProtocol13(Any, False, _WebSocketParams())  # type: ignore[arg-type]


def made_strict(protocol: WebSocketProtocol | None) -> WebSocketProtocol | None:
    return strict(Any, protocol, explain_too_big=str)  # type: ignore[arg-type]


async def test_an_unknown_tornado_version_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Another(WebSocketProtocol13):
        pass

    another = Another(Any, False, _WebSocketParams())  # type: ignore[arg-type]
    assert made_strict(another) is another
    assert made_strict(None) is None
    assert type(made_strict(known())) is StrictProtocol
    for part in set(PARTS) & vars(WebSocketProtocol13).keys():
        with monkeypatch.context() as lacking:
            lacking.delattr(WebSocketProtocol13, part)
            protocol = known()
            assert made_strict(protocol) is protocol


ANOTHER_TORNADO = """
import ragkit_server.transport.protocol
import tornado.websocket as websocket

class Another(websocket.WebSocketProtocol13):
    pass

websocket.WebSocketProtocol13 = Another
"""


async def test_the_hub_works_with_an_unknown_tornado_version(start: StartServer, tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "jupyter_server_config.py").write_text(ANOTHER_TORNADO)
    server = start()
    async with raw(server) as lenient:
        lenient.send(text(mask=None))
        assert await lenient.message() == {"type": "pong"}, "Tornado's own protocol is at work"
    async with server.open() as listener, server.publisher() as publisher:
        await say(publisher, type="offer", engine={"id": "e", "index": "i"})
        assert (await receive(listener))["type"] == "engines"
        await say(listener, type="query", id="q", content={"question": "Why?"})
        query = await receive_type(publisher, "engine_query")
        await say(publisher, type="response", id=query["id"], content={"answer": "So.", "sources": []})
        assert (await receive(listener))["content"]["answer"] == "So."
        await listener.send("nonsense")
        assert (await receive(listener))["content"]["code"] == "INVALID_JSON"
    assert listener.close_code == 1_000
    assert "Traceback" not in server.log()
