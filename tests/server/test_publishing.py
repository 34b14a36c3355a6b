"""ragkit's own publisher and a real server: what the one sends, the other broadcasts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from ragkit.live.discovery import Server as Address
from ragkit.live.messages import Engine, FollowUpQuestions, IndexingProgress, Origin, QueryContent, ResponseContent
from ragkit.live.publisher import Publisher
from tests.server.live_server import TOKEN, Server, StartServer, receive_type, say

pytestmark = pytest.mark.anyio

ORIGIN = Origin(kind="papermill", name="batch.ipynb", run_id="run-1")


def address(server: Server) -> Address:
    return Address(url=f"http://127.0.0.1:{server.port}{server.base_url}", token=TOKEN, pid=None, source="test")


async def in_thread(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return await asyncio.to_thread(function, *args, **options)


async def test_events_arrive_in_order_and_queries_are_answered(server: Server) -> None:
    publisher = await in_thread(Publisher, server=address(server), origin=ORIGIN)
    try:
        async with server.open() as listener:
            for number in range(100):
                publisher.publish(IndexingProgress(task_id="t", index="i", state="running", documents_done=number))
            publisher.publish(IndexingProgress(task_id="t", index="i", state="done", documents_done=100))
            assert await in_thread(publisher.flush, 30)
            done = -1
            while done < 100:
                message = await receive_type(listener, "indexing_progress")
                assert message["documents_done"] > done
                assert message["origin"]["run_id"] == "run-1"
                done = message["documents_done"]

            def answer(content: QueryContent, reply: Any) -> None:
                reply.delta("Be")
                reply.respond(ResponseContent(answer=f"Because of {content.question}", sources=[]))

            serving = await in_thread(publisher.serve, Engine(id="e", index="indexes/handbook"), answer)
            assert (await receive_type(listener, "engines"))["engines"][0]["id"] == "e"
            await say(listener, type="query", id="1", content={"question": "rain"})
            assert (await receive_type(listener, "response_delta"))["content"]["delta"] == "Be"
            assert (await receive_type(listener, "response"))["content"]["answer"] == "Because of rain"
            await in_thread(serving.stop)
            assert (await receive_type(listener, "engines"))["engines"] == []
    finally:
        await in_thread(publisher.close)


async def test_a_journal_of_the_publisher_is_adopted(
    start: StartServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAGKIT_JOURNAL_DIR", str(tmp_path / "journal"))
    nowhere = Address(url="http://127.0.0.1:9/", token=None, pid=None, source="test")
    publisher = await in_thread(Publisher, server=nowhere, origin=ORIGIN)
    for number in range(10):
        publisher.publish(FollowUpQuestions(questions=[f"{number}?"]))
    await in_thread(publisher.close, 5)
    server = start()
    async with server.open() as listener:
        questions: list[str] = []
        while len(questions) < 10:
            await say(listener, type="subscribe")
            snapshot = await receive_type(listener, "snapshot")
            questions = [event["questions"][0] for event in snapshot["follow_ups"]]
    assert questions == [f"{number}?" for number in range(10)]
