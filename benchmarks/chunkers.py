"""Every chunker on questions whose answers are spans: ``make bench-chunkers [CHUNKERS="structure token"]``.

Recall, precision and IoU by spans, as in Smith and Troynikov, "Evaluating Chunking Strategies for Retrieval" (Chroma,
2024), on their five texts (`../shared/datasets/chunking_evaluation`), in characters where they count tokens: with E the
characters of a question's gold spans and R those of the k retrieved chunks,

    recall = |E and R| / |E|      precision = |E and R| / |R|      IoU = |E and R| / (|E| + |R| - |E and R|)

averaged over the questions. What two retrieved chunks share counts twice in |R|, so overlap has its price. Chunks are
embedded as the index embeds them (title and headings above the text), searched exactly over all texts, k = 5. The 95 %
intervals are bootstrapped over questions. Embedding takes about ten minutes on two cores, and the cache keeps it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ragkit.cache import CachedEmbedder
from ragkit.chunkers import RecursiveChunker, SemanticChunker, SentenceChunker, TokenChunker
from ragkit.chunking import Chunk, Chunker, StructureChunker
from ragkit.documents import Document
from ragkit.embedding import SentenceTransformerEmbedder
from ragkit.markup import markdown_headings
from ragkit.passages import embedded_texts

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("RAGKIT_SHARED", ROOT.parent / "shared")) / "datasets" / "chunking_evaluation"
K = 5
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

Span = tuple[int, int]


def span_measures(gold: Sequence[Span], retrieved: Sequence[Span]) -> tuple[float, float, float]:
    """Return (recall, precision, IoU) of the characters of one document's spans; each gold span stands once."""
    wanted = {at for start, end in gold for at in range(start, end)}
    found = {at for start, end in retrieved for at in range(start, end)}
    shared, size = len(wanted & found), sum(end - start for start, end in retrieved)
    return shared / len(wanted), shared / size if size else 0.0, shared / (len(wanted) + size - shared)


def rows(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def measure(chunker: Chunker, documents: list[Document], questions: list[dict[str, object]]) -> np.ndarray:
    """Return the measures of each question, shape (questions, 3), and print what it took."""
    embedder = CachedEmbedder(SentenceTransformerEmbedder())
    began = time.monotonic()
    chunks: list[Chunk] = []
    texts: list[str] = []
    for document in documents:
        cut = chunker.chunk(document, embedder=embedder)
        chunks += cut
        texts += embedded_texts(document.title, cut, embedder)[0]
    vectors = embedder.embed(texts)
    asked = embedder.embed([str(q["question"]) for q in questions], kind="query")
    figures = []
    for question, vector in zip(questions, asked, strict=True):
        best = np.argsort(-(vectors @ vector), kind="stable")[:K]
        hits = [chunks[at] for at in best]
        gold = [(start, end) for start, end, _ in question["spans"]]  # type: ignore[attr-defined]
        # Characters of other texts are none of E: shifted to where no gold span is.
        here = [(c.start, c.end) for c in hits if c.document_id == question["doc_id"]]
        elsewhere = [(-(c.end - c.start), 0) for c in hits if c.document_id != question["doc_id"]]
        figures.append(span_measures(gold, here + elsewhere))
    print(f"{chunker.name}: {len(chunks)} chunks, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return np.asarray([(len(chunks), *row) for row in figures])


def interval(values: np.ndarray, *, seed: int = 0) -> float:
    """Return half the width of the 95 % interval of a mean, bootstrapped."""
    chance = np.random.default_rng(seed)
    means = chance.choice(values, (2_000, len(values))).mean(axis=1)
    return float((np.quantile(means, 0.975) - np.quantile(means, 0.025)) / 2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chunkers", nargs="*", default=list(CHUNKERS), help=", ".join(CHUNKERS))
    parser.add_argument("--markdown", action="store_true", help="print the table as docs/chunking.md has it")
    options = parser.parse_args()
    wanted = options.chunkers
    documents = [
        Document(
            id=str(row["_id"]), text=str(row["text"]), source=str(row["_id"]), title=str(row["title"]), language="en",
            marks=markdown_headings(str(row["text"])),
        )
        for row in rows("corpus.jsonl")
    ]  # fmt: skip
    questions = rows("spans.jsonl")
    for question in questions:  # the gold is where it is said to be
        text = next(d.text for d in documents if d.id == question["doc_id"])
        assert all(text[start:end] == words for start, end, words in question["spans"])  # type: ignore[attr-defined]
    table = Table(title=f"{len(documents)} texts, {len(questions)} questions, k = {K}; ± half a 95 % interval")
    for column in ("chunker", "chunks", "recall", "precision", "IoU"):
        table.add_column(column, justify="left" if column == "chunker" else "right")
    for name in CHUNKERS:
        if name in wanted or name.partition(",")[0] in wanted:
            figures = measure(CHUNKERS[name], documents, questions)
            cells = [f"{100 * column.mean():.1f} ± {100 * interval(column):.1f}" for column in figures[:, 1:].T]
            table.add_row(name, f"{int(figures[0, 0]):,}", *cells)
    Console(width=110, markup=False).print(markdown(table) if options.markdown else table, soft_wrap=options.markdown)
    return 0


def markdown(table: Table) -> str:
    cells = [[str(column.header), "---", *map(str, column.cells)] for column in table.columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in zip(*cells, strict=True))


if __name__ == "__main__":
    sys.exit(main())
