"""Operations on spans of a text: divide spans that are too long, pack short ones.

A `Span` is a pair of offsets (start, end). Every operation keeps all of the text except white space.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from ragkit.chunking.segmentation import sentence_ends

Span = tuple[int, int]
CountTokens = Callable[[Sequence[str]], list[int]]
Splitter = Callable[[str], list[int]]
"""Returns the offsets at which a text may be split."""

# A span counts at least one token per 16 characters: some tokenizers count an unknown word of any length as one token,
# and a chunk of a megabyte is useless as a passage.
CHARACTERS_PER_TOKEN = 16


def trimmed(text: str, start: int, end: int) -> Span:
    """Strip white space from both ends of a span."""
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def parts(text: str, span: Span, ends: Sequence[int]) -> list[Span]:
    """Split a span at these offsets of its text. White space between the parts is dropped."""
    start, end = span
    bounds = [start, *(start + e for e in ends), end]
    found = [trimmed(text, a, b) for a, b in itertools.pairwise(bounds)]
    return [(a, b) for a, b in found if a < b]


def by(pattern: str, *, every: int = 1) -> Splitter:
    """Return a splitter that splits after each match of a pattern, or after every n-th match."""
    compiled = re.compile(pattern)
    return lambda text: [match.end() for match in compiled.finditer(text)][every - 1 :: every]


def by_sentences(language: str) -> Splitter:
    """Return a splitter that splits after sentences, by the rules of a language (ISO 639-1; English if unknown)."""
    return lambda text: sentence_ends(text, language)


def word_cuts(max_tokens: int) -> list[Splitter]:
    """Return the splitters of last resort: by words, then by characters."""
    return [
        # A few words at a time: counting each word of a 10 MB line would dominate the running time.
        by(r"\s+", every=max(2, max_tokens // 8)),
        by(r"\s+"),
        # For words that are longer than a chunk: a hash, a data URL, or text without spaces.
        by(rf"(?s:.{{{max(1, max_tokens // 2)}}})"),
    ]


def counted(text: str, spans: Sequence[Span], count_tokens: CountTokens, *, max_tokens: int) -> list[int]:
    """Count each span's tokens in one call; estimate spans that are too long by their length alone."""
    floors = [(end - start) // CHARACTERS_PER_TOKEN for start, end in spans]
    # Spans that are too long will be split anyway; counting megabytes in each round would take seconds.
    uncertain = [text[start:end] for (start, end), floor in zip(spans, floors, strict=True) if floor <= max_tokens]
    counts = iter(count_tokens(uncertain) if uncertain else [])
    return [max(floor, next(counts)) if floor <= max_tokens else floor for floor in floors]


def divide(
    text: str, spans: Sequence[Span], cuts: Sequence[Splitter], count_tokens: CountTokens, *, max_tokens: int
) -> list[tuple[Span, int]]:
    """Split spans over the limit, with each splitter in turn until all fit; return the parts and their token counts."""
    known = list(zip(spans, counted(text, spans, count_tokens, max_tokens=max_tokens), strict=True))
    for cut in cuts:
        if all(tokens <= max_tokens for _, tokens in known):
            break
        finer = [
            [span] if tokens <= max_tokens else parts(text, span, cut(text[span[0] : span[1]]))
            for span, tokens in known
        ]
        new = [part for (_, tokens), group in zip(known, finer, strict=True) if tokens > max_tokens for part in group]
        counts = iter(counted(text, new, count_tokens, max_tokens=max_tokens))
        known = [
            (part, tokens if tokens <= max_tokens else next(counts))
            for (_, tokens), group in zip(known, finer, strict=True)
            for part in group
        ]
    return known


def pack(pieces: Sequence[tuple[Span, int]], *, max_tokens: int, overlap_tokens: int = 0) -> list[Span]:
    """Merge neighbouring pieces up to a limit.

    With an overlap, each span but the first begins with the last pieces of the previous span, if they fit.

    Args:
        pieces: Parts of a text in order, with their token counts.
        max_tokens: The limit.
        overlap_tokens: The most tokens that two neighbours may share.
    """
    packed: list[Span] = []
    first, size = 0, 0  # of the current span
    for at, (_, tokens) in enumerate(pieces):
        if at > first and size + tokens > max_tokens:
            packed.append((pieces[first][0][0], pieces[at - 1][0][1]))
            # Overlap by whole pieces, and leave room for the current one.
            room = min(overlap_tokens, max_tokens - tokens)
            before, first, size = first, at, 0
            while overlap_tokens and first - 1 > before and size + pieces[first - 1][1] <= room:
                first -= 1
                size += pieces[first][1]
        size += tokens
    if first < len(pieces):
        packed.append((pieces[first][0][0], pieces[-1][0][1]))
    return packed


def fit(text: str, spans: Sequence[Span], count_tokens: CountTokens, *, max_tokens: int) -> Iterator[Span]:
    """Halve spans that are still over the limit: the token counts of the parts need not add up to that of the whole.

    A span is also halved if it is far too long in characters, for example unknown words or white space.
    """
    longest = 2 * CHARACTERS_PER_TOKEN * max_tokens
    counts = count_tokens([text[start:end] for start, end in spans]) if spans else []
    for (start, end), tokens in zip(spans, counts, strict=True):
        if (tokens <= max_tokens and end - start <= longest) or end - start < 2:
            yield start, end
            continue
        middle = (start + end) // 2
        space = max(text.rfind(" ", start + 1, middle), text.rfind("\n", start + 1, middle))
        cut = space if space > start else middle
        halves = [trimmed(text, start, cut), trimmed(text, cut, end)]
        yield from fit(text, [(a, b) for a, b in halves if a < b], count_tokens, max_tokens=max_tokens)


def enforce_limit(text: str, spans: list[Span], count_tokens: CountTokens, *, max_tokens: int) -> list[Span]:
    """Apply `fit` to spans that may overlap. Drop halves that lie within a neighbour, so that spans always advance."""
    while (fitting := list(_advancing(fit(text, spans, count_tokens, max_tokens=max_tokens)))) != spans:
        spans = fitting  # terminates: each round makes some spans shorter and none longer
    return spans


def _advancing(spans: Iterable[Span]) -> Iterator[Span]:
    begun = reached = -1
    for start, end in spans:
        if end > reached:
            begun, reached = max(start, begun), end
            yield begun, end
