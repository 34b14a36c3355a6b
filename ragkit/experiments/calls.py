"""What experiments ask of models: several calls at a time, each reply kept as soon as it is there.

What models reply is kept by `ragkit.experiments.replies`, what else a call computes by its key. A call that still fails
after its retries is a `FailedCall`: it is reported and counted, never kept and never scored, and the next run asks
again. What makes every other call pointless (a spent budget, a wrong key, a server that answers none)
ends them all; replies that are under way are waited for, because they are paid for.
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

PAUSE_SECONDS = 1.0  # before a call is made again, at first
_POLL_SECONDS = 0.1
_HOPELESS = 8  # failures, before any success, after which no other call is made

Call = Callable[[Replies, Callable[[], bool]], Any]
"""Asks models through what it is given first, and stops when what it is given second says so."""


@dataclasses.dataclass(frozen=True, slots=True)
class FailedCall:
    """A call that failed.

    Attributes:
        stage: What was asked for.
        error: The kind of error.
        message: What it says.
    """

    stage: str
    error: str
    message: str


class Calls:
    """Makes calls that ask models, and keeps what they compute.

    Args:
        results: Where replies and results are kept.
        max_concurrency: How many calls are under way at a time.
        cancelled: Asked several times a second; True stops the calls under way.
        tell: Called with a stage, and how many of its calls are done and to do.
    """

    def __init__(
        self,
        results: ResultCache,
        *,
        max_concurrency: int = 4,
        cancelled: Callable[[], bool] = never,
        tell: Callable[[str, int, int], None] = lambda stage, done, total: None,
    ) -> None:
        self._results = results
        self._max_concurrency = max_concurrency
        self._cancelled = cancelled
        self._tell = tell

    def compute(
        self, stage: str, work: Mapping[str, Call], *, repeat: int = 1, keep: bool = True, alone: bool = False
    ) -> tuple[dict[str, Any], dict[str, FailedCall]]:
        """Make the calls whose results are not kept yet.

        Args:
            stage: What they are for.
            work: Key of a result -> the call that computes it.
            repeat: The same messages in another repeat are another reply.
            keep: Whether results are kept under their keys. What is quickly computed from replies need not be.
            alone: Whether one call at a time is made.

        Returns:
            Key -> value, and key -> failure; each key is in one of them.

        Raises:
            BudgetError, OperationCancelled, LLMAuthenticationError: At once; what was replied until then is kept.
            LLMError: None of the first calls was answered.
        """
        found = self._results.get(list(work)) if keep else {}
        missing = {key: call for key, call in work.items() if key not in found}
        failures: dict[str, FailedCall] = {}
        if not missing:
            return found, failures
        stopped = threading.Event()
        luck = _Luck(answered=bool(found))
        models: dict[int, tuple[LLM, Any]] = {}

        def one(key: str, call: Call) -> Any:
            replies = Replies(self._results, stage, repeat=repeat, models=models)
            value = self._one(call, replies, luck, stopped, cancelled)
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
                    self._tell(stage, len(missing) - len(waiting), len(missing))
                    done, _ = concurrent.futures.wait(waiting, timeout=_POLL_SECONDS, return_when="FIRST_COMPLETED")
                    for future in done:
                        key = waiting.pop(future)
                        try:
                            found[key] = future.result()
                        except (OperationCancelled, LLMError) as error:
                            if luck.hopeless is not None:
                                raise luck.hopeless from None
                            if isinstance(error, OperationCancelled):
                                raise
                            failures[key] = FailedCall(stage, type(error).__name__, str(error))
                    if self._cancelled():
                        raise OperationCancelled("The experiment was stopped. Run it again, and it goes on.")
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt | OperationCancelled):
                    stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        self._tell(stage, len(missing), len(missing))
        return found, failures

    def _one(
        self,
        call: Call,
        replies: Replies,
        luck: _Luck,
        stopped: threading.Event,
        cancelled: Callable[[], bool],
    ) -> Any:
        if cancelled():
            raise OperationCancelled("The experiment was stopped. Run it again, and it goes on.")
        try:
            value = retrying(
                lambda: replies.read(lambda: call(replies, cancelled)), cancelled=cancelled, pause_seconds=PAUSE_SECONDS
            )
        except LLMError as error:
            if luck.failed(error):
                stopped.set()
            raise
        luck.answered = True
        return value


class _Luck:
    """Whether a model answers at all.

    Attributes:
        answered: Whether it has, now or in an earlier run.
        hopeless: Why no other call is made.
    """

    def __init__(self, *, answered: bool) -> None:
        self.answered = answered
        self.hopeless: LLMError | None = None
        self._failures = 0
        self._lock = threading.Lock()

    def failed(self, error: LLMError) -> bool:
        """Count a failure, and tell whether other calls would fail, too.

        A question that a model refuses says nothing of the next one; a wrong key, or a server that is not there, does.
        """
        with self._lock:
            is_server = isinstance(error, LLMConnectionError | LLMTimeoutError | LLMRateLimitError) or (
                error.status is not None and error.status >= 500
            )
            self._failures += is_server and not self.answered
            if isinstance(error, LLMAuthenticationError) or self._failures >= _HOPELESS:
                self.hopeless = self.hopeless or error
            return self.hopeless is not None
