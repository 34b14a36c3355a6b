"""Documents and chunks as stored in an index and seen by retrievers."""

from __future__ import annotations

import dataclasses

from ragkit.chunking.base import Chunk


@dataclasses.dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document without its chunks. The chunks' offsets refer to ``text``."""

    id: str
    source: str
    title: str
    language: str
    text: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk with the id of its vector in the store."""

    vector_id: str
    chunk: Chunk
