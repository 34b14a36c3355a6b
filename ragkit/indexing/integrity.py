"""Consistency of an index's records, vectors and files, and repair of records and vectors.

An index that only ragkit writes stays consistent through any interruption (`ragkit.indexing.records` explains why).
This module is for other causes: a disk that loses data, a folder that was copied during a write, manual changes.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ragkit.chunking.context import embedded_texts
from ragkit.embedding.base import Embedder
from ragkit.errors import IndexCorruptError
from ragkit.hashing import hash_file
from ragkit.indexing.record_types import StoredChunk
from ragkit.indexing.records import Records
from ragkit.indexing.vector_store import VectorStore

_BATCH_SIZE = 2_000
_SHOWN = 5

T = TypeVar("T")


@dataclasses.dataclass(frozen=True, slots=True)
class IndexCheck:
    """The result of `Index.verify`.

    Attributes:
        documents, chunks: The numbers of recorded documents and chunks.
        missing: Documents with passages whose vector is missing or damaged. Searches do not find those passages.
        surplus: Vectors that belong to no passage.
        interrupted: Vectors left by an interrupted run; the next run removes them.
        changed: Files that differ from the indexed version.
        gone: Files that no longer exist.
        unreachable: Folders that no longer exist, with all their files.
    """

    documents: int
    chunks: int
    missing: tuple[str, ...]
    surplus: int
    interrupted: int
    changed: tuple[str, ...]
    gone: tuple[str, ...]
    unreachable: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether records and vectors are consistent. Files may have changed since; `update` handles that."""
        return not (self.missing or self.surplus)

    @property
    def is_current(self) -> bool:
        """Whether the index is sound, and no file has changed since it was indexed."""
        return self.is_sound and not (self.changed or self.gone or self.unreachable or self.interrupted)

    def __str__(self) -> str:
        lines = [f"{self.documents} documents, {self.chunks} passages"]
        if self.missing:
            lines.append(f"{_some(self.missing)} lack vectors: repair() embeds them again")
        if self.surplus:
            lines.append(f"{self.surplus} vectors belong to no passage: repair() deletes them")
        if self.interrupted:
            lines.append(f"{self.interrupted} vectors of an interrupted run: the next index() removes them")
        if self.changed:
            lines.append(f"{_some(self.changed)} changed since: call index() again")
        if self.gone:
            lines.append(f"{_some(self.gone)} no longer exist: call index() again")
        if self.unreachable:
            lines.append(f"{_some(self.unreachable)} cannot be reached: restore the folder, or forget() it")
        return "\n".join(lines if len(lines) > 1 else [*lines, "records, vectors and files agree"])


def _some(names: Sequence[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(f"'{name}'" for name in names[:_SHOWN]) + more


def check(records: Records, store: VectorStore) -> IndexCheck:
    """Compare; see `Index.verify`."""
    snapshot = records.snapshot()
    garbage = set(records.garbage())
    stored = set(store.ids())
    recorded = {each.vector_id for chunks in snapshot.chunks.values() for each in chunks}
    lost = _lost(store, recorded, stored, records.settings().get("dimension", ""))
    changed, gone, unreachable = _files(records)
    return IndexCheck(
        documents=len(snapshot.documents),
        chunks=len(recorded),
        missing=tuple(name for name, chunks in snapshot.chunks.items() if any(c.vector_id in lost for c in chunks)),
        surplus=len(stored - recorded - garbage),
        interrupted=len(garbage),
        changed=tuple(changed),
        gone=tuple(gone),
        unreachable=tuple(unreachable),
    )


def repair(records: Records, store: VectorStore, embedder: Embedder) -> None:
    """Make the store contain exactly the vectors of the recorded passages. The caller holds the index's lock."""
    try:
        stored = set(store.ids())
    except IndexCorruptError:
        store.clear()
        stored = set()
    records.sweep(store)
    snapshot = records.snapshot()
    recorded = {each.vector_id for chunks in snapshot.chunks.values() for each in chunks}
    if surplus := stored - recorded:
        store.delete(sorted(surplus))
    lost = _lost(store, recorded, stored, records.settings().get("dimension", ""))
    todo: list[tuple[StoredChunk, str]] = []
    for name, chunks in snapshot.chunks.items():
        wanted = [each for each in chunks if each.vector_id in lost]
        texts, _ = embedded_texts(snapshot.documents[name].title, [each.chunk for each in wanted], embedder)
        todo += zip(wanted, texts, strict=True)
    for part in _parts(todo):
        store.add([each.vector_id for each, _ in part], embedder.embed([text for _, text in part]))


def _lost(store: VectorStore, recorded: set[str], stored: set[str], dimension: str) -> set[str]:
    """Return the ids of vectors that are missing or damaged: wrong dimension, not of length 1, or not finite."""
    found = recorded - stored
    for part in _parts(sorted(recorded & stored)):
        for id_, vector in store.get(part).items():
            if str(len(vector)) != dimension or not abs(float(np.linalg.norm(vector)) - 1) < 0.01:
                found.add(id_)
    return found


def _parts(things: list[T]) -> Iterator[list[T]]:
    for start in range(0, len(things), _BATCH_SIZE):
        yield things[start : start + _BATCH_SIZE]


def _files(records: Records) -> tuple[list[str], list[str], list[str]]:
    changed: list[str] = []
    gone: list[str] = []
    unreachable: list[str] = []
    for root_id, root, prefix in records.roots():
        if root.parts[0] in ("http:", "https:"):
            continue  # web pages are compared when they are indexed again
        if not root.is_dir():
            unreachable.append(str(root))
            continue
        for known, _ in records.sources(root_id):
            path = _file(root, known.id)
            try:
                if not path.exists():
                    gone.append(prefix + known.id)
                elif hash_file(path) != known.hash:
                    changed.append(prefix + known.id)
            except OSError:
                changed.append(prefix + known.id)
    return changed, gone, unreachable


def _file(root: Path, id_: str) -> Path:
    r"""Return the path of a recorded id, in which bytes that are not UTF-8 are written as ``\xNN``."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes.fromhex(found[1].decode()), id_.encode())
    return root / id_ if (root / id_).exists() else root / os.fsdecode(raw)
