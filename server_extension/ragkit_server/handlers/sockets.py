"""The sockets: ``/api/v1/ws`` for listeners, ``/api/v1/engine`` for publishers.

They authenticate, authorise, and move frames; what the frames mean is for `sessions` and `hub`.
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
    """Broadcasts go out, queries come in.

    ``?epoch=...&seq=...`` resumes after the last event seen, without the race that a `subscribe`
    has with events that come before it.
    """

    action = "read"
    session: ListenerSession

    @property
    def max_message_size(self) -> int:
        return self.limits.max_message_bytes

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
        elif session.state is SessionState.OPEN:  # it may have left while its rights were looked up
            self.manager.engines.ask(session, id, content)
        if (waiting := self.until_read()) is not None:
            await waiting


class EngineSocket(HubSocket):
    """Events and engines come in, queries go out."""

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
