"""Fixtures of the server tests: real Jupyter servers, and the hub's parts on a fake clock."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.hub_fakes import Clock
from tests.server.live_server import Server, StartServer, start_server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartServer]:
    """Start servers that end with the test."""
    servers: list[Server] = []

    def start_one(*arguments: str, folder: Path | None = None, **options: str) -> Server:
        servers.append(start_server(folder or tmp_path, *arguments, **options))
        return servers[-1]

    yield start_one
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with default settings, under a base URL that a forgotten prefix would miss."""
    server = start_server(
        tmp_path_factory.mktemp("server"), "--RagkitApp.publisher_grace_seconds=0.5", base_url="/user/x/"
    )
    yield server
    server.stop()


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """The shared server; an exception in its log fails the test."""
    before = len(shared_server.log())
    yield shared_server
    assert "Traceback" not in shared_server.log()[before:]


@pytest.fixture
def clock() -> Clock:
    return Clock()
