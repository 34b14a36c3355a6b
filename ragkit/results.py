"""What an experiment found: tables, tests, rankings and pictures."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragkit.chunking import Chunk
from ragkit.datasets import Dataset
from ragkit.errors import InputError
from ragkit.measures import Ranked, evaluate
from ragkit.stages import Ranking
from ragkit.statistics import compare, paired_differences
from ragkit.trec import write_run

if TYPE_CHECKING:
    import pandas as pd

    from ragkit.plots import Figure
    from ragkit.systems import System

__all__ = ["Result", "ranked"]


@dataclasses.dataclass(frozen=True, slots=True)
class _Measured:
    """One system's figures."""

    system: System
    rankings: Mapping[str, Sequence[Ranked]]
    values: pd.DataFrame  # query_id, measure, value
    facts: Mapping[str, Any]


class Result:
    """The figures of an experiment; shows itself as a leaderboard.

    Attributes:
        dataset: What was asked.
        measures: What was measured.
        baseline: The system that the others are compared with.
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
        """The systems that were measured, in the order in which they were."""
        return list(self._measured)

    def add(self, system: System, rankings: Mapping[str, Sequence[Ranked]], **facts: Any) -> None:
        """Measure a system.

        Args:
            system: With its name.
            rankings: Query id -> passages, best first.
            facts: What else the table of systems is to say of it.
        """
        values = evaluate(self.measures, self.dataset, rankings)
        self._measured = {**self._measured, system.name: _Measured(system, rankings, values, facts)}

    @property
    def systems(self) -> pd.DataFrame:
        """One row a system: its name, the mean of each measure, passages, latency in milliseconds; the best first."""
        import pandas as pd

        rows = [
            {"system": name, **self._means(measured), **measured.facts} for name, measured in self._measured.items()
        ]
        frame = pd.DataFrame(rows, columns=["system", *map(str, self.measures), "passages", "latency_ms"])
        return frame.sort_values(str(self.measures[0]), ascending=False, kind="stable", ignore_index=True)

    @property
    def queries(self) -> pd.DataFrame:
        """One row a system, query and measure: ``system``, ``query_id``, ``measure``, ``value``."""
        import pandas as pd

        frames = [each.values.assign(system=name) for name, each in self._measured.items()]
        columns = ["system", "query_id", "measure", "value"]
        return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)

    def compare(self, measure: Any = None, *, baseline: str | None = None, seed: int = 0) -> pd.DataFrame:
        """Compare every system with the baseline, query by query; see `ragkit.statistics.compare` for the columns.

        Args:
            measure: One of the experiment's; the first one if None.
            baseline: Another baseline.
            seed: Of what is drawn by chance.
        """
        return compare(self.wide(measure), baseline=baseline or self.baseline, seed=seed)

    def wide(self, measure: Any = None) -> pd.DataFrame:
        """One row a query, one column a system: the values of one measure."""
        name = str(self.measures[0] if measure is None else measure)
        if name not in map(str, self.measures):
            raise InputError(f"'{name}' was not measured. Measured were {', '.join(map(str, self.measures))}.")
        queries = self.queries
        wide = queries[queries["measure"] == name].pivot(index="query_id", columns="system", values="value")
        return wide[self.names]

    def rankings(self, system: str) -> Mapping[str, Sequence[Ranked]]:
        """Return what a system ranked: query id -> passages, best first."""
        if system not in self._measured:
            raise InputError(f"There is no system '{system}'. There is: {', '.join(self.names)}.")
        return self._measured[system].rankings

    def write_runs(self, folder: str | Path) -> list[Path]:
        """Write each system's ranking of documents as a TREC run file, and return the paths."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        paths = []
        for number, name in enumerate(self.names, start=1):
            run = {query_id: _documents(passages) for query_id, passages in self._measured[name].rankings.items()}
            slug = re.sub(r"[^\w.-]+", "-", name).strip("-")[:80]
            paths.append(Path(folder) / f"{number:02}-{slug}.run")
            write_run(paths[-1], run, tag=slug or "ragkit")
        return paths

    def plot(self, kind: str = "leaderboard", *, measure: Any = None, system: str | None = None) -> Figure:
        """Draw the leaderboard with intervals, a system's ``"differences"`` from the baseline, or the ``"tradeoff"``
        of quality and latency.

        Args:
            kind: ``"leaderboard"``, ``"differences"`` or ``"tradeoff"``.
            measure: One of the experiment's; the first one if None.
            system: Whose differences; the best one that is not the baseline if None.
        """
        from ragkit import plots

        name = str(self.measures[0] if measure is None else measure)
        if kind == "leaderboard":
            return plots.leaderboard(self.queries, measure=name, baseline=self.baseline)
        if kind == "tradeoff":
            return plots.tradeoff(self.systems, measure=name, cost="latency_ms")
        if kind == "differences":
            others = [each for each in self.systems["system"] if each != self.baseline]
            if not others:
                raise InputError("There is nothing to compare with the baseline; add a system.")
            return plots.differences(self.queries, measure=name, system=system or others[0], baseline=self.baseline)
        raise InputError(f"plot() draws 'leaderboard', 'differences' or 'tradeoff', not {kind!r}.")

    def row(self, name: str) -> dict[str, Any]:
        """A system's figures as plain values, for listeners; with its mean difference from the baseline."""
        return self._row(name, self.wide())

    def leaderboard(self) -> list[dict[str, Any]]:
        """Every system's `row`, the best first."""
        wide = self.wide()
        return [self._row(name, wide) for name in self.systems["system"]]

    def _row(self, name: str, wide: pd.DataFrame) -> dict[str, Any]:
        measured = self._measured[name]
        row = {"system": name, **self._means(measured), **measured.facts}
        if name != self.baseline and self.baseline in self._measured:
            differences = paired_differences(wide[name], wide[self.baseline])
            known = differences[differences == differences]
            row["difference"] = float(known.mean()) if len(known) else None
            row["wins"], row["losses"] = int((known > 0).sum()), int((known < 0).sum())
        row["interim"] = self.interim
        return {key: _plain(value) for key, value in row.items()}

    def _means(self, measured: _Measured) -> dict[str, float]:
        means = measured.values.groupby("measure")["value"].mean()
        return {str(m): float(means[str(m)]) for m in self.measures}

    def __repr__(self) -> str:
        return f"{self._title()}\n{self._table().to_string(index=False)}"

    def _repr_html_(self) -> str:
        import html

        return f"<p>{html.escape(self._title())}</p>{self._table().to_html(index=False, escape=True)}"

    def _title(self) -> str:
        state = "interim, " if self.interim else ""
        return f"{self.dataset.name}: {state}{len(self.dataset.queries)} questions, baseline {self.baseline}"

    def _table(self) -> pd.DataFrame:
        """The systems, with the first measure's difference from the baseline and how sure it is."""
        table = self.systems.copy()
        for measure in self.measures:
            table[str(measure)] = table[str(measure)].map("{:.4f}".format)
        table["latency_ms"] = table["latency_ms"].map("{:.1f}".format)
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


def ranked(chunks: Sequence[Chunk], ranking: Ranking) -> list[Ranked]:
    """Say where the passages of a ranking stand."""
    pairs = zip(ranking.positions.tolist(), ranking.scores.tolist(), strict=True)
    return [Ranked(chunks[at].document_id, score, chunks[at].start, chunks[at].end) for at, score in pairs]


def _documents(passages: Sequence[Ranked]) -> list[tuple[str, float]]:
    """Each document with the score of its best passage, best first."""
    best: dict[str, float] = {}
    for passage in passages:
        best.setdefault(passage.document_id, passage.score)
    return list(best.items())


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
