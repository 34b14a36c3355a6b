"""Separation of a model's thoughts from its answer, in a stream.

Servers without a reasoning parser (Ollama's older versions, vLLM, llama.cpp with ``--reasoning-format none``, ...)
send thoughts as part of the reply. `_THOUGHTS` has one entry for each pair of marks that common models use. A thought
is:

- The text between two marks at the beginning of a reply, after white space, once or several times.
- Everything before a closing mark without an opening mark: many chat templates open the thought in the prompt, so the
  reply begins inside it (DeepSeek-R1, QwQ, Qwen3-Thinking).

Marks after the beginning of the answer are part of the answer, which may be about them. There, a closing mark does not
end a thought if there is an opening mark before it, if it is between backticks, or if it is in a code fence. The first
closing mark ends a thought unless backticks enclose it.

The splitting of a reply into pieces changes neither the answer nor the error, but it can change what is passed on
early: only the end of a thought shows that the reply began inside it. Until then the text looks like an answer and is
passed on, unless ``wait`` is set, as `ragkit.llm.replies` does for a model that has done so before.
"""

from __future__ import annotations

import re
import string

from ragkit.errors import LLMResponseError

CUT = "[…]"
"""The end of a reply that reached its maximum length."""

_OPENED_IN_PROMPTS = {
    "<think>": "</think>",  # DeepSeek, Qwen, GLM, Kimi K2, Nemotron, Phi, Olmo, Granite, Hunyuan, ...
    "<thinking>": "</thinking>",
    "<thought>": "</thought>",  # EXAONE
    "<reasoning>": "</reasoning>",
    "<seed:think>": "</seed:think>",  # Seed-OSS
    "<mm:think>": "</mm:think>",  # MiniMax
    "[THINK]": "[/THINK]",  # Magistral
    "◁think▷": "◁/think▷",  # Kimi-VL
    "<|begin_of_thought|>": "<|end_of_thought|>",  # OpenThinker
    "<|START_THINKING|>": "<|END_THINKING|>",  # Command A
    "<|inner_prefix|>": "<|inner_suffix|>",  # Apertus
    "<|channel>thought": "<channel|>",  # Gemma
    "<|open|>think<|sep|>": "<|close|>think<|sep|>",  # Kimi K3
}
# gpt-oss: each channel is a message; the answer is in the last channel, "final".
_CHANNELS = {
    f"{turn}<|channel|>{name}": end
    for turn in ("", "<|start|>assistant")
    for name, end in (("analysis", "<|end|>"), ("commentary", "<|end|>"), ("final", "<|message|>"))
}
# The same from a server that removes special tokens: "analysisThe user asks ...assistantfinalIt ranks."
_CHANNELS_WITHOUT_MARKS = {f"analysis{letter}": "assistantfinal" for letter in string.ascii_uppercase}
_THOUGHTS = _OPENED_IN_PROMPTS | _CHANNELS | _CHANNELS_WITHOUT_MARKS

# Marks that some models put around the answer after a thought.
_AROUND_ANSWERS = {
    "<answer>": "</answer>",  # Hunyuan
    "<response>": "</response>",  # Granite, ERNIE
    "<|begin_of_solution|>": "<|end_of_solution|>",
    "<|START_RESPONSE|>": "<|END_RESPONSE|>",
    "<|START_TEXT|>": "<|END_TEXT|>",
    "<|open|>response<|sep|>": "<|close|>response<|sep|>",
}
_ENDS = ("<|return|>", "<|end|>")

_CLOSINGS = frozenset(_OPENED_IN_PROMPTS.values())
_LONGEST_CLOSING = max(map(len, _CLOSINGS))
_MARKS = re.compile(
    r"(?P<fence>^ {0,3}(?:```|~~~))|"
    + "|".join(re.escape(mark) for pair in _OPENED_IN_PROMPTS.items() for mark in pair),
    re.MULTILINE,
)


class ThoughtFilter:
    """Filter thoughts out of a reply, piece by piece.

    Args:
        model: The model's name, for error messages.
        wait: Whether to hold back all text until it is known whether the reply began inside a thought.

    Attributes:
        began_inside: Whether the reply began inside a thought.
    """

    def __init__(self, model: str, *, wait: bool = False) -> None:
        self.began_inside = False
        self._parts: list[str] = []  # pieces of the answer
        self._tail = ""  # the end of the answer so far
        self._model = model
        self._wait = wait
        self._step = self._begin
        self._pending = ""  # text that is not classified yet
        self._closing = ""  # the mark that ends the thought
        self._has_thought = False
        self._ends: tuple[str, ...] = _ENDS  # marks that may end the answer

    @property
    def text(self) -> str:
        """The answer so far: the text passed on, unless the reply turned out to have begun inside a thought."""
        return "".join(self._parts)

    def feed(self, piece: str) -> str:
        """Add a piece of the reply, and return the text that can be passed on."""
        self._pending += piece
        return self._run(ended=False)

    def finish(self) -> str:
        """Signal the end of the reply, and return the rest of the answer.

        Raises:
            LLMResponseError: The reply ends inside a thought, or after one without an answer.
        """
        rest = self._run(ended=True)
        text = self.text.strip()
        is_cut_inside = self._wait and not self._has_thought and text.endswith(CUT)
        if self._step == self._think or (self._has_thought and text in ("", CUT)) or is_cut_inside:
            raise LLMResponseError(
                f"'{self._model}' returned no answer: its reply consists of thoughts only. Raise max_tokens, or turn "
                "its thinking off.",
                model=self._model,
                base_url="",
            )
        return rest

    def _run(self, *, ended: bool) -> str:
        passed_on = ""
        while True:
            step = self._step
            passed_on += step(ended)
            if self._step == step:  # more input is needed
                return passed_on

    def _begin(self, ended: bool) -> str:
        """Decide whether a thought or the answer begins here."""
        text = self._pending.lstrip()
        marks = _THOUGHTS | (_AROUND_ANSWERS if self._has_thought else {})
        opening = next((mark for mark in marks if text.startswith(mark)), "")
        if opening in _THOUGHTS:
            self._closing = _THOUGHTS[opening]
            self._pending = text.removeprefix(opening)
            self._step = self._think
        elif ended or opening or not any(mark.startswith(text) for mark in marks):
            self._step = self._answer_or_think
            if self._has_thought:
                self._ends = (*_ENDS, _AROUND_ANSWERS[opening]) if opening else _ENDS
                self._pending = text.removeprefix(opening)
                self._step = self._answer
        return ""

    def _think(self, ended: bool) -> str:
        mark = self._closing
        at = self._pending.find(mark)
        while _is_quoted(self._pending, at, mark):
            at = self._pending.find(mark, at + 1)
        if at < 0:
            self._pending = self._pending[-len(mark) :]  # possibly the beginning of the mark, after a backtick
            return ""
        if not ended and _may_be_quoted(self._pending, at, mark):
            return ""
        self._pending = self._pending[at + len(mark) :]
        self._has_thought = True
        self._step = self._begin
        return ""

    def _answer(self, ended: bool) -> str:
        """After a thought: pass on everything except marks at the end."""
        text = self._pending if self._parts else self._pending.lstrip()
        partial = 0 if ended else max(_overlap(text, mark) for mark in self._ends)
        kept = len(text) - partial
        is_marked = False
        while mark := next((mark for mark in self._ends if text[:kept].rstrip().endswith(mark)), ""):
            kept = len(text[:kept].rstrip()) - len(mark)
            is_marked = True
        if is_marked or not ended:  # otherwise, the white space at the end belongs to the answer
            kept = len(text[:kept].rstrip())
        self._pending = "" if ended else text[kept:]
        return self._add(text[:kept])

    def _answer_or_think(self, ended: bool) -> str:
        """No opening mark: the answer, unless a closing mark shows that the reply began inside a thought."""
        # This piece may complete a mark, or add the backtick after one.
        is_mark_near = any(mark in self._tail + self._pending for mark in _CLOSINGS)
        passed_on, self._pending = self._add(self._pending), ""
        if is_mark_near and (end := _end_of_unopened(self.text, ended)) is not None:
            self._pending, self._parts = self.text[end:], []
            self._has_thought = self.began_inside = True
            self._step = self._begin
            return ""
        if not self._wait:
            return passed_on
        return self.text if ended else ""

    def _add(self, part: str) -> str:
        if part:
            self._parts.append(part)
            self._tail = (self._tail + part)[-_LONGEST_CLOSING - 1 :]
        return part


def _is_quoted(text: str, at: int, mark: str) -> bool:
    """Return whether backticks enclose the mark at this offset."""
    return at > 0 and text[at - 1] == "`" and text.startswith("`", at + len(mark))


def _may_be_quoted(text: str, at: int, mark: str) -> bool:
    """Return whether `_is_quoted` depends on the next character."""
    return at > 0 and text[at - 1] == "`" and at + len(mark) == len(text)


def _end_of_unopened(text: str, ended: bool) -> int | None:
    """Return the end of the first closing mark without an opening one; None if there is none or it is uncertain."""
    in_code = False
    opened = 0
    for match in _MARKS.finditer(text):
        if match["fence"]:
            in_code = not in_code
        elif in_code or _is_quoted(text, match.start(), match.group()):
            continue
        elif match.group() not in _CLOSINGS:
            opened += 1
        elif opened:
            opened -= 1
        else:
            is_certain = ended or not _may_be_quoted(text, match.start(), match.group())
            return match.end() if is_certain else None
    return None


def _overlap(text: str, mark: str) -> int:
    """Return the length of the longest proper prefix of a mark that the text ends with."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
