"""Waiting that can be called off."""

from __future__ import annotations

import time
from collections.abc import Callable

from ragkit.errors import OperationCancelled

__all__ = ["POLL_SECONDS", "never", "wait"]

POLL_SECONDS = 0.05  # between two looks at whether somebody has cancelled


def never() -> bool:
    """Return False: the `cancelled` of work that nobody cancels."""
    return False


def wait(seconds: float, cancelled: Callable[[], bool] = never) -> None:
    """Sleep, and ask about twenty times a second whether somebody has cancelled.

    Raises:
        OperationCancelled: `cancelled` said so.
    """
    ends = time.monotonic() + seconds
    while True:
        if cancelled():
            raise OperationCancelled("The answer was cancelled.")
        if (left := ends - time.monotonic()) <= 0:
            return
        time.sleep(min(left, POLL_SECONDS))
