"""Embedding in the workers of an executor, wherever they are."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Sequence

from ragkit.embedding.base import Embedder, Vectors
from ragkit.errors import InputError

__all__ = ["embed_there", "portable"]


def portable(embedder: Embedder) -> bytes:
    """Pickle an embedder for `embed_there`.

    Raises:
        InputError: It cannot be sent to another process.
    """
    try:
        return pickle.dumps(embedder)
    except Exception as error:  # pickle calls code of the embedder's own
        raise InputError(
            f"{embedder!r} cannot be sent to an executor: {error}. Give it a __getstate__ without its model, or leave "
            "executor out."
        ) from error


@functools.lru_cache(maxsize=4)
def _unpickled(embedder: bytes) -> Embedder:
    found: Embedder = pickle.loads(embedder)
    return found


def embed_there(embedder: bytes, texts: Sequence[str]) -> Vectors:
    """Embed passages in a worker of an executor; a worker loads its model once."""
    return _unpickled(embedder).embed(texts)
