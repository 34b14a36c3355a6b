"""What can be read with a plain HTTP GET, by whoever may listen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import APIHandler
from tornado import web

import ragkit
from ragkit_server.asyncapi import document
from ragkit_server.handlers import AUTH_RESOURCE
from ragkit_server.metrics import gauges

if TYPE_CHECKING:
    from ragkit_server.app import RagkitApp

__all__ = ["AsyncAPIPage", "StatusPage"]


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

    def initialize(self, ragkit: RagkitApp) -> None:
        self.ragkit = ragkit

    @web.authenticated
    @authorized  # a GET is "read"
    def get(self) -> None:
        """Answer with the status."""
        manager = self.ragkit.manager
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
