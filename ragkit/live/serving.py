"""Answering queries that arrive on the socket: the engines on offer and the running answers.

Each answer runs in a thread of its own, a few at a time. It sends its output through a `Reply`, whose methods wait for
the socket, so an engine that streams faster than the hub reads is slowed down rather than buffered without limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from types import TracebackType

import msgspec

from ragkit.errors import OperationCancelled, RagkitError
from ragkit.live.messages import (
    DeltaContent,
    Engine,
    EngineQuery,
    Error,
    ErrorCode,
    ErrorContent,
    QueryContent,
    Response,
    ResponseContent,
    ResponseDelta,
)

_log = logging.getLogger("ragkit.live.serving")

Send = Callable[[msgspec.Struct], None]
"""Sends a message, from any thread but the publisher's; returns when it is sent, raises `OSError` if that fails."""


class Reply:
    """The reply of an engine to one query. Use it from one thread at a time.

    Attributes:
        id: The query's id on this connection.
        request_id: The id of the listener's query; follow-up questions refer to it.
    """

    def __init__(self, id: str, send: Send, *, request_id: str = "") -> None:
        self.id = id
        self.request_id = request_id or id
        self._send = send
        self._cancelled = threading.Event()
        self._answered = False

    @property
    def cancelled(self) -> bool:
        """True if the answer is no longer needed: it was cancelled or timed out, or the connection is lost."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Mark the answer as no longer needed."""
        self._cancelled.set()

    def delta(self, text: str) -> None:
        """Send the next piece of the answer; do nothing if the reply is cancelled or complete."""
        if text and not self._answered:
            self._send_reply(ResponseDelta(id=self.id, content=DeltaContent(delta=text)))

    def respond(self, content: ResponseContent) -> None:
        """Send the complete answer. Only the first call of `respond` or `fail` has an effect."""
        if not self._answered:
            self._answered = True
            self._send_reply(Response(id=self.id, content=content))

    def fail(self, code: ErrorCode, message: str) -> None:
        """Send an error instead of an answer. Only the first call of `respond` or `fail` has an effect."""
        if not self._answered:
            self._answered = True
            self._send_reply(Error(id=self.id, content=ErrorContent(code=code, message=message)))

    def _send_reply(self, message: msgspec.Struct) -> None:
        if self.cancelled and isinstance(message, ResponseDelta):
            return
        try:
            self._send(message)
        except OSError:
            # The hub has already sent ENGINE_LOST to the listener; only the work has to be stopped.
            self.cancel()


AnswerQuery = Callable[[QueryContent, Reply], None]
"""Answers one query through the reply, in a thread of its own; an exception is sent to the listener as an error."""


class Serving:
    """An engine on offer, until `stop`, the end of a ``with`` block, or the end of the process.

    Attributes:
        engine: The description of the engine.
        answer: The function that answers queries.
    """

    def __init__(
        self,
        engine: Engine,
        answer: AnswerQuery,
        *,
        stop: Callable[[Serving], object],
        update: Callable[[Serving], object],
    ) -> None:
        self.engine = engine
        self.answer = answer
        self._stop = stop
        self._update = update

    def update(self, engine: Engine) -> None:
        """Publish a new description of the engine, for example after indexing; its id does not change."""
        self.engine = msgspec.structs.replace(engine, id=self.engine.id)
        self._update(self)

    def stop(self) -> None:
        """Withdraw the engine, unless another one has replaced it; running answers are completed."""
        self._stop(self)

    def __enter__(self) -> Serving:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Serving({self.engine.index!r}, id={self.engine.id!r})"


class QueryDispatcher:
    """The engines on offer and the running answers; used only in the publisher's thread.

    Args:
        max_answers: How many answers run at once; further queries wait.
    """

    def __init__(self, *, max_answers: int = 4) -> None:
        self._servings: dict[str, Serving] = {}
        self._replies: dict[str, Reply] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(max_answers)

    @property
    def engines(self) -> list[Engine]:
        """The engines on offer."""
        return [serving.engine for serving in self._servings.values()]

    def offer(self, serving: Serving) -> None:
        """Add an engine; it replaces an engine with the same id."""
        self._servings[serving.engine.id] = serving

    def has(self, serving: Serving) -> bool:
        """Return whether this engine is on offer."""
        return self._servings.get(serving.engine.id) is serving

    def withdraw(self, serving: Serving) -> bool:
        """Remove an engine; return False if it was not on offer, or another one has replaced it."""
        if not self.has(serving):
            return False
        del self._servings[serving.engine.id]
        return True

    def dispatch(self, query: EngineQuery, send: Send) -> None:
        """Start to answer a query."""
        reply = Reply(query.id, send, request_id=query.request_id or "")
        self._replies[query.id] = reply
        task = asyncio.get_running_loop().create_task(self._answer(query, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, id: str) -> None:
        """Cancel an answer; do nothing if it has ended."""
        if reply := self._replies.get(id):
            reply.cancel()

    def lost(self) -> None:
        """Cancel all answers after the connection is lost; the hub has informed the listeners."""
        for reply in self._replies.values():
            reply.cancel()

    async def _answer(self, query: EngineQuery, reply: Reply) -> None:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        serving = self._servings.get(query.engine_id)

        def work() -> None:
            try:
                _run(serving, query.content, reply)
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed, so nothing waits for the event
                    loop.call_soon_threadsafe(ended.set)

        try:
            async with self._slots:
                # A daemon thread, so that an engine that hangs does not prevent the process from exiting.
                threading.Thread(target=work, name="ragkit-answer", daemon=True).start()
                await ended.wait()
        finally:
            reply.cancel()
            if self._replies.get(query.id) is reply:
                del self._replies[query.id]


def _run(serving: Serving | None, content: QueryContent, reply: Reply) -> None:
    if reply.cancelled:
        reply.fail(ErrorCode.CANCELLED, "The query was cancelled before it was answered.")
        return
    if serving is None:
        reply.fail(ErrorCode.NO_ENGINE, "This engine is no longer on offer. Ask again without naming it.")
        return
    answer(serving.answer, content, reply, index=serving.engine.index)


def answer(work: AnswerQuery, content: QueryContent, reply: Reply, *, index: str) -> None:
    """Answer one query, and send an error if ``work`` raises an exception or sends no answer.

    Args:
        work: Answers the query.
        content: The question.
        reply: Sends the answer.
        index: The index's name, for the log message if ``work`` fails.
    """
    try:
        work(content, reply)
    except OperationCancelled as error:
        reply.fail(ErrorCode.CANCELLED, str(error) or "The query was cancelled.")
    except RagkitError as error:
        reply.fail(ErrorCode.ENGINE_FAILED, str(error))
    except BaseException as error:
        # The listener gets the message; the log keeps the traceback for the engine's author.
        _log.exception("The engine for '%s' failed", index)
        reply.fail(ErrorCode.ENGINE_FAILED, f"{type(error).__name__}: {error}")
    else:
        # Has no effect if the engine has replied.
        reply.fail(ErrorCode.ENGINE_FAILED, "The engine ended without an answer. Ask again, or check its notebook.")
