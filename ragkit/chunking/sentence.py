"""A chunker that packs whole sentences."""

from __future__ import annotations

import dataclasses
import itertools

from ragkit.chunking.base import Chunk, check_sizes, chunks_at, limit
from ragkit.chunking.spans import Span, by_sentences, divide, enforce_limit, pack, trimmed, word_cuts
from ragkit.documents.document import Document
from ragkit.embedding.base import Embedder
from ragkit.space import has_choices


@dataclasses.dataclass(frozen=True, slots=True)
class SentenceChunker:
    """Pack as many whole sentences as fit into each chunk, by the rules of the document's language.

    Args:
        max_tokens: The most tokens in a chunk; a longer sentence is split between words.
        overlap_tokens: The most tokens of whole sentences that two neighbouring chunks share.
    """

    max_tokens: int = 200
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        if not has_choices(self):
            check_sizes(self.max_tokens, self.overlap_tokens)

    @property
    def name(self) -> str:
        return f"sentence(max_tokens={self.max_tokens}, overlap_tokens={self.overlap_tokens})"

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        """See `ragkit.chunking.Chunker.chunk`."""
        limit(self.max_tokens, embedder)
        text, count = document.text, embedder.count_tokens
        sentences = _sentences(text, document.language)
        pieces = divide(text, sentences, word_cuts(self.max_tokens), count, max_tokens=self.max_tokens)
        packed = pack(pieces, max_tokens=self.max_tokens, overlap_tokens=self.overlap_tokens)
        return chunks_at(document, enforce_limit(text, packed, count, max_tokens=self.max_tokens))


def _sentences(text: str, language: str) -> list[Span]:
    cut = by_sentences(language)
    bounds = itertools.pairwise([0, *cut(text), len(text)])
    return [(a, b) for a, b in (trimmed(text, start, end) for start, end in bounds) if a < b]
