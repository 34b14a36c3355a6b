"""Documents and chunks as an index holds them, and as retrievers see them."""

from __future__ import annotations

import dataclasses

from ragkit.chunking.base import Chunk


@dataclasses.dataclass(frozen=True, slots=True)
class DocumentRecord:
    """A document's identity, without its chunks; ``text`` is what their offsets refer to."""

    id: str
    source: str
    title: str
    language: str
    text: str = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk with its vector's id in the store."""

    vector_id: str
    chunk: Chunk
