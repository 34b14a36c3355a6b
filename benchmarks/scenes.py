"""Functions that `alone` runs in a fresh process, and the embedders that they need."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.peers import DIMENSION, cheap_vector
from ragkit.chunking.context import embedded_texts
from ragkit.chunking.structure import StructureChunker
from ragkit.embedding.base import Vectors
from ragkit.embedding.hashed import HashEmbedder
from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
from ragkit.indexing.index import Index

__all__ = ["CountingEmbedder", "alone", "change", "cut", "memory", "passages_of"]

T = TypeVar("T")


def alone(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a fresh process."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


class CountingEmbedder:
    """MiniLM that records the texts that it embeds. Unless it is ``real``, its vectors are free.

    The recorded texts are the same in both cases, so indexing thousands of documents does not take minutes.
    """

    def __init__(self, model: SentenceTransformerEmbedder, *, real: bool = False) -> None:
        self._model = model
        self.real = real
        self.embedded: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name == "_model":
            raise AttributeError(name)
        return getattr(self._model, name)

    def embed(self, texts: Sequence[str], *, kind: Any = "passage") -> Vectors:
        import numpy as np

        self.embedded += texts
        if self.real:
            return self._model.embed(texts, kind=kind)
        vectors = np.zeros((len(texts), self._model.dimension), dtype=np.float32)
        vectors[:, :DIMENSION] = [cheap_vector(text) for text in texts]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def passages_of(index: Index) -> list[str]:
    """List the embedded text of every chunk of an index, in document order."""
    snapshot = index.records.snapshot()
    return [
        text
        for document in snapshot.documents.values()
        for text in embedded_texts(document.title, [c.chunk for c in snapshot.chunks[document.id]], index.embedder)[0]
    ]


def cut(corpora: list[str], into: str) -> list[list[str]]:
    """Return the passages of each corpus, as an index with the default chunker and MiniLM embeds them."""
    model = SentenceTransformerEmbedder()
    found = []
    for number, corpus in enumerate(corpora):
        index = Index(f"{into}/{number}", embedder=CountingEmbedder(model), chunker=StructureChunker(), cache=False)
        index.update(corpus)
        found.append(passages_of(index))
    return found


def change(folder: str, into: str) -> tuple[float, int, int, int, int]:
    """Index a folder, edit one section of its ``long.md``, and index it again with the model loaded.

    Returns:
        Seconds; embedded texts; those of them that are not new; new texts; chunks of the document.
    """
    embedder = CountingEmbedder(SentenceTransformerEmbedder())
    index = Index(into, embedder=embedder, chunker=StructureChunker())
    index.update(folder)
    before = set(passages_of(index))
    path = Path(folder) / "long.md"
    text = path.read_text(encoding="utf-8")
    title = "## Section 10\n\n"
    path.write_text(text.replace(title, f"{title}This sentence was not here yesterday. "), encoding="utf-8")
    embedder.real = True
    embedder.embed(["The model is loaded."])
    embedder.embedded.clear()
    began = time.perf_counter()
    report = index.update(folder)
    seconds = time.perf_counter() - began
    if report.updated != 1 or report.failed:
        raise RuntimeError(str(report))
    new = set(passages_of(index)) - before
    embedded = embedder.embedded
    return seconds, len(embedded), sum(text in before for text in embedded), len(new), report.chunks


def recut(source: str, into: str, max_tokens: int | None) -> tuple[list[str], list[str]]:
    """Rebuild an index with chunks of another size; return (embedded texts, all passages)."""
    embedder = CountingEmbedder(SentenceTransformerEmbedder())
    chunker = StructureChunker() if max_tokens is None else StructureChunker(max_tokens=max_tokens)
    index = Index(into, embedder=embedder, chunker=chunker)
    index.update(source, rebuild=True)
    return embedder.embedded, passages_of(index)


def memory(folder: str, into: str) -> tuple[float, float, int]:
    """Index a folder with vectors that need no model; return (peak MB, seconds, chunks)."""
    began = time.perf_counter()
    report = Index(into, embedder=HashEmbedder(), chunker=StructureChunker()).update(folder)
    seconds = time.perf_counter() - began
    if report.failed:
        raise RuntimeError(str(report))
    status = Path("/proc/self/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    return kilobytes * 1024 / 1e6, seconds, report.chunks
