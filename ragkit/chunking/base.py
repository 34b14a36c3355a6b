"""The `Chunk` class, the `Chunker` protocol, and helpers shared by all chunkers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ragkit.chunking.spans import Span
from ragkit.documents.document import Document
from ragkit.embedding.base import Embedder
from ragkit.errors import InputError, require_count

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document.

    Attributes:
        document_id: The id of its document.
        start: The offset of its first character in the document's text.
        end: The offset after its last character.
        text: ``document.text[start:end]``.
        headings: The headings above it, outermost first.
        page: The page that it begins on; None in a document without pages.
        ordinal: Its position among the document's chunks, from 0.
    """

    document_id: str
    start: int
    end: int
    text: str
    headings: tuple[str, ...] = ()
    page: int | None = None
    ordinal: int = 0


class Chunker(Protocol):
    """The interface of a chunker, which splits documents into chunks.

    Attributes:
        name: The method and its settings in one string. The index stores it: two chunkers with the same name must
            produce the same chunks.
    """

    @property
    def name(self) -> str: ...

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        """Split one document into chunks.

        Args:
            document: The document to split.
            embedder: The embedder that the chunks are for: it counts tokens and has an input limit.

        Raises:
            InputError: Chunks could be longer than the embedder's input limit.
        """
        ...


def check_sizes(max_tokens: int, overlap_tokens: int = 0) -> None:
    """Raise `InputError` for invalid chunk sizes."""
    require_count("max_tokens", max_tokens)
    if not 0 <= overlap_tokens < max_tokens:
        raise InputError(f"overlap_tokens must be at least 0 and less than max_tokens, not {overlap_tokens}.")


def limit(max_tokens: int, embedder: Embedder) -> int:
    """Return ``max_tokens`` if it is within the embedder's input limit.

    Raises:
        InputError: It is over the limit: the embedder would ignore the end of a chunk.
    """
    if max_tokens > embedder.max_tokens:
        raise InputError(
            f"{embedder.name} reads {embedder.max_tokens} tokens and would not see the end of a chunk of {max_tokens}. "
            f"Give the chunker a max_tokens of {embedder.max_tokens} or less, or use an embedder with a higher limit."
        )
    return max_tokens


def chunks_at(document: Document, spans: Iterable[Span], bodies: Iterable[int] | None = None) -> list[Chunk]:
    """Create the chunks at the given offsets.

    Args:
        document: The document.
        spans: The (start, end) offsets of the chunks, in order.
        bodies: For each span, the offset whose headings the chunk gets: the first text after any headings that it
            begins with. Default: the start of the span.
    """
    has_pages = any(mark.kind == "page" for mark in document.marks)
    spans = list(spans)
    return [
        Chunk(
            document_id=document.id,
            start=start,
            end=end,
            text=document.text[start:end],
            headings=document.headings_at(body),
            page=document.page_at(start) if has_pages else None,
            ordinal=ordinal,
        )
        for ordinal, ((start, end), body) in enumerate(
            zip(spans, bodies if bodies is not None else (start for start, _ in spans), strict=True)
        )
    ]
