"""The concurrent pipeline: its result equals that of sequential indexing."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ragkit.chunking.base import Chunk
from ragkit.chunking.context import passage_text
from ragkit.chunking.structure import StructureChunker
from ragkit.documents.document import Document
from ragkit.embedding.base import Embedder, Kind, Vectors
from ragkit.embedding.cache import EmbeddingCache
from ragkit.embedding.hashed import HashEmbedder
from ragkit.errors import EmbeddingError, InputError, OperationCancelled
from ragkit.indexing.index import Index
from ragkit.indexing.pipeline import BoundedQueue
from ragkit.indexing.report import IndexProgress
from tests.indexing.test_index import CountingEmbedder, folder, index_at, state, write  # noqa: F401  # folder is a fixture


class Cached(CountingEmbedder):
    def fingerprint(self, kind: Kind) -> str | None:
        return "test"


@pytest.fixture
def many(folder: Path) -> Path:  # noqa: F811
    """More than a few windows."""
    for number in range(100, 300):
        write(folder / f"page{number}.md", number, sections=number % 7)
    rows = (json.dumps({"_id": str(n), "text": f"row number {n} stands here. " * (n % 9 + 1)}) for n in range(300))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def test_every_text_gets_its_own_vector(tmp_path: Path, many: Path) -> None:
    """Texts are embedded in windows, in order of length, each once."""
    embedder = CountingEmbedder()
    index = index_at(tmp_path / "index", embedder)
    report = index.update(many)
    assert len(embedder.embedded) == len(set(embedder.embedded)) == report.embedded
    for chunks in index.records.snapshot().chunks.values():
        vectors = index.vector_store.get([each.vector_id for each in chunks])
        for each in chunks:
            title = index.records.document(each.chunk.document_id).title  # type: ignore[union-attr]
            expected = HashEmbedder.embed(embedder, [passage_text(title, each.chunk)])[0]
            assert np.allclose(vectors[each.vector_id], expected, atol=1e-6)


def test_texts_are_embedded_in_the_order_of_their_lengths(tmp_path: Path, many: Path) -> None:
    embedder = CountingEmbedder()
    index_at(tmp_path / "index", embedder).update(many)
    tokens = embedder.count_tokens(embedder.embedded)
    turns = sum(b > a for a, b in itertools.pairwise(tokens))
    assert turns < 12  # one where each window begins


def test_an_executor_gives_the_same_vectors(tmp_path: Path, many: Path) -> None:
    index_at(tmp_path / "here", HashEmbedder(dimension=64)).update(many)
    here = state(index_at(tmp_path / "here", HashEmbedder(dimension=64)))
    context = multiprocessing.get_context("spawn")
    for name, executor in (
        ("threads", ThreadPoolExecutor(3)),
        ("processes", ProcessPoolExecutor(2, mp_context=context)),
    ):
        with executor:
            index = index_at(tmp_path / name, HashEmbedder(dimension=64))
            report = index.update(many, executor=executor)
            assert report.embedded > 500
        assert state(index) == here


class Broken(HashEmbedder):
    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        raise EmbeddingError("broken", "made to fail")


class Unpicklable(HashEmbedder):
    def __init__(self) -> None:
        super().__init__(dimension=8)
        self.lock = threading.Lock()


def test_errors_in_an_executor_are_raised(tmp_path: Path, many: Path) -> None:
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(EmbeddingError, match="made to fail"):
            index_at(tmp_path / "a", Broken(dimension=8)).update(many, executor=executor)
        with pytest.raises(InputError, match="__getstate__"):
            index_at(tmp_path / "b", Unpicklable()).update(many, executor=executor)


def test_only_the_changed_chunks_of_a_document_are_embedded(tmp_path: Path, many: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache.db")
    chunker = StructureChunker(max_tokens=40)
    Index(tmp_path / "index", embedder=Cached(), chunker=chunker, cache=cache).update(many)
    page = many / "page100.md"
    write(page, 100, sections=12)
    page.write_text(page.read_text().replace("number100x11", "a word that is new"))
    embedder = Cached()
    report = Index(tmp_path / "index", embedder=embedder, chunker=chunker, cache=cache).update(many)
    assert report.updated == 1
    assert report.chunks > report.embedded == len(embedder.embedded)
    assert sum("a word that is new" in text for text in embedder.embedded) == 1


def test_what_was_embedded_before_a_stop_is_not_embedded_again(tmp_path: Path, many: Path) -> None:
    """Not even texts of the window that was not committed."""
    cache = EmbeddingCache(tmp_path / "cache.db")
    first, second = Cached(fail_after=400), Cached()
    chunker = StructureChunker(max_tokens=40)
    with pytest.raises(EmbeddingError):
        Index(tmp_path / "index", embedder=first, chunker=chunker, cache=cache).update(many)
    index = Index(tmp_path / "index", embedder=second, chunker=chunker, cache=cache)
    index.update(many)
    assert not set(first.embedded) & set(second.embedded)
    index_at(tmp_path / "fresh").update(many)
    assert state(index) == state(index_at(tmp_path / "fresh"))


def test_another_index_uses_the_cached_embeddings_of_shared_texts(tmp_path: Path, many: Path) -> None:
    cache = EmbeddingCache(tmp_path / "cache.db")
    seen: set[str] = set()
    for name, size in (("small", 20), ("large", 60), ("small again", 20)):
        embedder = Cached()
        Index(tmp_path / name, embedder=embedder, chunker=StructureChunker(max_tokens=size), cache=cache).update(many)
        assert not seen & set(embedder.embedded)
        seen |= set(embedder.embedded)
    assert embedder.embedded == []


def test_totals_are_estimated_early_and_exact_at_the_end(
    tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragkit.indexing.pipeline._MAX_WINDOW", 64)  # so that reading cannot get far ahead
    monkeypatch.setattr("ragkit.indexing.report._REPORT_SECONDS", 0.0)
    events: list[IndexProgress] = []
    report = index_at(tmp_path / "index").update(many, on_progress=events.append)
    first = next(p for p in events if p.chunks_total)
    assert first.documents_total == 207 + 300  # lines are counted before rows are read
    assert first.chunks_done < report.chunks / 2
    assert 0.4 < first.chunks_total / report.chunks < 2.5  # type: ignore[operator]
    done = [p.chunks_done for p in events]
    assert done == sorted(done)
    assert all(p.chunks_total is None or p.chunks_done <= p.chunks_total for p in events)
    assert (events[-1].chunks_done, events[-1].chunks_total) == (report.chunks, report.chunks)
    assert events[-1].documents_done == events[-1].documents_total == 507


class Slow(HashEmbedder):
    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        time.sleep(0.02 * len(texts))
        return super().embed(texts, kind=kind)


def test_stopping_is_immediate_and_leaves_a_usable_index(tmp_path: Path, many: Path) -> None:
    asked: list[float] = []

    def cancelled() -> bool:
        if time.monotonic() > began + 2.5:
            asked.append(time.monotonic())
        return bool(asked)

    began = time.monotonic()
    index = index_at(tmp_path / "index", Slow(dimension=64))
    with pytest.raises(OperationCancelled):
        index.update(many, cancelled=cancelled)
    assert time.monotonic() - asked[0] < 5
    assert not [t for t in threading.enumerate() if t.name == "ragkit-index"]
    index_at(tmp_path / "index", HashEmbedder(dimension=64)).update(many)
    index_at(tmp_path / "fresh", HashEmbedder(dimension=64)).update(many)
    assert state(index_at(tmp_path / "index")) == state(index_at(tmp_path / "fresh"))


class Short(HashEmbedder):
    max_tokens = 10  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(dimension=8)
        self.max_tokens = 24
        self.read: list[int] = []

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        self.read += self.count_tokens(texts)
        return super().embed(texts, kind=kind)


def test_headings_never_push_a_chunk_over_the_models_limit(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    headings = "".join(f"{'#' * n} a heading of quite some words at level {n}\n\n" for n in range(1, 5))
    sentences = "".join(f"one two three four five six seven {n}. " for n in range(40))
    (tmp_path / "docs" / "a.md").write_text(headings + sentences)
    embedder = Short()
    index = Index(tmp_path / "index", embedder=embedder, chunker=StructureChunker(max_tokens=20))
    assert index.update(tmp_path / "docs").embedded > 5
    assert max(embedder.read) <= 24
    assert any(n > 20 for n in embedder.read)  # there is context where there is room


def test_a_belt_is_bounded_in_order_and_torn_down_from_either_end() -> None:
    queue: BoundedQueue[int] = BoundedQueue(10)
    taken: list[int | None] = []

    def fill() -> None:
        for n in range(100):
            queue.put(n, 4)

    filling = threading.Thread(target=fill)
    filling.start()
    time.sleep(0.2)
    assert filling.is_alive()  # two fit
    taken = [queue.get(5) for _ in range(100)]
    filling.join(5)
    assert taken == list(range(100))
    assert queue.get(0.01) is None
    queue.put(1, 1_000)  # one always fits
    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(queue.put, 2, 1)
        queue.close()
        with pytest.raises(OperationCancelled):
            waiting.result(5)
    with pytest.raises(OperationCancelled):
        queue.get()


# ------------------------------------------------------------------- one document fails, the others do not


class Panic(BaseException):
    """Raised like a panic of native code: not an Exception, and not a cancellation."""


class Trap:
    """Raise if a text contains a word."""

    def __init__(self, word: str = "poison", error: BaseException | None = None) -> None:
        self.word, self.error = word, error or KeyError("x")

    def spring(self, texts: Sequence[str]) -> None:
        if any(self.word in text for text in texts):
            raise self.error


class TrappedChunker(StructureChunker):
    trap = Trap()

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        self.trap.spring([document.text])
        return super().chunk(document, embedder=embedder)


class TrappedTokenizer(HashEmbedder):
    trap = Trap()

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        self.trap.spring(texts)
        return super().count_tokens(texts)


class TrappedModel(HashEmbedder):
    trap = Trap()

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        self.trap.spring(texts)
        return super().embed(texts, kind=kind)


def trapped(path: Path, where: str, error: BaseException | None) -> Index:
    """Return an index with a trap in one place; without one if there is no error."""
    embedder: HashEmbedder = HashEmbedder(dimension=64)
    chunker = StructureChunker(max_tokens=40)
    if error is not None and where == "chunker":
        chunker = TrappedChunker(max_tokens=40)
        TrappedChunker.trap = Trap(error=error)
    elif error is not None:
        kind = {"tokenizer": TrappedTokenizer, "model": TrappedModel}[where]
        embedder, kind.trap = kind(dimension=64), Trap(error=error)  # type: ignore[attr-defined]
    return Index(path, embedder=embedder, chunker=chunker)


def poison(path: Path) -> None:
    path.write_text(path.read_text() + "\n\nA line of poison stands here.\n")


ERRORS = [KeyError("x"), Panic("at the disco"), EmbeddingError("test", "no such text")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["chunker", "tokenizer", "model"])
def test_a_document_that_cannot_be_split_or_embedded_fails_alone(
    tmp_path: Path, many: Path, where: str, error: BaseException
) -> None:
    poison(many / "page150.md")
    index = trapped(tmp_path / "index", where, error)
    events: list[IndexProgress] = []
    report = index.update(many, on_progress=events.append)
    (failure,) = report.failed
    assert failure.source.endswith("page150.md")
    assert (str(error) if isinstance(error, EmbeddingError) else type(error).__name__) in failure.reason
    assert where == "model" or "structure(" in failure.reason
    assert where == "chunker" or isinstance(error, EmbeddingError) or index.embedder.name in failure.reason
    assert report.added == 7 + 200 + 300 - 1
    assert report.chunks == index.counts()[1]
    assert (events[-1].chunks_done, events[-1].chunks_total) == (report.chunks, report.chunks)
    assert events[-1].documents_done == events[-1].documents_total == 507
    held = state(index)
    assert "page150.md" not in held

    again = trapped(tmp_path / "index", where, error).update(many)  # the failed document is retried, and nothing else
    assert (again.added, again.updated, len(again.failed)) == (0, 0, 1)
    assert again.embedded == (2 if where == "model" else 0)  # the other texts of that page
    whole = trapped(tmp_path / "index", where, None)
    assert whole.update(many).added == 1
    fresh = trapped(tmp_path / "fresh", where, None)
    fresh.update(many)
    assert state(whole) == state(fresh)
    assert whole.update(many).unchanged == 507
    assert whole.verify().is_current


@pytest.mark.parametrize("where", ["chunker", "tokenizer", "model"])
def test_a_failed_file_keeps_its_indexed_documents(tmp_path: Path, folder: Path, where: str) -> None:  # noqa: F811
    rows = folder / "rows.jsonl"

    def write_rows(*texts: str) -> None:
        rows.write_text(
            "".join(json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate(texts) if text)
        )

    first = ("row number zero stands here", "row number one stands here", "row number two stands here", "row three")
    write_rows(*first)
    index = trapped(tmp_path / "index", where, None)
    index.update(folder)
    before = state(index)

    write_rows("row number zero is new", "row number one with poison", "row number two is new", "")
    poison(folder / "page0.md")
    report = trapped(tmp_path / "index", where, Panic("at the disco")).update(folder)
    assert sorted(Path(f.source).name for f in report.failed) == ["page0.md", "rows.jsonl#1"]
    assert (report.updated, report.deleted) == (2, 1)
    after = state(trapped(tmp_path / "index", where, None))
    assert after["page0.md"] == before["page0.md"]
    assert after["rows.jsonl#1"] == before["rows.jsonl#1"]
    assert after["rows.jsonl#0"] != before["rows.jsonl#0"]
    assert "rows.jsonl#3" not in after

    write_rows(*first)  # back to the last complete state: documents changed meanwhile must be restored
    trapped(tmp_path / "index", where, Panic("at the disco")).update(folder)
    assert {d: c for d, c in state(trapped(tmp_path / "index", where, None)).items() if d != "page0.md"} == {
        d: c for d, c in before.items() if d != "page0.md"
    }


def test_a_file_that_is_reverted_after_a_stop_is_read_again(tmp_path: Path, folder: Path) -> None:  # noqa: F811
    rows = folder / "rows.jsonl"
    texts = [json.dumps({"_id": str(n), "text": f"row number {n} stands here"}) + "\n" for n in range(400)]
    rows.write_text("".join(texts))
    index_at(tmp_path / "index").update(folder)
    before = state(index_at(tmp_path / "index"))
    rows.write_text("".join(text.replace("stands", "is") for text in texts))
    failing = CountingEmbedder(fail_after=200)
    with pytest.raises(EmbeddingError):
        index_at(tmp_path / "index", failing).update(folder)
    rows.write_text("".join(texts))
    index_at(tmp_path / "index").update(folder)
    assert state(index_at(tmp_path / "index")) == before


@pytest.mark.parametrize("error", [KeyError("x"), Panic("at the disco")], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "executor"])
def test_an_embedder_that_never_works_stops_the_run(
    tmp_path: Path,
    folder: Path,  # noqa: F811
    error: BaseException,
    elsewhere: bool,
) -> None:
    index = trapped(tmp_path / "index", "model", error)
    TrappedModel.trap.word = ""
    with ThreadPoolExecutor(2) as executor, pytest.raises(EmbeddingError, match=type(error).__name__):
        index.update(folder, executor=executor if elsewhere else None)
    assert index.counts() == (0, 0)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), SystemExit(), MemoryError(), OperationCancelled("stop")], ids=str
)
@pytest.mark.parametrize("where", ["chunker", "tokenizer", "model"])
def test_cancellation_stops_the_run(tmp_path: Path, folder: Path, where: str, error: BaseException) -> None:  # noqa: F811
    poison(folder / "page0.md")
    with pytest.raises(type(error)):
        trapped(tmp_path / "index", where, error).update(folder)


class Elsewhere(TrappedModel):
    """Trapped in the worker too, which imports the class again."""

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        Trap(error=Panic("at the disco")).spring(texts)
        return super().embed(texts, kind=kind)


def test_one_text_that_fails_in_another_process(tmp_path: Path, many: Path) -> None:
    poison(many / "page150.md")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        report = index_at(tmp_path / "index", Elsewhere(dimension=64)).update(many, executor=executor)
    (failure,) = report.failed
    assert failure.source.endswith("page150.md")
    assert "Panic: at the disco" in failure.reason
    assert report.added == 506


class NoChunks(StructureChunker):
    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        return []


def test_documents_without_chunks_are_not_failures(tmp_path: Path, folder: Path) -> None:  # noqa: F811
    index = Index(tmp_path / "index", embedder=HashEmbedder(dimension=64), chunker=NoChunks())
    assert index.update(folder).failed == ()
    assert index.counts() == (7, 0)


@pytest.mark.parametrize("where", ["chunker", "tokenizer"])
def test_settings_that_fit_no_document_stop_the_run(tmp_path: Path, folder: Path, where: str) -> None:  # noqa: F811
    embedder = Short()
    if where == "tokenizer":
        embedder.count_tokens = lambda texts: 1 / 0  # type: ignore[assignment]
    chunker = StructureChunker(max_tokens=25 if where == "chunker" else 20)
    with pytest.raises(InputError if where == "chunker" else EmbeddingError):
        Index(tmp_path / "index", embedder=embedder, chunker=chunker).update(folder)


@pytest.mark.timeout(60)
def test_a_store_that_cancels_is_no_success(tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer takes a cancellation for the end of the run only if its queue was closed."""

    def cancelled(*_: object) -> None:
        raise OperationCancelled("The store was stopped.")

    index = index_at(tmp_path / "index")
    monkeypatch.setattr(index.vector_store, "add", cancelled)
    with pytest.raises(OperationCancelled, match="The store was stopped"):
        index.update(many)
    monkeypatch.undo()
    index.update(many)
    assert index.verify().is_current
