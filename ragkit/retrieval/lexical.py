"""Text analysis for lexical search: index terms and BM25."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Set
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from Stemmer import Stemmer

_WORD = re.compile(r"[^\W_]+")

_SNOWBALL = {
    "ar": "arabic", "da": "danish", "de": "german", "en": "english", "es": "spanish", "fi": "finnish",
    "fr": "french", "hu": "hungarian", "it": "italian", "nl": "dutch", "no": "norwegian", "pt": "portuguese",
    "ro": "romanian", "ru": "russian", "sv": "swedish", "tr": "turkish",
}  # fmt: skip


def tokenize(text: str, language: str) -> list[str]:
    """Split a text into index terms.

    Terms are lower-case Snowball stems (Porter 2001) without accents; stop words are removed. So are elided
    articles (l', d'); other single letters stay, because of "permis B". Accents are removed before stemming,
    although the French stemmer knows them: a question typed without accents then finds as much as one with
    accents, and the latter loses nothing measurable (``make bench-retrieval`` prints both).

    Args:
        text: Any text.
        language: ISO 639-1 code; "und" if unknown.
    """
    stemmer, stop_words = _stemmer(language)
    words = _WORD.findall(_fold(text.casefold()))
    kept = [word for word in words if word not in stop_words]
    return stemmer.stemWords(kept) if stemmer is not None else kept


def is_same_question(terms: Set[str], others: Set[str]) -> bool:
    """Return whether two questions are near-duplicates: their overlap coefficient is above 0.75.

    The overlap coefficient (Szymkiewicz, Simpson) is the share of the shorter question's terms that both contain.
    """
    return len(terms & others) > 0.75 * min(len(terms), len(others))


@functools.cache
def _stemmer(language: str) -> tuple[Stemmer | None, frozenset[str]]:
    from bm25s.tokenization import Tokenizer
    from Stemmer import Stemmer

    try:
        stop_words = frozenset(map(_fold, Tokenizer(stopwords=language).stopwords))
    except ValueError:  # bm25s has no list for this language
        stop_words = frozenset()
    return (Stemmer(_SNOWBALL[language]) if language in _SNOWBALL else None), stop_words


def _fold(text: str) -> str:
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text).replace("œ", "oe").replace("æ", "ae")  # no Unicode decomposition
    return "".join(c for c in decomposed if not unicodedata.combining(c))


class BM25Scores:
    """bm25s over token lists. A query costs one sparse matrix product."""

    def __init__(self, tokens: list[list[str]], *, k1: float = 1.2, b: float = 0.75) -> None:
        import bm25s

        self._empty = not any(tokens)
        if not self._empty:
            self._model: Any = bm25s.BM25(method="lucene", k1=k1, b=b)
            self._model.index(tokens, show_progress=False)
        self._size = len(tokens)

    def scores(self, query: list[str]) -> npt.NDArray[np.float32]:
        """Return the scores of all texts, shape (n,)."""
        known = [] if self._empty else self._model.get_tokens_ids(query)
        if not known:
            return np.zeros(self._size, dtype=np.float32)
        found: npt.NDArray[np.float32] = self._model.get_scores(known)
        return found


def best_of(scores: npt.NDArray[np.float32], depth: int, *, positive: bool = False) -> dict[int, float]:
    """Return the ``depth`` best as {position: score}; with ``positive``, only scores above zero."""
    depth = min(depth, len(scores))
    best = np.argpartition(scores, -depth)[-depth:] if depth else np.zeros(0, dtype=np.int64)
    if positive:
        best = best[scores[best] > 0]
    return dict(zip(best.tolist(), scores[best].tolist(), strict=True))
