"""Follow-up questions, made after the answer is with its reader: nothing here can reach the asker."""

from __future__ import annotations

import asyncio
import atexit
import functools
import logging
import threading
import time
import weakref
from typing import Any

from ragkit.engine.answer import Answer
from ragkit.engine.follow_ups import FollowUps
from ragkit.live import messages
from ragkit.live.publisher import Publisher

__all__ = ["follow_up"]

_log = logging.getLogger("ragkit")
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
_at_once = threading.BoundedSemaphore(2)


def follow_up(answer: Answer, interface: Any, *, publisher: Publisher, index: str) -> None:
    """Make the follow-up questions of an answer in a thread of their own.

    Args:
        answer: Gets them, or what went wrong, as ``answer.follow_ups()``.
        interface: Has the coroutine ``generate_follow_up_questions(query, response)``.
        publisher: Tells everybody who listens.
        index: Whose they are.
    """
    _finish_at_exit()
    # A daemon: a generator that hangs must not keep the process from ending.
    thread = threading.Thread(
        target=_work, args=(answer, interface, publisher, index), name="ragkit-follow-ups", daemon=True
    )
    _threads.add(thread)
    thread.start()


@functools.cache
def _finish_at_exit() -> None:
    # After the publisher's own, so that this runs first and what it makes is still sent.
    atexit.register(_finish)


def _work(answer: Answer, interface: Any, publisher: Publisher, index: str) -> None:
    with _at_once:
        try:
            questions = _made(interface, answer)
        except Exception as error:
            # The answer stands without them; answer.follow_ups() raises this to whoever asks for them.
            _log.warning("No follow-up questions for %r: %s: %s", answer.question, type(error).__name__, error)
            answer._follow_ups.set_exception(error)
            return
    if questions:
        publisher.publish(
            messages.FollowUpQuestions(
                questions=list(questions), index=index, question=answer.question, request_id=answer.id
            )
        )
    answer._follow_ups.set_result(questions)


def _made(interface: Any, answer: Answer) -> tuple[str, ...]:
    if isinstance(interface, FollowUps):
        # In this thread. Its coroutine takes another from asyncio's pool, which takes no work once the process
        # ends, and which the process waits for.
        return tuple(interface.generate(answer.question, answer))
    return tuple(asyncio.run(interface.generate_follow_up_questions(answer.question, answer)))


def _finish(*, timeout_seconds: float = 5.0) -> None:
    ends = time.monotonic() + timeout_seconds
    for thread in list(_threads):
        thread.join(max(0.0, ends - time.monotonic()))
