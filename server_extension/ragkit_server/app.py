"""The Jupyter server extension application: settings, URL handlers, start and stop."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import secrets
import sqlite3
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import prometheus_client
from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from traitlets import Bool, Float, Int, List, Unicode, default

from ragkit.live.discovery import journal_dir
from ragkit_server.adoption import Journals
from ragkit_server.child_engine import ChildEngine, child_environment
from ragkit_server.handlers.base import SocketSettings
from ragkit_server.handlers.pages import AsyncAPIPage, SocketModule, StatusPage
from ragkit_server.handlers.sockets import EngineSocket, ListenerSocket
from ragkit_server.history.archive import Archive, Stored, open_archive
from ragkit_server.history.log import History
from ragkit_server.history.worker import Worker
from ragkit_server.hub.manager import WebSocketManager
from ragkit_server.metrics import Exporter

PORT = 8000


class RagkitApp(ExtensionApp):
    """ragkit: watch RAG runs and query indexes on one WebSocket at /api/v1/ws."""

    name = "ragkit"
    description = __doc__
    load_other_extensions = True

    index = Unicode(
        "", help="The index to serve if no notebook serves one, for example 'indexes/handbook'. Empty: none."
    ).tag(config=True)
    engine_command = List(
        Unicode(),
        default_value=[sys.executable, "-m", "ragkit.cli", "serve"],
        help="The command that serves `index`, which is appended to it. On the command line, repeat for each word.",
    ).tag(config=True)
    query_timeout_seconds = Float(120.0, help="Time limit for one answer of an engine.").tag(config=True)
    start_timeout_seconds = Float(120.0, help="How long a query waits for the engine of `index` to start.").tag(
        config=True
    )
    max_queries_per_listener = Int(8, help="How many queries of one connection may wait for an answer at a time.").tag(
        config=True
    )
    max_message_bytes = Int(2**20, help="The largest message that a listener may send.").tag(config=True)
    max_publisher_message_bytes = Int(8 * 2**20, help="The largest message that a publisher may send.").tag(config=True)
    max_queue_bytes = Int(
        2**20, help="Bytes queued for one connection before superseded progress and answer pieces are dropped."
    ).tag(config=True)
    max_queries_per_minute = Float(
        120.0, help="Rate limit for the queries of one connection; bursts of as many queries are allowed."
    ).tag(config=True)
    history_bytes = Int(
        4 * 2**20, help="Bytes of broadcasts kept in memory for listeners that are slow or reconnect."
    ).tag(config=True)
    history_events = Int(10_000, help="Broadcasts kept in memory for listeners that are slow or reconnect.").tag(
        config=True
    )
    history_disk_bytes = Int(
        64 * 2**20, help="Bytes of broadcasts kept on disk for listeners that reconnect later or after a restart."
    ).tag(config=True)
    history_dir = Unicode(
        "", help="The folder of the history files, one per root_dir. Empty: ragkit/history in Jupyter's data folder."
    ).tag(config=True)
    keep_history = Bool(
        True, help="Keep the history on disk. Without it, a restart loses the history and starts a new epoch."
    ).tag(config=True)
    publisher_grace_seconds = Float(
        10.0,
        help="How long a publisher may be disconnected before its running tasks count as failed.",
    ).tag(config=True)
    ping_interval_seconds = Float(
        25.0, help="Interval of pings; a connection that does not answer is closed. Many proxies close after 60 s."
    ).tag(config=True)
    journal_scan_seconds = Float(3.0, help="Interval of scans for journals of runs without a server. 0: never.").tag(
        config=True
    )
    max_journal_bytes = Int(256 * 2**20, help="The largest journal that is adopted.").tag(config=True)
    shutdown_timeout_seconds = Float(2.0, help="How long to wait at shutdown until queued messages are sent.").tag(
        config=True
    )
    allow_any_origin_with_token = Bool(
        False,
        help="Allow pages of any origin to connect with a token. Without it, pages of other origins need "
        "ServerApp.allow_origin, with or without a token.",
    ).tag(config=True)
    write_frames_directly = Bool(
        True, help="Write frames directly to the stream; if off, each is sent with Tornado's write_message."
    ).tag(config=True)

    @default("default_url")
    def _default_url(self) -> str:
        return "/lab" if importlib.util.find_spec("jupyterlab") else "/"

    @classmethod
    def make_serverapp(cls, **options: Any) -> ServerApp:
        """Create the server of ``jupyter ragkit``, on port 8000 by default."""
        # Not in serverapp_config, which would override the command line.
        if ServerApp.port_env not in os.environ:
            options.setdefault("port", PORT)
        return super().make_serverapp(**options)

    @property
    def _server(self) -> Any:
        # Set before any method runs; its attributes are not typed.
        return self.serverapp

    def initialize_settings(self) -> None:
        """Create the hub."""
        loop = self._server.io_loop.asyncio_loop
        archive, stored = self._open_archive()
        self.manager = WebSocketManager(
            history=History(
                max_events=self.history_events,
                max_bytes=self.history_bytes,
                coalesce_bytes=self.max_queue_bytes,
                stored=stored,
            ),
            timers=loop,
            log=self.log,
            publisher_grace_seconds=self.publisher_grace_seconds,
            max_queue_bytes=self.max_queue_bytes,
            query_timeout_seconds=self.query_timeout_seconds,
            start_timeout_seconds=self.start_timeout_seconds,
            max_queries_per_listener=self.max_queries_per_listener,
            max_queries_per_minute=self.max_queries_per_minute,
            archive=archive,
            thread=Worker(loop.call_soon_threadsafe) if archive is not None else None,
        )
        self.settings["ragkit_manager"] = self.manager  # for other extensions, see docs/server.md
        self.metrics = Exporter(self.manager)
        self.child = ChildEngine(
            self.index,
            command=self.engine_command,
            environment=self._child_environment,
            failed=self.manager.engines.child_failed,
            log=self.log,
        )
        self.manager.engines.child = self.child
        self.journals = Journals(
            journal_dir(),
            manager=self.manager,
            history=archive.id if archive is not None else secrets.token_hex(8),
            log=self.log,
            max_bytes=self.max_journal_bytes,
            max_line_bytes=self.max_publisher_message_bytes,
        )

    def _open_archive(self) -> tuple[Archive, Stored] | tuple[None, None]:
        if not self.keep_history:
            return None, None
        root = os.path.abspath(self._server.root_dir)
        folder = Path(self.history_dir or os.path.join(self._server.data_dir, "ragkit", "history"))
        readable = re.sub(r"\W+", "-", os.path.basename(root)).strip("-")[:40] or "root"
        try:
            archive, stored, trouble = open_archive(
                folder,
                f"{readable}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:12]}",
                max_bytes=self.history_disk_bytes,
                log_events=self.history_events,
                log_bytes=self.history_bytes,
            )
        except (OSError, sqlite3.Error) as problem:
            self.log.warning(
                "ragkit: the history cannot be kept in '%s' (%s), so a restart will lose it. Set "
                "--RagkitApp.history_dir to a writable folder.", folder, problem,
            )  # fmt: skip
            return None, None
        if trouble is not None:
            self.log.warning("ragkit: %s, and a new history is started", trouble)
        return archive, stored

    def initialize_handlers(self) -> None:
        """Add the sockets and pages under the base URL, and pass the root folder to Jupyter's pages."""
        limits = SocketSettings(
            max_message_bytes=self.max_message_bytes,
            max_publisher_message_bytes=self.max_publisher_message_bytes,
            ping_interval_seconds=self.ping_interval_seconds,
            allow_any_origin_with_token=self.allow_any_origin_with_token,
            write_frames_directly=self.write_frames_directly,
        )
        socket = {"manager": self.manager, "limits": limits}
        self.handlers.extend(
            [
                (r"/api/v1/ws", ListenerSocket, socket),
                (r"/api/v1/engine", EngineSocket, socket),
                (r"/api/v1/status", StatusPage, {"manager": self.manager}),
                (r"/api/v1/asyncapi.json", AsyncAPIPage),
                (r"/api/v1/socket\.js", SocketModule),
            ]
        )
        # JupyterLab and Notebook include this in their pages. It is compared with `origin.path`, which is absolute;
        # their own `serverRoot` may begin with "~".
        pages = self._server.web_app.settings.setdefault("page_config_data", {})
        pages["ragkitRoot"] = os.path.abspath(self._server.root_dir)

    def _child_environment(self) -> Mapping[str, str]:
        token = self._server.identity_provider.token or os.environ.get("JUPYTERHUB_API_TOKEN", "")
        return child_environment(url=_local_url(self._server), token=token)

    async def _start_jupyter_server_extension(self, serverapp: Any) -> None:
        prometheus_client.REGISTRY.register(self.metrics)
        self.manager.resume()
        if self.journal_scan_seconds > 0:
            self.journals.start(self.journal_scan_seconds)

    async def stop_extension(self) -> None:
        """Close all connections and end the child engine."""
        if "manager" not in vars(self):
            return  # initialize_settings was never called, because of an earlier error
        with contextlib.suppress(KeyError):  # the extension was never started
            prometheus_client.REGISTRY.unregister(self.metrics)
        await self.journals.stop()
        await self.child.stop()
        await self.manager.close(timeout_seconds=self.shutdown_timeout_seconds)


def _local_url(serverapp: Any) -> str:
    """Return the server's address for processes on this machine, without a token."""
    parts = urlsplit(serverapp.connection_url)
    if serverapp.ip in ("", "0.0.0.0", "::", "*"):
        parts = parts._replace(netloc=f"127.0.0.1:{serverapp.port}")
    return str(urlunsplit(parts))


def main(argv: list[str] | None = None) -> None:
    """Run a Jupyter server with ragkit, on port 8000 or the next free port."""
    RagkitApp.launch_instance(sys.argv[1:] if argv is None else argv)  # type: ignore[no-untyped-call]
