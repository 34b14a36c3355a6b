"""nDCG@10 and recall of every retriever on judged sets: ``make bench-retrieval [SETS="scifact cranfield"]``.

SciFact and Cranfield are not chunked, so that the figures can be held against published ones; dense search is
exact. service-public.fr has long pages: they are chunked as a user's would be, and a page is ranked by its best
passage. The indexes are kept under ``indexes/``: the first run embeds for about ten minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import ir_measures
from ir_measures import R, nDCG
from rich.console import Console
from rich.table import Table

from ragkit.chunking import StructureChunker
from ragkit.corpus import Passages
from ragkit.embedding import SentenceTransformerEmbedder
from ragkit.index import Index
from ragkit.retrieval import BM25, Dense, Hybrid, Retriever, reciprocal_rank_fusion, retrieve

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RAGKIT_SHARED", ROOT.parent / "shared")) / "datasets"
WHOLE = 100_000  # tokens: longer than any document
MEASURES = [nDCG @ 10, R @ 5, R @ 100]
DEPTH = 100

# What must hold, from the project's issue; the last column of the table says whether it does.
BARS = {
    ("scifact", "Dense(exact)"): (0.6401, 0.6501),
    ("scifact", "BM25(documents)"): (0.665, 0.687),
    ("servicepublic_fr", "Hybrid (default)"): (0.84, 1.0),
}


class RRF:
    """Reciprocal rank fusion of BM25 and dense, for comparison with the default."""

    name = "RRF(k=60)"

    def scores(self, question: str, passages: Passages) -> dict[int, float]:
        views = [BM25("documents"), Dense(exact=True)]
        return reciprocal_rank_fusion([(1.0, view.scores(question, passages)) for view in views])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def qrels(path: Path) -> list[ir_measures.Qrel]:
    lines = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line]
    return [ir_measures.Qrel(q, d, int(g)) for q, d, g in lines if g.lstrip("-").isdigit()]


def run(retriever: Retriever, questions: dict[str, str], passages: Passages) -> list[ir_measures.ScoredDoc]:
    """Rank documents by their best passage."""
    scored = []
    for query_id, question in questions.items():
        best: dict[str, float] = {}
        for hit in retrieve(question, passages, retriever=retriever, k=10 * DEPTH, similarities=False):
            document_id = hit.document.id.partition("#")[2]
            best[document_id] = max(best.get(document_id, -1.0), hit.score)
        top = sorted(best.items(), key=lambda item: -item[1])[:DEPTH]
        scored += [ir_measures.ScoredDoc(query_id, document_id, score) for document_id, score in top]
    return scored


def unaccented(text: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))


class Truncating(SentenceTransformerEmbedder):
    """Reads the beginning of a text of any length, as the published figures do; ragkit would refuse it."""

    max_tokens = WHOLE  # type: ignore[assignment]


def measure(name: str, console: Console) -> bool:
    folder = SHARED / name
    if not folder.exists():
        console.print(
            f"[yellow]{name}: not at {folder}; skipped. Set RAGKIT_SHARED to the folder that holds datasets/."
        )
        return True
    whole = name != "servicepublic_fr"
    index = Index(
        ROOT / "indexes" / f"bench-{name}",
        embedder=Truncating() if whole else SentenceTransformerEmbedder(),
        chunker=StructureChunker(max_tokens=WHOLE) if whole else StructureChunker(),
    )
    console.print(f"{name}: {index.update(folder / 'corpus.jsonl', on_progress=Progress(console))}")
    passages = index.passages()
    questions = {row["_id"]: row["text"] for row in rows(folder / "queries.jsonl")}
    judged = qrels(folder / "qrels.tsv")
    questions = {q: questions[q] for q in dict.fromkeys(qrel.query_id for qrel in judged)}

    table = Table(
        title=f"{name}: {len(passages.documents)} documents, {len(passages)} passages, {len(questions)} questions"
    )
    for column in ("retriever", *map(str, MEASURES), "ms a question", "bar (nDCG@10)"):
        table.add_column(column, justify="left" if column == "retriever" else "right")
    held = True
    systems: list[tuple[str, Retriever]] = [
        ("BM25(documents)", BM25("documents")),
        ("BM25(passages)", BM25("passages")),
        ("Dense(exact)", Dense(exact=True)),
        ("Dense()", Dense()),
        ("RRF(k=60)", RRF()),
        ("Hybrid (default)", Hybrid()),
    ]
    asked = dict.fromkeys((label for label, _ in systems), questions)
    if name == "servicepublic_fr":
        systems.append(("Hybrid, unaccented questions", Hybrid()))
        asked["Hybrid, unaccented questions"] = {q: unaccented(text) for q, text in questions.items()}
    for label, retriever in systems:
        retrieve(next(iter(questions.values())), passages, retriever=retriever)  # models and indexes loaded
        started = time.perf_counter()
        ranking = run(retriever, asked[label], passages)
        milliseconds = 1000 * (time.perf_counter() - started) / len(questions)
        figures = ir_measures.calc_aggregate(MEASURES, judged, ranking)
        bar = ""
        if (name, label) in BARS:
            low, high = BARS[name, label]
            good = low <= round(figures[nDCG @ 10], 4) <= high
            held &= good
            bar = f"{low}-{high} {'held' if good else 'MISSED'}"
        table.add_row(label, *(f"{figures[m]:.4f}" for m in MEASURES), f"{milliseconds:.1f}", bar)
    console.print(table)
    return held


class Progress:
    """One line a minute: enough for a log, quiet enough for a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._next = time.monotonic() + 15

    def __call__(self, progress: Any) -> None:
        if time.monotonic() > self._next and progress.chunks_total:
            self._next = time.monotonic() + 60
            left = "" if progress.eta_seconds is None else f", {progress.eta_seconds:.0f} s left"
            self._console.print(f"  {progress.chunks_done}/{progress.chunks_total} passages{left}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sets", nargs="*", default=["scifact", "cranfield", "servicepublic_fr"])
    console = Console(width=120)
    held = [measure(name, console) for name in parser.parse_args().sets]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
