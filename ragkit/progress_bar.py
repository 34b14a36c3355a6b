"""Progress bars and the rate of progress."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any


class StageProgressBar:
    """A tqdm bar over the results of an experiment."""

    def __init__(self, wanted: bool, label: str) -> None:
        from tqdm.auto import tqdm

        self._bar: Any = tqdm(
            desc=label, unit=" results", disable=(False if in_notebook() else None) if wanted else True
        )

    def __enter__(self) -> StageProgressBar:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def show(self, done: int, total: int, doing: str) -> None:
        """Update the bar."""
        self._bar.total, self._bar.n = total, done
        self._bar.set_postfix_str(doing, refresh=True)


def in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


_RATE_WINDOW_SECONDS = 10.0


class Pace:
    """The rate of a task over the last ten seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque()

    def rate(self, done: int) -> float | None:
        """Record how many items are done, and return items per second; None if it is not known yet."""
        now = time.monotonic()
        self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW_SECONDS:
            self._samples.popleft()
        seconds, more = now - self._samples[0][0], done - self._samples[0][1]
        return more / seconds if seconds > 0 and more > 0 else None
