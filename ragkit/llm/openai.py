"""A conversation with an OpenAI-compatible server: one reply, streamed, under one deadline.

The `openai` package does the talking. What it leaves to its caller is done here:

- Its time-out is for each read, and it retries: a server that dribbles, or a Retry-After, can hold a caller for
  minutes. Here `timeout_seconds` ends the whole exchange.
- A blocked read cannot be interrupted, so the exchange runs as a task on an event loop of its own, in a thread of
  its own. Cancelling that task closes the socket at once, in whatever state it is.
- A 200 can hold a web page, a JSON error, or a stream that just stops. Each becomes an `LLMError` that says so.
- It repeats a request whose answer was lost, which a server may bill twice. Here only one that no server can have
  worked on is repeated, and an error says whether its request may be billed.
- The API key is in no message, no repr and no chained cause.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import threading
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ragkit.cancellation import POLL_SECONDS, never
from ragkit.errors import (
    InputError,
    LLMAuthenticationError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMResponseError,
    LLMTimeoutError,
    OperationCancelled,
)
from ragkit.llm.base import Message, Usage, drained
from ragkit.llm.prompt import Prompt

if TYPE_CHECKING:
    import ssl

    import httpx2
    from openai import AsyncOpenAI, AsyncStream
    from openai.types.chat import ChatCompletionChunk

__all__ = ["ChatClient", "ChatErrors", "OpenAILLM"]

_OPENAI_URL = "https://api.openai.com/v1"
_COUNTS = range(2**40)  # of tokens that can be meant
_GATEWAY_TIMEOUTS = {504, 524}  # the server behind the gateway may still be at work


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
        if timeout_seconds <= 0:
            raise InputError(f"timeout_seconds must be more than 0, not {timeout_seconds}.")
        self.model = model
        self._url = base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI_URL
        self.base_url = _without_credentials(self._url)
        self._host = urllib.parse.urlsplit(self._url).hostname or ""
        key = (api_key or (os.environ.get("OPENAI_API_KEY") if base_url is None else None) or "").strip()
        if not key and self._host.endswith("openai.com"):
            raise LLMAuthenticationError(
                f"OpenAI's server at {self.base_url} wants an API key. Set OPENAI_API_KEY or give api_key=...; "
                "for a local server give base_url=..., for example 'http://localhost:11434/v1' for Ollama.",
                model=model,
                base_url=self.base_url,
                billable=False,
            )
        if not (key.isascii() and key.isprintable()):
            # Such a key fails deep inside the HTTP library, with the key in the message.
            raise InputError("The API key holds characters that no key has (line ends, accents). Copy it again.")
        self._key = key or "no-key"
        self._errors = ChatErrors(model, self.base_url, key=self._key, timeout_seconds=timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self.temperature = temperature
        self._ssl_context: ssl.SSLContext | None = None
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
            LLMConnectionError: Refused, unreachable, or cut before the reply's end.
            LLMTimeoutError: No reply, or not the whole of it, within `timeout_seconds`.
            LLMAuthenticationError: The server wants another key.
            LLMRateLimitError: The server still said 429 after the retries, or when time was up.
            LLMResponseError: The server answered something else: no such model, a web page, an error, nothing.
        """
        items: queue.SimpleQueue[str | BaseException | Usage | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._receive(messages, max_tokens, items.put))

        def run() -> None:
            try:
                items.put(loop.run_until_complete(task))
            except BaseException as error:  # handed to the thread that waits for it, whatever it is
                items.put(error)
            finally:
                loop.run_until_complete(loop.shutdown_asyncgens())
                loop.close()

        worker = threading.Thread(target=run, name="ragkit-chat", daemon=True)
        worker.start()
        # The task keeps the deadline itself; this one is for what cannot be cancelled, such as looking up a name.
        deadline = time.monotonic() + self._timeout_seconds + 1
        try:
            while True:
                item: str | BaseException | Usage | None = ""
                with contextlib.suppress(queue.Empty):
                    item = items.get(timeout=POLL_SECONDS)
                if cancelled():
                    raise OperationCancelled("The answer was cancelled.")
                if item is None or isinstance(item, Usage):
                    return item
                if isinstance(item, BaseException):
                    raise item
                if item:
                    yield item
                elif time.monotonic() > deadline:
                    raise self._errors.too_late()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has closed: there is nothing left to cancel
                loop.call_soon_threadsafe(task.cancel)
            worker.join(timeout=1.0)

    async def _receive(self, messages: Sequence[Message], max_tokens: int, put: Callable[[str], None]) -> Usage | None:
        import httpx2
        import openai

        status: int | None = None
        billable = begun = False
        usage: Usage | None = None

        class Client(openai.DefaultAsyncHttpxClient):
            async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
                nonlocal status, billable
                status, billable = None, True
                try:
                    response = await super().send(request, **options)
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    billable = False
                    raise
                except httpx2.TransportError as error:
                    raise openai.APIConnectionError(request=request) from error  # which openai does not repeat
                status = response.status_code
                billable = response.is_success or status in _GATEWAY_TIMEOUTS
                if billable:
                    response.headers["x-should-retry"] = "false"
                return response

        if self._ssl_context is None:
            self._ssl_context = httpx2.create_ssl_context()  # 40 ms, so only once
        client = openai.AsyncOpenAI(
            base_url=self._url,
            api_key=self._key,
            max_retries=self._max_retries,
            timeout=self._timeout_seconds,
            http_client=Client(
                timeout=httpx2.Timeout(self._timeout_seconds, connect=min(10.0, self._timeout_seconds)),
                verify=self._ssl_context,
                # A proxy for the outside world cannot reach a server on this machine.
                trust_env=self._host not in {"localhost", "127.0.0.1", "::1"},
            ),
        )
        # OpenAI's newer models refuse max_tokens; other servers may not know its new name.
        limit = "max_completion_tokens" if self._host.endswith("openai.com") else "max_tokens"
        options: dict[str, Any] = {limit: max_tokens, "messages": [dict(message) for message in messages]}
        if self.temperature is not None:
            options["temperature"] = self.temperature
        try:
            async with asyncio.timeout(self._timeout_seconds), client, await self._begin(client, options) as stream:
                async for piece in self._pieces(stream):
                    if isinstance(piece, Usage):
                        usage = piece
                    else:
                        begun = True
                        put(piece)
                return usage
        except LLMError:
            raise
        except TimeoutError as error:
            late = self._errors.slow_down("it still did when time was up") if status == 429 else self._errors.too_late()
            late.billable = billable
            raise late from error
        except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
            # The last three: JSON of another shape than an OpenAI-compatible server's, or not JSON at all.
            # A server may repeat the key in what it says; then the cause must not be shown.
            failed = self._errors.explain(error, begun=begun)
            failed.status, failed.billable = getattr(error, "status_code", None), billable
            raise failed from (None if self._key in str(error) else error)

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
            raise self._errors.error(
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
                if choice.delta.content:
                    said_something = True
                    yield choice.delta.content
                finish = choice.finish_reason or finish
        if finish is None:
            if chunks and not said_something:
                raise self._errors.error(
                    LLMResponseError, f"{self.base_url} streams something that is not a reply. Is it OpenAI-compatible?"
                )
            raise self._errors.cut()
        if finish == "content_filter":
            raise self._errors.error(LLMResponseError, f"The content filter of {self.base_url} stopped the answer.")
        if not said_something:
            raise self._errors.error(
                LLMResponseError,
                f"'{self.model}' at {self.base_url} ended its reply without a word ({finish}). "
                "A model that thinks first needs more room: raise max_tokens.",
            )
        if finish == "length":
            yield " […]"

    def _whole_reply(self, reply: Any) -> str:
        if reply.get("choices") and (content := reply["choices"][0]["message"]["content"]):
            return str(content)
        said = reply.get("error") or reply
        raise self._errors.error(
            LLMResponseError,
            f"'{self.model}' at {self.base_url} did not answer. "
            f"The server says: {self._errors.quoted(said.get('message', said) if isinstance(said, dict) else said)}",
            billable=bool(reply.get("choices")),
        )


def _usage(said: Any) -> Usage | None:
    """Read a server's usage, as an object or a dictionary; None unless it holds both counts."""
    known = said if isinstance(said, dict) else getattr(said, "__dict__", {})
    match known.get("prompt_tokens"), known.get("completion_tokens"):
        case (int(read), int(written)) if read in _COUNTS and written in _COUNTS:
            return Usage(int(read), int(written))
    return None


def _without_credentials(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InputError(
            "base_url must be an address that begins with http:// or https://, for example 'http://localhost:11434/v1'."
        )
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")


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
        """See `LLM.stream` and, for the usage and every error, `ChatClient.stream`."""
        return self.reply(prompt.messages(), max_tokens=self.max_tokens, cancelled=cancelled)

    def reply(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> Generator[str, None, Usage | None]:
        """Reply to chat messages in pieces; see `ChatClient.stream`."""
        return self._client.stream(messages, max_tokens=max_tokens, cancelled=cancelled)

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> str:
        """See `GenerativeLLM.complete` and, for every error, `ChatClient.stream`."""
        return drained(self.reply(messages, max_tokens=max_tokens, cancelled=cancelled))[0]


class ChatErrors:
    """Makes the errors of one model on one server.

    Args:
        model: The model's name.
        base_url: The server's address, without credentials.
        key: What must not be shown, although servers repeat it.
        timeout_seconds: How long an answer may take.
    """

    def __init__(self, model: str, base_url: str, *, key: str, timeout_seconds: float) -> None:
        self.model = model
        self.base_url = base_url
        self._key = key
        self._timeout_seconds = timeout_seconds

    def explain(self, error: Exception, *, begun: bool) -> LLMError:
        """Say what an error of `openai` means, or one from reading what is no reply; `begun` if a part had come."""
        import openai

        said = self.quoted(getattr(error, "message", error))
        match error:
            case openai.APITimeoutError():
                return self.too_late()
            case openai.APIConnectionError() if begun:
                return self.cut()
            case openai.APIConnectionError():
                return self.error(
                    LLMConnectionError,
                    f"No language model server can be reached at {self.base_url} "
                    f"({self.quoted(error.__cause__ or said)}). Start it, or check base_url.",
                )
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return self.error(
                    LLMAuthenticationError,
                    f"{self.base_url} does not accept the API key (HTTP {error.status_code}). Give the right one "
                    f"with api_key=... The server says: {said}",
                )
            case openai.RateLimitError():
                return self.slow_down(said)
            case openai.NotFoundError():
                return self.error(
                    LLMResponseError,
                    f"{self.base_url} has no model '{self.model}', or is not the server's API. See what it has at "
                    f"{self.base_url}/models; base_url usually ends in /v1. The server says: {said}",
                )
            case openai.APIStatusError():
                hint = ""
                if "context" in said.lower():
                    hint = " If the passages are too long for the model, ask with a smaller k."
                elif getattr(error, "param", None) == "temperature":
                    hint = " Give temperature=None for a model that accepts none."
                return self.error(
                    LLMResponseError,
                    f"'{self.model}' at {self.base_url} failed with HTTP {error.status_code}. "
                    f"The server says: {said}{hint}",
                )
            case openai.APIError():
                return self.error(
                    LLMResponseError, f"'{self.model}' at {self.base_url} failed. The server says: {said}"
                )
            case _:
                return self.error(
                    LLMResponseError,
                    f"{self.base_url} does not answer as an OpenAI-compatible server ({said}). "
                    "Check base_url: it usually ends in /v1.",
                )

    def too_late(self) -> LLMError:
        """Time was up."""
        return self.error(
            LLMTimeoutError,
            f"'{self.model}' at {self.base_url} had not finished after {self._timeout_seconds:g} seconds. "
            "Give it more with timeout_seconds=..., or ask for less with max_tokens=...",
        )

    def slow_down(self, said: str) -> LLMError:
        """The server wants fewer requests."""
        return self.error(
            LLMRateLimitError,
            f"{self.base_url} asks to slow down, or the account's quota is used up ({said}). "
            "Wait a little, or look at the account; max_retries=... and timeout_seconds=... say how long ragkit waits.",
        )

    def cut(self) -> LLMError:
        """The answer stops before its end."""
        return self.error(
            LLMConnectionError,
            f"{self.base_url} closed the connection in the middle of the answer. Ask again; "
            "if it happens again, look at the server's log.",
        )

    def error(self, kind: type[LLMError], message: str, *, billable: bool = True) -> LLMError:
        """Make an error of this model and server."""
        return kind(message, model=self.model, base_url=self.base_url, billable=billable)

    def quoted(self, said: object) -> str:
        """Return the beginning of what a server said, on one line and without the key."""
        words = " ".join(str(said).split()).replace(self._key, "***")
        return words if len(words) <= 300 else f"{words[:300]}…"
