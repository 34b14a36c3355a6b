"""Simulated kernels, each in a separate process with a real `ragkit.live.Publisher`.

``python -m benchmarks.kernels``, with RAGKIT_URL and RAGKIT_TOKEN in the environment, and::

    pace COUNT PER_SECOND   publish at a constant rate; each event has its time (all processes of a machine share
                            the monotonic clock). Prints ``ready``, and starts at a line on stdin
    work LEDGER             run indexing tasks and experiments, and record the events that must not be lost in a file
    serve NAME              answer queries slowly

The last two end when their stdin is closed.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import sys
import time
from pathlib import Path

from ragkit.live.discovery import Server
from ragkit.live.messages import (
    Engine,
    ExperimentProgress,
    ExperimentResult,
    FollowUpQuestions,
    IndexingProgress,
    Origin,
    QueryContent,
    ResponseContent,
)
from ragkit.live.publisher import Publisher
from ragkit.live.serving import Reply
from tests.support.hub import eventually

WARM_UP = 20
FILLER = "x" * 100
FLUSH_SECONDS = 45.0  # longer than the server's downtime


def publisher(name: str) -> Publisher:
    server = Server(os.environ["RAGKIT_URL"], os.environ["RAGKIT_TOKEN"])
    return Publisher(server=server, origin=Origin(kind="script", name=name, run_id=name))


def stamped() -> FollowUpQuestions:
    return FollowUpQuestions(questions=[f"@{time.monotonic_ns()}", FILLER])


def pace(count: int, per_second: float) -> int:
    kernel = publisher("pace")
    eventually(lambda: kernel.state.startswith("connected"), kernel.state)
    for _ in range(WARM_UP):
        kernel.publish(stamped())
    print("ready" if kernel.flush() else "not acknowledged", flush=True)
    sys.stdin.readline()
    began = time.monotonic()
    for i in range(count):
        time.sleep(max(0.0, began + i / per_second - time.monotonic()))
        kernel.publish(stamped())
    safe = kernel.flush(FLUSH_SECONDS)
    kernel.close()
    return int(not safe)


def is_wanted() -> bool:
    """Return whether stdin is still open."""
    return not select.select([sys.stdin], [], [], 0)[0]


def work(ledger: Path) -> int:
    name = ledger.stem
    kernel = publisher(name)
    chance = random.Random(name)
    # Line-buffered, so that recorded lines survive the process however it ends.
    with ledger.open("a", buffering=1, encoding="utf-8") as notes:
        for k in itertools.count():
            if not is_wanted():
                break
            for step in range(total := chance.randint(5, 60)):
                kernel.publish(
                    IndexingProgress(
                        task_id=f"{name}-{k}", index=name, state="running", chunks_done=step, chunks_total=total
                    )
                )
                time.sleep(chance.uniform(0.002, 0.03))
            print(f"ended {name}-{k}", file=notes)
            kernel.publish(IndexingProgress(task_id=f"{name}-{k}", index=name, state="done", chunks_done=total))
            print(f"follow_up {name}-{k}-q", file=notes)
            kernel.publish(FollowUpQuestions(questions=[f"{name}-{k}-q"]))
            for cell in range(3):
                kernel.publish(
                    ExperimentProgress(
                        task_id=f"{name}-{k}-e", experiment=name, state="running", cells_done=cell, cells_total=3
                    )
                )
                print(f"result {name}-{k}-{cell}", file=notes)
                row = {"id": f"{name}-{k}-{cell}", "nDCG@10": chance.random()}
                kernel.publish(ExperimentResult(task_id=f"{name}-{k}-e", experiment=name, row=row))
                time.sleep(chance.uniform(0.002, 0.03))
            print(f"ended {name}-{k}-e", file=notes)
            kernel.publish(ExperimentProgress(task_id=f"{name}-{k}-e", experiment=name, state="done", cells_done=3))
            if k % 3 == 0 and kernel.flush(FLUSH_SECONDS):
                print("flushed", file=notes)
        safe = kernel.flush(FLUSH_SECONDS)
        kernel.close()
        counts = kernel.counts
        lost = f"{counts.dropped} dropped, {counts.rejected} rejected" if counts.dropped or counts.rejected else ""
        print(f"closed {lost}" if safe else "not flushed", file=notes)
    return int(not safe)


def answer(content: QueryContent, reply: Reply) -> None:
    for word in ("slowly ", "and ", "in ", "the ", "end: "):
        reply.delta(word)
        time.sleep(0.2)
    reply.respond(ResponseContent(answer=f"slowly and in the end: {content.question}", sources=[]))


def serve(name: str) -> int:
    kernel = publisher(name)
    with kernel.serve(Engine(id=name, index="handbook"), answer):
        sys.stdin.read()
    kernel.close()
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):  # the benchmark handles Ctrl-C and ends its children
        match sys.argv[1:]:
            case ["pace", count, per_second]:
                sys.exit(pace(int(count), float(per_second)))
            case ["work", ledger]:
                sys.exit(work(Path(ledger)))
            case ["serve", name]:
                sys.exit(serve(name))
