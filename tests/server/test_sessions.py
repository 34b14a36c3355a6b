"""Sessions without sockets: the reply to each frame, and the order of messages."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit.live.messages import (
    DeltaContent,
    EngineQuery,
    FollowUpQuestions,
    Hello,
    IndexingProgress,
    Pong,
    Publish,
    QueryContent,
    Response,
    ResponseContent,
    ResponseDelta,
    Since,
)
from ragkit_server.history.log import History
from ragkit_server.hub.sessions import Ask, ListenerSession, PublisherSession, SessionState, Stop
from ragkit_server.transport.frames import payloads

HELLO = '{"type":"hello","publisher":"p","origin":{"kind":"cli","name":"c","run_id":"r"}}'


def said(session: ListenerSession | PublisherSession) -> list[Any]:
    messages = []
    while data := session.data_to_send():
        messages += [json.loads(payload) for payload in payloads(data)]
    return messages


def event(text: str = "?") -> FollowUpQuestions:
    return FollowUpQuestions(questions=[text])


BAD = [
    ("", "INVALID_JSON"),
    ("hello", "INVALID_JSON"),
    ("{", "INVALID_JSON"),
    ('{"type":"ping"} {}', "INVALID_JSON"),
    ('{"type":"query","content":{"question":"\\ud800"}}', "INVALID_JSON"),
    ("\ud800", "INVALID_JSON"),
    (b'{"type":"ping"}', "INVALID_MESSAGE"),
    ("[]", "INVALID_MESSAGE"),
    ("null", "INVALID_MESSAGE"),
    ("[" * 100_000, "INVALID_MESSAGE"),
    ("{}", "INVALID_MESSAGE"),
    ('{"type":7}', "INVALID_MESSAGE"),
    ('{"type":null}', "INVALID_MESSAGE"),
    ('{"type":"nonsense"}', "UNKNOWN_TYPE"),
    ('{"type":"response","content":{"answer":"","sources":[]}}', "UNKNOWN_TYPE"),
    ('{"type":"query"}', "INVALID_MESSAGE"),
    ('{"type":"query","content":"why?"}', "INVALID_MESSAGE"),
    ('{"type":"query","content":{"question":7}}', "INVALID_MESSAGE"),
    ('{"type":"query","content":{"question":"?","context":[]}}', "INVALID_MESSAGE"),
    ('{"type":"query","content":{"question":"?","context":{"a":%s}}}' % ("[" * 9_000 + "]" * 9_000), "INVALID_MESSAGE"),
    ('{"type":"query","content":{"question":" \\n"}}', "EMPTY_QUESTION"),
    ('{"type":"cancel"}', "INVALID_MESSAGE"),
    ('{"type":"ping","id":""}', "INVALID_MESSAGE"),
    ('{"type":"ping","id":"%s"}' % ("x" * 129), "INVALID_MESSAGE"),
    ('{"type":"subscribe","topics":["weather"]}', "INVALID_MESSAGE"),
    ('{"type":"subscribe","since":{"epoch":"e","seq":-1}}', "INVALID_MESSAGE"),
]


@pytest.mark.parametrize(("frame", "code"), BAD, ids=range(len(BAD)))
def test_every_invalid_frame_gets_an_error_with_the_reason(frame: str | bytes, code: str) -> None:
    session = ListenerSession(History())
    assert session.receive(frame) is None
    (reply,) = said(session)
    assert reply["type"] == "error"
    assert reply["content"]["code"] == code
    assert len(reply["content"]["message"]) > 15


def test_an_error_carries_the_id_of_the_message_if_it_has_one() -> None:
    session = ListenerSession(History())
    session.receive('{"type":"query","id":"7"}')
    session.receive('{"type":"nonsense","id":"8"}')
    session.receive('{"type":"query","id":9}')
    assert [reply.get("id") for reply in said(session)] == ["7", "8", None]


@given(st.text() | st.binary() | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps))
def test_any_frame_gets_exactly_one_error(frame: str | bytes) -> None:
    session = ListenerSession(History())
    assert session.receive(frame) is None
    assert [reply["type"] for reply in said(session)] == ["error"]
    publisher = PublisherSession()
    assert publisher.receive(frame) is None
    assert [reply["type"] for reply in said(publisher)] == ["error"]


def test_valid_messages_lead_to_replies_and_actions() -> None:
    session = ListenerSession(History())
    ask = session.receive('{"type":"query","id":"1","content":{"question":"Why?","context":{"k":3}},"unknown":true}')
    assert ask == Ask("1", QueryContent(question="Why?", context={"k": 3}))
    anonymous = session.receive('{"type":"query","content":{"question":"Why?"}}')
    assert isinstance(anonymous, Ask)
    assert anonymous.id
    assert session.receive('{"type":"cancel","id":"1"}') == Stop("1")
    assert session.receive('{"type":"ping","id":"p"}') is None
    assert session.receive('{"type":"pong"}') is None
    assert said(session) == [{"type": "pong", "id": "p"}]


def test_a_new_listener_gets_what_is_broadcast_from_now_on() -> None:
    history = History()
    history.append(event("before"))
    session = ListenerSession(history)
    assert session.data_to_send() == b""
    history.append(event("after"))
    assert [m["questions"] for m in said(session)] == [["after"]]
    assert session.data_to_send() == b""


def test_subscribe_chooses_topics_and_gets_a_snapshot() -> None:
    history = History()
    session = ListenerSession(history)
    history.append(event("1"))
    session.receive('{"type":"subscribe","topics":["follow_up_questions"],"id":"s"}')
    history.append(event("2"))
    history.append(IndexingProgress(task_id="t", index="i", state="running"))
    messages = said(session)
    assert [(m["type"], m["seq"]) for m in messages] == [
        ("follow_up_questions", 1),
        ("snapshot", 1),
        ("follow_up_questions", 2),
    ]
    assert messages[1]["id"] == "s"


def test_resuming_replays_missed_events_before_the_snapshot() -> None:
    history = History()
    for number in range(10):
        history.append(event(str(number)))
    since = {"epoch": history.epoch, "seq": 4}
    session = ListenerSession(history, since=msgspec.convert(since, Since))
    assert [m["seq"] for m in said(session)] == [5, 6, 7, 8, 9, 10]
    session = ListenerSession(history)
    session.receive(json.dumps({"type": "subscribe", "since": since}))
    assert [(m["type"], m["seq"]) for m in said(session)][-2:] == [("follow_up_questions", 10), ("snapshot", 10)]


@pytest.mark.parametrize("since", [{"epoch": "other", "seq": 10}, {"epoch": "e", "seq": 11}, {"epoch": "e", "seq": 4}])
def test_events_that_cannot_be_replayed_are_a_gap_with_a_snapshot(since: dict[str, Any]) -> None:
    history = History(max_events=5, epoch="e")
    for _ in range(10):
        history.append(event())
    session = ListenerSession(history, since=msgspec.convert(since, Since))
    history.append(event("new"))
    (gap,) = said(session)
    assert gap["type"] == "gap"
    assert gap["snapshot"]["seq"] == 11
    history.append(event("newer"))
    assert [m["seq"] for m in said(session)] == [12]


def test_a_listener_that_does_not_read_holds_no_memory_and_gets_a_gap() -> None:
    history = History(max_bytes=100_000)
    session = ListenerSession(history)
    for _ in range(1_000):
        history.append(event("x" * 1_000))
    assert session._reply_bytes == 0
    assert [m["type"] for m in said(session)] == ["gap"]


def test_if_replies_are_not_read_pieces_are_dropped_and_then_the_listener() -> None:
    session = ListenerSession(History(), max_reply_bytes=10_000)
    for _ in range(1_000):
        session.reply(ResponseDelta(content=DeltaContent(delta="x" * 100), id="1"))
    assert session.backlogged
    assert session._reply_bytes < 11_000
    session.reply(Response(content=ResponseContent(answer="whole", sources=[]), id="1"))
    assert session.state is SessionState.OPEN
    session.reply(Response(content=ResponseContent(answer="x" * 10_000, sources=[]), id="2"))
    assert session.state is SessionState.CLOSING
    assert session.close_code is not None
    assert session.close_code[0] == 1008
    assert session.data_to_send() == b""


def test_one_reply_may_be_larger_than_the_bound() -> None:
    session = ListenerSession(History(), max_reply_bytes=10)
    session.reply(Response(content=ResponseContent(answer="x" * 10_000, sources=[])))
    assert [m["type"] for m in said(session)] == ["response"]


def test_a_closing_listener_gets_only_queued_messages() -> None:
    history = History()
    session = ListenerSession(history)
    history.append(event())
    session.reply(Pong())
    session.close(1001, "the server is stopping")
    session.reply(Pong())
    assert sorted(m["type"] for m in said(session)) == ["follow_up_questions", "pong"]
    session.closed()
    history.append(event())
    assert session.data_to_send() == b""


step = st.one_of(
    st.tuples(st.just("publish"), st.integers(1, 40)),
    st.tuples(st.just("read"), st.just(0)),
    st.tuples(st.just("resume"), st.just(0)),
)


@settings(max_examples=200)
@given(st.lists(step, max_size=40))
def test_no_gaps_no_repeats_no_reordering(steps: list[tuple[str, int]]) -> None:
    history = History(max_events=50)
    session = ListenerSession(history)
    last = 0
    for action, count in steps:
        if action == "publish":
            for _ in range(count):
                history.append(event())
        elif action == "resume":
            session = ListenerSession(history, since=Since(epoch=history.epoch, seq=last))
        else:
            for message in said(session):
                if message["type"] == "gap":
                    assert message["snapshot"]["seq"] > last + 50
                    last = message["snapshot"]["seq"]
                else:
                    assert message["seq"] == last + 1
                    last = message["seq"]
            assert last == history.seq


def test_a_publisher_must_send_hello_first_and_once() -> None:
    session = PublisherSession()
    publish = '{"type":"publish","n":1,"event":{"type":"follow_up_questions","questions":[]}}'
    assert session.receive(publish) is None
    assert said(session)[0]["content"]["code"] == "INVALID_MESSAGE"
    assert isinstance(session.receive(HELLO), Hello)
    assert session.id == "p"
    assert session.receive(HELLO) is None
    assert said(session)[0]["content"]["code"] == "INVALID_MESSAGE"
    assert isinstance(session.receive(publish), Publish)


def test_unsent_acknowledgements_are_merged() -> None:
    session = PublisherSession()
    for n in range(1, 10_000):
        session.acknowledge(n)
    assert said(session) == [{"type": "ack", "n": 9_999}]


def test_no_more_queries_are_queued_for_a_publisher_that_does_not_read() -> None:
    session = PublisherSession(max_queue_bytes=10_000)
    session.receive(HELLO)
    query = EngineQuery(id="q", engine_id="e", content=QueryContent(question="x" * 1_000))
    taken = [session.send(query) for _ in range(20)]
    assert taken[0]
    assert not taken[-1]
    assert session.backlogged
    assert len(said(session)) == taken.count(True)
    assert session.send(query)


def test_a_snapshot_queued_after_a_gap_is_renewed() -> None:
    history = History(max_events=5)
    session = ListenerSession(history)
    history.append(event())
    session.receive('{"type":"subscribe","id":"s"}')
    for _ in range(20):
        history.append(event())
    gap, snapshot = said(session)
    assert (gap["type"], gap["snapshot"]["seq"]) == ("gap", 21)
    assert (snapshot["type"], snapshot["seq"], snapshot["id"]) == ("snapshot", 21, "s")
