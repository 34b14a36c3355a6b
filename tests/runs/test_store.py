"""The run store: stored values, crashes, invalid names, damaged files, and reading it without ragkit."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ragkit.errors import InputError, OperationCancelled, RagkitError, SourceNotFoundError
from ragkit.hashing import hash_path
from ragkit.runs.provenance import find_git
from ragkit.runs.store import RunStore
from tests.support.commands import environment, ragkit


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def python(program: str, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env=environment(cwd),
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_run_is_read_without_ragkit(store: RunStore) -> None:
    scores = pd.DataFrame({"query": ["q1", "q2"], "ndcg": [0.5, 1.0]})
    with store.create(name="first", parameters={"k": 5}, seeds={"seed": 13}, data={"corpus": "abc"}) as run:
        run.record(ndcg=0.75, scores=scores)
        run.write_json("config", {"deep": {"er": [1, None]}})
    stored = json.loads((run.path / "run.json").read_text())
    assert (stored["state"], stored["parameters"], stored["recorded"]) == ("done", {"k": 5}, {"ndcg": 0.75})
    assert stored["provenance"]["seeds"] == {"seed": 13}
    assert stored["provenance"]["data"] == {"corpus": "abc"}
    assert any(line.startswith("numpy==") for line in stored["provenance"]["packages"])
    pd.testing.assert_frame_equal(pd.read_parquet(run.path / "tables" / "scores.parquet"), scores)
    pd.testing.assert_frame_equal(run.read_table("scores"), scores)
    assert json.loads((run.path / "config.json").read_text()) == run.read_json("config") == {"deep": {"er": [1, None]}}


def test_duckdb_reads_a_store(store: RunStore) -> None:
    duckdb = pytest.importorskip("duckdb")
    for k in (5, 10):
        with store.create(name="first", parameters={"k": k}) as run:
            run.record(ndcg=k / 10, scores=pd.DataFrame({"query": ["q1"], "ndcg": [k / 10]}))
    runs = duckdb.sql(f"SELECT parameters.k, recorded.ndcg FROM '{store.path}/*/run.json' ORDER BY id")
    assert runs.fetchall() == [(5, 0.5), (10, 1.0)]
    assert duckdb.sql(f"SELECT avg(ndcg) FROM '{store.path}/*/tables/scores.parquet'").fetchall() == [(0.75,)]


def test_recorded_values_are_converted_to_json(store: RunStore) -> None:
    run = store.create(name="values")
    run.record(
        a=np.float32(0.5), b=np.int64(3), c=np.bool_(True), d=np.arange(3), e=(1, "x"), f=float("nan"), g="\ud800",
        h=None, **{"nDCG@10": 0.1},
    )  # fmt: skip
    assert run.info.recorded == {
        "a": 0.5, "b": 3, "c": True, "d": [0, 1, 2], "e": [1, "x"], "f": None, "g": "?", "h": None, "nDCG@10": 0.1,
    }  # fmt: skip
    assert run.info.recorded["c"] is True
    with pytest.warns(RuntimeWarning, match="no infinity"):
        run.record(loss=[float("-inf")])
    assert run.info.recorded["loss"] == [None]


@pytest.mark.parametrize(
    ("value", "hint"),
    [({"a": 1}, r"\*\*values"), ({1}, "sorted"), (2**70, "too large"), (object(), "str"), (b"", "str")],
)
def test_a_call_with_an_unsupported_value_stores_nothing(store: RunStore, value: Any, hint: str) -> None:
    run = store.create(name="values")
    with pytest.raises(InputError, match=hint):
        run.record(good=1, table=pd.DataFrame({"a": [1]}), bad=value)
    assert (run.info.recorded, run.tables()) == ({}, [])


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "/etc/x", "", ".hidden", "a\\b", "a\0b", "x" * 300, "a\nb", "a.", "é" * 70]
)
def test_names_cannot_escape_the_run_folder(store: RunStore, name: str) -> None:
    run = store.create(name=name)  # the run's own name is only text
    for write in (run.write_json, run.write_table):
        with pytest.raises(InputError, match="file's name"):
            write(name, pd.DataFrame({"a": [1]}))
    assert sorted(path.name for path in run.path.rglob("*")) == ["run.json"]


def test_french_names_are_accepted(store: RunStore) -> None:
    run = store.create(name="évaluation")
    run.record(précision=0.5, résultats=pd.DataFrame({"requête": ["où ?"]}))
    assert run.tables() == ["résultats"]
    assert store.to_frame()["précision"].tolist() == [0.5]


def test_values_recorded_before_a_crash_survive_and_the_run_is_lost(store: RunStore, tmp_path: Path) -> None:
    program = (
        "import os, signal, ragkit.runs as runs\n"
        "runs.record(ndcg=0.5)\n"
        "assert runs.current_run().info.state == 'running'\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert python(program, tmp_path).returncode == -signal.SIGKILL
    (info,) = store.list()
    assert (info.state, info.recorded) == ("lost", {"ndcg": 0.5})
    assert json.loads((store.path / info.id / "run.json").read_text())["state"] == "running"


def test_a_process_has_one_run_which_ends_with_it(store: RunStore, tmp_path: Path) -> None:
    program = "from ragkit.runs import record; record(a=1); print(record(a=2, b='x').info.kind)"
    done = python(program, tmp_path)
    assert (done.stdout, done.stderr) == ("script\n", "")
    (info,) = store.list()
    assert (info.state, info.recorded) == ("done", {"a": 2, "b": "x"})


def test_an_invalid_ragkit_run_raises_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ragkit.runs.store import record

    monkeypatch.setenv("RAGKIT_RUN", str(tmp_path))
    with pytest.raises(InputError, match="RAGKIT_RUN"):
        record(a=1)


def test_threads_and_processes_can_record_at_the_same_time(store: RunStore, tmp_path: Path) -> None:
    run = store.create(name="many")
    program = (
        "import sys; from ragkit.runs import Run; run = Run(sys.argv[1])\n"
        "for n in range(20): run.record(**{f'{sys.argv[2]}_{n}': n})"
    )
    with concurrent.futures.ThreadPoolExecutor() as pool:
        others = [pool.submit(python, program, tmp_path, str(run.path), name) for name in "ab"]
        own = [pool.submit(lambda n=n: run.record(**{f"c_{n}": n})) for n in range(20)]
        assert [other.result().stderr for other in others] == ["", ""]
        for each in own:
            each.result()
    assert len(run.info.recorded) == 60


def test_the_end_of_a_with_block_sets_the_state_of_its_run(store: RunStore) -> None:
    with pytest.raises(ZeroDivisionError), store.create(name="failing") as failing:
        1 / 0  # noqa: B018
    with pytest.raises(KeyboardInterrupt), store.create(name="stopped") as stopped:
        raise KeyboardInterrupt
    with pytest.raises(OperationCancelled), store.create(name="cancelled") as cancelled:
        raise OperationCancelled("enough")
    info = failing.info
    assert (info.state, info.error, info.message) == ("failed", "ZeroDivisionError", "division by zero")
    assert "1 / 0" in str(info.traceback)
    assert (stopped.info.state, cancelled.info.state, cancelled.info.message) == ("cancelled", "cancelled", "enough")
    for late in (lambda: failing.record(a=1), failing.finish, lambda: failing.write_json("x", 1)):
        with pytest.raises(InputError, match="has ended"):
            late()


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"id": "x", "kind": "k", "name": "n", "state": "odd"}',
               b'{"id": "x", "kind": "k", "name": "n", "state": "done", "started": "yesterday"}'],
)  # fmt: skip
def test_a_damaged_run_does_not_hide_the_others(store: RunStore, damage: bytes) -> None:
    broken = store.create(name="broken")
    store.create(name="sound").finish()
    (broken.path / "run.json").write_bytes(damage)
    assert [info.state for info in store.list()] == ["damaged", "done"]
    assert len(store.to_frame()) == 2
    with pytest.raises(InputError, match="cannot be read"):
        broken.record(a=1)
    assert (broken.path / "run.json").read_bytes() == damage


def test_runs_are_found_by_either_end_of_their_ids(store: RunStore) -> None:
    runs = [store.create(name="a"), store.create(name="b")]
    assert [info.id for info in store.list()] == [run.id for run in runs]  # ids sort by time
    assert store.get(runs[0].id[:-3]).id == store.get(runs[0].id[-6:]).id == runs[0].id
    for wrong, what in (("2", "2 runs"), ("nonsense", "no run 'nonsense'"), ("", "no run"), ("../runs", "no run")):
        with pytest.raises(InputError, match=what):
            store.get(wrong)


def test_columns_with_the_same_name_get_a_prefix(store: RunStore) -> None:
    run = store.create(name="a", parameters={"k": 5, "state": "raw"})
    run.record(k=3, message="hello")
    row = store.to_frame().iloc[0]
    assert (row["k"], row["recorded.k"], row["parameters.state"], row["state"]) == (5, 3, "raw", "running")
    assert (row["recorded.message"], row["message"]) == ("hello", None)


def test_compare_shows_only_differences(store: RunStore) -> None:
    one = store.create(name="a", parameters={"k": 5, "same": 1}, data={"corpus": "abc"})
    two = store.create(name="a", parameters={"k": 10, "same": 1, "new": "x"}, data={"corpus": "abd"})
    two.record(ndcg=0.5)
    frame = store.compare(one.id, two.id)
    assert frame.T.to_dict("list") == {
        "parameters.k": [5, 10],
        "parameters.new": [None, "x"],
        "recorded.ndcg": [None, 0.5],
        "data.corpus": ["abc", "abd"],
    }
    assert store.compare(one.id, one.id).empty


def test_exports_are_complete(store: RunStore, tmp_path: Path) -> None:
    for k in (5, "five"):  # of two types: not a Parquet column as it is
        run = store.create(name="a", parameters={"k": k, "words": ["x"]})
        run.record(ndcg=0.5, scores=pd.DataFrame({"a": [1]}))
    table = pd.read_parquet(store.export(tmp_path / "runs.parquet"))
    assert table["k"].tolist() == ["5", '"five"']
    assert table["words"].tolist() == ['["x"]'] * 2
    assert table["ndcg"].tolist() == [0.5, 0.5]
    assert pd.read_csv(store.export(tmp_path / "runs.csv", [run.id]))["run"].tolist() == [run.id]
    with zipfile.ZipFile(store.export(tmp_path / "runs.zip", [run.id])) as archive:
        assert sorted(archive.namelist()) == [f"{run.id}/run.json", f"{run.id}/tables/scores.parquet"]
    with pytest.raises(InputError, match=r"\.csv, \.parquet or \.zip"):
        store.export(tmp_path / "runs.xlsx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "runs.csv", "runs.parquet", "runs.zip"]


def test_paths_that_cannot_be_written_raise_errors(store: RunStore, tmp_path: Path) -> None:
    with pytest.raises(RagkitError, match="could not be written"):
        store.export(tmp_path / "no" / "such" / "folder.csv")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        RunStore(tmp_path / "file")
    with pytest.raises(RagkitError, match="could not be written"):
        RunStore(tmp_path / "file" / "below").create(name="a")


def test_the_git_state_of_the_code_is_recorded(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    git("init")
    assert find_git(tmp_path) is None  # no commit yet
    (tmp_path / "code.py").write_text("a = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    clean = find_git(tmp_path)
    assert clean is not None
    assert (clean.commit, clean.dirty, clean.diff) == (git("rev-parse", "HEAD"), False, None)
    diffs = set()
    for text in ("a = 2\n", "a = 3\n", "a = 2\n"):
        (tmp_path / "code.py").write_text(text)
        found = find_git(tmp_path)
        assert found is not None
        assert found.dirty
        diffs.add(found.diff)
    assert len(diffs) == 2


def test_a_digest_changes_with_contents_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.txt").write_text("a")
    first = hash_path(folder)
    (folder / ".DS_Store").write_text("noise")
    os.symlink(folder / "nowhere", folder / "link")
    assert hash_path(folder) == first
    (folder / "sub" / "a.txt").rename(folder / "sub" / "b.txt")
    renamed = hash_path(folder)
    (folder / "sub" / "b.txt").write_text("b")
    assert len({first, renamed, hash_path(folder), hash_path(folder / "sub" / "b.txt")}) == 4
    with pytest.raises(SourceNotFoundError):
        hash_path(tmp_path / "nowhere")


def test_the_commands(store: RunStore, tmp_path: Path) -> None:
    assert "no runs" in ragkit("runs", cwd=tmp_path).stdout
    one = store.create(name="first", parameters={"k": 5, "text": "[red]\x1b[2Jx"})
    one.record(ndcg=0.25)
    one.finish()
    two = store.create(name="first", parameters={"k": 10})
    two.finish("failed", error="ValueError", message="no", traceback="line 1")
    listed = ragkit("runs", cwd=tmp_path).stdout
    assert one.id in listed
    assert r"text=[red]\x1b[2Jx" in listed
    assert "1 older runs" in ragkit("runs", "list", "-n", "1", cwd=tmp_path).stdout
    shown = ragkit("runs", "show", two.id[-6:], cwd=tmp_path).stdout
    assert "parameters.k: 10" in shown
    assert "line 1" in shown
    compared = ragkit("runs", "compare", one.id, two.id, cwd=tmp_path).stdout
    assert ["parameters.k", "5", "10"] in [line.split() for line in compared.splitlines()]
    exported = ragkit("runs", "export", two.id, "--to", "out.csv", cwd=tmp_path)
    assert exported.returncode == 0
    assert pd.read_csv(tmp_path / "out.csv")["error"].tolist() == ["ValueError"]
    wrong = ragkit("runs", "show", "nonsense", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.startswith("Error: There is no run 'nonsense'")) == (1, True)
