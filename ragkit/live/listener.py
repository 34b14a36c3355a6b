"""The listener: receives the events that notebooks, batch runs and scripts publish.

    async for message in ragkit.live.listen():
        match message:
            case FollowUpQuestions(questions=questions):
                print(questions)

A `Subscription` keeps a socket on ``/api/v1/ws`` open, reconnects when it is lost, and resumes after the last event. It
resumes with ``?epoch=...&seq=...`` in the URL, which takes effect before the first event is sent; a `Subscribe` with
`Since` would race with events that the hub has already sent. The `Subscribe` that follows chooses topics and requests
the snapshot.
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
"""A message as a JSON object, with a string ``type``."""

Place: TypeAlias = messages.Since | messages.Broadcast | messages.Snapshot | Mapping[str, Any]
"""Where to resume: the last event that was received, or its ``epoch`` and ``seq``."""


def listen(
    *,
    url: str | None = None,
    token: str | None = None,
    topics: Iterable[str] | None = None,
    since: Place | None = None,
    timeout_seconds: float | None = None,
) -> AsyncGenerator[messages.ListenerMessage | Message, None]:
    """Listen to all published events: ``async for message in listen(): ...``.

    The first message is a `Snapshot`. Then each event follows once and in order, even if the connection or the server
    is lost in between: the iterator reconnects, with a back-off of up to some seconds, and resumes after the last
    event. After every reconnection a `Snapshot` follows the events that were missed. If the server no longer has the
    missed events, a `Gap` replaces them. Connection problems are logged as warnings of ``ragkit.live.listener``.

    It runs in the caller's event loop; in a notebook, ``async for`` can be used directly in a cell. Leaving the loop,
    ``aclose()`` and cancellation close the connection.

    Args:
        url: The server's address. By default `ragkit.live.find_server` finds it before each connection, because a
            server may restart at another address.
        token: The server's token, if the address needs another one than ``RAGKIT_TOKEN``.
        topics: Types of broadcasts, such as ``["follow_up_questions"]``; all by default.
        since: Where to resume: the last event that was received earlier, or a dict with its ``epoch`` and ``seq``.
            Without it, earlier events are not sent.
        timeout_seconds: The iteration ends after this time; None for no limit.

    Returns:
        An asynchronous iterator. A message is a validated struct of `ragkit.live.messages`; a message of an unknown
        type or shape is a plain dict.

    Raises:
        InputError: An argument is invalid; raised at once.
        ServerNotFoundError, AmbiguousServerError: At the start there is no server, or more than one.
        ServerConnectionError: The server refuses the connection or runs without ragkit; the message says what to do.
    """
    subscription = Subscription(url=url, token=token, topics=topics, since=since, timeout_seconds=timeout_seconds)
    return _decoded(subscription)


async def _decoded(subscription: Subscription) -> AsyncGenerator[messages.ListenerMessage | Message, None]:
    async with contextlib.aclosing(subscription.messages()) as received:
        async for message in received:
            if message.get("type") not in _HEARTBEATS:
                yield _to_struct(message)


def _to_struct(message: Message) -> messages.ListenerMessage | Message:
    try:
        known: messages.ListenerMessage = msgspec.convert(message, messages.ListenerMessage)
    except msgspec.ValidationError:
        return message  # a newer hub
    return known


class Subscription:
    """A connection to the hub that reconnects and resumes; used by `listen` and ``ragkit watch``.

    Args:
        url: See `listen`.
        token: See `listen`.
        topics: See `listen`.
        since: See `listen`.
        timeout_seconds: See `listen`.
        report: Called with a logging level and a text when the connection is made or lost.
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
            raise InputError(f"topics must be a list of types, such as ['{topics}'], not a string.")
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
        """Send a message on the connection that the newest message came from; do nothing if that is lost."""
        if self._socket is not None:
            with contextlib.suppress(WebSocketException):  # messages() detects the loss and reconnects
                await self._socket.send(messages.encode(message), text=True)

    async def messages(self) -> AsyncGenerator[Message, None]:
        """Connect and reconnect until the time-out, and yield each message once."""
        loop = asyncio.get_running_loop()
        self._ends = None if self.timeout_seconds is None else loop.time() + self.timeout_seconds
        delay, was_connected = FIRST_DELAY_SECONDS, False
        # The deadline applies to each wait and not to the whole loop: around a `yield` it would interrupt the caller.
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
                    await asyncio.sleep(
                        delay * random.uniform(0.5, 1.5)
                    )  # jitter: many listeners may reconnect to the same server
            delay = min(2 * delay, MAX_DELAY_SECONDS)

    def _lost(self, reason: str) -> None:
        if reason != self._reported:  # report each reason once
            self._reported = reason
            self._report(logging.WARNING, f"{reason.rstrip('.')}. Retrying until it works or is stopped.")

    async def _receive(self, frame: str | bytes) -> Message | None:
        """Return the message in a frame; None if it is invalid or not for the caller."""
        try:
            message = msgspec.json.decode(frame)
        except msgspec.DecodeError:
            return None  # the hub sends only JSON; a proxy may have added this frame
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
                return None  # a duplicate
            self._since = place
        # Missed events of all topics may arrive before the hub has read the Subscribe.
        is_chosen = self._topics is None or kind not in messages.TOPICS or kind in self._topics
        return message if is_chosen else None


def _place(since: Place) -> dict[str, Any]:
    given = since if isinstance(since, Mapping) else msgspec.structs.asdict(since)
    try:
        place = msgspec.convert({key: given.get(key, UNSET) for key in ("epoch", "seq")}, messages.Since)
    except msgspec.ValidationError as problem:
        raise InputError(
            f"since must be the last event received, or its epoch and seq, as {{'epoch': 'a', 'seq': 5}}: {problem}."
        ) from problem
    return {"epoch": place.epoch, "seq": place.seq}
