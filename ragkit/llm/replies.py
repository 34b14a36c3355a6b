"""Replies of language models: all of ragkit calls models and parses their untrusted replies through this module."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from ragkit.cancellation import never
from ragkit.errors import InputError, LLMResponseError
from ragkit.llm.base import LLM, GenerativeLLM, Message, Usage
from ragkit.llm.prompt import Prompt
from ragkit.llm.thoughts import CUT, ThoughtFilter
from ragkit.terminal import one_line

T = TypeVar("T")

_LONGEST = 20_000  # characters of a reply that are parsed: searching for JSON takes quadratic time

# Models that have begun a reply inside a thought, and will do so again. See `ragkit.llm.thoughts`.
_begin_inside: weakref.WeakSet[LLM] = weakref.WeakSet()


# ------------------------------------------------------------------------------------- calling models


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's reply.

    Attributes:
        text: The reply without thoughts; encodable as UTF-8.
        raw: The reply as received, with thoughts.
        usage: Tokens, if the server reports them.
    """

    text: str
    raw: str
    usage: Usage | None = None


def answer_prompt(
    llm: LLM,
    prompt: Prompt,
    *,
    on_delta: Callable[[str], object] | None = None,
    cancelled: Callable[[], bool] = never,
) -> Reply:
    """Have a model answer a prompt.

    Args:
        llm: Any model.
        prompt: Question and passages.
        on_delta: Called with each piece of the answer as it arrives.
        cancelled: Polled many times a second; True stops the work.

    Raises:
        LLMResponseError: The reply ends inside a thought.
        LLMError, OperationCancelled: See `LLM.stream`.
    """
    return _received(llm, llm.stream(prompt, cancelled=cancelled), on_delta)


def ask(
    llm: LLM,
    messages: Sequence[Message],
    *,
    asker: str,
    max_tokens: int = 1024,
    cancelled: Callable[[], bool] = never,
) -> Reply:
    """Have a model reply to chat messages.

    Args:
        llm: A generative model.
        messages: Each has ``role`` and ``content``.
        asker: Name of the caller, for the error message.
        max_tokens: Maximum length of the reply, thoughts included.
        cancelled: Polled many times a second; True stops the work.

    Raises:
        InputError: The model is not generative.
        LLMResponseError: The reply ends inside a thought.
        LLMError, OperationCancelled: See `GenerativeLLM.complete`.
    """
    reply = generative(llm, asker).complete(messages, max_tokens=max_tokens, cancelled=cancelled)
    return _received(llm, [reply], None)


def _received(llm: LLM, pieces: Iterable[str], on_delta: Callable[[str], object] | None) -> Reply:
    """Read a reply to its end and remove thoughts. Only generative models have thoughts; others quote documents."""
    thoughts = ThoughtFilter(llm.name, wait=_is_known(llm)) if llm.generative else None
    raw: list[str] = []
    stream = iter(pieces)
    usage: Usage | None = None

    def pass_on(piece: str) -> None:
        if piece and on_delta is not None:
            on_delta(piece)

    try:
        while True:
            try:
                piece = next(stream)
            except StopIteration as end:  # a generator returns the usage
                usage = end.value if isinstance(end.value, Usage) else None
                break
            raw.append(piece)
            pass_on(thoughts.feed(piece) if thoughts else piece)
        if thoughts:
            pass_on(thoughts.finish())
    finally:
        if thoughts and thoughts.began_inside:
            _remember(llm)
        if callable(close := getattr(stream, "close", None)):
            close()
    whole = "".join(raw)
    text = thoughts.text if thoughts else whole
    return Reply(text.encode("utf-8", "replace").decode(), whole, usage)


def _is_known(llm: LLM) -> bool:
    try:
        return llm in _begin_inside
    except TypeError:  # not hashable, or not weakly referenceable
        return False


def _remember(llm: LLM) -> None:
    try:
        _begin_inside.add(llm)
    except TypeError:
        return


def generative(llm: LLM, asker: str) -> GenerativeLLM:
    """Return the model if it is generative.

    Args:
        llm: Any model.
        asker: Name of the caller, for the error message.

    Raises:
        InputError: The model is not generative.
    """
    if isinstance(llm, GenerativeLLM) and llm.generative:
        return llm
    raise InputError(
        f"{asker} needs a language model that can be asked anything, and {llm!r:.100} cannot. Give one like "
        "OpenAILLM('model', base_url='http://localhost:11434/v1')."
    )


# ------------------------------------------------------------------------------------- parsing


def read(reply: str) -> str:
    """Return a reply, truncated to a maximum length and without the marker of a reply that was cut off."""
    return reply[:_LONGEST].removesuffix(f" {CUT}")


def read_json(reply: str, kind: type[T]) -> T:
    """Return the last JSON object of a type in a reply. Models put fences and words around JSON.

    Args:
        reply: A model's reply.
        kind: The type of the object: anything that msgspec can convert to.

    Raises:
        ValueError: There is none. The message is a phrase that says why.
    """
    if len(reply) > _LONGEST:
        raise ValueError("it is too long")
    found: T | None = None
    reason = "there is no JSON object in it"
    at = reply.find("{")
    while at >= 0:
        end = at + 1
        try:
            value, end = _DECODER.raw_decode(reply, at)
            found = msgspec.convert(value, kind)
        except RecursionError:
            reason = "its JSON is nested too deeply"
            break
        except (ValueError, msgspec.ValidationError) as error:
            reason = str(error)
        at = reply.find("{", end)
    if found is None:
        raise ValueError(reason)
    return found


_DECODER = json.JSONDecoder(strict=False)  # accepts line breaks within a string


def unreadable(llm: LLM, reply: str, wanted: str) -> LLMResponseError:
    """Return the error for a reply that does not contain what was requested.

    Args:
        llm: The model.
        reply: The whole reply.
        wanted: What was requested: ``"an order of passages"``.
    """
    return LLMResponseError(
        f"The reply of '{llm.name}' is not {wanted}. It begins: '{one_line(reply[:300])}'. Ask again, or use a model "
        "that follows instructions better.",
        model=llm.name,
        base_url="",
    )


# ------------------------------------------------------------------------------------- citations

PASSAGE_NUMBER = r"\[\d{1,4}\]"
"""A reference to a numbered passage of the prompt."""

CITATION = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`"  # x[1] in code is not a citation
    r"|[ \t]?\[(\d{1,4}(?:\s*[,;]\s*\d{1,4})*)\]",
    re.DOTALL,
)
"""Matches code, or a citation of one or more passages. Only a citation has group 1, the numbers."""


def without_citations(text: str) -> str:
    """Return a text without its citations. Code is unchanged."""
    return CITATION.sub(lambda match: match.group() if match.group(1) is None else "", text)
