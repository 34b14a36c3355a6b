"""Language detection."""

from __future__ import annotations

import dataclasses
import functools
import unicodedata
from collections.abc import Collection
from typing import Any

from ragkit.cancellation import is_fatal
from ragkit.documents.document import Document
from ragkit.errors import DocumentError, summary

_LANGUAGE_SAMPLE = 5_000  # characters; a longer sample does not improve the guess

_FEWEST_LETTERS = 20


def detect_language(text: str, *, among: Collection[str] | None = None, default: str = "und") -> str:
    """Guess a text's language by its byte n-grams (Lui and Baldwin 2012, the py3langid model; offline).

    Args:
        text: Any text; only the first 5,000 characters are used.
        among: ISO 639-1 codes to choose from; None for all languages of the model. Short texts need a short list.
        default: The result for a text with too few letters: none, or fewer than 20 if `among` is None.
    """
    sample = text[:_LANGUAGE_SAMPLE]
    letters = sum(unicodedata.category(c).startswith("L") for c in sample)
    if letters < (1 if among is not None else _FEWEST_LETTERS):
        return default
    ranked: list[tuple[str, float]] = _identifier().rank(sample)
    # Three-letter codes are rare languages: a guess of one is nearly always wrong.
    fitting = (language for language, _ in ranked if (len(language) == 2 if among is None else language in among))
    return next(fitting, default)


def with_language(document: Document) -> Document:
    """Return the document with its language detected, unless its file declared one.

    Raises:
        DocumentError: Detection failed.
    """
    if document.language != "und":
        return document
    try:
        language = detect_language(document.text)
    except BaseException as error:
        if is_fatal(error):
            raise
        raise DocumentError(document.source, f"its language cannot be detected: {summary(error)}") from error
    return dataclasses.replace(document, language=language)


@functools.cache
def _identifier() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
