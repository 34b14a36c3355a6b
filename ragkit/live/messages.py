"""The messages on the WebSockets ``/api/v1/ws`` and ``/api/v1/engine``.

Theory of operation
===================

There are three roles. A *listener* (a browser, widget or program) holds a socket on ``/api/v1/ws``. A *publisher* (a
process that imports ragkit: a notebook kernel, a papermill run, a script) holds a socket on ``/api/v1/engine``. The
*hub* in the Jupyter server connects them.

- A **broadcast** is created and numbered by a publisher (`Publish.n`). The hub acknowledges it (`Ack.n`), stamps it
  with ``epoch`` and ``seq``, and sends it to every listener.
- A **query** goes from a listener to the hub and from there to one publisher that has made an `Offer`. Its replies go
  back to the asking listener only, with the query's ``id``.

Every message is one JSON object in one text frame; its string ``type`` identifies it. The shapes of
`FollowUpQuestions`, `Query`, `Response` and `Error` are a contract with existing clients: keys may be added but never
removed or renamed. A receiver ignores unknown keys. The structs validate what they decode and limit its size, because
messages on the socket are untrusted.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, get_args

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from ragkit.errors import InputError

__all__ = [
    "Ack", "Broadcast", "Cancel", "ClientMessage", "Engine", "EngineMessage", "EnginesChanged", "Error", "ErrorCode",
    "ErrorContent", "ExperimentProgress", "ExperimentResult", "Failure", "FollowUpQuestions", "Gap", "Hello",
    "HubMessage", "IndexingProgress", "ListenerMessage", "Offer", "Origin", "Ping", "Pong", "Publish", "Query",
    "QueryContent", "Response", "ResponseContent", "ResponseDelta", "Since", "Snapshot", "Source", "Subscribe",
    "TaskState", "Welcome", "Withdraw", "check_broadcast", "decode_broadcast", "decode_client_message",
    "decode_engine_message", "decode_hub_message", "decode_listener_message", "encode", "is_too_deep", "to_broadcast",
]  # fmt: skip

Id = Annotated[str, Meta(min_length=1, max_length=128)]
Name = Annotated[str, Meta(max_length=1_024)]
Text = Annotated[str, Meta(max_length=200_000)]
Count = Annotated[int, Meta(ge=0)]

TaskState = Literal["queued", "running", "done", "failed", "cancelled"]
"""A task's states; the last three are terminal."""

TERMINAL: frozenset[str] = frozenset({"done", "failed", "cancelled"})

MAX_DEPTH = 50
"""The deepest nesting of a ``context``, a ``row`` or a ``leaderboard``; some clients cannot decode more."""

MAX_MESSAGE_BYTES = 8 * 2**20
"""The largest message that the hub accepts from a publisher by default."""

MAX_BROADCAST_BYTES = MAX_MESSAGE_BYTES - 2**16
"""The largest event; leaves room for the number, time and origin that its publisher adds."""


class ErrorCode(enum.StrEnum):
    """The values of ``content.code`` in an `Error`, with their meanings."""

    meaning: str

    def __new__(cls, code: str, meaning: str) -> Self:
        member = str.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member

    INVALID_JSON = "INVALID_JSON", "The frame is not JSON."
    INVALID_MESSAGE = (
        "INVALID_MESSAGE",
        "The message does not match its type, is a binary frame, or names an unknown topic.",
    )
    UNKNOWN_TYPE = "UNKNOWN_TYPE", "There is no such message type in this direction; the message lists the valid types."
    MESSAGE_TOO_BIG = "MESSAGE_TOO_BIG", "The message exceeds the limit; the connection is closed with code 1009."
    EMPTY_QUESTION = "EMPTY_QUESTION", "The question has no words."
    NOT_AUTHORIZED = "NOT_AUTHORIZED", "The user may listen but not ask."
    NO_ENGINE = "NO_ENGINE", "No engine is on offer, or not the one that `context.engine` or `context.index` names."
    ENGINE_FAILED = "ENGINE_FAILED", "The engine raised an error (the message is the engine's) or could not be started."
    ENGINE_LOST = "ENGINE_LOST", "The engine's process disconnected before the answer was complete."
    TIMEOUT = "TIMEOUT", "No answer within `query_timeout_seconds`, or no engine within `start_timeout_seconds`."
    CANCELLED = "CANCELLED", "The query was cancelled."
    RATE_LIMITED = "RATE_LIMITED", "Too many queries on this connection, at a time or per minute; or too many engines."
    DUPLICATE_ID = "DUPLICATE_ID", "A query with this `id` is still being answered on this connection."
    UNKNOWN_REQUEST = "UNKNOWN_REQUEST", "No query with the `id` of this `cancel` is being answered; it may have ended."


class Origin(Struct, frozen=True, kw_only=True):
    """The publishing program: its kind, its name, and the id of this run of it."""

    kind: Literal["notebook", "papermill", "script", "cli"]
    name: Name
    run_id: Id
    path: Name | UnsetType = UNSET
    """Absolute path of the notebook or script on the publisher's machine; absent if unknown."""


class Failure(Struct, frozen=True, kw_only=True):
    """A document that could not be read, and the reason."""

    source: Name
    reason: Text


# --------------------------------------------------------------------------------- broadcasts


class _Broadcast(Struct, frozen=True, kw_only=True):
    epoch: str | UnsetType = UNSET
    """Id of the hub's history, set by the hub. With a new epoch, ``seq`` starts again at 1."""
    seq: int | UnsetType = UNSET
    """Sequence number 1, 2, 3, ... within an epoch, set by the hub."""
    time: str | UnsetType = UNSET
    """Time of publication, RFC 3339. The journal of a batch run may arrive days later."""
    origin: Origin | UnsetType = UNSET
    """The publisher; absent in `engines`, which the hub itself broadcasts."""


class FollowUpQuestions(_Broadcast, frozen=True, kw_only=True, tag_field="type", tag="follow_up_questions"):
    """Suggested follow-up questions to the last answer; each has an answer in the corpus."""

    questions: Annotated[list[Text], Meta(max_length=20)]
    index: Name | UnsetType = UNSET
    question: Text | UnsetType = UNSET
    """The question that was answered."""
    request_id: Id | UnsetType = UNSET
    """The ``id`` of the answered query; for an ``engine.ask()`` in a notebook, ``answer.id``."""


class IndexingProgress(_Broadcast, frozen=True, kw_only=True, tag_field="type", tag="indexing_progress"):
    """The state of an indexing task; the newest message of a ``task_id`` replaces the earlier ones."""

    task_id: Id
    index: Name
    state: TaskState
    documents_done: Count = 0
    documents_total: Count | None = None
    chunks_done: Count = 0
    chunks_total: Count | None = None
    current_document: Name | None = None
    rate: float | None = None
    """Chunks per second, over the last few seconds."""
    eta_seconds: float | None = None
    failures: list[Failure] = []
    """The first 100 documents that failed."""
    failures_total: Count = 0
    message: Text | None = None
    """Why the task ended, when it failed or was cancelled."""


class ExperimentProgress(_Broadcast, frozen=True, kw_only=True, tag_field="type", tag="experiment_progress"):
    """The state of an experiment; the newest message of a ``task_id`` replaces the earlier ones."""

    task_id: Id
    experiment: Name
    state: TaskState
    cells_done: Count = 0
    """Number of results so far, such as the rankings of one question by one system, or runs of a sweep."""
    cells_total: Count | None = None
    eta_seconds: float | None = None
    message: Text | None = None


class ExperimentResult(_Broadcast, frozen=True, kw_only=True, tag_field="type", tag="experiment_result"):
    """A new row of an experiment's results, and the leaderboard so far."""

    task_id: Id
    experiment: Name
    row: dict[str, Any]
    leaderboard: list[dict[str, Any]] = []


class Engine(Struct, frozen=True, kw_only=True):
    """An engine on offer."""

    id: Id
    index: Name
    llm: Name = ""
    embedder: Name = ""
    documents: Count = 0
    origin: Origin | UnsetType = UNSET


class EnginesChanged(_Broadcast, frozen=True, kw_only=True, tag_field="type", tag="engines"):
    """The engines that are on offer now, newest first."""

    engines: list[Engine]


Broadcast = FollowUpQuestions | IndexingProgress | ExperimentProgress | ExperimentResult | EnginesChanged

TOPICS = frozenset(str(event.__struct_config__.tag) for event in Broadcast.__args__)
"""The types that a listener may subscribe to."""


# ------------------------------------------------------------------------- listener -> hub


class QueryContent(Struct, frozen=True, kw_only=True):
    """A question and its context."""

    question: Text
    context: dict[str, Any] = {}
    """Free for the client. ragkit reads ``engine`` (an id), else ``index``; and ``k`` (the number of passages)."""


class Query(Struct, frozen=True, kw_only=True, tag_field="type", tag="query"):
    """Ask an engine."""

    content: QueryContent
    id: Id | UnsetType = UNSET
    """Every reply has this id; if absent, the hub assigns one."""


class Since(Struct, frozen=True, kw_only=True):
    """A position in the hub's history."""

    epoch: Id
    seq: Count


class Subscribe(Struct, frozen=True, kw_only=True, tag_field="type", tag="subscribe"):
    """Choose topics and request missed events."""

    topics: Annotated[list[Name], Meta(max_length=50)] | None = None
    """Types of broadcasts; all types if absent."""
    since: Since | None = None
    """The last event that the listener received."""
    id: Id | UnsetType = UNSET


class Cancel(Struct, frozen=True, kw_only=True, tag_field="type", tag="cancel"):
    """Cancel the query with this ``id``; the asking listener receives the error CANCELLED."""

    id: Id


class Ping(Struct, frozen=True, kw_only=True, tag_field="type", tag="ping"):
    """A heartbeat of the application; browsers do not expose the WebSocket ping."""

    id: Id | UnsetType = UNSET


class Pong(Struct, frozen=True, kw_only=True, tag_field="type", tag="pong"):
    """The reply to a `Ping`, with the same ``id``."""

    id: Id | UnsetType = UNSET


ClientMessage = Query | Subscribe | Cancel | Ping | Pong


# ------------------------------------------------------------------------- hub -> listener


class Source(Struct, frozen=True, kw_only=True):
    """A passage cited by an answer: ``document.text[start:end] == text``."""

    number: Count
    """The ``n`` of its marker ``[n]``."""
    document_id: Name
    title: Name
    source: Name
    text: str
    start: Count
    """Offset in Unicode code points, as in Python; not in UTF-16 units, as in JavaScript."""
    end: Count
    quotes: list[tuple[int, int]] = []
    """Spans that the answer quotes verbatim, as ``[start, end]`` offsets into the document."""
    heading: Name | None = None
    page: int | None = None
    score: float | None = None


class ResponseContent(Struct, frozen=True, kw_only=True):
    """An answer with ``[n]`` markers, and the sources that the markers refer to."""

    answer: str
    sources: list[Source]
    abstained: bool = False
    """True if the documents contain no answer; there are no sources then."""
    index: Name | UnsetType = UNSET
    model: Name | UnsetType = UNSET
    seconds: float | UnsetType = UNSET


class Response(Struct, frozen=True, kw_only=True, tag_field="type", tag="response"):
    """The complete answer, sent to the asking listener only."""

    content: ResponseContent
    id: Id | UnsetType = UNSET


class DeltaContent(Struct, frozen=True, kw_only=True):
    delta: str


class ResponseDelta(Struct, frozen=True, kw_only=True, tag_field="type", tag="response_delta"):
    """A piece of an answer while it is generated. The pieces are a preview; `Response` is the answer."""

    content: DeltaContent
    id: Id | UnsetType = UNSET


class ErrorContent(Struct, frozen=True, kw_only=True):
    message: str
    code: ErrorCode


class Error(Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """An error and what to do next, sent to one listener or publisher only."""

    content: ErrorContent
    id: Id | UnsetType = UNSET


class Snapshot(Struct, frozen=True, kw_only=True, tag_field="type", tag="snapshot"):
    """The state as of ``seq`` for a new listener: tasks, engines, recent follow-up questions and results."""

    epoch: str
    seq: int
    tasks: list[IndexingProgress | ExperimentProgress]
    engines: list[Engine]
    follow_ups: list[FollowUpQuestions]
    results: list[ExperimentResult] = []
    """The newest result of each experiment, oldest first; large results have no leaderboard."""
    id: Id | UnsetType = UNSET


class Gap(Struct, frozen=True, kw_only=True, tag_field="type", tag="gap"):
    """Events up to ``snapshot.seq`` were not sent to this listener; the snapshot replaces them."""

    snapshot: Snapshot
    id: Id | UnsetType = UNSET


ListenerMessage = Broadcast | Response | ResponseDelta | Error | Snapshot | Gap | Ping | Pong


# ------------------------------------------------------------------------- publisher <-> hub


class Hello(Struct, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """A publisher's first message."""

    publisher: Id
    """Id of the publisher; does not change when it reconnects."""
    origin: Origin


class Welcome(Struct, frozen=True, kw_only=True, tag_field="type", tag="welcome"):
    """The hub's reply to `Hello`; ``n`` is the last event that the hub has from this publisher (0 for none)."""

    n: Count
    epoch: str


class Publish(Struct, frozen=True, kw_only=True, tag_field="type", tag="publish"):
    """A broadcast, with the publisher's own number (1, 2, 3, ...)."""

    n: Annotated[int, Meta(ge=1)]
    event: Broadcast


class Ack(Struct, frozen=True, kw_only=True, tag_field="type", tag="ack"):
    """Acknowledges every event up to ``n``."""

    n: Count


class Offer(Struct, frozen=True, kw_only=True, tag_field="type", tag="offer"):
    """Offer an engine that answers queries; an offer with the same ``engine.id`` replaces the earlier one."""

    engine: Engine


class Withdraw(Struct, frozen=True, kw_only=True, tag_field="type", tag="withdraw"):
    """Withdraw the offer of an engine."""

    engine_id: Id


class EngineQuery(Struct, frozen=True, kw_only=True, tag_field="type", tag="engine_query"):
    """A query that the hub forwards to an engine."""

    id: Id
    """Assigned by the hub and unique among all listeners; replies have this id."""
    engine_id: Id
    content: QueryContent
    request_id: Id | UnsetType = UNSET
    """The ``id`` of the listener's query."""


EngineMessage = Hello | Publish | Offer | Withdraw | Response | ResponseDelta | Error | Ping | Pong
"""What a publisher may send."""

HubMessage = Welcome | Ack | EngineQuery | Cancel | Error | Ping | Pong
"""What a publisher may receive."""


# ---------------------------------------------------------------------------------- encoding

encode = msgspec.json.Encoder().encode
"""encode(message) -> bytes: one JSON object, UTF-8."""

decode_client_message = msgspec.json.Decoder(ClientMessage).decode
"""decode_client_message(frame): a message of a listener. Raises `msgspec.DecodeError` or `msgspec.ValidationError`."""

decode_listener_message = msgspec.json.Decoder(ListenerMessage).decode
"""decode_listener_message(frame): a message sent by the hub to a listener."""

decode_engine_message = msgspec.json.Decoder(EngineMessage).decode
"""decode_engine_message(frame): a message sent by a publisher."""

decode_hub_message = msgspec.json.Decoder(HubMessage).decode
"""decode_hub_message(frame): a message sent by the hub to a publisher."""

decode_broadcast = msgspec.json.Decoder(Broadcast).decode
"""decode_broadcast(text): a single event, as in a `Publish` or in the history."""


# -------------------------------------------------------------------------------- validation


def to_broadcast(message: Broadcast | Mapping[str, Any]) -> Broadcast:
    """Validate a message to broadcast and convert it to a struct.

    Args:
        message: A broadcast, or the same as a dict: ``{"type": "follow_up_questions", "questions": ["Why?"]}``.

    Returns:
        The broadcast. It is a copy, so ``message`` may be changed afterwards.

    Raises:
        InputError: The type is missing or cannot be broadcast, a key is missing, unknown or has an invalid value, or
            the message is too large. Only the types of the protocol are accepted, so that listeners can rely on their
            shapes. Unknown keys are rejected, because they would not be sent to listeners.
    """
    if isinstance(message, Struct):
        kind: Any = message.__struct_config__.tag
    elif isinstance(message, Mapping):
        message = dict(message)
        kind = message.get("type")
    else:
        raise InputError(
            f"A message to broadcast must be a dict or a struct of ragkit.live.messages, not {message!r:.100}."
        )
    if not isinstance(kind, str) or kind not in TOPICS:
        known = ", ".join(sorted(TOPICS - {"engines"}))
        what = (
            "A message to broadcast needs a 'type'" if kind is None else f"There is no broadcast of type {kind!r:.100}"
        )
        raise InputError(f"{what}. The types are: {known}. Put custom values into the 'row' of an experiment_result.")
    try:
        frame = msgspec.json.encode(message, enc_hook=_as_number)
    except (TypeError, ValueError, RecursionError) as problem:
        raise InputError(f"This '{kind}' cannot be broadcast: it cannot be encoded as JSON: {problem}.") from problem
    if len(frame) > MAX_BROADCAST_BYTES:
        raise InputError(
            f"This '{kind}' cannot be broadcast: it has {len(frame):,} bytes; the limit is {MAX_BROADCAST_BYTES:,}."
        )
    try:
        event: Broadcast = decode_broadcast(frame)
    except (msgspec.ValidationError, RecursionError) as problem:
        states = f" (a state is one of {', '.join(get_args(TaskState))})" if "$.state" in str(problem) else ""
        raise InputError(f"This '{kind}' cannot be broadcast: {problem}{states}. See docs/protocol.md.") from problem
    check_broadcast(event)
    if unknown := next(_unknown_keys(msgspec.json.decode(frame), msgspec.json.decode(encode(event))), None):
        keys = ", ".join(event.__struct_fields__)
        raise InputError(f"This '{kind}' cannot be broadcast: there is no key '{unknown}'. The keys are: {keys}.")
    return event


def check_broadcast(event: Broadcast) -> None:
    """Validate what the types of the structs do not enforce.

    Raises:
        InputError: Only the hub may broadcast this event, or a row is nested too deeply.
    """
    if isinstance(event, EnginesChanged):
        raise InputError("Only the hub broadcasts 'engines'. Send 'offer' (in Python: engine.serve()) instead.")
    if isinstance(event, ExperimentResult) and is_too_deep(event.row, event.leaderboard):
        raise InputError(f"The message is nested more than {MAX_DEPTH} levels deep. Send a flatter object.")


def is_too_deep(*level: object) -> bool:
    """Return whether these objects are nested more deeply than `MAX_DEPTH`."""
    for _ in range(MAX_DEPTH):
        inner = (part for outer in level for part in (outer.values() if isinstance(outer, dict) else outer))  # type: ignore[attr-defined]
        level = tuple(part for part in inner if isinstance(part, dict | list))
        if not level:
            return False
    return True


def _as_number(value: Any) -> Any:
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():  # a NumPy scalar, such as a mean
        return value.item()
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is not a JSON type")


def _unknown_keys(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Yield the paths of the keys in ``given`` that are not in ``kept``."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield path + key
            else:
                yield from _unknown_keys(value, kept[key], f"{path}{key}.")
    elif isinstance(given, list) and isinstance(kept, list):
        for number, pair in enumerate(zip(given, kept, strict=True)):
            yield from _unknown_keys(*pair, f"{path}{number}.")
