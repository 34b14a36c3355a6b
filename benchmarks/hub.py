"""Measure the hub's cost in the Jupyter server; every figure has a required limit.

Run it from the repository root: ``python -m benchmarks.hub [ROW ...]``. It prints a table and fails if a
limit is missed. Servers, publishers and listeners are separate processes; a server's cost is the CPU time
of its process. The servers alternate in short rounds, so that other load on the machine affects all of
them, and the median round counts. Figures are ratios where possible, so that they are comparable between
machines.

fan-out  Cost of sending a message to one of 500 and of 5,000 listeners, one message at a time (each is
         published when all listeners have received the previous one, so each is a separate write), compared
         with a loop of os.write and FastAPI's ConnectionManager under uvicorn. Like browsers, listeners offer
         compression, which uvicorn accepts and the hub does not. The last line is without compression.
bursts   The same cost for 50 messages sent together, compared with 50 separate messages.
latency  From publish() in a kernel to 1,000 listeners, while one listener never reads and one is too slow.
memory   Memory of an idle listener, and of one that never reads.
status   Latency of another request to the Jupyter server while 5,000 listeners get 20 messages a second.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from benchmarks.load import Load, client_frame
from benchmarks.servers import (
    ORIGIN,
    TOKEN,
    contestant,
    cpu_seconds,
    end_children,
    hello,
    hub,
    prepare,
    publishing,
    rss_bytes,
)
from ragkit.live.messages import FollowUpQuestions, IndexingProgress, encode
from ragkit_server.transport.frames import text_frame
from tests.server.live_server import Server

MAX_TIMES_BARE = 1.5
MIN_TIMES_CHEAPER_THAN_FASTAPI = 4.0
MAX_BURST_SHARE = 0.5
MAX_LATENCY_MS = 50.0
MAX_IDLE_KB = 75.0
MAX_UNREAD_MIB = 2.0
MAX_STATUS_MS = 100.0

MESSAGE_BYTES = 300
ROUNDS = 15
BURST = 50
PACE_PER_SECOND = 20
PACE_SECONDS = 20
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table."""

    row: str
    figure: str
    bar: str
    ok: bool


def follow_ups(size: int) -> FollowUpQuestions:
    """Return an event whose broadcast has about ``size`` bytes."""
    bare = FollowUpQuestions(epoch="0" * 16, seq=1_000, time="2026-03-02T09:41:07.512Z", origin=ORIGIN, questions=[""])
    return msgspec.structs.replace(bare, questions=["x" * (size - len(encode(bare)))])


def progress(size: int) -> IndexingProgress:
    """Return a progress event of a running task; each supersedes the previous one."""
    return IndexingProgress(task_id="t", index="handbook", state="running", message="x" * size)


# ---------------------------------------------------------------------------------------------- fan-out, bursts


@dataclass(slots=True)
class Contestant:
    """A server to measure with ``burst`` messages at a time; ``make`` creates its publisher's messages."""

    name: str
    port: int
    pid: int
    make: Callable[[], bytes]

    def cost(self, load: Load, messages: int) -> tuple[float, float]:
        """Return the CPU seconds and the wall-clock seconds for ``messages`` messages, one at a time."""
        bursts = [(self.make(), 1) for _ in range(messages)]
        before = cpu_seconds(self.pid)
        took = load.do("exchange", self.name, bursts)
        return cpu_seconds(self.pid) - before, took


def fan_out(load: Load) -> Iterator[Figure]:
    event = follow_ups(MESSAGE_BYTES)
    publish = publishing()
    with (
        hub() as server,
        contestant("bare") as bare,
        contestant("fastapi") as fastapi,
        contestant("fastapi") as uncompressed,
    ):
        load.do("publisher", "hub", server.port, token=TOKEN, hello=hello("bench"))
        load.do("join", "hub", server.port, 1, token=TOKEN)
        load.do("exchange", "hub", [(publish(event), 1)])
        payload = load.do("last", "hub")  # so that the other servers send the same bytes as the hub
        contestants = [
            Contestant("hub", server.port, server.process.pid, lambda: publish(event)),
            Contestant("bare", *bare, lambda: text_frame(payload)),
            Contestant("fastapi", *fastapi, lambda: client_frame(payload)),
            Contestant("uncompressed", *uncompressed, lambda: client_frame(payload)),
        ]
        for each in contestants[1:]:
            load.do("publisher", each.name, each.port)
            load.do("join", each.name, each.port, 1, compression=each.name != "uncompressed")
        joined = 1
        for listeners in (500, 5_000):
            if listeners == 5_000:  # with four servers the client would run out of file descriptors
                load.do("leave", contestants.pop().name)
            for each in contestants:
                compression = each.name != "uncompressed"
                load.do("join", each.name, each.port, listeners - joined, token=TOKEN, compression=compression)
            joined = listeners
            yield from _compare(load, contestants, listeners)
        for each in contestants:
            load.do("leave", each.name)


def _compare(load: Load, contestants: list[Contestant], listeners: int) -> Iterator[Figure]:
    few, many = max(2, 5_000 // listeners), 10_000 // listeners
    messages = {"hub": many, "bare": many, "fastapi": few, "uncompressed": few}
    for each in contestants:
        each.cost(load, messages[each.name])
    began, at_first = time.monotonic(), {each.name: cpu_seconds(each.pid) for each in contestants}
    rounds: dict[str, list[tuple[float, float]]] = {each.name: [] for each in contestants}
    for _ in range(ROUNDS):
        for each in contestants:
            rounds[each.name].append(each.cost(load, messages[each.name]))
    span = time.monotonic() - began
    costs: dict[str, list[float]] = {}
    for each in contestants:
        used, busy = (sum(column) for column in zip(*rounds[each.name], strict=True))
        # During the rounds of the other servers it only sent pings.
        idle = (cpu_seconds(each.pid) - at_first[each.name] - used) / (span - busy)
        deliveries = messages[each.name] * listeners
        costs[each.name] = [1e6 * (cpu - idle * took) / deliveries for cpu, took in rounds[each.name]]
    of_bare = statistics.median(map(float.__truediv__, costs["hub"], costs["bare"]))
    cheaper = statistics.median(map(float.__truediv__, costs["fastapi"], costs["hub"]))
    micro = {name: statistics.median(values) for name, values in costs.items()}
    row = f"fan-out {listeners:,}"
    yield Figure(
        f"{row}, of os.write",
        f"{of_bare:.2f} x ({micro['hub']:.1f} of {micro['bare']:.1f} us)",
        f"<= {MAX_TIMES_BARE:g} x",
        of_bare <= MAX_TIMES_BARE,
    )
    yield Figure(
        f"{row}, FastAPI's of it",
        f"{cheaper:.2f} x ({micro['fastapi']:.1f} of {micro['hub']:.1f} us)",
        f">= {MIN_TIMES_CHEAPER_THAN_FASTAPI:g} x",
        cheaper >= MIN_TIMES_CHEAPER_THAN_FASTAPI,
    )
    if "uncompressed" in costs:
        cheaper = statistics.median(map(float.__truediv__, costs["uncompressed"], costs["hub"]))
        yield Figure(
            f"{row}, the same uncompressed",
            f"{cheaper:.2f} x ({micro['uncompressed']:.1f} of {micro['hub']:.1f} us)",
            "not judged",
            True,
        )


def bursts(load: Load) -> Iterator[Figure]:
    event, publish = follow_ups(MESSAGE_BYTES), publishing()
    apart: list[float] = []
    together: list[float] = []
    with hub() as server:
        pid = server.process.pid
        load.do("publisher", "hub", server.port, token=TOKEN, hello=hello("bench"))
        load.do("join", "hub", server.port, 500, token=TOKEN)
        load.do("exchange", "hub", [(publish(event), 1) for _ in range(10)])
        for _ in range(ROUNDS):
            for costs, sent in (
                (apart, [(publish(event), 1) for _ in range(BURST)]),
                (together, [(b"".join(publish(event) for _ in range(BURST)), BURST)]),
            ):
                before = cpu_seconds(pid)
                load.do("exchange", "hub", sent)
                costs.append((cpu_seconds(pid) - before) / BURST)
        load.do("leave", "hub")
    share = statistics.median(map(float.__truediv__, together, apart))
    micro = [1e6 * statistics.median(costs) for costs in (together, apart)]
    yield Figure(
        f"bursts of {BURST}, 500 listeners",
        f"{share:.2f} x ({micro[0]:,.0f} of {micro[1]:,.0f} us a message)",
        f"<= {MAX_BURST_SHARE:g} x",
        share <= MAX_BURST_SHARE,
    )


# ---------------------------------------------------------------------------------------------- latency, status


@contextlib.contextmanager
def kernel(server: Server, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process of `benchmarks.kernels` and wait until it is connected; a line on its stdin starts it."""
    environment = os.environ | {"RAGKIT_URL": f"http://127.0.0.1:{server.port}/", "RAGKIT_TOKEN": TOKEN}
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.kernels", *arguments],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the publisher could not connect")
            yield process
        finally:
            process.kill()


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def latency(load: Load) -> Iterator[Figure]:
    listeners, messages = 1_000, PACE_PER_SECOND * PACE_SECONDS
    publish = publishing()
    with hub() as server:
        load.do("publisher", "stuck", server.port, token=TOKEN, hello=hello("bench"))
        load.do("join", "stuck", server.port, 1, token=TOKEN)
        load.do("join", "stuck", server.port, 1, token=TOKEN, bytes_per_second=0)
        load.do("join", "stuck", server.port, 1, token=TOKEN, bytes_per_second=1_000)
        # More than all buffers in between can hold, so that these two listeners are behind from the start.
        load.do("exchange", "stuck", [(publish(follow_ups(100_000)), 1) for _ in range(100)])
        load.do("join", "crowd", server.port, listeners, token=TOKEN)
        with kernel(server, "pace", str(messages), str(PACE_PER_SECOND)) as process:
            load.do("rest", 1.0)  # receive the kernel's warm-up events
            load.do("clock", "crowd")
            begin(process)
            load.do("expect", "crowd", messages, deadline=PACE_SECONDS + 30)
        median, p99, worst = load.do("delays", "crowd")
        stuck = load.do("lost", "stuck")
        load.do("leave", "crowd")
        load.do("leave", "stuck")
    yield Figure(
        f"latency, {listeners:,} listeners and 2 stuck",
        f"p99 {p99:.1f} ms (median {median:.1f}, worst {worst:.1f}{f', {stuck} lost' if stuck else ''})",
        f"<= {MAX_LATENCY_MS:g} ms",
        p99 <= MAX_LATENCY_MS,
    )


def status(load: Load) -> Iterator[Figure]:
    listeners, messages = 5_000, PACE_PER_SECOND * PACE_SECONDS
    took: list[float] = []
    with hub() as server:
        load.do("join", "crowd", server.port, listeners, token=TOKEN)
        with kernel(server, "pace", str(messages), str(PACE_PER_SECOND)) as process:
            load.do("rest", 2.0)
            busy = cpu_seconds(server.process.pid)
            before = load.do("frames", "crowd")
            load.ask("rest", PACE_SECONDS + 5, pause=0.1)
            began = time.monotonic()
            begin(process)
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            while time.monotonic() < began + PACE_SECONDS:
                asked = time.monotonic()
                connection.request("GET", "/api/status", headers={"Authorization": f"token {TOKEN}"})
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"/api/status: {answer.status}")
                took.append(1_000 * (time.monotonic() - asked))
                time.sleep(0.05)
            connection.close()
            busy = (cpu_seconds(server.process.pid) - busy) / PACE_SECONDS
            load.answer(60)
            arrived = (load.do("frames", "crowd") - before) / messages / listeners
        load.do("leave", "crowd")
    p99 = statistics.quantiles(took, n=100)[98]
    yield Figure(
        f"status, {listeners:,} listeners",
        f"p99 {p99:.1f} ms (median {statistics.median(took):.1f}, worst {max(took):.1f}; {busy:.0%} CPU, "
        f"{arrived:.1%} arrived)",
        f"<= {MAX_STATUS_MS:g} ms",
        p99 <= MAX_STATUS_MS and arrived == 1,
    )


# ------------------------------------------------------------------------------------------------------- memory


def memory(load: Load) -> Iterator[Figure]:
    yield from _idle(load)
    yield from _unread(load)


def _idle(load: Load) -> Iterator[Figure]:
    listeners = 2_000
    with hub() as server:
        load.do("join", "warm-up", server.port, 100, token=TOKEN)
        load.do("rest", 3.0)
        before = rss_bytes(server.process.pid)
        load.do("join", "idle", server.port, listeners, token=TOKEN)
        load.do("rest", 3.0)
        max_concurrency = (rss_bytes(server.process.pid) - before) / listeners / 1_000
        load.do("rest", 30.0)  # each has been pinged
        later = (rss_bytes(server.process.pid) - before) / listeners / 1_000
        load.do("leave", "idle")
        load.do("leave", "warm-up")
    yield Figure(
        f"memory, each of {listeners:,} idle listeners",
        f"{max(max_concurrency, later):.1f} kB ({max_concurrency:.1f} at once, {later:.1f} after a ping)",
        f"<= {MAX_IDLE_KB:g} kB",
        max(max_concurrency, later) <= MAX_IDLE_KB,
    )


def _unread(load: Load) -> Iterator[Figure]:
    unread, chunks = 8, 20
    publish = publishing()
    large, small = follow_ups(100_000), progress(5_000)

    # Without pings, which would close the connection of a listener that does not answer before all is sent.
    with hub("--RagkitApp.ping_interval_seconds=0") as server:

        def most(count: int) -> int:
            """Publish 10 MB ``count`` times; return the maximum memory in between."""
            seen = 0
            for _ in range(count):
                ten = [(b"".join((*(publish(large) for _ in range(10)), publish(small))), 11) for _ in range(10)]
                load.do("exchange", "hub", ten)
                seen = max(seen, rss_bytes(server.process.pid))
            return seen

        load.do("publisher", "hub", server.port, token=TOKEN, hello=hello("bench"))
        load.do("join", "hub", server.port, 2, token=TOKEN)
        most(chunks // 2)  # the history is full now
        without = most(chunks)
        load.do("join", "hub", server.port, unread, token=TOKEN, bytes_per_second=0)
        added = (most(chunks) - without) / unread / MIB
        load.do("leave", "hub")
    yield Figure(
        f"memory, each of {unread} that never read",
        f"{added:.2f} MiB ({10 * chunks} MB sent; {without / MIB:.0f} MiB without)",
        f"<= {MAX_UNREAD_MIB:g} MiB",
        added <= MAX_UNREAD_MIB,
    )


ROWS: dict[str, Callable[[Load], Iterator[Figure]]] = {
    "fan-out": fan_out,
    "bursts": bursts,
    "latency": latency,
    "memory": memory,
    "status": status,
}


def main() -> int:
    chosen = sys.argv[1:] or list(ROWS)
    if unknown := set(chosen) - set(ROWS):
        print(f"There is no row '{min(unknown)}'. The rows are: {', '.join(ROWS)}.", file=sys.stderr)
        return 2
    prepare()
    figures: list[Figure] = []
    try:
        for name in chosen:
            with Load() as load:
                for figure in ROWS[name](load):
                    verdict = "ok" if figure.ok else "MISSED"
                    print(f"{figure.row:36} | {figure.figure:66} | {figure.bar:8} | {verdict}", flush=True)
                    figures.append(figure)
    except KeyboardInterrupt:
        return 130
    finally:
        end_children()
    return int(not all(figure.ok for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
