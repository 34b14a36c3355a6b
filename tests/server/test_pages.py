"""What can be looked at: the status, and the metrics on the Jupyter server's own page."""

from __future__ import annotations

import json

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.live_server import TOKEN, Server, StartServer, receive, receive_type, say

pytestmark = pytest.mark.anyio


async def get(server: Server, path: str, token: str | None = TOKEN) -> tuple[int, str]:
    headers = {"Authorization": f"token {token}"} if token else {}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(server.url(path).replace("ws", "http", 1), allow_redirects=False) as response,
    ):
        return response.status, await response.text()


async def metrics(server: Server) -> dict[tuple[str, str], float]:
    status, text = await get(server, "metrics")
    assert status == 200
    return {
        (sample.name, ",".join(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("ragkit_")
    }


async def test_the_status_and_the_metrics_say_what_happened(start: StartServer) -> None:
    server = start()
    async with server.open() as listener, server.publisher() as publisher:
        event = {"type": "indexing_progress", "task_id": "t", "index": "i", "state": "running"}
        for n in (1, 2, 2):
            await say(publisher, type="publish", n=n, event=event)
        await say(publisher, type="offer", engine={"id": "e", "index": "handbook"})
        await receive_type(listener, "engines")
        await say(listener, type="query", id="1", content={"question": "?", "context": {"index": "another"}})
        assert (await receive(listener))["content"]["code"] == "NO_ENGINE"

        status, text = await get(server, "api/v1/status")
        assert status == 200
        state = json.loads(text)
        assert state["seq"] == 3
        assert (
            state["now"] | {"listeners": 1, "publishers": 1, "engines": 1, "tasks": 1, "history_durable": True}
            == state["now"]
        )
        assert state["publishers"][0]["name"] == "demo.ipynb"
        assert state["engines"][0]["index"] == "handbook"
        assert state["tasks"][0]["task_id"] == "t"
        assert state["since_start"]["replies"] == {"NO_ENGINE": 1}
        assert state["since_start"]["repeats"] == 1

        counted = await metrics(server)
        assert counted["ragkit_listeners", ""] == counted["ragkit_engines", ""] == counted["ragkit_tasks", ""] == 1
        assert counted["ragkit_broadcasts_total", "indexing_progress"] == 2
        assert counted["ragkit_replies_total", "NO_ENGINE"] == 1
        assert counted["ragkit_connections_total", "listener"] == 1
        assert counted["ragkit_events_repeated_total", ""] == 1
        assert counted["ragkit_history_seq", ""] == 3
        assert counted["ragkit_commits_total", ""] >= 1
        assert counted["ragkit_socket_bytes_total", ""] > 500
    assert "Traceback" not in server.log()


async def test_the_status_is_for_who_may_listen(server: Server) -> None:
    assert (await get(server, "api/v1/status", token=None))[0] == 403
    assert (await get(server, "api/v1/status", token="wrong"))[0] == 403
