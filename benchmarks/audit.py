"""Evaluate a soak test: compare published events with the events that listeners received, and check resource use.

A publisher records each event that must not be lost *before* it publishes it, and records ``flushed`` when all
earlier events are acknowledged. If a publisher was killed, its flushed events must arrive; later ones may arrive;
no event may arrive twice. The hub must end the tasks of a killed publisher as failed.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Broadcasts", "Ledger", "Record", "Sample", "judge", "judge_other", "judge_replies", "judge_use"]

MAX_GROWTH_BYTES = 10 * 10**6
MAX_MORE_FILES = 5
TERMINAL = {"done", "failed", "cancelled"}
Said = tuple[str, str]  # ended, follow_up or result; and its id


def must_arrive(message: dict[str, Any]) -> Said | None:
    """Return the kind and id of an event that must arrive exactly once, or None for other broadcasts."""
    match message:
        case {"type": "follow_up_questions", "questions": [id, *_]}:
            return "follow_up", id
        case {"type": "experiment_result", "row": {"id": id}}:
            return "result", id
        case {"task_id": id, "state": state} if state in TERMINAL:
            return "ended", id
    return None


@dataclass(slots=True)
class Sample:
    """Resource use of the server. ``files`` counts descriptors other than open connections."""

    at: float
    rss: int
    files: int
    connections: int


class Broadcasts:
    """Task events that any listener received; decides whether an event missed by one listener was superseded."""

    def __init__(self) -> None:
        self._tasks: dict[int, str] = {}  # seq -> task of a progress event
        self._newest: dict[str, int] = {}  # task -> seq of its newest event

    def take(self, seq: int, task: str, *, ended: bool) -> None:
        """Record an event of a task."""
        if not ended:
            self._tasks[seq] = task
        self._newest[task] = max(seq, self._newest.get(task, 0))

    def is_superseded(self, seq: int) -> bool:
        """Return whether this was progress of a task that has a newer event."""
        return seq in self._tasks and self._newest[self._tasks[seq]] > seq


class Record:
    """The events that one listener received over all its connections.

    Args:
        broadcasts: The task events of all listeners.

    Attributes:
        said: seq -> the event that must arrive exactly once.
        failed: The tasks that ended as failed.
        running: The tasks that were seen running.
        left_out: The events that it did not receive; all must be superseded progress.
        faults: Counts of violations.
    """

    def __init__(self, broadcasts: Broadcasts) -> None:
        self.broadcasts = broadcasts
        self.epoch = ""
        self.seq = self.first = 0
        self.events = self.connections = 0
        self.said: dict[int, Said] = {}
        self.failed: set[str] = set()
        self.running: set[str] = set()
        self.left_out: list[range] = []
        self.faults: Counter[str] = Counter()

    def take(self, message: dict[str, Any]) -> None:
        """Record a message."""
        if message["type"] == "gap":
            self.faults["gap"] += 1
            self.epoch, self.seq = message["snapshot"]["epoch"], message["snapshot"]["seq"]
            return
        if "seq" not in message or message["type"] == "snapshot":
            return
        epoch, seq = message["epoch"], message["seq"]
        if self.epoch and epoch != self.epoch:
            self.faults["another epoch"] += 1
        elif self.epoch and seq <= self.seq:
            self.faults["seq goes back"] += 1
        elif self.epoch and seq > self.seq + 1:
            self.left_out.append(range(self.seq + 1, seq))
        self.first = self.first or seq
        self.epoch, self.seq = epoch, seq
        self.events += 1
        if (said := must_arrive(message)) is not None:
            self.said[seq] = said
            if message.get("state") == "failed":
                self.failed.add(message["task_id"])
        elif "task_id" in message and "state" in message:
            self.running.add(message["task_id"])
        if "task_id" in message and "state" in message:
            self.broadcasts.take(seq, message["task_id"], ended=message["state"] in TERMINAL)

    @property
    def skipped(self) -> int:
        """Return the number of events that were omitted for this listener."""
        return sum(map(len, self.left_out))

    def problems(self) -> list[str]:
        """Return the violations: unexpected events, and missing events that were not superseded."""
        holes = [seq for missing in self.left_out for seq in missing if not self.broadcasts.is_superseded(seq)]
        problems = [f"{fault}, {count} times" for fault, count in self.faults.items()]
        if holes:
            problems.append(f"{len(holes)} holes in seq that are not superseded progress: {holes[:5]}")
        return problems


@dataclass(frozen=True, slots=True)
class Ledger:
    """The record of one publisher."""

    name: str
    killed: bool
    noted: tuple[Said, ...]
    flushed: int
    """The number of events that were acknowledged."""
    ended: bool
    lost: str
    """Its own counts of dropped or rejected events at its end."""

    @classmethod
    def read(cls, path: Path, *, killed: bool) -> Ledger:
        noted: list[Said] = []
        flushed, ended, lost = 0, False, ""
        # The last line of a killed publisher may be incomplete.
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            word, _, rest = line.partition(" ")
            if word == "flushed":
                flushed = len(noted)
            elif word == "closed":
                ended, lost = True, rest
            else:
                noted.append((word, rest))
        return cls(path.stem, killed, tuple(noted), flushed, ended, lost)

    @property
    def certain(self) -> tuple[Said, ...]:
        """The events that must have arrived."""
        return self.noted[: self.flushed] if self.killed else self.noted


def judge(record: Record, ledgers: list[Ledger]) -> list[str]:
    """Return the problems in the auditor's record; empty if there are none."""
    seen = Counter(record.said.values())
    problems = [f"the auditor saw: {problem}" for problem in record.problems()]

    def complain(what: str, which: list[Said] | list[str]) -> None:
        if which:
            problems.append(f"{len(which)} {what}: {', '.join(map(str, which[:5]))}")

    complain("doubled", [said for said, times in seen.items() if times > 1])
    complain("lost", [said for ledger in ledgers for said in ledger.certain if said not in seen])
    complain("did not end by themselves", [each.name for each in ledgers if not (each.killed or each.ended)])
    complain("lost events by their own count", [f"{each.name} ({each.lost})" for each in ledgers if each.lost])
    noted = {said for ledger in ledgers for said in ledger.noted}
    killed = {ledger.name for ledger in ledgers if ledger.killed}
    ended = {id for kind, id in seen if kind == "ended"}
    complain("failed though their publisher lived", [id for id in record.failed if id.split("-")[0] not in killed])
    complain("were never published", [said for said in seen if said not in noted and said[1] not in record.failed])
    complain("tasks never ended", sorted(record.running - ended))
    return problems


def judge_other(record: Record, auditor: Record) -> list[str]:
    """Return the differences between a listener and the auditor, between the listener's first and last event."""
    problems = record.problems()
    expected = {seq: said for seq, said in auditor.said.items() if record.first <= seq <= record.seq}
    if missing := expected.keys() - record.said.keys():
        problems.append(f"{len(missing)} lost: {', '.join(str(expected[seq]) for seq in sorted(missing)[:5])}")
    return problems


def judge_replies(replies: Counter[str]) -> list[str]:
    """Return unexpected outcomes of queries, and expected outcomes that did not occur."""
    problems = [
        f"replies: {replies[outcome]} {outcome}"
        for outcome in replies.keys() - {"response", "ENGINE_LOST", "NO_ENGINE", "connection lost"}
    ]
    return problems + [f"replies: not one {outcome}" for outcome in ("response", "ENGINE_LOST") if not replies[outcome]]


def judge_use(lives: list[list[Sample]], settle_seconds: float) -> list[str]:
    """Compare the first and the last samples of each server process after a warm-up."""
    problems = []
    for number, life in enumerate(lives, 1):
        settled = [sample for sample in life if sample.at - life[0].at >= settle_seconds]
        if len(settled) < 2:
            print(f"life {number}: too short to judge what the server uses")
            continue
        edge = max(1, min(3, len(settled) // 2))
        first, last = settled[:edge], settled[-edge:]
        rss = [statistics.median(sample.rss for sample in samples) for samples in (first, last)]
        files = [statistics.median(sample.files for sample in samples) for samples in (first, last)]
        print(
            f"life {number}: {life[0].rss / 1e6:.1f} MB at first, {rss[0] / 1e6:.1f} MB settled, {rss[1] / 1e6:.1f} MB "
            f"{settled[-1].at - settled[0].at:.0f} s later ({(rss[1] - rss[0]) / 1e6:+.1f}); "
            f"files {files[0]:.0f}, then {files[1]:.0f}"
        )
        if rss[1] - rss[0] > MAX_GROWTH_BYTES:
            problems.append(f"life {number}: memory grew by {(rss[1] - rss[0]) / 1e6:.1f} MB")
        if files[1] - files[0] > MAX_MORE_FILES:
            problems.append(f"life {number}: {files[1] - files[0]:.0f} more files")
    return problems
