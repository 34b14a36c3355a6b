"""An OpenAI-compatible server: its address and key, the connections to it, and its errors.

The `openai` package makes the requests. This module adds what it lacks, for chat and embeddings alike:

- One event loop in one thread runs all exchanges of the process, and one HTTP client keeps connections alive
  between them: a TLS handshake can take longer than an embedding.
- HTTP time-outs apply to each read, and openai retries, so a slow stream or a Retry-After could block a caller for
  minutes. A deadline ends the whole exchange.
- A blocked read cannot be interrupted. An exchange is therefore a task on the loop, and cancelling it closes its
  socket at once.
- A request whose answer was lost may be billed twice if it is repeated. Where that matters, a request is repeated
  only if no server can have processed it, and an error says whether its request may be billed.
- The API key appears in no message, no repr and no chained cause.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import dataclasses
import http.cookiejar
import os
import queue
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

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

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI

T = TypeVar("T")

Talk = Callable[["AsyncOpenAI", Callable[[str], None]], Coroutine[Any, Any, T]]
"""One exchange. Its arguments send requests, and pass on pieces of text as they arrive."""

_OPENAI_URL = "https://api.openai.com/v1"
_GATEWAY_TIMEOUTS = {504, 524}  # the server behind the gateway may still be processing the request
# Less than the 5 seconds after which uvicorn, llama.cpp and Node close an idle connection: a request sent while the
# server closes the connection would be lost, and may not be repeated.
_KEEP_ALIVE_SECONDS = 4.0
# If a server closes a connection while a request arrives, the error comes within one round trip, and the server has
# not read the request.
_CLOSING_SECONDS = 0.5
_LONGEST_EXCERPT = 300  # characters of a server's message that are shown


class ModelServer:
    """One model on one OpenAI-compatible server. Thread-safe; a forked child opens its own connections.

    Args:
        model: The model's name on that server.
        base_url: The server's address. None uses OPENAI_BASE_URL if set, else OpenAI's own server.
        api_key: The key. None uses OPENAI_API_KEY if `base_url` is None too, so that the key is never sent to another
            server by accident, else a placeholder.
        timeout_seconds: The time-out of each read, and the deadline of exchanges that have one.
        max_retries: How often to retry after a refused connection or request.
        ask_for_less: The setting that makes a reply shorter, for error messages: ``"max_tokens=..."``.
        if_too_long: What to do if the input is too long, for error messages: a sentence.

    Attributes:
        base_url: The server's address, without credentials or query.
        host: The server's host name.

    Raises:
        InputError: The address, key or time-out is invalid.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None,
        api_key: str | None,
        timeout_seconds: float,
        max_retries: int,
        ask_for_less: str,
        if_too_long: str,
    ) -> None:
        if timeout_seconds <= 0:
            raise InputError(f"timeout_seconds must be more than 0, not {timeout_seconds}.")
        self.model = model
        self._url = base_url or os.environ.get("OPENAI_BASE_URL") or _OPENAI_URL
        self.base_url = _without_credentials(self._url)
        self.host = urllib.parse.urlsplit(self._url).hostname or ""
        key = (api_key or (os.environ.get("OPENAI_API_KEY") if base_url is None else None) or "").strip()
        if not (key.isascii() and key.isprintable()):
            # The HTTP library would fail on such a key, with the key in its message.
            raise InputError("The API key contains invalid characters (line ends, accents). Copy it again.")
        self._has_key = bool(key)
        self._key = key or "no-key"
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._ask_for_less = ask_for_less
        self._if_too_long = if_too_long

    def require_key(self) -> None:
        """Raise `LLMAuthenticationError` if the server is OpenAI's own and there is no key."""
        if not self._has_key and self.host.endswith("openai.com"):
            raise self.error(
                LLMAuthenticationError,
                f"OpenAI's server at {self.base_url} requires an API key. Set OPENAI_API_KEY or give api_key=...; "
                "for a local server give base_url=..., for example 'http://localhost:11434/v1' for Ollama.",
                billable=False,
            )

    # --------------------------------------------------------------------------------- exchanges

    def stream(
        self,
        talk: Talk[T],
        *,
        has_deadline: bool = True,
        is_repeatable: bool = False,
        cancelled: Callable[[], bool] = never,
    ) -> Generator[str, None, T]:
        """Run an exchange, and yield its pieces of text as they arrive.

        Args:
            talk: The exchange.
            has_deadline: Whether the whole exchange, retries included, must end within `timeout_seconds`.
            is_repeatable: Whether to retry even a request that the server may have processed.
            cancelled: Polled about twenty times a second; True closes the connection.

        Returns:
            The result of `talk`, as the generator's value.

        Raises:
            OperationCancelled: `cancelled` returned True.
            LLMConnectionError: The connection was refused, impossible, or cut off before the end of the reply.
            LLMTimeoutError: The reply was not complete in time.
            LLMAuthenticationError: The server requires a key, or rejects this one.
            LLMRateLimitError: The server still answered 429 after the retries, or at the deadline.
            LLMResponseError: The server answered something else: no such model, a web page, an error, nothing.
        """
        import openai  # noqa: F401 - slow to import, so not on the event loop, which all exchanges share

        self.require_key()
        items: queue.SimpleQueue[str | _End[T]] = queue.SimpleQueue()
        ended = threading.Event()
        connections = _connections()
        exchange = _Exchange(is_repeatable=is_repeatable)

        async def run() -> None:
            try:
                items.put(_End(value=await self._talk(talk, connections, exchange, items.put, has_deadline)))
            except BaseException as error:  # re-raised in the calling thread
                items.put(_End(error=error))
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), connections.loop)
        # The task has its own deadline; this one is for a blocked event loop.
        deadline = time.monotonic() + self._timeout_seconds + 1 if has_deadline else float("inf")
        try:
            while True:
                item: str | _End[T] = ""
                with contextlib.suppress(queue.Empty):
                    item = items.get(timeout=POLL_SECONDS)
                if cancelled():
                    raise OperationCancelled("The answer was cancelled.")
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return item.value  # type: ignore[return-value]  # set if there is no error
                if item:
                    yield item
                elif time.monotonic() > deadline:
                    raise self.too_late()
        finally:
            future.cancel()
            if threading.get_ident() != connections.thread.ident:  # the garbage collector may run this in any thread
                ended.wait(timeout=1.0)

    def call(self, talk: Talk[T], *, has_deadline: bool = True, is_repeatable: bool = False) -> T:
        """Run an exchange that yields no text. Returns and raises as `stream` does."""
        exchange = self.stream(talk, has_deadline=has_deadline, is_repeatable=is_repeatable)
        while True:
            try:
                next(exchange)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]

    async def _talk(
        self,
        talk: Talk[T],
        connections: _Connections,
        exchange: _Exchange,
        put: Callable[[str], None],
        has_deadline: bool,
    ) -> T:
        import openai

        def pass_on(piece: str) -> None:
            exchange.begun = True
            put(piece)

        _exchange.set(exchange)  # each task has its own context
        try:
            with connections.in_use() as http_client:
                client = openai.AsyncOpenAI(
                    base_url=self._url,
                    api_key=self._key,
                    max_retries=self._max_retries,
                    timeout=self._timeout_seconds,
                    # A proxy cannot reach a server on this machine.
                    http_client=http_client(self.host not in {"localhost", "127.0.0.1", "::1"}),
                )
                async with asyncio.timeout(self._timeout_seconds if has_deadline else None):
                    return await talk(client, pass_on)
        except LLMError:
            raise
        except TimeoutError as error:
            is_limited = exchange.status == 429
            late = self._slow_down("still so at the deadline") if is_limited else self.too_late()
            late.billable = exchange.billable
            raise late from error
        except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
            # The last three: JSON of an unexpected shape, or not JSON at all.
            # A server may repeat the key in its message; then the cause must not be shown.
            failed = self._explain(error, begun=exchange.begun)
            failed.status, failed.billable = getattr(error, "status_code", None), exchange.billable
            raise failed from (None if self._key in str(error) else error)

    # ------------------------------------------------------------------------------------ errors

    def _explain(self, error: Exception, *, begun: bool) -> LLMError:
        """Translate an error of `openai`, or of parsing the reply. `begun`: part of the reply had arrived."""
        import openai

        message = self.quoted(getattr(error, "message", error))
        match error:
            case openai.APITimeoutError():
                return self.too_late()
            case openai.APIConnectionError() if begun:
                return self.cut()
            case openai.APIConnectionError():
                return self.error(
                    LLMConnectionError,
                    f"No model server can be reached at {self.base_url} "
                    f"({self.quoted(error.__cause__ or message)}). Start the server, or check base_url.",
                )
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return self.error(
                    LLMAuthenticationError,
                    f"{self.base_url} does not accept the API key (HTTP {error.status_code}). Give the right one "
                    f"with api_key=... The server says: {message}",
                )
            case openai.RateLimitError():
                return self._slow_down(message)
            case openai.NotFoundError():
                return self.error(
                    LLMResponseError,
                    f"{self.base_url} has no model '{self.model}', or is not the address of the API. Its models are "
                    f"listed at {self.base_url}/models; base_url usually ends in /v1. The server says: {message}",
                )
            case openai.APIStatusError():
                hint = ""
                if "context" in message.lower():
                    hint = f" {self._if_too_long}"
                elif getattr(error, "param", None) == "temperature":
                    hint = " Give temperature=None: this model does not accept a temperature."
                return self.error(
                    LLMResponseError,
                    f"'{self.model}' at {self.base_url} failed with HTTP {error.status_code}. "
                    f"The server says: {message}{hint}",
                )
            case openai.APIError():
                return self.error(
                    LLMResponseError, f"'{self.model}' at {self.base_url} failed. The server says: {message}"
                )
            case _:
                return self.error(
                    LLMResponseError,
                    f"{self.base_url} does not answer as an OpenAI-compatible server ({message}). "
                    "Check base_url: it usually ends in /v1.",
                )

    def too_late(self) -> LLMError:
        """Return the error for a missed deadline."""
        return self.error(
            LLMTimeoutError,
            f"'{self.model}' at {self.base_url} had not finished after {self._timeout_seconds:g} seconds. "
            f"Allow more time with timeout_seconds=..., or request less with {self._ask_for_less}",
        )

    def cut(self) -> LLMError:
        """Return the error for an answer that was cut off."""
        return self.error(
            LLMConnectionError,
            f"{self.base_url} closed the connection in the middle of the answer. Ask again; "
            "if it happens again, check the server's log.",
        )

    def error(self, kind: type[LLMError], message: str, *, billable: bool = True) -> LLMError:
        """Return an error of this model and server."""
        return kind(message, model=self.model, base_url=self.base_url, billable=billable)

    def quoted(self, message: object) -> str:
        """Return the beginning of a server's message, on one line and without the key."""
        words = " ".join(str(message).split()).replace(self._key, "***")
        return words if len(words) <= _LONGEST_EXCERPT else f"{words[:_LONGEST_EXCERPT]}…"

    def _slow_down(self, message: str) -> LLMError:
        """Return the error for a rate limit."""
        return self.error(
            LLMRateLimitError,
            f"{self.base_url} limits the rate of requests, or the account's quota is used up ({message}). "
            "Wait a little, or check the account. max_retries=... and timeout_seconds=... set how long ragkit waits.",
        )


def _without_credentials(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise InputError(
            "base_url must be an address that begins with http:// or https://, for example 'http://localhost:11434/v1'."
        )
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl().rstrip("/")


# ----------------------------------------------------------------------------------- connections


@dataclasses.dataclass(frozen=True, slots=True)
class _End(Generic[T]):
    """How an exchange ended."""

    value: T | None = None
    error: BaseException | None = None


@dataclasses.dataclass(slots=True)
class _Exchange:
    """The state of an exchange, as of its last request.

    Attributes:
        is_repeatable: Whether openai may retry all requests that it considers retryable.
        status: The HTTP status of the answer.
        billable: Whether the server may have processed the request.
        begun: Whether a piece of the reply has arrived.
    """

    is_repeatable: bool
    status: int | None = None
    billable: bool = False
    begun: bool = False


_exchange: contextvars.ContextVar[_Exchange] = contextvars.ContextVar("exchange")


class _Connections:
    """The event loop that runs exchanges, and its HTTP clients: one for each set of proxy and certificate settings.

    Everything except the constructor and `close_idle` must be called from the loop's own thread.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="ragkit-model-servers", daemon=True)
        self.thread.start()
        self._clients: dict[tuple[object, ...], httpx2.AsyncClient] = {}
        self._exchanges = 0

    @contextlib.contextmanager
    def in_use(self) -> Generator[Callable[[bool], httpx2.AsyncClient]]:
        """Yield the function that returns the client for a server. Clients stay open until the block ends."""
        self._exchanges += 1
        try:
            yield self._client
        finally:
            self._exchanges -= 1

    def _client(self, trust_env: bool) -> httpx2.AsyncClient:
        """Return the client, creating it if needed. `trust_env`: use the environment's proxies and certificates."""
        key: tuple[object, ...] = (trust_env,)
        if trust_env:  # the user may set a proxy between two calls
            names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
            key += (*sorted(urllib.request.getproxies().items()), *map(os.environ.get, names))
        if key not in self._clients:
            self._clients[key] = _http_client(trust_env)
        return self._clients[key]

    def close_idle(self) -> None:
        """Close every connection, unless an exchange is running. The next exchange opens new ones."""

        async def close() -> None:
            if not self._exchanges:
                clients, self._clients = self._clients, {}
                for client in clients.values():
                    await client.aclose()

        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(close(), self.loop).result(timeout=1.0)


def _http_client(trust_env: bool) -> httpx2.AsyncClient:
    import httpx2
    import openai

    class Client(openai.DefaultAsyncHttpxClient):
        async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
            exchange = _exchange.get()
            exchange.status, exchange.billable = None, True
            try:
                response = await self._on_open_connection(request, options)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                exchange.billable = False
                raise
            except httpx2.TransportError as error:
                if exchange.is_repeatable:
                    raise
                raise openai.APIConnectionError(request=request) from error  # openai does not retry this one
            exchange.status = response.status_code
            exchange.billable = response.is_success or exchange.status in _GATEWAY_TIMEOUTS
            if exchange.billable and not exchange.is_repeatable:
                response.headers["x-should-retry"] = "false"
            return response

        async def _on_open_connection(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
            """Send a request, and retry if the server was just closing the connection, as llama.cpp often does."""
            is_new = False

            async def trace(event: str, details: object) -> None:
                nonlocal is_new
                is_new = is_new or event.startswith("connection.connect")

            request.extensions = {**request.extensions, "trace": trace}
            while True:
                sent = time.monotonic()
                try:
                    return await super().send(request, **options)
                except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError):
                    if is_new or time.monotonic() - sent > _CLOSING_SECONDS:
                        raise

    return Client(
        trust_env=trust_env,
        limits=httpx2.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=_KEEP_ALIVE_SECONDS),
        # Callers with different keys share this client, and must not share cookies.
        cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=())),
    )


_lock = threading.Lock()
_shared: _Connections | None = None
_inherited: list[_Connections | None] = []


def _connections() -> _Connections:
    global _shared
    with _lock:
        if _shared is None:
            _shared = _Connections()
        return _shared


def _reset_after_fork() -> None:
    """Drop the connections in a forked child: it has no loop thread, and must not close the parent's sockets."""
    global _lock, _shared
    _lock = threading.Lock()
    _inherited.append(_shared)  # keeps them from being garbage-collected, which would close them
    _shared = None


def _close() -> None:
    if _shared is not None:
        _shared.close_idle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
atexit.register(_close)
