"""Where sentences end: for cutting documents into chunks, and for quoting them.

sentencex (the segmenter of Wikimedia's translation tool) knows the abbreviations of many languages. Of what it finds
in French, ends are taken back that are none: it parts "M. Dupont", "art. L. 123-4" and "à 9 h. du matin".
"""

from __future__ import annotations

import itertools
import re

from ragkit.cancellation import is_fatal

_WINDOW = 10_000  # characters that are looked at at a time
_LOOK_BACK = 24  # characters: longer than any abbreviation

# A heading's or an item's number: "1. Premier point."
_NUMBER = re.compile(r"\s*\d{1,3}\.\s*")

# What these stand for comes after them, so no sentence ends there, whatever the next letter;
# but "8 h." may be the last word.
_FRENCH_PREFIX = re.compile(
    r"(?:^|[^\w.])(?:(?<!\d.)[^\W\d_]|MM|Mmes?|Mlles?|Mgr|Drs?|Prs?|Mes?|Sts?|Stes?|[Aa]rt|[Aa]l|[Cc]f|pp|nos?|n°|[Vv]ol|[Cc]hap"
    r"|[Ff]ig|[ÉéEe]q|[ÉéEe]d|[Tt]ab|[Tt]él|[Bb]d|[Bb]oul|[Aa]v|[Ee]nv|[Ee]x|[Rr]éf|[Ii]bid|[Pp]aragr)\.\s*\Z"
)
# Before a small letter: a short word with a full stop is an abbreviation ("9 h. du matin", "C. civ. et"), and what
# was asked or called goes on ("« Vraiment ? » dit-elle").
_FRENCH_OPEN = re.compile(r"(?:\b[^\W\d_]{1,5}\.|[?!…][\s»”\"]*)\s*\Z")
# In any language: no end of a sentence before a small letter or a number ("env. variables", "art. 5").
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:[^\W\d_]|[Aa]rt|[Cc]f|al|[Ee]nv|etc)\.\s*\Z")
_BLANK_LINE = re.compile(r"\n\s*\n")

# sentencex panics where one of these stands between a capital letter and a full stop ("vitamin C\u00a0."), and knows
# ASCII white space better everywhere ("va\u00a0! oui").
_WIDE_SPACE = re.compile(r"[^\S\x00-\x7f]")
_END_MARK = re.compile(r"[.!?…][\"'»”’)\]]*\s+|[。！？]")


def sentence_ends(text: str, language: str) -> list[int]:
    """Find the ends of the sentences of a text.

    Args:
        text: Any text; work grows with its length, whatever it holds.
        language: ISO 639-1 code; English rules if unknown.

    Returns:
        Offsets after each sentence, of characters, in order; white space may stand on either side of one.
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
    text = _WIDE_SPACE.sub(" ", text)  # of the same length
    ends: list[int] = []
    begin = 0
    while begin < len(text):
        # On hostile text (quotation marks that never close) the library takes quadratic time.
        window = text[begin : begin + _WINDOW]
        found_here, at = [], 0
        # By their texts: the library's own offsets are not always characters.
        for sentence in _sentences(window, language):
            found = window.find(sentence, at)
            if found >= 0:
                at = found + len(sentence)
                found_here.append(begin + at)
        goes_on = begin + len(window) < len(text)
        if goes_on and len(found_here) > 1:
            found_here.pop()  # the window's end, not the sentence's
        ends += found_here
        begin = found_here[-1] if goes_on and found_here else begin + len(window)
    return ends


def _sentences(text: str, language: str) -> list[str]:
    import sentencex

    try:
        return [found["text"] for found in sentencex.get_sentence_boundaries(language, text)]
    except BaseException as error:  # native code: what it raises need not be an Exception
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
