"""`ragkit watch` against a real Jupyter server and against a hub that disconnects; and its screen alone."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from websockets.asyncio.server import ServerConnection, serve

from ragkit.cli.watch import Screen
from tests.server.live_server import TOKEN, Server, receive_type, say, start_server
from tests.support.commands import command, environment, ragkit, running

ORIGIN = {"kind": "notebook", "name": "demo.ipynb", "run_id": "r"}
FOLLOW_UPS = {"type": "follow_up_questions", "questions": ["Why?", "Pourquoi ?"], "index": "handbook"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("watch-server"), base_url="/user/x/")
    yield server
    server.stop()


def publish(server: Server, *published: dict[str, Any]) -> None:
    async def work() -> None:
        async with server.publisher() as socket:
            for n, event in enumerate(published, start=1):
                await say(socket, type="publish", n=n, event=event)
            while (await receive_type(socket, "ack"))["n"] < len(published):
                pass

    asyncio.run(work())


# ------------------------------------------------------------------------------ the real server


def test_json_lines_are_printed_as_published_and_ctrl_c_exits_with_0(server: Server, tmp_path: Path) -> None:
    with running("watch", "--json", cwd=tmp_path, server=server) as watch:
        assert json.loads(watch.wait_for('"snapshot"'))["type"] == "snapshot"
        publish(server, FOLLOW_UPS | {"question": "evil \x1b[2J \x9b2J"})
        line = watch.wait_for('"follow_up_questions"')
        message = json.loads(line)
        assert message["questions"] == FOLLOW_UPS["questions"]
        assert message["question"] == "evil \x1b[2J \x9b2J"  # no text is lost,
        assert "Pourquoi ?" in line  # readable text is not escaped,
        assert not any(character < " " or "\x7f" <= character <= "\x9f" for character in line)  # control characters are
        assert isinstance(message["seq"], int)
        assert watch.end(signal.SIGINT) == 0


def test_without_a_terminal_it_prints_readable_lines(server: Server, tmp_path: Path) -> None:
    progress = {
        "type": "indexing_progress",
        "task_id": "t1",
        "index": "handbook",
        "chunks_total": 9,
        "state": "running",
    }
    with running("watch", cwd=tmp_path, server=server) as watch:
        watch.wait_for("Connected to http://127.0.0.1")
        watch.wait_for("No engine is on offer.")
        publish(server, progress | {"chunks_done": 4}, FOLLOW_UPS, progress | {"chunks_done": 9, "state": "done"})
        watch.wait_for("Indexing handbook (notebook demo.ipynb) running, documents 0/?, passages 4/9")
        watch.wait_for("• Pourquoi ?")
        watch.wait_for("Indexing handbook (notebook demo.ipynb) done, documents 0/?, passages 9/9")
        assert watch.end(signal.SIGINT) == 0


def test_until_exits_when_all_types_have_arrived(server: Server, tmp_path: Path) -> None:
    arguments = ("watch", "--json", "--until", "follow_up_questions,indexing_progress", "--timeout", "60")
    with running(*arguments, cwd=tmp_path, server=server) as watch:
        watch.wait_for('"snapshot"')
        publish(server, FOLLOW_UPS)
        watch.wait_for('"follow_up_questions"')
        assert watch.process.poll() is None  # one of two
        publish(server, {"type": "indexing_progress", "task_id": "t2", "index": "i", "state": "done"})
        assert watch.process.wait(60) == 0


def test_until_names_the_types_that_did_not_arrive(server: Server, tmp_path: Path) -> None:
    done = ragkit("watch", "--json", "--until", "response,snapshot", "--timeout", "2", cwd=tmp_path, server=server)
    assert done.returncode == 1
    assert "Not seen within 2 seconds: response." in done.stderr


def test_a_question_is_asked_when_an_engine_is_offered(server: Server, tmp_path: Path) -> None:
    arguments = ("watch", "--ask", "What is BM25?", "--until", "response", "--timeout", "60")

    async def answer() -> None:
        async with server.publisher() as socket:
            await say(socket, type="offer", engine={"id": "e", "index": "handbook"})
            query = await receive_type(socket, "engine_query")
            assert query["content"]["question"] == "What is BM25?"
            source = {
                "number": 1, "document_id": "bm25.md", "title": "BM25 [red]", "source": "docs/bm25.md",
                "text": "t", "start": 0, "end": 1,
            }  # fmt: skip
            content = {"answer": "A ranking function. [1]", "sources": [source]}
            await say(socket, type="response", id=query["id"], content=content)
            await asyncio.to_thread(watch.wait_for, "docs/bm25.md")

    with running(*arguments, cwd=tmp_path, server=server) as watch:
        watch.wait_for("NO_ENGINE")
        asyncio.run(answer())
        assert "A ranking function. [1]" in watch.lines
        assert "  [1] BM25 [red]  (docs/bm25.md)" in watch.lines
        assert watch.process.wait(60) == 0


def test_a_closed_pipe_is_no_error(server: Server, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command("watch", "--json"),
        cwd=tmp_path,
        env=environment(tmp_path, server),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        publish(server, FOLLOW_UPS)
        publish(server, FOLLOW_UPS)
        assert process.wait(60) == 0
        assert b"Error" not in process.stderr.read()


def test_a_wrong_token_is_reported_and_not_shown(server: Server, tmp_path: Path) -> None:
    done = ragkit("watch", "--token", "wrong-token-1234", cwd=tmp_path, server=server)
    assert done.returncode == 1
    assert "HTTP 403 with its token" in done.stderr
    assert "the right to read" in done.stderr
    assert "wrong-token-1234" not in done.stderr


def test_the_token_is_not_sent_to_another_address(server: Server, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{server.port}{server.base_url}"
    there = "http://127.0.0.1:9/"
    done = ragkit("watch", "--url", url, "--timeout", "30", cwd=tmp_path, RAGKIT_URL=there, RAGKIT_TOKEN=TOKEN)
    assert done.returncode == 1
    assert "HTTP 403 without a token" in done.stderr


def test_without_a_server_it_fails_at_once(tmp_path: Path) -> None:
    done = ragkit("watch", cwd=tmp_path)
    assert done.returncode == 1
    assert "No running Jupyter server was found" in done.stderr


def test_an_unknown_type_is_a_usage_error(tmp_path: Path) -> None:
    done = ragkit("watch", "--until", "reponse", cwd=tmp_path)
    assert done.returncode == 2
    assert "no message type 'reponse'" in done.stderr


# ------------------------------------------------------------------------- a hub that goes away


@contextlib.contextmanager
def hub(*conversations: list[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Run a hub that sends one list of messages per connection; yield its address and the requested paths."""
    paths: list[str] = []
    ready: asyncio.Future[Any]
    loop = asyncio.new_event_loop()

    async def talk(socket: ServerConnection) -> None:
        assert socket.request is not None
        paths.append(socket.request.path)
        assert json.loads(await socket.recv()) == {"type": "subscribe", "topics": None, "since": None}
        for message in conversations[min(len(paths), len(conversations)) - 1]:
            await socket.send(json.dumps(message))
        if len(paths) >= len(conversations):
            await socket.wait_closed()

    async def main() -> None:
        async with serve(talk, "127.0.0.1", 0) as server:
            started.append(server.sockets[0].getsockname()[1])
            up.set()
            await ready

    started: list[int] = []
    up = threading.Event()
    ready = loop.create_future()
    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    assert up.wait(30)
    try:
        yield f"http://127.0.0.1:{started[0]}/", paths
    finally:
        loop.call_soon_threadsafe(ready.set_result, None)
        thread.join(30)
        loop.close()


def test_it_reconnects_and_resumes(tmp_path: Path) -> None:
    snapshot = {"type": "snapshot", "epoch": "e 1", "seq": 4, "tasks": [], "engines": [], "follow_ups": []}
    event = FOLLOW_UPS | {"epoch": "e 1", "time": "2026-01-01T00:00:00Z", "origin": ORIGIN}
    last = event | {"seq": 7, "type": "engines", "engines": []}
    with hub([snapshot, event | {"seq": 5}], [event | {"seq": 6}, snapshot | {"seq": 6}, last]) as (url, paths):
        done = ragkit("watch", "--json", "--url", url, "--until", "engines", "--timeout", "60", cwd=tmp_path)
    assert done.returncode == 0
    assert [json.loads(line)["seq"] for line in done.stdout.splitlines()] == [4, 5, 6, 6, 7]
    assert paths == ["/api/v1/ws", "/api/v1/ws?epoch=e+1&seq=5"]
    assert f"{url} closed the connection" in done.stderr
    assert f"Connected again to {url}" in done.stderr


def test_events_replaced_by_a_gap_count_as_seen(tmp_path: Path) -> None:
    snapshot = {"type": "snapshot", "epoch": "e", "seq": 4, "tasks": [], "engines": [], "follow_ups": []}
    gap = {"type": "gap", "snapshot": snapshot | {"seq": 9, "follow_ups": [FOLLOW_UPS]}}
    with hub([snapshot, gap, {"type": "a type of tomorrow"}]) as (url, _):
        done = ragkit("watch", "--url", url, "--until", "follow_up_questions", "--timeout", "60", cwd=tmp_path)
    assert done.returncode == 0
    assert "Some events were missed" in done.stdout
    assert "• Why?" in done.stdout


def test_it_waits_for_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    done = ragkit("watch", "--url", "http://127.0.0.1:9/", "--until", "engines", "--timeout", "3", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("No connection to http://127.0.0.1:9/") == 1  # one warning for all attempts


# ----------------------------------------------------------------------------------- the screen


def screen(*messages: dict[str, Any], terminal: bool = False) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200, color_system=None)
    with Screen(console) as view:
        for message in messages:
            view.show(message)
        if terminal:
            view._progress.refresh()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def progress(**changes: Any) -> dict[str, Any]:
    known = {"type": "indexing_progress", "task_id": "t", "index": "i", "state": "running", "origin": ORIGIN}
    return known | changes


def test_untrusted_text_cannot_control_the_terminal_or_rich() -> None:
    evil = "[red]\x1b]0;title\x07\x1b[2J\u202egnp.exe\r[/red]"
    shown = screen(
        FOLLOW_UPS | {"questions": [evil], "question": evil, "origin": ORIGIN | {"name": evil}},
        progress(state="failed", index=evil, message=evil, failures=[{"source": evil, "reason": evil}]),
        {"type": "engines", "engines": [{"id": "e", "index": evil, "llm": evil}]},
        {"type": "error", "content": {"message": evil, "code": "TIMEOUT"}},
        {"type": "response", "content": {"answer": evil, "sources": []}},
        {"type": "experiment_result", "task_id": "x", "experiment": evil, "row": {evil: evil}},
    )
    assert not set(shown) & {"\x1b", "\x07", "\u202e", "\r"}
    assert r"[red]\x1b]0;title\x07\x1b[2J\u202egnp.exe" in shown


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-12:00", "yesterday"])
def test_an_invalid_time_is_ignored(time: str) -> None:
    assert "Why?" in screen(FOLLOW_UPS | {"time": time})


def test_a_bar_shows_the_progress_of_a_task() -> None:
    task = progress(
        documents_done=3, documents_total=12, chunks_done=50, chunks_total=200, rate=31.4, eta_seconds=75.0,
        failures_total=2, current_document="[b]guide.md\x1b[2J",
    )  # fmt: skip
    shown = screen(task, terminal=True)
    for part in (
        "Indexing i (notebook",
        "documents 3/12, passages 50/200, 31/s, 2 failed, 1:15 left",
        r"[b]guide.md\x1b",
    ):
        assert part in shown
    assert "\x1b[2J" not in shown


def test_an_ended_task_leaves_a_line_with_its_failures() -> None:
    failures = [{"source": f"{n}.pdf", "reason": "it is damaged"} for n in range(7)]
    shown = screen(progress(), progress(state="done", failures=failures, failures_total=7), terminal=True)
    assert "Indexing i (notebook demo.ipynb) done" in shown
    assert shown.count("it is damaged") == 5
    assert "… and 2 more" in shown


def test_a_snapshot_does_not_repeat_events() -> None:
    stamp = {"epoch": "e", "time": "2026-01-01T00:00:00Z", "origin": ORIGIN}
    old = FOLLOW_UPS | stamp | {"seq": 1}
    new = old | {"questions": ["And now?"], "seq": 2}
    ended = progress(state="done") | stamp | {"seq": 1}
    snapshot = {"type": "snapshot", "epoch": "e", "seq": 2, "tasks": [ended], "engines": [], "follow_ups": [old, new]}
    shown = screen(old, snapshot, snapshot)
    assert shown.count("Why?") == 1
    assert shown.count("And now?") == 1
    assert "done" not in shown
    assert "done" in screen(snapshot)


def test_unknown_messages_are_ignored() -> None:
    assert screen({"type": "a type of tomorrow"}, {"type": "indexing_progress", "state": "paused"}) == ""
