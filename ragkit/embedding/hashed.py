"""An embedder that needs no model: it hashes words into vectors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from ragkit.embedding.base import Kind, Vectors, unit_rows
from ragkit.errors import require_count

_WORD_OR_SIGN = re.compile(r"\w+|[^\w\s]")


class HashEmbedder:
    """Embed texts deterministically by feature hashing: signed word hashes, square roots of counts.

    Use it in tests, in experiments, and as a baseline. Texts that share words get similar vectors; it captures
    nothing else. See Weinberger et al. (2009), "Feature Hashing for Large Scale Multitask Learning".

    Args:
        dimension: The length of a vector.
    """

    languages: frozenset[str] | None = None

    def __init__(self, *, dimension: int = 256) -> None:
        require_count("dimension", dimension)
        self.dimension = dimension
        self.max_tokens = 1_000_000
        self.name = f"ragkit/hash-{dimension}"

    def __repr__(self) -> str:
        return f"HashEmbedder(dimension={self.dimension})"

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in re.findall(r"\w+", text.lower()):
                hashed = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
                vectors[row, (hashed >> 1) % self.dimension] += 1.0 if hashed & 1 else -1.0
        return unit_rows(np.sign(vectors) * np.sqrt(np.abs(vectors)))

    def fingerprint(self, kind: Kind) -> str | None:
        return None  # computing a vector is as fast as a cache lookup

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(_WORD_OR_SIGN.findall(text)) for text in texts]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in _WORD_OR_SIGN.finditer(text)]
