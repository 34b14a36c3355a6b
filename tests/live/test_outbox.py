"""The outbox without sockets and threads: order, numbers, coalescing and the journal."""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit.live.journal import Journal
from ragkit.live.messages import (
    MAX_MESSAGE_BYTES,
    ExperimentResult,
    FollowUpQuestions,
    Hello,
    IndexingProgress,
    Origin,
    Publish,
    decode_engine_message,
)
from ragkit.live.outbox import Outbox, is_coalescable

ORIGIN = Origin(kind="script", name="test.py", run_id="r")


def progress(done: int, *, task: str = "t", state: Any = "running") -> IndexingProgress:
    return IndexingProgress(task_id=task, index="i", state=state, documents_done=done)


def follow_up(text: str = "?") -> FollowUpQuestions:
    return FollowUpQuestions(questions=[text])


def decoded(frames: list[bytes]) -> list[Publish]:
    messages = [decode_engine_message(frame) for frame in frames]
    assert all(isinstance(message, Publish) for message in messages)
    return messages


def everything(outbox: Outbox) -> list[Publish]:
    """Take and acknowledge frames until the outbox has none."""
    got: list[Publish] = []
    while frames := outbox.take():
        got += decoded(frames)
        outbox.acknowledge(got[-1].n)
    return got


@pytest.fixture
def journal(tmp_path: Path) -> Callable[[], Journal]:
    return lambda: Journal(tmp_path / "journal", Hello(publisher="p", origin=ORIGIN))


def test_events_are_numbered_and_stamped() -> None:
    outbox = Outbox(ORIGIN)
    outbox.add(0.0, follow_up())
    outbox.add(1.5, FollowUpQuestions(questions=[], time="then", origin=Origin(kind="cli", name="x", run_id="y")))
    first, second = decoded(outbox.take())
    assert (first.n, first.event.time, first.event.origin) == (1, "1970-01-01T00:00:00.000000Z", ORIGIN)
    assert (second.n, second.event.time, second.event.origin.name) == (2, "then", "x")


def test_unacknowledged_events_are_sent_again() -> None:
    outbox = Outbox(ORIGIN)
    for i in range(5):
        outbox.add(0, follow_up(str(i)))
    assert [m.n for m in decoded(outbox.take(3))] == [1, 2, 3]
    outbox.acknowledge(1)
    outbox.resume(2)
    assert [m.n for m in decoded(outbox.take())] == [3]
    assert [m.n for m in decoded(outbox.take())] == [4, 5]
    outbox.acknowledge(5)
    assert outbox.is_empty
    assert outbox.counts().acknowledged == 5


def test_no_more_than_the_window_is_unacknowledged() -> None:
    outbox = Outbox(ORIGIN, window=3)
    for _ in range(5):
        outbox.add(0, follow_up())
    assert [m.n for m in decoded(outbox.take())] == [1, 2, 3]
    assert outbox.take() == []
    outbox.acknowledge(2)
    assert [m.n for m in decoded(outbox.take())] == [4, 5]


def test_progress_is_coalesced_only_when_many_events_wait() -> None:
    few = Outbox(ORIGIN, max_events=1_000)
    for i in range(100):
        few.add(0, progress(i))
    assert len(everything(few)) == 100

    many = Outbox(ORIGIN, max_events=1_000)
    for i in range(5_000):
        many.add(0, progress(i))
    many.add(0, progress(5_000, state="done"))
    got = everything(many)
    assert len(got) <= 1_000
    assert got[-1].event.documents_done == 5_000  # type: ignore[union-attr]
    assert [message.n for message in got] == list(range(1, len(got) + 1))
    assert many.counts().coalesced == 5_001 - len(got)
    assert many.counts().dropped == 0


def test_a_terminal_state_is_never_coalesced() -> None:
    outbox = Outbox(ORIGIN)
    for state in ("running", "failed", "running", "done"):  # a task id used again
        outbox.add(0, progress(1, state=state))
    outbox.compact()
    assert [m.event.state for m in everything(outbox)] == ["failed", "done"]  # type: ignore[union-attr]


def test_terminal_states_are_kept_when_the_queue_is_full() -> None:
    outbox = Outbox(ORIGIN, max_events=10)
    for i in range(20):
        outbox.add(0, progress(i, task=f"t{i}"))
    for i in range(10):
        outbox.add(0, progress(i, task=f"t{i}", state="failed"))
    outbox.shed()
    assert outbox.counts().dropped > 0
    assert [m.event.state for m in everything(outbox)] == ["failed"] * 10  # type: ignore[union-attr]


def test_the_oldest_event_is_dropped_if_none_is_coalescable() -> None:
    outbox = Outbox(ORIGIN, max_events=10)
    for i in range(12):
        outbox.add(0, follow_up(str(i)))
    outbox.shed()
    assert outbox.counts().dropped == 2
    assert everything(outbox)[0].event.questions == ["2"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "event",
    [
        FollowUpQuestions(questions=["?"] * 21),
        IndexingProgress(task_id="", index="i", state="running"),
        IndexingProgress(task_id="t", index="i", state="paused"),  # type: ignore[arg-type]
        ExperimentResult(task_id="t", experiment="e", row={"x": object()}),
        ExperimentResult(task_id="t", experiment="e", row={"x": "y" * MAX_MESSAGE_BYTES}),
        FollowUpQuestions(questions=["\ud800"]),
        "no event",
    ],
)
def test_an_invalid_event_is_logged_and_takes_no_number(event: Any, caplog: pytest.LogCaptureFixture) -> None:
    outbox = Outbox(ORIGIN)
    outbox.add(0, event)
    outbox.add(0, follow_up())
    with caplog.at_level(logging.ERROR):
        assert [m.n for m in everything(outbox)] == [1]
    assert outbox.counts().rejected == 1
    assert "not a valid message" in caplog.text


# ------------------------------------------------------------------------------------- journal


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_journal_contains_the_unacknowledged_events(journal: Callable[[], Journal]) -> None:
    outbox = Outbox(ORIGIN)
    for i in range(4):
        outbox.add(0, follow_up(str(i)))
    outbox.take(3)
    outbox.acknowledge(1)
    outbox.open_journal(file := journal())
    hello, *published = lines(file.path)
    assert hello == {"type": "hello", "publisher": "p", "origin": {"kind": "script", "name": "test.py", "run_id": "r"}}
    assert [message["n"] for message in published] == [2, 3, 4]
    assert outbox.is_safe(4)
    # 2 and 3 were sent: after a reconnection to a hub that has 2, only 3 is sent again, and then 4 from the file.
    outbox.resume(2)
    assert [m.n for m in decoded(outbox.take())] == [3]
    assert [m.n for m in decoded(outbox.take())] == [4]
    outbox.acknowledge(4)
    assert outbox.is_empty
    assert list(file.path.parent.iterdir()) == []


def test_a_journal_is_locked_and_private(journal: Callable[[], Journal]) -> None:
    file = journal()
    lock = filelock.FileLock(f"{file.path}.lock", timeout=0)
    if os.name == "posix":
        assert file.path.stat().st_mode & 0o077 == 0
        assert file.path.parent.stat().st_mode & 0o077 == 0
    file.close()
    with lock:  # the lock is free after close()
        assert file.path.exists()


def test_a_full_disk_loses_nothing(journal: Callable[[], Journal], monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk accepts half a line, then nothing; then it has space again."""
    outbox = Outbox(ORIGIN)
    outbox.add(0, follow_up("a"))
    outbox.open_journal(file := journal())
    outbox.add(0, follow_up("b"))
    write, written = os.write, [0]

    def full(fd: int, data: Any) -> int:
        written[0] += 1
        if written[0] > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:10])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            outbox.store()
    assert not outbox.is_safe(2)
    assert len(lines(file.path)) == 2, "the incomplete line must be removed"
    outbox.add(0, follow_up("c"))
    outbox.store()
    assert outbox.is_safe(3)
    assert [(m["n"], m["event"]["questions"]) for m in lines(file.path)[1:]] == [(1, ["a"]), (2, ["b"]), (3, ["c"])]
    assert [m.n for m in everything(outbox)] == [1, 2, 3]
    assert outbox.is_empty


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("progress"), st.integers(0, 3)),
        st.tuples(st.just("result"), st.just(0)),
        st.tuples(st.just("take"), st.integers(1, 5)),
        st.tuples(st.just("acknowledge"), st.integers(0, 5)),
        st.tuples(st.just("reconnect"), st.integers(0, 5)),
        st.tuples(st.just("journal"), st.just(0)),
        st.tuples(st.just("store"), st.just(0)),
    ),
    max_size=80,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, window=st.integers(1, 8))
def test_a_hub_gets_every_event_once_and_in_order(
    steps: list[tuple[str, int]], window: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """For any steps: numbers have no gaps, only superseded progress is missing, and the order is kept."""
    folder = tmp_path_factory.mktemp("journals")
    outbox = Outbox(ORIGIN, max_events=20, window=window)
    hub: list[Publish] = []
    wire: list[Publish] = []  # sent, but not yet received by the hub
    published: list[tuple[str, int]] = []

    def deliver(count: int) -> None:
        for message in wire[:count]:
            if message.n == len(hub) + 1:
                hub.append(message)
            else:
                assert message.n <= len(hub), "a gap"
        del wire[:count]

    for step, number in [*steps, ("reconnect", 0)]:
        match step:
            case "progress":
                published.append((f"t{number}", len(published)))
                outbox.add(0, progress(len(published) - 1, task=f"t{number}"))
            case "result":
                published.append(("result", len(published)))
                outbox.add(0, follow_up(str(len(published) - 1)))
            case "take":
                wire += decoded(outbox.take(number))
            case "acknowledge":
                deliver(number)
                outbox.acknowledge(len(hub))
            case "reconnect":
                deliver(number)
                wire.clear()
                outbox.resume(len(hub))
            case "journal" if outbox.journal is None:
                outbox.open_journal(Journal(folder, Hello(publisher="p", origin=ORIGIN)))
            case "store":
                outbox.store()
    outbox.store()
    while not outbox.is_empty:
        wire = decoded(outbox.take())
        deliver(len(wire))
        outbox.acknowledge(len(hub))
    assert outbox.is_empty
    assert list(folder.iterdir()) == []

    def place(message: Publish) -> int:
        event = message.event
        return int(event.questions[0]) if isinstance(event, FollowUpQuestions) else event.documents_done  # type: ignore[union-attr]

    places = [place(message) for message in hub]
    assert places == sorted(set(places))
    missing = set(range(len(published))) - set(places)
    assert len(missing) == outbox.counts().coalesced
    for at in missing:
        task = published[at][0]
        assert task != "result"
        assert any(other == task for other, _ in published[at + 1 :])


def test_only_progress_of_unfinished_tasks_is_coalescable() -> None:
    assert is_coalescable(progress(1))
    assert not is_coalescable(progress(1, state="cancelled"))
    assert not is_coalescable(follow_up())
