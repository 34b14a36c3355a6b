"""Whatever happens to listeners, publishers, the disk and the server: no hole, no repeat, no reorder.

Random histories, without sockets. The model of a listener notes where it stands, leaves, comes back with
that, and judges what it is given against what was ever broadcast.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit.live.messages import Since
from ragkit_server.history.archive import Batch
from tests.server.hub_fakes import Wire
from tests.server.test_commits import DurableHub

TASKS = ("a", "b")


class Truth:
    """Every event that was ever committed, by epoch and seq."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, int], dict[str, Any]] = {}

    def watch(self, hub: DurableHub) -> DurableHub:
        """Learn what is committed, also what nobody hears of because the server is killed then."""
        write = hub.archive.write

        def write_and_learn(batch: Batch) -> int:
            horizon = write(batch)
            for record, _ in batch.events:
                self.learn(json.loads(record.payload))
            return horizon

        hub.archive.write = write_and_learn
        return hub

    def learn(self, message: dict[str, Any]) -> None:
        key = (message["epoch"], message["seq"])
        assert self.events.setdefault(key, message) == message, "one number, two events"

    def may_be_left_out(self, epoch: str, seq: int, newest: int) -> bool:
        """Whether newer progress of its task, up to seq ``newest``, makes this event worthless."""
        event = self.events[epoch, seq]
        return event["type"] == "indexing_progress" and any(
            self.events.get((epoch, later), {}).get("task_id") == event["task_id"]
            for later in range(seq + 1, newest + 1)
        )


class Listener:
    """A client that resumes after every reconnection."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.wire: Wire | None = None
        self.last: Since | None = None
        self.holes: list[tuple[str, int]] = []
        self.gaps = 0

    def come(self, hub: DurableHub) -> None:
        if self.wire is None:
            self.wire = Wire()
            self.session = hub.manager.connect(self.wire, since=self.last)

    def go(self, hub: DurableHub) -> None:
        if self.wire is not None:
            hub.manager.disconnect(self.session)
            self.read()
            self.wire = None

    def read(self) -> None:
        assert self.wire is not None
        for message in self.wire.read():
            if message["type"] in ("gap", "snapshot"):
                snapshot = message.get("snapshot", message)
                self.gaps += message["type"] == "gap"
                if message["type"] == "snapshot" and self.last is not None:
                    assert snapshot["seq"] >= self.last.seq
                self.last = Since(epoch=snapshot["epoch"], seq=snapshot["seq"])
                continue
            assert self.truth.events[message["epoch"], message["seq"]] == message, "seen, and not safe"
            if self.last is not None and self.last.epoch == message["epoch"]:
                assert message["seq"] > self.last.seq, "a repeat, or out of order"
                self.holes += [(message["epoch"], seq) for seq in range(self.last.seq + 1, message["seq"])]
            self.last = Since(epoch=message["epoch"], seq=message["seq"])


operation = st.one_of(
    st.tuples(st.just("say"), st.integers(1, 60)),
    st.tuples(st.just("progress"), st.integers(1, 40)),
    st.tuples(st.sampled_from(["end", "turn", "disk", "commit unheard", "crash"]), st.just(0)),
    st.tuples(st.sampled_from(["come", "go", "stick", "unstick"]), st.integers(0, 2)),
)


def play(folder: Path, operations: list[tuple[str, int]], **options: Any) -> tuple[Truth, list[Listener], Listener]:
    truth = Truth()
    hub = truth.watch(DurableHub(folder, **options))
    listeners = [Listener(truth) for _ in range(3)]
    auditor = Listener(truth)  # always there, so that it sees whatever is ever shown
    auditor.come(hub)
    count = 0

    def settle() -> None:
        hub.turn()
        auditor.read()

    for action, number in operations:
        match action:
            case "say":
                for _ in range(number):
                    hub.broadcast(str(count := count + 1))
            case "progress":
                session, _ = hub.publisher(TASKS[number % 2])
                for _ in range(number):
                    hub.progress(session, count := count + 1, TASKS[number % 2])
            case "end":
                session, _ = hub.publisher(TASKS[0])
                hub.progress(session, count := count + 1, TASKS[0], "done")
            case "turn":
                settle()
            case "disk" if hub.thread.jobs:
                hub.thread.run_one()
            case "come":
                listeners[number].come(hub)
            case "go":
                listeners[number].go(hub)
            case "stick" if (wire := listeners[number].wire) is not None:
                wire.stuck = True
            case "unstick" if (wire := listeners[number].wire) is not None:
                wire.unstick()
                hub.manager.drained(listeners[number].session)
            case "crash" | "commit unheard":
                if action == "commit unheard" and hub.thread.jobs:
                    hub.thread.run_one(tell=False)
                hub.kill()
                for listener in (*listeners, auditor):
                    if listener.wire is not None:
                        listener.read()  # what has arrived, has arrived; what waited in the server is gone
                        listener.wire = None
                hub = truth.watch(DurableHub(folder, **options))
                auditor.come(hub)
    for listener in listeners:
        listener.come(hub)
        assert listener.wire is not None
        listener.wire.unstick()
        hub.manager.drained(listener.session)
    hub.broadcast("the end")
    settle()
    for listener in listeners:
        listener.read()
    hub.kill()
    return truth, listeners, auditor


@settings(max_examples=150, deadline=None)
@given(st.lists(operation, max_size=30))
def test_a_reconnecting_listener_misses_nothing(operations: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        truth, listeners, auditor = play(Path(folder), operations)
    for listener in (*listeners, auditor):
        assert listener.gaps == 0, "everything is still on disk"
        assert listener.last == auditor.last
        for epoch, seq in listener.holes:
            assert truth.may_be_left_out(epoch, seq, auditor.last.seq)


@settings(max_examples=60, deadline=None)
@given(st.lists(operation, max_size=30))
def test_missing_events_are_reported_as_a_gap(operations: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        truth, listeners, auditor = play(Path(folder), operations, max_bytes=12_000)
    for listener in (*listeners, auditor):
        assert listener.last == auditor.last
        for epoch, seq in listener.holes:
            assert truth.may_be_left_out(epoch, seq, auditor.last.seq)
