"""The `Embedder` protocol: texts in, unit vectors out.

ragkit has three embedders: `SentenceTransformerEmbedder` runs any sentence-transformers model (the default,
all-MiniLM-L6-v2, is installed with the package and needs no network), `OpenAIEmbedder` calls any OpenAI-compatible
server, and `HashEmbedder` needs no model.
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
    """The interface of an embedding model.

    Attributes:
        name: The model and its settings in one string. The index stores it: two embedders with the same name must
            produce the same vectors.
        dimension: The length of a vector.
        max_tokens: The model's input limit in tokens, excluding special tokens. The model ignores text beyond it.
        languages: ISO 639-1 codes of the languages that the model was trained for; None if it is multilingual.
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
            kind: What the texts are. Some models use different prompts for queries and passages.

        Returns:
            float32 array of shape (n, dimension); each row has L2 norm 1.

        Raises:
            EmbeddingError: The model failed.
        """
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text, excluding special tokens. Pass many texts at once: batches are fast."""
        ...

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Return the (start, end) character offsets of each token in the text, excluding special tokens."""
        ...

    def fingerprint(self, kind: Kind) -> str | None:
        """Identify everything besides the text that determines a vector: model, revision, prompt, precision, ...

        `ragkit.embedding.cache` uses it as part of the cache key.

        Returns:
            The fingerprint; None to disable caching, because vectors are cheap to compute or not reproducible.
        """
        ...


@contextlib.contextmanager
def embedding_errors(embedder: Embedder) -> Iterator[None]:
    """Convert any exception that an embedder raises to an `EmbeddingError`, including panics in native code."""
    try:
        yield
    except BaseException as error:
        if is_fatal(error) or isinstance(error, RagkitError):
            raise
        raise EmbeddingError(embedder.name, f"The embedder '{embedder.name}' raised {summary(error)}") from error


def unit_rows(vectors: Vectors) -> Vectors:
    """Scale rows to L2 norm 1. A zero row (no words) becomes the first unit vector, so that cosine stays defined."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    empty = lengths[:, 0] == 0
    vectors = (vectors / np.where(lengths == 0, 1, lengths)).astype(np.float32, copy=False)
    vectors[empty, 0] = 1.0
    return vectors
