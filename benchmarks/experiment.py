"""SciFact as an experiment: the reference values, and what a second run costs: ``make bench-experiment``.

MiniLM and BM25 over whole abstracts must come out as they do in print (nDCG@10: MiniLM .6451 within .005, BM25 .665
to .687), and the default hybrid above both, with how sure that is. Then the same again, which computes nothing: ten
systems of 300 questions in less than 30 seconds. Embedding takes about five minutes on two cores; the cache keeps it.
"""

from __future__ import annotations

import sys
import tempfile
import time

from benchmarks.corpora import SHARED
from ragkit.choices import choose
from ragkit.datasets import load_dataset
from ragkit.experiment import Experiment
from ragkit.retrieval import BM25, Dense, Hybrid
from ragkit.systems import System

MINILM = (0.6401, 0.6501)
PUBLISHED_BM25 = (0.665, 0.687)
MAX_SECONDS = 30.0
HYBRID = "Hybrid(), whole documents"
TEN = [System(retriever=BM25("documents"), chunker=None), System(retriever=Dense(), chunker=None)] + [
    System(retriever=Hybrid(dense_weight=choose(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)), chunker=None)
]


def main() -> int:
    folder = SHARED / "scifact"
    if not folder.exists():
        print(f"SciFact is not at {folder}: set RAGKIT_SHARED to the folder that holds datasets/.", file=sys.stderr)
        return 2
    dataset = load_dataset(folder, language="en")
    with tempfile.TemporaryDirectory() as store:
        took = []
        for _ in ("embedded at first", "embedded already"):
            began = time.perf_counter()
            experiment = Experiment(dataset, TEN, measures=["nDCG@10", "R@100"], store=f"{store}/{len(took)}")
            result = experiment.run()
            took.append(time.perf_counter() - began)
        began = time.perf_counter()
        again = Experiment(dataset, TEN, measures=["nDCG@10", "R@100", "AP"], store=f"{store}/1")
        again.run()
        third = time.perf_counter() - began
    print(result)
    means = result.systems.set_index("system")["nDCG@10"]
    dense, bm25 = means["Dense(), whole documents"], means["BM25(over='documents'), whole documents"]
    hybrid = means[HYBRID]
    tested = [result.compare(baseline=name).set_index("system") for name in result.names[:2]]
    p = max(table.loc[HYBRID, "p_randomisation_holm"] for table in tested)
    fresh = sum(again.cells.computed.values())
    held = {
        f"MiniLM {dense:.4f}, published .6451": MINILM[0] <= dense <= MINILM[1],
        f"BM25 {bm25:.4f}, published .665 to .687": PUBLISHED_BM25[0] <= bm25 <= PUBLISHED_BM25[1],
        f"hybrid {hybrid:.4f}, above both; p (Holm) {p:.4f}": hybrid > max(dense, bm25),
        f"10 systems, {len(dataset.queries)} questions, embedded already: {took[1]:.1f} s": took[1] < MAX_SECONDS,
        f"another measure: {fresh} cells computed, {third:.1f} s": fresh == 0,
    }
    for line, ok in held.items():
        print(f"{line}  {'ok' if ok else 'MISSED'}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
