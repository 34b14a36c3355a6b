"""A chunker that splits recursively, at ever smaller separators.

``make bench-chunkers`` compares all chunkers; docs/chunking.md says when to use which.
"""

from __future__ import annotations

import dataclasses

from ragkit.chunking.base import Chunk, check_sizes, chunks_at, limit
from ragkit.chunking.spans import Span, by, by_sentences, divide, enforce_limit, pack, trimmed, word_cuts
from ragkit.documents.document import Document
from ragkit.embedding.base import Embedder
from ragkit.space import has_choices


@dataclasses.dataclass(frozen=True, slots=True)
class RecursiveChunker:
    """Split at the largest separator that suffices: blank lines, lines, sentences, words, characters.

    The method of LangChain's RecursiveCharacterTextSplitter, with sentences by language and sizes in tokens: pieces
    that are too long are split at the next smaller separator, then neighbours are merged up to the limit.

    Args:
        max_tokens: The most tokens in a chunk.
        overlap_tokens: The most tokens of whole pieces that two neighbouring chunks share.
    """

    max_tokens: int = 200
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        if not has_choices(self):
            check_sizes(self.max_tokens, self.overlap_tokens)

    @property
    def name(self) -> str:
        return f"recursive(max_tokens={self.max_tokens}, overlap_tokens={self.overlap_tokens})"

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        """See `ragkit.chunking.Chunker.chunk`."""
        limit(self.max_tokens, embedder)
        text, count = document.text, embedder.count_tokens
        pieces = divide_recursively(document, embedder, max_tokens=self.max_tokens)
        packed = pack(pieces, max_tokens=self.max_tokens, overlap_tokens=self.overlap_tokens)
        return chunks_at(document, enforce_limit(text, packed, count, max_tokens=self.max_tokens))


def divide_recursively(document: Document, embedder: Embedder, *, max_tokens: int) -> list[tuple[Span, int]]:
    """Split a document recursively into pieces; return their spans and token counts."""
    whole = trimmed(document.text, 0, len(document.text))
    cuts = [by(r"\n\s*\n"), by(r"\n"), by_sentences(document.language), *word_cuts(max_tokens)]
    spans = [whole] if whole[0] < whole[1] else []
    return divide(document.text, spans, cuts, embedder.count_tokens, max_tokens=max_tokens)
