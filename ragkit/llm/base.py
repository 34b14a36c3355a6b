"""What a language model is to the rest of ragkit: messages in, text out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ragkit.cancellation import never, wait
from ragkit.llm.prompt import Prompt

Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call or of several, as a server counts them; usages add up.

    Attributes:
        input_tokens: Of the messages, the chat template's own included.
        output_tokens: Of the reply, and of what the model thought before it.
    """

    input_tokens: int
    output_tokens: int

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.input_tokens + other.input_tokens, self.output_tokens + other.output_tokens)


def drained(pieces: Iterator[str]) -> tuple[str, Usage | None]:
    """Read a reply to its end: its text, and its usage if the stream is a generator that returns it."""
    said: list[str] = []
    while True:
        try:
            said.append(next(pieces))
        except StopIteration as end:
            return "".join(said), end.value if isinstance(end.value, Usage) else None


@runtime_checkable
class LLM(Protocol):
    """What ragkit needs to answer a prompt.

    Attributes:
        name: Shown with each answer.
        generative: Whether it is a `GenerativeLLM`: it can be given any messages, not only prompts.
    """

    @property
    def name(self) -> str: ...
    @property
    def generative(self) -> bool: ...

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Iterator[str]:
        """Answer in pieces of text; joined, they are the answer, with ``[n]`` after what passage n says.

        Thoughts may come first: `ragkit.llm.replies`, through which all of ragkit asks, takes them out.

        Args:
            prompt: Question and passages.
            cancelled: Asked many times a second, from the thread that iterates; True stops the work.

        Raises:
            OperationCancelled: `cancelled` said so.
            LLMError: There is no answer, or not the whole of it.
        """
        ...


@runtime_checkable
class GenerativeLLM(LLM, Protocol):
    """A real language model, for work beyond answering: follow-up questions, judging."""

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> str:
        """Reply to chat messages (``role`` and ``content``). Raises as `LLM.stream` does."""
        ...


class ScriptedLLM:
    """Says what it is told to: a fake for tests, and for trying an interface without a model.

    Args:
        pieces: What `stream` yields.
        delay_seconds: Before each piece.
        error: Raised after the last piece.

    Attributes:
        prompts: Every prompt that it was given, oldest first.
    """

    generative = True

    def __init__(self, pieces: Sequence[str], *, delay_seconds: float = 0.0, error: Exception | None = None) -> None:
        self.name = "scripted"
        self.pieces = tuple(pieces)
        self.delay_seconds = delay_seconds
        self.error = error
        self.prompts: list[Prompt] = []

    def identity(self) -> dict[str, object]:
        """Say what its answers depend on; see `ragkit.experiments.fingerprint`."""
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
