"""An experiment as it runs, on the socket and in the bar under its cell."""

from __future__ import annotations

import time
from typing import Any

from ragkit.live.experiment_events import ExperimentEvents
from ragkit.live.messages import TaskState
from ragkit.live.publisher import Publisher
from ragkit.progress_bar import CellsBar, Pace

_TELL_SECONDS = 0.25


class ProgressReporter:
    """Tells how far one run is.

    A system counts one cell a question; texts to embed and calls to models, which are not known before, are added as
    they come up.

    Args:
        name: What listeners see.
        publisher: Tells the socket; None for nobody.
        bar: Shows it here.
        questions: ResultCache of one system.
    """

    def __init__(self, name: str, publisher: Publisher | None, bar: CellsBar, *, questions: int) -> None:
        self._events = ExperimentEvents(name, publisher)
        self._bar = bar
        self._questions = questions
        self._systems = 0
        self._finished = 0
        self._ranked = 0
        self._before = 0  # other work that is done
        self._doing: tuple[str, int, int] = ("", 0, 0)
        self._told = -_TELL_SECONDS
        self._pace = Pace()

    def begin(self, systems: int, *, ranked: int) -> None:
        """A system begins.

        Args:
            systems: How many there are in all.
            ranked: How many of its questions were ranked before.
        """
        self._systems = systems
        self.ranked(ranked)

    def ranked(self, count: int) -> None:
        """So many of the system's questions are ranked."""
        self._ranked = count
        self.tell("running")

    def embedding(self, done: int, total: int) -> None:
        """So many of the texts that were never embedded are."""
        self.working("embedding", done, total, now=True)  # the next window may take long

    def working(self, doing: str, done: int, total: int, *, now: bool = False) -> None:
        """So much of other work is done."""
        if doing != self._doing[0]:
            self._pace = Pace()  # each kind of work has its own
        self._doing = doing, done, total
        self.tell("running", now=now)
        if done == total:
            self._before += total
            self._doing = "", 0, 0
            self._pace = Pace()

    def finished(self, row: dict[str, Any], leaderboard: list[dict[str, Any]]) -> None:
        """A system is measured: this is its row."""
        self._finished += 1
        self._ranked = 0
        self.tell("running", now=True)
        self._events.result(row, leaderboard)

    def tell(
        self, state: TaskState, *, systems: int | None = None, now: bool = False, message: str | None = None
    ) -> None:
        """Tell how far it is, unless that has just been told.

        Args:
            state: Of the run.
            systems: How many there are in all, if that is news.
            now: Whether to tell in any case.
            message: What is to be known of it.
        """
        self._systems = systems or self._systems
        clock = time.monotonic()
        if not now and clock - self._told < _TELL_SECONDS:
            return
        self._told = clock
        doing, part, parts = self._doing
        done = self._finished * self._questions + self._ranked + self._before + part
        total = self._systems * self._questions + self._before + parts
        rate = self._pace.rate(done)
        # While there is other work, what the other systems will take is not known.
        left = parts - part or total - done
        shown = f", {doing} {parts:,}" if doing else ""
        self._bar.show(done, total, f"{self._finished}/{self._systems} systems{shown}")
        eta_seconds = left / rate if rate and state == "running" else None
        self._events.progress(state, done=done, total=total, eta_seconds=eta_seconds, message=message)
