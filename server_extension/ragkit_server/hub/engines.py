"""Routes queries: the engines on offer, and the queries that wait for an answer.

The states of a query::

    ask --> WAITING for the child engine to start --offer--> ROUTED to an engine --> answered
               |  start-up deadline, child failed                |  deadline, cancel, engine gone
               +--> TIMEOUT, ENGINE_FAILED                       +--> TIMEOUT, CANCELLED, ENGINE_LOST

Every query ends in exactly one `Response` or `Error` to the listener that asked, unless that has disconnected. This
module has no I/O: messages are sent through ``send_to_asker`` and ``send_to_publisher``, and deadlines use ``timers``
(an event loop or a fake).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import msgspec
from msgspec import Struct

from ragkit.live.messages import (
    Cancel,
    Engine,
    EngineQuery,
    Error,
    ErrorCode,
    Offer,
    QueryContent,
    Response,
    ResponseDelta,
)
from ragkit_server.hub.inbound import error
from ragkit_server.hub.ports import Child, Timer, Timers
from ragkit_server.hub.sessions import ListenerSession, PublisherSession

MAX_ENGINES_PER_PUBLISHER = 50


@dataclass(slots=True, eq=False)
class _Query:
    key: str  # assigned by the hub, because two listeners may use the same id
    asker: ListenerSession
    asker_id: str
    content: QueryContent
    publisher: PublisherSession | None = None  # None: waiting for the child
    timer: Timer | None = None


class Engines:
    """Routes queries to engines and their answers back.

    Args:
        send_to_asker: Sends a message to a listener.
        send_to_publisher: Sends a message to a publisher; returns False if the publisher does not read.
        changed: Called with the engines on offer, newest first, when they change.
        timers: Schedules deadlines.
        query_timeout_seconds: Time limit for one answer.
        start_timeout_seconds: How long a query waits for the child engine to start.
        max_queries_per_listener: How many queries of one connection may wait at a time.
        max_queries_per_minute: Rate limit for the queries of one connection; bursts of as many are allowed.
    """

    def __init__(
        self,
        *,
        send_to_asker: Callable[[ListenerSession, Struct], None],
        send_to_publisher: Callable[[PublisherSession, Struct], bool],
        changed: Callable[[list[Engine]], None],
        timers: Timers,
        query_timeout_seconds: float = 120,
        start_timeout_seconds: float = 120,
        max_queries_per_listener: int = 8,
        max_queries_per_minute: float = 120,
    ) -> None:
        self.child: Child | None = None
        self._send_to_asker = send_to_asker
        self._send_to_publisher = send_to_publisher
        self._changed = changed
        self._timers = timers
        self._query_timeout_seconds = query_timeout_seconds
        self._start_timeout_seconds = start_timeout_seconds
        self._max_queries_per_listener = max_queries_per_listener
        self._max_queries_per_minute = max_queries_per_minute
        self._asked: dict[
            ListenerSession, tuple[float, float]
        ] = {}  # level of each listener's leaky bucket, and when it was updated
        self._offers: dict[tuple[PublisherSession, str], Engine] = {}  # oldest first
        self._queries: dict[str, _Query] = {}
        self._keys = itertools.count(1)

    # ------------------------------------------------------------------ engines

    def on_offer(self) -> list[Engine]:
        """Return the engines on offer, newest first."""
        return list(reversed(self._offers.values()))

    @property
    def under_way(self) -> int:
        """The number of queries that wait for an answer."""
        return len(self._queries)

    def offer(self, publisher: PublisherSession, message: Offer) -> Error | None:
        """Add an engine as the newest; return an error if its publisher offers too many."""
        key = (publisher, message.engine.id)
        self._offers.pop(key, None)
        if sum(owner is publisher for owner, _ in self._offers) >= MAX_ENGINES_PER_PUBLISHER:
            return error(
                ErrorCode.RATE_LIMITED,
                f"This publisher offers {MAX_ENGINES_PER_PUBLISHER} engines already. Withdraw one first.",
            )
        engine = message.engine
        if publisher.hello is not None:
            engine = msgspec.structs.replace(engine, origin=publisher.hello.origin)
        self._offers[key] = engine
        if self.child is not None:
            self.child.offered()
        self._changed(self.on_offer())
        for query in [query for query in self._queries.values() if query.publisher is None]:
            self._route(query)
        return None

    def withdraw(self, publisher: PublisherSession, engine_id: str) -> None:
        """Remove an engine; it may finish running answers."""
        if self._offers.pop((publisher, engine_id), None) is not None:
            self._changed(self.on_offer())

    def publisher_gone(self, publisher: PublisherSession) -> None:
        """Remove the engines of a disconnected publisher, and fail the queries that it was answering."""
        offers = [key for key in self._offers if key[0] is publisher]
        for key in offers:
            del self._offers[key]
        for query in [query for query in self._queries.values() if query.publisher is publisher]:
            self._fail(
                query,
                ErrorCode.ENGINE_LOST,
                "The engine's process disconnected before it had answered. Ask again, or restart the engine.",
            )
        if offers:
            self._changed(self.on_offer())

    def child_failed(self, reason: str) -> None:
        """Fail the queries that wait for the child engine."""
        for query in [query for query in self._queries.values() if query.publisher is None]:
            self._fail(query, ErrorCode.ENGINE_FAILED, reason)

    # ------------------------------------------------------------------ queries

    def ask(self, asker: ListenerSession, id: str, content: QueryContent) -> None:
        """Route a query; its listener gets one `Response` or `Error` with ``id`` before the time-out."""
        asked = [query for query in self._queries.values() if query.asker is asker]
        if any(query.asker_id == id for query in asked):
            self._refuse(
                asker, id, ErrorCode.DUPLICATE_ID, f"The query '{id}' is still being answered. Use another id."
            )
            return
        if len(asked) >= self._max_queries_per_listener:
            self._refuse(
                asker,
                id,
                ErrorCode.RATE_LIMITED,
                f"{len(asked)} queries of this connection are being answered. Wait for one of them, or cancel one.",
            )
            return
        if (wait := self._seconds_to_wait(asker)) > 0:
            self._refuse(
                asker,
                id,
                ErrorCode.RATE_LIMITED,
                f"This connection asks more than {self._max_queries_per_minute:g} queries a minute. "
                f"Ask again in {math.ceil(wait)} seconds; --RagkitApp.max_queries_per_minute allows more.",
            )
            return
        query = _Query(f"q{next(self._keys)}", asker, id, content)
        self._queries[query.key] = query
        if not self._route(query):
            self._await_child(query)

    def _seconds_to_wait(self, asker: ListenerSession) -> float:
        """Count a query and return 0, or return how long the listener has to wait if it has asked too often.

        A leaky bucket with a capacity of ``max_queries_per_minute`` that leaks as many per minute.
        """
        now, rate = self._timers.time(), self._max_queries_per_minute / 60
        level, then = self._asked.get(asker, (0.0, now))
        level = max(0.0, level - (now - then) * rate)
        if level + 1 > self._max_queries_per_minute:
            return (level + 1 - self._max_queries_per_minute) / rate
        self._asked[asker] = (level + 1, now)
        return 0.0

    def _route(self, query: _Query) -> bool:
        for (publisher, engine_id), engine in reversed(self._offers.items()):
            if _is_wanted(engine, query.content.context):
                if query.timer is not None:
                    query.timer.cancel()
                query.publisher = publisher
                query.timer = self._timers.call_later(self._query_timeout_seconds, self._expire, query)
                message = EngineQuery(
                    id=query.key, engine_id=engine_id, content=query.content, request_id=query.asker_id
                )
                if not self._send_to_publisher(publisher, message):
                    self._fail(
                        query,
                        ErrorCode.ENGINE_FAILED,
                        f"The engine for '{engine.index}' accepts no queries now, because its process does not read "
                        "them. Ask again later.",
                    )
                return True
        return False

    def _await_child(self, query: _Query) -> None:
        wanted = query.content.context.get("index")
        child = self.child
        if (engine_id := query.content.context.get("engine")) is not None:  # the child engine has another id
            self._fail(
                query,
                ErrorCode.NO_ENGINE,
                f"The engine {str(engine_id)[:200]!r} is no longer on offer. "
                "Leave context.engine out to ask the newest.",
            )
            return
        if child is None or not child.index or not (wanted is None or _same_index(child.index, wanted)):
            self._fail(query, ErrorCode.NO_ENGINE, self._no_engine(wanted))
            return
        query.timer = self._timers.call_later(self._start_timeout_seconds, self._expire, query)
        if (problem := child.start()) is not None:
            self._fail(query, ErrorCode.ENGINE_FAILED, problem)

    def _no_engine(self, wanted: object) -> str:
        names = {engine.index for engine in self._offers.values()}
        if self.child is not None and self.child.index:
            names.add(self.child.index)
        if names:
            offered = ", ".join(f"'{name}'" for name in sorted(names))
            return (
                f"No engine answers for the index {str(wanted)[:200]!r}. On offer: {offered}. "
                "Leave context.index out to ask the newest."
            )
        return (
            "No engine is on offer. Run engine.serve() in a notebook, run 'ragkit serve INDEX' in a terminal, "
            "or start the server with --RagkitApp.index=INDEX."
        )

    def _expire(self, query: _Query) -> None:
        if query.publisher is None:
            self._fail(
                query,
                ErrorCode.TIMEOUT,
                f"The engine did not start within {self._start_timeout_seconds:g} seconds. Ask again later, or allow "
                "more with --RagkitApp.start_timeout_seconds.",
            )
            return
        self._send_to_publisher(query.publisher, Cancel(id=query.key))
        self._fail(
            query,
            ErrorCode.TIMEOUT,
            f"The engine did not answer within {self._query_timeout_seconds:g} seconds. Ask again, or allow more with "
            "--RagkitApp.query_timeout_seconds.",
        )

    def cancel(self, asker: ListenerSession, id: str) -> None:
        """Cancel a query; its listener gets the error CANCELLED with ``id``."""
        for query in self._queries.values():
            if query.asker is asker and query.asker_id == id:
                if query.publisher is not None:
                    self._send_to_publisher(query.publisher, Cancel(id=query.key))
                self._fail(query, ErrorCode.CANCELLED, "The query was cancelled.")
                return
        self._refuse(
            asker, id, ErrorCode.UNKNOWN_REQUEST, f"No query '{id}' is being answered; it may have just ended."
        )

    def asker_gone(self, asker: ListenerSession) -> None:
        """Cancel the queries of a disconnected listener."""
        self._asked.pop(asker, None)
        for query in [query for query in self._queries.values() if query.asker is asker]:
            if query.publisher is not None:
                self._send_to_publisher(query.publisher, Cancel(id=query.key))
            self._end(query)

    # ------------------------------------------------------------------ answers

    def answer(self, publisher: PublisherSession, message: Response | ResponseDelta | Error) -> None:
        """Forward an engine's reply to the listener that asked."""
        query = self._queries.get(message.id) if isinstance(message.id, str) else None
        if query is None or query.publisher is not publisher:
            return  # the query has been cancelled, has timed out, or its listener has disconnected
        if not isinstance(message, ResponseDelta):
            self._end(query)
        self._send_to_asker(query.asker, msgspec.structs.replace(message, id=query.asker_id))

    def _fail(self, query: _Query, code: ErrorCode, message: str) -> None:
        self._end(query)
        self._refuse(query.asker, query.asker_id, code, message)

    def _refuse(self, asker: ListenerSession, id: str, code: ErrorCode, message: str) -> None:
        self._send_to_asker(asker, error(code, message, id=id))

    def _end(self, query: _Query) -> None:
        self._queries.pop(query.key, None)
        if query.timer is not None:
            query.timer.cancel()


def _is_wanted(engine: Engine, context: dict[str, Any]) -> bool:
    if (engine_id := context.get("engine")) is not None:
        return bool(engine.id == engine_id)
    wanted = context.get("index")
    return wanted is None or engine.id == wanted or _same_index(engine.index, wanted)


def _same_index(index: str, wanted: object) -> bool:
    # 'handbook' and 'indexes/handbook' are the same: an engine offers its folder's name, but the child has a path.
    return isinstance(wanted, str) and PurePath(index).name == PurePath(wanted).name
