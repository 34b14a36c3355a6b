"""Tune a system: choose the best configuration on some of the questions and report it on the others.

    found = tune(
        load_dataset("data/questions", corpus="data/handbook"),
        System(
            retriever=choose(BM25(), Hybrid(dense_weight=between(0, 1))),
            chunker=TokenChunker(max_tokens=between(64, 256, step=32)),
        ),
        method="halving",
    )
    found.best  # a System
    found.test  # a Result: the best system and the baseline, on the test questions

The best of many configurations is overrated on the questions that it was selected on. The questions are therefore split
first, and only two systems run on the test questions, after the selection: the baseline and the selected system.

Optuna samples configurations; `ragkit.experiments.Experiment` evaluates them, so that nothing is computed twice. The
same seed samples the same configurations: a search that is stopped and run again resumes from the cached results.
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

_REDUCTION = 3  # halving keeps one trial in three and asks three times the questions in the next rung
_RUNGS = 3
_MIN_QUESTIONS = 10  # of a rung: with fewer, chance decides which trials continue


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
    """Sample configurations, select the best on train questions, and compare it with a baseline on test questions.

    Ctrl-C (or a kernel interrupt) stops the search; run it again with the same seed to resume.

    Args:
        dataset: Documents, questions and judgements.
        system: A system with choices and ranges, at any depth; see `ragkit.space.choose` and `ragkit.space.between`.
        measure: The measure to select by; higher is better.
        method: ``"random"`` samples uniformly, which is hard to beat where few parameters matter (Bergstra and Bengio
            2012). ``"tpe"`` learns from every trial where to sample next (Bergstra et al. 2011). ``"halving"`` samples
            uniformly and asks a ninth of the train questions, then a third, then all; after each rung only the best
            third of the configurations continues (successive halving; Jamieson and Talwalkar 2016). A rung of fewer
            than ten questions is skipped.
        trials: The number of different configurations to sample; fewer if the space is smaller.
        seed: Seed of the sampling and of the split into train and test questions.
        train: The fraction of the questions to select on; the others are the test questions.
        test: A separate dataset of test questions. All questions of ``dataset`` are then train questions, except those
            that the test set contains too.
        baseline: The system that the selected one is compared with on the test questions. If None, the first option of
            every choice and the middle of every range, which is also the first trial.
        also: Additional measures to report on the test questions.
        store: See `ragkit.experiments.Experiment`, also for ``cache``, ``publisher``, ``progress`` and
            ``max_concurrency``. The evaluation on the test questions is recorded as a run in the store.
        cancelled: Polled several times a second; True stops the search.

    Raises:
        OperationCancelled: ``cancelled`` returned True.
        BudgetError, ResultCacheError, EmbeddingError, LLMError: See `ragkit.experiments.Experiment.run`.
        InputError: The system has no choices, there are too few questions, or no configuration could be evaluated. If
            only some cannot be evaluated, they are failed trials.
        MissingExtraError: Optuna is not installed.
    """
    if method not in ("random", "tpe", "halving"):
        raise InputError(f"The method must be 'random', 'tpe' or 'halving', not {method!r}.")
    require_count("trials", trials)
    if not has_choices(system):
        raise InputError(
            "This system has no choices to tune. Write choose(...) or between(low, high) in place of a value, or "
            "compare fixed systems with Experiment."
        )
    if baseline is not None and has_choices(baseline):
        raise InputError("The baseline must be a single system, without choose() or between().")
    train_set, test_set = (dataset, test) if test is not None else dataset.split(train, seed=seed)
    train_set = _without(train_set, test_set)
    options: dict[str, Any] = {
        "store": store, "cache": cache, "publisher": publisher, "progress": progress, "max_concurrency": max_concurrency
    }  # fmt: skip
    draws = Draws(system, method, trials, seed)
    evaluator = _TrialEvaluator(measure, options, cancelled)
    first = draws.draw()
    if baseline is None and (baseline := draws.trials[0].system) is None:
        raise InputError(
            f"The first options of this space cannot be combined: {draws.trials[0].error} Put other options first, or "
            "pass baseline=System(...)."
        )
    if method == "tpe":
        evaluator.measure(train_set, [first] if first else [], name=f"{dataset.name}: search", then=draws.draw)
    else:
        running = [first, *iter(draws.draw, None)] if first else []
        subsets = _rungs(train_set, seed) if method == "halving" else [train_set]
        for number, subset in enumerate(subsets, start=1):
            of = f", rung {number} of {len(subsets)}" if len(subsets) > 1 else ""
            evaluator.measure(subset, running, name=f"{dataset.name}: search{of}")
            running = sorted((t for t in running if t.state == "done"), key=Trial.rank)
            if subset is not train_set:
                kept = math.ceil(len(running) / _REDUCTION)
                for trial in running[kept:]:
                    trial.state = "stopped"
                running = running[:kept]
    done = [trial for trial in draws.trials if trial.state == "done"]
    if not done:
        why = next((trial.error for trial in draws.trials if trial.error), "no configuration was sampled")
        raise InputError(f"No configuration of this search could be evaluated. The first error: {why}")
    best = cast(System, min(done, key=Trial.rank).system)
    pair = {f"baseline: {baseline.name}": baseline}
    if dataclasses.replace(best, label="") != dataclasses.replace(baseline, label=""):
        pair[f"best: {best.name}"] = best
    reported = Experiment(test_set, pair, measures=[measure, *also], name=f"{dataset.name}: test", **options)
    result = reported.run(cancelled=cancelled)
    return Tuning(
        draws.trials, best, baseline, result, method=method, train=train_set,
        computed=evaluator.computed + reported.result_cache.computed,
    )  # fmt: skip


# --------------------------------------------------------------------------------------- result


class Tuning:
    """The result of a search; displayed as the comparison on the test questions.

    Attributes:
        best: The system that was best on the train questions; of equal ones, the first one sampled.
        baseline: The system that it is compared with.
        test: Both systems on the test questions; see `ragkit.experiments.Result`. The baseline alone, if no system was
            better.
        train: The dataset of train questions.
        measure: The name of the measure that the system was selected by.
        method: The sampling method.
        computed: The number of results that were computed rather than read from the cache, by stage.
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
        """One row per trial, in the order of sampling.

        Columns: ``trial``; one column per parameter, named by its path (``retriever.dense_weight``), NaN where the
        trial does not have it; ``train``, the mean over the train questions that were asked; ``questions``, their
        number; ``state``: "done", "stopped" (by halving, after fewer questions) or "failed"; and ``error``, which also
        gives the number of failed questions. Failed questions have no score. A trial with fewer of them ranks higher
        whatever its mean, because the failed questions may have been the difficult ones.
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
        """Plot the means of the trials on the train questions, in sampling order or against a parameter.

        Stopped trials are hollow, because they were asked fewer questions. Orange marks the best so far (in sampling
        order) or the best (against a parameter).

        Args:
            parameter: A column of `trials`, such as ``"retriever.dense_weight"``; sampling order if None.

        Raises:
            InputError: There is no such parameter, or no trial with it was evaluated.
            MissingExtraError: matplotlib is not installed.
        """
        table = self.trials
        parameters = list(table.columns[1:-4])
        if parameter is not None and parameter not in parameters:
            raise InputError(f"There is no parameter {parameter!r}. The parameters are: {', '.join(parameters)}.")
        along = parameter or "trial"
        table = table[table["train"].notna() & table[along].notna()]
        if table.empty:
            raise InputError(f"No trial with {along} was evaluated, so there is nothing to plot.")
        return _plot(table, along, self.measure)

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.test!r}"

    def _repr_html_(self) -> str:
        import html

        return f"<p>{html.escape(self._title())}</p>{self.test._repr_html_()}"

    def _title(self) -> str:
        states = Counter(trial.state for trial in self._trials)
        failed = f", {states['failed']} of them failed (see trials['error'])" if states["failed"] else ""
        asked = sum(trial.questions for trial in self._trials)
        better = "" if len(self.test.names) > 1 else " No system was better than the baseline."
        return (
            f"{len(self._trials)} configurations by {self.method}{failed}, {asked:,} questions asked. "
            f"Selected by {self.measure} on {len(self.train.queries)} train questions, "
            f"reported on {len(self.test.dataset.queries)} test questions.{better}"
        )


def _plot(table: pd.DataFrame, along: str, measure: str) -> Figure:
    """Plot the value of each trial against a column; categories become rows."""
    from pandas.api import types

    from ragkit.evaluation import plots

    column = table[along]
    if types.is_numeric_dtype(column) and not types.is_bool_dtype(column):
        figure, axes = plots.canvas(3.8)
        axes.set_xlabel(plots.label_of(along), **plots.TEXT)
        axes.set_ylabel(f"mean {plots.label_of(measure)} on train questions", **plots.TEXT)
        positions, values = column.to_numpy(), table["train"].to_numpy()
    else:
        names = [plots.label_of(name) for name in column.astype(str).unique()]
        rows, height = plots.row_positions(names)
        figure, axes = plots.canvas(height + 1.0, names)
        axes.set_ylim(height, 0)
        axes.set_yticks(rows, labels=names, **plots.TEXT)
        axes.set_xlabel(f"mean {plots.label_of(measure)} on train questions", **plots.TEXT)
        axes.set_ylabel(plots.label_of(along), **plots.TEXT)
        row_of = dict(zip(column.astype(str).unique(), rows, strict=True))
        positions, values = table["train"].to_numpy(), column.astype(str).map(row_of).to_numpy()
    done = (table["state"] == "done").to_numpy()
    axes.plot(positions[~done], values[~done], "o", color=plots.GREY, markerfacecolor="white", markersize=5)
    axes.plot(positions[done], values[done], "o", color=plots.BLUE, markersize=5)
    if along == "trial":
        axes.step(positions[done], np.maximum.accumulate(values[done]), where="post", color=plots.VERMILION)
    elif done.any():
        best = table["train"].where(done).argmax()
        axes.plot(positions[best], values[best], "D", color=plots.VERMILION, markersize=7)
    axes.set_axisbelow(True)
    axes.grid(color=plots.PALE, linewidth=0.8)
    return figure


# ----------------------------------------------------------------------------------- evaluation


class _TrialEvaluator:
    """Evaluates trials in experiments that share cached results."""

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
        """Evaluate trials in one experiment; a trial that cannot be evaluated fails.

        Args:
            dataset: The questions to ask.
            trials: One or more trials.
            name: The name that listeners see.
            then: Called with each finished trial; returns a trial to add, or None.
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
                if len(waiting) > 1:  # the error does not say which trial caused it
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
    """Return the datasets of the halving rungs; each contains the one before, so that its results are reused."""
    rungs = [train]
    while len(rungs) < _RUNGS and (fewer := len(rungs[0].queries) // _REDUCTION) >= _MIN_QUESTIONS:
        rungs.insert(0, rungs[0].sample(fewer, seed=seed))
    return rungs


def _without(train: Dataset, test: Dataset) -> Dataset:
    """Return the train questions that are not in the test set, ignoring case and white space."""

    def normalized(text: str) -> str:
        return " ".join(text.casefold().split())

    asked = {normalized(query.text) for query in test.queries}
    queries = [query for query in train.queries if normalized(query.text) not in asked]
    if len(queries) == len(train.queries):
        return train
    if not queries:
        raise InputError("The test set contains every question of the dataset, so that none is left to train on.")
    return train.with_queries(queries)
