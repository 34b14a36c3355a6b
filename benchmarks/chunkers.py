"""Measure every chunker on questions whose answers are spans: ``make bench-chunkers [CHUNKERS="structure token"]``.

Recall, precision and IoU by spans (`ragkit.evaluation.measures`) of the five best passages, on the five texts of Smith
and Troynikov, "Evaluating Chunking Strategies for Retrieval" (Chroma, 2024; `../shared/datasets/chunking_evaluation`).
Chunks are embedded as the index embeds them (title and headings above the text) and searched exactly over all texts.
The 95 % intervals are bootstrapped over questions. The first run embeds for about ten minutes on two cores; later runs
use the cache.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile

from rich.console import Console
from rich.table import Table

from benchmarks.corpora import SHARED
from ragkit.chunking.base import Chunker
from ragkit.chunking.recursive import RecursiveChunker
from ragkit.chunking.semantic import SemanticChunker
from ragkit.chunking.sentence import SentenceChunker
from ragkit.chunking.structure import StructureChunker
from ragkit.chunking.token import TokenChunker
from ragkit.documents.markup import markdown_headings
from ragkit.evaluation.loading import load_dataset
from ragkit.evaluation.significance import interval
from ragkit.experiments.experiment import Experiment
from ragkit.experiments.result import Result
from ragkit.experiments.system import System
from ragkit.retrieval.retrievers import Dense

CHUNKERS: dict[str, Chunker] = {
    "structure": StructureChunker(),
    "structure, 100": StructureChunker(max_tokens=100),
    "token": TokenChunker(),
    "token, overlap 40": TokenChunker(overlap_tokens=40),
    "sentence": SentenceChunker(),
    "sentence, overlap 40": SentenceChunker(overlap_tokens=40),
    "recursive": RecursiveChunker(),
    "recursive, 100": RecursiveChunker(max_tokens=100),
    "semantic": SemanticChunker(),
}
MEASURES = {"recall": "SpanRecall@5", "precision": "SpanPrecision@5", "IoU": "SpanIoU@5"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chunkers", nargs="*", default=list(CHUNKERS), help=", ".join(CHUNKERS))
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/chunking.md has it")
    options = parser.parse_args()
    read = load_dataset(SHARED / "chunking_evaluation", language="en")
    marked = [dataclasses.replace(each, marks=markdown_headings(each.text)) for each in read.documents]
    dataset = dataclasses.replace(read, documents=marked)
    systems = {
        name: System(retriever=Dense(), chunker=chunker)
        for name, chunker in CHUNKERS.items()
        if name in options.chunkers or name.partition(",")[0] in options.chunkers
    }
    with tempfile.TemporaryDirectory() as store:
        result = Experiment(dataset, systems, measures=[*MEASURES.values()], store=store).run()
    table = table_of(result)
    Console(width=110, markup=False).print(markdown(table) if options.markdown else table, soft_wrap=options.markdown)
    return 0


def table_of(result: Result) -> Table:
    dataset = result.dataset
    title = f"{len(dataset.documents)} texts, {len(dataset.queries)} questions, k = 5; ± half a 95 % interval"
    table = Table("chunker", title=title)
    for column in ("chunks", *MEASURES):
        table.add_column(column, justify="right")
    chunks = result.systems.set_index("system")["passages"]
    values = {column: result.per_query(measure) for column, measure in MEASURES.items()}
    for name in result.names:
        cells = []
        for wide in values.values():
            low, high = interval(wide[name])
            cells.append(f"{100 * wide[name].mean():.1f} ± {50 * (high - low):.1f}")
        table.add_row(name, f"{chunks[name]:,}", *cells)
    return table


def markdown(table: Table) -> str:
    cells = [[str(column.header), "---", *map(str, column.cells)] for column in table.columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in zip(*cells, strict=True))


if __name__ == "__main__":
    sys.exit(main())
