"""Cancellable waits, and the exceptions that end a whole task and not only one item of it."""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Callable

from ragkit.errors import OperationCancelled

POLL_SECONDS = 0.05  # between two checks for cancellation
_FATAL = (OperationCancelled, KeyboardInterrupt, SystemExit, GeneratorExit, CancelledError, MemoryError)


def never() -> bool:
    """Return False: the default for `cancelled`."""
    return False


def is_fatal(error: BaseException) -> bool:
    """Return whether an exception ends the whole task: it was cancelled or interrupted, or memory ran out.

    Other exceptions fail one document only. So does a panic in native code, although it is a `BaseException`.
    """
    return isinstance(error, _FATAL)


def wait(seconds: float, cancelled: Callable[[], bool] = never) -> None:
    """Sleep, polling `cancelled` about twenty times a second.

    Raises:
        OperationCancelled: `cancelled` returned True.
    """
    deadline = time.monotonic() + seconds
    while True:
        if cancelled():
            raise OperationCancelled("The answer was cancelled.")
        if (remaining := deadline - time.monotonic()) <= 0:
            return
        time.sleep(min(remaining, POLL_SECONDS))
