"""The events of an experiment or a sweep: its progress, and each row of its results."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import msgspec

from ragkit.live import messages
from ragkit.live.publisher import Publisher

# The leaderboard is published with every row. These limits, and the caller's choice of columns, keep the message below
# the hub's limit without cutting leaderboards of realistic size.
MAX_ROWS = 200
MAX_NAME_CHARACTERS = 1_024
MAX_VALUE_CHARACTERS = 500
MAX_MESSAGE_CHARACTERS = 2_000
_MAX_EXACT_INTEGER = 2**53  # JavaScript rounds larger integers


class ExperimentEvents:
    """Publishes the events of one experiment.

    Args:
        name: The name that listeners see.
        publisher: Publishes the events; None to publish nothing.
    """

    def __init__(self, name: str, publisher: Publisher | None) -> None:
        self.task_id = uuid.uuid4().hex
        self._name = name[:MAX_NAME_CHARACTERS]
        self._publisher = publisher

    def progress(
        self,
        state: messages.TaskState,
        *,
        done: int,
        total: int,
        eta_seconds: float | None = None,
        message: str | None = None,
    ) -> None:
        """Publish the progress of the experiment.

        Args:
            state: The state of the experiment.
            done: How many results or runs are done.
            total: How many there are in total.
            eta_seconds: Estimated time for the rest.
            message: A remark on the state, such as why it failed.
        """
        self._publish(
            messages.ExperimentProgress(
                task_id=self.task_id,
                experiment=self._name,
                state=state,
                cells_done=done,
                cells_total=total,
                eta_seconds=eta_seconds,
                message=message and message[:MAX_MESSAGE_CHARACTERS],
            )
        )

    def result(
        self, row: Mapping[str, Any], leaderboard: Iterable[Mapping[str, Any]], *, traceback: str | None = None
    ) -> None:
        """Publish a new row.

        Args:
            row: Column names and values. Long text is shortened, and values other than numbers, booleans and None
                are converted to text.
            leaderboard: All rows so far, best first; the first `MAX_ROWS` are published.
            traceback: The traceback if the row is of a failure; its end is published with the row.
        """
        extra = {"traceback": traceback[-MAX_MESSAGE_CHARACTERS:]} if traceback else {}
        self._publish(
            messages.ExperimentResult(
                task_id=self.task_id,
                experiment=self._name,
                row=_short(row) | extra,
                leaderboard=[_short(each) for each in islice(leaderboard, MAX_ROWS)],
            )
        )

    def _publish(self, event: messages.Broadcast) -> None:
        if self._publisher is not None:
            self._publisher.publish(event)


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name[:MAX_VALUE_CHARACTERS]: _short_value(value) for name, value in row.items()}


def _short_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int) and abs(value) < _MAX_EXACT_INTEGER:
        return value
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= MAX_VALUE_CHARACTERS else f"{text[:MAX_VALUE_CHARACTERS]}…"
