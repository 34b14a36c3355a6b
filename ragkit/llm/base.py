"""The protocols of language models: messages in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ragkit.cancellation import never, wait
from ragkit.llm.prompt import Prompt

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts of one or more calls, as reported by the server. Usages can be added.

    Attributes:
        input_tokens: Tokens of the messages, including those of the chat template.
        output_tokens: Tokens of the reply, including the model's thoughts.
    """

    input_tokens: int
    output_tokens: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


def drained(pieces: Iterator[str]) -> tuple[str, Usage | None]:
    """Read a reply to its end; return its text, and its usage if the stream is a generator that returns it."""
    received: list[str] = []
    while True:
        try:
            received.append(next(pieces))
        except StopIteration as end:
            return "".join(received), end.value if isinstance(end.value, Usage) else None


@runtime_checkable
class LLM(Protocol):
    """A model that can answer a `Prompt`.

    Attributes:
        name: Shown with each answer.
        generative: Whether it is a `GenerativeLLM`, which accepts any chat messages and not only prompts.
    """

    @property
    def name(self) -> str: ...
    @property
    def generative(self) -> bool: ...

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Iterator[str]:
        """Yield the answer in pieces of text, with ``[n]`` after each statement from passage n.

        Thoughts may come first. `ragkit.llm.replies`, which all of ragkit uses to call models, removes them.

        Args:
            prompt: Question and passages.
            cancelled: Polled many times a second, from the iterating thread; True stops the work.

        Raises:
            OperationCancelled: `cancelled` returned True.
            LLMError: The answer is missing or incomplete.
        """
        ...


@runtime_checkable
class GenerativeLLM(LLM, Protocol):
    """A model that accepts any chat messages, for other tasks than answering: follow-up questions, judging."""

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> str:
        """Reply to chat messages (``role`` and ``content``). Raises as `LLM.stream` does."""
        ...


class ScriptedLLM:
    """A fake with scripted replies, for tests and for trying an interface without a model.

    Args:
        pieces: The pieces that `stream` yields.
        delay_seconds: Delay before each piece.
        error: Raised after the last piece.

    Attributes:
        prompts: Every prompt received, oldest first.
    """

    generative = True

    def __init__(self, pieces: Sequence[str], *, delay_seconds: float = 0.0, error: Exception | None = None) -> None:
        self.name = "scripted"
        self.pieces = tuple(pieces)
        self.delay_seconds = delay_seconds
        self.error = error
        self.prompts: list[Prompt] = []

    def identity(self) -> dict[str, object]:
        """Return what its answers depend on; see `ragkit.experiments.fingerprint`."""
        return {"pieces": self.pieces, "error": repr(self.error)}

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Iterator[str]:
        """See `LLM.stream`."""
        self.prompts.append(prompt)
        return self._play(cancelled)

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> str:
        """See `GenerativeLLM.complete`."""
        return "".join(self._play(cancelled))

    def _play(self, cancelled: Callable[[], bool]) -> Iterator[str]:
        for piece in self.pieces:
            wait(self.delay_seconds, cancelled)
            yield piece
        if self.error is not None:
            raise self.error
