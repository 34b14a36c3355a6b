"""The audit of the soak test: which events a listener may miss."""

from __future__ import annotations

from typing import Any

from benchmarks.audit import Broadcasts, Record, judge_other


def progress(seq: int, task: str, state: str = "running") -> dict[str, Any]:
    return {"type": "indexing_progress", "epoch": "e", "seq": seq, "task_id": task, "state": state}


EVENTS = [progress(1, "a"), progress(2, "b"), progress(3, "a"), progress(4, "b", "done"), progress(5, "a")]


def listening(broadcasts: Broadcasts, *seqs: int) -> Record:
    record = Record(broadcasts)
    for event in EVENTS:
        if event["seq"] in seqs:
            record.take(event)
    return record


def test_superseded_progress_may_be_missing() -> None:
    broadcasts = Broadcasts()
    auditor = listening(broadcasts, 1, 2, 3, 4, 5)
    resumed = listening(broadcasts, 1, 4, 5)
    assert auditor.problems() == resumed.problems() == judge_other(resumed, auditor) == []
    assert resumed.skipped == 2


def test_terminal_states_and_the_newest_progress_may_not_be_missing() -> None:
    broadcasts = Broadcasts()
    auditor = listening(broadcasts, 1, 2, 3, 4)
    resumed = listening(broadcasts, 1, 3, 5)
    assert "1 holes in seq" in resumed.problems()[0]
    assert "1 lost: ('ended', 'b')" in judge_other(resumed, auditor)[1]
    broadcasts = Broadcasts()
    listening(broadcasts, 1, 2, 3)
    assert "[3]" in listening(broadcasts, 2, 4).problems()[0]


def test_an_event_that_nobody_received_is_a_gap() -> None:
    assert listening(Broadcasts(), 1, 5).problems()
