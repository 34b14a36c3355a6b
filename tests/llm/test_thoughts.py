"""Separation of thoughts and answer, for any splitting of a reply into pieces."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ragkit.errors import LLMResponseError
from ragkit.llm.thoughts import ThoughtFilter


def read(*pieces: str, wait: bool = False) -> tuple[str | None, str, bool]:
    """Return the answer (None: an error), what was passed on, and whether the reply began inside a thought."""
    thoughts = ThoughtFilter("m", wait=wait)
    passed_on = "".join([thoughts.feed(piece) for piece in pieces])
    try:
        passed_on += thoughts.finish()
    except LLMResponseError:
        return None, passed_on, thoughts.began_inside
    return thoughts.text, passed_on, thoughts.began_inside


ANSWER = "It ranks.\n\n- by [1]"

# As sent by servers without a reasoning parser.
FORMS = {
    "DeepSeek-R1, Qwen3": "<think>\nThe user asks [2].\n</think>\n\n{}",
    "Qwen3 with /no_think": "<think>\n\n</think>\n\n{}",
    "after white space": "\n\n <think>Hm.</think> {}",
    "twice": "<think>Hm.</think>\n<think>Hm, [2].</think>\n{}",
    "it mentions its own mark": "<think>How does <think> end? With `</think>`, I think.</think>{}",
    "a tag of another form in it": "<think>He says </thinking> and [/THINK].</think>{}",
    "Claude as it is asked to": "<thinking>Hm.</thinking>{}",
    "EXAONE": "<thought>Hm.</thought>{}",
    "reasoning": "<reasoning>Hm.</reasoning>{}",
    "Seed-OSS": "<seed:think>Hm.</seed:think>{}",
    "MiniMax": "<mm:think>Hm.</mm:think>{}",
    "Magistral": "[THINK]Hm [2].[/THINK]{}",
    "Kimi-VL": "◁think▷Hm.◁/think▷{}",
    "OpenThinker": "<|begin_of_thought|>\nHm.\n<|end_of_thought|>\n\n<|begin_of_solution|>\n{}\n<|end_of_solution|>\n",
    "Command A": "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "Apertus": "<|inner_prefix|>Hm.<|inner_suffix|>{}",
    "Gemma": "<|channel>thought\nHm.<channel|>{}",
    "Kimi K3": "<|open|>think<|sep|>Hm.<|close|>think<|sep|><|open|>response<|sep|>{}<|close|>response<|sep|>",
    "Hunyuan": "<think>\nHm.\n</think>\n<answer>\n{}\n</answer>",
    "Granite": "<think>Hm.</think><response>{}</response>",
    "gpt-oss": "<|channel|>analysis<|message|>Hm [2].<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>Hm.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "gpt-oss, the answer alone": "<|channel|>final <|constrain|>json<|message|>{}",
    "gpt-oss without special tokens": "analysisWe need [2].assistantfinal{}",
}

BEGUN_INSIDE = {
    "R1, its template opens": "The user asks [2].\n</think>\n\n{}",
    "Kimi": "So it is that.</think>{}",
    "Magistral": "Hm.[/THINK]{}",
    "nothing thought": "\n</think>\n\n{}",
    "code that is closed": "```\nx\n```\nSo `</think>` ends it.\n</think>\n{}",
    "twice": "Hm.</think><think>Hm.</think>{}",
    "Hunyuan": "Hm.</think><answer>{}</answer>",
}

ANSWERS = [
    "", " ", "It ranks. [1]", "  It ranks.\n", "<", "<t", "<thin", "<think", "[", "[1]", "[1] It ranks", "[THIN",
    "<thinker>", "< think>", "◁", "a < b", "analysis of variance", "analysis", "assistantfinal", "<|channel|>",
    "<answer>42</answer>", "<response>", "DeepSeek writes <think>first</think> and then answers.",
    "Use <think> for thoughts.", "End it with `</think>`.", "`<think>` begins it, `</think>` ends it.",
    "Put\n```\n</think>\n```\ninto the template.", "~~~\n</think>\n~~~", "x</think", "It ranks.</thin", "<|end|>",
    "It ranks. […]",
]  # fmt: skip

ENDS_INSIDE = [
    "<think>", "<think>Hm", "<think>Hm […]", "<think>Hm</think", "<think>`</think>`", "<think>a</think><think>b",
    "[THINK]Hm", "<|channel|>analysis<|message|>Hm", "<|channel|>analysis<|message|>Hm<|end|>",
    "<|channel|>final", "analysisWe", "<think>Hm</think>", "<think>Hm</think>\n\n", "<think>Hm</think> […]",
    "Hm</think>", "<think>Hm</think><answer></answer>", "<think>Hm</think><answer> […]",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_thoughts_before_an_answer_are_removed(form: str) -> None:
    assert read(form.replace("{}", ANSWER)) == (ANSWER, ANSWER, False)
    assert read(*form.replace("{}", ANSWER)) == (ANSWER, ANSWER, False), "letter by letter"


@pytest.mark.parametrize("form", BEGUN_INSIDE.values(), ids=BEGUN_INSIDE)
def test_a_thought_opened_in_the_prompt(form: str) -> None:
    reply = form.replace("{}", ANSWER)
    assert read(reply) == (ANSWER, ANSWER, True)
    assert read(*reply)[::2] == (ANSWER, True)
    assert read(*reply, wait=True) == (ANSWER, ANSWER, True)


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_unchanged(answer: str) -> None:
    assert read(answer) == read(*answer) == (answer, answer, False)
    if not answer.endswith("[…]"):
        assert read(*answer, wait=True) == (answer, answer, False)


@pytest.mark.parametrize("reply", ENDS_INSIDE)
def test_a_reply_without_an_answer_is_an_error(reply: str) -> None:
    assert read(reply)[0] is None
    assert read(*reply)[0] is None
    thoughts = ThoughtFilter("qwen")
    thoughts.feed(reply)
    with pytest.raises(LLMResponseError, match=r"'qwen' .*Raise max_tokens, or turn its thinking off"):
        thoughts.finish()


def test_a_model_that_begins_inside_thoughts_is_cut_inside_one() -> None:
    assert read("The user asks […]")[0] == "The user asks […]"
    assert read("The user asks […]", wait=True) == (None, "", False)


def test_an_answer_is_passed_on_as_it_arrives() -> None:
    thoughts = ThoughtFilter("m")
    pieces = ["<thi", "nk>Hm.</th", "ink>", "\n\n", "It ", "ranks <", "b>well", "</b>."]
    assert [thoughts.feed(piece) for piece in pieces] == ["", "", "", "", "It", " ranks", " <b>well", "</b>."]
    plain = ThoughtFilter("m")
    assert [plain.feed(piece) for piece in ("It ", "ranks <", "think")] == ["It ", "ranks <", "think"]


PARTS = sorted({part for marks in FORMS.values() for part in marks.split("{}")} | {"</think>", "`", "```", "\n", "[…]"})
REPLIES = st.lists(st.sampled_from([*PARTS, *ANSWERS, "<", "think>", "/"]) | st.text(max_size=5), max_size=6).map(
    "".join
)


def cut(reply: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(reply) + 1) for place in places} | {0, len(reply)})
    return [reply[start:end] for start, end in itertools.pairwise(ends)]


@given(REPLIES, st.lists(st.integers(0, 10**6), max_size=12), st.booleans())
@example("`</think>`", [9], False)
@example("a`</think>", [1], False)
@example("<think>`</think>`</think>b", [16], False)
@example("<think>a</think>b \n", [17], False)
def test_the_splitting_into_pieces_does_not_matter(reply: str, places: list[int], wait: bool) -> None:
    whole = read(reply, wait=wait)
    pieces = read(*cut(reply, places), wait=wait)
    assert (pieces[0], pieces[2]) == (whole[0], whole[2])
    assert read(*reply, wait=wait)[::2] == whole[::2]
    if whole[0] is not None and (wait or not whole[2]):
        assert pieces[1] == whole[0], "what is passed on is the answer"


@given(st.text(st.characters(exclude_characters="<[◁s")))
def test_a_text_without_marks_is_the_answer(text: str) -> None:
    assert read(*text)[0] == text


@given(st.text(st.characters(exclude_characters="<`")), st.text(st.characters(exclude_characters="<[◁a"), min_size=1))
def test_no_part_of_a_thought_remains(thought: str, answer: str) -> None:
    assert read(*f"<think>{thought}</think>{answer}")[0] == (answer.lstrip() or None)


def test_a_long_reply_takes_linear_time() -> None:
    thought = "<think>" + "`</think>` < " * 20_000 + "</think>"
    assert read(*thought, *"It ranks. " * 20_000)[0] == "It ranks. " * 20_000
    assert read(*"`</think>` </thin" * 500)[0] is not None
    assert read("<think>Hm.</think>It" + " " * 100_000 + "ranks.", " " * 100_000, "</think>")[0] is not None
