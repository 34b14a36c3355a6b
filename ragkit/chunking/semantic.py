"""A chunker that splits where the meaning changes."""

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

_SEMANTIC_PIECES = 2_000  # pieces whose similarities are computed at a time

_TOLERANCE = 1e-6  # above the rounding error of a sum of similarities


@dataclasses.dataclass(frozen=True, slots=True)
class SemanticChunker:
    """Group neighbouring pieces of text by similarity.

    The ClusterSemanticChunker of Smith and Troynikov, "Evaluating Chunking Strategies for Retrieval" (Chroma, 2024):
    split a text recursively into small pieces, embed them, and merge neighbours so that the pieces within chunks are
    as similar as possible. Dynamic programming maximizes the sum, over all pairs of pieces within a chunk, of their
    similarity minus the document's mean similarity.

    Args:
        max_tokens: The most tokens in a chunk.
        piece_tokens: The most tokens in a piece.
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
        """See `ragkit.chunking.Chunker.chunk`. Each piece is embedded; the embedding cache stores the vectors."""
        limit(self.max_tokens, embedder)
        divided = divide_recursively(document, embedder, max_tokens=self.piece_tokens)
        # Single lines are too short to carry meaning: merge them first, up to the size of a piece.
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
        # The mean over all pairs in O(n): for unit vectors it is (|sum|^2 - n) / (n (n - 1)).
        total = vectors.sum(axis=0, dtype=np.float64)
        mean = float((total @ total - n) / (n * (n - 1))) if n > 1 else 0.0
        best = [0.0] + [-np.inf] * n  # best[i]: the highest score of the first i pieces
        begin = [0] * (n + 1)  # begin[i]: where the last chunk of that split begins
        for end in range(1, n + 1):
            reward, size = 0.0, 0
            for start in range(end - 1, -1, -1):
                size += tokens[start]
                if size > self.max_tokens and start < end - 1:
                    break
                if start < end - 1:
                    similar = vectors[start + 1 : end] @ vectors[start]
                    reward += 2 * (float(similar.sum()) - mean * (end - 1 - start))
                # Prefer the longer chunk on ties: in a document of two pieces, their similarity equals the mean.
                if best[start] + reward > best[end] - _TOLERANCE:
                    best[end], begin[end] = max(best[end], best[start] + reward), start
        joined: list[Span] = []
        end = n
        while end:
            joined.append((spans[begin[end]][0], spans[end - 1][1]))
            end = begin[end]
        return joined[::-1]
