"""Kill a process that runs an experiment at random moments, and compare the outcome with an undisturbed run.

``python -m tests.support.resuming COUNT SEED`` sends SIGKILL COUNT times. After each kill it checks the files: no
stored result is lost, none is computed again, and of the new results only the last batch, which was in flight, may be
missing. A run that completes must have exactly the result of an undisturbed run; then the next run starts from scratch.
Every run is a fork of this process, which has run the experiment once, so that all modules are imported, and has no
open files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import random
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragkit.chunking.structure import StructureChunker
from ragkit.chunking.token import TokenChunker
from ragkit.embedding.base import Kind, Vectors
from ragkit.embedding.cache import EmbeddingCache
from ragkit.embedding.hashed import HashEmbedder
from ragkit.evaluation.dataset import Dataset
from ragkit.evaluation.loading import load_dataset
from ragkit.experiments import stages
from ragkit.experiments.experiment import Experiment
from ragkit.experiments.result import Result
from ragkit.experiments.result_cache import ResultCache
from ragkit.experiments.system import System
from ragkit.retrieval.retrievers import BM25, Dense, Hybrid
from ragkit.space import choose
from tests.support.killing import forked

DATA = Path(__file__).resolve().parents[2] / "data"
# Small batches, so that there are many of them.
stages.BATCH_QUERIES, stages._BATCH_TEXTS, stages._BATCH_DOCUMENTS = 8, 32, 4
# Slow enough for kills in the middle of a batch.
SECONDS_PER_TEXT = 0.0005
SECONDS_PER_BATCH = 0.003


@dataclasses.dataclass(frozen=True)
class Log:
    """The computed results, one line per batch, written before the batch is stored, so that a kill leaves the line."""

    path: Path

    def add(self, stage: str, what: Sequence[str]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([stage, list(what)]) + "\n")

    def read(self) -> list[tuple[str, list[str]]]:
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        return [tuple(json.loads(line)) for line in text.splitlines(keepends=True) if line.endswith("\n")]


class Embedder(HashEmbedder):
    """A slow embedder with a cache, which logs the texts."""

    def __init__(self, log: Log) -> None:
        super().__init__(dimension=32)
        self._log = log

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        if kind == "passage":
            self._log.add("embed", texts)
        time.sleep(SECONDS_PER_TEXT * len(texts))
        return super().embed(texts, kind=kind)

    def fingerprint(self, kind: Kind) -> str | None:
        return f"resuming {kind}"


class LoggedResults(ResultCache):
    """A result cache that logs the stored keys."""

    log: Log

    def put(self, stage: str, values: Mapping[str, Any]) -> None:
        self.log.add(stage, list(values))
        time.sleep(SECONDS_PER_BATCH)
        super().put(stage, values)


class Silent:
    """A publisher that drops all events."""

    def publish(self, event: object) -> None:
        pass


def run(dataset: Dataset, place: Path) -> None:
    """Run the experiment in a folder and write its result there."""
    place.mkdir(exist_ok=True)
    log = Log(place / "log.jsonl")
    embedder = Embedder(log)
    systems = System(
        embedder=embedder,
        retriever=choose(BM25(), Dense(), Hybrid()),
        chunker=choose(StructureChunker(max_tokens=120), TokenChunker(max_tokens=100)),
    )
    cache, results = EmbeddingCache(place / "embeddings.db"), LoggedResults(place / "results.db")
    results.log = log
    experiment = Experiment(
        dataset,
        systems,
        measures=["nDCG@10", "AP", "SpanRecall@5"],
        store=place,
        cache=cache,
        publisher=Silent(),  # type: ignore[arg-type]
        progress=False,
        record=False,
    )
    experiment.result_cache = results
    (place / "found.json").write_text(found(experiment.run()), encoding="utf-8")
    cache.close()
    results.close()


def found(result: Result) -> str:
    """Return the result without durations, as JSON, which keeps every digit."""
    rankings = {
        name: {
            query_id: [(p.document_id, p.score, p.start, p.end) for p in passages]
            for query_id, passages in result.rankings(name).items()
        }
        for name in result.names
    }
    return json.dumps([result.queries.to_dict("records"), rankings])


@dataclasses.dataclass(frozen=True, slots=True)
class Kept:
    """The stored results and vectors, by key."""

    results: dict[str, bytes]
    vectors: dict[str, bytes]

    @classmethod
    def of(cls, place: Path, log: Log) -> Kept:
        texts = sorted({text for stage, texts in log.read() if stage == "embed" for text in texts})
        cache = EmbeddingCache(place / "embeddings.db")
        vectors = {texts[at]: v.tobytes() for at, v in cache.get("resuming passage", texts).items()}
        cache.close()
        return cls(dict(_results(place / "results.db")), vectors)

    def has(self, stage: str, key: str) -> bool:
        return key in (self.vectors if stage == "embed" else self.results)


def _results(path: Path) -> Iterator[tuple[str, bytes]]:
    with contextlib.closing(sqlite3.connect(path)) as db:
        if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'results'").fetchall():
            yield from db.execute("SELECT key, value FROM results")


def check(before: Kept, after: Kept, computed: Sequence[tuple[str, list[str]]]) -> int:
    """Check what one run computed against the files before and after; return the number of results lost in flight."""
    assert before.results.items() <= after.results.items(), "results are missing or changed"
    assert before.vectors.items() <= after.vectors.items(), "vectors are missing or changed"
    again = [key for stage, keys in computed for key in keys if before.has(stage, key)]
    assert not again, f"computed again: {again[:3]}"
    lost = [[key for key in keys if not after.has(stage, key)] for stage, keys in computed]
    assert not any(lost[:-1]), f"lost, but not in flight: {[keys[:1] for keys in lost]}"
    return len(lost[-1]) if lost else 0


def main() -> int:
    count, seed = map(int, sys.argv[1:])
    rng = random.Random(seed)
    dataset = load_dataset(DATA / "questions", corpus=DATA / "handbook").sample(48)
    with tempfile.TemporaryDirectory(prefix="ragkit-resuming-") as name:
        whole, place = Path(name) / "whole", Path(name) / "place"
        run(dataset, whole)
        expected = (whole / "found.json").read_text(encoding="utf-8")
        shutil.rmtree(whole)
        began = time.monotonic()
        assert forked(lambda: run(dataset, whole)) == 0
        longest = (time.monotonic() - began) / 3  # so that a run is killed several times before it completes
        killed = rounds = 0
        while killed < count or place.exists():
            place.mkdir(exist_ok=True)
            log = Log(place / "log.jsonl")
            before, logged = Kept.of(place, log), len(log.read())
            wait = rng.uniform(0, longest) if killed < count else None
            code = forked(lambda: run(dataset, place), kill_after_seconds=wait)
            assert code in (0, -9), f"ended with {code}"
            after = Kept.of(place, log)
            lost = check(before, after, log.read()[logged:])
            killed += code != 0
            if code:
                print(f"{killed} killed after {wait:.2f} s: {len(after.results)} results kept, {lost} lost", flush=True)
                continue
            assert (place / "found.json").read_text(encoding="utf-8") == expected, "the result differs"
            shutil.rmtree(place)
            rounds += 1
        print(f"{killed} times killed, {rounds} times at the end: as an undisturbed run")
    return 0


if __name__ == "__main__":
    sys.exit(main())
