"""Read, measure and compare the same run files with ragkit and with ranx, which compiles its measures with Numba.

Run ``python -m benchmarks.evaluation NAME FOLDER`` with the Python of the tool's environment; NAME is ``ragkit`` or
``ranx``. The folder contains ``qrels`` and ``*.run`` files in trec_eval's format. The steps are repeated several times,
and the result is a line of JSON, an `Outcome`. In the first repetition ranx compiles its measures, or loads them from
Numba's cache. Times do not include imports.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["RANDOMISATIONS", "Outcome"]

TIMES = 4
RANDOMISATIONS = 10_000
MEASURES = {"nDCG@10": "ndcg@10", "R@100": "recall@100", "AP": "map"}


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The seconds of each repetition, and the means: run -> measure -> mean over queries."""

    reading: list[float]
    measuring: list[float]
    comparing: list[float]
    means: dict[str, dict[str, float]]


Means = dict[str, dict[str, float]]
Steps = tuple[Callable[[], None], Callable[[], Means], Callable[[], object]]


def ragkit(folder: Path) -> Steps:
    import pandas as pd

    from ragkit.documents.document import Document
    from ragkit.evaluation.dataset import Dataset, Query
    from ragkit.evaluation.measures import Ranked, evaluate
    from ragkit.evaluation.significance import compare
    from ragkit.evaluation.trec import read_qrels, read_run

    def read() -> None:
        nonlocal dataset, runs
        qrels = read_qrels(folder / "qrels")
        runs = {
            path.name: {q: [Ranked(*each) for each in found] for q, found in read_run(path).items()}
            for path in sorted(folder.glob("*.run"))
        }
        documents = [Document(id="none", text="", source="none", title="")]  # documents are not used here
        dataset = Dataset("runs", documents, [Query(query_id, query_id) for query_id in qrels], qrels)

    def measure() -> Means:
        nonlocal tables
        tables = {name: evaluate(MEASURES, dataset, run) for name, run in runs.items()}
        return {name: table.groupby("measure")["value"].mean().to_dict() for name, table in tables.items()}

    def against_the_first() -> object:
        wide = pd.DataFrame(
            {
                name: table[table["measure"] == "nDCG@10"].set_index("query_id")["value"]
                for name, table in tables.items()
            }
        )
        return compare(wide, baseline=wide.columns[0], resamples=RANDOMISATIONS)

    dataset: Dataset
    runs: dict[str, dict[str, list[Ranked]]] = {}
    tables: dict[str, pd.DataFrame] = {}
    return read, measure, against_the_first


def ranx(folder: Path) -> Steps:
    from ranx import Qrels, Run, compare, evaluate

    def read() -> None:
        nonlocal qrels
        qrels = Qrels.from_file(str(folder / "qrels"), kind="trec")
        runs[:] = [Run.from_file(str(path), kind="trec", name=path.name) for path in sorted(folder.glob("*.run"))]

    def measure() -> Means:
        found = {}
        for run in runs:
            values = evaluate(qrels, run, list(MEASURES.values()), make_comparable=True)
            found[run.name] = {ours: float(values[theirs]) for ours, theirs in MEASURES.items()}
        return found

    def all_pairs() -> object:
        return compare(
            qrels, runs, ["ndcg@10"], stat_test="fisher", n_permutations=RANDOMISATIONS, make_comparable=True
        )

    qrels = None
    runs: list[Run] = []
    return read, measure, all_pairs


def main() -> int:
    name, folder = sys.argv[1:]
    read, measure, compare = {"ragkit": ragkit, "ranx": ranx}[name](Path(folder))
    outcome = Outcome([], [], [], {})
    for _ in range(TIMES):
        clock = [time.perf_counter()]
        read()
        clock.append(time.perf_counter())
        outcome.means.update(measure())
        clock.append(time.perf_counter())
        compare()
        clock.append(time.perf_counter())
        for took, began, ended in zip(
            (outcome.reading, outcome.measuring, outcome.comparing), clock, clock[1:], strict=False
        ):
            took.append(ended - began)
    print(json.dumps(dataclasses.asdict(outcome)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
