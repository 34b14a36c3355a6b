"""What is embedded and searched for a chunk: its text under where it stands."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ragkit.chunking.base import Chunk
from ragkit.embedding.base import Embedder
from ragkit.errors import InputError


def passage_text(title: str, chunk: Chunk) -> str:
    """What is embedded and searched for a chunk: where it stands (title and headings), then its text.

    A passage "It defaults to 0.75." is found by its heading; the headings are not part of the text that
    is quoted.
    """
    context = " > ".join(dict.fromkeys(part for part in (title, *chunk.headings) if part and part not in chunk.text))
    return f"{context[:200]}\n{chunk.text}" if context else chunk.text


def embedded_texts(title: str, chunks: Sequence[Chunk], embedder: Embedder) -> tuple[list[str], list[int]]:
    """Return what the model reads of a document's chunks, and how many tokens each is.

    That is `passage_text`, with only as much of where a chunk stands as the model has room for.

    Raises:
        InputError: A chunk by itself is longer than what the model reads.
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
