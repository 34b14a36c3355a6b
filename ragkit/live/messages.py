"""The messages on the wire: what travels on `/api/v1/ws` and `/api/v1/engine`.

Theory of operation
===================

Three parties speak. A *listener* (browser, widget, program) holds a socket on ``/api/v1/ws``. A
*publisher* (a notebook kernel, a papermill run, a script: whoever imports ragkit) holds one on
``/api/v1/engine``. The *hub* in the Jupyter server stands between them.

- A **broadcast** is made by a publisher, numbered by it (`Publish.n`), acknowledged by the hub
  (`Ack.n`), stamped by the hub with ``epoch`` and ``seq``, and sent to every listener.
- A **query** goes from a listener to the hub, from there to one publisher that has made an
  `Offer`, and its replies travel back to the asker alone, under the query's ``id``.

Every message is one JSON object in one text frame, told apart by its string ``type``. The first four shapes below
(`FollowUpQuestions`, `Query`, `Response`, `Error`) are a contract with clients that exist: they may gain keys, they
never lose or rename one. A receiver ignores keys that it does not know. The structs validate what they decode;
sizes are bounded here because everything on the socket comes from outside.
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
"""Levels of a ``context``, a ``row`` or a ``leaderboard``: more could be decoded here and not everywhere."""

MAX_MESSAGE_BYTES = 8 * 2**20
"""The largest message that the hub takes from a publisher, unless it is configured otherwise."""

MAX_BROADCAST_BYTES = MAX_MESSAGE_BYTES - 2**16
"""The largest event: its publisher still adds a number, the time and its origin."""


class ErrorCode(enum.StrEnum):
    """Every value that ``content.code`` of an `Error` can have, with its meaning."""

    meaning: str

    def __new__(cls, code: str, meaning: str) -> Self:
        member = str.__new__(cls, code)
        member._value_, member.meaning = code, meaning
        return member

    INVALID_JSON = "INVALID_JSON", "The frame is not JSON."
    INVALID_MESSAGE = "INVALID_MESSAGE", "Not the shape that its type asks for, a binary frame, or an unknown topic."
    UNKNOWN_TYPE = "UNKNOWN_TYPE", "No such message type in this direction; the message lists those that there are."
    MESSAGE_TOO_BIG = "MESSAGE_TOO_BIG", "Over the limit; the connection is closed with code 1009."
    EMPTY_QUESTION = "EMPTY_QUESTION", "The question has no words."
    NOT_AUTHORIZED = "NOT_AUTHORIZED", "You may listen here, but not ask."
    NO_ENGINE = "NO_ENGINE", "Nobody offers an engine, or not the one that `context.engine` or `context.index` names."
    ENGINE_FAILED = "ENGINE_FAILED", "The engine raised an error (the message is its own) or could not be started."
    ENGINE_LOST = "ENGINE_LOST", "The engine's process went away in the middle of the answer."
    TIMEOUT = "TIMEOUT", "No answer within `query_timeout_seconds`, or no engine within `start_timeout_seconds`."
    CANCELLED = "CANCELLED", "Somebody stopped it."
    RATE_LIMITED = "RATE_LIMITED", "Too many queries on this connection at a time or in a minute; or too many engines."
    DUPLICATE_ID = "DUPLICATE_ID", "A query with this `id` is still being answered on this connection."
    UNKNOWN_REQUEST = "UNKNOWN_REQUEST", "`cancel` names no query that is being answered; it may have just ended."


class Origin(Struct, frozen=True, kw_only=True):
    """Who published: what kind of program, its name, and this run of it."""

    kind: Literal["notebook", "papermill", "script", "cli"]
    name: Name
    run_id: Id
    path: Name | UnsetType = UNSET
    """The notebook's or script's file, absolute, as its own machine names it; absent where that is not known."""


class Failure(Struct, frozen=True, kw_only=True):
    """One document that could not be read, and why."""

    source: Name
    reason: Text


# --------------------------------------------------------------------------------- broadcasts


class _Broadcast(Struct, frozen=True, kw_only=True):
    epoch: str | UnsetType = UNSET
    """Names the hub's history; another one means that counting began anew."""
    seq: int | UnsetType = UNSET
    """1, 2, 3, ... within an epoch; both are the hub's to give."""
    time: str | UnsetType = UNSET
    """RFC 3339: when it was published; a batch run's journal may arrive days later."""
    origin: Origin | UnsetType = UNSET
    """Who published; the hub's own `engines` has none."""


class FollowUpQuestions(_Broadcast, frozen=True, kw_only=True, tag_field="type", tag="follow_up_questions"):
    """Questions that a reader of the last answer might ask next; each has an answer in the corpus."""

    questions: Annotated[list[Text], Meta(max_length=20)]
    index: Name | UnsetType = UNSET
    question: Text | UnsetType = UNSET
    """The question whose answer these follow."""
    request_id: Id | UnsetType = UNSET
    """The ``id`` of that answer's query; for an ``engine.ask()`` in a notebook ``answer.id``."""


class IndexingProgress(_Broadcast, frozen=True, kw_only=True, tag_field="type", tag="indexing_progress"):
    """One indexing task's state; only the newest per ``task_id`` matters."""

    task_id: Id
    index: Name
    state: TaskState
    documents_done: Count = 0
    documents_total: Count | None = None
    chunks_done: Count = 0
    chunks_total: Count | None = None
    current_document: Name | None = None
    rate: float | None = None
    """Chunks a second, over the last few seconds."""
    eta_seconds: float | None = None
    failures: list[Failure] = []
    """The documents that failed so far; the first 100 of them."""
    failures_total: Count = 0
    message: Text | None = None
    """Why the task ended, when it failed or was cancelled."""


class ExperimentProgress(_Broadcast, frozen=True, kw_only=True, tag_field="type", tag="experiment_progress"):
    """One experiment's state; only the newest per ``task_id`` matters."""

    task_id: Id
    experiment: Name
    state: TaskState
    cells_done: Count = 0
    """A cell is what is computed once, such as the ranking of one question by one system."""
    cells_total: Count | None = None
    eta_seconds: float | None = None
    message: Text | None = None


class ExperimentResult(_Broadcast, frozen=True, kw_only=True, tag_field="type", tag="experiment_result"):
    """The row just measured, and the leaderboard so far."""

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
    """The engines that answer queries now, newest first."""

    engines: list[Engine]


Broadcast = FollowUpQuestions | IndexingProgress | ExperimentProgress | ExperimentResult | EnginesChanged

TOPICS = frozenset(str(event.__struct_config__.tag) for event in Broadcast.__args__)
"""The types that a listener may subscribe to."""


# ------------------------------------------------------------------------- listener -> hub


class QueryContent(Struct, frozen=True, kw_only=True):
    """A question, and what goes with it."""

    question: Text
    context: dict[str, Any] = {}
    """Free for the client; ragkit reads ``engine`` (its id) or else ``index``, and ``k`` (how many passages)."""


class Query(Struct, frozen=True, kw_only=True, tag_field="type", tag="query"):
    """Ask the engine."""

    content: QueryContent
    id: Id | UnsetType = UNSET
    """Every reply carries it; without one the hub makes one."""


class Since(Struct, frozen=True, kw_only=True):
    """A place in the hub's history."""

    epoch: Id
    seq: Count


class Subscribe(Struct, frozen=True, kw_only=True, tag_field="type", tag="subscribe"):
    """Choose topics, and ask for what was missed."""

    topics: Annotated[list[Name], Meta(max_length=50)] | None = None
    """Types of broadcasts; all without it."""
    since: Since | None = None
    """The last event that was seen."""
    id: Id | UnsetType = UNSET


class Cancel(Struct, frozen=True, kw_only=True, tag_field="type", tag="cancel"):
    """Stop the query with this ``id``; its asker gets the error CANCELLED."""

    id: Id


class Ping(Struct, frozen=True, kw_only=True, tag_field="type", tag="ping"):
    """An application heartbeat: browsers expose no protocol ping."""

    id: Id | UnsetType = UNSET


class Pong(Struct, frozen=True, kw_only=True, tag_field="type", tag="pong"):
    """The answer to `Ping`, with its ``id``."""

    id: Id | UnsetType = UNSET


ClientMessage = Query | Subscribe | Cancel | Ping | Pong


# ------------------------------------------------------------------------- hub -> listener


class Source(Struct, frozen=True, kw_only=True):
    """A passage that an answer cites: ``document.text[start:end] == text``."""

    number: Count
    """The ``n`` of its ``[n]``."""
    document_id: Name
    title: Name
    source: Name
    text: str
    start: Count
    """Offsets count characters (Unicode code points: Python's, not JavaScript's UTF-16 units)."""
    end: Count
    quotes: list[tuple[int, int]] = []
    """Parts of the passage that the answer repeats word for word, as offsets into the document."""
    heading: Name | None = None
    page: int | None = None
    score: float | None = None


class ResponseContent(Struct, frozen=True, kw_only=True):
    """An answer with ``[n]`` markers, and the sources that the markers name."""

    answer: str
    sources: list[Source]
    abstained: bool = False
    """The documents hold no answer; there are no sources."""
    index: Name | UnsetType = UNSET
    model: Name | UnsetType = UNSET
    seconds: float | UnsetType = UNSET


class Response(Struct, frozen=True, kw_only=True, tag_field="type", tag="response"):
    """The whole answer, to the asker alone."""

    content: ResponseContent
    id: Id | UnsetType = UNSET


class DeltaContent(Struct, frozen=True, kw_only=True):
    delta: str


class ResponseDelta(Struct, frozen=True, kw_only=True, tag_field="type", tag="response_delta"):
    """A piece of an answer while it is made. The pieces together are a preview; `Response` is the answer."""

    content: DeltaContent
    id: Id | UnsetType = UNSET


class ErrorContent(Struct, frozen=True, kw_only=True):
    message: str
    code: ErrorCode


class Error(Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """What went wrong and what to do next, to the asker alone."""

    content: ErrorContent
    id: Id | UnsetType = UNSET


class Snapshot(Struct, frozen=True, kw_only=True, tag_field="type", tag="snapshot"):
    """Everything that a late joiner needs, as of ``seq``: live tasks, engines, recent follow-ups and results."""

    epoch: str
    seq: int
    tasks: list[IndexingProgress | ExperimentProgress]
    engines: list[Engine]
    follow_ups: list[FollowUpQuestions]
    results: list[ExperimentResult] = []
    """The newest of each experiment, oldest first; of large ones without the leaderboard."""
    id: Id | UnsetType = UNSET


class Gap(Struct, frozen=True, kw_only=True, tag_field="type", tag="gap"):
    """Events up to ``snapshot.seq`` were dropped for this listener; the snapshot replaces them."""

    snapshot: Snapshot
    id: Id | UnsetType = UNSET


ListenerMessage = Broadcast | Response | ResponseDelta | Error | Snapshot | Gap | Ping | Pong


# ------------------------------------------------------------------------- publisher <-> hub


class Hello(Struct, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """A publisher's first message."""

    publisher: Id
    """Stays the same over reconnections."""
    origin: Origin


class Welcome(Struct, frozen=True, kw_only=True, tag_field="type", tag="welcome"):
    """The hub's answer to `Hello`: ``n`` is the last event that it has from this publisher (0: none)."""

    n: Count
    epoch: str


class Publish(Struct, frozen=True, kw_only=True, tag_field="type", tag="publish"):
    """One broadcast, with the publisher's own number (1, 2, 3, ...)."""

    n: Annotated[int, Meta(ge=1)]
    event: Broadcast


class Ack(Struct, frozen=True, kw_only=True, tag_field="type", tag="ack"):
    """Every event up to ``n`` is the hub's now."""

    n: Count


class Offer(Struct, frozen=True, kw_only=True, tag_field="type", tag="offer"):
    """This publisher answers queries with this engine; offering an ``engine.id`` again replaces it."""

    engine: Engine


class Withdraw(Struct, frozen=True, kw_only=True, tag_field="type", tag="withdraw"):
    """The engine no longer answers."""

    engine_id: Id


class EngineQuery(Struct, frozen=True, kw_only=True, tag_field="type", tag="engine_query"):
    """A query on its way to an engine."""

    id: Id
    """The hub's, unique among all listeners; replies carry it."""
    engine_id: Id
    content: QueryContent
    request_id: Id | UnsetType = UNSET
    """What the asker calls it."""


EngineMessage = Hello | Publish | Offer | Withdraw | Response | ResponseDelta | Error | Ping | Pong
"""What a publisher may send."""

HubMessage = Welcome | Ack | EngineQuery | Cancel | Error | Ping | Pong
"""What a publisher may receive."""


# ---------------------------------------------------------------------------------- encoding

encode = msgspec.json.Encoder().encode
"""encode(message) -> bytes: one JSON object, UTF-8."""

decode_client_message = msgspec.json.Decoder(ClientMessage).decode
"""decode_client_message(frame): what a listener sent. Raises `msgspec.DecodeError` or `msgspec.ValidationError`."""

decode_listener_message = msgspec.json.Decoder(ListenerMessage).decode
"""decode_listener_message(frame): what the hub sent to a listener."""

decode_engine_message = msgspec.json.Decoder(EngineMessage).decode
"""decode_engine_message(frame): what a publisher sent."""

decode_hub_message = msgspec.json.Decoder(HubMessage).decode
"""decode_hub_message(frame): what the hub sent to a publisher."""

decode_broadcast = msgspec.json.Decoder(Broadcast).decode
"""decode_broadcast(text): one event by itself, as it is in a `Publish` or in the history."""


# ---------------------------------------------------------------------------------- checking


def to_broadcast(message: Broadcast | Mapping[str, Any]) -> Broadcast:
    """Check a message that is to be broadcast.

    Args:
        message: A broadcast, or the same as a dict: ``{"type": "follow_up_questions", "questions": ["Why?"]}``.

    Returns:
        The broadcast. It shares nothing with ``message``, which may be changed afterwards.

    Raises:
        InputError: It has no type or one that may not be broadcast, a key is missing, unknown or holds something else
            than the protocol says, or it is too large. Types of your own are not taken: each has its place in the
            protocol, so that every listener can rely on its shape. Keys that are not in the protocol are refused
            too, because no listener would get them.
    """
    if isinstance(message, Struct):
        kind: Any = message.__struct_config__.tag
    elif isinstance(message, Mapping):
        message = dict(message)
        kind = message.get("type")
    else:
        raise InputError(f"A message to broadcast is a dict or one of ragkit.live.messages, not {message!r:.100}.")
    if not isinstance(kind, str) or kind not in TOPICS:
        known = ", ".join(sorted(TOPICS - {"engines"}))
        what = (
            "A message to broadcast needs a 'type'" if kind is None else f"There is no broadcast of type {kind!r:.100}"
        )
        raise InputError(
            f"{what}. The types are: {known}. Values of your own fit into the 'row' of an experiment_result."
        )
    try:
        frame = msgspec.json.encode(message, enc_hook=_as_number)
    except (TypeError, ValueError, RecursionError) as problem:
        raise InputError(f"This '{kind}' cannot be broadcast, because it is not JSON: {problem}.") from problem
    if len(frame) > MAX_BROADCAST_BYTES:
        raise InputError(
            f"This '{kind}' cannot be broadcast: it has {len(frame):,} bytes, and {MAX_BROADCAST_BYTES:,} is the most."
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
    """Check what the type of an event cannot say.

    Raises:
        InputError: Only the hub may broadcast it, or a row is nested too deep.
    """
    if isinstance(event, EnginesChanged):
        raise InputError("Only the hub broadcasts 'engines'. Send 'offer' (in Python: engine.serve()) instead.")
    if isinstance(event, ExperimentResult) and is_too_deep(event.row, event.leaderboard):
        raise InputError(f"It is nested more than {MAX_DEPTH} levels deep. Send a flatter object.")


def is_too_deep(*level: object) -> bool:
    """Return whether what these objects hold could be decoded here, and would be too deep to be decoded elsewhere."""
    for _ in range(MAX_DEPTH):
        inner = (part for outer in level for part in (outer.values() if isinstance(outer, dict) else outer))  # type: ignore[attr-defined]
        level = tuple(part for part in inner if isinstance(part, dict | list))
        if not level:
            return False
    return True


def _as_number(value: Any) -> Any:
    if hasattr(value, "dtype") and getattr(value, "shape", None) == ():  # one of NumPy's, as a mean is
        return value.item()
    raise TypeError(f"{type(value).__module__}.{type(value).__qualname__} is none of its types")


def _unknown_keys(given: Any, kept: Any, path: str = "") -> Iterator[str]:
    """Yield the keys that decoding has left out."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield path + key
            else:
                yield from _unknown_keys(value, kept[key], f"{path}{key}.")
    elif isinstance(given, list) and isinstance(kept, list):
        for number, pair in enumerate(zip(given, kept, strict=True)):
            yield from _unknown_keys(*pair, f"{path}{number}.")
