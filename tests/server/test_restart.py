"""Listeners and publishers of a server that is killed and restarted."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.server.live_server import (
    DEADLINE_SECONDS,
    ROOT,
    TOKEN,
    Server,
    StartServer,
    eventually,
    receive,
    receive_type,
    say,
)

pytestmark = pytest.mark.anyio

BATCH_RUN = """
import sys, time
from ragkit.live.discovery import Server
from ragkit.live.messages import ExperimentResult, FollowUpQuestions, IndexingProgress, Origin
from ragkit.live.publisher import Publisher

url, token, run, tasks = sys.argv[1:]
publisher = Publisher(server=Server(url, token), origin=Origin(kind="papermill", name=run, run_id=run))
for number in range(int(tasks)):
    task = f"{run} {number}"
    for done in range(20):
        publisher.publish(IndexingProgress(task_id=task, index="i", state="running", documents_done=done))
        time.sleep(0.002)
    publisher.publish(IndexingProgress(task_id=task, index="i", state="done"))
    publisher.publish(FollowUpQuestions(questions=[task]))
    publisher.publish(ExperimentResult(task_id=task, experiment="e", row={"task": task}))
publisher.close(30)
"""


class Auditor:
    """A listener that reconnects and records every event that must not be lost."""

    def __init__(self) -> None:
        self.last: tuple[str, int] | None = None
        self.heard: list[tuple[str, str]] = []
        self.gaps = 0
        self.epochs: set[str] = set()

    def note(self, message: dict[str, Any]) -> None:
        state = message.get("snapshot", message)
        if "seq" not in state:
            return
        self.gaps += message["type"] == "gap"
        if self.last is not None and message["type"] != "gap":
            assert state["epoch"] == self.last[0]
            assert state["seq"] == self.last[1] + 1, "a hole, or a repeat"
        self.last = state["epoch"], state["seq"]
        self.epochs.add(state["epoch"])
        match message:
            case {"type": "indexing_progress", "state": "done" | "failed" | "cancelled" as end}:
                self.heard.append((end, message["task_id"]))
            case {"type": "follow_up_questions"}:
                self.heard.append(("follow-up", message["questions"][0]))
            case {"type": "experiment_result"}:
                self.heard.append(("result", message["task_id"]))

    async def listen(self, server: Server) -> None:
        while True:
            resume = f"?epoch={self.last[0]}&seq={self.last[1]}" if self.last else ""
            with contextlib.suppress(ConnectionClosed, OSError, InvalidStatus):
                async with server.open("api/v1/ws" + resume) as socket:
                    async for frame in socket:
                        self.note(json.loads(frame))
            await asyncio.sleep(0.05)


@pytest.fixture
def processes() -> Any:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def batch_run(server: Server, name: str, tasks: int, journal: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAGKIT_JOURNAL_DIR": str(journal)}
    url = server.url("").replace("ws", "http", 1)
    return subprocess.Popen([sys.executable, "-c", BATCH_RUN, url, TOKEN, name, str(tasks)], env=environment)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM"])
async def test_a_restart_during_batch_runs_loses_and_repeats_nothing(
    start: StartServer, tmp_path: Path, processes: Any, how: str
) -> None:
    server = start()
    auditor = Auditor()
    listening = asyncio.create_task(auditor.listen(server))
    runs, tasks = ("one", "two"), 60
    processes += [batch_run(server, run, tasks, server.journal_dir) for run in runs]
    for turn in (1, 2):
        await eventually(lambda turn=turn: len(auditor.heard) > 60 * turn)
        if how == "SIGKILL":
            server.kill()
        else:
            await asyncio.to_thread(server.stop)
        await asyncio.sleep(0.3)
        start(port=server.port)
    for process in processes:
        assert await asyncio.to_thread(process.wait, 3 * DEADLINE_SECONDS) == 0
    expected = {(kind, f"{run} {n}") for run in runs for n in range(tasks) for kind in ("done", "follow-up", "result")}
    await eventually(lambda: len(auditor.heard) >= len(expected))
    await asyncio.sleep(0.5)
    listening.cancel()
    await asyncio.wait([listening])  # closes its socket
    assert sorted(auditor.heard) == sorted(expected)
    assert auditor.gaps == 0
    assert len(auditor.epochs) == 1


async def test_a_task_whose_process_died_while_the_server_was_away_fails(start: StartServer, tmp_path: Path) -> None:
    server = start()
    async with server.publisher() as publisher, server.open() as listener:
        event = {"type": "indexing_progress", "task_id": "t", "index": "i", "state": "running"}
        await say(publisher, type="publish", n=1, event=event)
        await say(publisher, type="offer", engine={"id": "e", "index": "i"})
        last = await receive_type(listener, "engines")
        server.kill()
    server = start("--RagkitApp.publisher_grace_seconds=0.5", port=server.port)
    async with server.open(f"api/v1/ws?epoch={last['epoch']}&seq={last['seq']}") as listener:
        assert (await receive_type(listener, "engines"))["engines"] == [], "nobody is here yet"
        end = await receive_type(listener, "indexing_progress")
        assert (end["task_id"], end["state"]) == ("t", "failed")
        await say(listener, type="subscribe")
        snapshot = await receive_type(listener, "snapshot")
        assert [(task["task_id"], task["state"]) for task in snapshot["tasks"]] == [("t", "failed")]


async def test_two_servers_in_one_folder_have_a_history_each(start: StartServer, tmp_path: Path) -> None:
    one = start()
    two = start()
    async with one.open() as first, two.open() as second, one.publisher() as publisher:
        await say(publisher, type="publish", n=1, event={"type": "follow_up_questions", "questions": ["One?"]})
        epoch = (await receive(first))["epoch"]
        await say(second, type="subscribe")
        snapshot = await receive(second)
        assert snapshot["epoch"] != epoch
        assert snapshot["follow_ups"] == []
    histories = list((tmp_path / "data" / "ragkit" / "history").glob("*.sqlite"))
    assert len(histories) == 2


async def test_without_a_writable_folder_the_history_is_in_memory_and_a_warning_is_logged(
    start: StartServer, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    server = start(f"--RagkitApp.history_dir={tmp_path / 'file'}")
    assert "history cannot be kept" in server.log()
    async with server.open() as listener, server.publisher() as publisher:
        await say(publisher, type="publish", n=1, event={"type": "follow_up_questions", "questions": ["Why?"]})
        assert (await receive(listener))["questions"] == ["Why?"]
    assert "Traceback" not in server.log()


async def test_a_partly_adopted_journal_is_finished_by_the_same_history(start: StartServer, tmp_path: Path) -> None:
    journals = tmp_path / "journal"
    journals.mkdir()
    count = 20_000
    origin = {"kind": "papermill", "name": "batch.ipynb", "run_id": "r"}
    lines = [{"type": "hello", "publisher": "p", "origin": origin}]
    lines += [
        {"type": "publish", "n": n, "event": {"type": "follow_up_questions", "questions": [str(n)]}}
        for n in range(1, count + 1)
    ]
    (journals / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    server = start()
    auditor = Auditor()
    listening = asyncio.create_task(auditor.listen(server))
    await eventually(lambda: auditor.heard or any(".claimed-" in name for name in os.listdir(journals)))
    await eventually(lambda: len(auditor.heard) > 500)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait()
    left = [name for name in os.listdir(journals) if ".claimed-" in name and not name.endswith(".lock")]
    assert len(left) == 1, "it was killed in the middle"
    other = start(folder=tmp_path / "other", RAGKIT_JOURNAL_DIR=str(journals))
    await asyncio.sleep(1)
    assert [name for name in os.listdir(journals) if ".claimed-" in name and not name.endswith(".lock")] == left
    await asyncio.to_thread(other.stop)
    start(port=server.port)
    await eventually(lambda: auditor.heard and auditor.heard[-1][1] == str(count))
    await asyncio.sleep(0.3)
    listening.cancel()
    await asyncio.wait([listening])  # closes its socket
    first = int(auditor.heard[0][1])  # what was adopted before the auditor came is in the history
    assert [text for _, text in auditor.heard] == [str(n) for n in range(first, count + 1)]
    assert [name for name in os.listdir(journals) if not name.endswith(".lock")] == []
