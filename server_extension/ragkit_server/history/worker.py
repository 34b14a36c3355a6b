"""A worker thread for blocking operations."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


class Worker:
    """A thread that runs jobs one after another and returns their results through callbacks.

    Args:
        call_back: Schedules a function in the caller's thread, for example an event loop's ``call_soon_threadsafe``.
    """

    def __init__(self, call_back: Callable[..., object]) -> None:
        self._call_back = call_back
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="ragkit-archive", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[], Result], done: Callable[[Result | BaseException], object]) -> None:
        """Run ``work`` in the thread, then call ``done`` with its result or exception."""

        def job() -> None:
            try:
                result: Result | BaseException = work()
            except BaseException as problem:
                result = problem
            with contextlib.suppress(RuntimeError):  # the loop is closed, so the result is not needed
                self._call_back(done, result)

        self._jobs.put(job)

    def stop(self) -> None:
        """Finish the submitted jobs and end the thread."""
        self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
