"""What the hub sees of a socket."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Link", "Transport"]


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


class Link:
    """A session with its socket. ``blocked``: nothing can be written now, or ever again (``closing``)."""

    __slots__ = ("blocked", "closing", "transport", "write")

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.write = transport.write
        self.blocked = False
        self.closing = False
