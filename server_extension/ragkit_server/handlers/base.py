"""The base class of the sockets: authorization, reading and closing."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable
from typing import Any

from jupyter_core.utils import ensure_async
from jupyter_server.auth.decorator import ws_authenticated
from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado.web import HTTPError
from tornado.websocket import WebSocketHandler, WebSocketProtocol

from ragkit.live.messages import ErrorCode
from ragkit_server.hub.inbound import error
from ragkit_server.hub.manager import WebSocketManager
from ragkit_server.hub.sessions import ListenerSession, PublisherSession, SessionState
from ragkit_server.transport.protocol import strict
from ragkit_server.transport.socket import SocketTransport

BACKLOG_SECONDS = 0.01

AUTH_RESOURCE = "ragkit"
"""The resource for Jupyter's Authorizer: "read" to listen, "execute" to ask, "write" to publish and serve."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SocketSettings:
    """The settings that the sockets use; see `ragkit_server.app.RagkitApp`."""

    max_message_bytes: int
    max_publisher_message_bytes: int
    ping_interval_seconds: float
    allow_any_origin_with_token: bool
    write_frames_directly: bool


class HubSocket(WebSocketMixin, WebSocketHandler, JupyterHandler):
    """The base class of both sockets."""

    auth_resource = AUTH_RESOURCE
    action = "read"

    def initialize(self, manager: WebSocketManager, limits: SocketSettings) -> None:
        self.manager = manager
        self.limits = limits  # `settings` is Tornado's
        self.session: ListenerSession | PublisherSession | None = None
        self._transport: SocketTransport | None = None
        self.gone = False

    # Without the decorator, no authentication would be required.
    @ws_authenticated
    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Open the socket for a user with the permission ``action``; otherwise respond with 403."""
        if not await self.may(self.action):
            raise HTTPError(403, f"not authorized to {self.action} {AUTH_RESOURCE}")
        if not self.gone:  # the client may have disconnected during the authorization, and on_close is not called again
            await super().get(*args, **kwargs)

    async def may(self, action: str) -> bool:
        """Return whether the server's authorizer grants this user ``action``."""
        return bool(await ensure_async(self.authorizer.is_authorized(self, self.current_user, action, AUTH_RESOURCE)))

    def skip_check_origin(self) -> bool:
        # jupyter_server accepts any origin with a token. A page that has obtained a token is not necessarily allowed by
        # the server's owner, so this is opt-in.
        return bool(self.limits.allow_any_origin_with_token and super().skip_check_origin())

    # The mixin's properties are in milliseconds and hide Tornado's, which are in seconds.
    @property
    def ping_interval(self) -> float:
        return self.limits.ping_interval_seconds

    @property
    def ping_timeout(self) -> float:
        return self.limits.ping_interval_seconds

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        return strict(self, super().get_websocket_protocol(), explain_too_big=self._explain_too_big)

    def transport(self) -> SocketTransport:
        return SocketTransport(
            self, drained=self._on_drained, lost=self._on_lost, direct=self.limits.write_frames_directly
        )

    def until_read(self) -> Awaitable[None] | None:
        """Return an awaitable that delays reading if the client does not read its replies; usually None."""
        return self._until_read(self.session) if self.session is not None and self.session.backlogged else None

    async def _until_read(self, session: ListenerSession | PublisherSession) -> None:
        while (
            session.backlogged
            and session.state in (SessionState.NEW, SessionState.OPEN)
            and self._transport is not None
        ):
            await self._transport.wait_drained()
            await asyncio.sleep(BACKLOG_SECONDS)  # replies may also wait for the archive

    def _on_drained(self) -> None:
        if self.session is not None:
            self.manager.drained(self.session)

    def _on_lost(self) -> None:
        if self.session is not None:
            self.manager.disconnect(self.session)

    def _explain_too_big(self) -> str:
        """Send an error to the client; return the reason for the close frame."""
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
