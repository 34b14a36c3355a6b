"""Concurrent calls of experiments to models; each reply is cached as soon as it arrives.

`ragkit.experiments.replies` caches the replies; other results of a call are cached under its key. A call that still
fails after its retries becomes a `FailedCall`: it is reported and counted, never cached and never scored, and the next
run repeats it. An error that would make every other call fail too (a spent budget, a rejected API key, a server that
answers no call) ends the stage; calls in flight are awaited, because they are paid for.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
from collections.abc import Callable, Mapping
from typing import Any

from ragkit.cancellation import never
from ragkit.errors import (
    LLMAuthenticationError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMTimeoutError,
    OperationCancelled,
)
from ragkit.experiments.replies import Replies
from ragkit.experiments.result_cache import ResultCache
from ragkit.llm.base import LLM
from ragkit.llm.metering import retrying

PAUSE_SECONDS = 1.0  # back-off before the first retry of a call
_POLL_SECONDS = 0.1
_MAX_FAILURES = 8  # server failures before any success, after which no further call is made

Call = Callable[[Replies, Callable[[], bool]], Any]
"""A function of the replies to use, and of a callback that returns True to cancel."""


@dataclasses.dataclass(frozen=True, slots=True)
class FailedCall:
    """A call that failed.

    Attributes:
        stage: The stage of the experiment.
        error: The name of the exception class.
        message: The message of the exception.
    """

    stage: str
    error: str
    message: str


class Calls:
    """Makes calls to models and caches their results.

    Args:
        results: The cache for replies and results.
        max_concurrency: The maximum number of concurrent calls.
        cancelled: Polled several times a second; True stops the calls in flight.
        on_progress: Called with the stage, the number of finished calls and their total.
    """

    def __init__(
        self,
        results: ResultCache,
        *,
        max_concurrency: int = 4,
        cancelled: Callable[[], bool] = never,
        on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        self._results = results
        self._max_concurrency = max_concurrency
        self._cancelled = cancelled
        self._on_progress = on_progress

    def compute(
        self, stage: str, work: Mapping[str, Call], *, repeat: int = 1, keep: bool = True, alone: bool = False
    ) -> tuple[dict[str, Any], dict[str, FailedCall]]:
        """Make the calls whose results are not cached.

        Args:
            stage: The stage of the experiment.
            work: Key of a result -> the call that computes it.
            repeat: The number of the repeat; each repeat of the same messages has its own reply.
            keep: Whether to cache results under their keys. Results that are quick to compute from replies need not
                be cached.
            alone: Whether to make one call at a time.

        Returns:
            Key -> value, and key -> failure; each key is in one of the two.

        Raises:
            BudgetError, OperationCancelled, LLMAuthenticationError: Immediately; replies received so far are cached.
            LLMError: None of the first calls succeeded.
        """
        found = self._results.get(list(work)) if keep else {}
        missing = {key: call for key, call in work.items() if key not in found}
        failures: dict[str, FailedCall] = {}
        if not missing:
            return found, failures
        stopped = threading.Event()
        health = _ModelHealth(answered=bool(found))
        models: dict[int, tuple[LLM, Any]] = {}

        def one(key: str, call: Call) -> Any:
            replies = Replies(self._results, stage, repeat=repeat, models=models)
            value = self._one(call, replies, health, stopped, cancelled)
            if keep:
                self._results.put(stage, {key: value})
            return value

        def cancelled() -> bool:
            return stopped.is_set() or self._cancelled()

        with concurrent.futures.ThreadPoolExecutor(
            1 if alone else self._max_concurrency, thread_name_prefix=f"ragkit-{stage}"
        ) as pool:
            waiting: dict[concurrent.futures.Future[Any], str] = {}
            try:
                for key, call in missing.items():
                    waiting[pool.submit(one, key, call)] = key
                while waiting:
                    self._on_progress(stage, len(missing) - len(waiting), len(missing))
                    done, _ = concurrent.futures.wait(waiting, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED")
                    for future in done:
                        key = waiting.pop(future)
                        try:
                            found[key] = future.result()
                        except (OperationCancelled, LLMError) as error:
                            if health.fatal is not None:
                                raise health.fatal from None
                            if isinstance(error, OperationCancelled):
                                raise
                            failures[key] = FailedCall(stage, type(error).__name__, str(error))
                    if self._cancelled():
                        raise OperationCancelled("The experiment was stopped. Run it again to resume.")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | OperationCancelled):
                    stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self._on_progress(stage, len(missing), len(missing))
        return found, failures

    def _one(
        self,
        call: Call,
        replies: Replies,
        health: _ModelHealth,
        stopped: threading.Event,
        cancelled: Callable[[], bool],
    ) -> Any:
        if cancelled():
            raise OperationCancelled("The experiment was stopped. Run it again to resume.")
        try:
            value = retrying(
                lambda: replies.read(lambda: call(replies, cancelled)), cancelled=cancelled, pause_seconds=PAUSE_SECONDS
            )
        except LLMError as error:
            if health.failed(error):
                stopped.set()
            raise
        health.answered = True
        return value


class _ModelHealth:
    """Decides whether further calls to a model can succeed.

    Attributes:
        answered: Whether any call succeeded, now or in an earlier run.
        fatal: The error because of which no further call is made.
    """

    def __init__(self, *, answered: bool) -> None:
        self.answered = answered
        self.fatal: LLMError | None = None
        self._failures = 0
        self._lock = threading.Lock()

    def failed(self, error: LLMError) -> bool:
        """Count a failure and return whether further calls would fail too.

        A question that a model refuses does not predict the next one; a rejected API key or an unreachable server does.
        """
        with self._lock:
            is_server = isinstance(error, LLMConnectionError | LLMTimeoutError | LLMRateLimitError) or (
                error.status is not None and error.status >= 500
            )
            self._failures += is_server and not self.answered
            if isinstance(error, LLMAuthenticationError) or self._failures >= _MAX_FAILURES:
                self.fatal = self.fatal or error
            return self.fatal is not None
