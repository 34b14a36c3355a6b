"""The hub with fake transports and a fake clock: broadcasts, publishers, grace period, shutdown."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from ragkit.live.messages import FollowUpQuestions, IndexingProgress
from ragkit_server.history.log import History
from ragkit_server.hub.manager import SLICE, WebSocketManager
from ragkit_server.hub.sessions import PublisherSession
from tests.server.hub_fakes import Clock, Wire


class Hub:
    """A manager with shortcuts for tests."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.clock = clock
        history = options.pop("history", None) or History()
        self.manager = WebSocketManager(history=history, timers=clock, log=logging.getLogger("test"), **options)

    def listen(self) -> Wire:
        wire = Wire()
        wire.session = self.manager.connect(wire)
        return wire

    def broadcast(self, text: str = "?") -> None:
        self.manager.append(FollowUpQuestions(questions=[text]))

    def publisher(self, id: str = "p") -> tuple[PublisherSession, Wire]:
        wire = Wire()
        session = self.manager.attach(wire)
        self.say(session, type="hello", publisher=id, origin={"kind": "notebook", "name": f"{id}.ipynb", "run_id": "r"})
        return session, wire

    def say(self, session: PublisherSession, **message: Any) -> None:
        self.manager.receive(session, json.dumps(message))

    def publish(self, session: PublisherSession, n: int, **event: Any) -> None:
        self.say(session, type="publish", n=n, event={"type": "follow_up_questions", "questions": [f"{n}"]} | event)

    def progress(self, session: PublisherSession, n: int, task: str, state: str = "running") -> None:
        self.publish(session, n, type="indexing_progress", task_id=task, index="i", state=state)


@pytest.fixture
def hub(clock: Clock) -> Hub:
    return Hub(clock)


def questions(wire: Wire) -> list[str]:
    return [message["questions"][0] for message in wire.read("follow_up_questions")]


def test_every_listener_gets_every_broadcast_in_order(hub: Hub) -> None:
    wires = [hub.listen() for _ in range(3)]
    for number in range(50):
        hub.broadcast(str(number))
    late = hub.listen()
    hub.clock.advance()
    hub.broadcast("last")
    hub.clock.advance()
    expected = [str(number) for number in range(50)] + ["last"]
    assert [questions(wire) for wire in wires] == [expected] * 3
    assert questions(late) == ["last"]


def test_a_burst_is_one_write(hub: Hub) -> None:
    class Counting(Wire):
        writes = 0

        def write(self, data: bytes) -> bool:
            self.writes += 1
            return super().write(data)

    wire = Counting()
    hub.manager.connect(wire)
    for _ in range(50):
        hub.broadcast()
    hub.clock.advance()
    assert wire.writes == 1
    assert len(wire.read()) == 50


def test_a_row_nested_too_deep_is_refused_and_takes_no_number(hub: Hub) -> None:
    wire = hub.listen()
    session, back = hub.publisher()
    row: Any = 1
    for _ in range(60):
        row = {"deeper": row}
    event = {"type": "experiment_result", "task_id": "t", "experiment": "e"}
    hub.publish(session, 1, **event, row=row)
    hub.publish(session, 2, **event, row={"flat": 1})
    hub.clock.advance()
    (error,) = back.read("error")
    assert error["content"]["code"] == "INVALID_MESSAGE"
    assert "50 levels" in error["content"]["message"]
    assert [(m["seq"], m["row"]) for m in wire.read()] == [(1, {"flat": 1})]
    hub.publish(session, 3, **event, row=row)
    hub.clock.advance()
    assert [m["n"] for m in back.read("ack")] == [3], "it need not be sent again"


def test_a_large_audience_is_served_in_slices_and_completely(hub: Hub) -> None:
    wires = [hub.listen() for _ in range(2 * SLICE + 1)]
    hub.broadcast("1")
    hub.clock.advance()
    hub.broadcast("2")
    hub.clock.advance()
    assert all(questions(wire) == ["1", "2"] for wire in wires)


@pytest.mark.parametrize("problem", [ConnectionResetError(), RuntimeError("a bug"), OSError(28, "no space")])
def test_only_the_broken_listener_is_dropped_during_a_broadcast(hub: Hub, problem: Exception) -> None:
    wires = [hub.listen() for _ in range(5)]
    wires[2].broken = problem
    hub.broadcast("1")
    hub.broadcast("2")
    hub.clock.advance()
    assert [questions(wire) for wire in wires] == [["1", "2"], ["1", "2"], [], ["1", "2"], ["1", "2"]]
    assert wires[2].closed is not None
    wires[2].broken = None
    hub.broadcast("3")
    hub.clock.advance()
    assert [questions(wire) for wire in wires] == [["3"], ["3"], [], ["3"], ["3"]]


def test_listeners_may_come_and_go_in_the_middle_of_a_broadcast(hub: Hub) -> None:
    came: list[Wire] = []

    class Busy(Wire):
        def write(self, data: bytes) -> bool:
            hub.manager.disconnect(second.session)
            hub.manager.disconnect(self.session)
            came.append(hub.listen())
            hub.broadcast("from inside")
            return super().write(data)

    first = Busy()
    first.session = hub.manager.connect(first)
    second, third = hub.listen(), hub.listen()
    hub.broadcast("1")
    hub.clock.advance()
    assert questions(second) == []
    assert questions(third) == ["1", "from inside"]
    assert questions(came[0]) == ["from inside"]
    hub.manager.disconnect(second.session)


def test_a_listener_that_never_reads_needs_no_memory_and_delays_no_other(clock: Clock) -> None:
    hub = Hub(clock, history=History(max_bytes=200_000))
    stuck, other = hub.listen(), hub.listen()
    stuck.stuck = True
    for number in range(2_000):
        hub.broadcast(f"{number} " + "x" * 500)
        hub.clock.advance()
    assert len(questions(other)) == 2_000
    assert len(stuck.waiting) < 2_000, "one write was tried; the rest is not queued for it"
    stuck.unstick()
    hub.manager.drained(stuck.session)
    first, gap = stuck.read()
    assert first["seq"] == 1
    assert (gap["type"], gap["snapshot"]["seq"]) == ("gap", 2_000)
    hub.broadcast("again")
    hub.clock.advance()
    assert questions(stuck) == ["again"]


def test_a_slow_listener_skips_superseded_progress_but_no_terminal_state(clock: Clock) -> None:
    hub = Hub(clock, history=History(coalesce_bytes=20_000))
    slow = hub.listen()
    slow.stuck = True
    hub.broadcast("kept")
    hub.clock.advance()
    for done in range(1_000):
        hub.manager.append(IndexingProgress(task_id="t", index="i", state="running", documents_done=done))
    hub.manager.append(IndexingProgress(task_id="t", index="i", state="done"))
    hub.clock.advance()
    slow.unstick()
    hub.manager.drained(slow.session)
    messages = slow.read()
    assert messages[0]["questions"] == ["kept"]
    assert messages[-1]["state"] == "done"
    assert len(messages) < 200
    assert "gap" not in {message["type"] for message in messages}


def test_events_are_acknowledged_and_broadcast_once(hub: Hub) -> None:
    wire = hub.listen()
    session, back = hub.publisher()
    for n in (1, 2, 2, 1, 3):
        hub.publish(session, n)
    hub.clock.advance()
    assert questions(wire) == ["1", "2", "3"]
    assert [(m["type"], m["n"]) for m in back.read()] == [("welcome", 0), ("ack", 3)]
    again, back = hub.publisher()
    hub.publish(again, 3)
    hub.publish(again, 4)
    hub.clock.advance()
    assert questions(wire) == ["4"]
    assert [(m["type"], m["n"]) for m in back.read()] == [("welcome", 3), ("ack", 4)]


def test_a_publisher_cannot_broadcast_engines(hub: Hub) -> None:
    wire = hub.listen()
    session, back = hub.publisher()
    hub.publish(session, 1, type="engines", engines=[])
    hub.clock.advance()
    assert wire.read() == []
    _welcome, *rest = back.read()
    assert sorted(message["type"] for message in rest) == ["ack", "error"]


def test_a_bad_frame_from_a_publisher_gets_an_error_and_the_next_is_read(hub: Hub) -> None:
    session, back = hub.publisher()
    for frame in ("{", b"x", '{"type":"query"}', '{"type":"publish","n":0}'):
        hub.manager.receive(session, frame)
    hub.publish(session, 1)
    hub.clock.advance()
    assert [message["type"] for message in back.read()] == ["welcome", "error", "error", "error", "error", "ack"]


def test_tasks_of_a_disconnected_publisher_fail_after_the_grace_period(hub: Hub) -> None:
    wire = hub.listen()
    session, _ = hub.publisher()
    for n, (task, state) in enumerate([("a", "running"), ("b", "queued"), ("c", "done")], start=1):
        hub.progress(session, n, task, state)
    hub.manager.disconnect(session)
    hub.clock.advance(9)
    wire.read()
    hub.clock.advance(2)
    ends = wire.read("indexing_progress")
    assert [(m["task_id"], m["state"], m["origin"]["name"]) for m in ends] == [
        ("a", "failed", "p.ipynb"),
        ("b", "failed", "p.ipynb"),
    ]
    assert "disconnected" in ends[0]["message"]
    hub.clock.advance(100)
    assert wire.read() == []


def test_tasks_continue_if_the_publisher_reconnects_in_time(hub: Hub) -> None:
    wire = hub.listen()
    session, _ = hub.publisher()
    hub.progress(session, 1, "a")
    hub.manager.disconnect(session)
    hub.clock.advance(9)
    again, _ = hub.publisher()
    hub.clock.advance(100)
    hub.progress(again, 2, "a", "done")
    hub.clock.advance()
    assert [m["state"] for m in wire.read()] == ["running", "done"]


def test_a_new_connection_replaces_the_publishers_old_one(hub: Hub) -> None:
    wire = hub.listen()
    session, old = hub.publisher()
    hub.say(session, type="offer", engine={"id": "e", "index": "i"})
    hub.progress(session, 1, "a")
    again, _ = hub.publisher()
    assert old.closed is not None
    hub.say(session, type="offer", engine={"id": "ghost", "index": "i"})
    hub.manager.disconnect(session)
    hub.clock.advance(100)
    assert [m["state"] for m in wire.read("indexing_progress")] == ["running"]
    hub.say(again, type="offer", engine={"id": "e", "index": "i"})
    hub.clock.advance()
    assert hub.manager.history.snapshot().engines[0].id == "e"
    assert len(hub.manager.engines.on_offer()) == 1


def test_engines_are_announced_and_withdrawn_with_their_publisher(hub: Hub) -> None:
    wire = hub.listen()
    session, _ = hub.publisher()
    hub.say(session, type="offer", engine={"id": "e", "index": "i"})
    hub.clock.advance()
    hub.manager.disconnect(session)
    hub.clock.advance()
    assert [[engine["id"] for engine in m["engines"]] for m in wire.read("engines")] == [["e"], []]


def test_close_sends_queued_messages_and_then_code_1001(clock: Clock) -> None:
    hub = Hub(clock)
    wire, stuck = hub.listen(), hub.listen()
    stuck.stuck = True
    _, publisher = hub.publisher()
    hub.broadcast("last words")
    asyncio.run(hub.manager.close(timeout_seconds=0.05))
    assert questions(wire) == ["last words"]
    assert [w.closed and w.closed[0] for w in (wire, stuck, publisher)] == [1001] * 3
    assert hub.listen().closed == (1001, "the server is stopping"), "who comes now is sent away"
