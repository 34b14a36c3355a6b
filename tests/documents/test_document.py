from __future__ import annotations

import pytest

from ragkit.documents.document import Document, Mark
from ragkit.documents.language import detect_language


def test_headings_and_pages_by_offset() -> None:
    marks = (
        Mark(0, "page", "1", 0),
        Mark(10, "heading", "A", 1),
        Mark(20, "heading", "A.1", 3),
        Mark(30, "page", "2", 0),
        Mark(40, "heading", "A.2", 2),
        Mark(50, "heading", "B", 1),
    )
    document = Document(id="x", text="." * 60, source="x", title="x", marks=marks)
    assert document.headings_at(9) == ()
    assert document.headings_at(10) == ("A",)
    assert document.headings_at(35) == ("A", "A.1")
    assert document.headings_at(45) == ("A", "A.2")  # level 2 is not above level 3
    assert document.headings_at(59) == ("B",)
    assert [document.page_at(offset) for offset in (0, 29, 30, 59)] == [1, 1, 2, 2]
    assert Document(id="x", text="", source="x", title="x").page_at(0) is None


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The quick brown fox jumps over the lazy dog and runs away.", "en"),
        ("Le renard brun saute par-dessus le chien paresseux et s'enfuit.", "fr"),
        ("Der schnelle braune Fuchs springt über den faulen Hund und läuft weg.", "de"),
        ("12 + 34 = 46", "und"),
        ("", "und"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_language_among_a_few() -> None:
    assert detect_language("le chat", among={"en", "fr"}) == "fr"
    assert detect_language("42", among={"en", "fr"}, default="en") == "en"
