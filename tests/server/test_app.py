"""The extension in each kind of Jupyter server, its child engine, its journals, its end."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jupyterlab_server.translation_utils import get_installed_packages_locale
from websockets.exceptions import ConnectionClosed

from tests.server.live_server import ROOT, TOKEN, StartServer, receive, receive_type, say, within

pytestmark = pytest.mark.anyio

FAKE_ENGINE = Path(__file__).with_name("fake_engine.py")


def engine_command(*words: str) -> list[str]:
    return [f"--RagkitApp.engine_command={word}" for word in (sys.executable, *words)]


@pytest.mark.parametrize("app", ["server", "lab", "ragkit"])
async def test_it_works_in_every_server_under_a_base_url(start: StartServer, app: str) -> None:
    server = start(app=app, base_url="/hub/user/a b/".replace(" ", "%20"))
    async with server.open() as listener, server.publisher() as publisher:
        await say(publisher, type="publish", n=1, event={"type": "follow_up_questions", "questions": ["Why?"]})
        assert (await receive(listener))["questions"] == ["Why?"]
    assert "Traceback" not in server.log()


def test_jupyter_ragkit_uses_port_8000_or_the_next_free_port() -> None:
    code = (
        "from ragkit_server.app import RagkitApp\n"
        "app = RagkitApp.initialize_server(argv=['--ServerApp.open_browser=False', '--allow-root'])\n"
        "print('port', app.port, app.port_retries)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server_extension")])}
    environment.pop("JUPYTER_PORT", None)
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert "port 8000 50" in output


def test_the_extension_imports_no_heavy_libraries() -> None:
    code = (
        "import sys, ragkit_server.app, ragkit_server\n"
        "ragkit_server._jupyter_server_extension_points()\n"
        "heavy = {'torch', 'chromadb', 'sentence_transformers', 'pandas', 'numpy', 'openai', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server_extension")])}
    output = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert output.strip() == "[]"


def test_the_french_translation_is_found_and_other_languages_still_work() -> None:
    """JupyterLab offers no language at all if one package names a missing folder."""
    found, trouble = get_installed_packages_locale("fr_FR")
    assert trouble == ""
    assert "ragkit" in found


async def test_the_child_starts_on_the_first_query_and_restarts_after_a_crash(start: StartServer) -> None:
    server = start(*engine_command(str(FAKE_ENGINE)), "--RagkitApp.index=indexes/handbook", base_url="/x/")
    async with server.open() as listener:
        await say(listener, type="subscribe")
        assert (await receive(listener))["engines"] == [], "nothing is started before it is needed"
        for id, question in [("1", "Why?"), ("2", "fail")]:
            await say(listener, type="query", id=id, content={"question": question, "context": {"index": "handbook"}})
        answer = await receive_type(listener, "response")
        assert answer["id"] == "1"
        child = int(answer["content"]["answer"])
        assert (await receive_type(listener, "error"))["content"]["message"] == "it failed"
        await say(listener, type="query", id="3", content={"question": "die"})
        assert (await receive_type(listener, "error"))["content"]["code"] == "ENGINE_LOST"
        while (await receive_type(listener, "engines"))["engines"]:  # a broadcast, which replies overtake
            continue
        await say(listener, type="query", id="4", content={"question": "Why?"})
        answer = await receive_type(listener, "response", "error")
        assert (answer["type"], answer["id"]) == ("response", "4")
        second = int(answer["content"]["answer"])
        assert second != child
    await asyncio.to_thread(server.stop)
    with pytest.raises(ProcessLookupError):
        os.kill(second, 0)
    assert TOKEN not in server.log()
    assert "Traceback" not in server.log()


async def test_a_child_that_cannot_start_gives_the_reason_without_the_token(start: StartServer) -> None:
    server = start(*engine_command(str(FAKE_ENGINE)), "--RagkitApp.index=indexes/broken")
    async with server.open() as listener:
        await say(listener, type="query", id="1", content={"question": "Why?"})
        reply = await receive_type(listener, "error")
        assert reply["content"]["code"] == "ENGINE_FAILED"
        assert "no index at indexes/broken" in reply["content"]["message"]
        assert TOKEN not in reply["content"]["message"]
    assert TOKEN not in server.log()


async def test_a_child_that_is_slow_to_start_is_a_timeout(start: StartServer) -> None:
    command = engine_command("-c", "import time; time.sleep(60)")
    server = start(*command, "--RagkitApp.index=i", "--RagkitApp.start_timeout_seconds=0.5")
    async with server.open() as listener:
        await say(listener, type="query", id="1", content={"question": "Why?"})
        assert (await receive_type(listener, "error"))["content"]["code"] == "TIMEOUT"


def write_journal(folder: Path, publisher: str, count: int) -> None:
    origin = {"kind": "papermill", "name": "batch.ipynb", "run_id": publisher}
    events = [{"type": "follow_up_questions", "questions": [f"{publisher} {n}"]} for n in range(1, count + 1)]
    lines = [{"type": "hello", "publisher": publisher, "origin": origin}]
    lines += [{"type": "publish", "n": n, "event": event} for n, event in enumerate(events, 1)]
    (folder / f"{publisher}.new").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / f"{publisher}.new").rename(folder / f"{publisher}.jsonl")


async def test_journals_are_adopted_at_the_start_and_later_by_one_server_only(
    start: StartServer, tmp_path: Path
) -> None:
    journals = tmp_path / "one" / "journal"
    journals.mkdir(parents=True)
    write_journal(journals, "early", 3)
    options = ["--RagkitApp.journal_scan_seconds=0.1"]
    one = start(*options, folder=tmp_path / "one")
    two = start(*options, folder=tmp_path / "two", RAGKIT_JOURNAL_DIR=str(journals))
    async with one.open() as first, two.open() as second:
        await say(first, type="subscribe")
        snapshot = await receive_type(first, "snapshot")
        while len(snapshot["follow_ups"]) < 3:
            await say(first, type="subscribe")
            snapshot = await receive_type(first, "snapshot")
        assert [m["questions"] for m in snapshot["follow_ups"]] == [["early 1"], ["early 2"], ["early 3"]]
        for number in range(10):
            write_journal(journals, f"late{number}", 20)

        heard: list[str] = []

        async def listen(listener: object) -> None:
            while len(heard) < 200:
                heard.append((await receive_type(listener, "follow_up_questions"))["questions"][0])

        listening = [asyncio.create_task(listen(listener)) for listener in (first, second)]
        await within(asyncio.wait(listening, return_when=asyncio.FIRST_COMPLETED))
        await asyncio.sleep(0.5)
        for task in listening:
            task.cancel()
    late = sorted(text for text in heard if text.startswith("late"))
    assert late == sorted(f"late{number} {n}" for number in range(10) for n in range(1, 21))
    assert os.listdir(journals) == []


async def test_at_shutdown_listeners_get_queued_messages_and_code_1001(start: StartServer) -> None:
    server = start()
    async with server.open() as listener, server.publisher() as publisher:
        await say(publisher, type="publish", n=1, event={"type": "follow_up_questions", "questions": ["Last?"]})
        await receive_type(publisher, "ack")
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        assert (await receive(listener))["questions"] == ["Last?"]
        for socket in (listener, publisher):
            with pytest.raises(ConnectionClosed) as closed:
                await receive(socket)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
        await within(stopping)
    assert "Traceback" not in server.log()
