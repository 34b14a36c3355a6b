"""Measure the defaults on the handbook's questions: ``make bench-handbook``.

Prints recall@5 by pages and by spans (a span counts as found if one of the five passages contains at least half of it),
the same without each part of the hybrid, how many answers quote their span, how many of the unanswerable questions get
an abstention, and the number of follow-up questions per answer. All settings are the defaults. README cites these
figures.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ragkit import RAGEngine
from ragkit.retrieval.base import Hit, Retriever
from ragkit.retrieval.retrievers import BM25, Dense, Hybrid
from ragkit.retrieval.search import retrieve

ROOT = Path(__file__).resolve().parent.parent
K = 5


def rows(name: str) -> list[dict[str, Any]]:
    text = (ROOT / "data" / "questions" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def covered(span: dict[str, Any], document_id: str, start: int, end: int) -> bool:
    """Return whether [start, end) of a document contains at least half of a span."""
    if span["document_id"] != document_id:
        return False
    return 2 * (min(end, span["end"]) - max(start, span["start"])) >= span["end"] - span["start"]


def found(spans: list[dict[str, Any]], hits: list[Hit]) -> bool:
    return any(covered(span, hit.document.id, hit.chunk.start, hit.chunk.end) for span in spans for hit in hits)


def main() -> int:
    console = Console(width=110)
    engine = RAGEngine(ROOT / "indexes" / "handbook", follow_ups=False)
    console.print(str(engine.index(ROOT / "data" / "handbook")))
    passages = engine.passages()
    queries = rows("queries.jsonl")
    spans = {row["_id"]: row["spans"] for row in rows("spans.jsonl")}
    answerable = [query for query in queries if query["_id"] in spans]
    unanswerable = [query for query in queries if query["_id"] not in spans]

    table = Table(title=f"recall@{K}, {len(answerable)} answerable questions, {len(passages)} passages")
    for column in ("retriever", "pages", "spans", "spans, English", "spans, French"):
        table.add_column(column, justify="left" if column == "retriever" else "right")
    retrievers: list[tuple[str, Retriever]] = [
        ("BM25(passages)", BM25("passages")),
        ("BM25(documents)", BM25("documents")),
        ("Dense()", Dense()),
        ("Hybrid (default)", Hybrid()),
    ]
    for label, retriever in retrievers:
        hit_rates: dict[str, list[bool]] = defaultdict(list)
        for query in answerable:
            wanted = spans[query["_id"]]
            hits = retrieve(query["text"], passages, retriever=retriever, k=K)
            hit_rates["pages"].append(any(h.document.id == s["document_id"] for h in hits for s in wanted))
            hit_rates["spans"].append(found(wanted, hits))
            hit_rates[query["language"]].append(found(wanted, hits))
        table.add_row(label, *(share(hit_rates[key]) for key in ("pages", "spans", "en", "fr")))
    console.print(table)

    outcomes: dict[str, list[bool]] = defaultdict(list)
    follow_ups = defaultdict(list)
    for query in queries:
        answer = engine.ask(query["text"])
        if query["_id"] not in spans:
            outcomes["unanswerable: abstained"].append(answer.abstained)
            outcomes[f"unanswerable, {query['language']}: abstained"].append(answer.abstained)
            continue
        outcomes["answerable: answered"].append(not answer.abstained)
        quotes = [(c.document_id, *q) for c in answer.citations for q in c.quotes]
        outcomes["answerable: a quote holds at least half of a span"].append(
            any(covered(span, *quote) for span in spans[query["_id"]] for quote in quotes)
        )
        if not answer.abstained:
            made = engine.llm_interface.generate(query["text"], answer)
            follow_ups[query["language"]].append(len(made))
            outcomes["answered: at least one follow-up question"].append(bool(made))
    for what, results in outcomes.items():
        console.print(f"{what}: {share(results)} ({sum(results)} of {len(results)})")
    for language, counts in follow_ups.items():
        console.print(f"follow-up questions per answer, {language}: {sum(counts) / len(counts):.2f}")
    console.print(f"{len(unanswerable)} questions that the handbook does not answer")
    return 0


def share(results: list[bool]) -> str:
    return f"{sum(results) / len(results):.3f}" if results else "-"


if __name__ == "__main__":
    sys.exit(main())
