"""Chat completions from an OpenAI-compatible server: one streamed reply, under one deadline.

A response with status 200 can contain a web page, a JSON error, or a stream that stops early. Each becomes an
`LLMError`. `ragkit.model_server` handles connection and HTTP errors.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ragkit.cancellation import never
from ragkit.errors import LLMResponseError
from ragkit.llm.base import Message, Usage, drained
from ragkit.llm.prompt import Prompt
from ragkit.model_server import ModelServer

if TYPE_CHECKING:
    from openai import AsyncOpenAI, AsyncStream
    from openai.types.chat import ChatCompletionChunk

_COUNTS = range(2**40)  # plausible token counts


class ChatClient:
    """Stream replies from one model on one server. Thread-safe.

    Args:
        model: The model's name on that server.
        base_url: The server's address. None uses OPENAI_BASE_URL if set, else OpenAI's own server.
        api_key: None uses OPENAI_API_KEY if `base_url` is None too, else a placeholder.
        timeout_seconds: For one whole reply, retries included.
        max_retries: After a refused connection or request, never after one that the server may have processed.
        temperature: None omits it from requests.

    Attributes:
        base_url: The server's address, without credentials or query.
        temperature: As given.

    Raises:
        InputError: The address or key is invalid.
        LLMAuthenticationError: The server is OpenAI's own and there is no key.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None,
        api_key: str | None,
        timeout_seconds: float,
        max_retries: int,
        temperature: float | None,
    ) -> None:
        self._server = ModelServer(
            model,
            base_url=base_url,
            api_key=api_key,
            timeout_seconds=timeout_seconds,
            max_retries=max_retries,
            ask_for_less="max_tokens=...",
            if_too_long="If the passages are too long for the model, ask with a smaller k.",
        )
        self._server.require_key()
        self.model = model
        self.base_url = self._server.base_url
        self.temperature = temperature
        self._reports_usage: bool | None = None  # unknown until the first reply

    def __repr__(self) -> str:
        return f"ChatClient({self.model!r}, base_url={self.base_url!r})"

    def stream(
        self, messages: Sequence[Message], *, max_tokens: int, cancelled: Callable[[], bool] = never
    ) -> Generator[str, None, Usage | None]:
        """Send chat messages, and yield the reply in pieces as they arrive.

        Args:
            messages: Each has ``role`` and ``content``.
            max_tokens: Maximum length of the reply. A reply that reaches it ends with ``" […]"``.
            cancelled: Polled about twenty times a second; True closes the connection.

        Returns:
            The usage reported by the server, as the generator's value; None if the server reports none.

        Raises:
            OperationCancelled: `cancelled` returned True.
            LLMError: The reply is missing or incomplete; see `ragkit.model_server.ModelServer.stream`.
        """

        async def talk(client: AsyncOpenAI, pass_on: Callable[[str], None]) -> Usage | None:
            return await self._receive(client, messages, max_tokens, pass_on)

        return self._server.stream(talk, cancelled=cancelled)

    async def _receive(
        self, client: AsyncOpenAI, messages: Sequence[Message], max_tokens: int, pass_on: Callable[[str], None]
    ) -> Usage | None:
        # OpenAI's newer models reject max_tokens; other servers may not support its new name.
        limit = "max_completion_tokens" if self._server.host.endswith("openai.com") else "max_tokens"
        options: dict[str, Any] = {limit: max_tokens, "messages": [dict(message) for message in messages]}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        usage: Usage | None = None
        async with await self._begin(client, options) as stream:
            async for piece in self._pieces(stream):
                if isinstance(piece, Usage):
                    usage = piece
                else:
                    pass_on(piece)
        return usage

    async def _begin(self, client: AsyncOpenAI, options: Mapping[str, Any]) -> AsyncStream[ChatCompletionChunk]:
        """Send the request. Request the usage too, unless the server rejects that option."""
        import openai

        stream: AsyncStream[ChatCompletionChunk]
        known = self._reports_usage
        if known is not False:
            with_usage = {**options, "stream_options": {"include_usage": True}}
            try:
                stream = await client.chat.completions.create(model=self.model, stream=True, **with_usage)
                self._reports_usage = True
                return stream
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if known:
                    raise  # the server rejects something else
        stream = await client.chat.completions.create(model=self.model, stream=True, **options)
        self._reports_usage = False
        return stream

    async def _pieces(self, stream: AsyncStream[ChatCompletionChunk]) -> AsyncIterator[str | Usage]:
        kind = stream.response.headers.get("content-type", "")
        if "text/html" in kind:
            raise self._server.error(
                LLMResponseError,
                f"{self.base_url} answers with a web page, not like an OpenAI-compatible server. "
                "Check base_url: it usually ends in /v1.",
                billable=False,
            )
        if "application/json" in kind:  # not a stream: an error, or a server that does not stream
            reply = json.loads(await stream.response.aread())
            yield self._whole_reply(reply)
            if usage := _usage(reply.get("usage")):
                yield usage
            return
        chunks = 0
        finish: str | None = None
        has_text = False
        async for chunk in stream:
            chunks += 1
            if usage := _usage(chunk.usage):
                yield usage
            for choice in chunk.choices or ():
                if text := _text(choice.delta.content):
                    has_text = True
                    yield text
                finish = choice.finish_reason or finish
        if finish is None:
            if chunks and not has_text:
                raise self._server.error(
                    LLMResponseError, f"{self.base_url} streams something that is not a reply. Is it OpenAI-compatible?"
                )
            raise self._server.cut()
        if finish == "content_filter":
            raise self._server.error(LLMResponseError, f"The content filter of {self.base_url} stopped the answer.")
        if not has_text:
            raise self._server.error(
                LLMResponseError,
                f"'{self.model}' at {self.base_url} returned an empty reply ({finish}). "
                "If it is a reasoning model, raise max_tokens.",
            )
        if finish == "length":
            yield " […]"

    def _whole_reply(self, reply: Any) -> str:
        if reply.get("choices") and (text := _text(reply["choices"][0]["message"]["content"])):
            return text
        said = reply.get("error") or reply
        raise self._server.error(
            LLMResponseError,
            f"'{self.model}' at {self.base_url} did not answer. "
            f"The server says: {self._server.quoted(said.get('message', said) if isinstance(said, dict) else said)}",
            billable=bool(reply.get("choices")),
        )


def _text(content: Any) -> str:
    """Return a message's text, without thoughts that the server separates.

    Those are in another field (``reasoning``, ``reasoning_content``), or in parts of another type (Mistral).
    """
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    return str(content or "")


def _usage(reported: Any) -> Usage | None:
    """Parse the usage reported by a server, an object or a dictionary; None unless it has both counts."""
    fields = reported if isinstance(reported, dict) else getattr(reported, "__dict__", {})
    match fields.get("prompt_tokens"), fields.get("completion_tokens"):
        case (int(read), int(written)) if read in _COUNTS and written in _COUNTS:
            return Usage(int(read), int(written))
    return None


class OpenAILLM:
    """A model on any OpenAI-compatible server: OpenAI, Ollama, vLLM, llama.cpp, ...

    Args:
        model: The model's name on that server.
        base_url: The server's address, usually ending in ``/v1``. None uses OPENAI_BASE_URL if set, else OpenAI's own
            server.
        api_key: The key. None uses OPENAI_API_KEY if `base_url` is None too, so that the key is never sent to another
            server by accident. A local server that needs no key gets a placeholder.
        timeout_seconds: For one whole answer, retries included.
        max_retries: Retries after a refused connection, a 429 or a server error, with back-off. The server's
            Retry-After is respected within `timeout_seconds`. A request that the server may have processed, and may
            bill, is never retried: an answer that has begun, a connection that was lost, a gateway's time-out.
        max_tokens: Maximum length of an answer. An answer that reaches it ends with ``" […]"``.
        temperature: 0 gives the most reproducible answers. None omits it, for models that do not accept it.

    Raises:
        InputError: The address or key is invalid.
        LLMAuthenticationError: The server is OpenAI's own and there is no key.
    """

    generative = True

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key: str | None = None,
        timeout_seconds: float = 60.0,
        max_retries: int = 2,
        max_tokens: int = 1024,
        temperature: float | None = 0.0,
    ) -> None:
        self.name = model
        self.max_tokens = max_tokens
        self._client = ChatClient(
            model,
            base_url=base_url,
            api_key=api_key,
            timeout_seconds=timeout_seconds,
            max_retries=max_retries,
            temperature=temperature,
        )

    def __repr__(self) -> str:
        return f"OpenAILLM({self.name!r}, base_url={self._client.base_url!r})"

    def identity(self) -> dict[str, object]:
        """Return what its answers depend on, for cache keys. Servers do not report a model's revision."""
        return {
            "model": self.name,
            "base_url": self._client.base_url,
            "max_tokens": self.max_tokens,
            "temperature": self._client.temperature,
        }

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Generator[str, None, Usage | None]:
        """See `LLM.stream`, and `ChatClient.stream` for the usage."""
        return self.reply(prompt.messages(), max_tokens=self.max_tokens, cancelled=cancelled)

    def reply(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> Generator[str, None, Usage | None]:
        """Reply to chat messages in pieces; see `ChatClient.stream`."""
        return self._client.stream(messages, max_tokens=max_tokens, cancelled=cancelled)

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> str:
        """See `GenerativeLLM.complete`."""
        return drained(self.reply(messages, max_tokens=max_tokens, cancelled=cancelled))[0]
