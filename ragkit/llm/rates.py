"""How many calls, and how many tokens, a server takes in a minute."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from ragkit.errors import InputError
from ragkit.llm.openai import never, wait

__all__ = ["RateLimit", "Taken"]

_POLL_SECONDS = 0.05


@dataclass(slots=True)
class Taken:
    """What a call has taken from the minute after it began.

    Attributes:
        at: When it began.
        tokens: The most that it can use; set it to what was used when that is known.
    """

    at: float
    tokens: int


class RateLimit:
    """So many requests and tokens in any minute. Threads share one; who comes first goes first.

    Args:
        requests_per_minute: None for any number.
        tokens_per_minute: None for any number. A call that is larger than this waits for a minute without others.
        clock: Seconds.
        sleep: Waits for so many seconds, unless it is cancelled.

    Raises:
        InputError: A limit under 1.
    """

    def __init__(
        self,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float, Callable[[], bool]], object] = wait,
    ) -> None:
        self._requests = math.inf if requests_per_minute is None else requests_per_minute
        self._tokens = math.inf if tokens_per_minute is None else tokens_per_minute
        if min(self._requests, self._tokens) < 1:
            raise InputError("requests_per_minute and tokens_per_minute must be at least 1, or None for no limit.")
        self._clock = clock
        self._sleep = sleep
        self._turn = threading.Lock()
        self._minute: deque[Taken] = deque()

    def take(self, tokens: int, *, cancelled: Callable[[], bool] = never) -> Taken:
        """Wait until a request with so many tokens fits, and count it.

        Raises:
            CancelledError: `cancelled` said so.
        """
        while not self._turn.acquire(timeout=_POLL_SECONDS):
            wait(0, cancelled)
        try:
            while True:
                now = self._clock()
                while self._minute and self._minute[0].at <= now - 60:
                    self._minute.popleft()
                used = sum(taken.tokens for taken in self._minute)
                if not self._minute or (len(self._minute) < self._requests and used + tokens <= self._tokens):
                    self._minute.append(taken := Taken(now, tokens))
                    return taken
                self._sleep(_POLL_SECONDS, cancelled)
        finally:
            self._turn.release()
