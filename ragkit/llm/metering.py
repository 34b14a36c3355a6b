"""Metering of calls to a language model: tokens, prices, budgets, rate limits and retries.

The usage of a call is known only after it. So the budget and the rate limit reserve the call's maximum usage before it
is made, and release the difference once the server has reported the usage. The maximum is known in advance: a
byte-level tokenizer makes at most one token per byte, and a server stops at ``max_tokens``. (A server that bills
more than that can exceed a cap by the difference, once; the difference is counted.)

The amount counted as spent is never less than what a server can bill: nothing if the server rejected the call, the
reported usage if there is one, else the maximum, because a call that was cut off, timed out or abandoned may be billed
in full.
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from ragkit.cancellation import never, wait
from ragkit.errors import (
    InputError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMResponseError,
    LLMTimeoutError,
    needs,
)
from ragkit.llm.base import LLM, GenerativeLLM, Message, Usage, drained
from ragkit.llm.limits import Budget, RateLimit
from ragkit.llm.prompt import Prompt

T = TypeVar("T")

_MAX_TOKENS = 1024  # for an LLM without `max_tokens`
_CALL_TOKENS = 128  # the chat template's own text: some templates begin with a paragraph
_MESSAGE_TOKENS = 16  # a message's role and delimiters
_LIKELY_MESSAGE_TOKENS = 4
# Measured with Mistral's tokenizer Tekken (131 072 tokens) on a manual about retrieval, in Markdown: 3.8 bytes per
# token in English, 3.6 in French.
_BYTES_PER_TOKEN = 3.7
_LIKELY_ANSWER_TOKENS = 200  # a paragraph with its citations; a reasoning model takes more


# ------------------------------------------------------------------------------------- tokens and prices


@dataclass(frozen=True, slots=True)
class Price:
    """The price of tokens, in any currency. Budgets and costs are in the same currency.

    Attributes:
        input_per_million: Price of a million tokens of messages. Discounts, such as for cached tokens, are ignored.
        output_per_million: Price of a million tokens of replies.

    Raises:
        InputError: A price is negative or not finite.
    """

    input_per_million: float
    output_per_million: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(price) and price >= 0 for price in (self.input_per_million, self.output_per_million)):
            raise InputError(f"Prices must be 0 or more, not {self.input_per_million} and {self.output_per_million}.")

    def of(self, usage: Usage) -> float:
        """Return the cost of a usage."""
        return (usage.input_tokens * self.input_per_million + usage.output_tokens * self.output_per_million) / 1e6


def most_usage(messages: Sequence[Message], max_tokens: int) -> Usage:
    """Return the maximum usage of a call: one token per UTF-8 byte, plus an allowance for the chat template."""
    return Usage(_CALL_TOKENS + _MESSAGE_TOKENS * len(messages) + _bytes(messages), max_tokens)


def likely_usage(messages: Sequence[Message], max_tokens: int) -> Usage:
    """Estimate the usage of a call in English or French: 3.7 bytes per token, and an answer of one paragraph."""
    input_tokens = _LIKELY_MESSAGE_TOKENS * len(messages) + math.ceil(_bytes(messages) / _BYTES_PER_TOKEN)
    return Usage(input_tokens, min(max_tokens, _LIKELY_ANSWER_TOKENS))


def _bytes(messages: Sequence[Message]) -> int:
    return sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in messages)


# ------------------------------------------------------------------------------------- metered


class MeteredLLM:
    """Wrap an LLM to count its usage, respect rate limits, and never exceed a budget. Thread-safe.

    Calls to an LLM that is not generative are passed through without counting. A call counts once: the LLM's own
    retries (``max_retries`` of `OpenAILLM`) follow rejected requests, which cost nothing. To count these for the rate
    limit too, set ``max_retries=0`` and retry with `retrying`.

    Args:
        llm: The LLM. A stream has at most ``llm.max_tokens`` of output; 1024 if the LLM has no such attribute.
        price: The price of its tokens.
        budget: A limit on the cost of its calls, together with those of other LLMs that share the budget.
        requests_per_minute: None for no limit.
        tokens_per_minute: Limit on input and output together; None for no limit.

    Attributes:
        inner: The LLM.
        requests: Number of calls made.
        failures: Number of calls that ended in an LLMError.
        usage: Tokens of all calls.
        estimated: Number of calls whose server did not report a usage. For these, `usage` includes the maximum.
    """

    is_transparent = True  # metering does not change replies: see ragkit.experiments.fingerprint

    def __init__(
        self,
        llm: LLM,
        *,
        price: Price = Price(0, 0),
        budget: Budget | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        self.inner = llm
        self.price = price
        self.budget = budget
        self.requests = self.failures = self.estimated = 0
        self.usage = Usage(0, 0)
        self._limit = RateLimit(requests_per_minute, tokens_per_minute)
        self._lock = threading.RLock()  # re-entrant: see SharedDatabase

    def __repr__(self) -> str:
        return f"MeteredLLM({self.inner!r}, price={self.price!r}, budget={self.budget!r})"

    @property
    def name(self) -> str:
        """The LLM's name."""
        return self.inner.name

    @property
    def generative(self) -> bool:
        """Whether the LLM is generative."""
        return self.inner.generative

    @property
    def max_tokens(self) -> int:
        """The maximum number of output tokens of `stream`."""
        return int(getattr(self.inner, "max_tokens", _MAX_TOKENS))

    @property
    def cost(self) -> float:
        """The cost of all calls, at `price`."""
        return self.price.of(self.usage)

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Generator[str, None, Usage | None]:
        """See `LLM.stream`. A stream that is neither read to its end nor closed keeps its reservation.

        Returns:
            The usage reported by the server, as the generator's value; None if the server reports none.

        Raises:
            BudgetError: The call could exceed the budget, so it was not made.
            OperationCancelled: `cancelled` returned True, possibly while waiting for a rate limit or the budget.
            RagkitError: The budget's file cannot be read or written.
        """
        if not self.generative:
            yield from self.inner.stream(prompt, cancelled=cancelled)
            return None
        return (
            yield from self._metered(
                lambda: self.inner.stream(prompt, cancelled=cancelled), prompt.messages(), self.max_tokens, cancelled
            )
        )

    def reply(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> Generator[str, None, Usage | None]:
        """Reply to chat messages, in pieces if the LLM supports it. Returns and raises as `stream` does."""

        def begin() -> Iterator[str]:
            reply = getattr(self.inner, "reply", None)
            if reply is not None:
                return cast("Iterator[str]", reply(messages, max_tokens=max_tokens, cancelled=cancelled))
            llm = cast("GenerativeLLM", self.inner)
            return iter([llm.complete(messages, max_tokens=max_tokens, cancelled=cancelled)])

        return self._metered(begin, messages, max_tokens, cancelled)

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> str:
        """See `GenerativeLLM.complete`. Raises as `stream` does."""
        return drained(self.reply(messages, max_tokens=max_tokens, cancelled=cancelled))[0]

    def max_cost(self, messages: Sequence[Message], max_tokens: int) -> float:
        """Return the maximum cost of a call, which is reserved from the budget; see `most_usage`."""
        return self.price.of(most_usage(messages, max_tokens))

    def likely_cost(self, messages: Sequence[Message], max_tokens: int) -> float:
        """Estimate the cost of a call; see `likely_usage`."""
        return self.price.of(likely_usage(messages, max_tokens))

    def _metered(
        self,
        begin: Callable[[], Iterator[str]],
        messages: Sequence[Message],
        max_tokens: int,
        cancelled: Callable[[], bool],
    ) -> Generator[str, None, Usage | None]:
        most = most_usage(messages, max_tokens)
        reserved = self.budget.reserve(self.price.of(most), cancelled=cancelled) if self.budget is not None else 0
        spent = Usage(0, 0)
        made = failed = stated = False
        try:
            taken = self._limit.take(most.input_tokens + most.output_tokens, cancelled=cancelled)
            made = True
            spent = most  # unless the server reports a usage: see the module's docstring
            usage = yield from cast("Generator[str, None, object]", begin())
            if stated := isinstance(usage, Usage):
                spent = usage
            return spent if stated else None
        except LLMError as error:
            failed = True
            if not error.billable:
                spent = Usage(0, 0)
            raise
        finally:
            with self._lock:
                self.requests += made
                self.failures += failed
                self.estimated += spent is most
                self.usage += spent
            if made:
                taken.tokens = spent.input_tokens + spent.output_tokens
            if self.budget is not None:
                self.budget.settle(reserved, self.price.of(spent))


# ------------------------------------------------------------------------------------- retries


def retrying(
    call: Callable[[], T],
    *,
    attempts: int = 3,
    cancelled: Callable[[], bool] = never,
    on_retry: Callable[[LLMError, float], object] | None = None,
    pause_seconds: float = 1.0,
    longest_pause_seconds: float = 30.0,
) -> T:
    """Make a call, and retry it with exponential back-off after errors that may be temporary.

    Retried are: a connection that was refused or cut off, a time-out, a 429, a server error, and an invalid reply. Not
    retried are: a request that the server would reject again (any other 4xx), a wrong key, an exhausted budget. A
    `MeteredLLM` counts the possible cost of failed calls.

    Args:
        call: Makes the call.
        attempts: Maximum number of calls.
        cancelled: Polled many times a second between calls; True stops.
        on_retry: Called with the error and the seconds until the next call.
        pause_seconds: The first pause. Each pause is twice the one before, plus a random part of `pause_seconds`, so
            that calls that failed together are not retried together.
        longest_pause_seconds: The maximum of the pauses, without the random part.

    Returns:
        The result of the call.

    Raises:
        OperationCancelled: `cancelled` returned True.
        MissingExtraError: tenacity is not installed.
        Exception: The last call's exception.
    """
    with needs("tenacity", extra="eval"):
        import tenacity

    def report(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if on_retry is not None and isinstance(error, LLMError):
            on_retry(error, state.upcoming_sleep)

    growing = tenacity.wait_exponential(multiplier=pause_seconds, max=longest_pause_seconds)
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_is_temporary),
        stop=tenacity.stop_after_attempt(attempts),
        wait=growing + tenacity.wait_random(0, pause_seconds),
        sleep=functools.partial(wait, cancelled=cancelled),
        before_sleep=report,
        reraise=True,
    )(call)


def _is_temporary(error: BaseException) -> bool:
    """Return whether the same call may succeed when it is retried."""
    if isinstance(error, LLMResponseError):
        return error.status is None or error.status in {408, 409} or error.status >= 500
    return isinstance(error, LLMConnectionError | LLMTimeoutError | LLMRateLimitError)
