"""Print the tables in the handbook's French pages: ``make bench-french`` (a minute).

BM25 over whole pages of service-public.fr, adding one analysis step at a time, for the questions with and without
accents; and the same for values of k1 and b. The steps are implemented here separately, because the pages discuss them
one by one; ragkit's own analysis is `ragkit.retrieval.lexical`.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import unicodedata

import bm25s
import numpy as np
import Stemmer
from bm25s.stopwords import STOPWORDS_FRENCH
from ir_measures import RR, Qrel, ScoredDoc, calc_aggregate
from retrieval import SHARED, qrels, rows, unaccented
from rich.console import Console
from rich.table import Table

FOLDER = SHARED / "servicepublic_fr"
ELISION = re.compile(r"\b(?:l|m|t|s|n|j|d|c|qu|jusqu|lorsqu|puisqu|quoiqu)'(?=\w)")


@dataclasses.dataclass(frozen=True)
class Analysis:
    """The analysis steps to apply."""

    elision: bool = False
    stop_words: bool = False
    stems: bool = False
    accents: str = "kept"  # or removed "before" or "after" stemming

    def __call__(self, text: str) -> list[str]:
        text = unicodedata.normalize("NFC", text).lower().replace("’", "'").replace("œ", "oe")
        words = re.findall(r"\w+", ELISION.sub("", text) if self.elision else text)
        if self.stop_words:
            words = [word for word in words if word not in STOPWORDS_FRENCH]
        if self.accents == "before":
            words = [unaccented(word) for word in words]
        if self.stems:
            words = Stemmer.Stemmer("french").stemWords(words)
        return [unaccented(word) for word in words] if self.accents == "after" else words


def main() -> int:
    console = Console(width=110)
    if not FOLDER.exists():
        console.print(f"[yellow]The pages are not at {FOLDER}. Set RAGKIT_SHARED to the folder that holds datasets/.")
        return 0
    pages = rows(FOLDER / "corpus.jsonl")
    questions = {row["_id"]: row["text"] for row in rows(FOLDER / "queries.jsonl")}
    judged = qrels(FOLDER / "qrels.tsv")

    def measured(analysis: Analysis, *, k1: float = 1.2, b: float = 0.75) -> tuple[int, float, float]:
        """Return the vocabulary size, MRR@10, and MRR@10 for the questions without accents."""
        model = bm25s.BM25(method="lucene", k1=k1, b=b)
        model.index([analysis(page["text"]) for page in pages], show_progress=False)
        found = []
        for change in (str, unaccented):
            asked = {query_id: analysis(change(text)) for query_id, text in questions.items()}
            found.append(mrr(model, asked, [page["_id"] for page in pages], judged))
        return len(model.vocab_dict), found[0], found[1]

    all_steps = Analysis(elision=True, stop_words=True, stems=True, accents="before")
    table = Table(title=f"{len(pages)} pages, {len(questions)} questions, k1 = 1.2, b = 0.75")
    for column in ("steps", "vocabulary", "MRR@10", "without accents"):
        table.add_column(column, justify="left" if column == "steps" else "right")
    for label, analysis in [
        ("words in lower case", Analysis()),
        ("+ elision", Analysis(elision=True)),
        ("+ stop words", Analysis(elision=True, stop_words=True)),
        ("+ stems", Analysis(elision=True, stop_words=True, stems=True)),
        ("+ accents removed after the stems", dataclasses.replace(all_steps, accents="after")),
        ("+ accents removed before the stems", all_steps),
    ]:
        size, plain, without = measured(analysis)
        table.add_row(label, str(size), f"{plain:.3f}", f"{without:.3f}")
    console.print(table)
    table = Table(title="all steps, accents removed before the stems")
    for column in ("k1", "b", "MRR@10"):
        table.add_column(column, justify="right")
    for k1, b in [(1.2, 0.0), (1.2, 0.4), (1.2, 0.75), (1.2, 0.9), (2.0, 0.75)]:
        table.add_row(str(k1), str(b), f"{measured(all_steps, k1=k1, b=b)[1]:.3f}")
    console.print(table)
    return 0


def mrr(model: bm25s.BM25, asked: dict[str, list[str]], ids: list[str], judged: list[Qrel]) -> float:
    ranking = []
    for query_id, words in asked.items():
        known = [word for word in words if word in model.vocab_dict]
        scores = model.get_scores(known) if known else np.zeros(len(ids))
        best = np.argsort(-scores, kind="stable")[:10]
        ranking += [ScoredDoc(query_id, ids[i], float(scores[i])) for i in best]
    return float(calc_aggregate([RR @ 10], judged, ranking)[RR @ 10])


if __name__ == "__main__":
    sys.exit(main())
