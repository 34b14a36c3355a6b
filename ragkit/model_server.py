"""An OpenAI-compatible server: its address and key, the connections to it, and what its errors mean.

The `openai` package does the talking. What it leaves to its caller is done here, once for chat and embeddings:

- One event loop in one thread carries every exchange of the process, and one HTTP client keeps connections alive
  between them: a handshake for each call would cost more than many an embedding.
- A time-out of HTTP is for each read, and openai retries: a server that dribbles, or a Retry-After, can hold a caller
  for minutes. A deadline ends the whole exchange.
- A blocked read cannot be interrupted. An exchange is a task on the loop: cancelling it closes its socket at once, in
  whatever state it is.
- A request whose answer was lost may be billed twice if it is repeated. Where that matters, only one that no server
  can have worked on is repeated, and an error says whether its request may be billed.
- The API key is in no message, no repr and no chained cause.
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
"""One exchange: what it is given sends requests, and passes on pieces of text as they come."""

_OPENAI_URL = "https://api.openai.com/v1"
_GATEWAY_TIMEOUTS = {504, 524}  # the server behind the gateway may still be at work
# Less than the 5 seconds after which uvicorn, llama.cpp and Node close an idle connection: a request that meets the
# closing would be lost, and may not be repeated.
_KEEP_ALIVE_SECONDS = 4.0
# A server that closes a connection as a request comes in says so within one round trip, and has not read the request.
_CLOSING_SECONDS = 0.5
_LONGEST_EXCERPT = 300  # characters of what a server says that are shown


class ModelServer:
    """One model on one OpenAI-compatible server. Safe to use from several threads; a forked child connects again.

    Args:
        model: The model's name on that server.
        base_url: The server's address; None takes OPENAI_BASE_URL, then OpenAI's own.
        api_key: None takes OPENAI_API_KEY if `base_url` is None too, so that it is never sent to another server by
            accident, else a placeholder.
        timeout_seconds: Of each read, and the deadline of exchanges that have one.
        max_retries: After a refused connection or request.
        ask_for_less: What makes a reply shorter, for errors: ``"max_tokens=..."``.
        if_too_long: What to do where the input is too long, for errors: a sentence.

    Attributes:
        base_url: The server's address, without credentials or query.
        host: Its host.

    Raises:
        InputError: An address, key or time that cannot be one.
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
            # Such a key fails deep inside the HTTP library, with the key in the message.
            raise InputError("The API key holds characters that no key has (line ends, accents). Copy it again.")
        self._has_key = bool(key)
        self._key = key or "no-key"
        self._timeout_seconds = timeout_seconds
        self._max_retries = max_retries
        self._ask_for_less = ask_for_less
        self._if_too_long = if_too_long

    def require_key(self) -> None:
        """Raise `LLMAuthenticationError` if OpenAI's own server is meant, and there is no key."""
        if not self._has_key and self.host.endswith("openai.com"):
            raise self.error(
                LLMAuthenticationError,
                f"OpenAI's server at {self.base_url} wants an API key. Set OPENAI_API_KEY or give api_key=...; "
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
        """Have an exchange, and give the pieces that it passes on as they come.

        Args:
            talk: The exchange.
            has_deadline: Whether the whole of it must end within `timeout_seconds`, retries included.
            is_repeatable: Whether a request that the server may have worked on is repeated, too.
            cancelled: Asked about twenty times a second; True closes the connection.

        Returns:
            What `talk` returns, as the generator's value.

        Raises:
            OperationCancelled: `cancelled` said so.
            LLMConnectionError: Refused, unreachable, or cut before the reply's end.
            LLMTimeoutError: No reply, or not the whole of it, in time.
            LLMAuthenticationError: The server wants a key, or another one.
            LLMRateLimitError: The server still said 429 after the retries, or when time was up.
            LLMResponseError: The server answered something else: no such model, a web page, an error, nothing.
        """
        import openai  # noqa: F401 - here, where it may take its second: the loop is everybody's

        self.require_key()
        items: queue.SimpleQueue[str | _End[T]] = queue.SimpleQueue()
        ended = threading.Event()
        connections = _connections()
        exchange = _Exchange(is_repeatable=is_repeatable)

        async def run() -> None:
            try:
                items.put(_End(value=await self._talk(talk, connections, exchange, items.put, has_deadline)))
            except BaseException as error:  # handed to the thread that waits for it, whatever it is
                items.put(_End(error=error))
            finally:
                ended.set()

        future = asyncio.run_coroutine_threadsafe(run(), connections.loop)
        # The task keeps the deadline itself; this one is for a loop that is held up.
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
                    return item.value  # type: ignore[return-value]  # there is a value where there is no error
                if item:
                    yield item
                elif time.monotonic() > deadline:
                    raise self.too_late()
        finally:
            future.cancel()
            if threading.get_ident() != connections.thread.ident:  # a garbage collector may run anywhere
                ended.wait(timeout=1.0)

    def call(self, talk: Talk[T], *, has_deadline: bool = True, is_repeatable: bool = False) -> T:
        """Have an exchange that passes nothing on. Returns and raises as `stream` does."""
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

        _exchange.set(exchange)  # a task has a context of its own
        try:
            with connections.in_use() as http_client:
                client = openai.AsyncOpenAI(
                    base_url=self._url,
                    api_key=self._key,
                    max_retries=self._max_retries,
                    timeout=self._timeout_seconds,
                    # A proxy for the outside world cannot reach a server on this machine.
                    http_client=http_client(self.host not in {"localhost", "127.0.0.1", "::1"}),
                )
                async with asyncio.timeout(self._timeout_seconds if has_deadline else None):
                    return await talk(client, pass_on)
        except LLMError:
            raise
        except TimeoutError as error:
            is_limited = exchange.status == 429
            late = self._slow_down("it still did when time was up") if is_limited else self.too_late()
            late.billable = exchange.billable
            raise late from error
        except (openai.OpenAIError, AttributeError, TypeError, ValueError) as error:
            # The last three: JSON of another shape than an OpenAI-compatible server's, or not JSON at all.
            # A server may repeat the key in what it says; then the cause must not be shown.
            failed = self._explain(error, begun=exchange.begun)
            failed.status, failed.billable = getattr(error, "status_code", None), exchange.billable
            raise failed from (None if self._key in str(error) else error)

    # ------------------------------------------------------------------------------------ errors

    def _explain(self, error: Exception, *, begun: bool) -> LLMError:
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
                    f"No model server can be reached at {self.base_url} "
                    f"({self.quoted(error.__cause__ or said)}). Start it, or check base_url.",
                )
            case openai.AuthenticationError() | openai.PermissionDeniedError():
                return self.error(
                    LLMAuthenticationError,
                    f"{self.base_url} does not accept the API key (HTTP {error.status_code}). Give the right one "
                    f"with api_key=... The server says: {said}",
                )
            case openai.RateLimitError():
                return self._slow_down(said)
            case openai.NotFoundError():
                return self.error(
                    LLMResponseError,
                    f"{self.base_url} has no model '{self.model}', or is not the server's API. See what it has at "
                    f"{self.base_url}/models; base_url usually ends in /v1. The server says: {said}",
                )
            case openai.APIStatusError():
                hint = ""
                if "context" in said.lower():
                    hint = f" {self._if_too_long}"
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
            f"Give it more with timeout_seconds=..., or ask for less with {self._ask_for_less}",
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
        return words if len(words) <= _LONGEST_EXCERPT else f"{words[:_LONGEST_EXCERPT]}…"

    def _slow_down(self, said: str) -> LLMError:
        """The server wants fewer requests."""
        return self.error(
            LLMRateLimitError,
            f"{self.base_url} asks to slow down, or the account's quota is used up ({said}). "
            "Wait a little, or look at the account; max_retries=... and timeout_seconds=... say how long ragkit waits.",
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
    """What is known of an exchange so far; its last request counts.

    Attributes:
        is_repeatable: Whether openai may repeat whatever it thinks worth it.
        status: What HTTP status the server answered with.
        billable: Whether the server may have worked on the request.
        begun: Whether a piece of the reply has come.
    """

    is_repeatable: bool
    status: int | None = None
    billable: bool = False
    begun: bool = False


_exchange: contextvars.ContextVar[_Exchange] = contextvars.ContextVar("exchange")


class _Connections:
    """The event loop that carries exchanges, and the HTTP clients on it: one for each state of the environment.

    All but the constructor and `close_idle` is for the loop's own thread.
    """

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="ragkit-model-servers", daemon=True)
        self.thread.start()
        self._clients: dict[tuple[object, ...], httpx2.AsyncClient] = {}
        self._exchanges = 0

    @contextlib.contextmanager
    def in_use(self) -> Generator[Callable[[bool], httpx2.AsyncClient]]:
        """Give what finds the client for a server, and keep clients open meanwhile."""
        self._exchanges += 1
        try:
            yield self._client
        finally:
            self._exchanges -= 1

    def _client(self, trust_env: bool) -> httpx2.AsyncClient:
        """Find the client, or make it; `trust_env` is whether the environment's proxies and certificates count."""
        key: tuple[object, ...] = (trust_env,)
        if trust_env:  # a notebook may set a proxy between two calls
            names = ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE")
            key += (*sorted(urllib.request.getproxies().items()), *map(os.environ.get, names))
        if key not in self._clients:
            self._clients[key] = _http_client(trust_env)
        return self._clients[key]

    def close_idle(self) -> None:
        """Close every connection, unless an exchange is under way; the next one opens others."""

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
                raise openai.APIConnectionError(request=request) from error  # which openai does not repeat
            exchange.status = response.status_code
            exchange.billable = response.is_success or exchange.status in _GATEWAY_TIMEOUTS
            if exchange.billable and not exchange.is_repeatable:
                response.headers["x-should-retry"] = "false"
            return response

        async def _on_open_connection(self, request: httpx2.Request, options: dict[str, Any]) -> httpx2.Response:
            """Send a request, and again if the server was closing the connection just then, as llama.cpp often is."""
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
        # Callers with different keys share this client, and must not share a session.
        cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=())),
    )


_lock = threading.Lock()
_shared: _Connections | None = None
_of_the_parent: list[_Connections | None] = []


def _connections() -> _Connections:
    global _shared
    with _lock:
        if _shared is None:
            _shared = _Connections()
        return _shared


def _forget() -> None:
    """In a forked child: the thread is not there, and the sockets are the parent's. Not even to be closed."""
    global _lock, _shared
    _lock = threading.Lock()
    _of_the_parent.append(_shared)
    _shared = None


def _close() -> None:
    if _shared is not None:
        _shared.close_idle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
atexit.register(_close)
