"""The text that is embedded and searched for a chunk: its title and headings, then its own text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ragkit.chunking.base import Chunk
from ragkit.embedding.base import Embedder
from ragkit.errors import InputError


def passage_text(title: str, chunk: Chunk) -> str:
    """Return the text to embed and search for a chunk: title and headings, then the chunk's text.

    This way a passage such as "It defaults to 0.75." is found by its heading. Headings are not part of the text that
    is quoted.
    """
    context = " > ".join(dict.fromkeys(part for part in (title, *chunk.headings) if part and part not in chunk.text))
    return f"{context[:200]}\n{chunk.text}" if context else chunk.text


def embedded_texts(title: str, chunks: Sequence[Chunk], embedder: Embedder) -> tuple[list[str], list[int]]:
    """Return the texts to embed for a document's chunks, and their token counts.

    Each text is the chunk's `passage_text`, with fewer headings if it would exceed the model's input limit.

    Raises:
        InputError: A chunk exceeds the input limit even without headings.
    """
    texts = [passage_text(title, chunk) for chunk in chunks]
    tokens = embedder.count_tokens(texts)
    for at, chunk in enumerate(chunks):
        if tokens[at] > embedder.max_tokens:
            texts[at], tokens[at] = _fitting(title, chunk, embedder)
    return texts, tokens


def _fitting(title: str, chunk: Chunk, embedder: Embedder) -> tuple[str, int]:
    lowest = dataclasses.replace(chunk, headings=chunk.headings[-1:])
    candidates = [passage_text(title, lowest), passage_text("", lowest), chunk.text]
    counts = embedder.count_tokens(candidates)
    for text, tokens in zip(candidates, counts, strict=True):
        if tokens <= embedder.max_tokens or len(text) == 1:
            return text, tokens
    raise InputError(
        f"A passage of '{chunk.document_id}' has {counts[-1]} tokens, and {embedder.name} reads {embedder.max_tokens}: "
        f"it would not see the end. Give the chunker a max_tokens of {embedder.max_tokens} or less."
    )
