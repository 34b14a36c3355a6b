"""The history on disk: committed events are found again after crashes and damage."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ragkit.live.messages import EnginesChanged, ExperimentResult, FollowUpQuestions, IndexingProgress
from ragkit_server.history import archive as module
from ragkit_server.history.archive import Archive, ArchiveLockedError, Stored, open_archive
from ragkit_server.history.log import History
from ragkit_server.history.worker import Worker
from tests.server.live_server import ROOT


def opened(folder: Path, **options: Any) -> tuple[Archive, Stored]:
    options = {"max_bytes": 10**6, "log_events": 100, "log_bytes": 10**6} | options
    archive, stored, trouble = open_archive(folder, "history", **options)
    assert trouble is None
    return archive, stored


def killed(archive: Archive) -> None:
    """End as after ``kill -9``: committed data exists, and nothing is closed properly."""
    archive._db.close()


def commit(history: History, archive: Archive) -> None:
    batch = history.take()
    history.commit(batch, horizon=archive.write(batch))


def say(history: History, *texts: str, size: int = 0) -> None:
    for text in texts:
        history.append(FollowUpQuestions(questions=[text + "x" * size]), publisher="p")


def progress(history: History, task: str, state: str = "running", done: int = 0) -> None:
    history.append(IndexingProgress(task_id=task, index="i", state=state, documents_done=done), publisher="p")


def result(history: History, task: str, n: int) -> None:
    event = ExperimentResult(task_id=task, experiment="e", row={"n": n}, leaderboard=[{"n": n}])
    history.append(event, publisher="p")


@pytest.mark.parametrize("end", [Archive.close, killed])
def test_a_history_continues_in_its_epoch(tmp_path: Path, end: Any) -> None:
    archive, stored = opened(tmp_path)
    history = History(stored=stored)
    say(history, "one", "two")
    progress(history, "t", done=1)
    progress(history, "t", done=2)
    history.append(EnginesChanged(engines=[]))
    result(history, "e", 1)
    assert history.publishers.is_new("p", 7)
    assert history.seq == 0, "nothing is seen before it is safe"
    commit(history, archive)
    assert history.seq == 6
    before = history.snapshot()
    frames = history.run(0)
    end(archive)

    archive, stored = opened(tmp_path)
    again = History(stored=stored)
    assert again.snapshot() == before
    assert again.run(0) == frames
    assert not again.publishers.is_new("p", 7)
    assert again.publishers.last("p") == 7
    say(again, "three")
    commit(again, archive)
    assert again.seq == 7
    archive.close()


def test_events_from_before_the_log_are_restored_for_the_snapshot(tmp_path: Path) -> None:
    archive, stored = opened(tmp_path)
    history = History(stored=stored, max_events=5)
    for n in range(25):
        result(history, f"e{n}", n)
        progress(history, f"t{n}", "done")
    for n in range(40):
        result(history, "long", n)  # of all these the newest counts, and the others of their time stay
    say(history, *map(str, range(30)))
    result(history, "e20", 99)
    commit(history, archive)
    before = history.snapshot()
    assert [r.task_id for r in before.results] == [*(f"e{n}" for n in range(6, 25) if n != 20), "long", "e20"]
    killed(archive)
    archive, stored = opened(tmp_path, log_events=5)
    assert History(stored=stored, max_events=5).snapshot() == before
    assert len(replay(archive, 0, history.seq)) == history.seq, "and none is forgotten"
    archive.close()


def test_uncommitted_events_are_lost(tmp_path: Path) -> None:
    archive, stored = opened(tmp_path)
    history = History(stored=stored)
    say(history, "safe")
    commit(history, archive)
    say(history, "lost")
    assert history.publishers.is_new("p", 2)
    history.take()
    killed(archive)
    archive, stored = opened(tmp_path)
    again = History(stored=stored)
    assert (again.seq, again.last) == (1, 1)
    assert again.publishers.is_new("p", 2), "its publisher sends it again"
    archive.close()


def test_after_a_machine_crash_a_new_epoch_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive, stored = opened(tmp_path)
    history = History(stored=stored)
    say(history, "one")
    progress(history, "t")
    commit(history, archive)
    killed(archive)
    monkeypatch.setattr(module, "_boot", lambda: "another")
    archive, stored = opened(tmp_path)
    again = History(stored=stored)
    assert again.epoch != history.epoch
    assert not again.reaches(1)
    assert again.archived_until(1) is None
    assert [task.task_id for task in again.snapshot().tasks] == ["t"], "the state is the same"
    archive.close()
    monkeypatch.setattr(module, "_boot", lambda: "a third")
    archive, stored = opened(tmp_path)
    assert stored.epoch == again.epoch, "it was closed in good order"
    archive.close()


def test_another_server_gets_a_file_of_its_own(tmp_path: Path) -> None:
    archive, _ = opened(tmp_path)
    code = (
        "import sys; from pathlib import Path; from ragkit_server.history.archive import *\n"
        f"archive, _, _ = open_archive(Path({str(tmp_path)!r}), 'history', max_bytes=1, log_events=1, log_bytes=1)\n"
        "print(archive.path.name)"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server_extension")])}
    for expected in ("history-2.sqlite", "history.sqlite"):
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert run.stdout.strip() == expected, run.stderr
        if expected == "history-2.sqlite":
            with pytest.raises(ArchiveLockedError):
                Archive(archive.path)
            archive.close()


def test_other_users_cannot_read_it(tmp_path: Path) -> None:
    archive, stored = opened(tmp_path / "new")
    history = History(stored=stored)
    say(history, "private")
    commit(history, archive)
    for path in (tmp_path / "new").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700
    archive.close()


@pytest.mark.parametrize("damage", [b"not a database" * 1_000, None])
def test_a_damaged_file_is_kept_and_reported(tmp_path: Path, damage: bytes | None) -> None:
    archive, stored = opened(tmp_path)
    history = History(stored=stored)
    say(history, *map(str, range(200)), size=500)
    commit(history, archive)
    archive.close()
    path = tmp_path / "history.sqlite"
    data = damage or path.read_bytes()[:8_192] + b"\xff" * (path.stat().st_size - 8_192)
    path.write_bytes(data)
    archive, stored, trouble = open_archive(tmp_path, "history", max_bytes=10**6, log_events=100, log_bytes=10**6)
    assert trouble is not None
    assert "damaged" in trouble
    assert (tmp_path / "history.sqlite.damaged").read_bytes()[:8_192] == data[:8_192] or damage is None
    assert stored.seq == 0
    archive.close()


def test_a_file_of_a_later_version_is_renamed_unchanged(tmp_path: Path) -> None:
    archive, _ = opened(tmp_path)
    archive._db.execute("PRAGMA user_version = 99")
    archive.close()
    archive, _, trouble = open_archive(tmp_path, "history", max_bytes=10**6, log_events=100, log_bytes=10**6)
    assert "format 99" in str(trouble)
    archive.close()


def replay(archive: Archive, after: int, until: int, topics: frozenset[str] | None = None) -> list[bytes]:
    payloads: list[bytes] = []
    while after < until:
        part, after = archive.read(after, until, topics, 2_000)
        payloads += part
    return payloads


def test_the_oldest_events_are_deleted_but_not_unfinished_tasks(tmp_path: Path) -> None:
    archive, stored = opened(tmp_path, max_bytes=100_000)
    history = History(stored=stored, max_events=10)
    progress(history, "long", done=3)
    for number in range(300):
        say(history, f"{number} ", size=1_000)
        commit(history, archive)
    assert archive._bytes <= 100_000
    assert archive.path.stat().st_size < 400_000
    horizon = archive.write(history.take())
    assert horizon > 150
    assert history.archived_until(horizon) == 291
    assert history.archived_until(horizon - 1) is None
    assert len(replay(archive, horizon, 291)) == 291 - horizon
    killed(archive)
    archive, stored = opened(tmp_path)
    again = History(stored=stored)
    assert [task.documents_done for task in again.snapshot().tasks] == [3]
    assert stored.horizon == horizon
    archive.close()


def test_superseded_progress_is_kept_as_long_as_the_log_is(tmp_path: Path) -> None:
    archive, stored = opened(tmp_path)
    history = History(stored=stored, max_events=10)
    for done in range(100):
        progress(history, "t", done=done)
        if done % 10 == 0:
            say(history, f"{done}")
        commit(history, archive)
    commit(history, archive)
    seqs = [seq for (seq,) in archive._db.execute("SELECT seq FROM events ORDER BY seq")]
    assert len(seqs) == 9 + 10, "nine follow-ups, and the log"
    assert seqs[-10:] == list(range(101, 111))
    topics = frozenset({"follow_up_questions"})
    assert len(replay(archive, 0, 110, topics)) == 10
    archive.close()


def test_events_superseded_before_a_kill_are_deleted_at_the_next_start(tmp_path: Path) -> None:
    archive, stored = opened(tmp_path)
    history = History(stored=stored)
    for done in range(50):
        progress(history, "t", done=done)
    commit(history, archive)
    killed(archive)
    archive, stored = opened(tmp_path, log_events=5)
    assert archive._db.execute("SELECT count(*) FROM events").fetchone() == (5,)
    assert [record.seq for record in stored.records] == list(range(46, 51))
    archive.close()


def test_a_failed_write_changes_nothing(tmp_path: Path) -> None:
    archive, stored = opened(tmp_path)
    history = History(stored=stored)
    say(history, "one")
    commit(history, archive)
    (pages,) = archive._db.execute("PRAGMA page_count").fetchone()
    archive._db.execute(f"PRAGMA max_page_count = {pages}")
    history.publishers.is_new("p", 2)
    say(history, "large", size=100_000)
    batch = history.take()
    with pytest.raises(sqlite3.OperationalError, match="full"):
        archive.write(batch)
    assert [seq for (seq,) in archive._db.execute("SELECT seq FROM events")] == [1]
    assert archive._db.execute("SELECT count(*) FROM publishers").fetchone() == (0,)
    archive._db.execute("PRAGMA max_page_count = 1000000")
    archive.reset(epoch="new", seq=1_000)
    killed(archive)
    archive, stored = opened(tmp_path)
    assert (stored.epoch, stored.seq, stored.horizon, stored.records) == ("new", 1_000, 1_000, [])
    archive.close()


def test_the_worker_returns_results_and_errors_in_order() -> None:
    results: list[Any] = []
    worker = Worker(lambda done, result: done(result))
    threads = set()

    def work(value: int) -> int:
        threads.add(threading.current_thread())
        return 1 // value

    for value in (1, 0, 1):
        worker.submit(lambda value=value: work(value), results.append)
    worker.stop()
    assert results[0] == results[2] == 1
    assert isinstance(results[1], ZeroDivisionError)
    assert len(threads) == 1
    assert threading.current_thread() not in threads
