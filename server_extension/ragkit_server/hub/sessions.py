"""The sessions of listeners and publishers: the protocol of one connection, without I/O.

A session receives frames (`receive`), queues messages (`reply`, `send`), and returns the bytes to write
(`data_to_send`). Sockets only move these bytes, and tests need no sockets. States::

    listener   OPEN --close()--> CLOSING (sends its queue, then the close frame) --> CLOSED
    publisher  NEW --hello--> OPEN --close()--> CLOSING --> CLOSED
"""

from __future__ import annotations

import enum
import secrets
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from msgspec import UNSET, Struct, UnsetType

from ragkit.live.messages import (
    TOPICS,
    Ack,
    Cancel,
    EngineMessage,
    ErrorCode,
    Hello,
    Ping,
    Pong,
    Query,
    QueryContent,
    ResponseDelta,
    Since,
    Subscribe,
    encode,
)
from ragkit_server.history.log import RUN_BYTES, History
from ragkit_server.hub.inbound import RejectedError, error, from_listener, from_publisher
from ragkit_server.transport.frames import text_frame


class SessionState(enum.Enum):
    """The state of a session."""

    NEW = enum.auto()  # publishers only: has not sent Hello
    OPEN = enum.auto()
    CLOSING = enum.auto()
    CLOSED = enum.auto()


@dataclass(frozen=True, slots=True)
class Ask:
    """Action: ask a question, if the listener is authorized to."""

    id: str
    content: QueryContent


@dataclass(frozen=True, slots=True)
class Excerpt:
    """A part of the archive: the events after one seq up to another, of these topics (None: all)."""

    after: int
    until: int
    topics: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class Stop:
    """Action: cancel the query with this id."""

    id: str


class ListenerSession:
    """The session of a listener: a cursor into the history, and a queue of replies.

    Args:
        history: The history of broadcasts.
        since: The last event that the listener received, to resume without a race; None for no earlier events.
        max_reply_bytes: How many bytes of replies may be queued.

    Attributes:
        cursor: The seq of the last event that was sent.
        plain: True if only broadcasts, of all topics, have to be sent.
    """

    __slots__ = (
        "_archived", "_history", "_max_reply_bytes", "_replies", "_reply_bytes",
        "_topics", "close_code", "cursor", "plain", "state", "wants",
    )  # fmt: skip

    def __init__(
        self,
        history: History,
        *,
        since: Since | None = None,
        max_reply_bytes: int = 2**20,
    ) -> None:
        self.state = SessionState.OPEN
        self.close_code: tuple[int, str] | None = None
        self._history = history
        self._topics: frozenset[str] | None = None  # all
        self.cursor = history.seq
        self._max_reply_bytes = max_reply_bytes
        self._replies: deque[tuple[int, bytes, str | UnsetType]] = deque()  # (not before this seq, frame, id)
        self._reply_bytes = 0
        self._archived = b""
        self.plain = False
        self.wants: Excerpt | None = None  # see `waits`
        if since is not None:
            self._resume(since)

    # ------------------------------------------------------------------ in

    def receive(self, message: str | bytes) -> Ask | Stop | None:
        """Handle one frame; it results in a reply, an error, or an action that leads to one."""
        try:
            decoded = from_listener(message)
        except RejectedError as rejected:
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
                pass  # the reply to a ping
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
        self.plain = False
        if message.since is not None:
            self._resume(message.since)
        # After the events that it covers, so that all later events are newer.
        self.reply(self._history.snapshot(id=message.id), after=self._history.seq)

    def _resume(self, since: Since) -> None:
        known = since.epoch == self._history.epoch and since.seq <= self._history.seq
        self.cursor = since.seq if known else -1  # -1: before any history, so a Gap is sent
        self._archived = b""
        self.wants = None

    # ------------------------------------------------------------------ out

    def reply(self, message: Struct, *, after: int = -1) -> None:
        """Queue a message for this listener only.

        If too many bytes are queued, pieces of answers are dropped (`Response` has the complete answer). If the queue
        still grows, the connection is closed.
        """
        if self.state is not SessionState.OPEN:
            return
        if isinstance(message, ResponseDelta) and self.backlogged:
            return
        frame = text_frame(encode(message))
        if self._replies and self._reply_bytes + len(frame) > 2 * self._max_reply_bytes:
            self._replies.clear()
            self._reply_bytes = 0
            self.close(1008, "replies were not read")
            return
        self.plain = False
        self._replies.append((after, frame, getattr(message, "id", UNSET)))
        self._reply_bytes += len(frame)

    @property
    def waits(self) -> bool:
        """Whether the hub has to read the archive for this session or close its socket."""
        return self.wants is not None or self.close_code is not None

    @property
    def backlogged(self) -> bool:
        """Whether so many replies are queued that no more frames should be read from this listener."""
        return self._reply_bytes > self._max_reply_bytes

    def data_to_send(self) -> bytes:
        """Return the next frames to write, about 64 KiB at most; empty if there are none (yet)."""
        data = self._collect(self._history)
        only_broadcasts = self._topics is None and not self._replies and not self._archived
        self.plain = only_broadcasts and not self.waits and self.state is SessionState.OPEN
        return data

    def _collect(self, history: History) -> bytes:
        parts: list[bytes] = []
        size = 0
        while size < RUN_BYTES and self.state is not SessionState.CLOSED:
            after = self._replies[0][0] if self._replies else None
            if self._archived:
                data, self._archived = self._archived, b""
            elif after is not None and after <= self.cursor:
                data = self._replies.popleft()[1]
                self._reply_bytes -= len(data)
            elif self.cursor == history.seq or self.wants is not None:
                break
            elif history.reaches(self.cursor):
                data, self.cursor = history.run(self.cursor, until=after, topics=self._topics, max_bytes=RUN_BYTES)
            elif (until := history.archived_until(self.cursor)) is not None:
                until = until if after is None else min(until, after)
                self.wants = Excerpt(self.cursor, until, self._topics)
                break
            else:
                data, self.cursor = history.gap()
                self._renew_snapshots()
            if data:
                parts.append(data)
                size += len(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def feed(self, wanted: Excerpt, payloads: Iterable[bytes] | None, cursor: int) -> None:
        """Receive the messages that `wants` requests.

        Args:
            wanted: The request; nothing happens if it has changed.
            payloads: The messages; None if they cannot be read, so that a Gap is sent.
            cursor: The seq of the last message that was read.
        """
        if self.wants is wanted:
            self.wants = None
            self.plain = False
            self._archived = b"".join(map(text_frame, payloads or ()))
            self.cursor = -1 if payloads is None else cursor

    def _renew_snapshots(self) -> None:
        # The Gap covers newer events than the queued snapshots do.
        waiting, self._replies = self._replies, deque()
        for after, frame, id in waiting:
            if after >= 0:
                frame = text_frame(encode(self._history.snapshot(id=id)))
            self._replies.append((self._history.seq if after >= 0 else -1, frame, id))
        self._reply_bytes = sum(len(frame) for _, frame, _ in self._replies)

    def close(self, code: int, reason: str) -> None:
        """Send the queued messages, then close."""
        if self.state is not SessionState.CLOSED:
            self.plain = False
            self.state = SessionState.CLOSING
            self.close_code = self.close_code or (code, reason)

    def closed(self) -> None:
        """Note that the socket is closed."""
        self.plain = False
        self.wants = None
        self.state = SessionState.CLOSED
        self._replies.clear()
        self._reply_bytes = 0


class PublisherSession:
    """The session of a publisher, which sends `Hello`, publishes events, offers engines and answers queries."""

    def __init__(self, *, max_queue_bytes: int = 2**20) -> None:
        self.state = SessionState.NEW
        self.close_code: tuple[int, str] | None = None
        self.hello: Hello | None = None
        self._max_queue_bytes = max_queue_bytes
        self._queue: deque[bytes] = deque()
        self._queue_bytes = 0
        self._ack = 0

    @property
    def id(self) -> str:
        """The publisher's id; "" before its `Hello`."""
        return self.hello.publisher if self.hello is not None else ""

    def receive(self, message: str | bytes) -> EngineMessage | None:
        """Handle one frame; return the message that the hub has to process, if any."""
        try:
            decoded = from_publisher(message)
        except RejectedError as rejected:
            self.send(rejected.reply)
            if isinstance(rejected.reply.id, UnsetType):
                return None
            # The listener that waits for this reply must get an error.
            problem = f"The engine sent a reply that cannot be read: {rejected.reply.content.message}"
            return error(ErrorCode.ENGINE_FAILED, problem, id=rejected.reply.id)
        match decoded:
            case Ping(id=id):
                self.send(Pong(id=id))
                return None
            case Pong():
                return None  # the reply to a ping
            case Hello() if self.state is SessionState.NEW:
                self.hello = decoded
                self.state = SessionState.OPEN
                return decoded
            case Hello():
                self.send(error(ErrorCode.INVALID_MESSAGE, "'hello' was already sent on this connection."))
                return None
            case _ if self.state is SessionState.NEW:
                self.send(error(ErrorCode.INVALID_MESSAGE, "The first message must be 'hello'."))
                return None
        return decoded

    def acknowledge(self, n: int) -> None:
        """Acknowledge every event up to ``n``; replaces an acknowledgement that is not yet sent."""
        self._ack = max(self._ack, n)

    def send(self, message: Struct) -> bool:
        """Queue a message; return False without queueing it if the publisher does not read."""
        if self.state not in (SessionState.NEW, SessionState.OPEN) or self._queue_bytes > self._max_queue_bytes:
            return False
        frame = text_frame(encode(message))
        self._queue.append(frame)
        self._queue_bytes += len(frame)
        return True

    @property
    def waits(self) -> bool:
        """Whether the hub has to close the session's socket."""
        return self.close_code is not None

    @property
    def backlogged(self) -> bool:
        """Whether so much is queued that no more frames should be read from this publisher."""
        return self._queue_bytes > self._max_queue_bytes

    def data_to_send(self) -> bytes:
        """Return the next frames to write; empty if there are none."""
        if self.state is SessionState.CLOSED:
            return b""
        parts: list[bytes] = []
        if self._ack:
            parts.append(text_frame(encode(Ack(n=self._ack))))
            self._ack = 0
        while self._queue and sum(map(len, parts)) < RUN_BYTES:
            parts.append(self._queue.popleft())
            self._queue_bytes -= len(parts[-1])
        return b"".join(parts)

    def close(self, code: int, reason: str) -> None:
        """Send the queued messages, then close."""
        if self.state is not SessionState.CLOSED:
            self.state = SessionState.CLOSING
            self.close_code = self.close_code or (code, reason)

    def closed(self) -> None:
        """Note that the socket is closed."""
        self.state = SessionState.CLOSED
        self._queue.clear()
        self._queue_bytes = 0
