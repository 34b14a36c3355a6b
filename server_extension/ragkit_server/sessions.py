"""One conversation each: what a listener or a publisher says and is told, without any I/O.

A session takes messages in (`receive`), is told what to say (`reply`, `send`), and gives out the
bytes to write (`data_to_send`). Sockets only move these bytes; tests need none. States::

    listener   OPEN --close()--> CLOSING (says what is queued, then the close frame) --> CLOSED
    publisher  NEW --hello--> READY --close()--> CLOSING --> CLOSED
"""

from __future__ import annotations

import enum
import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ragkit.events import (
    Ack,
    Cancel,
    ClientMessage,
    EngineMessage,
    Error,
    ErrorCode,
    ErrorContent,
    Hello,
    Ping,
    Pong,
    Query,
    QueryContent,
    ResponseDelta,
    Since,
    Subscribe,
    decode_client_message,
    decode_engine_message,
    encode,
)
from ragkit_server.frames import payloads, text_frame
from ragkit_server.history import TOPICS, History

__all__ = ["Ask", "ListenerSession", "PublisherSession", "State", "Stop", "error"]

WRITE_BYTES = 65_536  # about one kernel socket buffer: more at once only moves the queue there
Message = TypeVar("Message")


class State(enum.Enum):
    """Where a session is in its life."""

    NEW = enum.auto()  # publishers only: has not said hello
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


@dataclass(frozen=True, slots=True)
class Ask:
    """Action: the listener asks a question, once it has been found to be allowed to."""

    id: str
    content: QueryContent


@dataclass(frozen=True, slots=True)
class Stop:
    """Action: the listener wants the query with this id stopped."""

    id: str


def error(code: ErrorCode, message: str, *, id: str | UnsetType = UNSET) -> Error:
    """Return an `Error` message."""
    return Error(content=ErrorContent(message=message, code=code), id=id)


class _Envelope(Struct):
    """As much of a message that did not validate as can be answered to."""

    type: Any = None
    id: Any = None


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def _types(union: Any) -> frozenset[str]:
    return frozenset(str(member.__struct_config__.tag) for member in union.__args__)


LISTENER_TYPES = _types(ClientMessage)
PUBLISHER_TYPES = _types(EngineMessage)


class _RejectedError(Exception):
    """A frame that is not a message; ``reply`` tells its sender why."""

    def __init__(self, reply: Error) -> None:
        self.reply = reply
        super().__init__(reply.content.message)


def _decode(message: str | bytes, decode: Callable[[str], Message], known: frozenset[str]) -> Message:
    if isinstance(message, bytes):
        raise _RejectedError(
            error(ErrorCode.INVALID_MESSAGE, "Binary frames are not used here. Send JSON in a text frame.")
        )
    try:
        return decode(message)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise _RejectedError(_explain(message, str(problem), known)) from problem
    except ValueError as problem:  # msgspec.DecodeError, or a str that is not Unicode text
        raise _RejectedError(
            error(ErrorCode.INVALID_JSON, f"That is not JSON: {problem}. Send one JSON object in a text frame.")
        ) from problem


def _explain(message: str, reason: str, known: frozenset[str]) -> Error:
    """Say what is wrong with a message that is JSON, under its id if it has one."""
    try:
        envelope = _decode_envelope(message)
    except (ValueError, RecursionError):  # not an object, or nested too deep: there is no type or id to name
        return error(ErrorCode.INVALID_MESSAGE, f"{reason}. Send one JSON object with a string 'type'.")
    id = envelope.id if isinstance(envelope.id, str) and 0 < len(envelope.id) <= 128 else UNSET
    if isinstance(envelope.type, str) and envelope.type not in known:
        return error(
            ErrorCode.UNKNOWN_TYPE,
            f"There is no message type '{envelope.type[:100]}'. The types are: {', '.join(sorted(known))}.",
            id=id,
        )
    return error(ErrorCode.INVALID_MESSAGE, f"{reason}.", id=id)


class ListenerSession:
    """One listener: a cursor into the history, and replies that are for it alone.

    Args:
        history: What is broadcast.
        since: The last event that it saw, to resume without a race; from now on without it.
        max_reply_bytes: What may wait for a listener that does not read its replies.
    """

    def __init__(
        self,
        history: History,
        *,
        since: Since | None = None,
        max_reply_bytes: int = 2**20,
    ) -> None:
        self.state = State.OPEN
        self.close_code: tuple[int, str] | None = None
        self._history = history
        self._topics: frozenset[str] | None = None  # all
        self._cursor = history.seq
        self._max_reply_bytes = max_reply_bytes
        self._replies: deque[tuple[int, bytes]] = deque()  # (not before this seq, frame)
        self._reply_bytes = 0
        if since is not None:
            self._resume(since)

    # ------------------------------------------------------------------ in

    def receive(self, message: str | bytes) -> Ask | Stop | None:
        """Take one frame; every frame gets a reply, an error, or an action that will lead to one."""
        try:
            decoded: ClientMessage = _decode(message, decode_client_message, LISTENER_TYPES)
        except _RejectedError as rejected:
            self.reply(rejected.reply)
            return None
        match decoded:
            case Query(content=content, id=id):
                id = secrets.token_hex(8) if isinstance(id, UnsetType) else id
                if content.question.strip():
                    return Ask(id, content)
                self.reply(error(ErrorCode.EMPTY_QUESTION, "The question is empty. Ask something.", id=id))
            case Cancel(id=id):
                return Stop(id)
            case Ping(id=id):
                self.reply(Pong(id=id))
            case Pong():
                pass  # itself an answer, to a ping
            case Subscribe() as subscribe:
                self._subscribe(subscribe)
        return None

    def _subscribe(self, message: Subscribe) -> None:
        topics = None if message.topics is None else frozenset(message.topics)
        if topics is not None and (unknown := topics - TOPICS):
            self.reply(
                error(
                    ErrorCode.INVALID_MESSAGE,
                    f"There is no topic '{min(unknown)}'. The topics are: {', '.join(sorted(TOPICS))}.",
                    id=message.id,
                )
            )
            return
        self._topics = topics
        if message.since is not None:
            self._resume(message.since)
        # Behind the events that it stands for, so that all that follows it is newer than it.
        self.reply(self._history.snapshot(id=message.id), after=self._history.seq)

    def _resume(self, since: Since) -> None:
        same = since.epoch == self._history.epoch and self._history.reaches(since.seq)
        self._cursor = since.seq if same else -1  # -1: no log reaches back there, so a gap is due

    # ------------------------------------------------------------------ out

    def reply(self, message: Struct, *, after: int = -1) -> None:
        """Queue a message for this listener alone.

        A listener that does not read loses pieces of answers first (`Response` holds the whole
        answer); one that still does not read is closed.
        """
        if self.state is not State.OPEN:
            return
        if isinstance(message, ResponseDelta) and self.backlogged:
            return
        frame = text_frame(encode(message))
        if self._replies and self._reply_bytes + len(frame) > 2 * self._max_reply_bytes:
            self._replies.clear()
            self._reply_bytes = 0
            self.close(1008, "replies were not read")
            return
        self._replies.append((after, frame))
        self._reply_bytes += len(frame)

    @property
    def backlogged(self) -> bool:
        """Whether so many replies wait that nothing more should be read from this listener."""
        return self._reply_bytes > self._max_reply_bytes

    def data_to_send(self) -> bytes:
        """Return the frames to write next, about 64 KiB at most; empty when there is nothing to say."""
        parts: list[bytes] = []
        size = 0
        history = self._history
        while size < WRITE_BYTES and self.state is not State.CLOSED:
            after = self._replies[0][0] if self._replies else None
            if after is not None and after <= self._cursor:
                data = self._replies.popleft()[1]
                self._reply_bytes -= len(data)
            elif self._cursor == history.seq:
                break
            elif history.reaches(self._cursor):
                data, self._cursor = history.run(self._cursor, until=after, topics=self._topics, max_bytes=WRITE_BYTES)
            else:
                data, self._cursor = history.gap_frame(), history.seq
                self._renew_snapshots()
            if data:
                parts.append(data)
                size += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _renew_snapshots(self) -> None:
        # The gap has just told of newer events than those that wait here stand for.
        waiting, self._replies = self._replies, deque()
        for after, frame in waiting:
            if after >= 0:
                (payload,) = payloads(frame)
                frame = text_frame(encode(self._history.snapshot(id=_decode_envelope(payload).id or UNSET)))
            self._replies.append((-1, frame))
        self._reply_bytes = sum(len(frame) for _, frame in self._replies)

    def close(self, code: int, reason: str) -> None:
        """Say what is queued, then close."""
        if self.state is not State.CLOSED:
            self.state = State.CLOSING
            self.close_code = self.close_code or (code, reason)

    def closed(self) -> None:
        """The socket is gone."""
        self.state = State.CLOSED
        self._replies.clear()
        self._reply_bytes = 0


class PublisherSession:
    """One publisher: says hello, publishes, offers engines, answers queries."""

    def __init__(self, *, max_queue_bytes: int = 2**20) -> None:
        self.state = State.NEW
        self.close_code: tuple[int, str] | None = None
        self.hello: Hello | None = None
        self._max_queue_bytes = max_queue_bytes
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0
        self._ack = 0

    @property
    def id(self) -> str:
        """The publisher's own id; "" before its hello."""
        return self.hello.publisher if self.hello is not None else ""

    def receive(self, message: str | bytes) -> EngineMessage | None:
        """Take one frame; return the message that the hub has to act upon, if any."""
        try:
            decoded: EngineMessage = _decode(message, decode_engine_message, PUBLISHER_TYPES)
        except _RejectedError as rejected:
            self.send(rejected.reply)
            if isinstance(rejected.reply.id, UnsetType):
                return None
            # Whoever waits for this reply must hear that it will not come.
            problem = f"The engine sent a reply that cannot be read: {rejected.reply.content.message}"
            return error(ErrorCode.ENGINE_FAILED, problem, id=rejected.reply.id)
        match decoded:
            case Ping(id=id):
                self.send(Pong(id=id))
                return None
            case Pong():
                return None  # itself an answer, to a ping
            case Hello() if self.state is State.NEW:
                self.hello = decoded
                self.state = State.OPEN
                return decoded
            case Hello():
                self.send(error(ErrorCode.INVALID_MESSAGE, "You have said hello already."))
                return None
            case _ if self.state is State.NEW:
                self.send(error(ErrorCode.INVALID_MESSAGE, "The first message has to be 'hello'."))
                return None
        return decoded

    def acknowledge(self, n: int) -> None:
        """Say that every event up to ``n`` has come; the newest word replaces one not yet said."""
        self._ack = max(self._ack, n)

    def send(self, message: Struct) -> bool:
        """Queue a message; return False, and queue nothing, if the publisher does not read."""
        if self.state not in (State.NEW, State.OPEN) or self._queue_bytes > self._max_queue_bytes:
            return False
        frame = text_frame(encode(message))
        self._queue.append(frame)
        self._queue_bytes += len(frame)
        return True

    @property
    def backlogged(self) -> bool:
        """Whether so much waits for it that nothing more should be read from this publisher."""
        return self._queue_bytes > self._max_queue_bytes

    def data_to_send(self) -> bytes:
        """Return the frames to write next; empty when there is nothing to say."""
        if self.state is State.CLOSED:
            return b""
        parts: list[bytes] = []
        if self._ack:
            parts.append(text_frame(encode(Ack(n=self._ack))))
            self._ack = 0
        while self._queue and sum(map(len, parts)) < WRITE_BYTES:
            parts.append(self._queue.popleft())
            self._queue_bytes -= len(parts[-1])
        return b"".join(parts)

    def close(self, code: int, reason: str) -> None:
        """Say what is queued, then close."""
        if self.state is not State.CLOSED:
            self.state = State.CLOSING
            self.close_code = self.close_code or (code, reason)

    def closed(self) -> None:
        """The socket is gone."""
        self.state = State.CLOSED
        self._queue.clear()
        self._queue_bytes = 0
