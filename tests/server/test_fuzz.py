"""100,000 messages that nobody should send: each gets its reply or its error, and the log stays clean.

The same messages every time; RAGKIT_FUZZ_SEED makes others.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection

from ragkit.live.messages import (
    Cancel,
    EnginesChanged,
    ExperimentResult,
    Gap,
    Hello,
    Ping,
    Pong,
    Publish,
    Query,
    Subscribe,
    decode_client_message,
    decode_engine_message,
    decode_listener_message,
)
from tests.server.live_server import StartServer, receive, say, within
from tests.server.raw_client import BINARY, CLOSE, PING, TEXT, RawClient, fragments, frame, raw

pytestmark = pytest.mark.anyio

SEED = int(os.environ.get("RAGKIT_FUZZ_SEED", "6455"))
LISTENERS, PUBLISHERS = 80_000, 20_000  # messages to each
BATCH = 500
CONNECTIONS = 500
DEEP = "@deep@"  # stands for more levels than json.dumps can write

ORIGIN = {"kind": "script", "name": "fuzz.py", "run_id": "r"}
ENGINE = {"id": "e", "index": "indexes/handbook", "llm": "x", "embedder": "y", "documents": 3}
SOURCE = {"number": 1, "document_id": "d", "title": "T", "source": "d.md", "text": "t", "start": 0, "end": 1}

LISTENER_MESSAGES: list[dict[str, Any]] = [
    {"type": "query", "content": {"question": "How do I choose k1?", "context": {"index": "handbook", "k": 3}}},
    {"type": "query", "id": "q", "content": {"question": "Why?", "context": {}}},
    {"type": "subscribe", "topics": ["follow_up_questions", "engines"], "since": {"epoch": "e", "seq": 3}, "id": "s"},
    {"type": "subscribe"},
    {"type": "cancel", "id": "q"},
    {"type": "ping", "id": "p"},
    {"type": "pong", "id": "p"},
]
PUBLISHER_MESSAGES: list[dict[str, Any]] = [
    {"type": "hello", "publisher": "p", "origin": ORIGIN},
    {"type": "publish", "n": 1, "event": {"type": "follow_up_questions", "questions": ["A?", "B?"], "index": "i"}},
    {
        "type": "publish",
        "n": 2,
        "event": {
            "type": "indexing_progress",
            "task_id": "t",
            "index": "i",
            "state": "running",
            "documents_done": 3,
            "documents_total": 9,
            "rate": 1.5,
            "failures": [{"source": "d.md", "reason": "?"}],
        },
    },
    {
        "type": "publish",
        "n": 3,
        "event": {"type": "experiment_progress", "task_id": "x", "experiment": "e", "state": "done"},
    },
    {
        "type": "publish",
        "n": 4,
        "event": {"type": "experiment_result", "task_id": "x", "experiment": "e", "row": {"nDCG@10": 0.5}},
    },
    {"type": "publish", "n": 5, "event": {"type": "engines", "engines": [ENGINE]}},
    {"type": "offer", "engine": ENGINE},
    {"type": "withdraw", "engine_id": "e"},
    {"type": "response", "id": "q1", "content": {"answer": "A [1]", "sources": [SOURCE]}},
    {"type": "response_delta", "id": "q1", "content": {"delta": "A"}},
    {"type": "error", "id": "q1", "content": {"message": "?", "code": "ENGINE_FAILED"}},
    {"type": "ping"},
    {"type": "pong"},
]
CHARACTERS = [
    "a", "0", " ", "\n", '"', "\\", "/", "{", "}", "[", "]", ":", ",", "-", ".", "e", "\0", "\x1f", "\x7f", "\x80",
    "é", "\u2028", "\u202e", "\ufeff", "\ufffd", "\uffff", "\ud7ff", "\ue000", "😀", "\U0010ffff", "e\u0301",
]  # fmt: skip
NUMBERS = [
    0, -1, 1, 7, 2**31, -(2**31), 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 2**64 - 1, 2**64, 10**30, -(10**400), 0.5,
    -0.0, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
SNIPPETS = [
    "NaN", "Infinity", "-", "1e999", "01", "1.", "'", "\\ud800", "\\udc00\\ud800", "\\u0000", "\\x00", "\\u12", "//",
    "/**/", "null", "true", "undefined", "{}", "[]", ",,", '{"type":"ping"}', '"type":"pong",', '"id":"other",',
    '"id":null,', '"type":7,',
]  # fmt: skip


class Mutator:
    """Makes messages that are almost right, and some that are not even close."""

    def __init__(self, seed: int, messages: list[dict[str, Any]]) -> None:
        self.random = random.Random(seed)
        self.messages = messages

    def message(self) -> str | bytes:
        """Return one message, for a text frame or a binary one."""
        r = self.random
        if r.random() < 0.03:
            return r.randbytes(r.randrange(30)) if r.random() < 0.5 else json.dumps(r.choice(self.messages)).encode()
        if r.random() < 0.05:
            return self.string(60)
        value = json.loads(json.dumps(r.choice(self.messages)))
        if "n" in value:
            value["n"] = r.randrange(1, 10**6)
        for _ in range(r.choice((0, 1, 1, 1, 2, 3))):
            self.change(value)
        text = json.dumps(value, ensure_ascii=r.random() < 0.5, indent=r.choice((None, None, None, 1)))
        if r.random() < 0.3:
            text = self.garble(text)
        text = text.replace(f'"{DEEP}"', self.nested())
        text = text[: 2**18]  # no more bytes than a message may have
        return text.encode(errors="replace").decode()  # lone surrogates have no UTF-8

    def change(self, value: Any) -> None:
        """Change one place in the tree."""
        r = self.random
        while isinstance(value, dict | list) and value:
            key = r.choice(list(value)) if isinstance(value, dict) else r.randrange(len(value))
            inner = value[key]
            if isinstance(inner, dict | list) and inner and r.random() < 0.7:
                value = inner
                continue
            kind = r.randrange(6)
            if kind == 0:
                del value[key]
            elif kind == 1 and isinstance(value, dict):
                value[self.string(8)] = value.pop(key)
            elif kind == 2 and isinstance(value, dict):
                value[r.choice(("unknown", "id", "type", "content", "__proto__", ""))] = self.anything()
            elif kind == 3 and isinstance(value, list):
                value.extend([inner] * r.choice((1, 30, 60)))
            elif kind == 4 and isinstance(value, dict):
                value[key] = r.choice(list(value.values()))
            else:
                value[key] = self.anything()
            return

    def anything(self) -> Any:
        r = self.random
        match r.randrange(8):
            case 0:
                return r.choice((None, True, False, [], {}))
            case 1 | 2:
                return r.choice(NUMBERS)
            case 3:
                return [self.anything() for _ in range(r.randrange(3))]
            case 4:
                return {self.string(5): self.anything() for _ in range(r.randrange(3))}
            case 5 if r.random() < 0.1:
                return DEEP
            case 6 if r.random() < 0.3:
                return r.choice("xé😀") * r.choice((128, 129, 1_024, 1_025))
            case 6 if r.random() < 0.01:
                return "x" * 200_001
            case _:
                return self.string(12)

    def string(self, longest: int) -> str:
        r = self.random
        return "".join(r.choices(CHARACTERS, k=r.randrange(longest + 1)))

    def nested(self) -> str:
        depth, (opening, closing) = (
            self.random.choice((40, 50, 300, 30_000)),
            self.random.choice(("[]", ('{"a":', "}"))),
        )
        return opening * depth + ("0" if opening != "[" else "") + closing * depth

    def garble(self, text: str) -> str:
        """Change the text, with no regard for what it says."""
        r = self.random
        at = r.randrange(len(text) + 1)
        match r.randrange(7):
            case 0:
                return text[:at]
            case 1:
                return text[at:]
            case 2:
                return text[:at] + text[at + r.randrange(1, 5) :]
            case 3:
                return text[:at] + self.string(3) + text[at:]
            case 4:
                return text + r.choice((text, " ", "\n", "\0", ",", "x"))
            case 5:
                return r.choice(("\ufeff", "\n\t ", "[", "null ", "\0")) + text
            case _:
                at = text.find(r.choice(('"', ":", ",", "{")), at) + r.randrange(2)
                return text[:at] + r.choice(SNIPPETS) + text[at:]

    def frames(self, message: str | bytes) -> bytes:
        """Return the message as a frame or, now and then, as several."""
        r = self.random
        opcode, payload = (TEXT, message.encode()) if isinstance(message, str) else (BINARY, message)
        if r.random() < 0.9:
            return frame(opcode, payload)
        cuts = sorted(r.randrange(len(payload) + 1) for _ in range(r.randrange(1, 4)))
        edges = [0, *cuts, len(payload)]
        pieces = [payload[low:high] for low, high in itertools.pairwise(edges)]
        return frame(PING, b"between").join(fragments(opcode, *pieces))


@contextlib.contextmanager
def seeded() -> Iterator[int]:
    """Say which seed it was if the test fails."""
    try:
        yield SEED
    except BaseException as failure:
        failure.add_note(f"RAGKIT_FUZZ_SEED={SEED}")
        raise


async def said(client: RawClient, sentinel: str) -> list[Any]:
    """Return the messages that come before the answer to the ping ``sentinel``."""
    messages: list[Any] = []
    while True:
        opcode, payload = await client.next_frame()
        assert opcode != CLOSE, payload
        if opcode == TEXT:
            messages.append(json.loads(payload))
            if messages[-1] == {"type": "pong", "id": sentinel}:
                return messages[:-1]


def kind(message: Any) -> str:
    """The code of an error, the type of anything else."""
    return str(message["content"]["code"] if message["type"] == "error" else message["type"])


REJECTED = {"INVALID_MESSAGE", "UNKNOWN_TYPE"}


def decoded(message: str | bytes, decode: Callable[[str], Any]) -> Any:
    """Return the message if it is one, else the kinds of error that it may get."""
    if isinstance(message, bytes):
        return REJECTED
    try:
        return decode(message)
    except (msgspec.ValidationError, RecursionError):
        return REJECTED
    except ValueError:
        return {"INVALID_JSON"}


def levels(value: object) -> int:
    """How deep objects and lists lie in each other."""
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(levels, value.values() if isinstance(value, dict) else value), default=0)


def listener_gets(message: str | bytes) -> set[str]:
    """What the one reply to a listener's message may be; nothing where there is none."""
    match decoded(message, decode_client_message):
        case Query(content=content) if levels(content.context) > 50:
            return {"INVALID_MESSAGE"}
        case Query():
            return {"NO_ENGINE", "EMPTY_QUESTION", "RATE_LIMITED"}
        case Subscribe():
            return {"snapshot", "INVALID_MESSAGE"}
        case Cancel():
            return {"UNKNOWN_REQUEST"}
        case Ping():
            return {"pong"}
        case Pong():
            return set()
        case errors:
            return set(errors)


async def test_every_message_of_a_listener_gets_one_reply(start: StartServer) -> None:
    server = start()
    with seeded() as seed:
        mutator = Mutator(seed, LISTENER_MESSAGES)
        async with raw(server) as client, server.open() as bystander:
            for n in range(LISTENERS // BATCH):
                messages = [mutator.message() for _ in range(BATCH)]
                client.send(*map(mutator.frames, messages), ping(f"batch {n}"))
                replies = [reply for reply in await within(said(client, f"batch {n}")) if reply["type"] != "gap"]
                expected = [(kinds, message) for message in messages if (kinds := listener_gets(message))]
                for (kinds, message), reply in zip(expected, replies, strict=True):
                    assert kind(reply) in kinds, (message[:1_000], reply)
            await say(bystander, type="ping")
            assert await receive(bystander) == {"type": "pong"}
    assert "Traceback" not in server.log()


def ping(id: str) -> bytes:
    return frame(TEXT, json.dumps({"type": "ping", "id": id}).encode())


def publisher_gets(message: str | bytes, *, greeted: bool) -> tuple[set[str], int]:
    """What the one reply to a publisher's message may be, and the number that it gets acknowledged."""
    match decoded(message, decode_engine_message):
        case Ping():
            return {"pong"}, 0
        case Pong():
            return set(), 0
        case Hello():
            return {"INVALID_MESSAGE" if greeted else "welcome"}, 0
        case set() as errors:
            return errors, 0
        case _ if not greeted:
            return {"INVALID_MESSAGE"}, 0
        case Publish(n=n, event=EnginesChanged()):
            return {"INVALID_MESSAGE"}, n
        case Publish(n=n, event=ExperimentResult(row=row, leaderboard=board)) if max(levels(row), levels(board)) > 50:
            return {"INVALID_MESSAGE"}, n
        case Publish(n=n):
            return set(), n
    return set(), 0  # offers and answers are for others


async def test_every_message_of_a_publisher_gets_its_error_or_its_acknowledgement(start: StartServer) -> None:
    server = start()
    with seeded() as seed:
        mutator = Mutator(seed, PUBLISHER_MESSAGES)
        async with server.open() as listener:
            listening = asyncio.create_task(listen(listener))
            for n in range(PUBLISHERS // BATCH // 4):
                async with raw(server, "api/v1/engine") as client:
                    await publish(client, mutator, f"{n}")
            await say(listener, type="ping")
            assert await within(listening) > PUBLISHERS / 20
    assert "Traceback" not in server.log()


async def publish(client: RawClient, mutator: Mutator, name: str) -> None:
    """Send some batches as one publisher, the first of them before its hello."""
    greeted = False
    for n in range(4):
        messages = [mutator.message() for _ in range(BATCH)]
        if n == 1 and not greeted:
            messages.insert(0, json.dumps({"type": "hello", "publisher": f"fuzz-{name}", "origin": ORIGIN}))
        client.send(*map(mutator.frames, messages), ping(f"batch {n}"))
        replies = await within(said(client, f"batch {n}"))
        acknowledged = [reply["n"] for reply in replies if reply["type"] == "ack"]
        answers = [reply for reply in replies if reply["type"] != "ack" and kind(reply) != "RATE_LIMITED"]
        last = 0
        for message in messages:
            kinds, number = publisher_gets(message, greeted=greeted)
            last = max(last, number)
            if kinds:
                assert answers, message[:1_000]
                answer = answers.pop(0)
                assert kind(answer) in kinds, (message[:1_000], answer)
                greeted = greeted or kind(answer) == "welcome"
        assert not answers
        while last and last not in acknowledged:
            opcode, payload = await client.frame()
            assert opcode == TEXT
            acknowledged.append(json.loads(payload)["n"])


async def listen(listener: ClientConnection) -> int:
    """Return how many events were broadcast before the pong: each is a message, none is missing."""
    first = seq = 0
    while not isinstance(message := decode_listener_message(await listener.recv()), Pong):
        if isinstance(message, Gap):
            seq = message.snapshot.seq
        else:
            assert message.seq == seq + 1 or not first
            seq = message.seq
        first = first or seq
    return seq - first


async def test_bytes_that_are_no_frames_end_their_own_connection_only(start: StartServer) -> None:
    server = start()
    with seeded() as seed:
        async with server.open() as bystander:
            for n in range(CONNECTIONS):
                path = ("api/v1/ws", "api/v1/engine")[n % 2]
                mutator = Mutator(seed + n, (LISTENER_MESSAGES, PUBLISHER_MESSAGES)[n % 2])
                async with raw(server, path) as client:
                    client.send(mangled(mutator))
                    client.writer.write_eof()
                    with contextlib.suppress(asyncio.IncompleteReadError):
                        while (await client.frame())[0] != CLOSE:
                            pass
                        assert await client.end() == b"", "a close frame is the last"
            await say(bystander, type="ping")
            assert await receive(bystander) == {"type": "pong"}
    assert "Traceback" not in server.log()


def mangled(mutator: Mutator) -> bytes:
    """Return some frames, with a few bytes changed, lost or added."""
    r = mutator.random
    data = bytearray(b"".join(mutator.frames(mutator.message()) for _ in range(5)))
    for _ in range(r.randrange(1, 6)):
        at = r.choice((0, 1, r.randrange(len(data))))
        data[at : at + r.randrange(3)] = r.randbytes(r.randrange(3))
    return bytes(data)
