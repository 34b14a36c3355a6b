"""The log: stamps, replay, coalescing, snapshots and deduplication."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.live.messages import (
    Engine,
    EnginesChanged,
    ExperimentResult,
    Failure,
    FollowUpQuestions,
    IndexingProgress,
    Origin,
    decode_listener_message,
)
from ragkit.live.snapshot import SNAPSHOT_FAILURES, SNAPSHOT_RESULT_BYTES
from ragkit_server.history.log import History
from ragkit_server.history.numbers import Numbers
from ragkit_server.transport.frames import payloads, text_frame

ORIGIN = Origin(kind="papermill", name="batch.ipynb", run_id="r1")


def follow_ups(text: str = "Why?") -> FollowUpQuestions:
    return FollowUpQuestions(questions=[text])


def progress(task: str = "t", state: str = "running", done: int = 0, **fields: object) -> IndexingProgress:
    return IndexingProgress(task_id=task, index="i", state=state, documents_done=done, **fields)


def read(data: bytes) -> list[dict[str, object]]:
    return [json.loads(payload) for payload in payloads(data)]


def replay(history: History, cursor: int, **options: object) -> list[dict[str, object]]:
    """Everything after a cursor, run by run."""
    messages = []
    while cursor < history.seq:
        data, cursor = history.run(cursor, **options)
        messages += read(data)
    return messages


@given(st.lists(st.binary(max_size=300) | st.sampled_from([b"x" * 125, b"x" * 126, b"x" * 65_535, b"x" * 65_536])))
def test_frames_round_trip(messages: list[bytes]) -> None:
    assert list(payloads(b"".join(map(text_frame, messages)))) == messages


@given(st.lists(st.integers(1, 30)))
def test_numbers_accept_each_number_once(sequence: list[int]) -> None:
    numbers, seen = Numbers(), set()
    for n in sequence:
        assert numbers.add(n) == (n not in seen)
        seen.add(n)
        assert numbers.last == max(seen)


def test_numbers_stay_bounded() -> None:
    numbers = Numbers()
    for n in range(1, 3_001, 2):
        numbers.add(n)
    assert len(numbers._ranges) <= Numbers.MAX_RANGES
    assert not any(numbers.add(n) for n in range(1, 3_001, 2)), "a known event must never look new"


def test_events_are_stamped_without_gaps_and_keep_their_own_time_and_origin() -> None:
    history = History()
    first = history.append(follow_ups(), origin=ORIGIN, now=datetime(2026, 1, 1, tzinfo=UTC))
    assert (first.epoch, first.seq, first.origin) == (history.epoch, 1, ORIGIN)
    assert first.time == "2026-01-01T00:00:00.000+00:00"
    own = FollowUpQuestions(questions=["?"], epoch="forged", seq=99, time="2020-02-02T02:02:02+00:00")
    second = history.append(own, now=datetime(2026, 1, 1, tzinfo=UTC))
    assert (second.epoch, second.seq, second.time) == (history.epoch, 2, "2020-02-02T02:02:02+00:00")
    for bad in ("yesterday", "", "2020-02-02T02:02:02", "x" * 1_000):
        third = history.append(FollowUpQuestions(questions=["?"], time=bad), now=datetime(2026, 1, 1, tzinfo=UTC))
        assert third.time == "2026-01-01T00:00:00.000+00:00"
    assert History().epoch != history.epoch


def test_run_replays_everything_in_order_and_shares_its_bytes() -> None:
    history = History()
    for number in range(500):
        history.append(follow_ups(f"{number} " + "x" * 500))
    assert [message["seq"] for message in replay(history, 0)] == list(range(1, 501))
    assert [message["seq"] for message in replay(history, 123)] == list(range(124, 501))
    assert history.run(7)[0] is history.run(7)[0]
    assert len(history.run(0)[0]) <= 65_536
    assert history.run(500) == (b"", 500)


def test_run_gives_a_frame_that_is_larger_than_a_run() -> None:
    history = History()
    history.append(follow_ups("x" * 100_000))
    data, cursor = history.run(0, max_bytes=10)
    assert cursor == 1
    assert len(data) > 100_000


def test_run_leaves_out_other_topics() -> None:
    history = History()
    history.append(follow_ups())
    history.append(progress())
    history.append(ExperimentResult(task_id="t", experiment="e", row={}))
    assert [m["seq"] for m in replay(history, 0, topics=frozenset({"experiment_result"}))] == [3]
    assert history.run(0, topics=frozenset()) == (b"", 3)


def test_the_log_is_bounded_and_knows_how_far_it_reaches() -> None:
    history = History(max_events=10)
    for _ in range(25):
        history.append(follow_ups())
    assert [history.reaches(cursor) for cursor in (-1, 14, 15, 25, 26)] == [False, False, True, True, False]
    with pytest.raises(ValueError, match="14"):
        history.run(14)
    small = History(max_bytes=10_000)
    for _ in range(100):
        small.append(follow_ups("x" * 1_000))
    assert not small.reaches(80)
    assert small.reaches(95)


def test_superseded_progress_is_skipped_only_for_slow_listeners() -> None:
    history = History(coalesce_bytes=20_000)
    history.append(follow_ups("kept"))
    for done in range(200):
        history.append(progress(done=done))
    history.append(progress(state="done", done=200))
    history.append(progress(done=1))  # the same task again: does not take its end away
    far = replay(history, 0)
    assert [m["type"] for m in far].count("follow_up_questions") == 1
    assert "done" in [m.get("state") for m in far]
    assert len(far) < 150
    assert far[-1]["seq"] == history.seq
    near = replay(history, history.seq - 20)
    assert [m["seq"] for m in near] == list(range(history.seq - 19, history.seq + 1))


def test_snapshot_holds_live_tasks_recent_ends_engines_and_follow_ups() -> None:
    history = History()
    failures = [Failure(source=f"{n}.pdf", reason="damaged") for n in range(100)]
    history.append(progress("a", done=1), publisher="p")
    history.append(progress("a", done=2, failures=failures), publisher="p")
    history.append(progress("a", done=7), publisher="other")
    history.append(progress("b", "queued"), publisher="p")
    history.append(progress("b", "failed"), publisher="p")
    history.append(follow_ups())
    history.append(EnginesChanged(engines=[Engine(id="e", index="i")]))
    snapshot = history.snapshot(id="s")
    assert (snapshot.seq, snapshot.epoch, snapshot.id) == (7, history.epoch, "s")
    assert sorted((t.task_id, t.state, t.documents_done) for t in snapshot.tasks) == [
        ("a", "running", 2),
        ("a", "running", 7),
        ("b", "failed", 0),
    ]
    assert max(len(task.failures) for task in snapshot.tasks) == SNAPSHOT_FAILURES
    assert [engine.id for engine in snapshot.engines] == ["e"]
    assert len(snapshot.follow_ups) == 1
    assert [task.task_id for task in history.state.live_tasks_of("p")] == ["a"]
    (gap,) = payloads(history.gap()[0])
    assert decode_listener_message(gap).snapshot.seq == 7


def test_large_events_are_shortened_in_the_snapshot() -> None:
    history = History()
    failures = [Failure(source=f"{n}.pdf", reason="x" * 10_000) for n in range(100)]
    for number in range(20):
        history.append(progress(f"t{number}", failures=failures, message="x" * 100_000))
        history.append(follow_ups("x" * 100_000))
    assert len(history.gap()[0]) < 100_000
    assert len(history.snapshot().tasks) == 20


def result(task: str = "e", n: int = 0, publisher: str = "p", **fields: object) -> dict[str, object]:
    event = ExperimentResult(task_id=task, experiment="e", row={"n": n}, **fields)
    return {"event": event, "publisher": publisher}


def test_snapshot_holds_the_newest_result_of_each_experiment_oldest_first() -> None:
    history = History()
    board = [{"system": "BM25"}]
    for said in (result("a", 1), result("b", 2), result("a", 3, "q"), result("a", 4, leaderboard=board)):
        history.append(**said)
    assert [(r.task_id, r.row["n"]) for r in history.snapshot().results] == [("b", 2), ("a", 3), ("a", 4)]
    assert history.snapshot().results[-1].leaderboard == board
    (gap,) = payloads(history.gap()[0])
    assert decode_listener_message(gap).snapshot.results == history.snapshot().results
    for n in range(30):
        history.append(**result(f"t{n}", n))
    assert [r.row["n"] for r in history.snapshot().results] == list(range(10, 30))
    assert [m["type"] for m in replay(history, 0)] == ["experiment_result"] * 34, "none is left out of the log"


def test_a_large_result_loses_its_leaderboard_or_is_left_out() -> None:
    history = History()
    board = [{"system": "x" * 1_000}] * 100
    history.append(**result("a", 1, leaderboard=board[:60]))
    history.append(**result("b", 2, leaderboard=board))
    a, b = history.snapshot().results
    assert (a.row, len(a.leaderboard)) == ({"n": 1}, 60)
    assert (b.row, b.leaderboard) == ({"n": 2}, [])
    large = ExperimentResult(task_id="a", experiment="e", row={"notes": "x" * SNAPSHOT_RESULT_BYTES})
    history.append(large, publisher="p")
    assert [r.task_id for r in history.snapshot().results] == ["b"], "an older one would pass for the newest"


def test_snapshots_stay_bounded() -> None:
    history = History(max_events=10)
    for number in range(1_500):
        history.append(progress(f"live {number}"))
        history.append(progress(f"ended {number}", "done"))
        history.append(follow_ups())
    snapshot = history.snapshot()
    assert len(snapshot.tasks) <= 1_020
    assert len(snapshot.follow_ups) <= 20
    assert len(history._newest) <= 1_000


def test_each_publisher_has_its_own_numbers() -> None:
    history = History()
    assert history.publishers.is_new("p", 1)
    assert not history.publishers.is_new("p", 1)
    assert history.publishers.is_new("q", 1)
    assert history.publishers.is_new("p", 5)
    assert history.publishers.is_new("p", 3), "a journal may come after what followed it"
    assert history.publishers.last("p") == 0, "nothing is safe yet"
    history.append(follow_ups())
    assert [history.publishers.last(id) for id in "pqr"] == [5, 1, 0]
