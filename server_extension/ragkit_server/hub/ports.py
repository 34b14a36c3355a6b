"""What the hub asks of the outside: sockets, an event loop, a thread, a child process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar


class Transport(Protocol):
    """A socket, as the hub sees it. Neither method blocks."""

    def write(self, data: bytes) -> bool:
        """Write whole frames.

        Returns:
            True if the kernel has taken them all; False if the rest waits, in which case
            `WebSocketManager.drained` is called once it has gone.

        Raises:
            Exception: Any; the connection is then given up.
        """
        ...

    def close(self, code: int, reason: str) -> None:
        """Send a close frame after what has been written."""
        ...


class SessionSocket:
    """A session with its socket. ``blocked``: nothing can be written now, or ever again (``closing``)."""

    __slots__ = ("blocked", "closing", "transport", "write")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.write = transport.write
        self.blocked = False
        self.closing = False


Result = TypeVar("Result")


class Thread(Protocol):
    """As much of `ragkit_server.history.worker.Worker` as is needed here."""

    def submit(self, work: Callable[[], Result], done: Callable[[Result | BaseException], object]) -> None: ...
    def stop(self) -> None: ...


class Timer(Protocol):
    """What `Timers.call_later` returns."""

    def cancel(self) -> None: ...


class Timers(Protocol):
    """As much of an event loop as the hub needs."""

    def time(self) -> float: ...
    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object: ...
    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer: ...


class RunningLoop:
    """`Timers` of the event loop that runs when they are used: so a hub can be made before its loop is."""

    def time(self) -> float:
        return asyncio.get_running_loop().time()

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> object:
        return asyncio.get_running_loop().call_soon(callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        return asyncio.get_running_loop().call_later(delay, callback, *args)


class Child(Protocol):
    """The engine that the server can start by itself."""

    @property
    def index(self) -> str:
        """The index that it serves; "" when none is configured."""
        ...

    def start(self) -> str | None:
        """Start it unless it runs already; return why it cannot be started now, if so."""
        ...

    def offered(self) -> None:
        """An engine has been put on offer."""
        ...
