"""Sample configurations from a search space with Optuna, each once."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeVar

from ragkit.errors import InputError, needs
from ragkit.experiments.system import System, described
from ragkit.space import Choice, Range, count, resolve

_T = TypeVar("_T")

_MAX_REPEATS = 10  # duplicates in a row before the next configuration is sampled uniformly
_MAX_ATTEMPTS = 200  # duplicates in a row before the space counts as exhausted
_DIGITS = 3  # significant digits of a real number (of its position in the range): measures resolve no more


@dataclasses.dataclass(slots=True)
class Trial:
    """One sampled configuration and its score."""

    number: int
    parameters: dict[str, Any]
    optuna_trial: Any
    system: System | None = None
    value: float | None = None
    questions: int = 0
    unscored: int = 0  # failed questions
    state: Literal["waiting", "done", "stopped", "failed"] = "waiting"
    error: str = ""

    @property
    def labelled(self) -> System:
        """The system with a unique name."""
        assert self.system is not None  # trials without a system are never run
        return dataclasses.replace(self.system, label=f"trial {self.number}: {self.system.name}")

    def rank(self) -> tuple[int, float, int]:
        """Return a sort key: fewest failed questions first, then the highest score, then the earliest trial."""
        return self.unscored, -(self.value or 0.0), self.number

    def measured(self, value: float, questions: int, *, unscored: int = 0) -> None:
        self.questions, self.unscored = questions, unscored
        self.error = f"{unscored} of {questions} questions failed." if unscored else ""
        if math.isnan(value):
            self.failed(self.error or "The measure has no value on these questions.")
        else:
            self.value, self.state = value, "done"

    def failed(self, error: str) -> None:
        self.value, self.state, self.error = None, "failed", error


class _Suggests(Protocol):
    """The part of `optuna.Trial` that is used here."""

    def suggest_categorical(self, name: str, choices: Sequence[int]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


class Draws:
    """Samples configurations from a space, each once; the first has the first options and the middle of every range.

    Args:
        space: A system with choices and ranges.
        method: ``"tpe"`` learns from the scores; any other value samples uniformly.
        trials: The maximum number of configurations.
        seed: The same seed gives the same configurations, if they have the same scores.

    Raises:
        MissingExtraError: Optuna is not installed.
    """

    def __init__(self, space: System, method: str, trials: int, seed: int) -> None:
        with needs("optuna", extra="tune"):
            import optuna

        self._uniform = optuna.samplers.RandomSampler(seed=seed)
        # multivariate=False: the parameters of an option are missing in trials with another option.
        self._sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False) if method == "tpe" else self._uniform
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it logs the name of the study
        try:
            self._study = optuna.create_study(direction="maximize", sampler=self._sampler)
        finally:
            optuna.logging.set_verbosity(verbosity)
        self._failed_state = optuna.trial.TrialState.PRUNED  # TPE learns from PRUNED, but not from FAIL
        self._space = space
        self._max_trials = min(trials, count(space))
        self._known: dict[tuple[Any, ...], Trial] = {}
        middle = _Middle()
        with contextlib.suppress(InputError):  # reported by the first draw
            resolve(space, lambda at, part: _suggest(middle, at, part))
        self._study.enqueue_trial(middle.drawn)

    @property
    def trials(self) -> list[Trial]:
        """The trials so far."""
        return list(self._known.values())

    def draw(self, last: Trial | None = None) -> Trial | None:
        """Return a new trial; None if there are no more.

        Args:
            last: The previous trial, which the sampler learns from.
        """
        if last is not None:
            self._report(last.optuna_trial, last)
        repeated = 0
        while len(self._known) < self._max_trials and repeated < _MAX_ATTEMPTS:
            # A sampler that has converged repeats itself.
            self._study.sampler = self._uniform if repeated >= _MAX_REPEATS else self._sampler
            trial = Trial(len(self._known), {}, self._study.ask())
            drawn: list[Any] = []
            error = ""
            try:
                trial.system = resolve(self._space, _recording(trial, drawn))
            except InputError as problem:  # incompatible options
                error = str(problem)
            known = self._known.setdefault(tuple(drawn), trial)
            if known is not trial:
                self._report(trial.optuna_trial, known)  # the sampler learns from duplicates, too
                repeated += 1
            elif error:
                trial.failed(error)
                self._report(trial.optuna_trial, trial)
            else:
                return trial
        return None

    def _report(self, optuna_trial: Any, trial: Trial) -> None:
        if trial.value is None:
            self._study.tell(optuna_trial, state=self._failed_state)
        else:
            self._study.tell(optuna_trial, trial.value)


def _recording(trial: Trial, drawn: list[Any]) -> Callable[[tuple[str | int, ...], Choice | Range], Any]:
    """Return a function that samples values and records them, readable in the parameters and exactly in ``drawn``."""

    def decide(at: tuple[str | int, ...], part: Choice | Range) -> Any:
        found = _suggest(trial.optuna_trial, at, part)
        drawn.append((at, found))
        value = part.options[found] if isinstance(part, Choice) else found
        name = ".".join(each for each in at if isinstance(each, str))
        trial.parameters[name] = value if isinstance(value, int | float | str) else described(value)
        return found

    return decide


def _suggest(trial: _Suggests, at: tuple[str | int, ...], part: Choice | Range) -> Any:
    """Sample the index of an option, or a number from a range."""
    name = ".".join(map(str, at))
    if isinstance(part, Choice):
        return trial.suggest_categorical(name, range(len(part.options)))
    if part.step is not None and part.steps is not None:
        return round(part.low + part.step * trial.suggest_int(name, 0, part.steps), 12)
    if part.whole:
        return trial.suggest_int(name, int(part.low), int(part.high), log=part.log)
    number = trial.suggest_float(name, part.low, part.high, log=part.log)
    size = number if part.log else part.high - part.low
    return min(max(round(number, _DIGITS - math.floor(math.log10(size))), part.low), part.high)


class _Middle:
    """Suggests the first option or the middle of a range, and records the values."""

    def __init__(self) -> None:
        self.drawn: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Sequence[int]) -> Any:
        return self._keep(name, choices[0])

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return self._keep(name, round(math.sqrt(low * high)) if log else (low + high) // 2)

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        return self._keep(name, math.sqrt(low * high) if log else (low + high) / 2)

    def _keep(self, name: str, value: _T) -> _T:
        self.drawn[name] = value
        return value
