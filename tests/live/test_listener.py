"""`ragkit.live.listen` against a Jupyter server that is killed and restarted, and against a scripted hub."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import nbclient
import nbformat
import pytest
from websockets.asyncio.server import ServerConnection, serve

from ragkit.errors import InputError, ServerConnectionError, ServerNotFoundError
from ragkit.live.listener import Message, listen
from ragkit.live.messages import (
    FollowUpQuestions,
    Gap,
    IndexingProgress,
    ListenerMessage,
    Since,
    Snapshot,
)
from tests.server.live_server import (
    ROOT,
    TOKEN,
    Server,
    StartServer,
    eventually,
    receive_type,
    say,
    start_server,
    within,
)

Received = AsyncGenerator[ListenerMessage | Message, None]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("listen-server"), base_url="/user/x/")
    yield server
    server.stop()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    servers: list[Server] = []

    def start_one(**options: Any) -> Server:
        servers.append(start_server(tmp_path, **options))
        return servers[-1]

    yield start_one
    for server in servers:
        server.stop()


def address(server: Server) -> dict[str, str]:
    return {"url": f"http://127.0.0.1:{server.port}{server.base_url}", "token": TOKEN}


def status(server: Server) -> Any:
    request = Request(f"{address(server)['url']}api/v1/status", headers={"Authorization": f"token {TOKEN}"})
    with urlopen(request, timeout=30) as reply:
        return json.load(reply)


async def publish(server: Server, *texts: str, id: str = "", first: int = 1, **event: Any) -> None:
    async with server.publisher(id) as socket:
        for n, text in enumerate(texts, start=first):
            await say(socket, type="publish", n=n, event={"type": "follow_up_questions", "questions": [text]} | event)
        while (await receive_type(socket, "ack"))["n"] < first + len(texts) - 1:
            pass


async def following(received: Received, *, snapshots: bool = False) -> Any:
    """Return the next message; skip snapshots unless ``snapshots`` is set."""
    while True:
        message = await within(anext(received), 90)
        if snapshots or not isinstance(message, Snapshot):
            return message


async def questions(received: Received, count: int) -> list[str]:
    return [(await following(received)).questions[0] for _ in range(count)]


# ------------------------------------------------------------------------------ the real server


def test_a_snapshot_comes_first_and_then_every_event_in_order(server: Server) -> None:
    async def work() -> None:
        async with contextlib.aclosing(listen(**address(server))) as received:
            assert isinstance(await within(anext(received)), Snapshot)
            await publish(server, *map(str, range(50)))
            events = [await following(received) for _ in range(50)]
        assert [event.questions for event in events] == [[str(number)] for number in range(50)]
        assert all(isinstance(event, FollowUpQuestions) and event.origin.name == "demo.ipynb" for event in events)
        assert [event.seq for event in events] == list(range(events[0].seq, events[0].seq + 50))

    asyncio.run(work())


def test_each_event_comes_once_and_in_order_although_the_server_is_killed(
    start: StartServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ragkit.live.listener")

    async def work() -> None:
        server = start()
        async with contextlib.aclosing(listen(**address(server))) as received:
            assert isinstance(await within(anext(received)), Snapshot)
            events = []
            for life in range(3):
                names = [f"{life}.{number}" for number in range(20)]
                await publish(server, *names[:10], id="p", first=20 * life + 1)
                events += [await following(received) for _ in range(5)]
                # The other five are buffered or were never received; none may be lost or come twice.
                server.kill()
                waiting = asyncio.create_task(following(received))
                server = await asyncio.to_thread(start, port=server.port)
                await publish(server, *names[10:], id="p", first=20 * life + 11)
                events += [await waiting, *[await following(received) for _ in range(14)]]
        assert [event.questions[0] for event in events] == [f"{life}.{n}" for life in range(3) for n in range(20)]
        assert len({event.epoch for event in events}) == 1

    asyncio.run(work())
    assert caplog.text.count("Connected again to http") == 3
    assert "Retrying until it works or is stopped." in caplog.text


def test_it_resumes_after_a_given_event(server: Server) -> None:
    async def work() -> None:
        async with contextlib.aclosing(listen(**address(server))) as received:
            await within(anext(received))
            await publish(server, "a", "b", "c")
            first = await following(received)
        for since in (first, Since(epoch=first.epoch, seq=first.seq), {"epoch": first.epoch, "seq": first.seq}):
            async with contextlib.aclosing(listen(since=since, **address(server))) as received:
                assert await questions(received, 2) == ["b", "c"]
                assert isinstance(await within(anext(received)), Snapshot), "after the missed events"
        async with contextlib.aclosing(listen(since={"epoch": "of old", "seq": 3}, **address(server))) as received:
            assert isinstance(await within(anext(received)), Gap)

    asyncio.run(work())


def test_only_events_of_the_topics_are_received(server: Server) -> None:
    async def work() -> None:
        async with contextlib.aclosing(listen(**address(server))) as received:
            place: Any = await within(anext(received))
        await publish(server, "before")
        topics = ["indexing_progress"]
        async with contextlib.aclosing(listen(topics=topics, since=place, **address(server))) as received:
            assert isinstance(await within(anext(received)), Snapshot), "and no missed event of another topic"
            await publish(server, "not this")
            await publish(server, "", type="indexing_progress", task_id="t", index="i", state="done")
            assert isinstance(await within(anext(received)), IndexingProgress)

    asyncio.run(work())


@pytest.mark.parametrize("how", ["break", "cancel", "aclose", "time"])
def test_the_connection_is_closed_however_the_iteration_ends(server: Server, how: str) -> None:
    async def use() -> None:
        received = listen(timeout_seconds=0.5 if how == "time" else None, **address(server))
        async for _ in received:
            assert status(server)["now"]["listeners"] >= 1
            if how == "break":
                break
            if how == "aclose":
                await received.aclose()

    async def work() -> None:
        task = asyncio.create_task(use())
        if how == "cancel":
            await asyncio.sleep(1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await within(task)
        await within(asyncio.wait([task]))
        if how != "cancel":
            task.result()
        await eventually(lambda: status(server)["now"]["listeners"] == 0)  # while this loop still runs

    asyncio.run(work())


def test_the_timeout_does_not_interrupt_the_processing_of_a_message(server: Server) -> None:
    async def work() -> list[object]:
        done = []
        async for message in listen(timeout_seconds=0.5, **address(server)):
            await asyncio.sleep(1.5)
            done.append(message)
        return done

    (snapshot,) = asyncio.run(work())
    assert isinstance(snapshot, Snapshot)


def test_it_finds_the_server_as_a_publisher_does(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGKIT_URL", address(server)["url"])
    monkeypatch.setenv("RAGKIT_TOKEN", TOKEN)

    async def work() -> object:
        async with contextlib.aclosing(listen()) as received:
            return await within(anext(received))

    assert isinstance(asyncio.run(work()), Snapshot)


def test_a_notebook_listens_to_what_it_broadcasts(server: Server, tmp_path: Path) -> None:
    cells = [
        "import asyncio, ragkit",
        """
async def talk():
    await asyncio.sleep(0.5)
    ragkit.broadcast({"type": "follow_up_questions", "questions": ["From a notebook?"]})
talking = asyncio.create_task(talk())
async for message in ragkit.live.listen(timeout_seconds=60, topics=["follow_up_questions"]):
    if not isinstance(message, ragkit.live.messages.Snapshot):
        print(message.questions, message.origin.kind)
        break
""",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    environment = {
        "PYTHONPATH": str(ROOT), "RAGKIT_URL": address(server)["url"], "RAGKIT_TOKEN": TOKEN,
        "RAGKIT_JOURNAL_DIR": str(tmp_path / "journal"),
    }  # fmt: skip
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3")
    client.execute(cwd=str(tmp_path), env=os.environ | environment)
    (output,) = notebook.cells[1].outputs
    assert output.text == "['From a notebook?'] notebook\n"


# -------------------------------------------------------------------------------------- refusals


def first(**options: Any) -> object:
    async def work() -> object:
        async with contextlib.aclosing(listen(**options)) as received:
            return await within(anext(received))

    return asyncio.run(work())


def test_a_refusal_explains_why_and_what_to_do(server: Server) -> None:
    with pytest.raises(ServerConnectionError, match=r"HTTP 403 with its token .*Set RAGKIT_URL and RAGKIT_TOKEN"):
        first(url=address(server)["url"], token="wrong-token-1234")
    with pytest.raises(ServerConnectionError, match=r"HTTP 404: this server runs without ragkit\. Install"):
        first(url=f"http://127.0.0.1:{server.port}/", token=TOKEN)


def test_without_a_server_it_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("RAGKIT_URL", "RAGKIT_TOKEN", "JUPYTER", "JPY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(ServerNotFoundError, match="jupyter lab"):
        first()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"topics": ["follow_ups"]}, "There is no topic 'follow_ups'. The topics are: engines, "),
        ({"topics": "engines"}, r"such as \['engines'\]"),
        ({"timeout_seconds": -1}, "at least 0, not -1"),
        ({"since": {"epoch": "e"}}, "its epoch and seq.*seq"),
        ({"since": FollowUpQuestions(questions=[])}, "its epoch and seq"),
    ],
)
def test_an_invalid_argument_is_rejected_at_once(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        listen(**options)


# ------------------------------------------------------------------------------ a scripted hub


@contextlib.asynccontextmanager
async def scripted_hub(*frames: str | bytes) -> AsyncIterator[dict[str, str]]:
    async def talk(socket: ServerConnection) -> None:
        await socket.recv()
        for frame in frames:
            await socket.send(frame)
        await socket.wait_closed()

    async with serve(talk, "127.0.0.1", 0) as server:
        yield {"url": f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"}


def test_unknown_messages_are_dicts_and_duplicates_are_dropped() -> None:
    event = {"type": "follow_up_questions", "questions": ["Why?"], "epoch": "e", "seq": 5}
    frames = [
        event | {"a key of tomorrow": 1}, event, event | {"seq": 4}, {"type": "a type of tomorrow", "seq": "x"},
        event | {"seq": 6, "questions": "Why?"}, {"type": "ping", "id": "p"}, [1], event | {"epoch": "f", "seq": 1},
    ]  # fmt: skip

    async def work() -> list[object]:
        async with scripted_hub("{", *map(json.dumps, frames)) as options:
            return [message async for message in listen(timeout_seconds=1, **options)]

    one, unknown, another_shape, new_epoch = asyncio.run(work())
    assert one == FollowUpQuestions(questions=["Why?"], epoch="e", seq=5)
    assert unknown == frames[3]
    assert another_shape == frames[4]
    assert new_epoch == FollowUpQuestions(questions=["Why?"], epoch="f", seq=1)
