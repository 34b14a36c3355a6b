"""What a model thinks aloud before it answers, and the answer, told apart piece by piece.

Servers without a reasoning parser (Ollama's older versions, vLLM, llama.cpp with ``--reasoning-format none``, ...)
send thoughts as a part of the reply. Each form that common models use is a line of `_THOUGHTS`. What counts as a
thought:

- What stands between the marks at the beginning of a reply, after white space, once or several times.
- Everything before a closing mark that nothing has opened: many chat templates open the thought in the prompt, so
  that the reply begins inside it (DeepSeek-R1, QwQ, Qwen3-Thinking).

Marks in an answer that has begun are a part of it: an answer may be about them. A closing mark there opens nothing
backwards if an opening one stands before it, between backticks or within a code fence. The first closing mark ends a
thought unless backticks enclose it.

How a reply is cut into pieces changes neither answer nor error. It can change what is passed on early: that a reply
began inside a thought is known only where the thought ends. Until then it reads like an answer and is passed on, unless
the filter was asked to wait; `ragkit.llm.replies` asks it to for a model that has done so before.
"""

from __future__ import annotations

import re
import string

from ragkit.errors import LLMResponseError

__all__ = ["CUT", "ThoughtFilter"]

CUT = "[…]"
"""What a reply that has reached its longest length ends with."""

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
# gpt-oss: each channel is a message, and the answer is in the last one, called final.
_CHANNELS = {
    f"{turn}<|channel|>{name}": end
    for turn in ("", "<|start|>assistant")
    for name, end in (("analysis", "<|end|>"), ("commentary", "<|end|>"), ("final", "<|message|>"))
}
# The same where a server leaves special tokens out: "analysisThe user asks ...assistantfinalIt ranks."
_CHANNELS_WITHOUT_MARKS = {f"analysis{letter}": "assistantfinal" for letter in string.ascii_uppercase}
_THOUGHTS = _OPENED_IN_PROMPTS | _CHANNELS | _CHANNELS_WITHOUT_MARKS

# What some models put around the answer that follows a thought.
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
    """Takes a reply piece by piece, and gives what of it is no thought.

    Args:
        model: Whose reply it is, for errors.
        wait: Whether to pass nothing on until it is known whether the reply has begun inside a thought.

    Attributes:
        text: The answer so far. It is what was passed on, unless the reply turned out to have begun inside a thought.
        began_inside: Whether the reply has begun inside a thought.
    """

    def __init__(self, model: str, *, wait: bool = False) -> None:
        self.text = ""
        self.began_inside = False
        self._model = model
        self._wait = wait
        self._step = self._begin
        self._pending = ""  # not decided yet
        self._closing = ""  # the mark that ends the thought
        self._has_thought = False
        self._ends: tuple[str, ...] = _ENDS  # marks that may end the answer
        self._end = re.compile("")

    def feed(self, piece: str) -> str:
        """Take a piece of the reply, and return what can be passed on."""
        self._pending += piece
        return self._run(ended=False)

    def finish(self) -> str:
        """Say that the reply is over, and return the rest.

        Raises:
            LLMResponseError: It ends inside a thought, or after one without an answer.
        """
        rest = self._run(ended=True)
        is_empty = self.text.strip() in ("", CUT)
        if self._step == self._think or (self._has_thought and is_empty) or (self._wait and self._is_cut_thought()):
            raise LLMResponseError(
                f"'{self._model}' ended its reply before it answered: all that it said is what it thought. Raise "
                "max_tokens, or turn its thinking off.",
                model=self._model,
                base_url="",
            )
        return rest

    def _is_cut_thought(self) -> bool:
        """Whether a model that begins inside thoughts has reached its limit before it closed one."""
        return not self._has_thought and self.text.rstrip().endswith(CUT)

    def _run(self, *, ended: bool) -> str:
        passed_on = ""
        while True:
            step = self._step
            passed_on += step(ended)
            if self._step == step:  # it waits for more
                return passed_on

    def _begin(self, ended: bool) -> str:
        """Before the answer: is this a thought?"""
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
                ends = (*_ENDS, _AROUND_ANSWERS[opening]) if opening else _ENDS
                self._end = re.compile(rf"(?:\s|{'|'.join(map(re.escape, ends))})*\Z")
                self._ends = ends
                self._pending = text.removeprefix(opening).lstrip()
                self._step = self._answer
        return ""

    def _think(self, ended: bool) -> str:
        at = _find(self._pending, self._closing, ended)
        if at is None:
            self._pending = self._pending[-len(self._closing) - 1 :]  # a part of the mark, and what stands before it
            return ""
        self._pending = self._pending[at + len(self._closing) :]
        self._has_thought = True
        self._step = self._begin
        return ""

    def _answer(self, ended: bool) -> str:
        """After a thought: all of it, but for a mark at its end."""
        partial = 0 if ended else max(_overlap(self._pending, mark) for mark in self._ends)
        held = self._end.search(self._pending[: len(self._pending) - partial])
        kept = held.start() if held and (held.group().strip() or not ended) else len(self._pending)
        passed_on, self._pending = self._pending[:kept], "" if ended else self._pending[kept:]
        self.text += passed_on
        return passed_on

    def _answer_or_think(self, ended: bool) -> str:
        """No thought at the beginning: an answer, if no mark shows that the reply has begun inside one."""
        seen = len(self.text)
        self.text += self._pending
        self._pending = ""
        # The rest of a mark may come with this piece, or what shows that backticks enclose it.
        if any(mark in self.text[max(0, seen - _LONGEST_CLOSING - 1) :] for mark in _CLOSINGS):
            end = _end_of_unopened(self.text, ended)
            if end is not None:
                self._pending, self.text = self.text[end:], ""
                self._has_thought = self.began_inside = True
                self._step = self._begin
                return ""
        if not self._wait:
            return self.text[seen:]
        return self.text if ended else ""


def _find(text: str, mark: str, ended: bool) -> int | None:
    """Find a mark that backticks do not enclose; None while it is not known whether they do."""
    at = text.find(mark)
    while at >= 0 and _is_quoted(text, at, at + len(mark)):
        at = text.find(mark, at + 1)
    is_open = at > 0 and text[at - 1] == "`" and at + len(mark) == len(text)
    return None if at < 0 or (is_open and not ended) else at


def _is_quoted(text: str, start: int, end: int) -> bool:
    return start > 0 and text[start - 1] == "`" and text[end : end + 1] == "`"


def _end_of_unopened(text: str, ended: bool) -> int | None:
    """Find where the first closing mark ends that nothing has opened; None if there is none, or not for certain."""
    in_code = False
    opened = 0
    for match in _MARKS.finditer(text):
        if match["fence"]:
            in_code = not in_code
        elif in_code or _is_quoted(text, *match.span()):
            continue
        elif match.group() not in _CLOSINGS:
            opened += 1
        elif opened:
            opened -= 1
        else:
            is_open = text[: match.start()].endswith("`") and match.end() == len(text)
            return match.end() if ended or not is_open else None
    return None


def _overlap(text: str, mark: str) -> int:
    """Count the characters at a text's end with which a mark begins."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
