"""A chunker that cuts windows of a fixed number of tokens."""

from __future__ import annotations

import dataclasses

from ragkit.chunking.base import Chunk, check_sizes, chunks_at, limit
from ragkit.chunking.spans import Span, enforce_limit, trimmed
from ragkit.documents.document import Document
from ragkit.embedding.base import Embedder
from ragkit.space import has_choices

_SEGMENT = 50_000  # characters that are tokenized at a time


@dataclasses.dataclass(frozen=True, slots=True)
class TokenChunker:
    """Cut windows of the embedder's tokens, regardless of content. Words are split only if they exceed a chunk.

    Args:
        max_tokens: The most tokens in a chunk.
        overlap_tokens: The number of tokens at the end of a chunk that the next chunk repeats.
    """

    max_tokens: int = 200
    overlap_tokens: int = 0

    def __post_init__(self) -> None:
        if not has_choices(self):
            check_sizes(self.max_tokens, self.overlap_tokens)

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
        return chunks_at(document, enforce_limit(text, spans, embedder.count_tokens, max_tokens=self.max_tokens))

    def _windows(self, text: str, start: int, end: int, embedder: Embedder) -> list[Span]:
        # A chunk begins at a token; at the beginning of a word, if there is one within reach.
        begins = [start + a for a, b in embedder.token_spans(text[start:end]) if a < b]
        is_word = [at == start or not (text[at].isalnum() and text[at - 1].isalnum()) for at in begins]
        spans: list[Span] = []
        first = 0
        while first < len(begins):
            last = first + self.max_tokens  # the first token after the chunk
            if last < len(begins):
                last = next((at for at in range(last, first, -1) if is_word[at]), last)
            stop = begins[last] if last < len(begins) else end
            # Characters that the tokenizer drops (some control characters) belong to the previous chunk.
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
    """Split a text into segments to tokenize one by one, at white space if there is any."""
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
