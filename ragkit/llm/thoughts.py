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
        began_inside: Whether the reply has begun inside a thought.
    """

    def __init__(self, model: str, *, wait: bool = False) -> None:
        self.began_inside = False
        self._parts: list[str] = []  # of the answer
        self._tail = ""  # where they end
        self._model = model
        self._wait = wait
        self._step = self._begin
        self._pending = ""  # not decided yet
        self._closing = ""  # the mark that ends the thought
        self._has_thought = False
        self._ends: tuple[str, ...] = _ENDS  # marks that may end the answer

    @property
    def text(self) -> str:
        """The answer so far: what was passed on, unless the reply turned out to have begun inside a thought."""
        return "".join(self._parts)

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
        text = self.text.strip()
        is_cut_inside = self._wait and not self._has_thought and text.endswith(CUT)
        if self._step == self._think or (self._has_thought and text in ("", CUT)) or is_cut_inside:
            raise LLMResponseError(
                f"'{self._model}' ended its reply before it answered: all that it said is what it thought. Raise "
                "max_tokens, or turn its thinking off.",
                model=self._model,
                base_url="",
            )
        return rest

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
            self._pending = self._pending[-len(mark) :]  # a part of the mark, and what stands before it
            return ""
        if not ended and _may_be_quoted(self._pending, at, mark):
            return ""
        self._pending = self._pending[at + len(mark) :]
        self._has_thought = True
        self._step = self._begin
        return ""

    def _answer(self, ended: bool) -> str:
        """After a thought: all of it, but for a mark at its end."""
        text = self._pending if self._parts else self._pending.lstrip()
        partial = 0 if ended else max(_overlap(text, mark) for mark in self._ends)
        kept = len(text) - partial
        is_marked = False
        while mark := next((mark for mark in self._ends if text[:kept].rstrip().endswith(mark)), ""):
            kept = len(text[:kept].rstrip()) - len(mark)
            is_marked = True
        if is_marked or not ended:  # else the space at the end is the answer's
            kept = len(text[:kept].rstrip())
        self._pending = "" if ended else text[kept:]
        return self._say(text[:kept])

    def _answer_or_think(self, ended: bool) -> str:
        """No thought at the beginning: an answer, if no mark shows that the reply has begun inside one."""
        # The rest of a mark may come with this piece, or what shows that backticks enclose it.
        is_mark_near = any(mark in self._tail + self._pending for mark in _CLOSINGS)
        passed_on, self._pending = self._say(self._pending), ""
        if is_mark_near and (end := _end_of_unopened(self.text, ended)) is not None:
            self._pending, self._parts = self.text[end:], []
            self._has_thought = self.began_inside = True
            self._step = self._begin
            return ""
        if not self._wait:
            return passed_on
        return self.text if ended else ""

    def _say(self, part: str) -> str:
        if part:
            self._parts.append(part)
            self._tail = (self._tail + part)[-_LONGEST_CLOSING - 1 :]
        return part


def _is_quoted(text: str, at: int, mark: str) -> bool:
    """Whether backticks enclose the mark that stands there."""
    return at > 0 and text[at - 1] == "`" and text.startswith("`", at + len(mark))


def _may_be_quoted(text: str, at: int, mark: str) -> bool:
    """Whether the next character decides that."""
    return at > 0 and text[at - 1] == "`" and at + len(mark) == len(text)


def _end_of_unopened(text: str, ended: bool) -> int | None:
    """Find where the first closing mark ends that nothing has opened; None if there is none, or not for certain."""
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
    """Count the characters at a text's end with which a mark begins."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
