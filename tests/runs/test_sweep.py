"""Sweeps: notebooks under papermill, started by the command line, observed on a WebSocket."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from websockets.sync.client import connect

from ragkit.errors import InputError, SourceNotFoundError
from ragkit.live import messages
from ragkit.runs.notebook import ParameterizedNotebook, grid
from ragkit.runs.store import RunStore
from ragkit.runs.sweep import sweep
from tests.server.live_server import TOKEN, start_server
from tests.support.commands import ragkit, running

DEADLINE_SECONDS = 120.0
WORK = """\
import time
import ragkit.live.publisher
from ragkit.runs import record
record(early=chunk_size / 2, kind=ragkit.live.publisher.default_publisher().origin.kind)
if retriever == "bm25" and chunk_size == 256:
    raise ValueError("no passages of 256")
if retriever == "hang":
    time.sleep(1_000)
if retriever == "die":
    import os
    os._exit(3)
record(ndcg=chunk_size / 1_000)
if retriever == "bm25":
    import pandas
    record(scores=pandas.DataFrame({"query": ["q1"], "ndcg": [0.5]}))
"""


def write_notebook(
    path: Path, *cells: str, parameters: str | None = "chunk_size = 64\nretriever = 'bm25'\nseed = 13"
) -> Path:
    book = nbformat.v4.new_notebook()
    if parameters is not None:
        book.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    book.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)
    return path


def eventually(condition: Callable[[], Any]) -> Any:
    ends = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < ends
        time.sleep(0.1)
    return value


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def test_the_command_runs_a_grid_publishes_progress_and_reports_a_failure(tmp_path: Path) -> None:
    folder = tmp_path / "{root}"
    folder.mkdir()
    notebook = write_notebook(folder / "évaluer {un}.ipynb", WORK)
    before = notebook.read_bytes()
    command = ("sweep", notebook.name, "-p", "chunk_size", "128", "256", "-p", "retriever", "bm25", "hybrid", "-j", "2")
    server = start_server(tmp_path)
    try:
        with connect(
            server.url("api/v1/ws"), additional_headers={"Authorization": f"token {TOKEN}"}, proxy=None
        ) as socket:
            done = ragkit(*command, cwd=folder, server=server)
            received: list[dict[str, Any]] = []
            while not received or received[-1].get("state") not in messages.TERMINAL:
                message = json.loads(socket.recv(timeout=DEADLINE_SECONDS))
                received += [message] if message["type"].startswith("experiment") else []
    finally:
        server.stop()
    assert done.returncode == 1, done.stderr
    assert "3 of 4 done" in done.stdout
    assert "ValueError: no passages of 256" in done.stdout

    results = [message for message in received if message["type"] == "experiment_result"]
    progress = [message for message in received if message["type"] == "experiment_progress"]
    done_counts = [message["cells_done"] for message in progress]
    assert (done_counts[0], done_counts[-1], done_counts) == (0, 4, sorted(done_counts))
    assert {message["cells_total"] for message in progress} == {4}
    assert (progress[-1]["state"], progress[-1]["message"]) == ("done", "1 of 4 notebooks failed.")
    assert len(results) == 4
    assert [len(message["leaderboard"]) for message in results] == [1, 2, 3, 4]
    (failure,) = [message["row"] for message in results if message["row"]["state"] == "failed"]
    assert (failure["chunk_size"], failure["retriever"], failure["error"]) == (256, "bm25", "ValueError")
    assert "raise ValueError" in failure["traceback"]
    assert {message["origin"]["kind"] for message in received} == {"cli"}

    store = RunStore(folder / "runs")
    frame = store.to_frame().sort_values(["chunk_size", "retriever"])
    assert frame["state"].tolist() == ["done", "done", "failed", "done"]
    assert frame["early"].tolist() == [64, 64, 128, 128]  # recorded before it failed
    assert frame["ndcg"].fillna(0).tolist() == [0.128, 0.128, 0, 0.256]
    assert set(frame["kind"]) == {"sweep"}
    assert set(frame["recorded.kind"]) == {"papermill"}  # so the notebook publishes with this origin
    run = store.get(frame["run"].iloc[0])
    assert run.read_table("scores")["ndcg"].tolist() == [0.5]
    assert run.info.provenance.seeds == {"seed": 13}
    executed = nbformat.read(run.path / "notebook.ipynb", as_version=4)
    assert "chunk_size = 128" in executed.cells[1].source
    assert notebook.read_bytes() == before

    # The same command resumes: finished combinations are not run again.
    again = ragkit(*command, cwd=folder)
    assert again.returncode == 1
    assert "3 were already done" in again.stdout
    assert len(store.list()) == 5
    write_notebook(notebook, WORK.replace("raise ValueError", "ValueError"))  # a changed code cell changes the key
    assert ragkit("sweep", notebook.name, "-p", "chunk_size", "256", cwd=folder).returncode == 0
    assert len(store.list()) == 6


def test_failed_notebooks_are_rows_and_no_worker_is_left_running(tmp_path: Path) -> None:
    notebook = write_notebook(tmp_path / "n.ipynb", WORK)
    seen: list[tuple[int, str]] = []
    frame = sweep(
        notebook,
        {"retriever": ["die", "hybrid"]},
        max_concurrency=2,
        store=tmp_path / "runs",
        on_row=lambda at, row: seen.append((at, row["state"])),
    )
    assert frame["state"].tolist() == ["failed", "done"]
    assert frame["error"][0] == "DeadKernelError"
    assert frame["early"].tolist() == [32, 32]  # recorded before the kernel died
    assert seen[:2] == [(0, "queued"), (1, "queued")]
    assert len(seen) == 6
    # No assertion on recorded values: on a busy machine the kernel may not have started within the time limit.
    hung = sweep(notebook, {"retriever": "hang"}, store=tmp_path / "runs", timeout_seconds=5)
    assert hung["state"].tolist() == ["failed"]
    assert (hung["error"][0], hung["message"][0]) == ("TimeoutError", "The notebook was not done after 5 seconds.")
    assert [p for p in family(psutil.Process().pid) if "ragkit.runs.worker" in p.cmdline()] == []


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_sweep_ends_its_workers_and_keeps_finished_runs(tmp_path: Path, ending: signal.Signals) -> None:
    write_notebook(tmp_path / "n.ipynb", WORK)
    store = RunStore(tmp_path / "runs")
    with running("sweep", "n.ipynb", "-p", "retriever", "hybrid", "hang", "bm25", cwd=tmp_path) as command:
        eventually(lambda: [info for info in store.list()[1:] if info.recorded])
        children = family(command.process.pid)
        assert len(children) >= 2  # the worker and its kernel
        assert command.end(ending) == (130 if ending == signal.SIGINT else -ending)
    eventually(lambda: not any(child.is_running() for child in children))
    assert [info.state for info in store.list()] == ["done", "cancelled"]
    if ending == signal.SIGINT:
        assert any("run the same command again to resume" in line for line in command.lines)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"parameters": {"chunksize": [1]}},
            "'chunksize' is not a parameter of 'n.ipynb'.*chunk_size, retriever, seed",
        ),
        ({"parameters": {"chunk_size": []}}, "no values"),
        ({"parameters": {"chunk_size": [1, 1]}}, "twice"),
        ({"parameters": {"chunk_size": [float("nan")]}}, "finite"),
        ({"parameters": {"chunk_size": [object()]}}, "cannot be kept"),
        ({"parameters": {"chunk size": [1]}}, "variable"),
        ({"notebook": "nowhere.ipynb"}, "no notebook at"),
        ({"notebook": "untagged.ipynb"}, "tagged 'parameters'"),
        ({"notebook": "text.ipynb"}, "not a notebook"),
        ({"notebook": "list.ipynb"}, "not a notebook"),
        ({"notebook": "cells.ipynb"}, "not a notebook"),
        ({"kernel_name": "nonsense"}, "no kernel 'nonsense'.*python3"),
        ({"max_concurrency": 0}, "at least 1"),
        ({"timeout_seconds": 0}, "more than 0"),
        ({"cwd": "nowhere"}, "no folder"),
    ],
)
def test_invalid_arguments_are_rejected_before_anything_runs(
    tmp_path: Path, change: dict[str, Any], problem: str
) -> None:
    write_notebook(tmp_path / "n.ipynb", WORK)
    write_notebook(tmp_path / "untagged.ipynb", WORK, parameters=None)
    (tmp_path / "text.ipynb").write_bytes(b"\xff\xfe not JSON")
    (tmp_path / "list.ipynb").write_text("[]")
    (tmp_path / "cells.ipynb").write_text('{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [1]}')
    call = {"notebook": "n.ipynb", "parameters": {"chunk_size": [1]}} | change
    call["notebook"] = tmp_path / call["notebook"]
    with pytest.raises(InputError, match=problem):
        sweep(**call, store=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_missing_data_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        sweep(write_notebook(tmp_path / "n.ipynb"), {"seed": 1}, data=[tmp_path / "nowhere"], store=tmp_path / "runs")


def test_the_key_depends_on_code_parameters_and_data(tmp_path: Path) -> None:
    def key(*cells: str, parameters: dict[str, Any] | None = None, digests: dict[str, str] | None = None) -> str:
        book = ParameterizedNotebook(write_notebook(tmp_path / "n.ipynb", *cells))
        return book.key(parameters or {"k": 1}, digests or {})

    first = key("a")
    assert key("a") == first
    others = key("a", parameters={"k": 2}), key("a", parameters={"k": "1"}), key("a", digests={"x": "1"})
    assert len({first, key("b"), *others}) == 5
    prose = nbformat.read(tmp_path / "n.ipynb", as_version=4)
    prose.cells = [nbformat.v4.new_markdown_cell("words"), nbformat.v4.new_code_cell("a")]
    nbformat.write(prose, tmp_path / "m.ipynb")
    again = nbformat.from_dict(prose)
    again.cells[0].source = "other words"
    again.cells[1].outputs = [nbformat.v4.new_output("stream", text="seen")]
    nbformat.write(again, tmp_path / "o.ipynb")
    assert ParameterizedNotebook(tmp_path / "m.ipynb").key({}, {}) == ParameterizedNotebook(tmp_path / "o.ipynb").key(
        {}, {}
    )


def test_parameters_that_papermill_does_not_detect_are_found(tmp_path: Path) -> None:
    source = "%matplotlib inline\na: int = 1\nb = dict(x=1)\nc = d = 'x=y'\nlong = [\n  1,\n]\nif a:\n    e = -2.5"
    book = ParameterizedNotebook(write_notebook(tmp_path / "n.ipynb", parameters=source))
    assert book.defaults == {"a": 1, "b": None, "c": "x=y", "d": None, "long": [1], "e": None}


def test_a_grid_has_every_combination_and_the_last_parameter_varies_fastest() -> None:
    assert grid({"a": [1, 2], "b": ["x", "y"], "c": "one"}) == [
        {"a": 1, "b": "x", "c": "one"},
        {"a": 1, "b": "y", "c": "one"},
        {"a": 2, "b": "x", "c": "one"},
        {"a": 2, "b": "y", "c": "one"},
    ]
    assert [each["a"] for each in grid({"a": [1, 1.0, True, "1"]})] == [1, 1.0, True, "1"]  # four values, not one
    assert grid({}) == [{}]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-p", "seed"], "at least one value"),
        (["-p", "nonsense", "1"], "not a parameter"),
        (["-p", "seed", "nan"], "finite"),
    ],
)
def test_invalid_commands_explain_what_to_do(tmp_path: Path, arguments: list[str], problem: str) -> None:
    write_notebook(tmp_path / "n.ipynb")
    done = ragkit("sweep", "n.ipynb", *arguments, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert problem in " ".join(done.stderr.split())


def test_values_on_the_command_line_are_parsed_as_papermill_parses_them() -> None:
    from papermill.cli import _resolve_type

    from ragkit.cli.runs import _parse_value

    for text in ("1", "-2", "1.5", "1e-3", "True", "False", "None", "true", "bm25", "1_000", "", "1.2.3"):
        assert (_parse_value(text), type(_parse_value(text))) == (_resolve_type(text), type(_resolve_type(text)))
