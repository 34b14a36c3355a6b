"""The interfaces that the hub depends on: sockets, an event loop, a thread, a child process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar


class Transport(Protocol):
    """A socket. Its methods do not block."""

    def write(self, data: bytes) -> bool:
        """Write whole frames.

        Returns:
            True if the kernel has accepted all bytes. If False, the rest is buffered, and
            `WebSocketManager.drained` is called when it has been written.

        Raises:
            Exception: Any exception; the hub then drops the connection.
        """
        ...

    def close(self, code: int, reason: str) -> None:
        """Send a close frame after what has been written."""
        ...


class SessionSocket:
    """The socket of a session. ``blocked``: nothing can be written now, or at all if it is ``closing``."""

    __slots__ = ("blocked", "closing", "transport", "write")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.write = transport.write
        self.blocked = False
        self.closing = False


Result = TypeVar("Result")


class Thread(Protocol):
    """The methods of `ragkit_server.history.worker.Worker` that the hub uses."""

    def submit(self, work: Callable[[], Result], done: Callable[[Result | BaseException], object]) -> None: ...
    def stop(self) -> None: ...


class Timer(Protocol):
    """The result of `Timers.call_later`."""

    def cancel(self) -> None: ...


class Timers(Protocol):
    """The methods of an event loop that the hub uses."""

    def time(self) -> float: ...
    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object: ...
    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer: ...


class RunningLoop:
    """`Timers` that use the running event loop, so that a hub can be created before its loop."""

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object:
        return asyncio.get_running_loop().call_soon(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback, *args)


class Child(Protocol):
    """The engine process that the server can start."""

    @property
    def index(self) -> str:
        """The index that it serves; "" if none is configured."""
        ...

    def start(self) -> str | None:
        """Start it unless it runs; return the reason if it cannot be started now."""
        ...

    def offered(self) -> None:
        """Note that an engine was offered."""
        ...
