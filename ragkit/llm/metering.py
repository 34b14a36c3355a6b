"""What calls to a language model cost: tokens, prices, a budget that holds, rate limits, and calling again.

What a call has used is known when it is over. So a budget and a rate limit take the most that it can use before it
is made, and give back the rest when the server has said. The most is at hand: a byte-level tokenizer makes no more
tokens than a text has bytes, and a server stops at ``max_tokens``. (One that bills what it was not asked for can pass
a cap by that much, once; it is counted.)

What counts as spent is never less than what a server can bill: nothing if it refused the call, what it says if it
says, and else the most, for a call that was cut, timed out or left may be billed whole.
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

_MAX_TOKENS = 1024  # of an LLM that does not say
_CALL_TOKENS = 128  # what a chat template says of its own: some begin every conversation with a paragraph
_MESSAGE_TOKENS = 16  # a message's role and its marks
_LIKELY_MESSAGE_TOKENS = 4
# Measured with Mistral's tokenizer Tekken (131 072 tokens) on a manual about retrieval, in Markdown: 3.8 bytes a
# token in English, 3.6 in French.
_BYTES_A_TOKEN = 3.7
_LIKELY_ANSWER_TOKENS = 200  # a paragraph with its citations; a model that thinks first takes more


# ------------------------------------------------------------------------------------- tokens and prices


@dataclass(frozen=True, slots=True)
class Price:
    """What tokens cost, in any currency; budgets and costs are in the same.

    Attributes:
        input_per_million: For a million tokens of messages. Discounts, as for cached tokens, are left out.
        output_per_million: For a million tokens of replies.

    Raises:
        InputError: A price that cannot be one.
    """

    input_per_million: float
    output_per_million: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(price) and price >= 0 for price in (self.input_per_million, self.output_per_million)):
            raise InputError(f"Prices must be 0 or more, not {self.input_per_million} and {self.output_per_million}.")

    def of(self, usage: Usage) -> float:
        """Return what a usage costs."""
        return (usage.input_tokens * self.input_per_million + usage.output_tokens * self.output_per_million) / 1e6


def most_usage(messages: Sequence[Message], max_tokens: int) -> Usage:
    """Return the most that a call can use: a token for each UTF-8 byte, with room for the chat template's own."""
    return Usage(_CALL_TOKENS + _MESSAGE_TOKENS * len(messages) + _bytes(messages), max_tokens)


def likely_usage(messages: Sequence[Message], max_tokens: int) -> Usage:
    """Estimate what a call uses, for English or French: 3.7 bytes a token, and an answer of a paragraph."""
    read = _LIKELY_MESSAGE_TOKENS * len(messages) + math.ceil(_bytes(messages) / _BYTES_A_TOKEN)
    return Usage(read, min(max_tokens, _LIKELY_ANSWER_TOKENS))


def _bytes(messages: Sequence[Message]) -> int:
    return sum(len(message["content"].encode("utf-8", "surrogatepass")) for message in messages)


# ------------------------------------------------------------------------------------- metered


class MeteredLLM:
    """An LLM that counts what it uses, keeps to rate limits, and never passes a budget. Threads can share it.

    What is not generative asks no server: it passes through, uncounted. A call counts once: requests that the LLM
    repeats itself (``max_retries`` of `OpenAILLM`) come after refusals, which cost nothing. To count these for
    the rate limit too, give it ``max_retries=0`` and make the call with `retrying`.

    Args:
        llm: What is asked. A stream costs at most its ``max_tokens`` of output, 1024 if it has none.
        price: Of its tokens.
        budget: What its calls may cost, together with those of others that share it.
        requests_per_minute: None for any number.
        tokens_per_minute: Input and output together; None for any number.

    Attributes:
        inner: The LLM.
        requests: Calls that were made.
        failures: Those that ended in an LLMError.
        usage: Tokens of them all.
        estimated: Calls whose server did not say what they used: the most that they could is in `usage`.
    """

    is_transparent = True  # what a call may cost changes no reply: see ragkit.experiments.fingerprint

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
        self._lock = threading.RLock()  # see Budget

    def __repr__(self) -> str:
        return f"MeteredLLM({self.inner!r}, price={self.price!r}, budget={self.budget!r})"

    @property
    def name(self) -> str:
        """The LLM's."""
        return self.inner.name

    @property
    def generative(self) -> bool:
        """The LLM's."""
        return self.inner.generative

    @property
    def max_tokens(self) -> int:
        """The longest answer of `stream`."""
        return int(getattr(self.inner, "max_tokens", _MAX_TOKENS))

    @property
    def cost(self) -> float:
        """What its calls have cost, at `price`."""
        return self.price.of(self.usage)

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Generator[str, None, Usage | None]:
        """See `LLM.stream`. A stream that is neither read to its end nor closed keeps what it has taken.

        Returns:
            What the server says that the call used, as the generator's value; None if it does not say.

        Raises:
            BudgetError: It could cost more than is left, and was not made.
            OperationCancelled: `cancelled` said so, also while it waited for a limit or a budget.
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
        """Reply to chat messages, in pieces if the LLM can. Returns and raises as `stream` does."""

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
        """Return the most that a call can cost: what it takes from the budget; see `most_usage`."""
        return self.price.of(most_usage(messages, max_tokens))

    def likely_cost(self, messages: Sequence[Message], max_tokens: int) -> float:
        """Estimate what a call costs; see `likely_usage`."""
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
            spent = most  # unless the server says something else: see the top
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


# ------------------------------------------------------------------------------------- calling again


def retrying(
    call: Callable[[], T],
    *,
    attempts: int = 3,
    cancelled: Callable[[], bool] = never,
    on_retry: Callable[[LLMError, float], object] | None = None,
    pause_seconds: float = 1.0,
    longest_pause_seconds: float = 30.0,
) -> T:
    """Make a call, and make it again where that can help.

    That is after a connection that was refused or cut, a time-out, a 429, a server error, and a reply that is none;
    not after a request that the server will refuse again (any other 4xx), a wrong key, or a spent budget. What a failed
    call may have cost, a `MeteredLLM` LLM has counted.

    Args:
        call: Makes the call.
        attempts: Calls in all, at most.
        cancelled: Asked many times a second between calls; True stops.
        on_retry: Told the error and the seconds before the next call.
        pause_seconds: About how long the first pause is; each is twice as long as the one before, and a random part
            of `pause_seconds` longer, so that calls that failed together do not come again together.
        longest_pause_seconds: Where the pauses stop growing.

    Returns:
        What the call returned.

    Raises:
        OperationCancelled: `cancelled` said so.
        MissingExtraError: tenacity is not installed.
        Exception: What the last call raised.
    """
    with needs("tenacity", extra="eval"):
        import tenacity

    def tell(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if on_retry is not None and isinstance(error, LLMError):
            on_retry(error, state.upcoming_sleep)

    growing = tenacity.wait_exponential(multiplier=pause_seconds, max=longest_pause_seconds)
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(_passes),
        stop=tenacity.stop_after_attempt(attempts),
        wait=growing + tenacity.wait_random(0, pause_seconds),
        sleep=functools.partial(wait, cancelled=cancelled),
        before_sleep=tell,
        reraise=True,
    )(call)


def _passes(error: BaseException) -> bool:
    """Tell whether the same call may be answered when it is made again."""
    if isinstance(error, LLMResponseError):
        return error.status is None or error.status in {408, 409} or error.status >= 500
    return isinstance(error, LLMConnectionError | LLMTimeoutError | LLMRateLimitError)
