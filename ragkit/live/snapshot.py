"""The snapshot for new listeners: the newest state of each task, engines, recent follow-up questions and results.

The state depends only on the events and their order, so a restarted server computes the same state. The hub keeps the
state of all publishers, a widget that of its own process. Its size is bounded, because a snapshot is one message.
"""

from __future__ import annotations

from collections import OrderedDict, deque

import msgspec
from msgspec import UNSET, UnsetType

from ragkit.live.messages import (
    TERMINAL,
    Broadcast,
    Engine,
    EnginesChanged,
    ExperimentProgress,
    ExperimentResult,
    FollowUpQuestions,
    IndexingProgress,
    Snapshot,
    encode,
)

TaskProgress = IndexingProgress | ExperimentProgress

MAX_LIVE_TASKS = 1_000
MAX_ENDED_TASKS = 20
MAX_FOLLOW_UPS = 20
MAX_RESULTS = 20  # experiments; the newest result of each is kept
SNAPSHOT_FAILURES = 20
SNAPSHOT_EVENT_BYTES = 8_192  # per event; larger events are shortened or left out
SNAPSHOT_RESULT_BYTES = 65_536  # per experiment result; larger because it includes the leaderboard

TaskKey = tuple[str, str]  # publisher id (or "" for the hub's own), task name


def task_name(event: TaskProgress | ExperimentResult) -> str:
    """Return a name that is unique among the tasks of a publisher; tasks of different types may share an id."""
    return f"{event.__struct_config__.tag} {event.task_id}"


class SnapshotState:
    """The state as of the newest event.

    Args:
        max_live_tasks: How many unfinished tasks are kept; with more, the oldest is removed.
        max_follow_ups: How many events with follow-up questions are kept.
        max_results: For how many experiments the newest result is kept.
    """

    def __init__(
        self,
        *,
        max_live_tasks: int = MAX_LIVE_TASKS,
        max_follow_ups: int = MAX_FOLLOW_UPS,
        max_results: int = MAX_RESULTS,
    ) -> None:
        self.engines: list[Engine] = []
        self._max_live_tasks = max_live_tasks
        self._max_results = max_results
        self._live: OrderedDict[TaskKey, TaskProgress] = OrderedDict()
        self._ended: OrderedDict[TaskKey, TaskProgress] = OrderedDict()
        self._follow_ups: deque[FollowUpQuestions] = deque(maxlen=max_follow_ups)
        self._results: OrderedDict[TaskKey, ExperimentResult] = OrderedDict()

    def apply(self, event: Broadcast, *, size: int, publisher: str = "") -> TaskKey | None:
        """Update the state with the next event.

        Args:
            event: The broadcast.
            size: Its encoded size in bytes.
            publisher: The id of its publisher.

        Returns:
            The key of an unfinished task that was removed because there are too many; otherwise None.
        """
        if isinstance(event, FollowUpQuestions):
            if size <= SNAPSHOT_EVENT_BYTES:
                self._follow_ups.append(event)
        elif isinstance(event, ExperimentResult):
            key = (publisher, task_name(event))
            self._results.pop(key, None)  # even if the new result is too large, so that no outdated result remains
            if (short := _shorten_result(event, size)) is not None:
                self._results[key] = short
                if len(self._results) > self._max_results:
                    self._results.popitem(last=False)
        elif isinstance(event, EnginesChanged):
            self.engines = event.engines
        elif isinstance(event, TaskProgress):
            key = (publisher, task_name(event))
            self._live.pop(key, None)
            self._ended.pop(key, None)
            if event.state in TERMINAL:
                self._ended[key] = _shorten(event, size)
                if len(self._ended) > MAX_ENDED_TASKS:
                    self._ended.popitem(last=False)
            else:
                self._live[key] = _shorten(event, size)
                if len(self._live) > self._max_live_tasks:
                    return self._live.popitem(last=False)[0]
        return None

    def live_tasks(self) -> dict[TaskKey, TaskProgress]:
        """Return the newest event of each unfinished task."""
        return dict(self._live)

    def live_tasks_of(self, publisher: str) -> list[TaskProgress]:
        """Return the newest event of each unfinished task of ``publisher``."""
        return [event for (owner, _), event in self._live.items() if owner == publisher]

    def snapshot(self, *, epoch: str, seq: int, id: str | UnsetType = UNSET) -> Snapshot:
        """Return the state as a `Snapshot` message."""
        return Snapshot(
            epoch=epoch,
            seq=seq,
            tasks=[*self._ended.values(), *self._live.values()],
            engines=self.engines,
            follow_ups=list(self._follow_ups),
            results=list(self._results.values()),
            id=id,
        )


def _shorten(event: TaskProgress, size: int) -> TaskProgress:
    # A thousand tasks with a hundred failures each would make a snapshot of many megabytes.
    large = size > SNAPSHOT_EVENT_BYTES
    if large and event.message is not None:
        event = msgspec.structs.replace(event, message=event.message[:1_000])
    if isinstance(event, IndexingProgress) and len(event.failures) > SNAPSHOT_FAILURES * (not large):
        event = msgspec.structs.replace(event, failures=[] if large else event.failures[:SNAPSHOT_FAILURES])
    return event


def _shorten_result(event: ExperimentResult, size: int) -> ExperimentResult | None:
    if size > SNAPSHOT_RESULT_BYTES:
        event = msgspec.structs.replace(event, leaderboard=[])
        return event if len(encode(event)) <= SNAPSHOT_RESULT_BYTES else None
    return event
