"""The sockets: ``/api/v1/ws`` for listeners, ``/api/v1/engine`` for publishers.

They authenticate and authorize users and move frames; `ragkit_server.hub` handles the messages.
"""

from __future__ import annotations

from collections.abc import Awaitable

import msgspec
from tornado.web import HTTPError

from ragkit.live.messages import ErrorCode, QueryContent, Since
from ragkit_server.handlers.base import HubSocket
from ragkit_server.hub.inbound import error
from ragkit_server.hub.sessions import Ask, ListenerSession, PublisherSession, SessionState, Stop


class ListenerSocket(HubSocket):
    """The socket of a listener: sends broadcasts and receives queries.

    ``?epoch=...&seq=...`` resumes after the last event received. A `subscribe` message would race with events that are
    sent before it arrives.
    """

    action = "read"
    session: ListenerSession

    @property
    def max_message_size(self) -> int:
        return self.limits.max_message_bytes

    def open(self, *_args: str, **_kwargs: str) -> None:
        # The mixin's open is not called: it would start its own pings, and Tornado's are used.
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
        except (msgspec.ValidationError, HTTPError):  # HTTPError: not UTF-8
            return None  # treated as a new listener, which gets no earlier events

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
            refusal = "You may listen here, but not ask. Ask the server's owner for the permission 'execute'."
            session.reply(error(ErrorCode.NOT_AUTHORIZED, refusal, id=id))
            self.manager.wake(session)
        elif session.state is SessionState.OPEN:  # the client may have disconnected during the authorization
            self.manager.engines.ask(session, id, content)
        if (waiting := self.until_read()) is not None:
            await waiting


class EngineSocket(HubSocket):
    """The socket of a publisher: receives events and engines, and sends queries."""

    action = "write"
    session: PublisherSession

    @property
    def max_message_size(self) -> int:
        return self.limits.max_publisher_message_bytes

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.set_nodelay(True)
        self._transport = self.transport()
        self.session = self.manager.attach(self._transport)

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        self.manager.receive(self.session, message)
        if self.manager.commits.backlogged:
            return self.manager.commits.wait_for_disk()
        return self.until_read()
