"""Opens a WebSocket on the server, and explains why if that fails."""

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
    """The server refuses the connection, and retrying soon will not help."""


class _Connect(connect):
    def process_redirect(self, exc: Exception) -> Exception | str:
        # A redirect goes to a login page; do not follow it, because that would send the token to another host.
        return exc


async def dial(
    server: Server, path: str, *, right: str, origin: str | None = None, timeout_seconds: float = 10.0
) -> ClientConnection:
    """Open a WebSocket on a server.

    Args:
        server: The Jupyter server.
        path: The path under the server's base URL; may have a query string.
        right: The permission that the user needs, for the message of a refusal.
        origin: The Origin header, which browsers send and programs do not.
        timeout_seconds: Time limit for the handshake.

    Raises:
        RefusedError: The server refuses the connection or has no hub.
        ServerConnectionError: The server answers with another HTTP error.
        OSError, websockets.exceptions.WebSocketException: A network error, including a time-out.
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
    """Close the socket at the end of the block, in any state."""
    try:
        yield
    finally:
        with contextlib.suppress(AttributeError):  # raised by websockets if the transport has just lost its event loop
            await socket.close()


async def open_socket(
    server: Server, hello: Hello, *, timeout_seconds: float = 10.0
) -> tuple[ClientConnection, Welcome]:
    """Connect to ``/api/v1/engine`` and send the `Hello` message.

    Args:
        server: The Jupyter server.
        hello: The first message.
        timeout_seconds: Time limit for the handshake, and again for the hub's `Welcome`.

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
            raise ServerConnectionError(server.url, f"its first message is {type(welcome).__name__}, not Welcome.")
    except msgspec.MsgspecError as problem:
        await socket.close()
        raise ServerConnectionError(server.url, f"the program there is not a ragkit hub: {problem}") from problem
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
