"""Waiting that can be called off, and what ends work that bears failures."""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Callable

from ragkit.errors import OperationCancelled

POLL_SECONDS = 0.05  # between two looks at whether somebody has cancelled
_FATAL = (OperationCancelled, KeyboardInterrupt, SystemExit, GeneratorExit, CancelledError, MemoryError)


def never() -> bool:
    """Return False: the `cancelled` of work that nobody cancels."""
    return False


def is_fatal(error: BaseException) -> bool:
    """Whether an exception ends the work as a whole, and not only for one document: somebody stops it, or memory ends.

    A panic of native code is a `BaseException` too, and not fatal.
    """
    return isinstance(error, _FATAL)


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
