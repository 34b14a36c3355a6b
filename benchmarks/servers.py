"""Server processes and their cost: the hub in a real Jupyter server, and the servers it is compared with."""

from __future__ import annotations

import contextlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from benchmarks.load import client_frame
from ragkit.live.messages import Hello, Origin, Publish, encode
from tests.server.live_server import TOKEN, Server, is_listening, start_server

__all__ = [
    "ORIGIN", "TOKEN", "contestant", "cpu_seconds", "end_children", "hello", "hub", "prepare", "publishing",
    "rss_bytes",
]  # fmt: skip

START_SECONDS = 60.0
ORIGIN = Origin(kind="notebook", name="01_quickstart.ipynb", run_id="5d0c0f7be3aa4d0d8a7a1d1c0f1f5f0a")


def prepare() -> None:
    """Raise the limit of open files to its maximum, and shut down cleanly on Ctrl-C and SIGTERM."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.default_int_handler)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of all threads of a process, including ended ones."""
    # As clock_getcpuclockid(3): in nanoseconds, while /proc/PID/stat counts hundredths of a second.
    return time.clock_gettime((~pid << 3) | 2)


def rss_bytes(pid: int) -> int:
    """Return the resident memory of a process."""
    return int(psutil.Process(pid).memory_info().rss)


def hello(publisher: str) -> bytes:
    """Return a publisher's first frame."""
    return client_frame(encode(Hello(publisher=publisher, origin=ORIGIN)))


def publishing() -> Callable[..., bytes]:
    """Return a function that creates the frames of one publisher, numbering its events."""
    n = 0

    def publish(event: object) -> bytes:
        nonlocal n
        n += 1
        return client_frame(encode(Publish(n=n, event=event)))

    return publish


@contextlib.contextmanager
def hub(*arguments: str) -> Iterator[Server]:
    """Start a Jupyter server with the extension in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="ragkit-bench-", ignore_cleanup_errors=True) as folder:
        server = start_server(Path(folder), *arguments)
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def contestant(name: str) -> Iterator[tuple[int, int]]:
    """Start a server of `benchmarks.contestants`; yields its port and process id."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.contestants", name, str(port)])
    try:
        ends = time.monotonic() + START_SECONDS
        while not is_listening(port):
            if process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError(f"the contestant {name} did not start")
            time.sleep(0.05)
        yield port, process.pid
    finally:
        process.kill()
        process.wait()


def end_children() -> None:
    """Kill the remaining children of this process, because Ctrl-C may arrive at any time."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(children, timeout=5)
