"""HTTP pages: the AsyncAPI document and the status for users who may listen, and the public client module."""

from __future__ import annotations

from pathlib import Path

import msgspec
from jupyter_server.auth.decorator import allow_unauthenticated, authorized
from jupyter_server.base.handlers import APIHandler, JupyterHandler
from tornado import web

import ragkit
from ragkit_server.handlers.asyncapi import document
from ragkit_server.handlers.base import AUTH_RESOURCE
from ragkit_server.hub.manager import WebSocketManager
from ragkit_server.metrics import gauges

SOCKET_MODULE = Path(__file__).parents[1] / "static" / "socket.js"


class AsyncAPIPage(APIHandler):
    """``/api/v1/asyncapi.json``: the messages of the sockets, for generators of clients or documentation."""

    auth_resource = AUTH_RESOURCE

    @web.authenticated
    @authorized  # a GET is "read"
    def get(self) -> None:
        """Respond with the AsyncAPI document, which contains this server's address."""
        here = self.ws_url or f"{self.request.protocol}://{self.request.host}"
        self.finish(msgspec.json.encode(document(version=ragkit.__version__, url=here + self.base_url)))


class StatusPage(APIHandler):
    """``/api/v1/status``: the current state of the hub and its `Counters`."""

    auth_resource = AUTH_RESOURCE

    def initialize(self, manager: WebSocketManager) -> None:
        self.manager = manager

    @web.authenticated
    @authorized  # a GET is "read"
    def get(self) -> None:
        """Respond with the status."""
        manager = self.manager
        self.set_header("Cache-Control", "no-store")
        self.finish(
            msgspec.json.encode(
                {
                    "version": ragkit.__version__,
                    "epoch": manager.history.epoch,
                    "seq": manager.history.seq,
                    "now": {name: value for name, (value, _) in gauges(manager).items()},
                    "since_start": manager.counters,
                    "publishers": manager.publishers,
                    "engines": manager.engines.on_offer(),
                    "tasks": list(manager.history.state.live_tasks().values()),
                }
            )
        )


class SocketModule(JupyterHandler):  # not an APIHandler, which rejects other origins
    """``/api/v1/socket.js``: the client as an ES module, to be imported by pages of any web application."""

    # No authentication: the code is public, and `import` cannot send a token or, from another origin, a cookie. The
    # socket that the client connects to requires authentication.
    @allow_unauthenticated
    def get(self) -> None:
        """Respond with the module."""
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Cross-Origin-Resource-Policy", "cross-origin")
        self.set_header("Cache-Control", "no-cache")  # cached, but revalidated with Tornado's ETag
        try:
            code = SOCKET_MODULE.read_bytes()
        except FileNotFoundError:
            self.set_status(404)
            self.set_header("Content-Type", "text/plain")
            self.finish("The front end of ragkit has not been built. In a clone of ragkit, run: make frontend\n")
            return
        self.set_header("Content-Type", "text/javascript")
        self.finish(code)
