"""Tuning: which systems are asked which questions, what is reported, and that nothing is computed twice."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit.cancellation import never
from ragkit.chunking.token import TokenChunker
from ragkit.embedding.hashed import HashEmbedder
from ragkit.errors import InputError, LLMResponseError, MissingExtraError, OperationCancelled
from ragkit.evaluation.dataset import Dataset, Query
from ragkit.evaluation.loading import load_dataset
from ragkit.experiments.sampling import Trial
from ragkit.experiments.system import System
from ragkit.experiments.tuning import Tuning, _rungs, tune
from ragkit.live import messages
from ragkit.retrieval.corpus import Passages
from ragkit.retrieval.retrievers import BM25, Dense
from ragkit.space import between, choose

ROOT = Path(__file__).resolve().parents[2]
METHODS = pytest.mark.parametrize("method", ["random", "tpe", "halving"])
ASKED: Counter[tuple[float, str]] = Counter()


@dataclasses.dataclass(frozen=True)
class Hill:
    """BM25 that loses more of its best passages the further the height is from 0.7."""

    height: float = 0.0
    kind: str = "hill"
    name = "hill"

    def __post_init__(self) -> None:
        if self.kind == "cliff":
            raise InputError("A cliff falls.")

    def scores(self, question: str, passages: Passages) -> Mapping[int, float]:
        globals()["ASKED"][self.height, question] += 1  # via globals(), because a counter is not part of the identity
        if self.kind == "abyss":
            raise InputError("Nothing comes out of an abyss.")
        found = BM25().scores(question, passages)
        best = sorted(found, key=lambda p: -found[p])
        return {p: -float(rank) for rank, p in enumerate(best[int(40 * abs(self.height - 0.7)) :])}


@dataclasses.dataclass(frozen=True)
class Given:
    """Searches for the unchanged question, and can fail for every second one."""

    fails: bool

    def rewrite(self, question: str, *, language: str, cancelled: Callable[[], bool] = never) -> list[str]:
        if self.fails and len(question) % 2:
            raise LLMResponseError("That is difficult.", model="m", base_url="")
        return [question]


class RecordingPublisher:
    """A publisher that records events."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def publish(self, event: messages.Broadcast) -> None:
        self.events.append(event)


HILL = System(retriever=Hill(between(0, 1)), chunker=TokenChunker(max_tokens=400), embedder=HashEmbedder(dimension=64))


def find(dataset: Dataset, system: System, folder: Path, **options: Any) -> Tuning:
    return tune(
        dataset,
        system,
        **{"store": folder, "cache": False, "publisher": RecordingPublisher(), "progress": False, **options},
    )


def kinds(*options: str) -> System:
    return dataclasses.replace(HILL, retriever=Hill(0.6, choose(*options)))


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """English and French questions on the articles of the handbook."""
    return load_dataset(ROOT / "data" / "questions", corpus=ROOT / "data" / "handbook").sample(48, seed=1)


@pytest.fixture
def few(dataset: Dataset) -> Dataset:
    return dataset.sample(20, seed=0)


@pytest.fixture(scope="module")
def halved(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    folder = tmp_path_factory.mktemp("halved")
    return find(dataset, HILL, folder, trials=9, test=dataset.head(3), method="halving")


@pytest.fixture(autouse=True)
def nothing_asked(halved: Tuning) -> None:
    ASKED.clear()


@METHODS
def test_a_stopped_search_resumes(dataset: Dataset, tmp_path: Path, method: Any) -> None:
    few = dataset.sample(36 if method == "halving" else 12)
    times = iter(range(1, 10_000))
    with pytest.raises(OperationCancelled):
        find(few, HILL, tmp_path, method=method, trials=6, cancelled=lambda: next(times) == 6)
    before = set(ASKED)
    assert before
    ASKED.clear()
    once = find(few, HILL, tmp_path, method=method, trials=6)
    assert 0 < once.computed["retrieve"] < once.trials["questions"].sum() + 2 * len(once.test.dataset.queries)
    ASKED.clear()
    again = find(few, HILL, tmp_path, method=method, trials=6)
    assert not ASKED
    assert not +again.computed
    assert again.trials.equals(once.trials)
    assert again.best == once.best
    assert again.test.queries.equals(once.test.queries)


def test_the_best_system_is_compared_on_the_test_questions(few: Dataset, tmp_path: Path) -> None:
    found = find(few, HILL, tmp_path, trials=6, method="tpe", also=["R@5"])
    train = {query.text for query in found.train.queries}
    test = {query.text for query in found.test.dataset.queries}
    assert (len(train), len(test), train & test) == (10, 10, set())
    asked: dict[float, set[str]] = {}
    for height, question in ASKED:
        asked.setdefault(height, set()).add(question)
    best, baseline = found.best.retriever, found.baseline.retriever
    assert isinstance(best, Hill)
    assert baseline == Hill(0.5)
    for height, questions in asked.items():
        assert questions == (train | test if height in (0.5, best.height) else train)
    trials = found.trials
    assert list(trials.columns) == ["trial", "retriever.height", "train", "questions", "state", "error"]
    assert set(trials["retriever.height"]) == set(asked)
    assert best.height == trials["retriever.height"][trials["train"].argmax()]
    assert found.test.names == [f"baseline: {found.baseline.name}", f"best: {found.best.name}"]
    assert found.best.label == ""
    (compared,) = found.test.compare("R@5").to_dict("records")
    assert compared["n"] == 10
    assert compared["difference"] > 0
    title = (
        "6 configurations by tpe, 60 questions asked. Selected by nDCG@10 on 10 train questions, reported on 10 test"
    )
    assert title in repr(found)
    assert title in found._repr_html_()


def test_halving_finds_the_best_with_fewer_questions(dataset: Dataset, halved: Tuning, tmp_path: Path) -> None:
    every = find(dataset, HILL, tmp_path, trials=9, test=dataset.head(3))
    assert halved.best == every.best != every.baseline
    assert list(halved.trials["retriever.height"]) == list(every.trials["retriever.height"])
    assert Counter(halved.trials["questions"]) == {15: 6, 45: 3}
    assert Counter(halved.trials["state"]) == {"stopped": 6, "done": 3}
    # A rung reuses the results of the previous one.
    assert halved.computed["retrieve"] == 9 * 15 + 3 * (45 - 15) + 2 * 3
    assert every.computed["retrieve"] == 9 * 45 + 2 * 3


def test_rungs_are_nested() -> None:
    questions = load_dataset(ROOT / "data" / "questions", corpus=ROOT / "data" / "handbook")
    rungs = _rungs(questions, seed=3)
    assert [len(rung.queries) for rung in rungs] == [len(questions.queries) // n for n in (9, 3, 1)]
    assert {q.id for q in rungs[0].queries} < {q.id for q in rungs[1].queries} < {q.id for q in rungs[2].queries}
    assert rungs[0].queries == _rungs(questions, seed=3)[0].queries != _rungs(questions, seed=4)[0].queries
    assert _rungs(questions.head(29), seed=0) == [questions.head(29)]


@METHODS
def test_systems_that_cannot_be_evaluated_are_failed_trials(few: Dataset, tmp_path: Path, method: Any) -> None:
    found = find(few, kinds("hill", "abyss", "cliff", "slope"), tmp_path, method=method)
    trials = found.trials.set_index("retriever.kind")
    assert dict(trials["error"]) == {
        "hill": "", "slope": "", "cliff": "A cliff falls.", "abyss": "Nothing comes out of an abyss."
    }  # fmt: skip
    assert dict(trials["state"]) == {"hill": "done", "slope": "done", "cliff": "failed", "abyss": "failed"}
    assert trials["train"].notna().equals(trials["state"] == "done")
    assert f"4 configurations by {method}, 2 of them failed (see trials['error']), " in repr(found)


def test_a_system_with_failed_questions_is_not_the_best(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ragkit.experiments.calls.PAUSE_SECONDS", 0.0)
    system = dataclasses.replace(HILL, retriever=choose(Hill(0.5), BM25()), rewriter=choose(Given(True), Given(False)))
    found = find(few, system, tmp_path)
    trials = found.trials.set_index(["retriever", "rewriter"])
    assert len(trials) == 4
    assert set(trials["state"]) == {"done"}
    errors = trials.xs("Given(fails=True)", level="rewriter")["error"]
    count = sum(len(query.text) % 2 for query in found.train.queries)
    assert 1 < count < 9
    assert set(errors) == {f"{count} of 10 questions failed."}
    assert found.best == dataclasses.replace(HILL, retriever=BM25(), rewriter=Given(False))


def test_of_equal_systems_the_first_is_best(few: Dataset, tmp_path: Path) -> None:
    found = find(few, kinds("hill", "slope", "ridge"), tmp_path)
    assert found.trials["train"].nunique() == 1
    assert found.best == found.baseline
    assert found.test.names == [f"baseline: {found.baseline.name}"]
    assert "No system was better than the baseline." in repr(found)


def test_a_separate_test_set_and_a_given_baseline(few: Dataset, tmp_path: Path) -> None:
    test = few.sample(8, seed=5)
    shouted = dataclasses.replace(test, queries=[Query(query.id, query.text.upper() + " ") for query in test.queries])
    baseline = dataclasses.replace(HILL, retriever=Dense())
    found = find(few, HILL, tmp_path, test=shouted, trials=2, baseline=baseline)
    assert {query.id for query in found.train.queries} == {q.id for q in few.queries} - {q.id for q in test.queries}
    assert found.test.baseline == f"baseline: {baseline.name}"
    assert found.test.dataset == shouted


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_each_experiment_is_published_as_one_task(few: Dataset, tmp_path: Path, method: Any) -> None:
    publisher = RecordingPublisher()
    find(few, HILL, tmp_path, method=method, trials=3, publisher=publisher)
    names = dict.fromkeys((event.task_id, event.experiment) for event in publisher.events)
    assert [name for _, name in names] == [f"{few.name}: search", f"{few.name}: test"]
    results = [event for event in publisher.events if isinstance(event, messages.ExperimentResult)]
    assert [len(event.leaderboard) for event in results] == [1, 2, 3, 1, 2]
    assert [event.row["system"][:8] for event in results[:3]] == ["trial 0:", "trial 1:", "trial 2:"]


def test_plots(halved: Tuning, few: Dataset) -> None:
    long = "b" * 99
    states: Any = [("$x_1$", 0.3, "done"), ("\u202e", None, "failed"), (long, 0.5, "stopped"), (long, 0.4, "done")]
    trials = [
        Trial(number, {"k": number, "kind": kind, "exact": number > 1}, None, value=value, questions=9, state=state)
        for number, (kind, value, state) in enumerate(states)
    ]
    found = Tuning(
        trials, halved.best, halved.baseline, halved.test, method="halving", train=few, computed=Counter()
    )  # fmt: skip
    stopped, done, best_so_far = found.plot().axes[0].lines
    assert np.array_equal(stopped.get_xydata(), [(2, 0.5)])
    assert np.array_equal(done.get_xydata(), [(0, 0.3), (3, 0.4)])
    assert np.array_equal(best_so_far.get_xydata(), [(0, 0.3), (3, 0.4)])
    assert np.array_equal(found.plot("k").axes[0].lines[-1].get_xydata(), [(3, 0.4)])
    trials[1].parameters["failed"] = 1
    trials[2].parameters["stopped"] = 1
    for parameter in (None, "k", "kind", "exact", "stopped"):
        assert found.plot(parameter)._repr_png_()[0].startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"The parameters are: retriever\.height\."):
        halved.plot("height")
    with pytest.raises(InputError, match="nothing to plot"):
        found.plot("failed")


@pytest.mark.parametrize(
    ("system", "options", "message"),
    [
        (dataclasses.replace(HILL, retriever=BM25()), {}, "no choices to tune"),
        (HILL, {"method": "grid"}, "'grid'"),
        (HILL, {"trials": 0}, "at least 1"),
        (HILL, {"baseline": HILL}, "single system"),
        (HILL, {"train": 1.0}, "one part would be empty"),
        (HILL, {"measure": "nonsense"}, "nonsense"),
        (kinds("cliff"), {}, "cannot be combined: A cliff falls"),
        (kinds("abyss", "cliff"), {"method": "tpe"}, "could be evaluated.*comes out of an abyss"),
    ],
)
def test_invalid_arguments_are_refused(
    few: Dataset, tmp_path: Path, system: System, options: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        find(few, system, tmp_path, **options)


def test_train_questions_must_remain(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none is left to train on"):
        find(few, HILL, tmp_path, test=few)


def test_without_optuna(few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"ragkit-lab\[tune\]"):
        find(few, HILL, tmp_path)
