"""What a language model replied, when it was asked for something other than an answer: read with suspicion."""

from __future__ import annotations

import re

from ragkit.errors import InputError, LLMResponseError
from ragkit.llm.base import LLM, GenerativeLLM
from ragkit.terminal import one_line

__all__ = ["generative", "read", "unreadable"]

_LONGEST = 20_000  # characters of a reply that are looked at
_THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


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


def read(reply: str) -> str:
    """Return what a model said: without what it thought aloud, of bounded length, encodable as UTF-8."""
    said = _THOUGHT.sub("", reply[:_LONGEST].removesuffix(" […]"))
    return said.encode("utf-8", "replace").decode()


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
