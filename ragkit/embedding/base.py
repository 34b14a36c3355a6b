"""Texts to unit vectors.

An `Embedder` is anything with a name, a dimension and `embed`. Three come with ragkit: any
sentence-transformers model (the default, all-MiniLM-L6-v2, is installed with the package and needs
no network), any OpenAI-compatible server (`ragkit.embedding.openai`), and `HashEmbedder`, which needs no model at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ragkit.cancellation import is_fatal
from ragkit.errors import EmbeddingError, RagkitError, summary

Vectors = npt.NDArray[np.float32]
Kind = Literal["passage", "query"]


@runtime_checkable
class Embedder(Protocol):
    """What ragkit needs of an embedding model.

    Attributes:
        name: Model and settings in one string. It is stored with the index: two embedders with the
            same name must give the same vectors.
        dimension: Length of a vector.
        max_tokens: The longest text that the model reads, special tokens not counted; it is blind to the rest.
        languages: ISO 639-1 codes that the model was trained for; None if it is multilingual.
    """

    @property
    def name(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def languages(self) -> frozenset[str] | None: ...

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        """Embed texts.

        Args:
            texts: n texts.
            kind: Some models want another prompt for questions than for passages.

        Returns:
            float32 array of shape (n, dimension); each row has length 1.

        Raises:
            EmbeddingError: The model failed.
        """
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count each text's tokens, special tokens not counted. Fast for batches."""
        ...

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Return where each token stands: (start, end) offsets into the text, special tokens left out."""
        ...

    def fingerprint(self, kind: Kind) -> str | None:
        """Name everything that a vector depends on but the text: model, revision, prompt, precision, ...

        `ragkit.embedding.cache` keeps vectors under it. None: they are not worth keeping, or not known to be the same.
        """
        ...


@contextlib.contextmanager
def embedding_errors(embedder: Embedder) -> Iterator[None]:
    """Raise an `EmbeddingError` for whatever an embedder raises, native code's panics included."""
    try:
        yield
    except BaseException as error:
        if is_fatal(error) or isinstance(error, RagkitError):
            raise
        raise EmbeddingError(embedder.name, f"The embedder '{embedder.name}' raised {summary(error)}") from error


def unit_rows(vectors: Vectors) -> Vectors:
    """Scale rows to length 1; a zero row (no words) becomes the first axis, so that cosine stays defined."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    empty = lengths[:, 0] == 0
    vectors = (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)
    vectors[empty, 0] = 1.0
    return vectors
