"""Query rewriters, with models that follow the instructions and models that do not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.embedding.hashed import HashEmbedder
from ragkit.engine.extractive import ExtractiveLLM
from ragkit.errors import InputError, LLMResponseError, LLMTimeoutError, OperationCancelled
from ragkit.experiments.fingerprint import identity
from ragkit.hashing import hash_values
from ragkit.llm.base import ScriptedLLM
from ragkit.retrieval.base import QueryRewriter
from ragkit.retrieval.rewriting import HyDE, MultiQuery
from ragkit.space import choose, expand

QUESTION = "How long may a passage be?"


def says(reply: str) -> ScriptedLLM:
    return ScriptedLLM([reply])


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("What is the longest passage?\nMaximum chunk size?", ["What is the longest passage?", "Maximum chunk size?"]),
        ("1. One way\n2) Two ways\n- Three ways\n• Four ways", ["One way", "Two ways", "Three ways"]),
        ("Here are three ways:\n\n* **Passage limit?**\n* `max tokens`", ["Passage limit?", "max tokens"]),
        ("Voici trois formulations :\n« Quelle longueur maximale ? »", ["Quelle longueur maximale ?"]),
        ("how long may a passage be\nPassage size\n  passage   SIZE?", ["Passage size"]),
        ("<think>1. Perhaps this?\nOr that?</think>\nChunk length limits", ["Chunk length limits"]),
        ("2.5 mm screws\n- 3 of them", ["2.5 mm screws", "3 of them"]),
        ("One\nTwo\nThree\nFour\nFive", ["One", "Two", "Three"]),
        ("Chunk length […]", ["Chunk length"]),
        ("How long may a passage be?", []),  # no paraphrase: not an error
    ],
)
def test_paraphrases(reply: str, found: list[str]) -> None:
    assert MultiQuery(says(reply)).rewrite(QUESTION, language="en") == [QUESTION, *found]


@pytest.mark.parametrize(
    ("passages", "reply", "found"),
    [
        (1, "A passage has at most\n254 tokens.\n", ["A passage has at most 254 tokens."]),
        (1, "One.\n---\nTwo.", ["One. --- Two."]),
        (1, '"Passages are short: **60** words."', ["Passages are short: **60** words."]),
        (2, "Passage 1: One.\n ---- \nPassage 2: Two.\n---\nThree.", ["One.", "Two."]),
        (3, "One.\n---\n---\none.", ["One."]),
    ],
)
def test_hypothetical_passages(passages: int, reply: str, found: list[str]) -> None:
    assert HyDE(says(reply), passages).rewrite(QUESTION, language="en") == [QUESTION, *found]


@pytest.mark.parametrize("reply", ["", " \n\t", "---\n***\n?!", "<think>What could it be?"])
@pytest.mark.parametrize("kind", [HyDE, MultiQuery])
def test_a_reply_without_words_is_an_error(kind: Any, reply: str) -> None:
    with pytest.raises(LLMResponseError, match="scripted"):
        kind(says(reply)).rewrite(QUESTION, language="en")


@pytest.mark.parametrize("kind", [HyDE, MultiQuery])
@given(reply=st.text())
def test_texts_from_any_reply_are_bounded_and_distinct(kind: Any, reply: str) -> None:
    try:
        found = kind(says(reply * 50), 4).rewrite(QUESTION, language="en")
    except LLMResponseError:
        return
    assert found[0] == QUESTION
    assert 1 <= len(found) <= 5
    assert len({text.casefold() for text in found}) == len(found)
    for text in found[1:]:
        assert 0 < len(text.encode()) <= 4_000
        assert "\n" not in text


def test_long_texts_are_cut_between_words() -> None:
    (_, passage) = HyDE(says("word " * 5_000)).rewrite(QUESTION, language="en")
    assert len(passage) <= 1_000
    assert set(passage.split()) == {"word"}
    (_, query) = MultiQuery(says("x" * 5_000), 1).rewrite(QUESTION, language="en")
    assert query == "x" * 300


def test_lone_surrogates_are_replaced() -> None:
    (_, text) = MultiQuery(says("half \ud83d a sign")).rewrite(QUESTION, language="en")
    assert text == "half ? a sign"


@pytest.mark.parametrize(
    ("language", "words"),
    [("fr", ("passage", "réponde")), ("en", ("passage", "answers")), ("de", ("passage", "answers"))],
)
def test_the_prompt_is_in_the_questions_language(language: str, words: tuple[str, ...]) -> None:
    system, user = HyDE(says("x")).messages("Quelle taille ?", language=language)
    assert user == {"role": "user", "content": "Quelle taille ?"}
    assert all(word in system["content"] for word in words)
    assert "---" not in system["content"]
    assert "---" in HyDE(says("x"), 2).messages("Quelle taille ?", language=language)[0]["content"]
    assert "4" in MultiQuery(says("x"), 4).messages("?", language=language)[0]["content"]


@pytest.mark.parametrize("kind", [HyDE, MultiQuery])
def test_errors_and_cancellation_of_the_model_are_passed_on(kind: Any) -> None:
    late = LLMTimeoutError("too late", model="m", base_url="u")
    with pytest.raises(LLMTimeoutError, match="too late"):
        kind(ScriptedLLM(["half"], error=late)).rewrite(QUESTION, language="en")
    with pytest.raises(OperationCancelled):
        kind(ScriptedLLM(["x"], delay_seconds=30)).rewrite(QUESTION, language="en", cancelled=lambda: True)


@pytest.mark.parametrize("kind", [HyDE, MultiQuery])
def test_bad_settings_are_rejected(kind: Any) -> None:
    with pytest.raises(InputError, match=f"{kind.__name__} needs a language model"):
        kind(ExtractiveLLM(HashEmbedder()))
    for count in (0, 11, 1.5, True):
        with pytest.raises(InputError, match="whole number from 1 to 10"):
            kind(says("x"), count)


def test_settings_may_be_choices() -> None:
    every: list[QueryRewriter] = [
        *expand(HyDE(says("a"), choose(1, 2))),
        *expand(MultiQuery(choose(says("a"), says("b")))),
    ]
    assert len({hash_values(identity(each)) for each in every}) == 4
    assert identity(HyDE(says("a"))) == identity(every[0])
