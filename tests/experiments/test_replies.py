"""Replies: each is requested once, and cached as raw text under the input of the model."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ragkit.embedding.hashed import HashEmbedder
from ragkit.engine.extractive import ExtractiveLLM
from ragkit.errors import EmbeddingError, LLMConnectionError, LLMResponseError, OperationCancelled
from ragkit.evaluation.judges import Relevance
from ragkit.experiments.replies import Replies, holds_model, replace_models
from ragkit.experiments.result_cache import ResultCache
from ragkit.llm.base import Usage
from ragkit.llm.metering import Budget, MeteredLLM, Price
from ragkit.llm.openai import OpenAILLM
from ragkit.llm.prompt import Passage, Prompt
from ragkit.retrieval.reranking import LLMReranker
from ragkit.retrieval.rewriting import HyDE
from ragkit.space import choose

PROMPT = Prompt(question="What is k1?", passages=(Passage(number=1, title="BM25", text="k1 saturates."),))
MESSAGES = [{"role": "user", "content": "Say yes."}]


class Counted:
    """A model that replies with the number of its calls."""

    generative = True
    name = "counted"

    def __init__(self, *, seconds: float = 0.0) -> None:
        self.asked: Counter[str] = Counter()
        self.errors: list[Exception] = []
        self.seconds = seconds

    def identity(self) -> str:
        return "counted"

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        yield from self._reply_to(prompt.question)

    def complete(
        self, messages: Sequence[Any], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = lambda: False
    ) -> str:
        return "".join(self._reply_to(messages[-1]["content"]))

    def _reply_to(self, text: str) -> Iterator[str]:
        self.asked[text] += 1
        number = self.asked.total()
        yield "reply "
        time.sleep(self.seconds)
        if self.errors:
            raise self.errors.pop(0)
        yield str(number)


@pytest.fixture
def results(tmp_path: Path) -> ResultCache:
    return ResultCache(tmp_path / "results.db")


def replies(results: ResultCache, **options: Any) -> Replies:
    return Replies(results, "test", **options)


def test_the_same_messages_are_sent_once(results: ResultCache) -> None:
    llm = Counted()
    first = replies(results).recorded(llm)
    assert first.complete(MESSAGES) == "reply 1"
    assert "".join(first.stream(PROMPT)) == "reply 2"
    assert first.complete(MESSAGES) == "reply 3"  # the same work gets a different reply
    again = Replies(ResultCache(results.path), "another stage").recorded(Counted())
    assert [again.complete(MESSAGES), *again.stream(PROMPT), again.complete(MESSAGES)] == [
        f"reply {n}" for n in (1, 2, 3)
    ]
    assert llm.asked.total() == 3
    assert again.inner.asked.total() == 0
    assert results.computed == {"test": 3}


def test_the_key_depends_on_messages_model_settings_and_repeat(results: ResultCache) -> None:
    llm = Counted()

    @dataclasses.dataclass(frozen=True)
    class Other(Counted):
        temperature: float = 0.0

        def identity(self) -> Any:
            return {"temperature": self.temperature}

        def complete(self, messages: Sequence[Any], **options: Any) -> str:
            return llm.complete(messages)

    for repeat, model, options in (
        (1, llm, {}),
        (2, llm, {}),
        (1, Other(), {}),
        (1, Other(temperature=1.0), {}),
        (1, llm, {"max_tokens": 5}),
    ):
        before = llm.asked.total()
        texts = [replies(results, repeat=repeat).recorded(model).complete(MESSAGES, **options) for _ in range(2)]
        assert texts[0] == texts[1]
        assert llm.asked.total() == before + 1


def test_max_tokens_of_the_model_is_not_part_of_other_keys(tmp_path: Path) -> None:
    def key(max_tokens: int, **options: Any) -> str:
        recorded = replies(ResultCache(tmp_path / "results.db")).recorded(
            OpenAILLM("m", base_url="http://user:secret@localhost:1/v1", max_tokens=max_tokens, **options)
        )
        with pytest.raises(LLMConnectionError):
            recorded.complete(MESSAGES)
        (asked,) = recorded._replies._used
        return asked

    assert key(100) == key(200)
    assert key(100) != key(100, temperature=1.0)


def test_wrappers_share_replies_and_cached_replies_cost_nothing(results: ResultCache, tmp_path: Path) -> None:
    llm = Counted()
    metered = MeteredLLM(llm, price=Price(1, 1), budget=Budget(1, folder=tmp_path))
    assert replies(results).recorded(metered).complete(MESSAGES) == "reply 1"
    spent = metered.budget.spent if metered.budget else 0.0
    assert spent > 0
    assert replies(results).recorded(metered).complete(MESSAGES) == "reply 1"
    assert replies(results).recorded(llm).complete(MESSAGES) == "reply 1"
    assert (metered.requests, metered.cost) == (1, pytest.approx(spent))


def test_usage_and_seconds_are_cached_with_the_text(results: ResultCache) -> None:
    class Telling(Counted):
        def reply(self, messages: Sequence[Any], **options: Any) -> Iterator[str]:
            yield "half a \ud83d character"
            return Usage(100, 20)

        def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
            return self.reply([])

        def complete(self, messages: Sequence[Any], **options: Any) -> str:
            return "".join(self.reply(messages))

    first = replies(results).recorded(Telling(seconds=0.01))
    reply = first.answer(PROMPT)
    assert (reply.text, reply.usage) == ("half a ? character", Usage(100, 20))
    assert replies(results).recorded(Telling()).answer(PROMPT) == reply
    assert first.complete(MESSAGES) == reply.text
    ((kept, *_),) = [list(results.get([reply.key]).values())]
    assert kept == {"text": reply.text, "seconds": reply.seconds, "input_tokens": 100, "output_tokens": 20}


def test_concurrent_equal_requests_are_coalesced(results: ResultCache) -> None:
    llm = Counted(seconds=0.2)
    texts: list[str] = []
    threads = [
        threading.Thread(target=lambda: texts.append(replies(results).recorded(llm).complete(MESSAGES)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == ["reply 1"] * 8


def test_waiting_for_an_equal_request_can_be_cancelled(results: ResultCache) -> None:
    slow = Counted(seconds=2.0)
    asking = threading.Thread(target=lambda: replies(results).recorded(slow).complete(MESSAGES))
    asking.start()
    while not slow.asked:
        time.sleep(0.01)
    began = time.monotonic()
    with pytest.raises(OperationCancelled):
        replies(results).recorded(Counted()).complete(MESSAGES, cancelled=lambda: True)
    assert time.monotonic() - began < 1.0
    asking.join()


def test_a_truncated_reply_is_not_cached(results: ResultCache) -> None:
    llm = Counted()
    llm.errors = [LLMConnectionError("cut", model="counted", base_url="")]
    with pytest.raises(LLMConnectionError):
        replies(results).recorded(llm).complete(MESSAGES)
    assert replies(results).recorded(llm).complete(MESSAGES) == "reply 2"


@pytest.mark.parametrize("error", [LLMResponseError("no number", model="counted", base_url=""), ValueError("mine")])
def test_invalid_replies_are_skipped_and_kept(results: ResultCache, error: Exception) -> None:
    """The next attempt and the next run send a new request; another parser reads the cached replies."""
    llm = Counted()

    def attempt(of: Replies, readable: str) -> str:
        def work() -> str:
            text = of.recorded(llm).complete(MESSAGES)
            if text != readable:
                raise error
            return text

        return of.read(work)

    run = replies(results)
    for asked in (1, 2):
        with pytest.raises(type(error)):
            attempt(run, "reply 4")
        assert llm.asked.total() == asked
    run = replies(results)
    with pytest.raises(type(error)):  # cached replies come first
        attempt(run, "reply 4")
    assert llm.asked.total() == 3
    assert attempt(run, "reply 4") == "reply 4"
    assert attempt(replies(results), "reply 4") == "reply 4"
    assert attempt(replies(results), "reply 2") == "reply 2"  # a corrected parser
    assert llm.asked.total() == 4


def test_other_failures_do_not_send_a_new_request(results: ResultCache) -> None:
    llm = Counted()
    for error in (EmbeddingError("m", "out of memory"), OperationCancelled("stopped")):
        for _ in range(2):
            run = replies(results)

            def work(run: Replies = run, error: Exception = error) -> None:
                run.recorded(llm).complete(MESSAGES)
                raise error

            with pytest.raises(type(error)):
                run.read(work)
    assert llm.asked.total() == 1
    # One model replied and another failed: the reply is reused.
    other = Counted()
    other.errors = [LLMResponseError("HTTP 500", model="counted", base_url="", status=500)]
    run = replies(results)
    for _ in range(2):

        def both() -> None:
            run.recorded(llm).complete(MESSAGES)
            run.recorded(other).complete([{"role": "user", "content": "other"}])

        if other.errors:
            with pytest.raises(LLMResponseError):
                run.read(both)
        else:
            run.read(both)
    assert llm.asked.total() == 1


def test_replacing_models_changes_nothing_else(results: ResultCache) -> None:
    llm = Counted()

    @dataclasses.dataclass
    class Mine:
        llms: dict[str, tuple[Any, ...]]
        depth: int = 3
        seen: list[str] = dataclasses.field(default_factory=list, init=False)

    mine = Mine({"one": (llm,), "none": ()})
    mine.seen.append("before")
    for value in (HyDE(llm), LLMReranker(llm, depth=7), Relevance(llm, repeats=2), mine, llm):
        assert holds_model(value)
        recorded = replies(results).recorded(value)
        assert recorded is not value
        assert holds_model(value)
        assert repr(recorded) == repr(value)
    copy = replies(results).recorded(mine)
    assert (copy.depth, copy.seen) == (3, ["before"])
    assert copy.llms["one"][0].inner is mine.llms["one"][0] is llm
    for plain in (3, "text", [1, (2,)], {"a": 1}, HashEmbedder(), ExtractiveLLM(HashEmbedder()), choose(1, 2), None):
        assert not holds_model(plain)
        assert replace_models(plain, lambda model: None) is plain


def test_a_recorded_model_has_the_interface_of_the_model(results: ResultCache) -> None:
    llm = OpenAILLM("m", base_url="http://localhost:1/v1", max_tokens=7)
    recorded = replies(results).recorded(llm)
    assert (recorded.name, recorded.generative, recorded.max_tokens) == ("m", True, 7)
    assert HyDE(recorded).llm is recorded
    with pytest.raises(AttributeError, match="nonsense"):
        recorded.nonsense  # noqa: B018  # type: ignore[attr-defined]
