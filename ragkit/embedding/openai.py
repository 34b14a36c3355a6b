"""Embeddings from a server."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ragkit.embedding.base import Kind, Vectors, unit_rows
from ragkit.errors import EmbeddingError

__all__ = ["OpenAIEmbedder"]


class OpenAIEmbedder:
    """Embeddings from any OpenAI-compatible server.

    Args:
        model: The model's name on that server.
        base_url: The server's address, ending in ``/v1``; None for OpenAI's own.
        api_key: The key; None takes OPENAI_API_KEY, and a placeholder for servers that need none.
        batch_size: Texts in one request.
        timeout_seconds: For one request.
        max_tokens: The longest text that the model reads.
        languages: ISO 639-1 codes that the model is good at; None means all.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        batch_size: int = 128,
        timeout_seconds: float = 60.0,
        max_tokens: int = 512,
        languages: frozenset[str] | None = None,
    ) -> None:
        self.name = f"openai/{model}"
        self.max_tokens = max_tokens
        self.languages = languages
        self._model = model
        self._base_url = base_url
        self._api_key = api_key
        self._batch_size = batch_size
        self._timeout_seconds = timeout_seconds
        self._dimension: int | None = None
        self._client: Any = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self._model!r}, base_url={self._base_url!r})"

    def _connect(self) -> Any:
        with self._lock:
            if self._client is None:
                import openai

                self._client = openai.OpenAI(
                    base_url=self._base_url,
                    api_key=self._api_key or os.environ.get("OPENAI_API_KEY") or "none",
                    timeout=self._timeout_seconds,
                )
            return self._client

    @property
    def dimension(self) -> int:
        if self._dimension is None:
            self._dimension = int(self.embed(["dimension"]).shape[1])
        return self._dimension

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        """See `Embedder.embed`. Raises `EmbeddingError` if the server fails or answers with something else."""
        import openai

        client = self._connect()
        rows: list[list[float]] = []
        try:
            for start in range(0, len(texts), self._batch_size):
                batch = list(texts[start : start + self._batch_size])
                answer = client.embeddings.create(model=self._model, input=batch, encoding_format="float")
                data = sorted(answer.data, key=lambda item: item.index)
                if len(data) != len(batch):
                    raise EmbeddingError(self.name, f"'{self.name}' gave {len(data)} vectors for {len(batch)} texts.")
                rows.extend(item.embedding for item in data)
        except openai.OpenAIError as error:
            raise EmbeddingError(
                self.name,
                f"The embedding server at {client.base_url} failed: {error}. Check that it runs, "
                f"that it has the model '{self._model}', and the API key.",
            ) from error
        except (AttributeError, TypeError, ValueError) as error:  # a 200 that is HTML, or JSON of another shape
            raise EmbeddingError(
                self.name,
                f"{client.base_url} does not answer as an OpenAI-compatible embedding server. "
                "Check base_url: it usually ends in /v1.",
            ) from error
        if not rows:
            return np.zeros((0, self._dimension or 0), dtype=np.float32)
        return unit_rows(np.asarray(rows, dtype=np.float32))

    def fingerprint(self, kind: Kind) -> str | None:
        # A server does not tell its model's revision: the same name at the same address has to do.
        return "\n".join((self.name, self._base_url or "", "unit"))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Estimate: the server's tokenizer is not known; three bytes a token is safe for Latin script."""
        return [max(1, len(text.encode()) // 3) for text in texts]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Estimate, as `count_tokens` does."""
        spans: list[tuple[int, int]] = []
        start = size = 0
        for at, character in enumerate(text, start=1):
            size += len(character.encode())
            if size >= 3:
                spans.append((start, at))
                start, size = at, 0
        return [*spans, (start, len(text))] if start < len(text) else spans
