"""Results and cost of experiments, with required limits: ``make bench-experiment [ROWS="sharing search"]``.

reference   SciFact, ten systems: MiniLM and BM25 over whole abstracts must reproduce published values (nDCG@10:
            MiniLM .6451 within .005, BM25 .665 to .687), and the default hybrid must be above both, with its p value.
            Repeated with cached embeddings, with another measure, and with another system.
            The first run embeds for about five minutes on two cores; later runs use the cache.
sharing     Twelve retrievers with three chunkers on the handbook, without a cache, compared with the time of the
            distinct work (three chunkings, each distinct text embedded once, 36 rankings of 100 questions, measures)
            done directly. Each runs in a separate process with its model loaded; they alternate, twice.
search      Exact search for 300 questions over 100,000 vectors of 384 dimensions, as in an experiment.
evaluation  The runs of ``reference``, read from files and measured by ragkit and by ranx (`benchmarks.evaluation`): the
            first time in a process, and the fastest of the other times.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpora import SHARED
from benchmarks.evaluation import RANDOMISATIONS, Outcome
from benchmarks.scenes import alone
from ragkit.chunking.base import Chunk, Chunker
from ragkit.chunking.context import embedded_texts
from ragkit.chunking.sentence import SentenceChunker
from ragkit.chunking.structure import StructureChunker
from ragkit.chunking.token import TokenChunker
from ragkit.embedding.base import Vectors
from ragkit.embedding.cache import EmbeddingCache
from ragkit.embedding.hashed import HashEmbedder
from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
from ragkit.evaluation.dataset import Dataset
from ragkit.evaluation.loading import load_dataset
from ragkit.evaluation.measures import Ranked, evaluate
from ragkit.evaluation.trec import write_run
from ragkit.experiments.experiment import Experiment
from ragkit.experiments.stages import Ranking, query_batches
from ragkit.experiments.system import System
from ragkit.indexing.record_types import DocumentRecord, StoredChunk
from ragkit.retrieval.base import Retriever
from ragkit.retrieval.corpus import Documents, Passages
from ragkit.retrieval.query import SearchQuery, guess_language, search_queries
from ragkit.retrieval.retrievers import BM25, Dense, Hybrid
from ragkit.space import choose

ROOT = Path(__file__).resolve().parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"

MINILM = (0.6401, 0.6501)
PUBLISHED_BM25 = (0.665, 0.687)
MAX_SECONDS = 30.0
MAX_TIMES_DISTINCT = 1.2
MAX_SEARCH_SECONDS = 2.0

HYBRID = "Hybrid(), whole documents"
WEIGHTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
TEN = [System(retriever=BM25("documents"), chunker=None), System(retriever=Dense(), chunker=None)] + [
    System(retriever=Hybrid(dense_weight=choose(*WEIGHTS)), chunker=None)
]
TWELVE: list[Retriever] = [BM25(), BM25("documents"), Dense(), Hybrid(fusion="rrf")]
TWELVE += [Hybrid(dense_weight=weight) for weight in WEIGHTS]
THREE: list[Chunker] = [StructureChunker(), SentenceChunker(), TokenChunker()]
MEASURES = ["nDCG@10", "R@100", "SpanRecall@5"]
PASSAGES, DIMENSION, QUESTIONS = 100_000, 384, 300

Line = tuple[str, bool | None]
"""A figure, and whether it meets its limit; None if it has no limit."""


# ---------------------------------------------------------------------------------------------------------- reference


def scifact(store: Path, *measures: str) -> Experiment:
    dataset = load_dataset(SHARED / "scifact", language="en")
    return Experiment(dataset, TEN, measures=["nDCG@10", "R@100", *measures], store=store)


def reference(folder: Path) -> Iterator[Line]:
    took = []
    for store in ("first", "scifact"):
        began = time.perf_counter()
        result = scifact(folder / store).run()
        took.append(time.perf_counter() - began)
    print(result)
    means = result.systems.set_index("system")["nDCG@10"]
    dense, bm25 = means["Dense(), whole documents"], means["BM25(over='documents'), whole documents"]
    hybrid = means[HYBRID]
    tested = [result.compare(baseline=name).set_index("system") for name in result.names[:2]]
    p = max(table.loc[HYBRID, "p_randomisation_holm"] for table in tested)
    yield f"MiniLM {dense:.4f}, published .6451", MINILM[0] <= dense <= MINILM[1]
    yield f"BM25 {bm25:.4f}, published .665 to .687", PUBLISHED_BM25[0] <= bm25 <= PUBLISHED_BM25[1]
    yield f"hybrid {hybrid:.4f}, above both; p (Holm) {p:.4f}", hybrid > max(dense, bm25)
    questions = len(result.dataset.queries)
    yield f"10 systems, {questions} questions, cached embeddings: {took[1]:.1f} s", took[1] < MAX_SECONDS
    again = scifact(folder / "scifact", "AP")
    for what, added, expected in (
        ("another measure", [], {}),
        (
            "another system",
            [System(retriever=Hybrid(fusion="rrf"), chunker=None)],
            {"retrieve": questions, "latency": 1},
        ),
    ):
        if added:
            again.add(added)
        began = time.perf_counter()
        again.run()
        computed = dict(again.result_cache.computed)
        counts = ", ".join(f"{count} {stage}" for stage, count in computed.items()) or "none"
        yield f"{what}: {time.perf_counter() - began:.1f} s, results computed: {counts}", computed == expected


# ------------------------------------------------------------------------------------------------------------ sharing


class Counting(SentenceTransformerEmbedder):
    """MiniLM that counts how often it embeds each passage."""

    def __init__(self) -> None:
        super().__init__()
        self.embed(["The model is loaded."])
        self.embedded: Counter[str] = Counter()

    def embed(self, texts: Sequence[str], *, kind: Any = "passage") -> Vectors:
        if kind == "passage" and hasattr(self, "embedded"):
            self.embedded.update(texts)
        return super().embed(texts, kind=kind)


def handbook() -> Dataset:
    return load_dataset(ROOT / "data" / "questions", corpus=ROOT / "data" / "handbook")


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """Totals over all systems: seconds, embedded passages, distinct texts among them, and the sum of all values."""

    seconds: float
    cpu_seconds: float
    embedded: int
    distinct: int
    sum: float


def swept(folder: str) -> Cost:
    """Run the sweep as an experiment."""
    embedder, dataset = Counting(), handbook()
    systems = System(embedder=embedder, retriever=choose(*TWELVE), chunker=choose(*THREE))
    began, cpu = time.perf_counter(), time.process_time()
    experiment = Experiment(
        dataset, systems, measures=MEASURES, store=folder, cache=EmbeddingCache(f"{folder}/embeddings.db")
    )
    values = experiment.run().queries["value"]
    took = time.perf_counter() - began, time.process_time() - cpu
    return Cost(*took, embedder.embedded.total(), len(embedder.embedded), float(values.sum()))


def plainly() -> Cost:
    """Do each distinct step of the sweep once, without a cache."""
    embedder, dataset = Counting(), handbook()
    began, cpu = time.perf_counter(), time.process_time()
    corpus = Documents(DocumentRecord(d.id, d.source, d.title, d.language, d.text) for d in dataset.documents)
    cuts = [[chunker.chunk(document, embedder=embedder) for document in dataset.documents] for chunker in THREE]
    read = [
        [
            text
            for d, own in zip(dataset.documents, cut, strict=True)
            for text in embedded_texts(d.title, own, embedder)[0]
        ]
        for cut in cuts
    ]
    distinct = list(dict.fromkeys(itertools.chain(*read)))
    vectors = dict(zip(distinct, embedder.embed(distinct), strict=True))
    questions = [query.text for query in dataset.queries]
    asked = embedder.embed(questions, kind="query")
    total = 0.0
    for cut, texts in zip(cuts, read, strict=True):
        passages = Passages(
            corpus,
            [[StoredChunk(f"{chunk.document_id} {chunk.start}", chunk) for chunk in own] for own in cut],
            embedder=embedder,
            vectors=np.stack([vectors[text] for text in texts]),
        )
        languages = [guess_language(question, passages.languages) for question in questions]
        queries = search_queries(questions, languages, embedder=embedder, vectors=asked)
        for retriever in TWELVE:
            total += evaluate(MEASURES, dataset, ranked(retriever, passages, dataset, queries))["value"].sum()
    took = time.perf_counter() - began, time.process_time() - cpu
    return Cost(*took, embedder.embedded.total(), len(embedder.embedded), float(total))


def ranked(
    retriever: Retriever, passages: Passages, dataset: Dataset, queries: Sequence[SearchQuery]
) -> dict[str, list[Ranked]]:
    found = {}
    for query, searched in zip(dataset.queries, queries, strict=True):
        scores = retriever.scores(searched, passages)
        chunks = [(passages.stored[p].chunk, scores[p]) for p in sorted(scores, key=lambda p: (-scores[p], p))]
        found[query.id] = [Ranked(chunk.document_id, score, chunk.start, chunk.end) for chunk, score in chunks]
    return found


def sharing(folder: Path) -> Iterator[Line]:
    costs = [(alone(swept, str(folder / f"swept-{number}")), alone(plainly)) for number in range(2)]
    for ours, plain in costs:
        yield f"36 systems {ours.seconds:.1f} s, {ours.cpu_seconds:.1f} of CPU", None
        yield f"their distinct stages {plain.seconds:.1f} s, {plain.cpu_seconds:.1f} of CPU", None
    ours, plain = costs[-1]
    times = statistics.median(ours.seconds / plain.seconds for ours, plain in costs)
    cpu = statistics.median(ours.cpu_seconds / plain.cpu_seconds for ours, plain in costs)
    yield f"36 systems / their distinct stages: {times:.2f} x ({cpu:.2f} x in CPU)", times <= MAX_TIMES_DISTINCT
    yield (
        f"texts embedded {ours.embedded}, distinct {plain.distinct}",
        ours.embedded == ours.distinct == plain.distinct == plain.embedded,
    )
    yield f"the same values, summed: {ours.sum:.6f} and {plain.sum:.6f}", abs(ours.sum - plain.sum) < 1e-6


# ------------------------------------------------------------------------------------------------- search, evaluation


def search(folder: Path) -> Iterator[Line]:
    random = np.random.default_rng(0)

    def unit(rows: int) -> Vectors:
        vectors = random.standard_normal((rows, DIMENSION)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    documents = Documents([DocumentRecord("d", "d", "d", "en", "x" * PASSAGES)])
    chunks = [[StoredChunk(str(at), Chunk("d", at, at + 1, "x")) for at in range(PASSAGES)]]
    passages = Passages(documents, chunks, embedder=HashEmbedder(dimension=DIMENSION), vectors=unit(PASSAGES))
    questions = [f"question {number}" for number in range(QUESTIONS)]
    asked = dict(zip(questions, unit(QUESTIONS), strict=True))
    rankings = {}
    began = time.perf_counter()
    for window in query_batches([SearchQuery(question, "en") for question in questions]):
        vectors = np.stack([asked[question] for question in window])
        for query in search_queries(window, ["en"] * len(window), embedder=passages.embedder, vectors=vectors):
            rankings[query.text] = Ranking.of(Dense().scores(query, passages))
    seconds = time.perf_counter() - began
    nearest = [int(np.argmax(passages.vectors @ vector)) for vector in asked.values()]
    if [ranking.positions[0] for ranking in rankings.values()] != nearest:
        raise RuntimeError("the search is not exact")
    yield (
        f"{QUESTIONS} questions, {PASSAGES:,} x {DIMENSION}, exact: {seconds:.2f} s",
        seconds < MAX_SEARCH_SECONDS,
    )


def evaluation(folder: Path) -> Iterator[Line]:
    result = scifact(folder / "scifact").run()
    runs = folder / "runs"
    runs.mkdir()
    for number, name in enumerate(result.names):
        # Use ranks as scores: trec_eval and ranx break ties differently (last id first; first read first).
        run = {
            query_id: [(passage.document_id, float(-rank)) for rank, passage in enumerate(found)]
            for query_id, found in result.rankings(name).items()
        }
        write_run(runs / f"{number:02}.run", run, tag="ragkit")
    lines = [f"{q} 0 {d} {grade}\n" for q, judged in result.dataset.qrels.items() for d, grade in judged.items()]
    (runs / "qrels").write_text("".join(lines), encoding="utf-8")
    outcomes = {}
    for name, python in (("ragkit", sys.executable), ("ranx", PEERS)):
        done = subprocess.run(
            [str(python), "-m", "benchmarks.evaluation", name, str(runs)], cwd=ROOT, stdout=subprocess.PIPE, check=True
        )
        outcomes[name] = Outcome(**json.loads(done.stdout.splitlines()[-1]))
        each = outcomes[name]
        for when, at in (("first", slice(0, 1)), ("then", slice(1, None))):
            reading, measuring, comparing = (min(took[at]) for took in (each.reading, each.measuring, each.comparing))
            yield f"{name}, {when}: reading {reading:.2f} s, measuring {measuring:.3f} s, tests {comparing:.2f} s", None
    ours, theirs = outcomes["ragkit"], outcomes["ranx"]

    def times(*what: str, at: slice) -> float:
        """Return ragkit's time divided by ranx's."""
        mine, other = (
            min(map(sum, zip(*(getattr(each, w)[at] for w in what), strict=True))) for each in (ours, theirs)
        )
        return mine / other

    later = slice(1, None)
    yield f"ragkit / ranx, measuring: {times('measuring', at=later):.2f} x", None
    yield f"ragkit / ranx, reading and measuring: {times('reading', 'measuring', at=later):.2f} x", None
    yield f"the same, the first time in a process: {times('reading', 'measuring', at=slice(0, 1)):.2f} x", None
    yield (
        f"the tests differ: ragkit runs three and a bootstrap against one baseline, ranx one for all pairs, "
        f"with {RANDOMISATIONS:,} draws each: {times('comparing', at=later):.2f} x",
        None,
    )
    apart = max(abs(ours.means[run][m] - theirs.means[run][m]) for run in ours.means for m in ours.means[run])
    yield f"means differ by at most {apart:.1e}", apart < 1e-4


ROWS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "reference": reference,
    "sharing": sharing,
    "search": search,
    "evaluation": evaluation,
}


def main() -> int:
    chosen = sys.argv[1:] or list(ROWS)
    if unknown := set(chosen) - set(ROWS):
        print(f"There is no row '{min(unknown)}'. The rows are: {', '.join(ROWS)}.", file=sys.stderr)
        return 2
    if {"reference", "evaluation"} & set(chosen) and not (SHARED / "scifact").exists():
        print(f"SciFact is not at {SHARED}: set RAGKIT_SHARED to the folder that holds datasets/.", file=sys.stderr)
        return 2
    if "evaluation" in chosen and not PEERS.exists():
        print("ranx is not installed. Run: make bench-experiment", file=sys.stderr)
        return 2
    held = True
    with tempfile.TemporaryDirectory(prefix="ragkit-bench-") as folder:
        for name in chosen:
            for line, ok in ROWS[name](Path(folder)):
                print(f"{name}: {line}  {({None: '', True: 'ok', False: 'MISSED'})[ok]}".rstrip(), flush=True)
                held &= ok is not False
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
