"""`ragkit.llm.metering` and `ragkit.llm.limits`, against a server that bills."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ragkit.embedding.hashed import HashEmbedder
from ragkit.engine.extractive import ExtractiveLLM
from ragkit.errors import (
    BudgetError,
    InputError,
    LLMAuthenticationError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMResponseError,
    LLMTimeoutError,
    OperationCancelled,
    RagkitError,
)
from ragkit.experiments.fingerprint import identity
from ragkit.llm import metering
from ragkit.llm.base import LLM, GenerativeLLM, ScriptedLLM, Usage, drained
from ragkit.llm.limits import Budget, RateLimit
from ragkit.llm.metering import MeteredLLM, Price, likely_usage, most_usage, retrying
from ragkit.llm.openai import OpenAILLM
from ragkit.llm.prompt import Passage, Prompt
from tests.support.llm_servers import BillingServer, Connection, RawServer

MESSAGES = [{"role": "user", "content": "Qu'est-ce que BM25 ?"}]
PRICE = Price(1000, 3000)
MAX_TOKENS = 10
MOST = PRICE.of(most_usage(MESSAGES, MAX_TOKENS))
PROMPT = Prompt(question="Why?", passages=(Passage(number=1, title="BM25", text="It ranks well."),))


@pytest.fixture
def budgets(tmp_path: Path) -> Iterator[Callable[[float], Budget]]:
    """Return a factory of budgets with one name in one folder."""
    made: list[Budget] = []

    def make(cap: float) -> Budget:
        made.append(Budget(cap, folder=tmp_path))
        return made[-1]

    yield make
    for budget in made:
        budget.close()


def model(server: RawServer, *, timeout_seconds: float = 20.0) -> OpenAILLM:
    return OpenAILLM("tiny", base_url=server.url, max_retries=0, timeout_seconds=timeout_seconds, max_tokens=MAX_TOKENS)


def ask(llm: GenerativeLLM) -> str:
    return llm.complete(MESSAGES, max_tokens=MAX_TOKENS)


def ask_until_exhausted(llm: GenerativeLLM) -> BudgetError:
    """Ask, and ask again what failed, until the budget is exhausted."""
    for _ in range(1000):
        try:
            retrying(lambda: ask(llm), pause_seconds=0)
        except BudgetError as error:
            return error
        except LLMError:
            pass
    raise AssertionError("the budget never paused")


# ------------------------------------------------------------------------------------- tokens and prices


def test_a_price_is_for_a_million_tokens() -> None:
    assert Price(0.5, 2).of(Usage(1_000_000, 250_000)) == 1.0
    assert Price(0.5, 2).of(Usage(0, 0)) == 0


@pytest.mark.parametrize("price", [(-1, 0), (0, math.inf), (math.nan, 1)])
def test_invalid_prices_are_rejected(price: tuple[float, float]) -> None:
    with pytest.raises(InputError):
        Price(*price)


@pytest.mark.parametrize("content", ["", "word " * 50, "œuvre déjà achevée", "日本語", "😀", "\ud800"])
def test_the_maximum_is_more_than_a_token_per_byte(content: str) -> None:
    messages = [{"role": "system", "content": content}, {"role": "user", "content": content}]
    most = most_usage(messages, 77)
    assert most.input_tokens > 2 * len(content.encode(errors="surrogatepass"))
    assert most.output_tokens == 77
    assert likely_usage(messages, 77).input_tokens <= most.input_tokens


def test_an_estimate_before_the_first_call() -> None:
    llm = MeteredLLM(ScriptedLLM(["a"]), price=Price(1, 10))
    french = [{"role": "user", "content": "Les documents cités sont numérotés. " * 100}]
    assert likely_usage(french, 1000).input_tokens == pytest.approx(1000, rel=0.2)
    assert likely_usage(french, 50).output_tokens == 50
    assert 0 < llm.likely_cost(french, 1000) < llm.max_cost(french, 1000)
    assert llm.max_cost(french, 1000) > 1000 * 10 / 1e6
    assert llm.requests == 0


# ------------------------------------------------------------------------------------- counting


def test_counts_what_the_server_bills() -> None:
    with BillingServer() as server:
        llm = MeteredLLM(model(server), price=PRICE)
        ask(llm)
        text, usage = drained(llm.stream(PROMPT))
        assert text.startswith("0 ")
        assert usage == server.billed[1]
        assert llm.usage == server.total
        assert llm.cost == pytest.approx(PRICE.of(server.total))
        assert (llm.requests, llm.failures, llm.estimated) == (2, 0, 0)


def test_without_a_reported_usage_the_maximum_counts() -> None:
    with BillingServer(tells_usage=False) as server:
        llm = MeteredLLM(model(server), price=PRICE)
        assert drained(llm.reply(MESSAGES, max_tokens=MAX_TOKENS))[1] is None
    assert llm.usage == most_usage(MESSAGES, MAX_TOKENS)
    assert llm.estimated == 1


@pytest.mark.parametrize("failing", ["500", "429", "401", "html"])
def test_a_rejected_call_costs_nothing(failing: str) -> None:
    with BillingServer(failures=[failing], every=1) as server:
        llm = MeteredLLM(model(server), price=PRICE)
        with pytest.raises(LLMError):
            ask(llm)
    assert (llm.requests, llm.failures, llm.estimated, llm.cost) == (1, 1, 0, 0)


@pytest.mark.parametrize("failing", ["cut", "dropped", "504"])
def test_a_call_that_may_have_been_billed_counts_with_its_maximum(failing: str) -> None:
    with BillingServer(failures=[failing], every=1) as server:
        llm = MeteredLLM(model(server), price=PRICE)
        with pytest.raises(LLMError):
            ask(llm)
    assert (llm.requests, llm.failures, llm.estimated, llm.cost) == (1, 1, 1, MOST)


def test_an_abandoned_stream_counts_with_its_maximum(budgets: Callable[[float], Budget]) -> None:
    budget = budgets(10)
    with BillingServer() as server:
        llm = MeteredLLM(model(server), price=PRICE, budget=budget)
        stream = llm.reply(MESSAGES, max_tokens=MAX_TOKENS)
        assert budget.spent == 0, "the call has not begun"
        next(stream)
        assert (budget.spent, llm.cost) == (MOST, 0)
        stream.close()
        with pytest.raises(OperationCancelled):
            llm.complete(MESSAGES, max_tokens=MAX_TOKENS, cancelled=lambda: True)
    assert budget.spent == llm.cost == pytest.approx(2 * MOST)
    assert (llm.requests, llm.failures, llm.estimated) == (2, 0, 2)


def test_any_llm_can_be_metered() -> None:
    scripted = MeteredLLM(ScriptedLLM(["It ", "ranks."]), price=PRICE)
    assert isinstance(scripted, LLM)
    assert isinstance(scripted, GenerativeLLM)
    assert (scripted.name, scripted.generative, scripted.max_tokens) == ("scripted", True, 1024)
    assert list(scripted.stream(PROMPT)) == ["It ", "ranks."]
    assert ask(scripted) == "It ranks."
    assert scripted.usage == most_usage(PROMPT.messages(), 1024) + most_usage(MESSAGES, MAX_TOKENS)
    extractive = MeteredLLM(ExtractiveLLM(HashEmbedder()), price=PRICE)
    assert list(extractive.stream(PROMPT))
    assert (extractive.generative, extractive.requests, extractive.cost) == (False, 0, 0)


def test_the_identity_excludes_metering() -> None:
    llm = ScriptedLLM(["a"])
    assert identity(MeteredLLM(llm, price=PRICE, requests_per_minute=3)) == identity(llm)
    assert identity(MeteredLLM(llm)) != identity(MeteredLLM(ScriptedLLM(["b"])))


# ------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize("failures", [(), ("500", "cut", "429", "dropped", "html")])
def test_threads_together_never_exceed_the_cap(budgets: Callable[[float], Budget], failures: Sequence[str]) -> None:
    budget = budgets(8 * MOST)
    with BillingServer(failures=failures) as server, ThreadPoolExecutor(8) as pool:
        llm = MeteredLLM(model(server), price=PRICE, budget=budget)
        errors = list(pool.map(ask_until_exhausted, [llm] * 8))
    assert PRICE.of(server.total) <= budget.spent + 1e-9 <= budget.cap
    assert budget.remaining < MOST, "no reservation is left when all calls have ended"
    assert budget.spent == pytest.approx(llm.cost)
    assert llm.requests == len(server.connections)
    assert llm.failures == server.failed
    assert all(error.most == MOST for error in errors)
    if not failures:
        assert llm.usage == server.total
        assert llm.requests > 16, "calls wait for released reservations"


def test_an_exhausted_budget_can_be_raised(budgets: Callable[[float], Budget]) -> None:
    budget = budgets(1.5 * MOST)
    with BillingServer() as server:
        llm = MeteredLLM(model(server), price=PRICE, budget=budget)
        error = ask_until_exhausted(llm)
        assert not isinstance(error, LLMError), "not an answer that failed"
        assert (error.name, error.spent, error.cap) == ("budget", budget.spent, budget.cap)
        for part in (f"{budget.spent:.6g} of {budget.cap:.6g}", f"{MOST:.6g}", "budget.raise_to("):
            assert part in str(error)
        requests = len(server.connections)
        with pytest.raises(BudgetError):
            ask(llm)
        assert len(server.connections) == requests, "it was not made"
        budget.raise_to(3 * MOST)
        assert ask(llm)


def test_a_budget_persists_under_its_name(tmp_path: Path, budgets: Callable[[float], Budget]) -> None:
    first, again, other = budgets(1), budgets(2), Budget(1, name="other", folder=tmp_path)
    first.settle(first.reserve(0.75), 0.5)
    assert (first.spent, first.remaining) == (0.5, 0.5)
    assert (again.spent, again.remaining) == (0.5, 1.5)
    assert other.spent == 0
    with pytest.raises(BudgetError):
        first.reserve(0.75)
    again.reserve(0.75)
    assert first.spent == 1.25
    assert first.remaining == 0
    other.close()
    assert other.remaining == 1, "it opens again"
    other.close()


def test_a_call_waits_for_running_calls_of_its_process_only(budgets: Callable[[float], Budget]) -> None:
    budget = budgets(1)
    call = budget.reserve(0.9)
    with pytest.raises(BudgetError):
        budget.reserve(1.1)
    waited = itertools.count()
    with pytest.raises(OperationCancelled):
        budget.reserve(0.2, cancelled=lambda: next(waited) == 3)

    def settle() -> bool:
        if next(waited) == 10:
            budget.settle(call, 0.5)
            budget.settle(call, 0.5)  # once is enough
        return False

    assert budget.reserve(0.2, cancelled=settle)
    assert budget.spent == pytest.approx(0.7)


def test_a_waiting_call_continues_when_the_cap_is_raised(budgets: Callable[[float], Budget]) -> None:
    budget = budgets(1)
    budget.reserve(0.9)
    waited = itertools.count()

    def raise_it() -> bool:
        if next(waited) == 2:
            budget.raise_to(2)
        return False

    assert budget.reserve(0.2, cancelled=raise_it)


def test_sums_of_tenths_reach_the_cap(budgets: Callable[[float], Budget]) -> None:
    budget = budgets(0.3)  # less than 0.1 + 0.1 + 0.1, by a hair
    for _ in range(3):
        budget.settle(budget.reserve(0.1), 0.1)
    with pytest.raises(BudgetError):
        budget.reserve(0.0001)
    assert budget.reserve(0)


def test_a_cap_is_only_raised(budgets: Callable[[float], Budget]) -> None:
    budget = budgets(1)
    budget.raise_to(1)
    for wrong in (0.5, math.inf, math.nan, -1):
        with pytest.raises(InputError):
            budget.raise_to(wrong)
    assert budget.cap == 1
    for wrong in (-1, math.inf, math.nan):
        with pytest.raises(InputError):
            budgets(wrong)


def test_reservations_of_a_killed_process_stay_spent(tmp_path: Path, budgets: Callable[[float], Budget]) -> None:
    arrived = threading.Event()

    def behave(connection: Connection) -> None:
        connection.start_stream()
        connection.say("Half of an ans")
        arrived.set()
        connection.wait_for_close(60)

    with RawServer(behave) as server:
        program = f"""
from ragkit.llm import OpenAILLM
from ragkit.llm.limits import Budget; from ragkit.llm.metering import MeteredLLM, Price
llm = OpenAILLM("tiny", base_url={server.url!r}, max_retries=0)
budget = Budget({4 * MOST}, folder={str(tmp_path)!r})
MeteredLLM(llm, price={PRICE!r}, budget=budget).complete({MESSAGES!r}, max_tokens={MAX_TOKENS})
"""
        child = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE)
        try:
            assert arrived.wait(60), child.communicate(timeout=1)
        finally:
            child.kill()
            child.communicate(timeout=30)
    budget = budgets(4 * MOST)
    assert budget.spent == MOST
    with BillingServer() as again:
        llm = MeteredLLM(model(again), price=PRICE, budget=budget)
        ask_until_exhausted(llm)
        assert PRICE.of(again.total) + MOST == pytest.approx(budget.spent)
        assert budget.spent <= budget.cap
        assert len(again.connections) > 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_its_parents_calls(budgets: Callable[[float], Budget]) -> None:
    budget = budgets(1)
    budget.reserve(0.5)
    child = os.fork()
    if not child:
        waited = itertools.count()
        try:
            budget.reserve(0.6, cancelled=lambda: next(waited) == 3)
        except BudgetError:  # immediately: the child does not wait for the parent
            budget.reserve(0.3)
            os._exit(7)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert budget.spent == 0.8


def test_no_call_is_made_that_cannot_be_counted(tmp_path: Path, budgets: Callable[[float], Budget]) -> None:
    (tmp_path / "budgets.db").write_bytes(b"not a database " * 100)
    with BillingServer() as server:
        with pytest.raises(RagkitError, match=r"budgets\.db") as caught:
            ask(MeteredLLM(model(server), price=PRICE, budget=budgets(1)))
        assert isinstance(caught.value.__cause__, sqlite3.Error)
        assert not server.connections


def test_the_folder_is_where_runs_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAGKIT_RUNS", raising=False)
    assert Budget(1).path == tmp_path / "runs" / "budgets.db"
    monkeypatch.setenv("RAGKIT_RUNS", str(tmp_path / "elsewhere"))
    assert Budget(1).path == tmp_path / "elsewhere" / "budgets.db"


# ------------------------------------------------------------------------------------- rate limits


class Clock:
    """A clock that advances when sleep is called."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float, cancelled: Callable[[], bool]) -> None:
        if cancelled():
            raise OperationCancelled("The answer was cancelled.")
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(metering, "RateLimit", lambda *limits: RateLimit(*limits, clock=clock, sleep=clock.sleep))
    return clock


def began(clock: Clock, limit: RateLimit, sizes: Sequence[int]) -> list[int]:
    """Return the seconds after which calls of these sizes begin."""
    start = clock.now
    seconds = []
    for size in sizes:
        limit.take(size)
        seconds.append(round(clock.now - start))
    return seconds


@pytest.mark.parametrize(
    ("requests", "tokens", "sizes", "expected"),
    [
        (None, None, [10**9] * 4, [0, 0, 0, 0]),
        (2, None, [1] * 5, [0, 0, 60, 60, 120]),
        (None, 100, [50, 50, 1, 99], [0, 0, 60, 60]),
        (1, 100, [10, 10], [0, 60]),
        (None, 100, [500, 1, 500], [0, 60, 120]),
    ],
)
def test_calls_begin_within_the_limits_per_minute(
    requests: int | None, tokens: int | None, sizes: list[int], expected: list[int]
) -> None:
    clock = Clock()
    assert began(clock, RateLimit(requests, tokens, clock=clock, sleep=clock.sleep), sizes) == expected


def test_the_window_of_a_minute_slides() -> None:
    clock = Clock()
    limit = RateLimit(2, clock=clock, sleep=clock.sleep)
    limit.take(1)
    clock.now += 40
    assert began(clock, limit, [1, 1, 1]) == [0, 20, 60]


def test_unused_tokens_are_released(clock: Clock) -> None:
    most = most_usage(MESSAGES, MAX_TOKENS)
    with BillingServer() as server:
        llm = MeteredLLM(model(server), tokens_per_minute=most.input_tokens + most.output_tokens + 20)
        ask(llm)
        ask(llm)
        assert clock.now == 1000
        ask(llm)
        ask(llm)
        assert clock.now == pytest.approx(1060, abs=0.1)


@pytest.mark.parametrize("limits", [{"requests_per_minute": 1}, {"tokens_per_minute": 1}])
def test_waiting_for_a_limit_is_cancelled_and_costs_nothing(
    clock: Clock, budgets: Callable[[float], Budget], limits: dict[str, int]
) -> None:
    with BillingServer() as server:
        llm = MeteredLLM(model(server), price=PRICE, budget=budgets(100), **limits)
        ask(llm)
        with pytest.raises(OperationCancelled):
            llm.complete(MESSAGES, max_tokens=MAX_TOKENS, cancelled=lambda: clock.now > 1005)
        assert clock.now == pytest.approx(1005.1, abs=0.1), "it is polled at least ten times a second"
        assert llm.requests == len(server.connections) == 1
        assert llm.budget is not None
        assert llm.budget.spent == llm.cost == PRICE.of(server.total)


def test_threads_share_a_limit() -> None:
    limit = RateLimit(3)
    stop = threading.Event()
    begun: list[int] = []

    def run(number: int) -> None:
        with contextlib.suppress(OperationCancelled):
            limit.take(1, cancelled=stop.is_set)
            begun.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    while len(begun) < 3:
        time.sleep(0.01)
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert len(begun) == 3
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("limits", [(0, None), (None, 0), (-1, 5)])
def test_invalid_limits_are_rejected(limits: tuple[int | None, int | None]) -> None:
    with pytest.raises(InputError):
        RateLimit(*limits)


# ------------------------------------------------------------------------------------- retries


class Flaky:
    """Raise each error once, and then answer."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def err(kind: type[LLMError], status: int | None = None) -> LLMError:
    return kind("no", model="m", base_url="u", status=status)


@pytest.mark.parametrize(
    "error",
    [err(LLMConnectionError), err(LLMTimeoutError), err(LLMRateLimitError, 429), err(LLMResponseError),
     err(LLMResponseError, 500), err(LLMResponseError, 503)],
)  # fmt: skip
def test_temporary_errors_are_retried(error: LLMError) -> None:
    call = Flaky(error, error)
    events: list[tuple[LLMError, float]] = []
    answer = retrying(call, on_retry=lambda error, seconds: events.append((error, seconds)), pause_seconds=0.001)
    assert (answer, call.calls) == ("answer", 3)
    assert [error for error, _ in events] == [error, error]
    assert 0.001 <= events[0][1] <= 0.002 <= events[1][1] <= 0.003, (
        "each pause is twice as long, and a random part more"
    )


@pytest.mark.parametrize(
    "error",
    [err(LLMAuthenticationError, 401), err(LLMResponseError, 400), err(LLMResponseError, 404), err(LLMError),
     BudgetError("b", spent=1, cap=1, most=1), OperationCancelled("stop"), ValueError("a fault"), KeyboardInterrupt()],
)  # fmt: skip
def test_permanent_errors_are_not_retried(error: BaseException) -> None:
    call = Flaky(error)
    with pytest.raises(type(error)) as caught:
        retrying(call, pause_seconds=0)
    assert caught.value is error
    assert call.calls == 1


def test_the_last_error_is_raised() -> None:
    first, last = err(LLMTimeoutError), err(LLMConnectionError)
    call = Flaky(first, last)
    with pytest.raises(LLMConnectionError) as caught:
        retrying(call, attempts=2, pause_seconds=0)
    assert caught.value is last
    assert call.calls == 2


def test_pauses_stop_growing_and_are_cancelled() -> None:
    pauses: list[float] = []
    call = Flaky(*[err(LLMTimeoutError)] * 8)
    retrying(
        call,
        attempts=9,
        on_retry=lambda _, seconds: pauses.append(seconds),
        pause_seconds=0.001,
        longest_pause_seconds=0.004,
    )
    assert max(pauses) <= 0.005
    with pytest.raises(OperationCancelled):
        retrying(Flaky(err(LLMTimeoutError)), cancelled=lambda: True, pause_seconds=3600, longest_pause_seconds=3600)


def test_retries_wait_for_a_server_that_starts_late() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    llm = MeteredLLM(OpenAILLM("tiny", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0), price=PRICE)
    errors: list[LLMError] = []
    with pytest.raises(LLMConnectionError):
        retrying(lambda: ask(llm), on_retry=lambda error, _: errors.append(error), pause_seconds=0)
    assert (len(errors), llm.requests, llm.failures, llm.cost) == (2, 3, 3, 0)
