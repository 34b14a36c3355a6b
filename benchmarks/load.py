"""Thousands of listeners on plain sockets, in a separate process.

A WebSocket library needs more time to receive a frame than the hub to send it, so on two shared cores the
benchmark would measure the client. `Crowd` only reads frame headers, counts frames and answers pings;
`Load` runs it in a child process and controls it from the benchmark.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import select
import signal
import socket
import struct
import time
from array import array
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

__all__ = ["Load", "client_frame", "handshake"]

BATCH = 100  # concurrent handshakes: fewer than the backlog of any server here
PAUSE_SECONDS = 0.001  # between two rounds of reading, so that the writer does not wake this process for each frame
BUFFER_BYTES = 2**18
DEADLINE_SECONDS = 60.0
HOST = "127.0.0.1"


def client_frame(payload: bytes, opcode: int = 1) -> bytes:
    """Return ``payload`` as a client's frame, with the mask 0, which does not change it."""
    size, first = len(payload), 0x80 | opcode
    if size < 126:
        return struct.pack("!BB4x", first, 0x80 | size) + payload
    if size <= 0xFFFF:
        return struct.pack("!BBH4x", first, 0x80 | 126, size) + payload
    return struct.pack("!BBQ4x", first, 0x80 | 127, size) + payload


def handshake(port: int, path: str, token: str = "", *, compression: bool = True) -> bytes:
    """Return the request that opens a WebSocket; browsers always offer ``compression``."""
    extension = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" if compression else ""
    authorization = f"Authorization: token {token}\r\n" if token else ""
    return (
        f"GET {path} HTTP/1.1\r\nHost: {HOST}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        f"{extension}{authorization}\r\n"
    ).encode()


class _Group:
    """Listeners that are counted together, and their publisher."""

    def __init__(self) -> None:
        self.sockets: list[_Socket] = []
        self.publisher: _Socket | None = None
        self.frames = 0
        self.lost = 0
        self.last = b""  # the newest frame's payload
        self.delays: array[int] | None = None  # nanoseconds from the stamp in a frame to its arrival


class _Socket:
    """One connection. ``rest``: the received part of an incomplete frame or handshake reply."""

    __slots__ = ("group", "open", "rest", "socket")

    def __init__(self, connected: socket.socket, group: _Group) -> None:
        self.socket = connected
        self.group = group
        self.open = False
        self.rest = b""

    def take(self, buffer: bytearray, size: int) -> None:
        """Process ``size`` received bytes."""
        data: bytes | bytearray = buffer
        if self.rest:
            data = self.rest + bytes(memoryview(buffer)[:size])
            size = len(data)
        at = 0 if self.open else self._shake(data, size)
        group = self.group
        while self.open and size - at >= 2:
            start, length = at + 2, data[at + 1]
            if length == 126:
                start = at + 4
                length = data[at + 2] << 8 | data[at + 3] if start <= size else size
            elif length == 127:
                start = at + 10
                length = int.from_bytes(data[at + 2 : start]) if start <= size else size
            if (end := start + length) > size:
                break
            if data[at] & 0x8F == 0x81:  # a whole text, compressed or not
                group.frames += 1
                if group.delays is not None:
                    stamp = data.index(b'"@', start, end) + 2
                    group.delays.append(time.monotonic_ns() - int(data[stamp : data.index(b'"', stamp)]))
            elif data[at] == 0x89:
                with contextlib.suppress(OSError):  # closed, which the next read detects
                    self.socket.send(client_frame(bytes(data[start:end]), 10))
            at = end
            if at == size:
                group.last = bytes(data[start:end])
        self.rest = bytes(memoryview(data)[at:size]) if at < size else b""

    def _shake(self, data: bytes | bytearray, size: int) -> int:
        end = data.find(b"\r\n\r\n", 0, size)
        if end < 0:
            return 0
        if not data.startswith(b"HTTP/1.1 101"):
            raise ConnectionError(f"the handshake was refused: {bytes(data[:end])!r}")
        self.open = True
        return end + 4


class Crowd:
    """Groups of listeners, each with a publisher; every method returns within its deadline or raises."""

    def __init__(self) -> None:
        self._groups: dict[str, _Group] = {}
        self._sockets: dict[int, _Socket] = {}
        self._stuck: list[tuple[_Socket, int]] = []  # with the bytes that they read per second
        self._trickled = 0.0
        self._epoll = select.epoll()
        self._buffer = bytearray(BUFFER_BYTES)

    # ------------------------------------------------------------------ orders

    def join(
        self,
        name: str,
        port: int,
        count: int,
        *,
        token: str = "",
        bytes_per_second: int | None = None,
        compression: bool = True,
    ) -> float:
        """Add listeners to a group; return the seconds that this took.

        Listeners with ``bytes_per_second`` (may be 0) read no more than that after the handshake, and are not
        counted.
        """
        began = time.monotonic()
        group = self._groups.setdefault(name, _Group())
        for done in range(0, count, BATCH):
            batch = [
                self._connect(
                    group, port, "/api/v1/ws", token, small=bytes_per_second is not None, compression=compression
                )
                for _ in range(min(BATCH, count - done))
            ]
            self._await(lambda batch=batch: all(one.open for one in batch), f"{name}: handshakes")
            if bytes_per_second is None:
                group.sockets += batch
                continue
            for one in batch:
                self._epoll.unregister(one.socket)
                self._stuck.append((one, bytes_per_second))
        gc.freeze()  # exclude long-lived objects from garbage collection
        return time.monotonic() - began

    def leave(self, name: str) -> None:
        """Close a group's listeners and its publisher."""
        group = self._groups.pop(name)
        for one in [*group.sockets, *([group.publisher] if group.publisher else ())]:
            self._close(one)
        for one in [one for one, _ in self._stuck if one.group is group]:
            self._close(one)
        self._stuck = [(one, rate) for one, rate in self._stuck if one.group is not group]

    def publisher(self, name: str, port: int, *, token: str = "", hello: bytes = b"") -> None:
        """Connect a group's publisher; wait for the reply to ``hello``."""
        group = self._groups.setdefault(name, _Group())
        speaker = group.publisher = self._connect(_Group(), port, "/api/v1/engine", token)
        self._await(lambda: speaker.open, f"{name}: the publisher's handshake")
        if hello:
            self._send(speaker, hello)
            self._await(lambda: speaker.group.frames, f"{name}: the reply to hello")

    def exchange(self, name: str, bursts: Sequence[tuple[bytes, int]], *, deadline: float = DEADLINE_SECONDS) -> float:
        """Publish each of ``bursts`` once all listeners have received the previous one.

        Args:
            name: The group.
            bursts: The bytes to send on the publisher's socket, and the resulting number of frames at each listener.
            deadline: Seconds for each.

        Returns:
            The total seconds.
        """
        group = self._groups[name]
        began = time.monotonic()
        assert group.publisher is not None
        for data, frames in bursts:
            wanted = group.frames + frames * len(group.sockets)
            self._send(group.publisher, data)
            self._await_frames(name, wanted, deadline)
        return time.monotonic() - began

    def clock(self, name: str) -> None:
        """From now on, record the delay of each frame of a group since the timestamp in it."""
        self._groups[name].delays = array("q")

    def expect(self, name: str, frames: int, *, deadline: float = DEADLINE_SECONDS) -> None:
        """Wait until every listener of a group has received ``frames`` more frames."""
        group = self._groups[name]
        self._await_frames(name, group.frames + frames * len(group.sockets), deadline)

    def delays(self, name: str) -> tuple[float, float, float]:
        """Return the median, the 99th percentile and the maximum delay since `clock`, in milliseconds."""
        noted = sorted(self._groups[name].delays or ())
        return noted[len(noted) // 2] / 1e6, noted[len(noted) * 99 // 100] / 1e6, noted[-1] / 1e6

    def lost(self, name: str) -> int:
        """Return how many connections of a group the server has closed."""
        return self._groups[name].lost

    def rest(self, seconds: float, *, pause: float = PAUSE_SECONDS) -> None:
        """Only read for ``seconds``, every ``pause`` seconds."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            self._read(min(0.1, seconds))
            time.sleep(pause)

    def frames(self, name: str) -> int:
        """Return the number of frames that a group has received."""
        return self._groups[name].frames

    def last(self, name: str) -> bytes:
        """Return the payload of the newest frame of a group."""
        return self._groups[name].last

    # ------------------------------------------------------------------ sockets

    def _connect(
        self, group: _Group, port: int, path: str, token: str, *, small: bool = False, compression: bool = False
    ) -> _Socket:
        connected = socket.socket()
        if small:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        connected.settimeout(DEADLINE_SECONDS)
        connected.connect((HOST, port))
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.sendall(handshake(port, path, token, compression=compression))
        connected.setblocking(False)
        one = self._sockets[connected.fileno()] = _Socket(connected, group)
        self._epoll.register(connected, select.EPOLLIN)
        return one

    def _close(self, one: _Socket) -> None:
        self._sockets.pop(one.socket.fileno(), None)
        one.socket.close()  # which also removes it from the epoll set

    def _send(self, one: _Socket, data: bytes) -> None:
        rest = memoryview(data)
        ends = time.monotonic() + DEADLINE_SECONDS
        while rest:
            try:
                rest = rest[one.socket.send(rest) :]
            except BlockingIOError:
                self._read(0.01)
                if time.monotonic() > ends:
                    raise TimeoutError("the server does not read what is published") from None

    def _read(self, timeout: float) -> bool:
        """Read from every ready socket; return whether an order of the benchmark is waiting."""
        buffer, sockets, ordered = self._buffer, self._sockets, False
        if self._stuck:
            self._trickle()
        for fd, _ in self._epoll.poll(timeout):
            one = sockets.get(fd)
            if one is None:
                ordered = True
                continue
            try:
                size = one.socket.recv_into(buffer)
            except BlockingIOError:
                continue
            except ConnectionError:
                size = 0
            if size:
                one.take(buffer, size)
            else:
                one.group.lost += 1
                self._close(one)
        return ordered

    def _trickle(self) -> None:
        if time.monotonic() - self._trickled > 1:
            self._trickled = time.monotonic()
            for one, rate in self._stuck:
                with contextlib.suppress(OSError):  # no data, or closed by the server
                    one.socket.recv(rate) if rate else None

    def _await_frames(self, name: str, wanted: int, deadline: float) -> None:
        group = self._groups[name]
        self._await(lambda: group.frames >= wanted or group.lost, f"{name}: frames", deadline)
        if group.frames != wanted or group.lost:
            raise ConnectionError(f"{name}: {group.frames - wanted:+} frames, {group.lost} connections lost")

    def _await(self, condition: Callable[[], object], what: str, deadline: float = DEADLINE_SECONDS) -> None:
        ends = time.monotonic() + deadline
        while not condition():
            self._read(0.1)
            if time.monotonic() > ends:
                raise TimeoutError(f"{what} did not come within {deadline:g} s")
            time.sleep(PAUSE_SECONDS)

    def obey(self, orders: Connection) -> None:
        """Execute orders until the benchmark closes the pipe."""
        self._epoll.register(orders.fileno(), select.EPOLLIN)
        while True:
            if not self._read(1.0):
                continue
            try:
                name, arguments, options = orders.recv()
            except (EOFError, ConnectionResetError):
                return
            try:
                orders.send((True, getattr(self, name)(*arguments, **options)))
            except Exception as problem:
                orders.send((False, f"{type(problem).__name__}: {problem}"))


def _run(orders: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the benchmark handles Ctrl-C, and this process ends with it
    with contextlib.suppress(BrokenPipeError):
        Crowd().obey(orders)


class Load:
    """A `Crowd` in a child process, for a ``with`` block: ``load.do("join", "hub", 8888, 500)``."""

    def __enter__(self) -> Load:
        context = multiprocessing.get_context("spawn")  # a forked child would inherit our end of the pipe
        self._orders, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._orders.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def do(self, order: str, *arguments: Any, within: float = 300, **options: Any) -> Any:
        """Send an order to the crowd; return its result."""
        self.ask(order, *arguments, **options)
        return self.answer(within)

    def ask(self, order: str, *arguments: Any, **options: Any) -> None:
        """Send an order to the crowd without waiting for the result."""
        self._order = order
        self._orders.send((order, arguments, options))

    def answer(self, within: float) -> Any:
        """Return the result of the last order."""
        if not self._orders.poll(within):
            raise TimeoutError(f"the load client did not {self._order} within {within:g} s")
        went_well, result = self._orders.recv()
        if not went_well:
            raise RuntimeError(f"the load client could not {self._order}: {result}")
        return result
