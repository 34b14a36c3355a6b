"""The events of an experiment are valid messages of bounded size for any rows."""

from __future__ import annotations

from typing import Any

from ragkit.live.experiment_events import MAX_ROWS, MAX_VALUE_CHARACTERS, ExperimentEvents
from ragkit.live.messages import MAX_BROADCAST_BYTES, ExperimentProgress, ExperimentResult, encode, to_broadcast
from tests.support.experiments import Told


def published(publisher: Told) -> Any:
    """Return the event published last, validated."""
    return to_broadcast(publisher.events[-1])


def test_progress_and_results_have_one_task_id_and_long_text_is_shortened() -> None:
    publisher = Told()
    events = ExperimentEvents("n" * 5_000, publisher)  # type: ignore[arg-type]
    events.progress("running", done=1, total=3, eta_seconds=2.5)
    first = published(publisher)
    events.progress("failed", done=1, total=3, message="m" * 9_000)
    failed = published(publisher)
    events.result({"system": "s" * 5_000, "nDCG@10": 0.5}, [], traceback=f"{'x' * 9_000}ValueError")
    result = published(publisher)
    assert isinstance(first, ExperimentProgress)
    assert (first.cells_done, first.cells_total, first.eta_seconds) == (1, 3, 2.5)
    assert isinstance(result, ExperimentResult)
    assert first.task_id == failed.task_id == result.task_id == events.task_id
    assert len(first.experiment) == 1_024
    assert len(failed.message or "") == 2_000
    assert result.row["system"] == "s" * MAX_VALUE_CHARACTERS + "…"
    assert result.row["nDCG@10"] == 0.5
    assert result.row["traceback"].endswith("ValueError")
    assert len(result.row["traceback"]) == 2_000


def test_values_that_a_browser_can_represent_are_not_converted() -> None:
    publisher = Told()
    row = {
        "none": None,
        "yes": True,
        "n": 3,
        "x": 0.25,
        "text": "é",
        "huge": 2**60,
        "list": [1],
        "deep": {"k": []},
    }
    ExperimentEvents("e", publisher).result(row, [row])  # type: ignore[arg-type]
    event = published(publisher)
    expected = row | {"huge": str(2**60), "list": "[1]", "deep": '{"k":[]}'}
    assert event.row == event.leaderboard[0] == expected


def test_a_leaderboard_is_bounded() -> None:
    publisher = Told()
    row = {f"column {number}": "é" * 10_000 for number in range(8)}
    ExperimentEvents("e", publisher).result(row, [row] * 10_000)  # type: ignore[arg-type]
    assert len(published(publisher).leaderboard) == MAX_ROWS
    assert len(encode(publisher.events[-1])) < MAX_BROADCAST_BYTES


def test_without_a_publisher_nothing_happens() -> None:
    ExperimentEvents("e", None).progress("done", done=1, total=1)
