"""Several engines, several threads and several processes on one index."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ragkit.chunking.structure import StructureChunker
from ragkit.embedding.hashed import HashEmbedder
from ragkit.indexing.index import Index
from ragkit.retrieval.index_passages import IndexPassages
from ragkit.retrieval.retrievers import Dense, Hybrid
from ragkit.retrieval.search import retrieve
from tests.conftest import ROOT
from tests.support.corpora import write_pages


def open_index(tmp_path: Path) -> Index:
    return Index(tmp_path / "index", embedder=HashEmbedder(), chunker=StructureChunker(max_tokens=60))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pages(tmp_path / "docs")


def test_two_engines_of_one_process_see_each_others_work(tmp_path: Path, folder: Path) -> None:
    first, second = open_index(tmp_path), open_index(tmp_path)
    one, two = IndexPassages(first), IndexPassages(second)
    first.update(folder)
    assert retrieve("k1 and b", two.get(), retriever=Dense(), k=1)
    (folder / "new.md").write_text("# Papermill\n\nPapermill runs notebooks with parameters.\n")
    second.update(folder)
    for cache in (one, two, one):
        hits = retrieve("papermill notebooks parameters", cache.get(), retriever=Dense(), k=1)
        assert hits[0].document.id == "new.md"
    assert first.update(folder).unchanged == 5


def test_questions_during_indexing_are_answered(tmp_path: Path, folder: Path) -> None:
    index = open_index(tmp_path)
    index.update(folder)
    cache = IndexPassages(open_index(tmp_path))
    stop = threading.Event()
    problems: list[BaseException] = []
    asked = 0

    def ask() -> None:
        nonlocal asked
        while not stop.is_set():
            try:
                for retriever in (Hybrid(), Dense(exact=True)):
                    assert retrieve("How do I choose k1 and b?", cache.get(), retriever=retriever, k=5)
                asked += 1
            except BaseException as problem:
                problems.append(problem)
                return

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for number in range(12):
        for page in range(4):
            (folder / f"n{page}.md").write_text(f"# Note {page}\n\nRevision {number} of this note says {number}.\n")
        index.update(folder)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert problems == []
    assert asked > 0


def test_changes_of_another_process_are_seen(tmp_path: Path, folder: Path) -> None:
    index = open_index(tmp_path)
    index.update(folder)
    cache = IndexPassages(index)
    assert len(cache.get().documents) == 4
    program = f"""
from pathlib import Path
from tests.end_to_end.test_concurrency import open_index
folder = Path({str(folder)!r})
for number in range(3):
    (folder / "other.md").write_text(f"# Other process\\n\\nWritten elsewhere, {{number}}, zebra{{number}}.\\n")
    open_index(Path({str(tmp_path)!r})).update(folder)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", program], env=environment)
    while process.poll() is None:
        assert retrieve("k1 and b", cache.get(), retriever=Hybrid(), k=3)
    assert process.returncode == 0
    hits = retrieve("zebra2 written elsewhere", cache.get(), retriever=Dense(), k=1)
    assert hits[0].document.id == "other.md"
    # This process can then write, too.
    (folder / "mine.md").write_text("# Mine\n\nWritten here at last.\n")
    assert index.update(folder).added == 1
    index.vector_store.refresh()
    assert index.vector_store.count() == index.counts()[1]
