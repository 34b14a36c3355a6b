"""Waiting that can be called off, and how a wish to stop is told from a failure."""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Callable

from ragkit.errors import OperationCancelled

__all__ = ["is_stop", "never", "wait"]


_POLL_SECONDS = 0.05


def never() -> bool:
    """Return False: the `cancelled` of work that nobody cancels."""
    return False


def is_stop(error: BaseException) -> bool:
    """Tell a wish to stop from a failure. Native code that panics raises a `BaseException` which is no such wish."""
    return isinstance(error, OperationCancelled | KeyboardInterrupt | SystemExit | GeneratorExit | CancelledError)


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
        time.sleep(min(left, _POLL_SECONDS))
