"""Experiments: what is computed, cached and published."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit.chunking.structure import StructureChunker
from ragkit.chunking.token import TokenChunker
from ragkit.errors import InputError, OperationCancelled, ResultCacheError
from ragkit.evaluation.dataset import Dataset
from ragkit.evaluation.trec import read_run
from ragkit.experiments.result import Result
from ragkit.experiments.system import System
from ragkit.live import messages
from ragkit.retrieval.corpus import Passages
from ragkit.retrieval.query import search_queries
from ragkit.retrieval.retrievers import BM25, Dense, Hybrid
from ragkit.space import choose
from tests.support.corpora import PAGES
from tests.support.experiments import Counting, RecordingPublisher, experiment, pages


@pytest.fixture
def dataset() -> Dataset:
    return pages()


@pytest.fixture
def embedder() -> Counting:
    return Counting()


def figures(result: Result) -> list[Any]:
    """Return the figures that must be equal in every run, without durations."""
    rankings = {name: result.rankings(name) for name in result.names}
    return [result.queries.to_dict("records"), rankings, result.compare().to_dict("records")]


def sweep(embedder: Counting) -> System:
    return System(
        embedder=embedder,
        retriever=choose(BM25(), Dense(), Hybrid()),
        chunker=choose(StructureChunker(max_tokens=40), TokenChunker(max_tokens=30)),
    )


def test_a_sweep_gives_tables_tests_and_a_leaderboard(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    result = experiment(
        dataset, sweep(embedder), tmp_path, baseline="Dense(), TokenChunker(max_tokens=30), ragkit/hash-64"
    ).run()
    assert len(result.systems) == 6
    assert list(result.systems["nDCG@10"]) == sorted(result.systems["nDCG@10"], reverse=True)
    assert len(result.queries) == 6 * 4 * 2
    assert set(result.compare("SpanRecall@3")["system"]) == set(result.names) - {result.baseline}
    best = result.systems.iloc[0]
    assert best["nDCG@10"] == 1.0  # BM25 finds these words
    assert best["latency_ms"] > 0
    assert "wins/ties/losses" in repr(result)
    assert "<table" in result._repr_html_()
    assert not result.interim


def test_each_distinct_text_is_embedded_once(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    one = experiment(dataset, sweep(embedder), tmp_path)
    one.run()
    passages = {key: n for key, n in embedder.embedded.items() if key[0] == "passage"}
    assert set(passages.values()) == {1}
    assert one.result_cache.computed["chunk"] == 2 * len(dataset.documents)
    assert one.result_cache.computed["retrieve"] == 6 * len(dataset.queries)


def test_a_lexical_retriever_embeds_nothing(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    experiment(dataset, System(embedder=embedder, retriever=BM25()), tmp_path).run()
    assert not embedder.embedded


def test_a_finished_experiment_computes_nothing_for_another_measure(
    dataset: Dataset, embedder: Counting, tmp_path: Path
) -> None:
    before = experiment(dataset, sweep(embedder), tmp_path).run()
    embedder.embedded.clear()
    again = experiment(dataset, sweep(embedder), tmp_path, measures=["RR@10", "nDCG@10", "SpanRecall@3"])
    after = again.run()
    assert not embedder.embedded
    assert not again.result_cache.computed
    shared = after.queries[after.queries["measure"] != "RR@10"].reset_index(drop=True)
    assert shared.equals(before.queries)


def test_only_a_new_system_runs(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    one = experiment(dataset, sweep(embedder), tmp_path)
    one.run()
    embedder.embedded.clear()
    one.result_cache.computed.clear()
    one.add(
        System(label="new", embedder=embedder, retriever=Hybrid(dense_weight=0.9), chunker=TokenChunker(max_tokens=30))
    )
    result = one.run()
    assert result.names[-1] == "new"
    assert one.result_cache.computed == {"retrieve": len(dataset.queries), "latency": 1}
    assert {kind for kind, _ in embedder.embedded} <= {"query"}  # to measure the latency
    with pytest.raises(InputError, match="named 'new'"):
        one.add(System(label="new"))


def test_a_changed_document_invalidates_only_its_dependents(
    dataset: Dataset, embedder: Counting, tmp_path: Path
) -> None:
    experiment(dataset, sweep(embedder), tmp_path).run()
    first, *others = dataset.documents
    changed = dataclasses.replace(first, text=first.text + "\n\nA sentence that was not there.\n")
    embedder.embedded.clear()
    again = experiment(dataclasses.replace(dataset, documents=[changed, *others]), sweep(embedder), tmp_path)
    again.run()
    assert again.result_cache.computed["chunk"] == 2  # the document, by two chunkers
    assert again.result_cache.computed["retrieve"] == 6 * len(dataset.queries)  # BM25 weighs words by all documents
    assert len({text for kind, text in embedder.embedded if kind == "passage"}) <= 4


def test_only_a_changed_question_is_computed(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    experiment(dataset, sweep(embedder), tmp_path).run()
    first, *others = dataset.queries
    again = experiment(
        dataclasses.replace(dataset, queries=[dataclasses.replace(first, text="BM25 k1?"), *others]),
        sweep(embedder),
        tmp_path,
    )
    again.run()
    assert again.result_cache.computed["chunk"] == 0
    assert again.result_cache.computed["retrieve"] == 6


def test_a_stopped_run_resumes_with_the_same_result(dataset: Dataset, tmp_path: Path) -> None:
    undisturbed = figures(experiment(dataset, sweep(Counting()), tmp_path / "one").run())
    embedder = Counting()
    again = experiment(dataset, sweep(embedder), tmp_path / "two")
    result = None
    for stop_at in range(1, 100):  # each run gets one step further
        asked = iter(range(1, 1000))
        try:
            result = again.run(cancelled=lambda: next(asked) == stop_at)  # noqa: B023
            break
        except OperationCancelled:
            continue
    assert result is not None
    assert stop_at > 3
    assert figures(result) == undisturbed
    assert {n for (kind, _), n in embedder.embedded.items() if kind == "passage"} == {1}


def test_progress_and_results_are_published(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    publisher = RecordingPublisher()
    experiment(dataset, sweep(embedder), tmp_path, publisher=publisher, name="live").run()
    progress = [e for e in publisher.events if isinstance(e, messages.ExperimentProgress)]
    results = [e for e in publisher.events if isinstance(e, messages.ExperimentResult)]
    assert [progress[0].state, progress[-1].state] == ["running", "done"]
    assert progress[-1].cells_done == progress[-1].cells_total
    assert [e.cells_done for e in progress] == sorted(e.cells_done for e in progress)
    assert [len(e.leaderboard) for e in results] == [1, 2, 3, 4, 5, 6]
    assert "difference" not in results[0].row
    assert results[-1].row["interim"] is True
    assert {"system", "nDCG@10", "difference", "wins", "losses"} <= set(results[-1].row)
    assert len({e.task_id for e in publisher.events}) == 1  # type: ignore[union-attr]


def test_a_failure_is_published_and_raised(dataset: Dataset, tmp_path: Path) -> None:
    publisher = RecordingPublisher()
    broken = experiment(dataset, System(chunker=TokenChunker(max_tokens=10**7)), tmp_path, publisher=publisher)
    with pytest.raises(InputError, match="would not see the end"):
        broken.run()
    assert isinstance(publisher.events[-1], messages.ExperimentProgress)
    assert publisher.events[-1].state == "failed"
    assert "would not see the end" in (publisher.events[-1].message or "")


class Broken:
    """A user-defined retriever with a bug."""

    name = "broken"

    def scores(self, question: str, passages: Passages) -> Mapping[int, float]:
        return {0: 1 / len(question[:0])}


def test_an_error_of_user_code_is_published_too(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    publisher = RecordingPublisher()
    with pytest.raises(ZeroDivisionError):
        experiment(
            dataset, System(label="broken", embedder=embedder, retriever=Broken()), tmp_path, publisher=publisher
        ).run()
    assert isinstance(publisher.events[-1], messages.ExperimentProgress)
    assert (publisher.events[-1].state, publisher.events[-1].message) == ("failed", "division by zero")


class Slow:
    """A retriever that waits for an event."""

    name = "slow"

    def identity(self) -> str:
        return "slow"

    def scores(self, question: str, passages: Passages) -> Mapping[int, float]:
        globals()["GO"].wait(30)  # a lock has no identity
        return BM25().scores(question, passages)


GO = threading.Event()


def test_a_system_is_added_while_it_runs(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    GO.clear()
    running = experiment(dataset, System(label="slow", embedder=embedder, retriever=Slow()), tmp_path).start()
    with pytest.raises(TimeoutError, match="still running"):
        running.result(timeout_seconds=0.05)
    while running.interim is None:
        time.sleep(0.01)
    assert running.interim.interim
    running.add(System(label="more", embedder=embedder, retriever=BM25()))
    GO.set()
    assert running.result(timeout_seconds=60).names == ["slow", "more"]


def test_a_running_experiment_can_be_stopped(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    GO.set()
    running = experiment(dataset, sweep(embedder), tmp_path).start()
    running.stop()
    with pytest.raises(OperationCancelled, match="to resume"):
        running.result()


def test_whole_documents(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    result = experiment(dataset, System(embedder=embedder, chunker=None), tmp_path).run()
    assert result.systems["passages"].item() == len(dataset.documents)
    ranked = result.rankings(result.names[0])["k1"]
    assert (ranked[0].start, ranked[0].end) == (0, len(PAGES[ranked[0].document_id]))


def test_runs_are_written_for_trec_eval(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    result = experiment(dataset, sweep(embedder), tmp_path).run()
    paths = result.write_runs(tmp_path / "trec")
    assert len(paths) == 6
    run = read_run(paths[0])
    assert set(run) == {query.id for query in dataset.queries}
    assert run["k1"][0][0] == "bm25.md"


def test_invalid_arguments_are_refused(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    for options, message in (
        ({"measures": []}, "needs a measure"),
        ({"measures": ["nonsense"]}, "nonsense"),
        ({"baseline": "other"}, "not one of the systems"),
    ):
        with pytest.raises(InputError, match=message):
            experiment(dataset, sweep(embedder), tmp_path, **options)
    result = experiment(dataset, System(embedder=embedder), tmp_path).run()
    for wrong in (
        lambda: result.compare("AP"),
        lambda: result.plot("pie"),
        lambda: result.rankings("none"),
        lambda: result.plot("differences"),
    ):
        with pytest.raises(InputError):
            wrong()


def test_a_damaged_result_cache_says_what_to_do(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "results.db").write_bytes(b"not a database" * 100)
    with pytest.raises(ResultCacheError, match="delete it"):
        experiment(dataset, System(embedder=embedder), tmp_path).run()


def test_an_experiment_does_not_import_a_vector_store(tmp_path: Path) -> None:
    program = """
import sys
from ragkit.experiments import tune
from ragkit.retrieval import BM25, Dense, Hybrid
from ragkit import System, choose
from tests.support.experiments import Counting, experiment, pages
from pathlib import Path
systems = System(embedder=Counting(), retriever=choose(BM25(), Dense(), Hybrid()))
experiment(pages(), systems, Path(sys.argv[1]), measures=["nDCG@10", "Answered", "FollowUps"]).run()
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = done.stdout.split()
    assert "ragkit.indexing.record_types" in loaded
    assert not {"chromadb", "ragkit.indexing.vector_store", "ragkit.indexing.records", "bs4"} & set(loaded)


def test_exact_search_is_one_matrix_product() -> None:
    """Queries of a batch get the same scores as single queries, up to rounding, and are embedded in one call."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((50, 64)).astype(np.float32)
    from ragkit.chunking.base import Chunk
    from ragkit.indexing.record_types import DocumentRecord, StoredChunk
    from ragkit.retrieval.corpus import Documents

    documents = Documents([DocumentRecord("d", "d", "d", "en", "x" * 50)])
    chunks = [[StoredChunk(str(i), Chunk("d", i, i + 1, "x")) for i in range(50)]]
    embedder = Counting(dimension=64)
    passages = Passages(documents, chunks, embedder=embedder, vectors=vectors)
    questions = ["one two", "three", "four five six"]
    alone = [passages.cosines(question) for question in questions]
    calls = embedder.calls
    for query, row in zip(search_queries(questions, ["en"] * 3, embedder=embedder), alone, strict=True):
        np.testing.assert_allclose(passages.cosines(query), row, atol=1e-6)
        assert passages.nearest(query, k=50) == pytest.approx(dict(enumerate(row.tolist())), abs=1e-6)
    assert embedder.calls == calls + 1
