from __future__ import annotations

import itertools
import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.chunking import segmentation
from ragkit.chunking.segmentation import sentence_ends
from tests.chunking.test_structure import TEXTS


def sentences(text: str, language: str) -> list[str]:
    parts = [text[a:b].strip() for a, b in itertools.pairwise([0, *sentence_ends(text, language)])]
    return [part for part in parts if part]


@pytest.mark.parametrize(
    "expected",
    [
        ["M. Dupont et Mme. Durand habitent au n° 5, av. Foch.", "Ils sont deux."],
        ["Voir l'art. L. 123-4 du code, p. ex. l'al. 2.", "Cf. p. 12 et suiv. du livre."],
        ["Selon l’article R. 421-1 du C. civ. le délai est de 2 mois.", "Tél. : 01 23 45 67 89."],
        ["Ouvert de 9 h. à 17 h. tous les jours.", "Il part à 8 h.", "C'est tout !"],
        ["Né en 44 av. J.-C. à Rome.", "J. K. Rowling écrit.", "Le Dr. Martin lit."],
        ["Vol. 3, chap. 2, éd. Gallimard, t. II, fig. 4.", "Les S.A.R.L. sont nombreuses."],
        ["Où ça ?", "Là !", "« Vraiment ? » dit-elle.", "Il attendit… en vain."],
        ["Il a vu le film.", "Elle aussi.", "Ça va.", "On y va."],
        ["1. Premier point.", "2. Second point."],
    ],
)
def test_french(expected: list[str]) -> None:
    assert sentences(" ".join(expected), "fr") == expected


@pytest.mark.parametrize(
    "expected",
    [
        ["Dr. Smith went to Washington D.C. yesterday.", 'He said "Hello. How are you?"', "Then he left."],
        ["See fig. 3, p. 12, i.e. the plot.", "It cost $3.50.", "No. 5 is alive.", "The U.S. Senate voted."],
        ["1. First point.", "2. Second, e.g. Foo vs. Prof. Bar.", "i am here.", "so what?"],
        ["Set env. variables as in art. 5, cf. 6 et al. 7.", "Plan B.", "Then plan C."],
    ],
)
def test_english(expected: list[str]) -> None:
    assert sentences(" ".join(expected), "en") == expected


def test_a_blank_line_always_ends_a_sentence() -> None:
    assert sentences("Le code pénal, art.\n\nsuite du texte", "fr") == ["Le code pénal, art.", "suite du texte"]


def test_an_unknown_language_uses_english_rules() -> None:
    text = "Mr. Smith asks. Who answers? Nobody."
    assert sentences(text, "und") == sentences(text, "en") == ["Mr. Smith asks.", "Who answers?", "Nobody."]


@given(text=TEXTS, language=st.sampled_from(["en", "fr", "de", "zh", "ar", "und", "xx", ""]))
def test_ends_are_sorted_and_within_the_text(text: str, language: str) -> None:
    ends = sentence_ends(text, language)
    assert ends == sorted(set(ends))
    assert all(0 < end <= len(text) for end in ends)


WIDE_SPACES = [c for c in map(chr, range(0x80, 0x10000)) if c.isspace()]


@pytest.mark.parametrize("space", WIDE_SPACES, ids=lambda c: f"U+{ord(c):04X}")
def test_any_space_between_a_capital_letter_and_a_full_stop(space: str) -> None:
    """sentencex itself panics there."""
    text = f"Oranges hold vitamin C{space}. And so do lemons.{space}Apples do not."
    assert sentences(text, "en") == [f"Oranges hold vitamin C{space}.", "And so do lemons.", "Apples do not."]
    for language in ("fr", "de", "ar", "zh", "und"):
        assert sentence_ends(text, language)[-1] == len(text)


@pytest.mark.parametrize("error", ["panic", "exception"])
def test_a_simple_rule_replaces_a_splitter_that_fails(error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation, "_WIDE_SPACE", re.compile(r"(?!)"))  # so that sentencex panics
    text = "Oranges hold vitamin C\u00a0. And so “do lemons.” Do apples?"
    if error == "exception":
        text += " A lone surrogate: \ud800."
    assert sentences(text, "en")[:3] == ["Oranges hold vitamin C\u00a0.", "And so “do lemons.”", "Do apples?"]


SIGNS = [c for c in map(chr, range(0x2100)) if unicodedata.category(c)[0] in "PZ"]
HOSTILE = st.lists(
    st.one_of(
        st.sampled_from(WIDE_SPACES),
        st.sampled_from(SIGNS),
        st.sampled_from(
            ["C", "É", "a", "0", "Dr", "M.", "U.S.A", "e.g", "e\u0301", "。", "中", "\u200b", "😀", "\n\n", " "]
        ),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
).map("".join)


@given(text=HOSTILE, language=st.sampled_from(["en", "fr", "de", "es", "ru", "zh", "ar", "hi", "und", "xx", ""]))
def test_any_text_can_be_segmented(text: str, language: str) -> None:
    ends = sentence_ends(text, language)
    assert ends == sorted(set(ends))
    assert all(0 < end <= len(text) for end in ends)
