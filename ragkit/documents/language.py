"""Which language a text is in."""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from collections.abc import Collection
from typing import Any

from ragkit.cancellation import is_fatal
from ragkit.documents.document import Document
from ragkit.errors import DocumentError, summary

_LANGUAGE_SAMPLE = 5_000  # characters: more makes no better a guess

_FEWEST_LETTERS = 20


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


def with_language(document: Document) -> Document:
    """Return the document with its language guessed, if its file did not say.

    Raises:
        DocumentError: The guess failed.
    """
    if document.language != "und":
        return document
    try:
        language = detect_language(document.text)
    except BaseException as error:
        if is_fatal(error):
            raise
        raise DocumentError(document.source, f"its language cannot be guessed: {summary(error)}") from error
    return dataclasses.replace(document, language=language)


@functools.cache
def _identifier() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
