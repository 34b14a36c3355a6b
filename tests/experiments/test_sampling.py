"""Sampling from a search space: complete, within bounds, each configuration once."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any, Literal

import pytest

from ragkit.chunking.token import TokenChunker
from ragkit.embedding.hashed import HashEmbedder
from ragkit.errors import InputError
from ragkit.experiments.sampling import Draws, Trial
from ragkit.experiments.system import System
from ragkit.retrieval.retrievers import BM25, Dense, Hybrid
from ragkit.space import between, choose, count

METHODS = pytest.mark.parametrize("method", ["random", "tpe"])


@dataclasses.dataclass(frozen=True)
class Hill:
    """A retriever with parameters; it retrieves nothing."""

    height: float = 0.0
    kind: Any = "hill"
    size: Any = 1
    name = "hill"

    def __post_init__(self) -> None:
        if self.height == 0.25 and self.kind == "cliff":
            raise InputError("A cliff of a quarter falls.")

    def scores(self, question: str, passages: object) -> dict[int, float]:
        raise NotImplementedError


def space(retriever: Any, **parts: Any) -> System:
    return System(**{"retriever": retriever, "embedder": HashEmbedder(), **parts})


def drawn(draws: Draws, height: float = 0.7) -> list[Trial]:
    """Draw all trials; the score is higher the closer to a height."""
    last = None
    while (trial := draws.draw(last)) is not None:
        far = abs(trial.parameters.get("retriever.height", 0.0) - height)
        trial.measured(-far, 1)
        last = trial
    return list(draws.trials)


@METHODS
def test_a_trial_has_the_parameters_of_its_option(method: Literal["random", "tpe"]) -> None:
    system = space(
        choose(BM25(), Hybrid(dense_weight=between(0, 1), depth=choose(50, 100)), Dense(depth=choose(7, 8, 9))),
        chunker=TokenChunker(max_tokens=between(200, 400, step=100)),
    )
    draws = Draws(system, method, 40, seed=0)
    of = {"BM25()": set(), "Hybrid(dense_weight=between(0, 1), depth=choose(50, 100))": {"dense_weight", "depth"},
          "Dense(depth=choose(7, 8, 9))": {"depth"}}  # fmt: skip
    trials = drawn(draws)
    assert {t.parameters["retriever"] for t in trials} == set(of)
    for trial in trials:
        system = trial.system  # type: ignore[assignment]
        names = {f"retriever.{name}" for name in of[trial.parameters["retriever"]]}
        assert set(trial.parameters) == {"retriever", "chunker.max_tokens", *names}
        assert trial.parameters["chunker.max_tokens"] == system.chunker.max_tokens in (200, 300, 400)  # type: ignore[union-attr]
        if isinstance(system.retriever, Hybrid):
            assert system.retriever.dense_weight == trial.parameters["retriever.dense_weight"]
            assert 0 <= system.retriever.dense_weight <= 1
            assert system.retriever.depth in (50, 100)
    assert trials[0].system == space(BM25(), chunker=TokenChunker(max_tokens=300), embedder=system.embedder)


@METHODS
@pytest.mark.parametrize(
    ("part", "middle", "is_right"),
    [
        (between(0, 1), 0.5, lambda x: 0 <= x <= 1 and len(str(x)) <= 5),
        (between(0.123456, 0.123457), 0.1234565, lambda x: 0.123456 <= x <= 0.123457),
        (between(0, 1, step=0.1), 0.5, lambda x: x in (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)),
        (between(0, 1.0, step=0.4), 0.4, lambda x: x in (0, 0.4, 0.8)),
        (between(0.001, 10, log=True), 0.1, lambda x: 0.001 <= x <= 10 and len(str(x)) <= 8),
        (choose(5, between(1, 2)), 5, lambda x: x == 5 or 1 <= x <= 2),
    ],
)
def test_numbers_stay_within_their_range(method: str, part: Any, middle: float, is_right: Any) -> None:
    draws = Draws(space(Hill(part)), method, 25, seed=1)
    heights = [trial.system.retriever.height for trial in drawn(draws)]  # type: ignore[union-attr]
    assert heights[0] == middle
    assert all(map(is_right, heights))
    assert len(set(heights)) == len(heights) == min(25, count(Hill(part)))


def test_integers_stay_integers() -> None:
    draws = Draws(space(Hill(0.5, between(1, 9), between(1, 100, log=True))), "random", 30, seed=0)
    hills: list[Any] = [trial.system.retriever for trial in drawn(draws) if trial.system]
    assert all(type(hill.kind) is type(hill.size) is int for hill in hills)
    assert all(1 <= hill.kind <= 9 and 1 <= hill.size <= 100 for hill in hills)
    assert hills[0] == Hill(0.5, 5, 10)
    assert sum(hill.size <= 10 for hill in hills) > 8  # the lower half on a logarithmic scale


@METHODS
def test_a_small_space_is_sampled_completely_and_once(method: str) -> None:
    draws = Draws(space(Hill(choose(0.7, 0.1, 0.4), choose("hill", choose("slope", "cliff")))), method, 50, seed=0)
    found = [(trial.system.retriever.height, trial.system.retriever.kind) for trial in drawn(draws)]  # type: ignore[union-attr]
    assert sorted(found) == [(height, kind) for height in (0.1, 0.4, 0.7) for kind in ("cliff", "hill", "slope")]


@METHODS
def test_incompatible_options_are_failed_trials(method: str) -> None:
    draws = Draws(space(Hill(choose(0.7, 0.25), choose("hill", "cliff"))), method, 50, seed=0)
    by_state = {state: [t for t in drawn(draws) if t.state == state] for state in ("done", "failed")}
    assert len(by_state["done"]) == 3
    (failed,) = by_state["failed"]
    assert failed.error == "A cliff of a quarter falls."
    assert failed.parameters == {"retriever.height": 0.25, "retriever.kind": "cliff"}


def test_tpe_learns_from_scores() -> None:
    hill = space(Hill(between(0, 1)))
    far = {
        method: [abs(trial.parameters["retriever.height"] - 0.7) for trial in drawn(Draws(hill, method, 60, seed=0))]
        for method in ("random", "tpe")
    }
    assert sum(far["tpe"][30:]) < sum(far["random"][30:]) / 2


def test_tpe_learns_from_failures() -> None:
    draws = Draws(space(choose(Hill(between(0, 1)), Hill(between(0, 1), "steep"))), "tpe", 40, seed=0)
    last = None
    while (trial := draws.draw(last)) is not None:
        if trial.parameters["retriever"].endswith("kind='steep')"):
            trial.failed("Nobody climbs that.")
        else:
            trial.measured(trial.parameters["retriever.height"], 1)
        last = trial
    assert sum(trial.state == "failed" for trial in draws.trials[20:]) < 5


@METHODS
def test_the_seed_determines_the_trials(method: str) -> None:
    def parameters(seed: int, trials: int = 15) -> list[dict[str, Any]]:
        system = space(choose(BM25(), Hill(between(0, 1))))
        return [trial.parameters for trial in drawn(Draws(system, method, trials, seed))]

    assert parameters(3) == parameters(3)
    assert parameters(3) == parameters(3, trials=25)[:15]
    assert parameters(3) != parameters(4)


def test_global_settings_of_optuna_are_restored(caplog: pytest.LogCaptureFixture) -> None:
    import optuna

    level = optuna.logging.get_verbosity()
    logger = logging.getLogger("optuna")
    logger.addHandler(caplog.handler)  # Optuna's logger does not propagate
    try:
        drawn(Draws(space(Hill(between(0, 1))), "tpe", 5, seed=0))
        assert not caplog.records
        optuna.create_study()
        assert caplog.records
    finally:
        logger.removeHandler(caplog.handler)
    assert optuna.logging.get_verbosity() == level
