"""Connections through a proxy that closes idle connections, and peers that vanish without a close frame."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import pytest
from websockets.exceptions import ConnectionClosed

from ragkit.live.discovery import Server as Address
from ragkit.live.messages import FollowUpQuestions, Origin
from ragkit.live.publisher import Publisher
from tests.server.live_server import TOKEN, Server, StartServer, receive, receive_type, say, within

pytestmark = pytest.mark.anyio


class Proxy:
    """A TCP proxy that cuts a connection when nothing has passed for a while, in either direction alone.

    ``silent``: it forwards nothing any more, and closes nothing, as a broken network does.
    """

    def __init__(self, port: int, *, idle_seconds: float) -> None:
        self.to_port = port
        self.idle_seconds = idle_seconds
        self.cut = 0
        self.silent = False
        self.port = 0
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", self.to_port)
        for source, target in ((reader, there[1]), (there[0], writer)):
            self._pipes.add(asyncio.create_task(self._forward(source, target, (writer, there[1]))))
            self._writers.add(target)

    async def _forward(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, both: tuple[asyncio.StreamWriter, ...]
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                try:
                    data = await asyncio.wait_for(source.read(65_536), self.idle_seconds)
                except TimeoutError:
                    self.cut += 1
                    break
                if not data:
                    break
                if not self.silent:
                    target.write(data)
                    await target.drain()
        if not self.silent:
            for writer in both:
                writer.close()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for pipe in self._pipes:
                pipe.cancel()
            await asyncio.gather(*self._pipes, return_exceptions=True)
            for writer in self._writers:
                writer.close()
            await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)


def through(proxy: Proxy, server: Server) -> Server:
    return Server(proxy.port, server.base_url, server.process, server.log_path, server.journal_dir)


async def test_pings_keep_an_idle_proxy_from_cutting_in_both_directions(start: StartServer) -> None:
    """At a 60th of real time: the proxy cuts after 1 s, the server pings each 25/60 s as it does each 25 s."""
    server = start("--RagkitApp.ping_interval_seconds=0.4167")
    async with Proxy(server.port, idle_seconds=1.0).running() as proxy:
        far = through(proxy, server)
        async with far.open(ping_interval=None) as listener, far.publisher(ping_interval=None) as publisher:
            await asyncio.sleep(4)
            assert proxy.cut == 0
            await say(publisher, type="publish", n=1, event={"type": "follow_up_questions", "questions": ["Still?"]})
            assert (await receive(listener))["questions"] == ["Still?"]
    without = start("--RagkitApp.ping_interval_seconds=0")
    async with Proxy(without.port, idle_seconds=1.0).running() as proxy:
        async with through(proxy, without).open(ping_interval=None) as listener:
            with pytest.raises(ConnectionClosed):
                await receive(listener)
        assert proxy.cut >= 1, "the proxy does cut who is idle"


async def test_a_client_detects_a_server_that_has_vanished(server: Server) -> None:
    async with Proxy(server.port, idle_seconds=60).running() as proxy, through(proxy, server).open() as listener:
        await say(listener, type="ping", id="1")
        assert await receive_type(listener, "pong") == {"type": "pong", "id": "1"}
        proxy.silent = True
        await say(listener, type="ping", id="2")
        with pytest.raises(TimeoutError):
            await within(receive_type(listener, "pong"), 0.5)


async def test_a_publisher_reconnects_after_a_network_failure(start: StartServer) -> None:
    server = start("--RagkitApp.ping_interval_seconds=0.5")
    origin = Origin(kind="script", name="s", run_id="r")
    async with Proxy(server.port, idle_seconds=60).running() as proxy, server.open() as listener:
        url = f"http://127.0.0.1:{proxy.port}{server.base_url}"
        publisher = await asyncio.to_thread(lambda: Publisher(server=Address(url, TOKEN), origin=origin))
        try:
            publisher.publish(FollowUpQuestions(questions=["before"]))
            assert (await receive_type(listener, "follow_up_questions"))["questions"] == ["before"]
            proxy.silent = True
            publisher.publish(FollowUpQuestions(questions=["meanwhile"]))
            await asyncio.sleep(1.5)  # the server has found the connection dead by now
            proxy.silent = False
            began = time.monotonic()
            message = await within(receive_type(listener, "follow_up_questions"), 60)
            assert message["questions"] == ["meanwhile"]
            assert time.monotonic() - began < 60
        finally:
            await asyncio.to_thread(publisher.close)


async def test_publishers_keep_unacknowledged_events_when_the_server_stops(start: StartServer) -> None:
    server = start()
    url = f"http://127.0.0.1:{server.port}{server.base_url}"
    origin = Origin(kind="script", name="s", run_id="r")
    publisher = await asyncio.to_thread(lambda: Publisher(server=Address(url, TOKEN), origin=origin))
    heard: list[str] = []
    try:
        async with server.open() as listener:
            publisher.publish(FollowUpQuestions(questions=["0"]))
            last = await receive(listener)
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            for number in range(1, 300):
                publisher.publish(FollowUpQuestions(questions=[str(number)]))
                await asyncio.sleep(0.005)

            async def listen() -> None:
                nonlocal last
                while True:
                    last = await receive(listener)
                    heard.extend(last["questions"])

            with pytest.raises(ConnectionClosed) as closed:
                await listen()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
            await stopping
        again = start(port=server.port)
        async with again.open(f"api/v1/ws?epoch={last['epoch']}&seq={last['seq']}") as listener:
            while len(heard) < 299:
                heard += (await receive_type(listener, "follow_up_questions"))["questions"]
    finally:
        await asyncio.to_thread(publisher.close)
    assert heard == [str(number) for number in range(1, 300)]
