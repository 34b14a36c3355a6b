"""Chat with a model on an OpenAI-compatible server: one reply, streamed, under one deadline.

A 200 can hold a web page, a JSON error, or a stream that just stops. Each becomes an `LLMError` that says so; what
goes wrong before that, `ragkit.model_server` explains.
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

_COUNTS = range(2**40)  # of tokens that can be meant


class ChatClient:
    """Streams replies from one model on one server. Safe to use from several threads.

    Args:
        model: The model's name on that server.
        base_url: The server's address; None takes OPENAI_BASE_URL, then OpenAI's own.
        api_key: None takes OPENAI_API_KEY if `base_url` is None too, else a placeholder.
        timeout_seconds: For one whole reply, retries included.
        max_retries: After a refused connection or request, never after one that the server may have worked on.
        temperature: None leaves it out.

    Attributes:
        base_url: The server's address, without credentials or query.
        temperature: As given.

    Raises:
        InputError: An address or key that cannot be one.
        LLMAuthenticationError: OpenAI's own server is meant, and there is no key.
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
        self._tells_usage: bool | None = None  # until a server has shown whether it can

    def __repr__(self) -> str:
        return f"ChatClient({self.model!r}, base_url={self.base_url!r})"

    def stream(
        self, messages: Sequence[Message], *, max_tokens: int, cancelled: Callable[[], bool] = never
    ) -> Generator[str, None, Usage | None]:
        """Send chat messages, and give the reply in pieces as they come.

        Args:
            messages: ``role`` and ``content`` each.
            max_tokens: The longest reply; one that reaches it ends with ``" […]"``.
            cancelled: Asked about twenty times a second; True closes the connection.

        Returns:
            What the server says that the call used, as the generator's value; None if it does not say.

        Raises:
            OperationCancelled: `cancelled` said so.
            LLMError: No reply, or not the whole of it; see `ragkit.model_server.ModelServer.stream`.
        """

        async def talk(client: AsyncOpenAI, pass_on: Callable[[str], None]) -> Usage | None:
            return await self._receive(client, messages, max_tokens, pass_on)

        return self._server.stream(talk, cancelled=cancelled)

    async def _receive(
        self, client: AsyncOpenAI, messages: Sequence[Message], max_tokens: int, pass_on: Callable[[str], None]
    ) -> Usage | None:
        # OpenAI's newer models refuse max_tokens; other servers may not know its new name.
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
        """Send the request; ask for the usage too, unless the server refuses to be asked."""
        import openai

        stream: AsyncStream[ChatCompletionChunk]
        known = self._tells_usage
        if known is not False:
            asking = {**options, "stream_options": {"include_usage": True}}
            try:
                stream = await client.chat.completions.create(model=self.model, stream=True, **asking)
                self._tells_usage = True
                return stream
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                if known:
                    raise  # it is something else that the server refuses
        stream = await client.chat.completions.create(model=self.model, stream=True, **options)
        self._tells_usage = False
        return stream

    async def _pieces(self, stream: AsyncStream[ChatCompletionChunk]) -> AsyncIterator[str | Usage]:
        kind = stream.response.headers.get("content-type", "")
        if "text/html" in kind:
            raise self._server.error(
                LLMResponseError,
                f"{self.base_url} answers with a web page, not as an OpenAI-compatible server. "
                "Check base_url: it usually ends in /v1.",
                billable=False,
            )
        if "application/json" in kind:  # not a stream: an error, or a server that only knows whole replies
            reply = json.loads(await stream.response.aread())
            yield self._whole_reply(reply)
            if usage := _usage(reply.get("usage")):
                yield usage
            return
        chunks = 0
        finish: str | None = None
        said_something = False
        async for chunk in stream:
            chunks += 1
            if usage := _usage(chunk.usage):
                yield usage
            for choice in chunk.choices or ():
                if text := _text(choice.delta.content):
                    said_something = True
                    yield text
                finish = choice.finish_reason or finish
        if finish is None:
            if chunks and not said_something:
                raise self._server.error(
                    LLMResponseError, f"{self.base_url} streams something that is not a reply. Is it OpenAI-compatible?"
                )
            raise self._server.cut()
        if finish == "content_filter":
            raise self._server.error(LLMResponseError, f"The content filter of {self.base_url} stopped the answer.")
        if not said_something:
            raise self._server.error(
                LLMResponseError,
                f"'{self.model}' at {self.base_url} ended its reply without a word ({finish}). "
                "A model that thinks first needs more room: raise max_tokens.",
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
    """Return what a message says. Thoughts are no part of it, where a server keeps them apart.

    That is in a field of their own (``reasoning``, ``reasoning_content``), or in parts of another type (Mistral).
    """
    if isinstance(content, list):
        return "".join(part["text"] for part in content if part["type"] == "text")
    return str(content or "")


def _usage(said: Any) -> Usage | None:
    """Read a server's usage, as an object or a dictionary; None unless it holds both counts."""
    known = said if isinstance(said, dict) else getattr(said, "__dict__", {})
    match known.get("prompt_tokens"), known.get("completion_tokens"):
        case (int(read), int(written)) if read in _COUNTS and written in _COUNTS:
            return Usage(int(read), int(written))
    return None


class OpenAILLM:
    """A model on any OpenAI-compatible server: OpenAI, Ollama, vLLM, llama.cpp, ...

    Args:
        model: The model's name on that server.
        base_url: The server's address, usually ending in ``/v1``; None takes OPENAI_BASE_URL, then OpenAI's own.
        api_key: The key. None takes OPENAI_API_KEY when `base_url` is None too, so that it is never sent to another
            server by accident; a local server that needs no key gets a placeholder.
        timeout_seconds: For one answer from start to end, retries included.
        max_retries: After a refused connection, a 429 or a server error, with growing pauses; the server's
            Retry-After is obeyed as far as `timeout_seconds` allows. What the server may have worked on, and may
            bill, is never retried: an answer that has begun, a connection that was lost, a gateway's time-out.
        max_tokens: The longest answer. One that reaches it ends with ``" […]"``.
        temperature: 0 gives the most repeatable answers; None leaves it out, for models that accept none.

    Raises:
        InputError: An address or key that cannot be one.
        LLMAuthenticationError: OpenAI's own server is meant, and there is no key.
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
        """Say what its answers depend on, for keys of caches. A server does not tell its model's revision."""
        return {
            "model": self.name,
            "base_url": self._client.base_url,
            "max_tokens": self.max_tokens,
            "temperature": self._client.temperature,
        }

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Generator[str, None, Usage | None]:
        """See `LLM.stream` and, for the usage, `ChatClient.stream`."""
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
