"""Opening a socket on the server, and saying what is in the way when it does not open."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import msgspec
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Origin

from ragkit.errors import ServerConnectionError
from ragkit.live.discovery import Server
from ragkit.live.messages import Error, Hello, Welcome, decode_hub_message, encode

CLOSE_SECONDS = 0.5


class RefusedError(ServerConnectionError):
    """The server is there, and trying again soon will not help."""


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception | str:
        # A redirect leads to a login page; the token must not follow it to another host.
        return exc


async def dial(
    server: Server, path: str, *, right: str, origin: str | None = None, timeout_seconds: float = 10.0
) -> ClientConnection:
    """Open a WebSocket on a server.

    Args:
        server: Where.
        path: Under the server's base address; may have a query.
        right: What the user must be allowed to do there, for the message of a refusal.
        origin: The Origin header, which pages send and programs do not.
        timeout_seconds: For the handshake.

    Raises:
        RefusedError: The server does not let us in, or has no hub.
        ServerConnectionError: It answers, but not as a hub does now.
        OSError, websockets.exceptions.WebSocketException: The network's own troubles, time-outs among them.
    """
    try:
        return await _Connect(
            server.ws_url(path),
            origin=Origin(origin) if origin is not None else None,
            additional_headers=server.headers,
            proxy=None if server.is_loopback else True,
            compression=None,
            open_timeout=timeout_seconds,
            close_timeout=CLOSE_SECONDS,
            max_size=16 * 2**20,
        )
    except InvalidStatus as problem:
        raise _explain(server, problem.response.status_code, right) from problem


@contextlib.asynccontextmanager
async def closing(socket: ClientConnection) -> AsyncIterator[None]:
    """Close the socket at the end, whatever state it is in."""
    try:
        yield
    finally:
        with contextlib.suppress(AttributeError):  # websockets aborts a transport that has just lost its event loop
            await socket.close()


async def open_socket(
    server: Server, hello: Hello, *, timeout_seconds: float = 10.0
) -> tuple[ClientConnection, Welcome]:
    """Connect to ``/api/v1/engine`` and say hello.

    Args:
        server: Where.
        hello: Who we are.
        timeout_seconds: For the handshake, and again for the hub's welcome.

    Raises:
        RefusedError, ServerConnectionError, OSError, websockets.exceptions.WebSocketException: See `dial`.
    """
    socket = await dial(server, "api/v1/engine", right="write", timeout_seconds=timeout_seconds)
    try:
        await socket.send(encode(hello), text=True)
        async with asyncio.timeout(timeout_seconds):
            welcome = decode_hub_message(await socket.recv())
        if isinstance(welcome, Error):
            raise RefusedError(server.url, f"{welcome.content.message} ({welcome.content.code})")
        if not isinstance(welcome, Welcome):
            raise ServerConnectionError(server.url, f"it began with {type(welcome).__name__}, not with a welcome.")
    except msgspec.MsgspecError as problem:
        await socket.close()
        raise ServerConnectionError(server.url, f"what answers there is no ragkit hub: {problem}") from problem
    except BaseException:
        await socket.close()
        raise
    return socket, welcome


def _explain(server: Server, status: int, right: str) -> ServerConnectionError:
    if status in (401, 403) or 300 <= status < 400:
        token = "without a token" if server.token is None else "with its token"
        return RefusedError(
            server.url,
            f"HTTP {status} {token} (found by {server.source}). Set RAGKIT_URL and RAGKIT_TOKEN to the server's "
            f"address and token ('jupyter server list' shows them); your user needs the right to {right}.",
        )
    if status == 404:
        return RefusedError(
            server.url,
            "HTTP 404: this server runs without ragkit. Install ragkit where the server runs and restart it "
            "('jupyter server extension list' should name ragkit_server).",
        )
    return ServerConnectionError(server.url, f"HTTP {status}.")
