"""Fakes of the event loop, the transport and the archive's thread."""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Callable
from typing import Any

from ragkit_server.transport.frames import payloads


class Clock:
    """A fake event loop whose time the test advances."""

    def __init__(self) -> None:
        self.now = 0.0
        self._order = itertools.count()
        self._due: list[tuple[float, int, Clock.Timer]] = []

    class Timer:
        def __init__(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
            self.callback, self.args, self.cancelled = callback, args, False

        def cancel(self) -> None:
            self.cancelled = True

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], /, *args: Any) -> Timer:
        return self.call_later(0, callback, *args)

    def call_later(self, delay: float, callback: Callable[..., object], /, *args: Any) -> Timer:
        timer = Clock.Timer(callback, args)
        heapq.heappush(self._due, (self.now + delay, next(self._order), timer))
        return timer

    @property
    def due(self) -> bool:
        """Whether something is to be done now."""
        return any(at <= self.now and not timer.cancelled for at, _, timer in self._due)

    def advance(self, seconds: float = 0) -> None:
        """Run what is due within ``seconds``, in order."""
        end = self.now + seconds
        while self._due and self._due[0][0] <= end:
            self.now, _, timer = heapq.heappop(self._due)
            if not timer.cancelled:
                timer.callback(*timer.args)
        self.now = end


class Wire:
    """A transport in memory. ``stuck``: the kernel accepts no data; ``broken``: writing raises."""

    def __init__(self) -> None:
        self.data = b""
        self.waiting = b""
        self.stuck = False
        self.broken: Exception | None = None
        self.closed: tuple[int, str] | None = None

    def write(self, data: bytes) -> bool:
        if self.broken is not None:
            raise self.broken
        if self.stuck:
            self.waiting += data
            return False
        self.data += data
        return True

    def close(self, code: int, reason: str) -> None:
        self.closed = code, reason

    def unstick(self) -> None:
        self.stuck = False
        self.data += self.waiting
        self.waiting = b""

    def read(self, *types: str) -> list[Any]:
        """Take what has arrived; only these types, if any are named."""
        messages = [json.loads(payload) for payload in payloads(self.data)]
        self.data = b""
        return [message for message in messages if not types or message["type"] in types]


class Later:
    """A fake archive thread that runs its jobs when the test calls it."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], Any], Callable[[Any], object]]] = []

    def submit(self, work: Callable[[], Any], done: Callable[[Any], object]) -> None:
        self.jobs.append((work, done))

    def run(self) -> None:
        """Do everything that is to be done, and say so."""
        while self.jobs:
            self.run_one()

    def run_one(self, *, tell: bool = True) -> None:
        """Do the next thing; if the server is killed then, nobody hears of it."""
        work, done = self.jobs.pop(0)
        try:
            result = work()
        except Exception as problem:
            result = problem
        if tell:
            done(result)

    def stop(self) -> None:
        self.run()
