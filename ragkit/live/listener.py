"""Listening to the socket: connect, resume, ask."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Collection, Iterable
from typing import Any, Protocol, TypeAlias
from urllib.parse import urlencode

import msgspec
from msgspec import UNSET
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import WebSocketException

from ragkit.errors import AmbiguousServerError, ServerConnectionError, ServerNotFoundError
from ragkit.live import messages
from ragkit.live.discovery import Server
from ragkit.live.handshake import RefusedError, dial

__all__ = ["TYPES", "View", "watch"]

TYPES = frozenset(str(member.__struct_config__.tag) for member in messages.ListenerMessage.__args__)
"""The types of message that a listener can get."""

FIRST_DELAY_SECONDS = 0.25

MAX_DELAY_SECONDS = 5.0

QUERY_ID = "ragkit-watch"

Message: TypeAlias = dict[str, Any]


class View(Protocol):
    """What shows messages: `Screen` or `JsonLines`."""

    def show(self, message: Message) -> None:
        """Show one message of the hub; called in the order in which they came."""
        ...


async def watch(
    find: Callable[[], Server],
    view: View,
    *,
    say: Callable[[str], None],
    until: Collection[str] = (),
    question: str | None = None,
    timeout_seconds: float | None = None,
) -> frozenset[str]:
    """Show what comes on the socket until everything in ``until`` has come, or time is up.

    Args:
        find: Finds the server; asked anew before each connection, because a server may come back elsewhere.
        view: Shows each message.
        say: Told when the connection comes and goes.
        until: Types of message to wait for; none means to watch until time is up.
        question: Asked on the socket as soon as somebody answers; the reply is shown like everything else.
        timeout_seconds: None to watch for ever.

    Returns:
        The types in ``until`` that did not come.

    Raises:
        ServerNotFoundError, AmbiguousServerError: There is no server to begin with.
        RefusedError: The server does not let us in, or has no hub.
    """
    missing = set(until)
    asker = _Asker(question) if question is not None else None
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_seconds), contextlib.aclosing(_messages(find, say)) as received:
            async for socket, message in received:
                view.show(message)
                if asker is not None and asker.wants_to_ask(message):
                    # A connection that is lost here is noticed by who reads from it.
                    with contextlib.suppress(WebSocketException):
                        await socket.send(messages.encode(asker.query), text=True)
                missing.difference_update(_types_in(message))
                if until and not missing:
                    break
    return frozenset(missing)


def _types_in(message: Message) -> Iterable[str]:
    yield str(message.get("type"))
    if message.get("type") == "gap":  # what it replaces was sent, and dropped for us
        snapshot = message.get("snapshot", {})
        yield from (str(task.get("type")) for task in snapshot.get("tasks", ()))
        if snapshot.get("follow_ups"):
            yield "follow_up_questions"


class _Asker:
    """Decides when to ask: at once, and if nobody answers, when an engine comes."""

    def __init__(self, question: str) -> None:
        self.query = messages.Query(content=messages.QueryContent(question=question), id=QUERY_ID)
        self._state = "new"  # new -> asked -> done, or asked -> waiting (for an engine) -> asked

    def wants_to_ask(self, message: Message) -> bool:
        kind, ours = message.get("type"), message.get("id") == QUERY_ID
        if kind == "snapshot" and self._state == "asked":  # a new connection: the old one's replies are lost
            self._state = "new"
        if ours and kind == "response":
            self._state = "done"
        elif ours and kind == "error":
            self._state = "waiting" if message["content"]["code"] == messages.ErrorCode.NO_ENGINE else "done"
        elif (kind == "snapshot" and self._state == "new") or (
            kind == "engines" and self._state == "waiting" and message["engines"]
        ):
            self._state = "asked"
            return True
        return False


async def _messages(
    find: Callable[[], Server], say: Callable[[str], None]
) -> AsyncGenerator[tuple[ClientConnection, Message], None]:
    """Connect, and connect again, for ever; give each message once."""
    since: dict[str, Any] = {}
    delay, told, connected = FIRST_DELAY_SECONDS, "", False
    while True:
        try:
            server = find()
            path = "api/v1/ws" + (f"?{urlencode(since)}" if since else "")
            async with await dial(server, path, right="read") as socket:
                say(f"{'Connected again' if connected else 'Connected'} to {server.url}")
                connected, told = True, ""
                await socket.send(messages.encode(messages.Subscribe()), text=True)
                async for frame in socket:
                    message = _decode(frame)
                    if message is None:
                        continue
                    delay = FIRST_DELAY_SECONDS
                    if message.get("type") == "ping":
                        await socket.send(messages.encode(messages.Pong(id=message.get("id", UNSET))), text=True)
                    yield socket, message
                    newest = message.get("snapshot", message)
                    if "epoch" in newest and "seq" in newest:
                        since = {"epoch": newest["epoch"], "seq": newest["seq"]}
            reason = f"{server.url} closed the connection"
        except RefusedError:
            raise
        except (ServerNotFoundError, AmbiguousServerError) as problem:
            if not connected:
                raise
            reason = str(problem)
        except ServerConnectionError as problem:
            reason = str(problem)
        except (OSError, WebSocketException) as problem:
            reason = f"No connection to {server.url}: {str(problem) or type(problem).__name__}"
        if reason != told:  # once is enough for each reason
            say(f"{reason.rstrip('.')}. Trying again until it works; Ctrl-C ends this.")
            told = reason
        await asyncio.sleep(delay * random.uniform(0.5, 1.5))
        delay = min(2 * delay, MAX_DELAY_SECONDS)


def _decode(frame: str | bytes) -> Message | None:
    try:
        message = msgspec.json.decode(frame)
    except msgspec.DecodeError:
        return None  # the hub sends nothing else than JSON; what a proxy may add is not for us
    return message if isinstance(message, dict) else None
