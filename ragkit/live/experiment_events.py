"""What an experiment publishes, be it of systems or a sweep of notebooks: its progress, and each row when measured."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import msgspec

from ragkit.live import messages
from ragkit.live.publisher import Publisher

# A leaderboard goes out with every row. With these and the columns that its maker chooses it stays below what the hub
# takes, and one that people look at is not cut.
MAX_ROWS = 200
MAX_NAME_CHARACTERS = 1_024
MAX_VALUE_CHARACTERS = 500
MAX_MESSAGE_CHARACTERS = 2_000
_MAX_EXACT_INTEGER = 2**53  # beyond it a browser rounds


class ExperimentEvents:
    """Publishes the events of one experiment.

    Args:
        name: What listeners see.
        publisher: Who publishes; None for nobody.
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
        """Publish how far it is.

        Args:
            state: Of the experiment.
            done: Cells that are done.
            total: Cells in all.
            eta_seconds: What the others will take.
            message: What is to be known of it.
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
        """Publish a row that was just measured.

        Args:
            row: Column to value; long text is shortened, and what JSON does not have becomes text.
            leaderboard: All rows so far, the best first; the first of them are published.
            traceback: Of what failed; its end is published with the row.
        """
        failure = {"traceback": traceback[-MAX_MESSAGE_CHARACTERS:]} if traceback else {}
        self._publish(
            messages.ExperimentResult(
                task_id=self.task_id,
                experiment=self._name,
                row=_short(row) | failure,
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
