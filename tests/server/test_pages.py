"""HTTP pages: the status, the metrics on the Jupyter server's page, and the client module."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.server.live_server import ROOT, TOKEN, Server, StartServer, receive, receive_type, say

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


async def test_the_status_and_the_metrics_count_events(start: StartServer) -> None:
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


async def test_the_status_requires_the_permission_to_listen(server: Server) -> None:
    assert (await get(server, "api/v1/status", token=None))[0] == 403
    assert (await get(server, "api/v1/status", token="wrong"))[0] == 403


async def test_pages_of_the_server_know_where_its_files_are(start: StartServer, tmp_path: Path) -> None:
    server = start(app="lab", base_url="/user/x/")
    status, page = await get(server, f"lab?token={TOKEN}")
    assert status == 200
    (config,) = re.findall(r'<script id="jupyter-config-data" type="application/json">\s*(.+?)\s*</script>', page)
    assert json.loads(html.unescape(config))["ragkitRoot"] == str(tmp_path / "root")


async def fetch(server: Server, path: str, method: str = "GET", **headers: str) -> tuple[int, Any, bytes]:
    """A request as a page of another origin makes it: no token, no cookie."""
    headers = {"Origin": "http://localhost:5173"} | headers
    async with (
        aiohttp.ClientSession() as session,
        session.request(
            method, server.url(path).replace("ws", "http", 1), headers=headers, allow_redirects=False
        ) as response,
    ):
        return response.status, response.headers, await response.read()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """The extension without its built files, to be put before the other on the path."""
    package = tmp_path / "package" / "ragkit_server"
    ignore = shutil.ignore_patterns("static", "labextension", "__pycache__")
    shutil.copytree(ROOT / "server_extension" / "ragkit_server", package, ignore=ignore)
    return package


@pytest.mark.parametrize("options", [[], ["--ServerApp.allow_unauthenticated_access=False"]])
async def test_the_client_can_be_imported_from_anywhere(start: StartServer, package: Path, options: list[str]) -> None:
    server = start(*options, base_url="/user/x/", PYTHONPATH=os.pathsep.join([str(package.parent), str(ROOT)]))
    status, headers, text = await fetch(server, "api/v1/socket.js")
    assert (status, headers["Content-Type"]) == (404, "text/plain")
    assert b"make frontend" in text

    (package / "static").mkdir()
    code = 'export const text = "déjà";\n'.encode()
    (package / "static" / "socket.js").write_bytes(code)
    (package / "static" / "other.js").write_bytes(code)
    status, headers, text = await fetch(server, "api/v1/socket.js")
    assert (status, text) == (200, code)
    expected = {
        "Content-Type": "text/javascript", "Access-Control-Allow-Origin": "*",
        "Cross-Origin-Resource-Policy": "cross-origin", "Cache-Control": "no-cache",
    }  # fmt: skip
    assert {name: headers[name] for name in expected} == expected
    status, _, text = await fetch(server, "api/v1/socket.js", **{"If-None-Match": headers["ETag"]})
    assert (status, text) == (304, b"")

    (package / "static" / "socket.js").write_bytes(code * 2)  # built again
    assert (await fetch(server, "api/v1/socket.js", **{"If-None-Match": headers["ETag"]}))[2] == code * 2

    known = {"Authorization": f"token {TOKEN}"}
    for path in ("api/v1/other.js", "api/v1/socketxjs", "api/v1/static/socket.js", "static/ragkit/socket.js"):
        assert (await fetch(server, path, **known))[0] == 404, path
    assert (await fetch(server, "api/v1/socket.js", "POST", **known))[0] == 405
    assert "Traceback" not in server.log()
