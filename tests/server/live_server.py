"""A Jupyter server with the extension, as a process of its own, and clients that talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "token-of-the-test-server"
DEADLINE_SECONDS = 30.0


async def within(awaitable: Awaitable[Any], seconds: float = DEADLINE_SECONDS) -> Any:
    """Await with a generous deadline."""
    return await asyncio.wait_for(awaitable, seconds)


async def receive(socket: ClientConnection) -> Any:
    """Return the next message."""
    return json.loads(await within(socket.recv()))


async def receive_type(socket: ClientConnection, *types: str) -> Any:
    """Return the next message of one of these types, leaving out others."""
    while True:
        message = await receive(socket)
        if message["type"] in types:
            return message


async def say(socket: ClientConnection, **message: Any) -> None:
    await within(socket.send(json.dumps(message)))


@dataclass
class Server:
    """A running Jupyter server."""

    port: int
    base_url: str
    process: subprocess.Popen[bytes]
    log_path: Path
    journal_dir: Path

    def url(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}{self.base_url}{path}"

    @contextlib.asynccontextmanager
    async def open(
        self, path: str = "api/v1/ws", *, token: str | None = TOKEN, origin: str | None = None, **options: Any
    ) -> AsyncIterator[ClientConnection]:
        headers = {"Authorization": f"token {token}"} if token is not None else {}
        options = {"max_size": None, "max_queue": None, "additional_headers": headers, "origin": origin} | options
        async with connect(self.url(path), **options) as socket:
            yield socket

    @contextlib.asynccontextmanager
    async def publisher(
        self, id: str = "", *, name: str = "demo.ipynb", **options: Any
    ) -> AsyncIterator[ClientConnection]:
        """A publisher that has been welcomed."""
        id = id or secrets.token_hex(4)
        async with self.open("api/v1/engine", **options) as socket:
            await say(
                socket, type="hello", publisher=id, origin={"kind": "notebook", "name": name, "run_id": f"run-{id}"}
            )
            assert (await receive(socket))["type"] == "welcome"
            yield socket

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(2 * DEADLINE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise


async def eventually(condition: Callable[[], object]) -> None:
    """Return when the condition has come true."""
    async with asyncio.timeout(3 * DEADLINE_SECONDS):
        while not condition():  # noqa: ASYNC110 - it is another process that makes it true
            await asyncio.sleep(0.05)


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    """Return a free port outside of the range that the system assigns to clients."""
    while True:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def start_server(
    folder: Path, *arguments: str, app: str = "server", base_url: str = "/", port: int = 0, **environ: str
) -> Server:
    """Start ``jupyter server`` (or lab, ...) with the extension and nothing of this machine's own settings.

    In the same ``folder`` and on the same ``port`` as an earlier one, it is that one started again.
    """
    for name in ("config", "data", "runtime", "root", "journal"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "config" / "jupyter_server_config.json").write_text(
        json.dumps({"ServerApp": {"jpserver_extensions": {"ragkit_server": True}}})
    )
    port = port or free_port()
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server_extension")]),
        "HOME": str(folder),
        "JUPYTER_CONFIG_DIR": str(folder / "config"),
        "JUPYTER_DATA_DIR": str(folder / "data"),
        "JUPYTER_RUNTIME_DIR": str(folder / "runtime"),
        "RAGKIT_JOURNAL_DIR": str(folder / "journal"),
    }
    for name in ("RAGKIT_URL", "RAGKIT_TOKEN", "JUPYTER_TOKEN", "JUPYTER_PORT"):
        environment.pop(name, None)
    command = {
        "server": ["-m", "jupyter_server"],
        "lab": ["-m", "jupyterlab"],
        "notebook": ["-m", "notebook"],
        "ragkit": ["-c", "from ragkit_server.app import main; main()"],  # as the script jupyter-ragkit does
    }[app]
    log_path = folder / f"{app}.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                *command,
                f"--ServerApp.port={port}",
                "--ServerApp.port_retries=0",
                f"--ServerApp.base_url={base_url}",
                f"--IdentityProvider.token={TOKEN}",
                "--ServerApp.open_browser=False",
                f"--ServerApp.root_dir={folder / 'root'}",
                "--allow-root",
                *arguments,
            ],
            env=environment | environ,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )
    server = Server(port, base_url, process, log_path, folder / "journal")
    deadline = time.monotonic() + 4 * DEADLINE_SECONDS
    while not is_listening(port) or f":{port}{base_url}" not in server.log():
        if process.poll() is not None or time.monotonic() > deadline:
            server.stop()
            raise AssertionError(f"the server did not start:\n{server.log()}")
        time.sleep(0.05)
    return server


StartServer = Callable[..., Server]
