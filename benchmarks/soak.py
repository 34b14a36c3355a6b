"""Soak test of the hub: half an hour of failures, and a check that no event was lost.

Run it from the repository root: ``python -m benchmarks.soak [MINUTES]``. Publishers run tasks, engines
answer, listeners connect, resume, disconnect, or do not read; publishers and engines are killed; the server
is killed once and stopped once, and restarted in the same folders. An auditor listens from the first to the
last event, across all restarts. The test checks that

- no terminal event, result or follow-up is lost or duplicated, for the auditor and all resuming listeners;
- tasks of killed publishers end as failed, and no others do;
- every query gets exactly one response or error, ENGINE_LOST when its engine is killed;
- the server's memory and its file descriptors do not grow after a warm-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import psutil
from websockets.exceptions import WebSocketException

from benchmarks.audit import Broadcasts, Ledger, Record, Sample, judge, judge_other, judge_replies, judge_use
from benchmarks.load import handshake
from benchmarks.servers import TOKEN, end_children, prepare
from ragkit.errors import ServerError
from ragkit.live.discovery import Server as Address
from ragkit.live.handshake import dial
from tests.server.live_server import Server, is_listening, start_server

SETTLE_SECONDS = 300.0
WORKERS, ENGINES, RESUMERS, VISITORS, DEAF, ASKERS = 4, 2, 4, 8, 3, 3
RESTARTS = {0.4: signal.SIGKILL, 0.7: signal.SIGTERM}  # time as a fraction of the run
KILL_SECONDS = (5.0, 10.0)  # between two killed publishers or engines
GRACE_SECONDS = 10.0  # RagkitApp.publisher_grace_seconds
REPLY_SECONDS = 60.0
START_SECONDS = 60.0
LOST = (OSError, WebSocketException, ServerError)

decode: Any = msgspec.json.Decoder().decode


@dataclass(slots=True)
class Service:
    """The server across restarts."""

    server: Server
    environment: dict[str, str]
    lives: list[list[Sample]] = field(default_factory=lambda: [[]])

    @property
    def address(self) -> Address:
        return Address(f"http://127.0.0.1:{self.server.port}/", TOKEN)

    def sample(self) -> Sample | None:
        """Record its current resource use, unless it is down."""
        try:
            process = psutil.Process(self.server.process.pid)
            living = sum(one.status == psutil.CONN_ESTABLISHED for one in process.net_connections("tcp"))
            sample = Sample(time.monotonic(), process.memory_info().rss, process.num_fds() - living, living)
        except psutil.Error:
            return None
        self.lives[-1].append(sample)
        return sample

    def end(self, how: signal.Signals) -> None:
        self.server.process.send_signal(how)
        self.server.process.wait(START_SECONDS)

    def start_again(self) -> None:
        """Restart it on the same port and in the same folders."""
        self.lives.append([])
        with self.server.log_path.open("ab") as log:
            self.server.process = subprocess.Popen(
                self.server.process.args, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        ends = time.monotonic() + START_SECONDS
        while not is_listening(self.server.port):
            if self.server.process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError("the server did not start again")
            time.sleep(0.05)


@dataclass(slots=True)
class Kernels:
    """The running publishers and engines, and the records of all publishers."""

    service: Service
    folder: Path
    workers: list[tuple[Path, subprocess.Popen[bytes]]] = field(default_factory=list)
    engines: list[subprocess.Popen[bytes]] = field(default_factory=list)
    ledgers: dict[Path, bool] = field(default_factory=dict)  # record -> whether its publisher was killed
    _numbers: Any = field(default_factory=lambda: itertools.count(1))

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "RAGKIT_URL": self.service.address.url,
            "RAGKIT_TOKEN": TOKEN,
            "RAGKIT_JOURNAL_DIR": str(self.service.server.journal_dir),
        }
        with (self.folder / "kernels.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "benchmarks.kernels", *arguments],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=log,
            )  # fmt: skip

    def fill(self) -> None:
        """Start processes until the wanted number is running."""
        while len(self.workers) < WORKERS:
            path = self.folder / f"worker{next(self._numbers)}.txt"
            path.touch()
            self.ledgers[path] = False
            self.workers.append((path, self._start("work", str(path))))
        while len(self.engines) < ENGINES:
            self.engines.append(self._start("serve", f"engine{next(self._numbers)}"))

    def kill_worker(self) -> None:
        path, process = self.workers.pop(random.randrange(len(self.workers)))
        self.ledgers[path] = True
        process.kill()
        process.wait()

    def kill_engine(self) -> None:
        process = self.engines.pop()  # the newest, which answers the queries
        process.kill()
        process.wait()

    def finish(self) -> None:
        """Let all processes end normally."""
        processes = [*(process for _, process in self.workers), *self.engines]
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        ends = time.monotonic() + 90
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, ends - time.monotonic()))


# ---------------------------------------------------------------------------------------------------- listeners


async def listen(service: Service, record: Record, seconds: float) -> None:
    """Listen on one connection for ``seconds``, resuming after the last event of the record."""
    resume = f"?epoch={record.epoch}&seq={record.seq}" if record.epoch else ""
    with contextlib.suppress(TimeoutError, *LOST):
        async with asyncio.timeout(seconds), await dial(service.address, f"api/v1/ws{resume}", right="read") as socket:
            record.connections += 1
            async for frame in socket:
                record.take(decode(frame))


async def audit(service: Service, record: Record) -> None:
    while True:
        await listen(service, record, 86_400)
        await asyncio.sleep(0.1)


async def come_back(service: Service, record: Record) -> None:
    while True:
        await listen(service, record, random.uniform(2, 15))
        await asyncio.sleep(random.uniform(0.1, 8))


async def visit(service: Service, broadcasts: Broadcasts, visits: list[Record]) -> None:
    while True:
        visits.append(Record(broadcasts))
        await listen(service, visits[-1], random.uniform(0.5, 20))
        await asyncio.sleep(random.uniform(0, 3))


async def ignore(service: Service) -> None:
    """Connect and never read."""
    loop = asyncio.get_running_loop()
    while True:
        with contextlib.suppress(OSError), socket.socket() as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            deaf.setblocking(False)
            await loop.sock_connect(deaf, ("127.0.0.1", service.server.port))
            await loop.sock_sendall(deaf, handshake(service.server.port, "/api/v1/ws", TOKEN))
            await asyncio.sleep(random.uniform(5, 70))
        await asyncio.sleep(1)


async def ask(service: Service, asker: int, replies: Counter[str]) -> None:
    """Ask questions one after the other; count their outcomes."""
    numbers = itertools.count(1)
    while True:
        asked = False
        try:
            async with await dial(service.address, "api/v1/ws", right="read") as socket:
                await socket.send('{"type": "subscribe", "topics": []}')
                while True:
                    id = f"{asker}-{next(numbers)}"
                    query = {"type": "query", "id": id, "content": {"question": f"What is {id}?", "context": {}}}
                    await socket.send(msgspec.json.encode(query), text=True)
                    asked = True
                    async with asyncio.timeout(REPLY_SECONDS):
                        outcome = ""
                        while not outcome:
                            outcome = _outcome(decode(await socket.recv()), id)
                            if outcome == "to another query":
                                replies[outcome] += 1
                                outcome = ""
                    replies[outcome] += 1
                    asked = False
                    await asyncio.sleep(random.uniform(0.1, 1.0))
        except TimeoutError:
            replies["no reply"] += asked
        except LOST:
            replies["connection lost"] += asked
        await asyncio.sleep(0.5)


def _outcome(message: dict[str, Any], id: str) -> str:
    if message["type"] not in ("response", "error"):
        return ""
    if message.get("id") != id:
        return "to another query"
    return str(message["content"]["code"]) if message["type"] == "error" else "response"


# ---------------------------------------------------------------------------------------------------- the run


async def disturb(kernels: Kernels) -> None:
    """Kill a publisher and an engine alternately at intervals, and start replacements."""
    for kill in itertools.cycle((kernels.kill_engine, kernels.kill_worker)):
        await asyncio.sleep(random.uniform(*KILL_SECONDS))
        kill()
        kernels.fill()


async def restart(service: Service, seconds: float) -> None:
    began = time.monotonic()
    for share, how in RESTARTS.items():
        await asyncio.sleep(max(0.0, began + share * seconds - time.monotonic()))
        service.sample()
        print(f"{time.monotonic() - began:6.0f} s: {how.name} to the server", flush=True)
        await asyncio.to_thread(service.end, how)
        await asyncio.sleep(random.uniform(0, 3))
        await asyncio.to_thread(service.start_again)


async def watch(service: Service, auditor: Record, every: float) -> None:
    began = time.monotonic()
    for round in itertools.count():
        await asyncio.sleep(every)
        sample = service.sample()
        if sample is not None and round % 6 == 5:
            print(
                f"{sample.at - began:6.0f} s: {sample.rss / 1e6:.1f} MB, {sample.files} files, {sample.connections} "
                f"connections, seq {auditor.seq:,}",
                flush=True,
            )


async def until(condition: Callable[[], object], seconds: float) -> None:
    """Wait for a condition, at most ``seconds``."""
    for _ in range(round(10 * seconds)):
        if condition():
            return
        await asyncio.sleep(0.1)


async def run(service: Service, kernels: Kernels, seconds: float) -> list[str]:
    """Run the soak test; return the problems found."""
    broadcasts = Broadcasts()
    auditor, resumers = Record(broadcasts), [Record(broadcasts) for _ in range(RESUMERS)]
    visits: list[Record] = []
    replies: Counter[str] = Counter()
    every = min(10.0, seconds / 60)
    async with asyncio.TaskGroup() as group:
        auditing = group.create_task(audit(service, auditor))
        await until(lambda: auditor.connections, START_SECONDS)  # before any event
        kernels.fill()
        watching = group.create_task(watch(service, auditor, every))
        listeners = [
            *(group.create_task(come_back(service, record)) for record in resumers),
            *(group.create_task(visit(service, broadcasts, visits)) for _ in range(VISITORS)),
            *(group.create_task(ignore(service)) for _ in range(DEAF)),
            *(group.create_task(ask(service, i, replies)) for i in range(ASKERS)),
        ]
        disturbing = group.create_task(disturb(kernels))
        restarting = group.create_task(restart(service, seconds))
        await asyncio.sleep(seconds)
        disturbing.cancel()
        await restarting
        for task in listeners[-ASKERS:]:  # before their engines end
            task.cancel()
        await asyncio.to_thread(kernels.finish)
        ledgers = [Ledger.read(path, killed=killed) for path, killed in kernels.ledgers.items()]
        await until(lambda: not judge(auditor, ledgers), 2 * GRACE_SECONDS + 5)
        service.sample()
        for task in (auditing, watching, *listeners):
            task.cancel()
    await asyncio.sleep(2)
    left = service.sample()
    service.lives[-1].pop()
    problems = judge(auditor, ledgers)
    for record in resumers:
        problems += [f"a listener that resumed saw: {problem}" for problem in judge_other(record, auditor)]
    problems += [f"a visitor saw: {problem}" for record in visits for problem in record.problems()]
    problems += judge_replies(replies)
    if left is not None and left.connections:
        problems.append(f"{left.connections} connections are open after all clients have disconnected")
    noted, killed = sum(len(ledger.noted) for ledger in ledgers), sum(ledger.killed for ledger in ledgers)
    print(
        f"\n{len(ledgers)} publishers, {killed} of them killed, recorded {noted:,} events that must not be lost. "
        f"The auditor saw {auditor.events:,} events, {len(auditor.said):,} of these, over "
        f"{auditor.connections} connections, with {auditor.skipped:,} superseded events omitted; "
        f"{len(auditor.failed)} tasks failed."
    )
    print(
        f"{sum(record.connections for record in resumers)} resumed connections, with "
        f"{sum(record.skipped for record in resumers):,} superseded events omitted; {len(visits)} visits."
    )
    print("Replies: " + ", ".join(f"{count:,} {outcome}" for outcome, count in replies.most_common()))
    return problems + judge_use(service.lives, min(SETTLE_SECONDS, seconds / 5))


def main() -> int:
    seconds = 60 * float(sys.argv[1] if len(sys.argv) > 1 else 30)
    prepare()
    with tempfile.TemporaryDirectory(prefix="ragkit-soak-", ignore_cleanup_errors=True) as folder:
        try:
            server = start_server(Path(folder))
            service = Service(server, psutil.Process(server.process.pid).environ())
            work = run(service, Kernels(service, Path(folder)), seconds)
            problems = asyncio.run(asyncio.wait_for(work, seconds + 300))
        except KeyboardInterrupt:
            return 130
        finally:
            end_children()
    for problem in problems:
        print(f"FAILED: {problem}")
    print("ok" if not problems else f"{len(problems)} problems")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
