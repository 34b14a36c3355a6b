"""The result of an experiment: tables, tests, rankings and plots."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragkit.engine.answer import Answer
from ragkit.errors import InputError
from ragkit.evaluation.answer_measures import AnswerMeasure, FollowUpQuality, evaluate_answers, frame_of
from ragkit.evaluation.dataset import Dataset
from ragkit.evaluation.judges import Judge, Judgement, summary
from ragkit.evaluation.measures import Measure, Ranked, evaluate
from ragkit.evaluation.significance import compare, paired_differences
from ragkit.evaluation.trec import write_run
from ragkit.experiments.runner import Outcome

if TYPE_CHECKING:
    import pandas as pd

    from ragkit.evaluation.plots import Figure
    from ragkit.experiments.system import System

_FACTS = ("passages", "latency_ms", "answer_ms", "tokens", "cost")


@dataclasses.dataclass(frozen=True, slots=True)
class _Measured:
    """The measured values of one system."""

    system: System
    outcome: Outcome
    values: pd.DataFrame  # query_id, measure, value


class Result:
    """The result of an experiment; displayed as a leaderboard.

    Attributes:
        dataset: The dataset.
        measures: The measures.
        baseline: The name of the system that the others are compared with.
        interim: Whether systems are still running.
    """

    def __init__(self, dataset: Dataset, measures: Sequence[Any], baseline: str) -> None:
        self.dataset = dataset
        self.measures = list(measures)
        self.baseline = baseline
        self.interim = True
        self._measured: dict[str, _Measured] = {}

    @property
    def names(self) -> list[str]:
        """The names of the evaluated systems, in the order of evaluation."""
        return list(self._measured)

    def add(self, system: System, outcome: Outcome) -> None:
        """Evaluate the outcome of a system and add it to the result."""
        values = _values(self.measures, self.dataset, outcome)
        self._measured = {**self._measured, system.name: _Measured(system, outcome, values)}

    @property
    def systems(self) -> pd.DataFrame:
        """One row per system, best first.

        Columns: ``system``; the mean of each measure over the questions that have a value; for each LLM judge its
        ``spread``, the standard deviation over repeats, averaged over questions; ``errors``, the number of failed
        calls; ``passages``; ``latency_ms`` of retrieval; and where answers were generated and the figures are known,
        ``answer_ms`` (median), ``tokens`` (mean per question) and ``cost`` (of all answers).
        """
        import pandas as pd

        rows = [self._figures(name) for name in self.names]
        facts = [fact for fact in _FACTS if fact in ("passages", "latency_ms") or any(fact in row for row in rows)]
        spreads = [f"{m} spread" for m in self.measures if isinstance(m, Judge)]
        frame = pd.DataFrame(rows, columns=["system", *map(str, self.measures), *spreads, "errors", *facts])
        return frame.sort_values(str(self.measures[0]), ascending=False, kind="stable", ignore_index=True)

    def to_frame(self) -> pd.DataFrame:
        """Return `systems`."""
        return self.systems

    @property
    def best(self) -> System:
        """The system with the highest mean of the first measure, among systems without failed calls.

        ``RAGEngine.from_system(index, result.best)`` builds an engine from it.

        Raises:
            InputError: No system was evaluated, or every system has failed calls.
        """
        table = self.systems
        names = table["system"][table["errors"] == 0].tolist()
        if not names:
            raise InputError("Calls failed in every system. See result.errors, fix the cause and run it again.")
        return self._measured[names[0]].system

    @property
    def queries(self) -> pd.DataFrame:
        """One row per system, query and measure: ``system``, ``query_id``, ``measure``, ``value``.

        The value is NaN if a call that it depends on failed; a measure that does not apply to a query has no row.
        """
        import pandas as pd

        frames = [each.values.assign(system=name) for name, each in self._measured.items()]
        columns = ["system", "query_id", "measure", "value"]
        return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)

    def compare(self, measure: Any = None, *, baseline: str | None = None, seed: int = 0) -> pd.DataFrame:
        """Compare every system with the baseline, query by query; see `ragkit.evaluation.significance.compare` for the
        columns.

        Args:
            measure: One of the experiment's measures; the first one if None.
            baseline: The system to compare with; the experiment's baseline if None.
            seed: Seed of the bootstrap and the randomisation test.
        """
        return compare(self.per_query(measure), baseline=baseline or self.baseline, seed=seed)

    def per_query(self, measure: Any = None) -> pd.DataFrame:
        """Return the values of one measure: one row per query, one column per system."""
        name = str(self.measures[0] if measure is None else measure)
        if name not in map(str, self.measures):
            raise InputError(f"'{name}' was not measured. The measures are: {', '.join(map(str, self.measures))}.")
        queries = self.queries
        wide = queries[queries["measure"] == name].pivot(index="query_id", columns="system", values="value")
        return wide.reindex(columns=self.names)

    @property
    def errors(self) -> pd.DataFrame:
        """One row per failed call: ``system``, ``query_id``, ``stage``, ``error``, ``message``."""
        rows = [
            (name, query_id, failure.stage, failure.error, failure.message)
            for name, measured in self._measured.items()
            for query_id, failures in measured.outcome.failures.items()
            for failure in failures
        ]
        return _frame(rows, "system query_id stage error message")

    @property
    def judgements(self) -> pd.DataFrame:
        """One row per judgement: ``system``, ``query_id``, ``measure``, ``repeat``, ``score``, ``reply``."""
        rows = [
            {"system": name, **dataclasses.asdict(judged)}
            for name, measured in self._measured.items()
            for judged in measured.outcome.judgements
        ]
        return _frame(rows, "system query_id measure repeat score reply")

    @property
    def follow_ups(self) -> pd.DataFrame:
        """One row per follow-up question: ``system``, ``query_id``, ``question``, ``answerable``."""
        rows = [
            (name, query_id, question, answerable)
            for name, measured in self._measured.items()
            for query_id, made in measured.outcome.follow_ups.items()
            for question, answerable in made.items()
        ]
        return _frame(rows, "system query_id question answerable")

    def rankings(self, system: str) -> Mapping[str, Sequence[Ranked]]:
        """Return the rankings of a system: query id -> passages, best first."""
        return self._outcome(system).rankings

    def answers(self, system: str) -> Mapping[str, Answer]:
        """Return the answers of a system: query id -> answer; empty if no measure needs answers."""
        return self._outcome(system).answers

    def _outcome(self, system: str) -> Outcome:
        if system not in self._measured:
            raise InputError(f"There is no system '{system}'. The systems are: {', '.join(self.names)}.")
        return self._measured[system].outcome

    def write_runs(self, folder: str | Path) -> list[Path]:
        """Write the document ranking of each system as a TREC run file and return the paths."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = []
        for number, name in enumerate(self.names, start=1):
            run = {
                query_id: _documents(passages) for query_id, passages in self._measured[name].outcome.rankings.items()
            }
            slug = re.sub(r"[^\w.-]+", "-", name).strip("-")[:80]
            paths.append(Path(folder) / f"{number:02}-{slug}.run")
            write_run(paths[-1], run, tag=slug or "ragkit")
        return paths

    def plot(
        self,
        kind: str = "leaderboard",
        *,
        measure: Any = None,
        system: str | None = None,
        against: str = "latency_ms",
    ) -> Figure:
        """Plot the result.

        Args:
            kind: ``"leaderboard"``: means with intervals; ``"differences"``: a system minus the baseline, question by
                question; ``"tradeoff"``: quality against cost.
            measure: One of the experiment's measures; the first one if None.
            system: The system for ``"differences"``; the best system other than the baseline if None.
            against: The cost for ``"tradeoff"``: a column of `systems` such as ``"latency_ms"``, ``"tokens"`` or
                ``"cost"``.

        Raises:
            InputError: The kind, measure, system or column does not exist, or there is nothing to plot.
        """
        from ragkit.evaluation import plots

        name = str(self.measures[0] if measure is None else measure)
        if kind == "leaderboard":
            return plots.leaderboard(self.queries, measure=name, baseline=self.baseline)
        if kind == "tradeoff":
            return plots.tradeoff(self.systems, measure=name, cost=against)
        if kind == "differences":
            others = [each for each in self.systems["system"] if each != self.baseline]
            if not others:
                raise InputError("There is no system to compare with the baseline. Add one.")
            return plots.differences(self.queries, measure=name, system=system or others[0], baseline=self.baseline)
        raise InputError(f"plot() draws 'leaderboard', 'differences' or 'tradeoff', not {kind!r}.")

    def row(self, name: str) -> dict[str, Any]:
        """Return the figures of a system and its mean difference from the baseline, as plain values for listeners."""
        return self._row(name, self.per_query())

    def leaderboard(self) -> list[dict[str, Any]]:
        """Return the `row` of every system, best first."""
        wide = self.per_query()
        return [self._row(name, wide) for name in self.systems["system"]]

    def report(self, path: str | Path = "report.html", *, title: str | None = None) -> Path:
        """Write the result as one self-contained HTML page, without scripts or network requests.

        Args:
            path: The file; its folder is created if it does not exist.
            title: The heading; made from the dataset's name if None.

        Raises:
            MissingExtraError: Jinja2 or matplotlib is not installed.
            RagkitError: The file cannot be written.
        """
        from ragkit.experiments.report import Findings, write_page

        found = Findings(
            dataset=self.dataset,
            measures=[str(measure) for measure in self.measures],
            baseline=self.baseline,
            interim=self.interim,
            systems=self.systems,
            queries=self.queries,
            errors=self.errors,
            settings={name: measured.system for name, measured in self._measured.items()},
        )
        return write_page(found, path, title=title)

    def _row(self, name: str, wide: pd.DataFrame) -> dict[str, Any]:
        row = self._figures(name)
        if name != self.baseline and self.baseline in self._measured:
            differences = paired_differences(wide[name], wide[self.baseline])
            known = differences[differences == differences]
            row["difference"] = float(known.mean()) if len(known) else None
            row["wins"], row["losses"] = int((known > 0).sum()), int((known < 0).sum())
        row["interim"] = self.interim
        return {key: _plain(value) for key, value in row.items()}

    def _figures(self, name: str) -> dict[str, Any]:
        measured = self._measured[name]
        means = measured.values.groupby("measure")["value"].mean()
        row: dict[str, Any] = {"system": name}
        row |= {str(m): float(means.get(str(m), math.nan)) for m in self.measures}
        for measure in self.measures:
            if isinstance(measure, Judge):
                spreads = [spread for _, spread in _judged(measure, measured.outcome).values()]
                row[f"{measure} spread"] = sum(spreads) / len(spreads) if spreads else math.nan
        row["errors"] = sum(map(len, measured.outcome.failures.values()))
        return row | dict(measured.outcome.facts)

    def __repr__(self) -> str:
        return f"{self._title()}\n{self._table().to_string(index=False)}"

    def _repr_html_(self) -> str:
        import html

        return f"<p>{html.escape(self._title())}</p>{self._table().to_html(index=False, escape=True)}"

    def _title(self) -> str:
        state = "interim, " if self.interim else ""
        return f"{self.dataset.name}: {state}{len(self.dataset.queries)} questions, baseline {self.baseline}"

    def _table(self) -> pd.DataFrame:
        """Return the systems, with the difference of the first measure from the baseline and its significance."""
        table = self.systems.copy()
        for measure in self.measures:
            table[str(measure)] = table[str(measure)].map("{:.4f}".format)
        formats = {"latency_ms": "{:.1f}", "answer_ms": "{:.0f}", "tokens": "{:.0f}", "cost": "{:.4g}"}
        for column in table.columns:
            if column.endswith(" spread"):
                table[column] = table[column].map("{:.4f}".format)
            elif column in formats:
                table[column] = table[column].map(formats[column].format)
        if self.baseline in self._measured and len(self._measured) > 1:
            found = self.compare().set_index("system")
            columns: dict[str, Callable[[Any], str]] = {
                "difference": lambda row: f"{row.difference:+.4f} [{row.low:+.4f}, {row.high:+.4f}]",
                "p (Holm)": lambda row: f"{row.p_randomisation_holm:.4f}",
                "wins/ties/losses": lambda row: f"{row.wins}/{row.ties}/{row.losses}",
            }
            for title, text in columns.items():
                table[title] = [text(found.loc[name]) if name in found.index else "" for name in table["system"]]
        return table


def _frame(rows: Sequence[Any], columns: str) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=columns.split())


def _values(measures: Sequence[Measure], dataset: Dataset, outcome: Outcome) -> pd.DataFrame:
    """Return one row per query and measure; the value is NaN, never a score, where a call failed."""
    import pandas as pd

    by_answers = [m for m in measures if isinstance(m, AnswerMeasure)]
    by_rankings = [m for m in measures if not isinstance(m, AnswerMeasure | FollowUpQuality | Judge)]
    frames: dict[Any, pd.DataFrame] = {}
    if by_rankings:
        found = evaluate(by_rankings, dataset, outcome.rankings)
        unranked = [query.id for query in dataset.queries if query.id not in outcome.rankings]
        found.loc[found["query_id"].isin(unranked), "value"] = math.nan
        frames |= dict(iter(found.groupby("measure")))
    if by_answers:
        frames |= dict(iter(evaluate_answers(by_answers, dataset, outcome.answers).groupby("measure")))
    for measure in measures:
        if isinstance(measure, Judge):
            scores = {query_id: mean for query_id, (mean, _) in _judged(measure, outcome).items()}
        elif isinstance(measure, FollowUpQuality):
            scores = {
                query.id: measure.score_questions(
                    query, list(made), answerable=made.__getitem__, language=outcome.answers[query.id].language
                )
                for query in dataset.queries
                for made in [outcome.follow_ups.get(query.id)]
                if made is not None
            }
        else:
            continue
        failed = [query_id for query_id in outcome.failures if query_id not in scores]
        rows = [(query_id, str(measure), value) for query_id, value in scores.items()]
        rows += [(query_id, str(measure), math.nan) for query_id in failed]
        frames[str(measure)] = frame_of(rows)
    ordered = [frames[str(measure)] for measure in measures if len(frames.get(str(measure), ()))]
    return pd.concat(ordered, ignore_index=True) if ordered else frame_of([])


def _judged(measure: Judge, outcome: Outcome) -> dict[str, tuple[float, float]]:
    """Return query id -> mean and standard deviation over repeats."""
    found: dict[str, list[Judgement]] = {}
    for judged in outcome.judgements:
        if judged.measure == str(measure):
            found.setdefault(judged.query_id, []).append(Judgement(judged.score, judged.reply))
    return {query_id: summary(of_one) for query_id, of_one in found.items()}


def _documents(passages: Sequence[Ranked]) -> list[tuple[str, float]]:
    """Return each document with the score of its best passage, best first."""
    best: dict[str, float] = {}
    for passage in passages:
        best.setdefault(passage.document_id, passage.score)
    return list(best.items())


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
