"""Chunks cut where the meaning changes."""

from __future__ import annotations

import dataclasses

import numpy as np

from ragkit.chunking.base import Chunk, check_sizes, chunks_at, limit
from ragkit.chunking.recursive import divide_recursively
from ragkit.chunking.spans import Span, counted, fit, pack
from ragkit.documents.document import Document
from ragkit.embedding.base import Embedder
from ragkit.errors import InputError
from ragkit.space import has_choices

_SEMANTIC_PIECES = 2_000  # pieces whose similarities are looked at at a time

_AS_GOOD = 1e-6  # more than rounding makes of a sum of similarities


@dataclasses.dataclass(frozen=True, slots=True)
class SemanticChunker:
    """Keeps together what is about the same thing.

    The ClusterSemanticChunker of Smith and Troynikov, "Evaluating Chunking Strategies for Retrieval" (Chroma, 2024):
    a text is divided recursively into small pieces, these are embedded, and of all ways to join neighbours the one is
    taken (by dynamic programming) in which the pieces of a chunk are most alike: the sum over all pairs within a chunk
    of their similarity above the document's mean.

    Args:
        max_tokens: The longest chunk.
        piece_tokens: The longest piece.
    """

    max_tokens: int = 200
    piece_tokens: int = 50

    def __post_init__(self) -> None:
        if has_choices(self):
            return
        check_sizes(self.max_tokens)
        if not 1 <= self.piece_tokens <= self.max_tokens:
            raise InputError(f"piece_tokens must be from 1 to max_tokens, not {self.piece_tokens}.")

    @property
    def name(self) -> str:
        return f"semantic(max_tokens={self.max_tokens}, piece_tokens={self.piece_tokens})"

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        """See `ragkit.chunking.Chunker.chunk`. Each piece is embedded; the embedding cache keeps them."""
        limit(self.max_tokens, embedder)
        divided = divide_recursively(document, embedder, max_tokens=self.piece_tokens)
        # Lines are pieces too short to mean anything: join them first, up to the size of a piece.
        spans = pack(divided, max_tokens=self.piece_tokens)
        joined: list[Span] = []
        for start in range(0, len(spans), _SEMANTIC_PIECES):
            joined += self._joined(document.text, spans[start : start + _SEMANTIC_PIECES], embedder)
        return chunks_at(document, fit(document.text, joined, embedder.count_tokens, max_tokens=self.max_tokens))

    def _joined(self, text: str, spans: list[Span], embedder: Embedder) -> list[Span]:
        texts = [text[start:end] for start, end in spans]
        tokens = counted(text, spans, embedder.count_tokens, max_tokens=self.max_tokens)
        vectors = embedder.embed(texts)
        n = len(spans)
        # The mean over all pairs, without making all pairs: of unit vectors, (|sum|^2 - n) / (n (n - 1)).
        total = vectors.sum(axis=0, dtype=np.float64)
        mean = float((total @ total - n) / (n * (n - 1))) if n > 1 else 0.0
        best = [0.0] + [-np.inf] * n  # of the first i pieces
        begin = [0] * (n + 1)  # where the last chunk of that begins
        for end in range(1, n + 1):
            reward, size = 0.0, 0
            for start in range(end - 1, -1, -1):
                size += tokens[start]
                if size > self.max_tokens and start < end - 1:
                    break
                if start < end - 1:
                    similar = vectors[start + 1 : end] @ vectors[start]
                    reward += 2 * (float(similar.sum()) - mean * (end - 1 - start))
                # Of equals the longer chunk: the two pieces of a short document are just as alike as its mean.
                if best[start] + reward > best[end] - _AS_GOOD:
                    best[end], begin[end] = max(best[end], best[start] + reward), start
        joined: list[Span] = []
        end = n
        while end:
            joined.append((spans[begin[end]][0], spans[end - 1][1]))
            end = begin[end]
        return joined[::-1]
