"""Calling models and parsing their replies: thoughts, JSON, citations."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Generator, Sequence
from typing import Any

import msgspec
import pytest

from ragkit.cancellation import never
from ragkit.embedding.hashed import HashEmbedder
from ragkit.engine.extractive import ExtractiveLLM
from ragkit.errors import InputError, LLMResponseError, LLMTimeoutError
from ragkit.llm.base import Message, ScriptedLLM, Usage
from ragkit.llm.metering import MeteredLLM
from ragkit.llm.openai import OpenAILLM
from ragkit.llm.prompt import Passage, Prompt
from ragkit.llm.replies import CITATION, Reply, answer_prompt, ask, read_json, without_citations
from tests.support.llm_servers import Connection, RawServer

PROMPT = Prompt(question="What is BM25?", passages=(Passage(number=1, title="BM25", text="It ranks."),))
MESSAGES = [{"role": "user", "content": "Hello"}]


class Own:
    """A user's own model, with only what the protocol requires."""

    name = "own"
    generative = True

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Generator[str, None, Usage]:
        yield from self.pieces
        return Usage(7, 3)

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> str:
        return "".join(self.pieces)


@dataclasses.dataclass
class Unhashable(Own):
    """A model that is not hashable."""

    pieces: tuple[str, ...]

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces


def streamed(llm: Any) -> tuple[str, list[str]]:
    deltas: list[str] = []
    return answer_prompt(llm, PROMPT, on_delta=deltas.append).text, deltas


@pytest.mark.parametrize("wrap", [lambda llm: llm, MeteredLLM], ids=["plain", "metered"])
@pytest.mark.parametrize("kind", [Own, lambda *pieces: ScriptedLLM(pieces), Unhashable], ids=["own", "scripted", "odd"])
def test_thoughts_of_any_model_are_removed(kind: Any, wrap: Any) -> None:
    llm = wrap(kind("<thi", "nk>[2]?</think>", "\n\nIt ", "ranks. [1]"))
    assert streamed(llm) == ("It ranks. [1]", ["It", " ranks. [1]"])
    assert ask(llm, MESSAGES, asker="A test").text == "It ranks. [1]"
    for cut in (wrap(kind("<think>It may", " rank")), wrap(kind("<think>It may rank.</think>", "\n"))):
        with pytest.raises(LLMResponseError, match="Raise max_tokens, or turn its thinking off"):
            answer_prompt(cut, PROMPT)
        with pytest.raises(LLMResponseError, match="Raise max_tokens, or turn its thinking off"):
            ask(cut, MESSAGES, asker="A test")


@pytest.mark.parametrize("kind", [Own, lambda *pieces: ScriptedLLM(pieces), Unhashable], ids=["own", "scripted", "odd"])
def test_a_thought_opened_in_the_prompt_is_removed(kind: Any) -> None:
    llm = kind("It may rank. [2]\n</think>\n\n", "It ", "ranks. [1]")
    assert answer_prompt(llm, PROMPT).text == "It ranks. [1]"
    assert ask(llm, MESSAGES, asker="A test").text == "It ranks. [1]"


def test_a_model_that_begins_inside_thoughts_is_remembered() -> None:
    """Its thoughts are passed on at most once: before it is known that they are not the answer."""
    llm = Own("It may", " rank.</think>", "It ", "ranks.")
    assert streamed(llm) == ("It ranks.", ["It may", "It", " ranks."])
    assert streamed(llm) == ("It ranks.", ["It", " ranks."])
    assert streamed(Own("It may", " rank.")) == ("It may rank.", ["It may", " rank."]), "another one is not"
    llm.pieces = ("It may rank, […]",)
    with pytest.raises(LLMResponseError, match="max_tokens"):
        answer_prompt(llm, PROMPT)
    other = Own("It may rank.</think>It ranks.")
    ask(other, MESSAGES, asker="A test")
    other.pieces = ("It may", " rank.</think>", "It ranks.")
    assert streamed(other) == ("It ranks.", ["It ranks."]), "whatever it was asked"


def test_a_model_that_quotes_has_no_thoughts() -> None:
    passage = Passage(number=1, title="", text="<think> begins a thought of a language model.")
    prompt = Prompt(question="What begins a thought of a language model?", passages=(passage,))
    llm = ExtractiveLLM(HashEmbedder(), min_relevance=0.1)
    assert answer_prompt(llm, prompt).text == "<think> begins a thought of a language model. [1]"


def test_a_reply_has_its_usage_and_raw_text() -> None:
    raw = "<think>Hm.</think>It ranks. \ud800"
    assert answer_prompt(Own(raw), PROMPT) == Reply("It ranks. ?", raw, Usage(7, 3))
    assert ask(Own(raw), MESSAGES, asker="A test") == Reply("It ranks. ?", raw, None)


def test_a_stream_is_closed_when_its_consumer_fails() -> None:
    closed: list[bool] = []

    class Closing(Own):
        def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Generator[str, None, Usage]:
            try:
                yield "It"
                yield "ranks."
            finally:
                closed.append(True)
            return Usage(7, 3)

    def leave(piece: str) -> None:
        raise LLMTimeoutError("enough", model="m", base_url="u")

    with pytest.raises(LLMTimeoutError) as caught:
        answer_prompt(Closing(), PROMPT, on_delta=leave)
    assert closed == [True], caught


def test_a_model_that_is_not_generative_is_rejected() -> None:
    with pytest.raises(InputError, match="HyDE needs a language model that can be asked anything"):
        ask(ExtractiveLLM(HashEmbedder()), MESSAGES, asker="HyDE")


# ------------------------------------------------------------------------------------- servers


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thoughts_in_a_separate_field(field: str) -> None:
    def behave(connection: Connection) -> None:
        connection.start_stream()
        for delta in ({field: "It may rank. [2]"}, {"content": "", field: "Or not."}, {"content": "It ranks. [1]"}):
            connection.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        connection.say(None, finish="stop")
        connection.end_stream()

    with RawServer(behave) as server:
        assert streamed(OpenAILLM("m", base_url=server.url)) == ("It ranks. [1]", ["It ranks. [1]"])


@pytest.mark.parametrize("is_stream", [True, False])
def test_thoughts_in_separate_parts(is_stream: bool) -> None:
    """As sent by Mistral's server."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "It may rank. [2]"}]},
        {"type": "text", "text": "It ranks. [1]"},
    ]

    def behave(connection: Connection) -> None:
        if not is_stream:
            return connection.answer(json.dumps({"choices": [{"message": {"content": parts}}]}).encode())
        connection.start_stream()
        for part in parts:
            connection.event({"choices": [{"index": 0, "delta": {"content": [part]}, "finish_reason": None}]})
        connection.say(None, finish="stop")
        return connection.end_stream()

    with RawServer(behave) as server:
        assert streamed(OpenAILLM("m", base_url=server.url)) == ("It ranks. [1]", ["It ranks. [1]"])


def test_a_thought_that_is_cut_off() -> None:
    def behave(connection: Connection) -> None:
        connection.start_stream()
        connection.say("<think>It may rank")
        connection.say(None, finish="length")
        connection.end_stream()

    with RawServer(behave) as server, pytest.raises(LLMResponseError, match="Raise max_tokens") as caught:
        streamed(OpenAILLM("qwen3", base_url=server.url))
    assert caught.value.model == "qwen3"
    assert caught.value.billable


# ------------------------------------------------------------------------------------- reading


class Grade(msgspec.Struct):
    score: int


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ('{"score": 3}', 3),
        ('```json\n{"score": 3}\n```', 3),
        ('Between {"score": 1} and {"score": 5}: {"score": 3}. { } {no}', 3),
        ('{"why": "first\nsecond", "score": 3}', 3),
    ],
)
def test_the_last_json_object_that_fits_is_returned(reply: str, score: int) -> None:
    assert read_json(reply, Grade).score == score


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Three.", "no JSON object"),
        ('{"score": "high"}', "Expected `int`"),
        ('{"inside": {"score": 3}}', "missing required field"),
        ('{"score": 3', "delimiter"),
        ('{"a":' * 3_900, "nested too deeply"),
        ('{"score": 3}' + " " * 20_000, "too long"),
    ],
)
def test_invalid_json_raises_with_a_reason(reply: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_json(reply, Grade)


@pytest.mark.parametrize(
    ("text", "numbers", "without"),
    [
        ("It ranks. [1]", ["1"], "It ranks."),
        ("It ranks [1, 2;3] and [4].", ["1, 2;3", "4"], "It ranks and."),
        ("`x[1]` and\n```\ny [2]\n``` [3]", ["3"], "`x[1]` and\n```\ny [2]\n```"),
        ("[12345] [a] []", [], "[12345] [a] []"),
    ],
)
def test_citations(text: str, numbers: list[str], without: str) -> None:
    assert [match.group(1) for match in CITATION.finditer(text) if match.group(1)] == numbers
    assert without_citations(text) == without
