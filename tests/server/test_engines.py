"""Query routing: engines, deadlines, limits and disconnections."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ragkit.live.messages import (
    DeltaContent,
    Engine,
    Error,
    ErrorCode,
    ErrorContent,
    Offer,
    QueryContent,
    Response,
    ResponseContent,
    ResponseDelta,
)
from ragkit_server.history.log import History
from ragkit_server.hub.engines import MAX_ENGINES_PER_PUBLISHER, Engines
from ragkit_server.hub.sessions import ListenerSession, PublisherSession
from ragkit_server.transport.frames import payloads
from tests.server.hub_fakes import Clock


class Child:
    """A fake child engine that records its starts."""

    def __init__(self, index: str = "indexes/handbook", problem: str | None = None) -> None:
        self.index = index
        self.problem = problem
        self.starts = 0

    def start(self) -> str | None:
        self.starts += 1
        return self.problem

    def offered(self) -> None:
        pass


class Room:
    """Engines with one listener; records the messages sent."""

    def __init__(self, clock: Clock, **options: Any) -> None:
        self.offered: list[list[str]] = []
        self.listener = ListenerSession(History())
        self.engines = Engines(
            send_to_asker=lambda session, message: session.reply(message),
            send_to_publisher=lambda session, message: session.send(message),
            changed=lambda engines: self.offered.append([engine.id for engine in engines]),
            timers=clock,
            query_timeout_seconds=60,
            start_timeout_seconds=30,
            max_queries_per_listener=3,
            **options,
        )

    def publisher(self, *engines: str, name: str = "p") -> PublisherSession:
        """A publisher that offers engines, given as id=index."""
        session = PublisherSession(max_queue_bytes=10_000)
        origin = {"kind": "notebook", "name": "n", "run_id": "r"}
        session.receive(json.dumps({"type": "hello", "publisher": name, "origin": origin}))
        for engine in engines:
            self.offer(session, engine)
        return session

    def offer(self, session: PublisherSession, engine: str) -> Error | None:
        id, _, index = engine.partition("=")
        return self.engines.offer(session, Offer(engine=Engine(id=id, index=index)))

    def ask(
        self, id: str = "1", index: object = None, listener: ListenerSession | None = None, **context: object
    ) -> None:
        context |= {} if index is None else {"index": index}
        self.engines.ask(listener or self.listener, id, QueryContent(question="Why?", context=context))


def said(session: ListenerSession | PublisherSession) -> list[Any]:
    return [json.loads(payload) for payload in payloads(session.data_to_send())]


def codes(session: ListenerSession) -> list[tuple[str, str]]:
    return [(message["id"], message["content"]["code"]) for message in said(session)]


def answer(id: str, text: str = "Because.") -> Response:
    return Response(content=ResponseContent(answer=text, sources=[]), id=id)


@pytest.fixture
def room(clock: Clock) -> Room:
    return Room(clock)


def test_without_an_engine_the_error_explains_what_to_do(room: Room) -> None:
    room.ask()
    (reply,) = said(room.listener)
    assert (reply["id"], reply["content"]["code"]) == ("1", "NO_ENGINE")
    assert "engine.serve()" in reply["content"]["message"]


def test_an_answer_is_sent_only_to_its_listener_with_its_id(room: Room) -> None:
    publisher = room.publisher("e=i")
    other = ListenerSession(History())
    room.ask("same")
    room.ask("same", listener=other)
    first, second = said(publisher)
    assert first["id"] != second["id"]
    assert first["content"] == {"question": "Why?", "context": {}}
    room.engines.answer(publisher, ResponseDelta(content=DeltaContent(delta="Be"), id=second["id"]))
    room.engines.answer(publisher, answer(second["id"]))
    assert said(room.listener) == []
    assert [(m["type"], m["id"]) for m in said(other)] == [("response_delta", "same"), ("response", "same")]
    room.engines.answer(publisher, answer(second["id"], "again"))
    assert said(other) == [], "a query is answered once"


@pytest.mark.parametrize("offered", ["handbook", "indexes/handbook"])
@pytest.mark.parametrize("wanted", ["handbook", "indexes/handbook", "elsewhere/handbook/"])
def test_an_index_is_named_by_its_folder_or_its_path(room: Room, offered: str, wanted: str) -> None:
    publisher = room.publisher(f"e={offered}")
    room.ask(index=wanted)
    assert [m["type"] for m in said(publisher)] == ["engine_query"]
    assert said(room.listener) == []


def test_the_newest_engine_answers_unless_one_is_named(room: Room) -> None:
    older = room.publisher("a=indexes/one", "b=indexes/two", name="older")
    newer = room.publisher("c=indexes/three", name="newer")
    for id, index in [("1", None), ("2", "indexes/one"), ("3", "two")]:
        room.ask(id, index)
    assert [m["engine_id"] for m in said(newer)] == ["c"]
    assert [m["engine_id"] for m in said(older)] == ["a", "b"]
    room.offer(older, "a=indexes/one")  # the cell was run again
    assert room.offered[-1] == ["a", "c", "b"]
    room.ask("4", listener=ListenerSession(History()))
    assert [m["engine_id"] for m in said(older)] == ["a"]


@pytest.mark.parametrize("index", ["four", 7, ["one"], {"a": 1}])
def test_an_unknown_index_is_no_engine_and_names_those_on_offer(room: Room, index: object) -> None:
    room.publisher("a=indexes/one")
    room.ask(index=index)
    (reply,) = said(room.listener)
    assert reply["content"]["code"] == "NO_ENGINE"
    assert "'indexes/one'" in reply["content"]["message"]


def test_one_engine_can_be_chosen_exactly_whatever_the_index(room: Room) -> None:
    publisher = room.publisher("a=indexes/one", "b=indexes/one", "c=indexes/two")
    room.ask("1", engine="a")
    room.ask("2", index="two", engine="b")
    room.ask("3", engine=None)
    assert [m["engine_id"] for m in said(publisher)] == ["a", "b", "c"]


@pytest.mark.parametrize("engine", ["a", "handbook", "x" * 10_000, "", 7, False, ["c"]])
def test_a_chosen_engine_that_is_gone_fails_at_once_and_no_other_answers(room: Room, engine: object) -> None:
    room.engines.child = child = Child()
    publisher = room.publisher("a=handbook", "c=handbook")
    room.engines.withdraw(publisher, "a")
    room.ask(index="handbook", engine=engine)
    (reply,) = said(room.listener)
    assert reply["content"]["code"] == "NO_ENGINE"
    assert "no longer on offer" in reply["content"]["message"]
    assert "context.engine" in reply["content"]["message"]
    assert len(reply["content"]["message"]) < 400
    assert (said(publisher), child.starts) == ([], 0)


def test_an_engines_error_is_passed_on(room: Room) -> None:
    publisher = room.publisher("e=i")
    room.ask()
    (query,) = said(publisher)
    room.engines.answer(
        publisher, Error(content=ErrorContent(message="boom", code=ErrorCode.ENGINE_FAILED), id=query["id"])
    )
    assert codes(room.listener) == [("1", "ENGINE_FAILED")]


def test_a_lost_engine_is_reported_at_once(room: Room) -> None:
    publisher = room.publisher("e=i")
    room.ask("1")
    room.ask("2")
    room.engines.publisher_gone(publisher)
    assert codes(room.listener) == [("1", "ENGINE_LOST"), ("2", "ENGINE_LOST")]
    assert room.offered[-1] == []
    room.ask("3")
    assert codes(room.listener) == [("3", "NO_ENGINE")]


def test_a_withdrawn_engine_may_finish_its_answers(room: Room) -> None:
    publisher = room.publisher("e=i")
    room.ask()
    (query,) = said(publisher)
    room.engines.withdraw(publisher, "e")
    room.engines.withdraw(publisher, "e")
    assert room.offered == [["e"], []]
    room.engines.answer(publisher, answer(query["id"]))
    assert [m["type"] for m in said(room.listener)] == ["response"]


def test_a_publisher_cannot_answer_for_another(room: Room) -> None:
    publisher, impostor = room.publisher("e=i"), room.publisher(name="impostor")
    room.ask()
    (query,) = said(publisher)
    room.engines.answer(impostor, answer(query["id"]))
    room.engines.answer(publisher, answer("no such query"))
    assert said(room.listener) == []


def test_a_deadline_ends_the_query_and_tells_the_engine(room: Room, clock: Clock) -> None:
    publisher = room.publisher("e=i")
    room.ask()
    (query,) = said(publisher)
    clock.advance(59)
    assert said(room.listener) == []
    clock.advance(2)
    assert codes(room.listener) == [("1", "TIMEOUT")]
    assert said(publisher) == [{"type": "cancel", "id": query["id"]}]
    room.engines.answer(publisher, answer(query["id"]))
    assert said(room.listener) == [], "too late"


def test_cancel(room: Room, clock: Clock) -> None:
    publisher = room.publisher("e=i")
    room.ask()
    (query,) = said(publisher)
    room.engines.cancel(room.listener, "1")
    room.engines.cancel(room.listener, "1")
    assert codes(room.listener) == [("1", "CANCELLED"), ("1", "UNKNOWN_REQUEST")]
    assert said(publisher) == [{"type": "cancel", "id": query["id"]}]
    room.ask("2")
    room.engines.cancel(ListenerSession(History()), "2")
    assert codes(room.listener) == [], "nobody else can stop it"
    clock.advance(1_000)
    assert codes(room.listener) == [("2", "TIMEOUT")]


def test_queries_of_a_disconnected_listener_are_cancelled(room: Room, clock: Clock) -> None:
    publisher = room.publisher("e=i")
    room.ask()
    (query,) = said(publisher)
    room.engines.asker_gone(room.listener)
    assert said(publisher) == [{"type": "cancel", "id": query["id"]}]
    clock.advance(1_000)
    assert said(room.listener) == []


def test_limits(room: Room) -> None:
    publisher = room.publisher("e=i")
    room.ask("1")
    room.ask("1")
    room.ask("2")
    room.ask("3")
    room.ask("4")
    assert codes(room.listener) == [("1", "DUPLICATE_ID"), ("4", "RATE_LIMITED")]
    other = ListenerSession(History())
    room.ask("1", listener=other)
    assert said(other) == []
    room.engines.answer(publisher, answer(said(publisher)[0]["id"]))
    said(room.listener)
    room.ask("1")
    assert said(room.listener) == [], "an id may be used again when its query has ended"
    problems = [room.offer(publisher, f"{n}=i") for n in range(MAX_ENGINES_PER_PUBLISHER)]
    assert problems[-1] is not None
    assert problems.count(None) == MAX_ENGINES_PER_PUBLISHER - 1


def test_an_engine_that_does_not_read_fails_the_query(room: Room) -> None:
    room.publisher("e=i")
    room.engines.ask(room.listener, "1", QueryContent(question="x" * 20_000))
    assert codes(room.listener) == []
    room.ask("2")
    assert codes(room.listener) == [("2", "ENGINE_FAILED")]


@pytest.mark.parametrize("index", [None, "indexes/handbook", "handbook"])
def test_queries_wait_for_the_child_and_go_to_it_when_it_is_there(room: Room, clock: Clock, index: str | None) -> None:
    room.engines.child = child = Child()
    room.ask("1", index)
    room.ask("2", index)
    assert child.starts == 2
    clock.advance(20)
    assert said(room.listener) == []
    publisher = room.publisher("child=indexes/handbook")
    assert len(said(publisher)) == 2
    clock.advance(50)
    assert codes(room.listener) == [], "the deadline of an answer begins when its engine is there"
    clock.advance(20)
    assert codes(room.listener) == [("1", "TIMEOUT"), ("2", "TIMEOUT")]


def test_the_child_is_not_asked_while_another_engine_is_there(room: Room) -> None:
    room.engines.child = child = Child()
    room.publisher("e=notebook")
    room.ask("1")
    assert child.starts == 0
    room.ask("2", "handbook")
    assert child.starts == 1
    room.ask("3", "nonsense")
    assert codes(room.listener) == [("3", "NO_ENGINE")]


def test_a_child_that_does_not_start(room: Room, clock: Clock) -> None:
    room.engines.child = Child()
    room.ask("1")
    clock.advance(31)
    assert codes(room.listener) == [("1", "TIMEOUT")]
    room.ask("2")
    room.engines.child_failed("it died: no such index")
    (reply,) = said(room.listener)
    assert reply["content"] == {"message": "it died: no such index", "code": "ENGINE_FAILED"}
    room.engines.child = Child(problem="not now")
    room.ask("3")
    assert codes(room.listener) == [("3", "ENGINE_FAILED")]
    room.engines.child = Child(index="")
    room.ask("4")
    assert codes(room.listener) == [("4", "NO_ENGINE")]


def test_a_waiting_query_can_be_cancelled(room: Room) -> None:
    room.engines.child = Child()
    room.ask()
    room.engines.cancel(room.listener, "1")
    assert codes(room.listener) == [("1", "CANCELLED")]
    assert said(room.publisher("e=i")) == []


def test_offers_are_announced_newest_first_with_the_origin_of_their_publisher(room: Room) -> None:
    room.publisher("a=one", "b=two")
    assert room.offered == [["a"], ["b", "a"]]
    assert all(engine.origin.name == "n" for engine in room.engines.on_offer())
    assert [engine.id for engine in room.engines.on_offer()] == ["b", "a"]


def test_the_rate_limit_error_states_how_long_to_wait(clock: Clock) -> None:
    room = Room(clock, max_queries_per_minute=30)
    room.publisher("e=i")
    other = ListenerSession(History())

    def ask(count: int) -> list[str]:
        for _ in range(count):
            room.ask("x")
            room.engines.cancel(room.listener, "x")
        return [code for _, code in codes(room.listener)]

    assert ask(30) == ["CANCELLED"] * 30
    room.ask("31")
    (refusal,) = said(room.listener)
    assert refusal["content"]["code"] == "RATE_LIMITED"
    assert "in 2 seconds" in refusal["content"]["message"]
    room.ask("1", listener=other)
    assert said(other) == [], "each connection has its own limit"
    clock.advance(20)
    assert ask(11).count("CANCELLED") == 10
    clock.advance(3_600)
    assert ask(31).count("CANCELLED") == 30, "who has been quiet for long may not ask for hours in a row"
    room.engines.asker_gone(room.listener)
    assert room.listener not in room.engines._asked
