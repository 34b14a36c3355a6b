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

Every message is one JSON object in one text frame, told apart by its string ``type``. The first
four shapes below (`FollowUpQuestions`, `Query`, `Response`, `Error`) are a contract with clients
that exist: they may gain keys, they never lose or rename one. A receiver ignores keys that it
does not know.

The structs validate what they decode; sizes are bounded here because everything on the socket
comes from outside.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

__all__ = [
    "Ack", "Broadcast", "Cancel", "ClientMessage", "Engine", "EngineMessage", "EnginesChanged", "Error", "ErrorCode",
    "ErrorContent", "ExperimentProgress", "ExperimentResult", "Failure", "FollowUpQuestions", "Gap", "Hello",
    "HubMessage", "IndexingProgress", "ListenerMessage", "Offer", "Origin", "Ping", "Pong", "Publish", "Query",
    "QueryContent", "Response", "ResponseContent", "ResponseDelta", "Since", "Snapshot", "Source", "Subscribe",
    "TaskState", "Welcome", "Withdraw", "decode_client_message", "decode_engine_message", "decode_hub_message",
    "decode_listener_message", "encode",
]  # fmt: skip

Id = Annotated[str, Meta(min_length=1, max_length=128)]
Name = Annotated[str, Meta(max_length=1_024)]
Text = Annotated[str, Meta(max_length=200_000)]
Count = Annotated[int, Meta(ge=0)]

TaskState = Literal["queued", "running", "done", "failed", "cancelled"]
"""A task's states; the last three are terminal."""

TERMINAL: frozenset[str] = frozenset({"done", "failed", "cancelled"})


class ErrorCode(enum.StrEnum):
    """Every value that ``content.code`` of an `Error` can have."""

    INVALID_JSON = "INVALID_JSON"  # the frame is not JSON
    INVALID_MESSAGE = "INVALID_MESSAGE"  # JSON, but not the shape that its type asks for
    UNKNOWN_TYPE = "UNKNOWN_TYPE"  # no such message type
    MESSAGE_TOO_BIG = "MESSAGE_TOO_BIG"
    EMPTY_QUESTION = "EMPTY_QUESTION"
    NOT_AUTHORIZED = "NOT_AUTHORIZED"  # may listen, may not ask
    NO_ENGINE = "NO_ENGINE"  # nobody offers an engine (or not the one named)
    ENGINE_FAILED = "ENGINE_FAILED"  # the engine raised an error
    ENGINE_LOST = "ENGINE_LOST"  # the engine's process went away in the middle of an answer
    TIMEOUT = "TIMEOUT"
    CANCELLED = "CANCELLED"
    RATE_LIMITED = "RATE_LIMITED"  # too many queries at once on this connection
    DUPLICATE_ID = "DUPLICATE_ID"  # a query with this id is still being answered
    UNKNOWN_REQUEST = "UNKNOWN_REQUEST"  # cancel names no query that is being answered


class Origin(Struct, frozen=True, kw_only=True):
    """Who published: what kind of program, its name, and this run of it."""

    kind: Literal["notebook", "papermill", "script", "cli"]
    name: Name
    run_id: Id


class Failure(Struct, frozen=True, kw_only=True):
    """One document that could not be read, and why."""

    source: Name
    reason: Text


# --------------------------------------------------------------------------------- broadcasts


class _Broadcast(Struct, frozen=True, kw_only=True):
    # epoch and seq are the hub's to give; time and origin are the publisher's.
    epoch: str | UnsetType = UNSET
    seq: int | UnsetType = UNSET
    time: str | UnsetType = UNSET
    origin: Origin | UnsetType = UNSET


class FollowUpQuestions(_Broadcast, frozen=True, kw_only=True, tag_field="type", tag="follow_up_questions"):
    """Questions that a reader of the last answer might ask next; each has an answer in the corpus."""

    questions: Annotated[list[Text], Meta(max_length=20)]
    index: Name | UnsetType = UNSET
    question: Text | UnsetType = UNSET
    """The question whose answer these follow."""
    request_id: Id | UnsetType = UNSET


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


# ------------------------------------------------------------------------- listener -> hub


class QueryContent(Struct, frozen=True, kw_only=True):
    """A question. ``context`` is free for the client; ragkit reads ``index`` (which engine) and ``k``."""

    question: Text
    context: dict[str, Any] = {}


class Query(Struct, frozen=True, kw_only=True, tag_field="type", tag="query"):
    """Ask the engine. Without an ``id`` the hub makes one; every reply carries it."""

    content: QueryContent
    id: Id | UnsetType = UNSET


class Since(Struct, frozen=True, kw_only=True):
    """The last event that a listener saw."""

    epoch: Id
    seq: Count


class Subscribe(Struct, frozen=True, kw_only=True, tag_field="type", tag="subscribe"):
    """Choose topics (broadcast types; all without it), ask for what was missed ``since``."""

    topics: Annotated[list[Name], Meta(max_length=50)] | None = None
    since: Since | None = None
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
    document_id: Name
    title: Name
    source: Name
    text: str
    start: Count
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
    """Everything that a late joiner needs, as of ``seq``: live tasks, engines, recent follow-ups."""

    epoch: str
    seq: int
    tasks: list[IndexingProgress | ExperimentProgress]
    engines: list[Engine]
    follow_ups: list[FollowUpQuestions]
    id: Id | UnsetType = UNSET


class Gap(Struct, frozen=True, kw_only=True, tag_field="type", tag="gap"):
    """Events up to ``snapshot.seq`` were dropped for this listener; the snapshot replaces them."""

    snapshot: Snapshot
    id: Id | UnsetType = UNSET


ListenerMessage = Broadcast | Response | ResponseDelta | Error | Snapshot | Gap | Ping | Pong


# ------------------------------------------------------------------------- publisher <-> hub


class Hello(Struct, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """A publisher's first message. ``publisher`` stays the same over reconnects."""

    publisher: Id
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
    """A query on its way to an engine. ``id`` is the hub's; ``request_id`` is what the asker calls it."""

    id: Id
    engine_id: Id
    content: QueryContent
    request_id: Id | UnsetType = UNSET


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
