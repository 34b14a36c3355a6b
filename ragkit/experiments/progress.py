"""Progress of a running experiment: published events and the progress bar."""

from __future__ import annotations

import time
from typing import Any

from ragkit.live.experiment_events import ExperimentEvents
from ragkit.live.messages import TaskState
from ragkit.live.publisher import Publisher
from ragkit.progress_bar import Pace, StageProgressBar

_REPORT_SECONDS = 0.25


class ProgressReporter:
    """Reports the progress of one run.

    Each system counts one unit per question. Texts to embed and calls to models are not known in advance; they are
    added to the total when they come up.

    Args:
        name: The name that listeners see.
        publisher: Publishes the events; None to publish nothing.
        bar: The progress bar.
        questions: The number of questions, which is the number of units of one system.
    """

    def __init__(self, name: str, publisher: Publisher | None, bar: StageProgressBar, *, questions: int) -> None:
        self._events = ExperimentEvents(name, publisher)
        self._bar = bar
        self._questions = questions
        self._systems = 0
        self._finished = 0
        self._ranked = 0
        self._extra_done = 0  # finished embeddings and calls
        self._doing: tuple[str, int, int] = ("", 0, 0)
        self._last_report = -_REPORT_SECONDS
        self._pace = Pace()

    def begin(self, systems: int, *, ranked: int) -> None:
        """Report that a system starts.

        Args:
            systems: The total number of systems.
            ranked: How many of its questions already have a ranking.
        """
        self._systems = systems
        self.ranked(ranked)

    def ranked(self, count: int) -> None:
        """Report how many of the system's questions have a ranking."""
        self._ranked = count
        self.report("running")

    def embedding(self, done: int, total: int) -> None:
        """Report how many of the missing embeddings are done."""
        self.working("embedding", done, total, now=True)  # the next batch may take long

    def working(self, doing: str, done: int, total: int, *, now: bool = False) -> None:
        """Report how much of one kind of other work is done."""
        if doing != self._doing[0]:
            self._pace = Pace()  # each kind of work has its own pace
        self._doing = doing, done, total
        self.report("running", now=now)
        if done == total:
            self._extra_done += total
            self._doing = "", 0, 0
            self._pace = Pace()

    def finished(self, row: dict[str, Any], leaderboard: list[dict[str, Any]]) -> None:
        """Report that a system is evaluated, with its row and the leaderboard."""
        self._finished += 1
        self._ranked = 0
        self.report("running", now=True)
        self._events.result(row, leaderboard)

    def report(
        self, state: TaskState, *, systems: int | None = None, now: bool = False, message: str | None = None
    ) -> None:
        """Report the progress, at most once in 0.25 seconds.

        Args:
            state: The state of the run.
            systems: The total number of systems; unchanged if None.
            now: Report even if the last report was less than 0.25 seconds ago.
            message: A message for listeners.
        """
        self._systems = systems or self._systems
        clock = time.monotonic()
        if not now and clock - self._last_report < _REPORT_SECONDS:
            return
        self._last_report = clock
        doing, part, parts = self._doing
        done = self._finished * self._questions + self._ranked + self._extra_done + part
        total = self._systems * self._questions + self._extra_done + parts
        rate = self._pace.rate(done)
        # During other work, the time for the remaining systems is unknown: the estimate covers that work alone.
        left = parts - part or total - done
        shown = f", {doing} {parts:,}" if doing else ""
        self._bar.show(done, total, f"{self._finished}/{self._systems} systems{shown}")
        eta_seconds = left / rate if rate and state == "running" else None
        self._events.progress(state, done=done, total=total, eta_seconds=eta_seconds, message=message)
