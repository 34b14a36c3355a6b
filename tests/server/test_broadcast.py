"""`WebSocketManager` as other code in the server calls it: `connect`, `disconnect`, `await broadcast({...})`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler
from websockets.asyncio.client import connect

from ragkit.errors import InputError, ServerError
from ragkit.live.messages import FollowUpQuestions
from ragkit_server.history.archive import open_archive
from ragkit_server.history.log import History
from ragkit_server.history.worker import Worker
from ragkit_server.hub.manager import WebSocketManager
from tests.server.hub_fakes import Wire
from tests.server.live_server import ROOT, TOKEN, Server, StartServer, eventually, receive, receive_type, within

pytestmark = pytest.mark.anyio

PAGE = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
FOLLOW_UPS = {"type": "follow_up_questions", "questions": ["a", "b", "c"]}

at_import = WebSocketManager()  # as many applications make theirs: before any event loop runs


class Starlette:
    """A WebSocket as Starlette's and FastAPI's is."""

    def __init__(self, *, problem: Exception | None = None) -> None:
        self.sent: list[Any] = []
        self.problem = problem
        self.may_send = asyncio.Event()
        self.may_send.set()
        self.closed: list[tuple[int, str | None]] = []

    async def accept(self) -> None: ...

    async def send_text(self, data: str) -> None:
        await self.may_send.wait()
        if self.problem is not None:
            raise self.problem
        self.sent.append(json.loads(data))

    async def close(self, code: int = 1000, reason: str | None = None) -> None:
        self.closed.append((code, reason))

    def texts(self) -> list[str]:
        return [message["questions"][0] for message in self.sent]


class OnlyJson:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    async def send_json(self, data: Any, mode: str = "text") -> None:
        self.sent.append(data)


async def test_it_needs_no_arguments_and_broadcasts_a_dict_to_all_listeners() -> None:
    for manager in (at_import, WebSocketManager()):
        first, second = Starlette(), OnlyJson()
        manager.connect(first)
        manager.connect(second)
        await manager.broadcast(FOLLOW_UPS)
        await manager.broadcast(FollowUpQuestions(questions=["d"]))
        await eventually(lambda first=first, second=second: len(first.sent) == len(second.sent) == 2)
        assert [message["questions"] for message in first.sent] == [["a", "b", "c"], ["d"]]
        assert first.sent == second.sent
        assert [message["seq"] for message in first.sent] == [1, 2]
        assert first.sent[0]["time"]
        manager.disconnect(first)
        manager.disconnect(first)
        manager.disconnect(Starlette())
        await manager.broadcast(FOLLOW_UPS)
        await eventually(lambda second=second: len(second.sent) == 3)
        assert len(first.sent) == 2
        await manager.close()


async def test_a_socket_connected_twice_gets_every_event_once() -> None:
    manager, websocket, wire = WebSocketManager(), Starlette(), Wire()
    assert manager.connect(websocket) is manager.connect(websocket)
    assert manager.connect(wire) is manager.connect(wire)
    await manager.broadcast(FOLLOW_UPS)
    await eventually(lambda: websocket.sent)
    assert len(websocket.sent) == len(wire.read()) == 1
    manager.disconnect(wire)
    assert len(manager.listeners) == 1
    assert manager.connect(wire).state.name == "OPEN"


async def test_a_slow_socket_gets_everything_in_order_and_does_not_delay_others() -> None:
    manager, slow, quick = WebSocketManager(), Starlette(), Starlette()
    slow.may_send.clear()
    manager.connect(slow)
    manager.connect(quick)
    for number in range(300):
        await within(manager.broadcast(FOLLOW_UPS | {"questions": [f"{number}", "x" * 1_000]}))
    await eventually(lambda: len(quick.sent) == 300)
    assert slow.sent == []
    await eventually(lambda: sum(socket.blocked for socket in manager.listeners) == 1)
    slow.may_send.set()
    await eventually(lambda: len(slow.sent) == 300)
    assert slow.texts() == quick.texts() == [f"{number}" for number in range(300)]


async def test_only_the_broken_socket_is_removed() -> None:
    manager, broken, whole = WebSocketManager(), Starlette(problem=RuntimeError("not connected")), Starlette()
    manager.connect(broken)
    manager.connect(whole)
    await manager.broadcast(FOLLOW_UPS)
    await eventually(lambda: len(manager.listeners) == 1 and whole.sent)
    broken.problem = None
    manager.connect(broken)  # it has come back
    await manager.broadcast(FOLLOW_UPS | {"questions": ["again"]})
    await eventually(lambda: broken.sent and len(whole.sent) == 2)
    assert broken.texts() == ["again"]
    await manager.close(reason="é" * 100)
    assert [code for code, _ in whole.closed] == [1001]
    assert len((whole.closed[0][1] or "").encode()) <= 123


async def test_a_tornado_handler_can_be_a_listener() -> None:
    manager = WebSocketManager()

    class Wall(WebSocketHandler):
        def open(self, *args: str, **kwargs: str) -> None:
            manager.connect(self)

        def on_close(self) -> None:
            manager.disconnect(self)

    (bound,) = bind_sockets(0, "127.0.0.1")
    server = HTTPServer(Application([("/wall", Wall)]))  # type: ignore[no-untyped-call]
    server.add_sockets([bound])
    async with connect(f"ws://127.0.0.1:{bound.getsockname()[1]}/wall") as client:
        await manager.broadcast(FOLLOW_UPS)
        assert (await receive(client))["questions"] == ["a", "b", "c"]
    await eventually(lambda: not manager.listeners)
    server.stop()


class Coroutines:
    async def write(self, data: bytes) -> None: ...
    async def close(self) -> None: ...


@pytest.mark.parametrize("thing", [None, object(), "ws://localhost", Coroutines(), asyncio.Queue()])
async def test_an_object_that_is_not_a_websocket_is_rejected(thing: Any) -> None:
    manager = WebSocketManager()
    with pytest.raises(TypeError, match=r"is not a WebSocket .* write_message .* send_text or send_json .*Transport"):
        manager.connect(thing)
    assert not manager.listeners
    manager.disconnect(thing)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"type": "my_event"}, "no broadcast of type 'my_event'"),
        ({"type": "follow_up_questions", "questions": 3}, r"\$.questions"),
        ({"type": "engines", "engines": []}, "Only the hub"),
        (None, "must be a dict or a struct"),
    ],
)
async def test_invalid_messages_are_rejected_and_take_no_number(message: Any, reason: str) -> None:
    manager = WebSocketManager()
    with pytest.raises(InputError, match=reason):
        await manager.broadcast(message)
    assert manager.history.last == 0


async def test_it_returns_when_the_event_is_on_disk(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    archive, stored, _ = open_archive(tmp_path, "h", max_bytes=2**20, log_events=100, log_bytes=2**20)
    manager = WebSocketManager(
        history=History(stored=stored), archive=archive, thread=Worker(loop.call_soon_threadsafe), timers=loop
    )
    await manager.broadcast(FOLLOW_UPS)
    assert (manager.history.seq, manager.history.last) == (1, 1)
    payloads, _ = archive.read(0, 1, None, 2**16)
    assert json.loads((payloads or [b""])[0])["questions"] == ["a", "b", "c"]
    await manager.close()
    with pytest.raises(ServerError, match="stopping"):
        await within(manager.broadcast(FOLLOW_UPS))


async def test_the_error_in_another_loop_explains_what_to_do() -> None:
    manager = WebSocketManager(timers=asyncio.get_running_loop(), log=logging.getLogger("test"))
    problems: list[Exception] = []

    def elsewhere() -> None:
        try:
            asyncio.run(manager.broadcast(FOLLOW_UPS))
        except RuntimeError as problem:
            problems.append(problem)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    await asyncio.to_thread(thread.join)
    assert "run_coroutine_threadsafe" in str(problems[0])


# --------------------------------------------------------------------------------- docs/server.md


@pytest.fixture
def extended(start: StartServer, tmp_path: Path) -> Server:
    """A Jupyter server with the extension that docs/server.md shows."""
    (code,) = re.findall(r"<!-- my_extension.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "extensions").mkdir()
    (tmp_path / "extensions" / "my_extension.py").write_text(code)
    return start(
        "--ServerApp.jpserver_extensions=my_extension=True",
        "--ServerApp.jpserver_extensions=ragkit_server=True",
        base_url="/user/x/",
        PYTHONPATH=f"{ROOT}:{ROOT / 'server_extension'}:{tmp_path / 'extensions'}",
    )


async def test_the_extension_in_the_docs_broadcasts_and_listens(extended: Server) -> None:
    def suggest(body: Any) -> int:
        url = f"http://127.0.0.1:{extended.port}{extended.base_url}my-extension/suggest"
        headers = {"Authorization": f"token {TOKEN}", "Content-Type": "application/json"}
        try:
            with urlopen(Request(url, json.dumps(body).encode(), headers), timeout=30) as reply:
                return int(reply.status)
        except HTTPError as problem:
            return problem.code

    async with extended.open() as listener, extended.open("my-extension/wall") as wall:
        assert await asyncio.to_thread(suggest, {"questions": ["From an extension?"]}) == 204
        event = await receive_type(listener, "follow_up_questions")
        assert (event["questions"], event["seq"]) == (["From an extension?"], 1)
        assert "origin" not in event
        assert await receive_type(wall, "follow_up_questions") == event
        assert await asyncio.to_thread(suggest, {"question": ["?"]}) == 400
    await asyncio.to_thread(extended.stop)
    assert "Uncaught exception" not in extended.log()


async def test_the_examples_for_notebooks_and_scripts_run(server: Server, tmp_path: Path) -> None:
    script = "\n".join(re.findall(r"(?<!-->\n)```python\n(.*?)```", PAGE, re.DOTALL))
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "RAGKIT_JOURNAL_DIR": str(tmp_path), "RAGKIT_TOKEN": TOKEN,
        "RAGKIT_URL": f"http://127.0.0.1:{server.port}{server.base_url}",
    }  # fmt: skip
    async with server.open() as listener:
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert (await receive_type(listener, "follow_up_questions"))["questions"][1] == "What is nDCG?"
        assert (await receive_type(listener, "experiment_progress"))["cells_done"] == 3
