"""The transactional index: after any interruption, the next run completes it."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import filelock
import pytest

from ragkit.chunking.context import passage_text
from ragkit.chunking.structure import StructureChunker
from ragkit.embedding.base import Kind, Vectors
from ragkit.embedding.hashed import HashEmbedder
from ragkit.errors import (
    EmbeddingError,
    IndexCorruptError,
    IndexLockedError,
    IndexMismatchError,
    InputError,
    NoDocumentsError,
    OperationCancelled,
    SourceNotFoundError,
)
from ragkit.indexing.index import Index, remove_index
from ragkit.indexing.report import IndexProgress
from ragkit.retrieval.index_passages import IndexPassages


class CountingEmbedder(HashEmbedder):
    """Counts what it embeds, and can be made to fail."""

    def __init__(
        self,
        *,
        fail_after: int | None = None,
        error: BaseException | None = None,
        wait: Callable[[], bool] = lambda: True,
    ) -> None:
        super().__init__(dimension=64)
        self.embedded: list[str] = []
        self.fail_after = fail_after
        self.wait = wait
        self.error = error or EmbeddingError("test", "made to fail")

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        if self.fail_after is not None and len(self.embedded) + len(texts) > self.fail_after:
            ends = time.monotonic() + 60
            while not self.wait() and time.monotonic() < ends:
                time.sleep(0.01)
            raise self.error
        self.embedded += texts
        return super().embed(texts, kind=kind)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    (folder / "sub").mkdir(parents=True)
    for number in range(6):
        write(folder / f"page{number}.md", number)
    write(folder / "sub" / "deep.md", 99)
    return folder


def write(path: Path, number: int, sections: int = 4) -> None:
    parts = [f"# Page {number}"]
    parts += [
        f"## Section {s}\n\nThe word number{number}x{s} stands here, and nowhere else at all." for s in range(sections)
    ]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def write_one(path: Path, word: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {word}\n\nThe {word} text stands here.\n", encoding="utf-8")


def index_at(path: Path, embedder: Any = None) -> Index:
    return Index(path, embedder=embedder or CountingEmbedder(), chunker=StructureChunker(max_tokens=40))


def state(index: Index) -> dict[str, list[tuple[int, int, str]]]:
    """Return the chunks by document; check that records and vectors correspond one to one."""
    stored = index.records.snapshot().chunks
    ids = {s.vector_id for chunks in stored.values() for s in chunks}
    index.vector_store.refresh()
    assert index.vector_store.count() == len(ids)
    assert set(index.vector_store.get(sorted(ids))) == ids
    assert index.records.garbage() == []
    return {d: [(s.chunk.start, s.chunk.end, s.chunk.text) for s in chunks] for d, chunks in stored.items()}


def test_adds_skips_updates_and_deletes_by_content(tmp_path: Path, folder: Path) -> None:
    embedder = CountingEmbedder()
    index = index_at(tmp_path / "index", embedder)
    first = index.update(folder)
    assert (first.added, first.updated, first.unchanged, first.deleted, first.failed) == (7, 0, 0, 0, ())
    assert first.chunks == len(embedder.embedded) == index.counts()[1]

    os.utime(folder / "page0.md")  # a new date is not a change
    second = index.update(folder)
    assert (second.added, second.updated, second.unchanged, second.chunks) == (0, 0, 7, 0)

    write(folder / "page1.md", 1001)
    (folder / "page2.md").unlink()
    write(folder / "new.md", 7)
    before = len(embedder.embedded)
    third = index.update(folder)
    assert (third.added, third.updated, third.unchanged, third.deleted) == (1, 1, 5, 1)
    assert all("1001" in text or "number7x" in text or "Page 7" in text for text in embedder.embedded[before:])
    assert set(state(index)) == {"page0.md", "page1.md", "page3.md", "page4.md", "page5.md", "new.md", "sub/deep.md"}


def test_documents_and_offsets_are_kept_exactly(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    index.update(folder)
    for document_id, chunks in state(index).items():
        document = index.document(document_id)
        assert document is not None
        assert document.text == (folder / document_id).read_text(encoding="utf-8")
        for start, end, text in chunks:
            assert document.text[start:end] == text


def test_another_object_resumes(tmp_path: Path, folder: Path) -> None:
    index_at(tmp_path / "index").update(folder)
    embedder = CountingEmbedder()
    assert index_at(tmp_path / "index", embedder).update(folder).unchanged == 7
    assert embedder.embedded == []


@pytest.mark.parametrize("error", [EmbeddingError("test", "broken"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
def test_a_stopped_run_leaves_a_usable_index_and_is_resumed(tmp_path: Path, folder: Path, error: BaseException) -> None:
    for number in range(100, 160):
        write(folder / f"page{number}.md", number)
    failing = CountingEmbedder(fail_after=200, error=error)
    index = index_at(tmp_path / "index", failing)
    failing.wait = lambda: index.counts()[0] > 0  # the writer may be slower
    events: list[IndexProgress] = []
    with pytest.raises(type(error)):
        index.update(folder, on_progress=events.append)
    assert events[-1].state == ("failed" if isinstance(error, EmbeddingError) else "cancelled")
    documents, chunks = index.counts()
    assert 0 < documents < 67  # what was committed is there ...
    embedder = CountingEmbedder()
    again = index_at(tmp_path / "index", embedder)
    report = again.update(folder)
    assert report.unchanged == documents  # ... and is not done again
    assert len(embedder.embedded) == again.counts()[1] - chunks
    fresh = index_at(tmp_path / "fresh")
    fresh.update(folder)
    assert state(again) == state(fresh)


def test_after_a_kill_at_any_moment_the_next_run_completes_the_index(tmp_path: Path, folder: Path) -> None:
    for number in range(100, 400):
        write(folder / f"page{number}.md", number)
    program = textwrap.dedent(
        f"""
        from tests.indexing.test_index import index_at
        from pathlib import Path
        index_at(Path({str(tmp_path / "index")!r})).update(
            {str(folder)!r}, on_progress=lambda p: p.chunks_done and print(p.chunks_done, flush=True))
        """
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    for moment in (1, 3, 6):
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment, text=True)
        assert process.stdout is not None
        for _ in range(moment):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait(30)
        process.stdout.close()
        write(folder / f"page{100 + moment}.md", 5000 + moment)  # documents keep changing between runs
    again = index_at(tmp_path / "index")
    again.update(folder)
    fresh = index_at(tmp_path / "fresh")
    fresh.update(folder)
    assert state(again) == state(fresh)


def test_after_a_crash_between_any_two_steps_no_vectors_are_orphaned(tmp_path: Path, folder: Path) -> None:
    """The four steps of a replacement, interrupted before each write to either side."""
    index_at(tmp_path / "index").update(folder)
    steps = ["records.reserve", "vector_store.add", "records.commit", "vector_store.delete", "records.sweep"]
    for number, step in enumerate(steps):
        write(folder / "page0.md", 700 + number)
        index = index_at(tmp_path / "index")
        side, name = step.split(".")

        def crash(*args: object, **kwargs: object) -> None:
            raise KeyboardInterrupt

        target = getattr(index, side)
        if side == "records":
            index._records = Interrupted(target, name, crash)  # type: ignore[assignment]
        else:
            index.vector_store = Interrupted(target, name, crash)  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            index.update(folder)
        reader = index_at(tmp_path / "index")
        assert len(reader.records.snapshot().chunks) == 7, step  # every document is there, old or new, at every moment
        held = {s.vector_id for chunks in reader.records.snapshot().chunks.values() for s in chunks}
        reader.vector_store.refresh()
        assert set(reader.vector_store.get(sorted(held))) == held, step
        index_at(tmp_path / "index").update(folder)
        fresh = index_at(tmp_path / f"fresh{number}")
        fresh.update(folder)
        assert state(index_at(tmp_path / "index")) == state(fresh), step


class Interrupted:
    """Pass all calls on, except for one method."""

    def __init__(self, target: Any, name: str, crash: Any) -> None:
        self._target, self._name, self._crash = target, name, crash

    def __getattr__(self, name: str) -> Any:
        return self._crash if name == self._name else getattr(self._target, name)


def test_a_cancelled_run_reports_it_and_keeps_what_was_committed(tmp_path: Path, folder: Path) -> None:
    events: list[IndexProgress] = []
    index = index_at(tmp_path / "index")
    with pytest.raises(OperationCancelled, match="run it again"):
        index.update(folder, on_progress=events.append, cancelled=lambda: True)
    assert events[-1].state == "cancelled"
    assert index.update(folder).added == 7


def test_progress_ends_with_the_right_numbers(tmp_path: Path, folder: Path) -> None:
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"_id": str(i), "text": f"row {i}"}) + "\n" for i in range(9))
    )
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing more")
    events: list[IndexProgress] = []
    index = index_at(tmp_path / "index")
    report = index.update(folder, on_progress=events.append)
    assert events[0].state == "running"
    end = events[-1]
    assert (end.state, end.chunks_done, end.chunks_total) == ("done", report.chunks, report.chunks)
    assert (end.documents_done, end.documents_total) == (17, 17)
    assert [f.source for f in end.failures] == [f.source for f in report.failed]
    for earlier, later in itertools.pairwise(events):
        assert later.chunks_done >= earlier.chunks_done
        assert later.documents_done >= earlier.documents_done


def test_a_damaged_file_is_reported_each_time_and_does_not_affect_others(tmp_path: Path, folder: Path) -> None:
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 nothing more")
    (folder / "empty.md").write_text("")
    index = index_at(tmp_path / "index")
    for expected in (7, 0):
        report = index.update(folder)
        assert report.added == expected
        assert {Path(f.source).name for f in report.failed} == {"broken.pdf", "empty.md"}
        assert "broken.pdf" in str(report)
    assert "<li>" in report._repr_html_()


def test_a_file_that_is_damaged_later_keeps_its_last_good_state(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    index.update(folder)
    (folder / "page0.md").write_text("   \n")
    report = index.update(folder)
    assert [Path(f.source).name for f in report.failed] == ["page0.md"]
    assert report.deleted == 0
    assert "page0.md" in state(index)


def test_a_file_that_becomes_a_pipe_is_reported_and_does_not_block(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    write(folder / "z.md", 26)

    def swap(progress: IndexProgress) -> None:
        if (folder / "z.md").is_file():
            (folder / "z.md").unlink()
            os.mkfifo(folder / "z.md")

    report = index.update(folder, on_progress=swap)
    assert report.added == 7
    assert [error.reason for error in report.failed] == ["cannot be read: not a regular file any more"]


def test_one_file_its_folder_and_the_folder_above(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    assert index.update(folder / "page0.md").added == 1
    assert index.update(folder / "page1.md").added == 1
    assert set(state(index)) == {"page0.md", "page1.md"}  # indexing one file does not delete its neighbours
    assert index.update(folder / "sub").added == 1
    report = index.update(folder)
    assert report.deleted == 0
    assert len(state(index)) == 7
    assert index.update(tmp_path / "docs").unchanged == 7


def test_two_folders_may_have_the_same_file_names(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(f"# {name}\n\nThis is folder {name}.\n")
    index = index_at(tmp_path / "index")
    index.update(tmp_path / "one")
    index.update(tmp_path / "two")
    assert set(state(index)) == {"README.md", "two//README.md"}
    (tmp_path / "two" / "README.md").unlink()
    (tmp_path / "two" / "other.md").write_text("# other\n\nAnother file.\n")
    index.update(tmp_path / "two")
    assert set(state(index)) == {"README.md", "two//other.md"}


def test_ids_of_a_folder_named_like_a_subfolder_of_another_differ(tmp_path: Path) -> None:
    write_one(tmp_path / "one" / "notes" / "x.md", "first")
    write_one(tmp_path / "notes" / "x.md", "second")
    index = index_at(tmp_path / "index")
    index.update(tmp_path / "one")
    index.update(tmp_path / "notes")
    assert sorted(d.text.split()[1] for d in index.records.snapshot().documents.values()) == ["first", "second"]
    assert index.update(tmp_path / "one").unchanged == 1


def test_indexing_one_file_keeps_other_folders(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    index.update(folder / "sub")
    index.update(folder / "page0.md")
    assert index.counts()[0] == 2
    index.update(folder)
    assert index.counts()[0] == 7


def test_an_unreadable_file_deletes_no_other(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    index.update(folder)
    os.mkfifo(folder / "pipe.md")
    report = index.update(folder / "pipe.md")
    assert (report.deleted, len(report.failed)) == (0, 1)
    assert len(state(index)) == 7


def test_unreadable_files_and_folders_keep_their_last_good_state(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    index.update(folder)
    (folder / "page0.md").unlink()
    os.mkfifo(folder / "page0.md")
    report = index.update(folder)
    assert (report.deleted, len(report.failed)) == (0, 1)
    assert "page0.md" in state(index)


def test_a_folder_replaced_by_its_parent_is_indexed_once_even_after_a_stop(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    index.update(folder / "sub")
    with pytest.raises(OperationCancelled):
        index.update(folder, cancelled=lambda: True)
    index.update(folder)
    assert len(state(index)) == 7


def test_a_hidden_folder_that_was_indexed_explicitly_is_kept(tmp_path: Path, folder: Path) -> None:
    write_one(folder / ".hidden" / "x.md", "hidden")
    index = index_at(tmp_path / "index")
    index.update(folder / ".hidden")
    index.update(folder)
    assert len(state(index)) == 8


def test_done_never_exceeds_total(tmp_path: Path, folder: Path) -> None:
    rows = (json.dumps({"_id": str(i), "text": f"row {i}"}) + "\n" for i in range(50))
    (folder / "a.jsonl").write_text("".join(rows))
    index = index_at(tmp_path / "index")
    index.update(folder)
    events: list[IndexProgress] = []
    now = itertools.count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ragkit.indexing.update.time.monotonic", lambda: float(next(now))
        )  # so that nothing is left unreported
        index.update(folder, on_progress=events.append)
    assert all(p.documents_total is None or p.documents_done <= p.documents_total for p in events)


def test_another_embedder_or_chunker_is_rejected_with_a_remedy(tmp_path: Path, folder: Path) -> None:
    index_at(tmp_path / "index").update(folder)
    foreign = Index(tmp_path / "index", embedder=HashEmbedder(dimension=32), chunker=StructureChunker(max_tokens=40))
    for use in (foreign.check, lambda: foreign.update(folder), IndexPassages(foreign).get):
        with pytest.raises(IndexMismatchError, match="rebuild=True") as caught:
            use()
        assert (caught.value.expected, caught.value.found) == ("ragkit/hash-64", "ragkit/hash-32")
    other = Index(tmp_path / "index", embedder=CountingEmbedder(), chunker=StructureChunker(max_tokens=10))
    with pytest.raises(IndexMismatchError, match="chunker"):
        other.update(folder)
    assert other.update(folder, rebuild=True).added == 7
    assert len(state(other)) == 7
    # The remedy in the message works, also for another dimension.
    third = Index(tmp_path / "index", embedder=HashEmbedder(dimension=32), chunker=StructureChunker(max_tokens=40))
    assert third.update(folder, rebuild=True).added == 7
    assert len(state(third)) == 7


class SameNameOtherSize(CountingEmbedder):
    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        return super().embed(texts, kind=kind)[:, :16]


def test_an_embedder_that_changed_its_dimension_is_rejected(tmp_path: Path, folder: Path) -> None:
    index_at(tmp_path / "index").update(folder)
    write(folder / "page0.md", 5)
    before = state(index_at(tmp_path / "index"))
    with pytest.raises(IndexMismatchError, match="dimension 64"):
        index_at(tmp_path / "index", SameNameOtherSize()).update(folder)
    assert index_at(tmp_path / "index").update(folder).updated == 1
    assert set(state(index_at(tmp_path / "index"))) == set(before)


def test_a_second_writer_is_locked_out(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    index.update(folder)
    with filelock.FileLock(tmp_path / "index" / "lock"), pytest.raises(IndexLockedError, match="Another process"):
        index_at(tmp_path / "index").update(folder)


def test_bad_paths_are_rejected(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    with pytest.raises(SourceNotFoundError, match="no file or folder"):
        index.update(tmp_path / "nowhere")
    (tmp_path / "void").mkdir()
    with pytest.raises(NoDocumentsError, match=r"\.md"):
        index.update(tmp_path / "void")
    assert not index.exists
    with pytest.raises(InputError, match="is a file"):
        index_at(folder / "page0.md")
    with pytest.raises(InputError, match="its own folder"):
        index_at(folder)


def test_an_emptied_folder_does_not_delete_its_documents(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    index.update(folder)
    for path in sorted(folder.rglob("*.md")):
        path.unlink()
    with pytest.raises(NoDocumentsError):
        index.update(folder)
    assert len(state(index)) == 7


def test_the_error_of_a_damaged_index_says_how_to_rebuild_it(tmp_path: Path, folder: Path) -> None:
    index_at(tmp_path / "index").update(folder)
    for path in (tmp_path / "index").glob("index.db*"):
        path.write_bytes(b"this is not a database" * 100)
    with pytest.raises(IndexCorruptError, match="damaged"):
        index_at(tmp_path / "index").counts()


def test_a_full_disk_loses_nothing(tmp_path: Path, folder: Path) -> None:
    """A real limit on the size of files: SQLite and Chroma hit it as they would on a full disk."""
    index_at(tmp_path / "index").update(folder)
    before = state(index_at(tmp_path / "index"))
    for number in range(1000, 1400):
        write(folder / f"page{number}.md", number, sections=40)
    program = textwrap.dedent(
        f"""
        import resource, signal, sys
        from pathlib import Path
        from tests.indexing.test_index import index_at
        from ragkit.documents.language import detect_language
        from ragkit.errors import IndexWriteError
        index = index_at(Path({str(tmp_path / "index")!r}))
        index.counts(), index.vector_store.count()
        detect_language("The model of languages is read once, before there is a limit.")
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (700_000, 700_000))
        try:
            index.update({str(folder)!r})
        except IndexWriteError as error:
            assert "Free some disk space" in str(error), error
            sys.exit(7)
        """
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 7, done.stderr
    again = index_at(tmp_path / "index")
    held = again.records.snapshot().chunks
    assert set(before) <= set(held)
    again.update(folder)
    assert len(state(again)) == 407


def test_context_is_embedded_but_not_quoted(tmp_path: Path, folder: Path) -> None:
    embedder = CountingEmbedder()
    index = index_at(tmp_path / "index", embedder)
    index.update(folder / "page3.md")
    chunk = next(s.chunk for s in index.records.snapshot().chunks["page3.md"] if "number3x2" in s.chunk.text)
    text = passage_text("Page 3", chunk)
    assert text in embedder.embedded
    assert text.startswith("Page 3")


def test_an_index_deleted_under_an_open_object_is_recreated(tmp_path: Path, folder: Path) -> None:
    index = index_at(tmp_path / "index")
    index.update(folder)
    remove_index(tmp_path / "index")
    assert index.update(folder).added == 7
    assert len(state(index)) == 7


def test_remove_index_removes_an_index_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    index_at(tmp_path / "index").update(folder)
    remove_index(tmp_path / "index")
    assert not (tmp_path / "index").exists()
    with pytest.raises(InputError, match="not an index"):
        remove_index(folder)
    assert folder.exists()


def test_a_page_from_the_web_is_indexed_again_only_when_it_has_changed(tmp_path: Path, folder: Path) -> None:
    page = {"text": "The heron stands in the shallow water and waits."}

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(f"<html><title>Birds</title><body><h1>Birds</h1><p>{page['text']}".encode())

        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{site.server_port}/birds?lang=en"
        index = index_at(tmp_path / "index")
        index.update(folder)
        assert index.update(address).added == 1
        assert index.update(address).unchanged == 1
        page["text"] = "Un été, le héron attend."
        assert index.update(address).updated == 1
        site.shutdown()
    (document,) = (d for d in index.records.snapshot().documents.values() if "héron" in d.text)
    assert document.source == address
    assert document.title == "Birds"
    assert index.update(folder).unchanged == 7  # each keeps its own documents
    assert index.verify().is_current
