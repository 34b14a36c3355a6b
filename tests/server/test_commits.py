"""Events are committed before listeners see them; if that fails, listeners get a new epoch."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from ragkit.live.messages import FollowUpQuestions, IndexingProgress, Since
from ragkit_server.history.archive import Archive, open_archive
from ragkit_server.history.log import History
from ragkit_server.history.worker import Worker
from ragkit_server.hub.manager import WebSocketManager
from tests.server.hub_fakes import Clock, Later, Wire
from tests.server.live_server import eventually
from tests.server.test_manager import Hub


class DurableHub(Hub):
    """A hub with an archive, whose thread works when it is told to."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.archive, stored, _ = open_archive(
            folder, "h", max_bytes=options.pop("max_bytes", 10**7), log_events=50, log_bytes=10**6
        )
        self.thread = Later()
        history = History(stored=stored, max_events=50, coalesce_bytes=20_000)
        super().__init__(Clock(), history=history, archive=self.archive, thread=self.thread)
        self.manager.resume()

    def turn(self) -> None:
        """Let everything happen that is due."""
        while self.thread.jobs or self.clock.due:
            self.clock.advance()
            self.thread.run()

    def kill(self) -> None:
        self.archive._db.close()


@pytest.fixture
def hub(tmp_path: Path) -> DurableHub:
    return DurableHub(tmp_path)


def texts(wire: Wire) -> list[str]:
    return [message["questions"][0] for message in wire.read("follow_up_questions")]


def test_nothing_is_sent_or_acknowledged_before_it_is_committed(hub: DurableHub) -> None:
    wire = hub.listen()
    session, back = hub.publisher()
    hub.publish(session, 1)
    hub.clock.advance(5)
    assert wire.read() == []
    assert [m["type"] for m in back.read()] == ["welcome"]
    hub.thread.run()
    assert texts(wire) == ["1"]
    assert back.read() == [{"type": "ack", "n": 1}]


def test_events_that_arrive_during_a_write_are_the_next_batch(hub: DurableHub) -> None:
    wire = hub.listen()
    session, back = hub.publisher()
    for n in range(1, 101):
        hub.publish(session, n)
        hub.clock.advance()
    assert len(hub.thread.jobs) == 1
    hub.turn()
    assert texts(wire) == [str(n) for n in range(1, 101)]
    assert hub.manager.counters.commits == 2
    assert [m["n"] for m in back.read("ack")] == [1, 100]


def test_a_duplicate_is_acknowledged_when_the_first_is_committed(hub: DurableHub) -> None:
    session, back = hub.publisher()
    hub.publish(session, 1)
    hub.clock.advance()
    hub.publish(session, 1)
    hub.clock.advance()
    assert back.read("ack") == []
    hub.turn()
    assert [m["n"] for m in back.read("ack")] == [1, 1]
    assert hub.manager.history.seq == 1


def test_a_reconnecting_publisher_gets_the_last_committed_number(hub: DurableHub) -> None:
    session, _ = hub.publisher()
    hub.publish(session, 1)
    hub.turn()
    hub.publish(session, 2)
    hub.clock.advance()
    again, back = hub.publisher()
    assert [m["n"] for m in back.read("welcome")] == [1]
    hub.publish(again, 2)
    hub.turn()
    assert hub.manager.history.seq == 2, "and what it sends again counts once"


@pytest.mark.parametrize("written", [False, True])
def test_a_server_killed_in_the_middle_of_a_batch(hub: DurableHub, tmp_path: Path, written: bool) -> None:
    """Before its transaction or after it, nobody has seen the batch; and everybody gets it once."""
    wire = hub.listen()
    session, _ = hub.publisher()
    for n in (1, 2):
        hub.publish(session, n)
        hub.turn()
    seen = wire.read()[-1]
    hub.publish(session, 3)
    hub.clock.advance()
    if written:
        hub.thread.run_one(tell=False)
    hub.kill()

    again = DurableHub(tmp_path)
    back = Wire()
    again.manager.connect(back, since=Since(epoch=seen["epoch"], seq=seen["seq"]))
    session, publisher = again.publisher()
    assert [m["n"] for m in publisher.read("welcome")] == [3 if written else 2]
    for n in (3, 4):  # it was not told, so it sends the third again
        again.publish(session, n)
    again.turn()
    messages = back.read()
    assert [(m["seq"], m["questions"]) for m in messages] == [(3, ["3"]), (4, ["4"])]
    again.kill()


def test_tasks_fail_if_their_publisher_does_not_reconnect_after_a_restart(hub: DurableHub, tmp_path: Path) -> None:
    for id in ("stays", "goes"):
        session, _ = hub.publisher(id)
        hub.progress(session, 1, f"task of {id}")
        hub.say(session, type="offer", engine={"id": id, "index": "i"})
    hub.turn()
    hub.kill()
    again = DurableHub(tmp_path)
    wire = again.listen()
    again.publisher("stays")
    again.turn()
    again.clock.advance(11)
    again.turn()
    assert [m["engines"] for m in wire.read("engines")][-1] == []
    tasks = again.manager.history.snapshot().tasks
    assert {task.task_id: task.state for task in tasks} == {"task of stays": "running", "task of goes": "failed"}
    again.kill()


def test_a_listener_far_behind_is_served_from_the_archive(hub: DurableHub) -> None:
    for number in range(200):
        hub.broadcast(f"{number} " + "x" * 2_000)
        if number % 10 == 0:
            hub.turn()
    hub.turn()
    history = hub.manager.history
    assert not history.reaches(0)
    wires = [Wire(), Wire()]
    session = hub.manager.connect(wires[0], since=Since(epoch=history.epoch, seq=0))
    hub.manager.connect(wires[1], since=Since(epoch=history.epoch, seq=120))
    session.receive('{"type":"ping","id":"while it waits"}')
    hub.manager.wake(session)
    assert [m["type"] for m in wires[0].read()] == ["pong"], "replies do not wait for the archive"
    session.receive('{"type":"subscribe","id":"s"}')
    hub.broadcast("new")
    hub.turn()
    first, second = (wire.read() for wire in wires)
    assert [m["seq"] for m in first if m["type"] != "snapshot"] == list(range(1, 202))
    assert [m["seq"] for m in second] == list(range(121, 202))
    assert first[-2]["type"] == "snapshot", "it stands where it was asked for"
    assert history.gaps == 0


def test_archive_reads_for_listeners_take_turns(hub: DurableHub) -> None:
    for number in range(200):
        hub.broadcast(f"{number} " + "x" * 500)
        hub.turn()
    since = Since(epoch=hub.manager.history.epoch, seq=0)
    wires = [Wire() for _ in range(50)]
    sessions = [hub.manager.connect(wire, since=since) for wire in wires]
    for number in range(10):  # while they wait, the others get what is new, and they ask for nothing twice
        hub.broadcast(f"new {number}")
        hub.clock.advance()
    assert len(hub.manager.commits._readers) == 49
    hub.manager.disconnect(sessions[0])
    hub.manager.disconnect(sessions[1])
    sessions[2].receive(json.dumps({"type": "subscribe", "since": {"epoch": since.epoch, "seq": 100}}))
    hub.manager.wake(sessions[2])
    hub.turn()
    assert not hub.manager.commits._readers
    assert [wires[number].read() for number in (0, 1)] == [[], []]
    assert [m["seq"] for m in wires[2].read("follow_up_questions")] == list(range(101, 211))
    for wire in wires[3:]:
        assert [m["seq"] for m in wire.read()] == list(range(1, 211))


def test_publishers_wait_for_a_slow_disk(hub: DurableHub) -> None:
    session, _ = hub.publisher()
    n = 0
    while not hub.manager.commits.backlogged:
        hub.publish(session, n := n + 1, questions=["x" * 100_000])
        hub.clock.advance()
    assert n < 100
    hub.turn()
    assert not hub.manager.commits.backlogged


def test_the_end_of_a_task_that_waits_for_the_disk_prevents_its_failure(hub: DurableHub) -> None:
    wire = hub.listen()
    session, _ = hub.publisher()
    hub.progress(session, 1, "t")
    hub.turn()
    hub.progress(session, 2, "t", "done")
    hub.manager.disconnect(session)
    hub.clock.advance(15)  # more than the grace, and the disk still works
    hub.turn()
    hub.clock.advance(15)
    hub.turn()
    assert [m["state"] for m in wire.read("indexing_progress")] == ["running", "done"]


def test_events_deleted_before_they_are_read_are_a_gap(tmp_path: Path) -> None:
    hub = DurableHub(tmp_path, max_bytes=100_000)
    for number in range(80):
        hub.broadcast(f"{number}")
        hub.turn()
    wire = Wire()
    hub.manager.connect(wire, since=Since(epoch=hub.manager.history.epoch, seq=0))
    hub.broadcast("x" * 95_000)  # what it asked for is deleted for this
    write = next(job for job in hub.thread.jobs)
    hub.thread.jobs.remove(write)
    hub.clock.advance()
    hub.thread.jobs.append(write)
    hub.turn()
    gap, *rest = wire.read()
    assert (gap["type"], gap["snapshot"]["seq"], rest) == ("gap", 81, [])
    hub.kill()


def test_an_event_larger_than_the_archive_is_sent_and_deleted(tmp_path: Path) -> None:
    hub = DurableHub(tmp_path, max_bytes=100_000)
    wire = hub.listen()
    for text in ("small", "x" * 200_000):
        hub.broadcast(text)
        hub.turn()
    assert [m["seq"] for m in wire.read()] == [1, 2]
    hub.kill()
    again = DurableHub(tmp_path, max_bytes=100_000)
    wire = again.listen()
    again.broadcast("after")
    again.turn()
    assert [m["seq"] for m in wire.read()] == [3], "no number is given twice"
    again.kill()


def test_topics_apply_to_archive_reads(hub: DurableHub) -> None:
    for number in range(100):
        hub.broadcast(str(number))
        hub.manager.append(IndexingProgress(task_id=str(number), index="i", state="done"))
        hub.turn()
    wire = Wire()
    session = hub.manager.connect(wire)
    since = {"epoch": hub.manager.history.epoch, "seq": 0}
    session.receive(json.dumps({"type": "subscribe", "topics": ["indexing_progress"], "since": since}))
    hub.manager.wake(session)
    hub.turn()
    *events, snapshot = wire.read()
    assert [m["task_id"] for m in events] == [str(n) for n in range(100)]
    assert snapshot["type"] == "snapshot"


def test_an_archive_that_cannot_be_read_makes_a_gap(hub: DurableHub, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(200):
        hub.broadcast(str(number))
        hub.turn()

    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(hub.archive, "read", fail)
    wire = Wire()
    hub.manager.connect(wire, since=Since(epoch=hub.manager.history.epoch, seq=0))
    hub.turn()
    (gap,) = wire.read()
    assert (gap["type"], gap["snapshot"]["seq"]) == ("gap", 200)


def test_a_full_disk_is_a_new_epoch_in_memory_and_back_again(
    hub: DurableHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wire = hub.listen()
    session, back = hub.publisher()
    hub.publish(session, 1)
    hub.progress(session, 2, "t")
    hub.turn()
    first = hub.manager.history.epoch
    wire.read(), back.read()

    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(hub.archive, "write", full)
    monkeypatch.setattr(hub.archive, "reset", full)
    hub.publish(session, 3)
    hub.turn()
    hub.publish(session, 4)
    hub.turn()
    second = hub.manager.history.epoch
    gap, three, four = wire.read()
    assert gap["type"] == "gap"
    assert {m["epoch"] for m in (gap["snapshot"], three, four)} == {second} != {first}
    assert [m["questions"] for m in (three, four)] == [["3"], ["4"]]
    assert four["seq"] == three["seq"] + 1 == gap["snapshot"]["seq"] + 2
    assert [m["n"] for m in back.read("ack")] == [3, 4], "in memory is better than not at all"
    assert "history_dir" in caplog.text
    hub.clock.advance(61)
    hub.turn()
    assert hub.manager.history.epoch == second

    monkeypatch.undo()
    hub.clock.advance(61)
    hub.turn()
    hub.publish(session, 5)
    hub.turn()
    messages = wire.read()
    third = hub.manager.history.epoch
    assert third not in (first, second)
    assert [m["type"] for m in messages] == ["gap", "indexing_progress", "follow_up_questions"]
    hub.kill()
    again = DurableHub(tmp_path)
    assert again.manager.history.epoch == third
    late = Wire()
    again.manager.connect(late, since=Since(epoch=third, seq=messages[0]["snapshot"]["seq"]))
    again.turn()
    assert [m["type"] for m in late.read()] == ["indexing_progress", "follow_up_questions"]
    _, back = again.publisher()
    assert [m["n"] for m in back.read("welcome")] == [5]
    again.kill()


def test_close_commits_the_remaining_events(hub: DurableHub, tmp_path: Path) -> None:
    wire = hub.listen()

    async def end() -> None:
        loop = asyncio.get_running_loop()
        manager = WebSocketManager(
            history=hub.manager.history,
            timers=loop,
            log=logging.getLogger("test"),
            archive=hub.archive,
            thread=Worker(loop.call_soon_threadsafe),
        )
        session = manager.connect(wire)
        manager.append(FollowUpQuestions(questions=["last words"]))
        closing = asyncio.create_task(manager.close())
        await eventually(lambda: wire.closed)
        manager.disconnect(session)
        await closing

    asyncio.run(end())
    assert wire.closed == (1001, "the server is stopping")
    assert texts(wire) == ["last words"]
    archive = Archive(tmp_path / "h.sqlite")
    assert archive.load(max_events=10, max_bytes=10**6).seq == 1
    archive.close()
