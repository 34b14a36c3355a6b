"""Measure the cost of one `Publisher.publish` for its caller, for different states of the server.

Run it from the repository root: ``python -m benchmarks.publish``. It prints the median and the 99th
percentile in microseconds, and fails if a median for events every millisecond or faster is above the
limit. The floor is the time of a bare ``deque.append((time.time(), event))`` in the same loop: after a
pause of 50 ms, cold CPU caches account for most of the figure.
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator

from ragkit.live.discovery import Server
from ragkit.live.messages import IndexingProgress
from ragkit.live.publisher import Publisher
from tests.support.hub import eventually, running

BAR_MICROSECONDS = 10.0
# Name: events, pause in seconds.
PACES = {"back to back": (3_000, 0.0), "every ms": (2_000, 0.001), "every 50 ms": (100, 0.05)}


def measure(
    publish: Callable[[IndexingProgress], object],
    count: int,
    pause_seconds: float,
    half_way: Callable[[], object] | None = None,
) -> list[float]:
    """Publish events; return the time of each call in microseconds."""
    took = []
    for i in range(count):
        if half_way is not None and i == count // 2:
            half_way()
        event = IndexingProgress(task_id="t", index="i", state="running", documents_done=i, documents_total=count)
        began = time.perf_counter_ns()
        publish(event)
        took.append((time.perf_counter_ns() - began) / 1_000)
        if pause_seconds:
            time.sleep(pause_seconds)
    return took


@contextlib.contextmanager
def closed_port() -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(
            ("127.0.0.1", 0)
        )  # bound but not listening: refuses connections, and no other process can take the port
        yield Server(f"http://127.0.0.1:{probe.getsockname()[1]}/")


def case(name: str, count: int, pause_seconds: float) -> list[float]:
    if name == "floor":
        bare: deque[object] = deque()
        return measure(lambda event: bare.append((time.time(), event)), count, pause_seconds)
    with contextlib.ExitStack() as stack:
        half_way: Callable[[], object] | None = None
        if name == "down":
            server = stack.enter_context(closed_port())
        else:
            hub = stack.enter_context(running(reads=name != "slow"))
            server = hub.server
            half_way = hub.stop if name == "gone mid-way" else None
        publisher = Publisher(server=server)
        stack.callback(publisher.close)
        expected = "no connection" if name == "down" else "connected"
        eventually(lambda: publisher.state.startswith(expected))
        return measure(publisher.publish, count, pause_seconds, half_way)


def main() -> int:
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["RAGKIT_JOURNAL_DIR"] = folder
        print(f"{'server':14} {'events':14} {'median us':>10} {'p99 us':>10}")
        for name in ("floor", "up", "down", "slow", "gone mid-way"):
            for pace, (count, pause) in PACES.items():
                took = case(name, count, pause)
                median = statistics.median(took)
                print(f"{name:14} {pace:14} {median:10.2f} {statistics.quantiles(took, n=100)[98]:10.2f}")
                if pause <= 0.001:
                    worst = max(worst, median)
    print(f"worst median {worst:.2f} us; the limit is {BAR_MICROSECONDS:g}")
    return int(worst >= BAR_MICROSECONDS)


if __name__ == "__main__":
    sys.exit(main())
