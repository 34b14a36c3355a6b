"""Set-ups drawn from a space by Optuna, each once."""

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

_INSISTING = 10  # draws in a row that were drawn before, until one is drawn evenly
_PATIENCE = 200  # and until there seem to be no others
_DIGITS = 3  # of a number that may be any, or of its place in the range: no measure tells more of them apart


@dataclasses.dataclass(slots=True)
class Trial:
    """One set-up, and how it did."""

    number: int
    parameters: dict[str, Any]
    asked: Any  # Optuna's own
    system: System | None = None
    value: float | None = None
    questions: int = 0
    unscored: int = 0  # questions that failed
    state: Literal["waiting", "done", "stopped", "failed"] = "waiting"
    error: str = ""

    @property
    def labelled(self) -> System:
        """The system with a name that no other trial has."""
        assert self.system is not None  # what cannot be made is not run
        return dataclasses.replace(self.system, label=f"trial {self.number}: {self.system.name}")

    def rank(self) -> tuple[int, float, int]:
        """The best first, and of equals the first one drawn; last those that might have failed at what is difficult."""
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


class _Drawing(Protocol):
    """The part of Optuna's Trial that is used."""

    def suggest_categorical(self, name: str, choices: Sequence[int]) -> Any: ...
    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...
    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...


class Draws:
    """Draws set-ups from a space, each once: first that with the first options and the middle of every range.

    Args:
        space: With choices and ranges in it.
        method: ``"tpe"`` learns from what was measured; anything else draws evenly.
        trials: How many are drawn at most.
        seed: The same seed draws the same set-ups, if they measure the same.

    Raises:
        MissingExtraError: Optuna is not installed.
    """

    def __init__(self, space: System, method: str, trials: int, seed: int) -> None:
        with needs("optuna", extra="tune"):
            import optuna

        self._evenly = optuna.samplers.RandomSampler(seed=seed)
        # Each parameter by itself: those of an option are not in every trial.
        self._sampler = optuna.samplers.TPESampler(seed=seed, multivariate=False) if method == "tpe" else self._evenly
        told = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells what the study is called
        try:
            self._study = optuna.create_study(direction="maximize", sampler=self._sampler)
        finally:
            optuna.logging.set_verbosity(told)
        self._bad = optuna.trial.TrialState.PRUNED  # TPE learns from it, but not from FAIL
        self._space = space
        self._most = min(trials, count(space))
        self._known: dict[tuple[Any, ...], Trial] = {}
        middle = _Middle()
        with contextlib.suppress(InputError):  # which the first draw will tell
            resolve(space, lambda at, part: _suggest(middle, at, part))
        self._study.enqueue_trial(middle.drawn)

    @property
    def trials(self) -> list[Trial]:
        """What was drawn."""
        return list(self._known.values())

    def draw(self, last: Trial | None = None) -> Trial | None:
        """Return a set-up that was not drawn before; None if there are no more.

        Args:
            last: The one drawn before, from which the next draw can learn.
        """
        if last is not None:
            self._tell(last.asked, last)
        repeated = 0
        while len(self._known) < self._most and repeated < _PATIENCE:
            # What has learnt where the best is draws it again and again.
            self._study.sampler = self._evenly if repeated >= _INSISTING else self._sampler
            trial = Trial(len(self._known), {}, self._study.ask())
            drawn: list[Any] = []
            error = ""
            try:
                trial.system = resolve(self._space, _noting(trial, drawn))
            except InputError as problem:  # options that do not go together
                error = str(problem)
            known = self._known.setdefault(tuple(drawn), trial)
            if known is not trial:
                self._tell(trial.asked, known)  # what repeats itself is not learnt from, else
                repeated += 1
            elif error:
                trial.failed(error)
                self._tell(trial.asked, trial)
            else:
                return trial
        return None

    def _tell(self, asked: Any, trial: Trial) -> None:
        if trial.value is None:
            self._study.tell(asked, state=self._bad)
        else:
            self._study.tell(asked, trial.value)


def _noting(trial: Trial, drawn: list[Any]) -> Callable[[tuple[str | int, ...], Choice | Range], Any]:
    """Draw for a trial, and note what was drawn: for people in its parameters, and to tell repetitions."""

    def decide(at: tuple[str | int, ...], part: Choice | Range) -> Any:
        found = _suggest(trial.asked, at, part)
        drawn.append((at, found))
        value = part.options[found] if isinstance(part, Choice) else found
        name = ".".join(each for each in at if isinstance(each, str))
        trial.parameters[name] = value if isinstance(value, int | float | str) else described(value)
        return found

    return decide


def _suggest(trial: _Drawing, at: tuple[str | int, ...], part: Choice | Range) -> Any:
    """Draw the number of an option, or a number of a range."""
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
    """Draws the first option and the middle of a range, and keeps what it drew."""

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
