"""Kills an indexing process at various points, and compares the next run's index with the expected one.

``python -m tests.support.killing points SCENARIO`` ("first run", "changes" or "rebuild") exits the process before and
after each durable step in turn; ``python -m tests.support.killing random COUNT SEED`` sends SIGKILL at random times.
Prints one line per round and fails at the first difference. Every run is a fork of this process, which has imported
all modules but opened no files.
"""

from __future__ import annotations

import functools
import itertools
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb  # noqa: F401  # imported once, before the forks
import numpy as np

from ragkit.chunking.context import embedded_texts
from ragkit.chunking.structure import StructureChunker
from ragkit.documents.loading import load
from ragkit.documents.sources import find_sources
from ragkit.embedding.base import Kind
from ragkit.embedding.cache import EmbeddingCache
from ragkit.embedding.hashed import HashEmbedder
from ragkit.indexing import pipeline
from ragkit.indexing.index import Index
from ragkit.indexing.records import Records
from ragkit.indexing.vector_store import ChromaStore

DURABLE = {
    Records: ("__init__", "add_root", "set_settings", "reserve", "commit", "delete", "delete_root", "clear", "swept"),
    ChromaStore: ("add", "delete", "clear"),
    EmbeddingCache: ("put",),
}
CHUNKER = StructureChunker(max_tokens=40)
pipeline._FIRST_WINDOW = pipeline._MAX_WINDOW = 16  # so that a run commits often


class Embedder(HashEmbedder):
    """An embedder that is slow, so that it can be killed while embedding, and whose embeddings are cached."""

    def __init__(self) -> None:
        super().__init__(dimension=32)

    def embed(self, texts: Any, *, kind: Kind = "passage") -> Any:
        time.sleep(0.0005 * len(texts))
        return super().embed(texts, kind=kind)

    def fingerprint(self, kind: Kind) -> str | None:
        return "killing"


def index_in(place: Path) -> Index:
    return Index(place / "index", embedder=Embedder(), chunker=CHUNKER, cache=EmbeddingCache(place / "cache.db"))


def write(path: Path, seed: object) -> None:
    """Write a document of a few sections; the same seed gives the same text."""
    words = random.Random(str(seed))
    path.parent.mkdir(parents=True, exist_ok=True)
    sections = [
        f"## Section {n}\n\nThe word w{words.randrange(10**6)} stands here." for n in range(words.randrange(1, 6))
    ]
    path.write_text("\n\n".join([f"# Page {seed}", *sections]) + "\n", encoding="utf-8")


def write_rows(path: Path, seeds: list[object]) -> None:
    path.write_text("".join(f'{{"_id": "{n}", "text": "row w{seed}"}}\n' for n, seed in enumerate(seeds)))


def forked(work: Callable[[], object], *, kill_after_seconds: float | None = None) -> int:
    """Run ``work`` in a forked child; return its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    if kill_after_seconds is not None:
        time.sleep(kill_after_seconds)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def compare(place: Path, folder: Path) -> None:
    """Compare an index with the result of an undisturbed run on the folder; raise if they differ."""
    index = index_in(place)
    snapshot = index.records.snapshot()
    assert index.records.garbage() == [], "garbage is left"
    expected: dict[str, list[tuple[int, int, str]]] = {}
    vectors: list[Any] = []
    embedder = Embedder()
    for source in find_sources(folder).sources:
        for document in load(source).documents:
            chunks = CHUNKER.chunk(document, embedder=embedder)
            expected[document.id] = [(c.start, c.end, c.text) for c in chunks]
    found = {
        # Ids have a prefix if a subfolder was indexed before the folder.
        name.removeprefix("docs//"): [(s.chunk.start, s.chunk.end, s.chunk.text) for s in chunks]
        for name, chunks in snapshot.chunks.items()
    }
    assert found == expected, f"records differ: {sorted(found.keys() ^ expected.keys()) or 'in their passages'}"
    ids = [s.vector_id for chunks in snapshot.chunks.values() for s in chunks]
    assert set(index.vector_store.ids()) == set(ids), "vectors without a passage, or passages without one"
    for name, chunks in snapshot.chunks.items():
        texts, _ = embedded_texts(snapshot.documents[name].title, [s.chunk for s in chunks], embedder)
        vectors += list(HashEmbedder.embed(embedder, texts))
    stored = index.vector_store.get(ids)
    assert np.allclose(np.stack([stored[i] for i in ids]), np.stack(vectors), atol=1e-6), "vectors differ"
    again = index.update(folder)
    assert (again.added, again.updated, again.deleted, again.embedded) == (0, 0, 0, 0), (
        f"a second run changed the index: {again}"
    )
    assert index.verify().is_current, str(index.verify())


def recovers(place: Path, folder: Path, what: str) -> bool:
    """Index without a kill and compare the result, in a forked process."""

    def work() -> None:
        index_in(place).update(folder)
        compare(place, folder)

    sound = forked(work) == 0
    print(f"{what}: {'as an undisturbed run' if sound else 'DIFFERS'}", flush=True)
    return sound


# ------------------------------------------------------------------------------------------ every step


def crash_at(number: int, *, after: bool, counter: list[int]) -> None:
    """Make this process exit before or after its ``number``-th durable step."""

    def maybe_exit(method: Any, *args: Any, **kwargs: Any) -> Any:
        counter[0] += 1
        current = counter[0]
        if current == number and not after:
            os._exit(77)
        result = method(*args, **kwargs)
        if current == number:
            os._exit(77)
        return result

    for kind, names in DURABLE.items():
        for name in names:
            method = getattr(kind, name)
            setattr(
                kind, name, functools.partialmethod(lambda self, *a, _m, **k: maybe_exit(_m, self, *a, **k), _m=method)
            )


def prepare(base: Path) -> Path:
    """Index a folder and a subfolder, and then make changes of every kind; return the folder."""
    folder = base / "docs"
    for n in range(8):
        write(folder / f"page{n}.md", n)
    write_rows(folder / "rows.jsonl", list(range(5)))
    write(folder / "sub" / "deep.md", "deep")

    def first() -> None:
        index = index_in(base)
        index.update(folder / "sub")  # a separate root, which the parent folder then replaces
        os.rename(folder / "page7.md", base / "page7.md")
        index.update(folder)
        os.rename(base / "page7.md", folder / "page7.md")

    assert forked(first) == 0
    write(folder / "page0.md", "changed")
    (folder / "page1.md").unlink()
    write(folder / "new.md", "new")
    write_rows(folder / "rows.jsonl", [0, 1, "changed", 3])
    return folder


def points(scenario: str) -> bool:
    sound = True
    with tempfile.TemporaryDirectory(prefix="ragkit-points-") as name:
        template, base = Path(name) / "template", Path(name) / "base"
        base.mkdir()
        folder = prepare(base)
        if scenario == "first run":
            shutil.rmtree(base / "index")
        shutil.copytree(base, template)
        for tried in itertools.count():
            number, after = tried // 2 + 1, bool(tried % 2)
            shutil.rmtree(base)
            shutil.copytree(template, base)  # at the same path, because an index stores the paths of its folders

            def work(number: int = number, after: bool = after) -> None:
                crash_at(number, after=after, counter=[0])
                index_in(base).update(folder, rebuild=scenario == "rebuild")

            code = forked(work)
            if code == 0:
                print(f"{scenario}: {tried} points")
                return sound
            assert code == 77, f"{scenario}: ended with {code}"
            sound &= recovers(base, folder, f"{scenario}, {'after' if after else 'before'} step {number}")
    raise AssertionError


# -------------------------------------------------------------------------------------- at random


def at_random(count: int, seed: int) -> bool:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="ragkit-killed-") as name:
        base = Path(name)
        folder = base / "docs"
        for n in range(150):
            write(folder / f"page{n}.md", n)
        longest, sound, killed = 3.0, True, 0
        while killed < count:
            for _ in range(3):  # a killed run, and further runs after it
                began = time.monotonic()
                code = forked(
                    lambda: index_in(base).update(folder, rebuild=rng.random() < 0.1),
                    kill_after_seconds=rng.uniform(0.05, longest),
                )
                if code == 0:
                    longest = max(0.3, 0.9 * (time.monotonic() - began))  # so that most runs are killed
                killed += code != 0
                for _ in range(rng.randrange(8)):
                    write(folder / f"page{rng.randrange(170)}.md", rng.random())
                (folder / f"page{rng.randrange(150)}.md").unlink(missing_ok=True)
            if not recovers(base, folder, f"killed {killed} times"):
                sound = False
                break
        return sound


def main() -> int:
    match sys.argv[1:]:
        case ["points", scenario]:
            return int(not points(scenario))
        case ["random", count, seed]:
            return int(not at_random(int(count), int(seed)))
    print(__doc__)
    return 2


if __name__ == "__main__":
    sys.exit(main())
