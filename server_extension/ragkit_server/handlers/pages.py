"""What can be read with a plain HTTP GET: by whoever may listen, and the client's code by everybody."""

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
    """``/api/v1/asyncapi.json``: what is said on the sockets, for programs that make clients or documentation of it."""

    auth_resource = AUTH_RESOURCE

    @web.authenticated
    @authorized  # a GET is "read"
    def get(self) -> None:
        """Answer with the AsyncAPI document, with this server's address in it."""
        here = self.ws_url or f"{self.request.protocol}://{self.request.host}"
        self.finish(msgspec.json.encode(document(version=ragkit.__version__, url=here + self.base_url)))


class StatusPage(APIHandler):
    """``/api/v1/status``: how the hub stands now, for people and programs; `Counters` says what is counted."""

    auth_resource = AUTH_RESOURCE

    def initialize(self, manager: WebSocketManager) -> None:
        self.manager = manager

    @web.authenticated
    @authorized  # a GET is "read"
    def get(self) -> None:
        """Answer with the status."""
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


class SocketModule(JupyterHandler):  # an APIHandler refuses other origins
    """``/api/v1/socket.js``: the client as an ES module, for pages of any web application to import."""

    # It is public code, the same for everybody, and `import` can neither send a token nor, from another origin, a
    # cookie. What it connects to asks who is there.
    @allow_unauthenticated
    def get(self) -> None:
        """Answer with the module."""
        self.set_header("Access-Control-Allow-Origin", "*")
        self.set_header("Cross-Origin-Resource-Policy", "cross-origin")
        self.set_header("Cache-Control", "no-cache")  # kept, but asked for again, with the ETag that Tornado makes
        try:
            code = SOCKET_MODULE.read_bytes()
        except FileNotFoundError:
            self.set_status(404)
            self.set_header("Content-Type", "text/plain")
            self.finish("The front end of ragkit was not built. In a checkout of ragkit run: make frontend\n")
            return
        self.set_header("Content-Type", "text/javascript")
        self.finish(code)
