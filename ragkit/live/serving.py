"""Answering queries that come over the socket: the engines on offer, and the answers under way.

An answer runs in a thread of its own, a few at a time. It talks to its asker through a `Reply`, whose
methods wait for the socket, so an engine that streams faster than the hub reads is slowed down, not
buffered without end.
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
"""Sends from any thread but the publisher's; returns when the socket has it, raises `OSError` when it is lost."""


class Reply:
    """How an engine answers one query. Use it from one thread at a time.

    Attributes:
        id: The query's id on this connection.
        request_id: The id that the asker knows it by; follow-ups name it.
    """

    def __init__(self, id: str, send: Send, *, request_id: str = "") -> None:
        self.id = id
        self.request_id = request_id or id
        self._send = send
        self._cancelled = threading.Event()
        self._answered = False

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for this answer: stopped by the asker or a deadline, or the connection is lost."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Say that nobody waits for this answer any more."""
        self._cancelled.set()

    def delta(self, text: str) -> None:
        """Send the next piece of the answer; nothing happens when nobody waits for it."""
        if text and not self._answered:
            self._send_reply(ResponseDelta(id=self.id, content=DeltaContent(delta=text)))

    def respond(self, content: ResponseContent) -> None:
        """Send the whole answer. The first call of this or `fail` counts."""
        if not self._answered:
            self._answered = True
            self._send_reply(Response(id=self.id, content=content))

    def fail(self, code: ErrorCode, message: str) -> None:
        """Send an error in place of an answer. The first call of this or `respond` counts."""
        if not self._answered:
            self._answered = True
            self._send_reply(Error(id=self.id, content=ErrorContent(code=code, message=message)))

    def _send_reply(self, message: msgspec.Struct) -> None:
        if self.cancelled and isinstance(message, ResponseDelta):
            return
        try:
            self._send(message)
        except OSError:
            # The hub has told the asker ENGINE_LOST already; all that is left is to stop the work.
            self.cancel()


AnswerQuery = Callable[[QueryContent, Reply], None]
"""Answers one query through the reply, in a thread of its own; what it raises goes to the asker as an error."""


class Serving:
    """An engine on offer. Stop it, use it in a ``with`` statement, or forget it: it ends with the process.

    Attributes:
        engine: What is offered.
        answer: What answers.
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
        """Describe the engine anew, for example after more was indexed; its id stays."""
        self.engine = msgspec.structs.replace(engine, id=self.engine.id)
        self._update(self)

    def stop(self) -> None:
        """Take the engine off offer, unless another has replaced it; answers under way are finished."""
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
    """The engines on offer and the answers under way; belongs to the publisher's thread.

    Args:
        max_answers: Answers that run at once; further queries wait for one to end.
    """

    def __init__(self, *, max_answers: int = 4) -> None:
        self._servings: dict[str, Serving] = {}
        self._replies: dict[str, Reply] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._at_once = asyncio.Semaphore(max_answers)

    @property
    def engines(self) -> list[Engine]:
        """What is on offer."""
        return [serving.engine for serving in self._servings.values()]

    def offer(self, serving: Serving) -> None:
        """Put an engine on offer in place of one with the same id."""
        self._servings[serving.engine.id] = serving

    def has(self, serving: Serving) -> bool:
        """True while it is on offer."""
        return self._servings.get(serving.engine.id) is serving

    def withdraw(self, serving: Serving) -> bool:
        """Take it off offer; return False if it was not, or another has replaced it."""
        if not self.has(serving):
            return False
        del self._servings[serving.engine.id]
        return True

    def take(self, query: EngineQuery, send: Send) -> None:
        """Have a query answered."""
        reply = Reply(query.id, send, request_id=query.request_id or "")
        self._replies[query.id] = reply
        task = asyncio.get_running_loop().create_task(self._answer(query, reply))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, id: str) -> None:
        """Stop an answer; one that has just ended is left alone."""
        if reply := self._replies.get(id):
            reply.cancel()

    def lost(self) -> None:
        """The connection is gone, and all who wait have been told by the hub."""
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
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                    loop.call_soon_threadsafe(ended.set)

        try:
            async with self._at_once:
                # A daemon: an engine that hangs must not keep the process from ending.
                threading.Thread(target=work, name="ragkit-answer", daemon=True).start()
                await ended.wait()
        finally:
            reply.cancel()
            if self._replies.get(query.id) is reply:
                del self._replies[query.id]


def _run(serving: Serving | None, content: QueryContent, reply: Reply) -> None:
    if reply.cancelled:
        reply.fail(ErrorCode.CANCELLED, "Stopped before it began.")
        return
    if serving is None:
        reply.fail(ErrorCode.NO_ENGINE, "This engine is no longer on offer. Ask again without naming it.")
        return
    answer(serving.answer, content, reply, index=serving.engine.index)


def answer(work: AnswerQuery, content: QueryContent, reply: Reply, *, index: str) -> None:
    """Answer one query; whatever ``work`` does or raises, the asker hears of it.

    Args:
        work: Answers.
        content: The question.
        reply: Where to.
        index: Named in the log if ``work`` fails.
    """
    try:
        work(content, reply)
    except OperationCancelled as error:
        reply.fail(ErrorCode.CANCELLED, str(error) or "Stopped, as you asked.")
    except RagkitError as error:
        reply.fail(ErrorCode.ENGINE_FAILED, str(error))
    except BaseException as error:
        # The asker needs the message, the engine's author the traceback.
        _log.exception("The engine for '%s' failed", index)
        reply.fail(ErrorCode.ENGINE_FAILED, f"{type(error).__name__}: {error}")
    else:
        # Counts only if the engine has said nothing.
        reply.fail(ErrorCode.ENGINE_FAILED, "The engine ended without an answer. Ask again, or look at its notebook.")
