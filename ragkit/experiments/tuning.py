"""Choose a set-up from a large space by some of the questions, and report it on the others.

    found = search(
        load_dataset("data/questions", corpus="data/handbook"),
        System(
            retriever=choose(BM25(), Hybrid(dense_weight=between(0, 1))),
            chunker=TokenChunker(max_tokens=between(64, 256, step=32)),
        ),
        method="halving",
    )
    found.best  # a System
    found.test  # a Result: it and the baseline, on the other questions

The best of many set-ups looks better than it is on the questions that it was chosen by. So the questions are parted
before anything is asked, and those of the test are put to two systems, when the choice is made: to the baseline and
to the one chosen.

Optuna draws set-ups; `ragkit.experiments.Experiment` measures them, so that nothing is computed twice. The same seed
draws the same set-ups: a search that was stopped and is run again finds what was computed, and goes on.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from ragkit.cancellation import never
from ragkit.embedding.cache import EmbeddingCache
from ragkit.errors import InputError, require_count
from ragkit.evaluation.dataset import Dataset
from ragkit.experiments.experiment import Experiment
from ragkit.experiments.result import Result
from ragkit.experiments.sampling import Draws, Trial
from ragkit.experiments.system import System
from ragkit.live.publisher import Publisher
from ragkit.space import has_choices

if TYPE_CHECKING:
    import pandas as pd

    from ragkit.evaluation.plots import Figure

_KEPT = 3  # one set-up of so many goes on to the next rung, where so many times the questions are asked
_RUNGS = 3
_FEWEST = 10  # questions of a rung: with fewer, luck decides who goes on


def tune(
    dataset: Dataset,
    system: System,
    *,
    measure: Any = "nDCG@10",
    method: Literal["random", "tpe", "halving"] = "random",
    trials: int = 50,
    seed: int = 0,
    train: float = 0.5,
    test: Dataset | None = None,
    baseline: System | None = None,
    also: Sequence[Any] = (),
    store: str | Path = "runs",
    cache: EmbeddingCache | Literal[False] | None = None,
    publisher: Publisher | None = None,
    progress: bool = True,
    max_concurrency: int = 4,
    cancelled: Callable[[], bool] = never,
) -> Tuning:
    """Draw set-ups from a space, choose the best on train questions, and compare it with a baseline on test questions.

    Ctrl-C (or an interrupted kernel) stops it; run again with the same seed, it goes on.

    Args:
        dataset: What is searched, asked and right.
        system: With choices and ranges in it, at any depth; see `ragkit.space.choose` and `ragkit.space.between`.
        measure: What to choose by; more of it is better.
        method: ``"random"`` draws evenly, which is hard to beat where few parameters matter (Bergstra and Bengio
            2012). ``"tpe"`` learns from every trial where to draw next (Bergstra et al. 2011). ``"halving"`` draws
            evenly, asks a ninth of the train questions, then a third, then all, and each time only the best third of
            the set-ups goes on (successive halving; Jamieson and Talwalkar 2016). A rung of fewer than ten questions
            is left out.
        trials: How many different set-ups to draw; fewer if there are no more.
        seed: Decides what is drawn, and which questions are train.
        train: The fraction of the questions to choose by; the others are the test.
        test: The test questions, if they are a set of their own. All questions of ``dataset`` are then train, but for
            those that the test asks, too.
        baseline: What the chosen set-up is compared with on the test. If None, the first option of every choice and the
            middle of every range, which is also the first trial.
        also: Measures that are reported on the test besides.
        store: See `ragkit.experiments.Experiment`; so are ``cache``, ``publisher``, ``progress``
            and ``max_concurrency``. The test leaves a run in the store.
        cancelled: Asked several times a second; True stops the work.

    Raises:
        OperationCancelled: ``cancelled`` said so.
        BudgetError, ResultCacheError, EmbeddingError, LLMError: See `ragkit.experiments.Experiment.run`.
        InputError: There is nothing to draw, too few questions, or no set-up that could be measured. One that cannot
            be measured among others is a failed trial.
        MissingExtraError: Optuna is not installed.
    """
    if method not in ("random", "tpe", "halving"):
        raise InputError(f"The method is 'random', 'tpe' or 'halving', not {method!r}.")
    require_count("trials", trials)
    if not has_choices(system):
        raise InputError(
            "There is nothing to search in this system. Write choose(...) or between(low, high) in place of a value, "
            "or compare systems with Experiment."
        )
    if baseline is not None and has_choices(baseline):
        raise InputError("The baseline is one system: it cannot hold choose() or between().")
    chosen_by, held_out = (dataset, test) if test is not None else dataset.split(train, seed=seed)
    chosen_by = _without(chosen_by, held_out)
    options: dict[str, Any] = {
        "store": store, "cache": cache, "publisher": publisher, "progress": progress, "max_concurrency": max_concurrency
    }  # fmt: skip
    draws = Draws(system, method, trials, seed)
    trying = _Trying(measure, options, cancelled)
    first = draws.draw()
    if baseline is None and (baseline := draws.trials[0].system) is None:
        raise InputError(
            f"The first options of this space do not go together: {draws.trials[0].error} Put others first, or give "
            "baseline=System(...)."
        )
    if method == "tpe":
        trying.measure(chosen_by, [first] if first else [], name=f"{dataset.name}: search", then=draws.draw)
    else:
        running = [first, *iter(draws.draw, None)] if first else []
        subsets = _rungs(chosen_by, seed) if method == "halving" else [chosen_by]
        for number, subset in enumerate(subsets, start=1):
            of = f", rung {number} of {len(subsets)}" if len(subsets) > 1 else ""
            trying.measure(subset, running, name=f"{dataset.name}: search{of}")
            running = sorted((t for t in running if t.state == "done"), key=Trial.rank)
            if subset is not chosen_by:
                kept = math.ceil(len(running) / _KEPT)
                for trial in running[kept:]:
                    trial.state = "stopped"
                running = running[:kept]
    done = [trial for trial in draws.trials if trial.state == "done"]
    if not done:
        why = next((trial.error for trial in draws.trials if trial.error), "nothing was drawn")
        raise InputError(f"No set-up of this search could be measured. The first one: {why}")
    best = cast(System, min(done, key=Trial.rank).system)
    pair = {f"baseline: {baseline.name}": baseline}
    if dataclasses.replace(best, label="") != dataclasses.replace(baseline, label=""):
        pair[f"best: {best.name}"] = best
    reported = Experiment(held_out, pair, measures=[measure, *also], name=f"{dataset.name}: test", **options)
    result = reported.run(cancelled=cancelled)
    return Tuning(
        draws.trials, best, baseline, result, method=method, train=chosen_by,
        computed=trying.computed + reported.result_cache.computed,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- found


class Tuning:
    """What a search found; shows itself as the comparison on the test questions.

    Attributes:
        best: The set-up that was best on the train questions; the first one drawn of several.
        baseline: What it is compared with.
        test: Both on the test questions; see `ragkit.experiments.Result`. The baseline alone, if nothing was better.
        train: What the set-ups were chosen by.
        measure: What was chosen by.
        method: How set-ups were drawn.
        computed: By stage, how many results were computed and not found.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        best: System,
        baseline: System,
        test: Result,
        *,
        method: str,
        train: Dataset,
        computed: Counter[str],
    ) -> None:
        self.best = best
        self.baseline = baseline
        self.test = test
        self.train = train
        self.measure = str(test.measures[0])
        self.method = method
        self.computed = computed
        self._trials = list(trials)

    @property
    def trials(self) -> pd.DataFrame:
        """One row a trial, in the order in which they were drawn.

        ``trial``; a column for each parameter, named by where it stands (``retriever.dense_weight``) and NaN where the
        trial has none; ``train``, the mean on the train questions that were asked; ``questions``, how many were;
        ``state``, which is "done", "stopped" (by halving, after fewer questions: its mean is of these) or "failed";
        and ``error``, which also says how many questions failed. These are not scored, and a trial with fewer of them
        is better whatever its mean, because they may have been the difficult ones.
        """
        import pandas as pd

        rows = [
            {"trial": trial.number, **trial.parameters, "train": trial.value, "questions": trial.questions,
             "state": trial.state, "error": trial.error}
            for trial in self._trials
        ]  # fmt: skip
        parameters = dict.fromkeys(name for trial in self._trials for name in trial.parameters)
        frame = pd.DataFrame(rows, columns=["trial", *parameters, "train", "questions", "state", "error"])
        return frame.astype({"train": "float64"})

    def plot(self, parameter: str | None = None) -> Figure:
        """Draw the trials' means on the train questions: in their order, or along a parameter.

        Those that were stopped are hollow, because other questions were asked of them. Orange is the best so far, or
        the best.

        Args:
            parameter: A column of `trials`, such as ``"retriever.dense_weight"``; the order if None.

        Raises:
            InputError: There is no such parameter, or nothing was measured with it.
            MissingExtraError: matplotlib is not installed.
        """
        table = self.trials
        parameters = list(table.columns[1:-4])
        if parameter is not None and parameter not in parameters:
            raise InputError(f"There is no parameter {parameter!r}. There is: {', '.join(parameters)}.")
        along = parameter or "trial"
        table = table[table["train"].notna() & table[along].notna()]
        if table.empty:
            raise InputError(f"No trial with {along} was measured, so there is nothing to draw.")
        return _picture(table, along, self.measure)

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.test!r}"

    def _repr_html_(self) -> str:
        import html

        return f"<p>{html.escape(self._title())}</p>{self.test._repr_html_()}"

    def _title(self) -> str:
        states = Counter(trial.state for trial in self._trials)
        failed = f", {states['failed']} of them failed (trials['error'] says why)" if states["failed"] else ""
        asked = sum(trial.questions for trial in self._trials)
        better = "" if len(self.test.names) > 1 else " No other was better than the baseline."
        return (
            f"{len(self._trials)} set-ups by {self.method}{failed}, {asked:,} questions asked. "
            f"Chosen by {self.measure} on {len(self.train.queries)} train questions, "
            f"reported on {len(self.test.dataset.queries)} test questions.{better}"
        )


def _picture(table: pd.DataFrame, along: str, measure: str) -> Figure:
    """Each trial's value along a column; categories are rows."""
    from pandas.api import types

    from ragkit.evaluation import plots

    column = table[along]
    if types.is_numeric_dtype(column) and not types.is_bool_dtype(column):
        figure, axes = plots.canvas(3.8)
        axes.set_xlabel(plots.label_of(along), **plots.TEXT)
        axes.set_ylabel(f"mean {plots.label_of(measure)} on train questions", **plots.TEXT)
        places, values = column.to_numpy(), table["train"].to_numpy()
    else:
        names = [plots.label_of(name) for name in column.astype(str).unique()]
        rows, height = plots.row_positions(names)
        figure, axes = plots.canvas(height + 1.0, names)
        axes.set_ylim(height, 0)
        axes.set_yticks(rows, labels=names, **plots.TEXT)
        axes.set_xlabel(f"mean {plots.label_of(measure)} on train questions", **plots.TEXT)
        axes.set_ylabel(plots.label_of(along), **plots.TEXT)
        row_of = dict(zip(column.astype(str).unique(), rows, strict=True))
        places, values = table["train"].to_numpy(), column.astype(str).map(row_of).to_numpy()
    done = (table["state"] == "done").to_numpy()
    axes.plot(places[~done], values[~done], "o", color=plots.GREY, markerfacecolor="white", markersize=5)
    axes.plot(places[done], values[done], "o", color=plots.BLUE, markersize=5)
    if along == "trial":
        axes.step(places[done], np.maximum.accumulate(values[done]), where="post", color=plots.VERMILION)
    elif done.any():
        best = table["train"].where(done).argmax()
        axes.plot(places[best], values[best], "D", color=plots.VERMILION, markersize=7)
    axes.set_axisbelow(True)
    axes.grid(color=plots.PALE, linewidth=0.8)
    return figure


# ------------------------------------------------------------------------------------- measured


class _Trying:
    """Measures trials by experiments that share their results."""

    def __init__(self, measure: Any, options: dict[str, Any], cancelled: Callable[[], bool]) -> None:
        self.computed: Counter[str] = Counter()
        self._measure = measure
        self._options = options
        self._cancelled = cancelled

    def measure(
        self,
        dataset: Dataset,
        trials: Sequence[Trial],
        *,
        name: str,
        then: Callable[[Trial], Trial | None] = lambda trial: None,
    ) -> None:
        """Measure trials in one experiment; what cannot be measured has failed.

        Args:
            dataset: What is asked.
            trials: One or more.
            name: What listeners see.
            then: Called with each one that has ended; returns one to add.
        """
        waiting = list(trials)
        while waiting:
            experiment = Experiment(
                dataset,
                [trial.labelled for trial in waiting],
                measures=[self._measure],
                name=name,
                record=False,
                timed=False,
                **self._options,
            )

            def learn(result: Result, experiment: Experiment = experiment) -> None:
                values = result.systems.set_index("system")[str(experiment.measures[0])]
                unscored = result.errors.groupby("system")["query_id"].nunique()
                for trial in [t for t in waiting if t.labelled.label in values.index]:
                    waiting.remove(trial)
                    name = trial.labelled.label
                    trial.measured(float(values[name]), len(dataset.queries), unscored=int(unscored.get(name, 0)))
                    if more := then(trial):
                        waiting.append(more)
                        experiment.add(more.labelled)

            try:
                experiment.run(cancelled=self._cancelled, on_system=learn)
            except InputError as error:
                if len(waiting) > 1:  # which one it was is not told
                    half = len(waiting) // 2
                    for part in (waiting[:half], waiting[half:]):
                        self.measure(dataset, part, name=name)
                    return
                trial = waiting.pop()
                trial.failed(str(error))
                if more := then(trial):
                    waiting.append(more)
            finally:
                self.computed += experiment.result_cache.computed
                experiment.result_cache.close()


def _rungs(train: Dataset, seed: int) -> list[Dataset]:
    """The sets that halving asks, each within the next one, so that what was asked is kept."""
    rungs = [train]
    while len(rungs) < _RUNGS and (fewer := len(rungs[0].queries) // _KEPT) >= _FEWEST:
        rungs.insert(0, rungs[0].sample(fewer, seed=seed))
    return rungs


def _without(train: Dataset, test: Dataset) -> Dataset:
    """The train questions that the test does not ask, whatever their spelling of spaces and capitals."""

    def spelled(text: str) -> str:
        return " ".join(text.casefold().split())

    asked = {spelled(query.text) for query in test.queries}
    queries = [query for query in train.queries if spelled(query.text) not in asked]
    if len(queries) == len(train.queries):
        return train
    if not queries:
        raise InputError("The test asks every question of the dataset, so that none is left to choose by.")
    return train.with_queries(queries)
