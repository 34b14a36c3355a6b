"""Other ways to cut a document than by its structure, to compare: by tokens, by sentences, recursively, by meaning.

``make bench-chunkers`` measures them all; docs/chunking.md says which is for what.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from ragkit.chunking.spans import Span, by, by_sentences, counted, divide, fit, pack, settle, trimmed, word_cuts
from ragkit.chunking.structure import Chunk, chunks_at, limit
from ragkit.documents.document import Document
from ragkit.embedding.base import Embedder
from ragkit.errors import InputError
from ragkit.space import is_open

__all__ = ["RecursiveChunker", "SemanticChunker", "SentenceChunker", "TokenChunker"]

_SEGMENT = 50_000  # characters whose tokens are looked at at a time
_SEMANTIC_PIECES = 2_000  # pieces whose similarities are looked at at a time
_AS_GOOD = 1e-6  # more than rounding makes of a sum of similarities


def _check(max_tokens: int, overlap_tokens: int) -> None:
    if max_tokens < 1:
        raise InputError(f"max_tokens must be at least 1, not {max_tokens}.")
    if not 0 <= overlap_tokens < max_tokens:
        raise InputError(f"overlap_tokens must be at least 0 and less than max_tokens, not {overlap_tokens}.")


@dataclasses.dataclass(frozen=True, slots=True)
class TokenChunker:
    """Windows of the embedder's own tokens, whatever they hold. A word is not cut in two unless it must be.

    Args:
        max_tokens: The longest chunk.
        overlap_tokens: How many of a chunk's last tokens the next one begins with.
    """

    max_tokens: int = 200
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        if not is_open(self):
            _check(self.max_tokens, self.overlap_tokens)

    @property
    def name(self) -> str:
        return f"token(max_tokens={self.max_tokens}, overlap_tokens={self.overlap_tokens})"

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        """See `ragkit.chunking.Chunker.chunk`."""
        limit(self.max_tokens, embedder)
        text = document.text
        spans: list[Span] = []
        for start, end in _segments(text):
            spans += self._windows(text, start, end, embedder)
        return chunks_at(document, settle(text, spans, embedder.count_tokens, max_tokens=self.max_tokens))

    def _windows(self, text: str, start: int, end: int, embedder: Embedder) -> list[Span]:
        # Where a chunk may begin: at a token, and if it is not a whole chunk away, at one that begins a word.
        begins = [start + a for a, b in embedder.token_spans(text[start:end]) if a < b]
        is_word = [at == start or not (text[at].isalnum() and text[at - 1].isalnum()) for at in begins]
        spans: list[Span] = []
        first = 0
        while first < len(begins):
            last = first + self.max_tokens  # the first token that is no longer in the chunk
            if last < len(begins):
                last = next((at for at in range(last, first, -1) if is_word[at]), last)
            stop = begins[last] if last < len(begins) else end
            # What a tokenizer leaves out (some control characters) belongs to the chunk before.
            a, b = trimmed(text, begins[first] if first else start, stop)
            if a < b:
                spans.append((a, b))
            if last >= len(begins):
                break
            back = max(first + 1, last - self.overlap_tokens)
            first = next((at for at in range(back, last) if is_word[at]), last)
        if not begins:
            a, b = trimmed(text, start, end)
            spans += [(a, b)] if a < b else []
        return spans


def _segments(text: str) -> list[Span]:
    """Parts of a text that end at white space, if there is any, and can be taken one by one."""
    found: list[Span] = []
    start = 0
    while start < len(text):
        end = min(start + _SEGMENT, len(text))
        if end < len(text):
            space = max(text.rfind(" ", start + _SEGMENT // 2, end), text.rfind("\n", start + _SEGMENT // 2, end))
            end = space + 1 if space > 0 else end
        found.append((start, end))
        start = end
    return found


@dataclasses.dataclass(frozen=True, slots=True)
class SentenceChunker:
    """Whole sentences, by the rules of the document's language, as many as fit.

    Args:
        max_tokens: The longest chunk; a sentence that is longer is divided between words.
        overlap_tokens: Sentences of up to this many tokens together stand in both of two neighbours.
    """

    max_tokens: int = 200
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        if not is_open(self):
            _check(self.max_tokens, self.overlap_tokens)

    @property
    def name(self) -> str:
        return f"sentence(max_tokens={self.max_tokens}, overlap_tokens={self.overlap_tokens})"

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        """See `ragkit.chunking.Chunker.chunk`."""
        limit(self.max_tokens, embedder)
        text, count = document.text, embedder.count_tokens
        sentences = _cut_all(text, document.language)
        pieces = divide(text, sentences, word_cuts(self.max_tokens), count, max_tokens=self.max_tokens)
        packed = pack(pieces, max_tokens=self.max_tokens, overlap_tokens=self.overlap_tokens)
        return chunks_at(document, settle(text, packed, count, max_tokens=self.max_tokens))


def _cut_all(text: str, language: str) -> list[Span]:
    cut = by_sentences(language)
    bounds = itertools.pairwise([0, *cut(text), len(text)])
    return [(a, b) for a, b in (trimmed(text, start, end) for start, end in bounds) if a < b]


@dataclasses.dataclass(frozen=True, slots=True)
class RecursiveChunker:
    """Divides at the largest separator that helps: blank lines, lines, sentences, words, characters.

    The method of LangChain's RecursiveCharacterTextSplitter, with sentences by language and sizes in tokens: what is
    too long is divided by the next separator, and neighbours are joined again up to the limit.

    Args:
        max_tokens: The longest chunk.
        overlap_tokens: Pieces of up to this many tokens together stand in both of two neighbours.
    """

    max_tokens: int = 200
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        if not is_open(self):
            _check(self.max_tokens, self.overlap_tokens)

    @property
    def name(self) -> str:
        return f"recursive(max_tokens={self.max_tokens}, overlap_tokens={self.overlap_tokens})"

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        """See `ragkit.chunking.Chunker.chunk`."""
        limit(self.max_tokens, embedder)
        text, count = document.text, embedder.count_tokens
        pieces = _pieces(document, embedder, max_tokens=self.max_tokens)
        packed = pack(pieces, max_tokens=self.max_tokens, overlap_tokens=self.overlap_tokens)
        return chunks_at(document, settle(text, packed, count, max_tokens=self.max_tokens))


def _pieces(document: Document, embedder: Embedder, *, max_tokens: int) -> list[tuple[Span, int]]:
    """Divide a document recursively."""
    whole = trimmed(document.text, 0, len(document.text))
    cuts = [by(r"\n\s*\n"), by(r"\n"), by_sentences(document.language), *word_cuts(max_tokens)]
    spans = [whole] if whole[0] < whole[1] else []
    return divide(document.text, spans, cuts, embedder.count_tokens, max_tokens=max_tokens)


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
        if is_open(self):
            return
        _check(self.max_tokens, 0)
        if not 1 <= self.piece_tokens <= self.max_tokens:
            raise InputError(f"piece_tokens must be from 1 to max_tokens, not {self.piece_tokens}.")

    @property
    def name(self) -> str:
        return f"semantic(max_tokens={self.max_tokens}, piece_tokens={self.piece_tokens})"

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        """See `ragkit.chunking.Chunker.chunk`. Each piece is embedded; the embedding cache keeps them."""
        limit(self.max_tokens, embedder)
        divided = _pieces(document, embedder, max_tokens=self.piece_tokens)
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
