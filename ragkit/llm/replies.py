"""What a language model replied: the one way from a model to the rest of ragkit, and reading it with suspicion."""

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

_LONGEST = 20_000  # characters of a reply that are looked at: looking for JSON takes time quadratic in them

# Models that have begun a reply inside a thought: they will again. See `ragkit.llm.thoughts`.
_begin_inside: weakref.WeakSet[LLM] = weakref.WeakSet()


# ------------------------------------------------------------------------------------- asking


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model replied.

    Attributes:
        text: Without its thoughts; encodable as UTF-8.
        raw: With them, as it came.
        usage: Tokens, if the model's server says.
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
        on_delta: Called with each piece of the answer as it comes.
        cancelled: Asked many times a second; True stops the work.

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
        llm: A model that can be asked anything.
        messages: ``role`` and ``content`` each.
        asker: What needs it, for the message if it cannot.
        max_tokens: The longest reply, thoughts included.
        cancelled: Asked many times a second; True stops the work.

    Raises:
        InputError: The model answers prompts only.
        LLMResponseError: The reply ends inside a thought.
        LLMError, OperationCancelled: See `GenerativeLLM.complete`.
    """
    said = generative(llm, asker).complete(messages, max_tokens=max_tokens, cancelled=cancelled)
    return _received(llm, [said], None)


def _received(llm: LLM, pieces: Iterable[str], on_delta: Callable[[str], object] | None) -> Reply:
    """Read a reply to its end; what is no generative model quotes documents, and has no thoughts."""
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
    said = "".join(raw)
    text = thoughts.text if thoughts else said
    return Reply(text.encode("utf-8", "replace").decode(), said, usage)


def _is_known(llm: LLM) -> bool:
    try:
        return llm in _begin_inside
    except TypeError:  # it cannot be hashed, or referred to weakly
        return False


def _remember(llm: LLM) -> None:
    try:
        _begin_inside.add(llm)
    except TypeError:
        return


def generative(llm: LLM, asker: str) -> GenerativeLLM:
    """Return the model if it can be asked anything.

    Args:
        llm: Any model.
        asker: What needs it, for the message.

    Raises:
        InputError: It answers prompts only.
    """
    if isinstance(llm, GenerativeLLM) and llm.generative:
        return llm
    raise InputError(
        f"{asker} needs a language model that can be asked anything, and {llm!r:.100} cannot. Give one like "
        "OpenAILLM('model', base_url='http://localhost:11434/v1')."
    )


# ------------------------------------------------------------------------------------- reading


def read(reply: str) -> str:
    """Return what a model said, of bounded length and without the sign that it was cut off."""
    return reply[:_LONGEST].removesuffix(f" {CUT}")


def read_json(reply: str, kind: type[T]) -> T:
    """Return the JSON object in a reply: models put fences and words around it. The last that fits is what it says.

    Args:
        reply: What a model said.
        kind: What is looked for: anything that msgspec can convert to.

    Raises:
        ValueError: There is none; the message says why, as a phrase.
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


_DECODER = json.JSONDecoder(strict=False)  # line breaks within a string are welcome


def unreadable(llm: LLM, reply: str, wanted: str) -> LLMResponseError:
    """Return the error for a reply that does not hold what was asked for.

    Args:
        llm: Whose it is.
        reply: All of it.
        wanted: What was asked for: ``"an order of passages"``.
    """
    return LLMResponseError(
        f"What '{llm.name}' replied is not {wanted}. It begins: '{one_line(reply[:300])}'. Ask again, or take a model "
        "that follows instructions better.",
        model=llm.name,
        base_url="",
    )


# ------------------------------------------------------------------------------------- citations

PASSAGE_NUMBER = r"\[\d{1,4}\]"
"""How a reply names a passage: as a prompt numbers it."""

CITATION = re.compile(
    r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]+`"  # x[1] in code is no citation
    r"|[ \t]?\[(\d{1,4}(?:\s*[,;]\s*\d{1,4})*)\]",
    re.DOTALL,
)
"""Code, or what cites one passage or several; only a citation has group 1, the numbers."""


def without_citations(text: str) -> str:
    """Return a text without its citations; code stays as it is."""
    return CITATION.sub(lambda match: match.group() if match.group(1) is None else "", text)
