"""An embedder that calls an OpenAI-compatible server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ragkit.embedding.base import Kind, Vectors, unit_rows
from ragkit.errors import EmbeddingError, LLMError
from ragkit.model_server import ModelServer, Talk

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_MAX_RETRIES = 2  # embedding a text twice costs little, so every transient error is retried


class OpenAIEmbedder:
    """Embed texts with any OpenAI-compatible server.

    Args:
        model: The model's name on the server.
        base_url: The server's URL, ending in ``/v1``; None uses OPENAI_BASE_URL, or OpenAI's own URL.
        api_key: The API key. None uses OPENAI_API_KEY, but only if `base_url` is None too, so that the key is never
            sent to another server by accident; other servers get a placeholder.
        batch_size: The number of texts per request.
        timeout_seconds: The time-out of one request.
        max_tokens: The model's input limit in tokens.
        languages: ISO 639-1 codes of the languages that the model supports; None means all.

    Raises:
        InputError: `base_url` or `api_key` is malformed.
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
        self._batch_size = batch_size
        self._dimension: int | None = None
        self._server = ModelServer(
            model,
            base_url=base_url,
            api_key=api_key,
            timeout_seconds=timeout_seconds,
            max_retries=_MAX_RETRIES,
            ask_for_less="batch_size=...",
            if_too_long="If the texts are too long for the model, set max_tokens=... to its input limit.",
        )

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self._model!r}, base_url={self._server.base_url!r})"

    @property
    def dimension(self) -> int:
        if self._dimension is None:
            self._dimension = int(self.embed(["dimension"]).shape[1])
        return self._dimension

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        """See `Embedder.embed`. Raises `EmbeddingError` if the server fails or its response is invalid."""
        rows: list[list[float]] = []
        for start in range(0, len(texts), self._batch_size):
            batch = list(texts[start : start + self._batch_size])
            try:
                found = self._server.call(self._request(batch), has_deadline=False, is_repeatable=True)
            except LLMError as error:
                raise EmbeddingError(self.name, str(error)) from error
            if len(found) != len(batch):
                raise EmbeddingError(self.name, f"'{self.name}' returned {len(found)} vectors for {len(batch)} texts.")
            rows.extend(found)
        if not rows:
            return np.zeros((0, self._dimension or 0), dtype=np.float32)
        return unit_rows(np.asarray(rows, dtype=np.float32))

    def _request(self, batch: list[str]) -> Talk[list[list[float]]]:
        async def talk(client: AsyncOpenAI, pass_on: Callable[[str], None]) -> list[list[float]]:
            answer = await client.embeddings.create(model=self._model, input=batch, encoding_format="float")
            return [item.embedding for item in sorted(answer.data, key=lambda item: item.index)]

        return talk

    def fingerprint(self, kind: Kind) -> str | None:
        # A server does not report its model's revision, so the name and the address must do.
        return "\n".join((self.name, self._base_url or "", "unit"))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Estimate the token counts. The tokenizer is unknown; three bytes per token is safe for Latin script."""
        return [max(1, len(text.encode()) // 3) for text in texts]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        """Estimate the token spans, as `count_tokens` does."""
        spans: list[tuple[int, int]] = []
        start = size = 0
        for at, character in enumerate(text, start=1):
            size += len(character.encode())
            if size >= 3:
                spans.append((start, at))
                start, size = at, 0
        return [*spans, (start, len(text))] if start < len(text) else spans
