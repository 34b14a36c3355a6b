"""A queue between threads."""

from __future__ import annotations

import threading
from collections import deque
from typing import Generic, TypeVar

from ragkit.errors import CancelledError

__all__ = ["Belt"]

T = TypeVar("T")


class Belt(Generic[T]):
    """A queue between threads, bounded by weight, that can be torn down from either end."""

    def __init__(self, max_weight: int) -> None:
        self._max_weight = max_weight
        self._weight = 0
        self._things: deque[tuple[T, int]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, thing: T, weight: int = 0) -> None:
        """Wait until there is room; one thing always has."""
        with self._changed:
            while self._weight and self._weight + weight > self._max_weight and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                raise CancelledError("Indexing was stopped.")
            self._things.append((thing, weight))
            self._weight += weight
            self._changed.notify_all()

    def get(self, timeout_seconds: float | None = None) -> T | None:
        """Return the next thing, or None if none has come in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._things or self._is_closed, timeout_seconds):
                return None
            if self._is_closed:
                raise CancelledError("Indexing was stopped.")
            thing, weight = self._things.popleft()
            self._weight -= weight
            self._changed.notify_all()
            return thing

    def check(self) -> None:
        """Raise if it is closed."""
        if self._is_closed:
            raise CancelledError("Indexing was stopped.")

    def close(self) -> None:
        """Let everybody who waits go."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
