"""Sentence segmentation, for chunking and for quoting.

sentencex (the segmenter of Wikimedia's translation tool) knows the abbreviations of many languages. This module removes
false sentence ends from its results, above all in French, where it splits "M. Dupont", "art. L. 123-4" and
"à 9 h. du matin".
"""

from __future__ import annotations

import itertools
import re

from ragkit.cancellation import is_fatal

_WINDOW = 10_000  # characters that are segmented at a time
_LOOK_BACK = 24  # characters: longer than any abbreviation

# A heading's or an item's number: "1. Premier point."
_NUMBER = re.compile(r"\s*\d{1,3}\.\s*")

# Abbreviations that a word always follows, so that no sentence ends there, even before a capital letter;
# "8 h.", in contrast, may end a sentence.
_FRENCH_PREFIX = re.compile(
    r"(?:^|[^\w.])(?:(?<!\d.)[^\W\d_]|MM|Mmes?|Mlles?|Mgr|Drs?|Prs?|Mes?|Sts?|Stes?|[Aa]rt|[Aa]l|[Cc]f|pp|nos?|n°|[Vv]ol|[Cc]hap"
    r"|[Ff]ig|[ÉéEe]q|[ÉéEe]d|[Tt]ab|[Tt]él|[Bb]d|[Bb]oul|[Aa]v|[Ee]nv|[Ee]x|[Rr]éf|[Ii]bid|[Pp]aragr)\.\s*\Z"
)
# Before a lower-case letter, a short word with a full stop is an abbreviation ("9 h. du matin", "C. civ. et"), and the
# sentence continues after a question or an exclamation ("« Vraiment ? » dit-elle").
_FRENCH_OPEN = re.compile(r"(?:\b[^\W\d_]{1,5}\.|[?!…][\s»”\"]*)\s*\Z")
# In any language, no sentence ends at these before a lower-case letter or a digit ("env. variables", "art. 5").
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:[^\W\d_]|[Aa]rt|[Cc]f|al|[Ee]nv|etc)\.\s*\Z")
_BLANK_LINE = re.compile(r"\n\s*\n")

# sentencex panics at one of these between a capital letter and a full stop ("vitamin C\u00a0."), and handles ASCII
# white space better everywhere ("va\u00a0! oui").
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")
_END_MARK = re.compile(r"[.!?…][\"'»”’)\]]*\s+|[。！？]")


def sentence_ends(text: str, language: str) -> list[int]:
    """Find the ends of the sentences of a text.

    Args:
        text: Any text. The running time is linear in its length for any content.
        language: ISO 639-1 code; English rules apply if it is unknown.

    Returns:
        The character offset after each sentence, in order. White space may be on either side of an offset.
    """
    language = "en" if language == "und" else language
    ends: list[int] = []
    begin = 0
    for end in _found(text, language):
        if _is_end(text, begin, end, language):
            ends.append(end)
            begin = end
    return ends


def _found(text: str, language: str) -> list[int]:
    text = _WIDE_SPACE.sub(" ", text)  # the length stays the same
    ends: list[int] = []
    begin = 0
    while begin < len(text):
        # In windows: on hostile text (quotation marks that never close) the library takes quadratic time.
        window = text[begin : begin + _WINDOW]
        found_here, at = [], 0
        # Locate sentences by their text: the library's offsets are not always in characters.
        for sentence in _sentences(window, language):
            found = window.find(sentence, at)
            if found >= 0:
                at = found + len(sentence)
                found_here.append(begin + at)
        has_more = begin + len(window) < len(text)
        if has_more and len(found_here) > 1:
            found_here.pop()  # the end of the window, not of a sentence
        ends += found_here
        begin = found_here[-1] if has_more and found_here else begin + len(window)
    return ends


def _sentences(text: str, language: str) -> list[str]:
    import sentencex

    try:
        return [found["text"] for found in sentencex.get_sentence_boundaries(language, text)]
    except BaseException as error:  # a panic in native code is not an `Exception`
        if is_fatal(error):
            raise
        bounds = [0, *(mark.end() for mark in _END_MARK.finditer(text)), len(text)]
        return [text[start:end] for start, end in itertools.pairwise(bounds) if start < end]


def _is_end(text: str, begin: int, end: int, language: str) -> bool:
    if end == len(text):
        return True
    last = text[max(begin, end - _LOOK_BACK) : end]
    after = text[end : end + _LOOK_BACK]
    gap = last[len(last.rstrip()) :] + after[: len(after) - len(after.lstrip())]
    if _BLANK_LINE.search(gap):
        return True
    if end - begin < _LOOK_BACK and _NUMBER.fullmatch(last):
        return False
    following = after.lstrip()[:1]
    if (following.islower() or following.isdigit()) and _ABBREVIATED.search(last):
        return False
    if language != "fr":
        return True
    if _FRENCH_PREFIX.search(last) or (not gap and following == "-"):  # "J.-C."
        return False
    return not (following.islower() and _FRENCH_OPEN.search(last))
