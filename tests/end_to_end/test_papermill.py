"""Batch runs: papermill from a terminal, with a running server and without one."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.conftest import ROOT
from tests.server.live_server import TOKEN, Server, start_server
from tests.support.corpora import write_pages

DEADLINE_SECONDS = 60.0


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    """A parameterised notebook that indexes and asks."""
    book = nbformat.v4.new_notebook()
    parameters = nbformat.v4.new_code_cell(
        'folder = "nowhere"\nquestion = "nothing"', metadata={"tags": ["parameters"]}
    )
    work = nbformat.v4.new_code_cell(
        "from ragkit import ExtractiveLLM, HashEmbedder, RAGEngine\n"
        "embedder = HashEmbedder()\n"
        "engine = RAGEngine('index', embedder=embedder, llm=ExtractiveLLM(embedder, min_relevance=0.5))\n"
        "report = engine.index(folder)\n"
        "engine.ask(question)"
    )
    book.cells = [parameters, work]
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "root" / "batch.ipynb"
    path.parent.mkdir()
    nbformat.write(book, path)
    write_pages(tmp_path / "root" / "docs")
    return path


def run(notebook: Path, environment: dict[str, str], *, output: str = "out.ipynb") -> None:
    environment = (
        os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server_extension")])} | environment
    )
    for name in ("RAGKIT_URL", "RAGKIT_TOKEN", "JUPYTER_SERVER_URL", "JPY_PARENT_PID"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "papermill", notebook.name, output, "--no-progress-bar"]
        + ["-p", "folder", "docs", "-p", "question", "How do I choose k1 and b?"],
        cwd=notebook.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def listen(server: Server) -> ClientConnection:
    return connect(server.url("api/v1/ws"), additional_headers={"Authorization": f"token {TOKEN}"}, proxy=None)


def collect(socket: ClientConnection, wanted: set[str], *, one: bool = False) -> list[dict[str, Any]]:
    """Receive messages until each wanted type has arrived, also within a snapshot. ``one``: only the next message."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    seen: list[dict[str, Any]] = []
    while wanted:
        message = json.loads(socket.recv(timeout=max(0.0, deadline - time.monotonic())))
        messages = [*message["tasks"], *message["follow_ups"]] if message["type"] == "snapshot" else [message]
        for each in messages:
            seen.append(each)
            finished = each["type"] == "indexing_progress" and each["state"] == "done"
            wanted -= {"done"} if finished else {each["type"]}
        if one:
            break
    return seen


def check(seen: list[dict[str, Any]]) -> None:
    done = next(m for m in seen if m["type"] == "indexing_progress" and m["state"] == "done")
    follow_ups = next(m for m in seen if m["type"] == "follow_up_questions")
    assert done["documents_done"] == done["documents_total"] == 4
    assert follow_ups["questions"]
    for message in (done, follow_ups):
        assert message["origin"]["kind"] == "papermill"
        assert message["origin"]["name"] == "batch.ipynb"
    assert done["origin"]["run_id"] == follow_ups["origin"]["run_id"]


def answered(notebook: Path) -> str:
    out = nbformat.read(notebook.parent / "out.ipynb", as_version=4)
    return "".join(str(output.get("data", {}).get("text/plain", "")) for output in out.cells[-1].outputs)


def test_with_a_running_server_it_is_on_the_socket_under_its_own_origin(tmp_path: Path, notebook: Path) -> None:
    server = start_server(tmp_path)
    try:
        with listen(server) as socket:
            # The server can be found only through the runtime folder: its root contains the notebook.
            run(
                notebook,
                {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "RAGKIT_JOURNAL_DIR": str(tmp_path / "journal")},
            )
            seen = collect(socket, {"done", "follow_up_questions"})
        check(seen)
        sequence = [message["seq"] for message in seen]
        assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))
        assert "1.2" in answered(notebook)
    finally:
        server.stop()


def test_two_kernels_and_three_listeners(tmp_path: Path, notebook: Path) -> None:
    """Every listener gets every broadcast of both kernels, in the order in which each published."""
    other = notebook.with_name("other.ipynb")
    book = nbformat.read(notebook, as_version=4)
    book.cells[1].source = book.cells[1].source.replace("'index'", "'other-index'")
    nbformat.write(book, other)
    server = start_server(tmp_path)
    where = {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "RAGKIT_JOURNAL_DIR": str(tmp_path / "journal")}
    try:
        with listen(server) as one, listen(server) as two, listen(server) as three:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                list(pool.map(lambda path: run(path, where, output=f"out-{path.name}"), [notebook, other]))
            heard = []
            for socket in (one, two, three):
                ends: set[str] = set()
                messages = []
                while len(ends) < 2:
                    (message,) = collect(socket, {"any"}, one=True)
                    messages.append(message)
                    if message["type"] == "follow_up_questions":
                        ends.add(message["origin"]["name"])
                heard.append(messages)
    finally:
        server.stop()
    assert heard[0] == heard[1] == heard[2]
    sequence = [message["seq"] for message in heard[0]]
    assert sequence == list(range(sequence[0], sequence[0] + len(sequence)))
    for name in ("batch.ipynb", "other.ipynb"):
        own = [m for m in heard[0] if m.get("origin", {}).get("name") == name]
        assert [m["state"] for m in own if m["type"] == "indexing_progress"][-1] == "done"
        assert own[-1]["type"] == "follow_up_questions"
        done = [m["chunks_done"] for m in own if m["type"] == "indexing_progress"]
        assert done == sorted(done)
        assert [m["time"] for m in own] == sorted(m["time"] for m in own)


def test_without_a_server_events_wait_in_a_journal_that_the_next_server_adopts_once(
    tmp_path: Path, notebook: Path
) -> None:
    (tmp_path / "runtime").mkdir()
    run(notebook, {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "RAGKIT_JOURNAL_DIR": str(tmp_path / "journal")})
    assert "1.2" in answered(notebook)  # nothing is missing from the notebook itself
    (journal,) = (tmp_path / "journal").glob("*.jsonl")
    assert json.loads(journal.read_text().splitlines()[0])["type"] == "hello"
    server = start_server(tmp_path)
    try:
        with listen(server) as socket:
            socket.send(json.dumps({"type": "subscribe"}))
            check(collect(socket, {"done", "follow_up_questions"}))
        deadline = time.monotonic() + DEADLINE_SECONDS
        while list((tmp_path / "journal").glob("*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert list((tmp_path / "journal").glob("*.jsonl")) == []
    finally:
        server.stop()
