"""Documents: a text, where it came from, and what stands where in it."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import unicodedata
from collections.abc import Collection, Mapping
from typing import Any, Literal

__all__ = ["Document", "Mark", "detect_language"]

_LANGUAGE_SAMPLE = 5_000  # characters: more makes no better a guess
_FEWEST_LETTERS = 20


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """Something that begins at an offset of the text: a heading with its level (from 1), or a page with its number."""

    start: int
    kind: Literal["heading", "page"]
    label: str
    level: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A text that can be indexed.

    Attributes:
        id: Names the document within its folder, the same in every run: its path with ``/``; a row of a JSONL file
            has ``path#row id``.
        text: The text; all offsets are characters of it. Encodable as UTF-8, lines end in ``\\n``.
        source: The file, as a person would open it.
        title: Shown with citations.
        language: ISO 639-1 code; "und" if unknown.
        marks: Headings and pages, by offset.
        metadata: What else the file says about itself.
    """

    id: str
    text: str = dataclasses.field(repr=False)
    source: str
    title: str
    language: str = "und"
    marks: tuple[Mark, ...] = dataclasses.field(default=(), repr=False)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def headings_at(self, offset: int) -> tuple[str, ...]:
        """The headings above an offset, outermost first."""
        path: list[Mark] = []
        for mark in self.marks:
            if mark.start > offset:
                break
            if mark.kind == "heading":
                path = [m for m in path if m.level < mark.level] + [mark]
        return tuple(mark.label for mark in path)

    def page_at(self, offset: int) -> int | None:
        """The page of an offset, from 1; None in a document without pages."""
        pages = [mark for mark in self.marks if mark.kind == "page"]
        at = bisect.bisect_right([mark.start for mark in pages], offset)
        return int(pages[at - 1].label) if at else None


def detect_language(text: str, *, among: Collection[str] | None = None, default: str = "und") -> str:
    """Guess a text's language by its byte n-grams (Lui and Baldwin 2012, the py3langid model; offline).

    Args:
        text: Any text; its first 5,000 characters count.
        among: ISO 639-1 codes to choose from; all that the model knows if None. Short texts need a short list.
        default: For a text without letters, or with too few to choose among all languages.
    """
    sample = text[:_LANGUAGE_SAMPLE]
    letters = sum(unicodedata.category(c).startswith("L") for c in sample)
    if letters < (1 if among is not None else _FEWEST_LETTERS):
        return default
    ranked: list[tuple[str, float]] = _identifier().rank(sample)
    # Three-letter codes are languages so rare that a guess of one is nearly always wrong.
    fitting = (language for language, _ in ranked if (len(language) == 2 if among is None else language in among))
    return next(fitting, default)


@functools.cache
def _identifier() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
