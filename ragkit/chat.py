"""A conversation with an OpenAI-compatible server: one reply, streamed, under one deadline.

The `openai` package does the talking. What it leaves to its caller is done here:

- Its time-out is for each read, and it retries: a server that dribbles, or a Retry-After, can hold a caller for
  minutes. Here `timeout_seconds` ends the whole exchange.
- A blocked read cannot be interrupted, so the exchange runs as a task on an event loop of its own, in a thread of
  its own. Cancelling that task closes the socket at once, in whatever state it is.
- A 200 can hold a web page, a JSON error, or a stream that just stops. Each becomes an `LLMError` that says so.
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
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ragkit.errors import (
    CancelledError,
    InputError,
    LLMAuthenticationError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMResponseError,
    LLMTimeoutError,
)

if TYPE_CHECKING:
    import ssl

    from openai import AsyncStream
    from openai.types.chat import ChatCompletionChunk

__all__ = ["ChatClient", "Message", "never"]

Message = Mapping[str, str]

_OPENAI_URL = "https://api.openai.com/v1"
_POLL_SECONDS = 0.05


def never() -> bool:
    """Return False: the `cancelled` of work that nobody cancels."""
    return False


class ChatClient:
    """Streams replies from one model on one server. Safe to use from several threads.

    Args:
        model: The model's name on that server.
        base_url: The server's address; None takes OPENAI_BASE_URL, then OpenAI's own.
        api_key: None takes OPENAI_API_KEY if `base_url` is None too, else a placeholder.
        timeout_seconds: For one whole reply, retries included.
        max_retries: Before a reply has begun.
        temperature: None leaves it out.

    Attributes:
        base_url: The server's address, without credentials or query.

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
            raise self._error(
                LLMAuthenticationError,
                f"OpenAI's server at {self.base_url} wants an API key. Set OPENAI_API_KEY or give api_key=...; "
                "for a local server give base_url=..., for example 'http://localhost:11434/v1' for Ollama.",
            )
        if not (key.isascii() and key.isprintable()):
            # Such a key fails deep inside the HTTP library, with the key in the message.
            raise InputError("The API key holds characters that no key has (line ends, accents). Copy it again.")
        self._key = key or "no-key"
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._temperature = temperature
        self._ssl_context: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"ChatClient({self.model!r}, base_url={self.base_url!r})"

    def stream(
        self, messages: Sequence[Message], *, max_tokens: int, cancelled: Callable[[], bool] = never
    ) -> Iterator[str]:
        """Send chat messages, and give the reply in pieces as they come.

        Args:
            messages: ``role`` and ``content`` each.
            max_tokens: The longest reply; one that reaches it ends with ``" […]"``.
            cancelled: Asked about twenty times a second; True closes the connection.

        Raises:
            CancelledError: `cancelled` said so.
            LLMConnectionError: Refused, unreachable, or cut before the reply's end.
            LLMTimeoutError: No reply, or not the whole of it, within `timeout_seconds`.
            LLMAuthenticationError: The server wants another key.
            LLMRateLimitError: The server still said 429 after the retries, or when time was up.
            LLMResponseError: The server answered something else: no such model, a web page, an error, nothing.
        """
        items: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
        loop = asyncio.new_event_loop()
        task = loop.create_task(self._receive(messages, max_tokens, items.put))

        def run() -> None:
            try:
                loop.run_until_complete(task)
                items.put(None)
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
                item: str | BaseException | None = ""
                with contextlib.suppress(queue.Empty):
                    item = items.get(timeout=_POLL_SECONDS)
                if cancelled():
                    raise CancelledError("The answer was cancelled.")
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                if item:
                    yield item
                elif time.monotonic() > deadline:
                    raise self._too_late()
        finally:
            with contextlib.suppress(RuntimeError):  # the loop has closed: there is nothing left to cancel
                loop.call_soon_threadsafe(task.cancel)
            worker.join(timeout=1.0)

    async def _receive(self, messages: Sequence[Message], max_tokens: int, put: Callable[[str], None]) -> None:
        import httpx2
        import openai

        statuses: list[int] = []
        begun = False

        async def note_status(response: httpx2.Response) -> None:
            statuses.append(response.status_code)

        if self._ssl_context is None:
            self._ssl_context = httpx2.create_ssl_context()  # 40 ms, so only once
        client = openai.AsyncOpenAI(
            base_url=self._url,
            api_key=self._key,
            max_retries=self._max_retries,
            timeout=self._timeout_seconds,
            http_client=openai.DefaultAsyncHttpxClient(
                timeout=httpx2.Timeout(self._timeout_seconds, connect=min(10.0, self._timeout_seconds)),
                verify=self._ssl_context,
                event_hooks={"response": [note_status]},
                # A proxy for the outside world cannot reach a server on this machine.
                trust_env=self._host not in {"localhost", "127.0.0.1", "::1"},
            ),
        )
        # OpenAI's newer models refuse max_tokens; other servers may not know its new name.
        limit = "max_completion_tokens" if self._host.endswith("openai.com") else "max_tokens"
        options: dict[str, Any] = {limit: max_tokens, "messages": [dict(message) for message in messages]}
        if self._temperature is not None:
            options["temperature"] = self._temperature
        try:
            async with asyncio.timeout(self._timeout_seconds), client:
                stream: AsyncStream[ChatCompletionChunk] = await client.chat.completions.create(
                    model=self.model, stream=True, **options
                )
                async with stream:
                    async for piece in self._pieces(stream):
                        begun = True
                        put(piece)
        except LLMError:
            raise
        except TimeoutError as error:
            if statuses and statuses[-1] == 429:
                raise self._slow_down("it still did when time was up") from error
            raise self._too_late() from error
        except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
            # The last three: JSON of another shape than an OpenAI-compatible server's, or not JSON at all.
            # A server may repeat the key in what it says; then the cause must not be shown.
            raise self._explain(error, begun=begun) from (None if self._key in str(error) else error)

    async def _pieces(self, stream: AsyncStream[ChatCompletionChunk]) -> AsyncIterator[str]:
        kind = stream.response.headers.get("content-type", "")
        if "text/html" in kind:
            raise self._error(
                LLMResponseError,
                f"{self.base_url} answers with a web page, not as an OpenAI-compatible server. "
                "Check base_url: it usually ends in /v1.",
            )
        if "application/json" in kind:  # not a stream: an error, or a server that only knows whole replies
            yield self._whole_reply(await stream.response.aread())
            return
        chunks = 0
        finish: str | None = None
        said_something = False
        async for chunk in stream:
            chunks += 1
            for choice in chunk.choices or ():
                if choice.delta.content:
                    said_something = True
                    yield choice.delta.content
                finish = choice.finish_reason or finish
        if finish is None:
            if chunks and not said_something:
                raise self._error(
                    LLMResponseError, f"{self.base_url} streams something that is not a reply. Is it OpenAI-compatible?"
                )
            raise self._cut()
        if finish == "content_filter":
            raise self._error(LLMResponseError, f"The content filter of {self.base_url} stopped the answer.")
        if not said_something:
            raise self._error(
                LLMResponseError,
                f"'{self.model}' at {self.base_url} ended its reply without a word ({finish}). "
                "A model that thinks first needs more room: raise max_tokens.",
            )
        if finish == "length":
            yield " […]"

    def _whole_reply(self, body: bytes) -> str:
        reply = json.loads(body)
        if reply.get("choices") and (content := reply["choices"][0]["message"]["content"]):
            return str(content)
        said = reply.get("error") or reply
        raise self._error(
            LLMResponseError,
            f"'{self.model}' at {self.base_url} did not answer. "
            f"The server says: {self._quoted(said.get('message', said) if isinstance(said, dict) else said)}",
        )

    def _explain(self, error: Exception, *, begun: bool) -> LLMError:
        import openai

        said = self._quoted(getattr(error, "message", error))
        match error:
            case openai.APITimeoutError():
                return self._too_late()
            case openai.APIConnectionError() if begun:
                return self._cut()
            case openai.APIConnectionError():
                return self._error(
                    LLMConnectionError,
                    f"No language model server can be reached at {self.base_url} "
                    f"({self._quoted(error.__cause__ or said)}). Start it, or check base_url.",
                )
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return self._error(
                    LLMAuthenticationError,
                    f"{self.base_url} does not accept the API key (HTTP {error.status_code}). Give the right one "
                    f"with api_key=... The server says: {said}",
                )
            case openai.RateLimitError():
                return self._slow_down(said)
            case openai.NotFoundError():
                return self._error(
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
                return self._error(
                    LLMResponseError,
                    f"'{self.model}' at {self.base_url} failed with HTTP {error.status_code}. "
                    f"The server says: {said}{hint}",
                )
            case openai.APIError():
                return self._error(
                    LLMResponseError, f"'{self.model}' at {self.base_url} failed. The server says: {said}"
                )
            case _:
                return self._error(
                    LLMResponseError,
                    f"{self.base_url} does not answer as an OpenAI-compatible server ({said}). "
                    "Check base_url: it usually ends in /v1.",
                )

    def _too_late(self) -> LLMError:
        return self._error(
            LLMTimeoutError,
            f"'{self.model}' at {self.base_url} had not finished after {self._timeout_seconds:g} seconds. "
            "Give it more with timeout_seconds=..., or ask for less with max_tokens=...",
        )

    def _slow_down(self, said: str) -> LLMError:
        return self._error(
            LLMRateLimitError,
            f"{self.base_url} asks to slow down, or the account's quota is used up ({said}). "
            "Wait a little, or look at the account; max_retries=... and timeout_seconds=... say how long ragkit waits.",
        )

    def _cut(self) -> LLMError:
        return self._error(
            LLMConnectionError,
            f"{self.base_url} closed the connection in the middle of the answer. Ask again; "
            "if it happens again, look at the server's log.",
        )

    def _error(self, kind: type[LLMError], message: str) -> LLMError:
        return kind(message, model=self.model, base_url=self.base_url)

    def _quoted(self, said: object) -> str:
        words = " ".join(str(said).split()).replace(self._key, "***")
        return words if len(words) <= 300 else f"{words[:300]}…"


def _without_credentials(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InputError(
            "base_url must be an address that begins with http:// or https://, for example 'http://localhost:11434/v1'."
        )
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")
