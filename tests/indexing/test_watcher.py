"""An index that follows its folder."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from ragkit.embedding.hashed import HashEmbedder
from ragkit.engine.engine import RAGEngine
from ragkit.errors import IndexLockedError, InputError, SourceNotFoundError
from ragkit.indexing.report import IndexReport
from tests.indexing.test_index import folder, write, write_one  # noqa: F401  # folder is a fixture


@pytest.fixture
def engine(tmp_path: Path) -> RAGEngine:
    return RAGEngine(tmp_path / "index", embedder=HashEmbedder(dimension=64), progress=False)


def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_changes_update_the_index(engine: RAGEngine, folder: Path) -> None:  # noqa: F811
    reports: queue.Queue[IndexReport] = queue.Queue()
    with engine.watch(folder, on_report=reports.put) as watching:
        assert reports.get(timeout=5).added == 7  # before watch() returns
        write_one(folder / "sub" / "new.md", "kingfisher")
        assert reports.get(timeout=30).added == 1
        (folder / "page0.md").unlink()
        write(folder / "page1.md", 99)
        news = [reports.get(timeout=30)]
        while sum(r.deleted + r.updated for r in news) < 2:
            news.append(reports.get(timeout=30))
        assert (sum(r.deleted for r in news), sum(r.updated for r in news)) == (1, 1)
        assert engine.retrieve("kingfisher")[0].document.id == "sub/new.md"
        assert watching.is_alive
        assert watching.error is None
    assert not watching.is_alive
    write(folder / "page2.md", 98)
    time.sleep(1)
    assert reports.empty()


def test_changes_before_the_watch_began_are_found(engine: RAGEngine, folder: Path) -> None:  # noqa: F811
    reports: queue.Queue[IndexReport] = queue.Queue()
    original = engine.document_index.update

    def change_after(*args: object, **kwargs: object) -> IndexReport:
        report = original(*args, **kwargs)  # type: ignore[arg-type]
        engine.document_index.update = original  # type: ignore[method-assign]
        write_one(folder / "late.md", "late")
        return report

    engine.document_index.update = change_after  # type: ignore[method-assign,assignment]
    with engine.watch(folder, on_report=reports.put):
        assert reports.get(timeout=5).added == 7
        assert reports.get(timeout=30).added == 1


def test_an_index_inside_the_folder_does_not_trigger_itself(folder: Path) -> None:  # noqa: F811
    engine = RAGEngine(folder / "index", embedder=HashEmbedder(dimension=64), progress=False)
    counted: list[str] = []
    original = engine.document_index.update

    def counting(*args: object, **kwargs: object) -> IndexReport:
        counted.append("")
        return original(*args, **kwargs)  # type: ignore[arg-type]

    engine.document_index.update = counting  # type: ignore[method-assign,assignment]
    with engine.watch(folder):
        eventually(lambda: len(counted) >= 2)
        write(folder / "page0.md", 55)
        eventually(lambda: len(counted) >= 3)
        time.sleep(2)
    assert len(counted) <= 5  # an editor's one change may come as two


def test_a_failure_is_stored_and_the_next_change_retries(engine: RAGEngine, folder: Path) -> None:  # noqa: F811
    with engine.watch(folder) as watching:
        lock = filelock.FileLock(engine.document_index.path / "lock")
        with lock:
            write_one(folder / "held.md", "held")
            eventually(lambda: isinstance(watching.error, IndexLockedError))
            assert "IndexLocked" not in repr(watching)
        eventually(lambda: engine.document_index.counts()[0] == 8)  # without another change
        eventually(lambda: watching.error is None)
        for path in list(folder.rglob("*.md")):
            path.unlink()
        eventually(lambda: watching.error is not None)  # the folder is empty
        write_one(folder / "again.md", "again")
        eventually(lambda: watching.error is None and engine.document_index.counts()[0] == 1)


def test_a_missing_folder_fails_immediately(engine: RAGEngine, tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError):
        engine.watch(tmp_path / "none")
    assert not [t for t in threading.enumerate() if t.name == "ragkit-refresh"]


def test_an_address_cannot_be_watched(engine: RAGEngine) -> None:
    with pytest.raises(InputError, match=r"index\(\)"):
        engine.watch("https://example.org/page")
