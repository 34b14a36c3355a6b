"""Embeddings from a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ragkit.embedding.base import Kind, Vectors, unit_rows
from ragkit.errors import EmbeddingError, LLMError
from ragkit.model_server import ModelServer, Talk

if TYPE_CHECKING:
    from openai import AsyncOpenAI

_MAX_RETRIES = 2  # the same text twice costs little, so that whatever can pass is tried again


class OpenAIEmbedder:
    """Embeddings from any OpenAI-compatible server.

    Args:
        model: The model's name on that server.
        base_url: The server's address, ending in ``/v1``; None takes OPENAI_BASE_URL, then OpenAI's own.
        api_key: The key. None takes OPENAI_API_KEY when `base_url` is None too, so that it is never sent to another
            server by accident; a local server that needs no key gets a placeholder.
        batch_size: Texts in one request.
        timeout_seconds: For one request.
        max_tokens: The longest text that the model reads.
        languages: ISO 639-1 codes that the model is good at; None means all.

    Raises:
        InputError: An address or key that cannot be one.
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
            if_too_long="If the texts are too long for the model, say what it reads with max_tokens=...",
        )

    def __repr__(self) -> str:
        return f"OpenAIEmbedder({self._model!r}, base_url={self._server.base_url!r})"

    @property
    def dimension(self) -> int:
        if self._dimension is None:
            self._dimension = int(self.embed(["dimension"]).shape[1])
        return self._dimension

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        """See `Embedder.embed`. Raises `EmbeddingError` if the server fails or answers with something else."""
        rows: list[list[float]] = []
        for start in range(0, len(texts), self._batch_size):
            batch = list(texts[start : start + self._batch_size])
            try:
                found = self._server.call(self._request(batch), has_deadline=False, is_repeatable=True)
            except LLMError as error:
                raise EmbeddingError(self.name, str(error)) from error
            if len(found) != len(batch):
                raise EmbeddingError(self.name, f"'{self.name}' gave {len(found)} vectors for {len(batch)} texts.")
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
