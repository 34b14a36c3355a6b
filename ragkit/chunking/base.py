"""What a chunk and a chunker are."""

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
        document_id: The document.
        start: Offset of its first character in the document's text.
        end: Offset after its last.
        text: ``document.text[start:end]``.
        headings: The headings that it stands under, outermost first.
        page: The page that it begins on; None in a document without pages.
        ordinal: 0 for the document's first chunk, and so on.
    """

    document_id: str
    start: int
    end: int
    text: str
    headings: tuple[str, ...] = ()
    page: int | None = None
    ordinal: int = 0


class Chunker(Protocol):
    """Cuts documents into chunks.

    Attributes:
        name: Method and settings in one string. It is stored with the index: two chunkers with the same name
            must cut alike.
    """

    @property
    def name(self) -> str: ...

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        """Divide one document into chunks.

        Args:
            document: What to cut.
            embedder: What will read the chunks: it counts tokens, and has a limit.

        Raises:
            InputError: Chunks could be longer than what the embedder reads.
        """
        ...


def check_sizes(max_tokens: int, overlap_tokens: int = 0) -> None:
    """Raise `InputError` for sizes that no chunk can have."""
    require_count("max_tokens", max_tokens)
    if not 0 <= overlap_tokens < max_tokens:
        raise InputError(f"overlap_tokens must be at least 0 and less than max_tokens, not {overlap_tokens}.")


def limit(max_tokens: int, embedder: Embedder) -> int:
    """Return ``max_tokens``, if the embedder reads that much.

    Raises:
        InputError: It does not, and would be blind to the end of a chunk.
    """
    if max_tokens > embedder.max_tokens:
        raise InputError(
            f"{embedder.name} reads {embedder.max_tokens} tokens and would not see the end of a chunk of {max_tokens}. "
            f"Give the chunker a max_tokens of {embedder.max_tokens} or less, or take an embedder that reads more."
        )
    return max_tokens


def chunks_at(document: Document, spans: Iterable[Span], bodies: Iterable[int] | None = None) -> list[Chunk]:
    """Make the chunks that stand at these offsets.

    Args:
        document: The document.
        spans: In order.
        bodies: For each, where to look for its headings: after those that it begins with. Its start by default.
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
