"""The sockets: ``/api/v1/ws`` for listeners, ``/api/v1/engine`` for publishers.

They authenticate, authorise, and move frames; what the frames mean is for `sessions` and `hub`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import msgspec
from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import ws_authenticated
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado.web import HTTPError
from tornado.websocket import WebSocketHandler, WebSocketProtocol

from ragkit.live.messages import ErrorCode, QueryContent, Since
from ragkit_server.hub.inbound import error
from ragkit_server.hub.manager import WebSocketManager
from ragkit_server.hub.sessions import Ask, ListenerSession, PublisherSession, State, Stop
from ragkit_server.transport.protocol import strict
from ragkit_server.transport.socket import SocketTransport

if TYPE_CHECKING:
    from ragkit_server.app import RagkitApp

__all__ = ["AUTH_RESOURCE", "EngineSocket", "ListenerSocket"]

BACKLOG_SECONDS = 0.01
AUTH_RESOURCE = "ragkit"
"""What an Authorizer is asked about: read to listen, execute to ask, write to publish and serve."""


class _Socket(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """What both sockets share: who may open them, and how they end."""

    auth_resource = AUTH_RESOURCE
    action = "read"

    def initialize(self, ragkit: RagkitApp) -> None:
        self.ragkit = ragkit
        self.session: ListenerSession | PublisherSession | None = None
        self._transport: SocketTransport | None = None
        self.gone = False

    @property
    def manager(self) -> WebSocketManager:
        return self.ragkit.manager

    # An undecorated get would be open to anyone.
    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Open the socket for a user who may ``action``; 403 for anybody else."""
        if not await self.may(self.action):
            raise HTTPError(403, f"not authorized to {self.action} {AUTH_RESOURCE}")
        if not self.gone:  # it may have left while its rights were looked up, and nobody would say so again
            await super().get(*args, **kwargs)

    async def may(self, action: str) -> bool:
        """Return whether the server's authorizer lets this user do ``action``."""
        return bool(await ensure_async(self.authorizer.is_authorized(self, self.current_user, action, AUTH_RESOURCE)))

    def skip_check_origin(self) -> bool:
        # jupyter_server lets any origin in that has a token. A page that got hold of a token is
        # still not a page that the owner allowed, so this has to be asked for.
        return bool(self.ragkit.allow_any_origin_with_token and super().skip_check_origin())

    # The mixin's are in milliseconds and hide tornado's, which are in seconds.
    @property
    def ping_interval(self) -> float:
        return float(self.ragkit.ping_interval_seconds)

    @property
    def ping_timeout(self) -> float:
        return float(self.ragkit.ping_interval_seconds)

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        return strict(self, super().get_websocket_protocol(), explain_too_big=self._explain_too_big)

    def transport(self) -> SocketTransport:
        return SocketTransport(
            self, drained=self._on_drained, lost=self._on_lost, direct=bool(self.ragkit.write_frames_directly)
        )

    def until_read(self) -> Awaitable[None] | None:
        """Return what to wait for before more is read from one that writes and does not read; mostly nothing."""
        return self._until_read(self.session) if self.session is not None and self.session.backlogged else None

    async def _until_read(self, session: ListenerSession | PublisherSession) -> None:
        while session.backlogged and session.state in (State.NEW, State.OPEN) and self._transport is not None:
            await self._transport.wait_drained()
            await asyncio.sleep(BACKLOG_SECONDS)  # replies may also wait for the archive

    def _on_drained(self) -> None:
        if self.session is not None:
            self.manager.drained(self.session)

    def _on_lost(self) -> None:
        if self.session is not None:
            self.manager.disconnect(self.session)

    def _explain_too_big(self) -> str:
        """Tell the session that its message is too big; return the reason for the close frame."""
        text = f"A message may have {self.max_message_size} bytes; this one has more."
        problem = error(ErrorCode.MESSAGE_TOO_BIG, text)
        if isinstance(self.session, ListenerSession):
            self.session.reply(problem)
            self.manager.wake(self.session)
        elif isinstance(self.session, PublisherSession):
            self.session.send(problem)
            self.manager.wake(self.session)
        return text

    def on_close(self) -> None:
        self.gone = True
        if self.session is not None:
            self.manager.disconnect(self.session)


class ListenerSocket(_Socket):
    """Broadcasts go out, queries come in.

    ``?epoch=...&seq=...`` resumes after the last event seen, without the race that a `subscribe`
    has with events that come before it.
    """

    action = "read"
    session: ListenerSession

    @property
    def max_message_size(self) -> int:
        return int(self.ragkit.max_message_bytes)

    def open(self, *_args: str, **_kwargs: str) -> None:
        # Not the mixin's open: its pinger counts in milliseconds, tornado's own pings here.
        self.set_nodelay(True)
        self._transport = self.transport()
        self.session = self.manager.connect(self._transport, since=self._since())

    def _since(self) -> Since | None:
        try:
            return msgspec.convert(
                {"epoch": self.get_query_argument("epoch", ""), "seq": self.get_query_argument("seq", "")},
                Since,
                strict=False,
            )
        except (msgspec.ValidationError, HTTPError):  # HTTPError: it is not UTF-8
            return None  # harmless: a new listener, which gets everything from now on

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        session = self.session
        match session.receive(message):
            case Ask(id=id, content=content):
                return self._ask(id, content)
            case Stop(id=id):
                self.manager.engines.cancel(session, id)
        self.manager.wake(session)
        return self.until_read()

    async def _ask(self, id: str, content: QueryContent) -> None:
        session = self.session
        if not await self.may("execute"):
            refusal = "You may listen here, but not ask. Ask the server's owner for the right to execute."
            session.reply(error(ErrorCode.NOT_AUTHORIZED, refusal, id=id))
            self.manager.wake(session)
        elif session.state is State.OPEN:  # it may have left while its rights were looked up
            self.manager.engines.ask(session, id, content)
        if (waiting := self.until_read()) is not None:
            await waiting


class EngineSocket(_Socket):
    """Events and engines come in, queries go out."""

    action = "write"
    session: PublisherSession

    @property
    def max_message_size(self) -> int:
        return int(self.ragkit.max_publisher_message_bytes)

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.set_nodelay(True)
        self._transport = self.transport()
        self.session = self.manager.attach(self._transport)

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        self.manager.receive(self.session, message)
        if self.manager.commits.backlogged:
            return self.manager.commits.settle()
        return self.until_read()
