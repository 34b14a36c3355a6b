"""Listening to the socket: everything that notebooks, batch runs and scripts publish, as it happens.

    async for message in ragkit.live.listen():
        match message:
            case FollowUpQuestions(questions=questions):
                print(questions)

A `Subscription` keeps a socket on ``/api/v1/ws`` open, connects again when it is lost and resumes where it was. It
resumes with ``?epoch=...&seq=...`` in the address, which is in force before the first event can come; a `Subscribe`
with `Since` would race with events that are already on their way. The `Subscribe` that follows chooses topics and asks
for the snapshot.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Any, TypeAlias
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedOK, WebSocketException

from ragkit.errors import AmbiguousServerError, InputError, ServerConnectionError, ServerNotFoundError
from ragkit.live import messages
from ragkit.live.discovery import find_server
from ragkit.live.handshake import RefusedError, closing, dial

FIRST_DELAY_SECONDS = 0.25

MAX_DELAY_SECONDS = 5.0

_HEARTBEATS = {"ping", "pong"}

_log = logging.getLogger("ragkit.live.listener")

Message: TypeAlias = dict[str, Any]
"""A message as JSON has it: with a string ``type``."""

Place: TypeAlias = messages.Since | messages.Broadcast | messages.Snapshot | Mapping[str, Any]
"""Where to resume: the last event that was seen, or its ``epoch`` and ``seq``."""


def listen(
    *,
    url: str | None = None,
    token: str | None = None,
    topics: Iterable[str] | None = None,
    since: Place | None = None,
    timeout_seconds: float | None = None,
) -> AsyncGenerator[messages.ListenerMessage | Message, None]:
    """Listen to what everybody publishes: ``async for message in listen(): ...``.

    A `Snapshot` comes first, and then every event as it happens, each once and in order, also when the connection or
    the server is lost in between: then it connects again, after pauses that grow to some seconds, and goes on after the
    last event. Every new connection gives a `Snapshot`, behind the events that it stands for. If the server no longer
    has what was missed, a `Gap` comes instead of it. Problems that it works on are logged as warnings of
    ``ragkit.live.listener``.

    It runs in the event loop that awaits it, so also in a notebook's cell, where ``async for`` may stand by itself.
    Leaving the loop, ``aclose()`` and cancellation close the connection.

    Args:
        url: The server's address; by default it is found as `ragkit.live.find_server` finds it, again before each
            connection, because a server may come back elsewhere.
        token: Its token, if the address needs another one than ``RAGKIT_TOKEN``.
        topics: Types of broadcasts, such as ``["follow_up_questions"]``; all by default.
        since: Where to resume: the last event that was seen earlier, or a dict with its ``epoch`` and ``seq``.
            Without it only what happens from now on comes.
        timeout_seconds: The iteration ends after this time; None to listen for ever.

    Returns:
        An asynchronous iterator. A message is one of `ragkit.live.messages`, checked against its types; one that this
        version does not know, or that has another shape, comes as the dict that it is.

    Raises:
        InputError: An argument cannot be used; raised at once.
        ServerNotFoundError, AmbiguousServerError: There is no server to begin with, or more than one.
        ServerConnectionError: The server does not let us in, or runs without ragkit; the reason says what to do.
    """
    subscription = Subscription(url=url, token=token, topics=topics, since=since, timeout_seconds=timeout_seconds)
    return _decoded(subscription)


async def _decoded(subscription: Subscription) -> AsyncGenerator[messages.ListenerMessage | Message, None]:
    async with contextlib.aclosing(subscription.messages()) as received:
        async for message in received:
            if message.get("type") not in _HEARTBEATS:
                yield _known(message)


def _known(message: Message) -> messages.ListenerMessage | Message:
    try:
        known: messages.ListenerMessage = msgspec.convert(message, messages.ListenerMessage)
    except msgspec.ValidationError:
        return message  # a newer hub
    return known


class Subscription:
    """What `listen` and ``ragkit watch`` have in common.

    Args:
        url: See `listen`.
        token: See `listen`.
        topics: See `listen`.
        since: See `listen`.
        timeout_seconds: See `listen`.
        report: Gets a logging level and a text when the connection comes and goes.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        token: str | None = None,
        topics: Iterable[str] | None = None,
        since: Place | None = None,
        timeout_seconds: float | None = None,
        report: Callable[[int, str], object] = _log.log,
    ) -> None:
        if isinstance(topics, str):
            raise InputError(f"topics are a list of types, such as ['{topics}'], not a string.")
        self.timeout_seconds = timeout_seconds
        self._topics = sorted(topics) if topics is not None else None
        if unknown := set(self._topics or ()) - messages.TOPICS:
            known = ", ".join(sorted(messages.TOPICS))
            raise InputError(f"There is no topic '{min(unknown)}'. The topics are: {known}.")
        if timeout_seconds is not None and timeout_seconds < 0:
            raise InputError(f"timeout_seconds must be at least 0, not {timeout_seconds:g}.")
        self._since = _place(since) if since is not None else None
        self._url = url
        self._token = token
        self._report = report
        self._reported = ""
        self._ends: float | None = None
        self._socket: ClientConnection | None = None

    async def send(self, message: msgspec.Struct) -> None:
        """Send a message on the connection that the newest message came from; if that is lost, nothing happens."""
        if self._socket is not None:
            with contextlib.suppress(WebSocketException):  # whoever reads from it notices
                await self._socket.send(messages.encode(message), text=True)

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Connect, and connect again, until time is up; give each message once."""
        loop = asyncio.get_running_loop()
        self._ends = None if self.timeout_seconds is None else loop.time() + self.timeout_seconds
        delay, was_connected = FIRST_DELAY_SECONDS, False
        # Each wait has the deadline, not the whole: a deadline around a `yield` would interrupt the caller's own work.
        while self._ends is None or loop.time() < self._ends:
            where = ""
            try:
                server = find_server(url=self._url, token=self._token)
                where = server.url
                path = "api/v1/ws" + (f"?{urlencode(self._since)}" if self._since else "")
                async with asyncio.timeout_at(self._ends):
                    socket = await dial(server, path, right="read")
                async with closing(socket):
                    self._socket = socket
                    await self.send(messages.Subscribe(topics=self._topics))
                    self._report(logging.INFO, f"{'Connected again' if was_connected else 'Connected'} to {where}")
                    was_connected, self._reported = True, ""
                    while True:
                        async with asyncio.timeout_at(self._ends):
                            frame = await socket.recv()
                        if (message := await self._receive(frame)) is not None:
                            delay = FIRST_DELAY_SECONDS
                            yield message
            except RefusedError:
                raise
            except (ServerNotFoundError, AmbiguousServerError) as problem:
                if not was_connected:
                    raise
                self._lost(str(problem))
            except ServerConnectionError as problem:
                self._lost(str(problem))
            except ConnectionClosedOK:
                self._lost(f"{where} closed the connection")
            except (OSError, WebSocketException) as problem:  # TimeoutError is an OSError
                if self._ends is None or loop.time() < self._ends:
                    self._lost(f"No connection to {where}: {str(problem) or type(problem).__name__}")
            finally:
                self._socket = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self._ends):
                    await asyncio.sleep(delay * random.uniform(0.5, 1.5))  # many listeners lost the same server
            delay = min(2 * delay, MAX_DELAY_SECONDS)

    def _lost(self, reason: str) -> None:
        if reason != self._reported:  # once is enough for each reason
            self._reported = reason
            self._report(logging.WARNING, f"{reason.rstrip('.')}. Trying again until it works or is stopped.")

    async def _receive(self, frame: str | bytes) -> Message | None:
        """Return the message in a frame; None if it is none, or is not for the caller."""
        try:
            message = msgspec.json.decode(frame)
        except msgspec.DecodeError:
            return None  # the hub sends nothing else than JSON; what a proxy may add is not for us
        if not isinstance(message, dict):
            return None
        kind = message.get("type")
        if kind == "ping":
            await self.send(messages.Pong(id=message.get("id", UNSET)))
        newest = message.get("snapshot", message)
        if isinstance(newest, dict) and isinstance(newest.get("epoch"), str) and isinstance(newest.get("seq"), int):
            place = {"epoch": newest["epoch"], "seq": newest["seq"]}
            known = self._since
            if kind in messages.TOPICS and known and known["epoch"] == place["epoch"] and place["seq"] <= known["seq"]:
                return None  # it has come before
            self._since = place
        # Before the hub has seen what is chosen it sends what was missed, whatever it is.
        is_chosen = self._topics is None or kind not in messages.TOPICS or kind in self._topics
        return message if is_chosen else None


def _place(since: Place) -> dict[str, Any]:
    given = since if isinstance(since, Mapping) else msgspec.structs.asdict(since)
    try:
        place = msgspec.convert({key: given.get(key, UNSET) for key in ("epoch", "seq")}, messages.Since)
    except msgspec.ValidationError as problem:
        raise InputError(
            f"since is the last event that was seen, or its epoch and seq, as {{'epoch': 'a', 'seq': 5}}. {problem}."
        ) from problem
    return {"epoch": place.epoch, "seq": place.seq}
