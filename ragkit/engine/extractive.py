"""The parts of passages that answer a question best, as they can be quoted.

A passage is cut into pieces that make sense by themselves: a sentence, a list item with the line that introduces the
list, a code block with its lead-in line, a table row with its header. A heading alone is not one, nor is a question.
Markdown is read by its grammar, plain text by its lines; where sentences end, `ragkit.chunking.segmentation` says.

A piece's relevance is the cosine of question and piece (read under its headings), plus the share of the question's
words that the piece holds, plus the share that its passage holds. Words are stems, weighted by their rarity among the
pieces. Cosine alone knows too little where the embedder does not know the language, and words help everywhere: on
three sets of questions, two English and one French, the sum put a right piece first more often than either part.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragkit.cancellation import never
from ragkit.chunking.segmentation import sentence_ends
from ragkit.chunking.spans import Span, parts, trimmed
from ragkit.embedding.base import Embedder
from ragkit.errors import OperationCancelled
from ragkit.llm.prompt import Prompt, abstention, place_of
from ragkit.retrieval.lexical import tokenize
from ragkit.retrieval.query import SearchQuery

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_MIN_RELEVANCE = 0.52
_MIN_RELEVANCE_UNKNOWN_LANGUAGE = 0.66  # cosines are higher all round: the model mostly sees "this is French"
_PIECE_WEIGHT, _PASSAGE_WEIGHT = 0.5, 0.3
_MOST_COMPARED = 24  # pieces, those that share most words: beyond, none of 247 questions lost a right quote
_NEAR_BEST = 0.80  # a second quote must be at least this near to the first one's relevance
_SAME_WORDS = 0.8  # Jaccard similarity of two quotes that say the same

_LONGEST_WHOLE = 500  # characters: up to here a list is quoted whole, with the line that introduces it
_WIDEST_WRAP = 120  # characters: longer lines are paragraphs, not wrapped text
_LONGEST_HEADING = 80  # characters: of a line in plain text that is a heading by its looks
_LEAD = re.compile(r"[:：][*_`\s]*$")
_BULLET = re.compile(r"\s*(?:[-*+•–]|\d{1,3}[.)])\s+")
_FULL_STOP = re.compile(r"[.!?…][*_`\"'»”’)\]]*$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A piece that was chosen.

    Attributes:
        passage: Position of its passage.
        text: The words to show; as in the passage, but for white space.
        block: Whether it has lines of its own: code, a table, a list.
        relevance: Comparable for one embedder and language only.
    """

    passage: int
    text: str
    block: bool
    relevance: float

    def cited(self, number: int) -> str:
        """The quote with its ``[number]``. Numbers in brackets in the text itself, as in ``[12]``, become ``(12)``."""
        if "```" in self.text or "~~~" in self.text:
            return f"{self.text}\n[{number}]"
        text = re.sub(r"\[(\d+(?:[\s,;–-]+\d+)*)\]", r"(\1)", self.text)
        return f"{text}\n[{number}]" if text.endswith("|") else f"{text} [{number}]"


def best_quotes(
    question: str,
    passages: Sequence[str],
    *,
    contexts: Sequence[str] = (),
    embedder: Embedder,
    language: str,
    max_quotes: int = 3,
    min_relevance: float | None = None,
) -> list[Quote]:
    """Choose the pieces of passages that fit a question best, those of the best passage first.

    Args:
        question: In any language; it should be the passages'. A `SearchQuery` that this embedder has embedded is not
            embedded again.
        passages: Markdown or plain text.
        contexts: Title and headings of each passage, if they are known.
        embedder: Compares question and pieces.
        language: ISO 639-1 code of the question; "und" if unknown.
        max_quotes: At most so many; fewer if the rest is much less relevant, or says the same again.
        min_relevance: If no piece reaches it, there are no quotes. None takes a value measured for all-MiniLM-L6-v2,
            a higher one for languages that the embedder was not trained for.

    Raises:
        EmbeddingError: The embedder failed.
    """
    found = [(n, piece) for n, passage in enumerate(passages) for piece in pieces(passage, language=language)]
    if not found:
        return []
    texts = [piece.text(passages[n]) for n, piece in found]
    headings = [f"{context}: " if context else "" for context in contexts] or [""] * len(passages)

    asked = frozenset(tokenize(question, language))
    held = [asked.intersection(tokenize(text, language)) for text in texts]
    weights = {word: _rarity(sum(word in words for words in held), len(held)) for word in asked}
    total = sum(weights.values()) or 1.0
    passage_words = [asked.intersection(tokenize(h + p, language)) for h, p in zip(headings, passages, strict=True)]
    words_shared = [
        _PIECE_WEIGHT * sum(weights[word] for word in words) / total
        + _PASSAGE_WEIGHT * sum(weights[word] for word in passage_words[n]) / total
        for (n, _), words in zip(found, held, strict=True)
    ]
    # Embedding is what takes the time. The stable sort keeps the passages' order among equals.
    compared = sorted(range(len(found)), key=lambda i: -words_shared[i])[:_MOST_COMPARED]
    vectors = embedder.embed([headings[found[i][0]] + texts[i] for i in compared])
    query = question if isinstance(question, SearchQuery) else SearchQuery(question)
    cosines = vectors @ query.embedded_by(embedder)
    relevance = {i: words_shared[i] + float(cosine) for i, cosine in zip(compared, cosines, strict=True)}

    known = embedder.languages is None or language in embedder.languages
    if min_relevance is None:
        min_relevance = _MIN_RELEVANCE if known else _MIN_RELEVANCE_UNKNOWN_LANGUAGE
    least = max(min_relevance, _NEAR_BEST * max(relevance.values()))
    chosen: list[int] = []
    for i in sorted(compared, key=lambda i: -relevance[i]):
        if len(chosen) == max_quotes or relevance[i] < least:
            break
        if not any(_same(texts[i], texts[j]) for j in chosen):
            chosen.append(i)
    # Best passage first, but what stands in one passage in the order in which it was written.
    order = list(dict.fromkeys(found[i][0] for i in chosen))
    chosen.sort(key=lambda i: (order.index(found[i][0]), i))
    return [
        Quote(
            passage=found[i][0],
            text=texts[i] if found[i][1].block else _in_one_line(texts[i]),
            block=found[i][1].block,
            relevance=relevance[i],
        )
        for i in chosen
    ]


def _in_one_line(text: str) -> str:
    bullet = _BULLET.match(text)
    return " ".join(text[bullet.end() if bullet else 0 :].split())


def _rarity(holding: int, pieces: int) -> float:
    """Robertson and Spärck Jones's inverse document frequency, never negative (as in Lucene)."""
    return math.log(1 + (pieces - holding + 0.5) / (holding + 0.5))


def _same(one: str, other: str) -> bool:
    """Tell whether two quotes say the same. Sentences that differ in a number do not."""
    words, others = (set(re.findall(r"\w+", text.lower())) for text in (one, other))
    if {word for word in words ^ others if word.isdigit()}:
        return False
    return len(words & others) >= _SAME_WORDS * len(words | others)


# ------------------------------------------------------------------------------------------ pieces


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a passage that can be quoted.

    Attributes:
        spans: What to quote, as offsets in the passage, in order: what introduces the piece, and the piece.
        block: Whether it needs lines of its own: code, a table, a list.
    """

    spans: tuple[Span, ...]
    block: bool = False

    def text(self, passage: str) -> str:
        """The words to quote, a line for each span."""
        return "\n".join(passage[start:end] for start, end in self.spans)


def pieces(passage: str, *, language: str) -> list[Piece]:
    """Find what can be quoted in a passage, in the order of the text.

    Args:
        passage: Markdown or plain text.
        language: ISO 639-1 code, for the ends of sentences.
    """
    blocks = list(_blocks(passage))
    found = [piece for piece in _introduced(passage, blocks, language) if _says_something(piece.text(passage))]
    # Nothing but fragments: then they are all that there is to quote.
    return found or [Piece((span,)) for kind, span in blocks if kind in {"line", "item"}]


@functools.cache
def _grammar() -> MarkdownIt:
    from markdown_it import MarkdownIt

    # Indented code and HTML are what plain text and PDF pages look like; link definitions would vanish.
    return MarkdownIt("commonmark").enable("table").disable(["code", "html_block", "reference"])


def _says_something(text: str) -> bool:
    words = len(re.findall(r"\w+", text))
    return (words >= 3 or len(text) >= 20) and not text.rstrip("*_`\"'»”) ").endswith("?")


def _blocks(passage: str) -> Iterator[tuple[str, Span]]:
    """Leaf blocks: heading, fence, table (its header and rule), row, item (a paragraph of a list), line."""
    line_ends = re.finditer(r"\r\n?|\n", passage)  # what the grammar takes for one
    starts = [0, *(match.end() for match in line_ends), len(passage) + 1]
    lists = 0
    for token in _grammar().parse(passage):
        lists += {"list_item_open": 1, "list_item_close": -1}.get(token.type, 0)
        if token.map is None:
            continue
        first, last = token.map
        span = trimmed(passage, starts[first], min(starts[last] - 1, len(passage)))
        if span[0] >= span[1]:  # blank, but for the grammar
            continue
        match token.type:
            case "heading_open" | "fence":
                yield token.type.removesuffix("_open"), span
            case "thead_open":
                yield "table", trimmed(passage, span[0], starts[first + 2] - 1)
            case "tr_open":
                yield "row", span
            case "paragraph_open" if lists:
                yield "item", span
            case "paragraph_open":
                for line in _unwrapped(passage, span):
                    yield "line", line


def _unwrapped(passage: str, paragraph: Span) -> Iterator[Span]:
    """Join the lines that a sentence was wrapped into.

    A line break is meant as one if the next line's first word would have fitted before it.
    """
    lines = [m.span() for m in re.compile(r"[^\s\n][^\n]*").finditer(passage, *paragraph)]
    width = max(end - start for start, end in lines)
    begin = lines[0][0]
    for (start, end), (following, stop) in itertools.pairwise(lines):
        word = passage[following:stop].split(maxsplit=1)[0]
        if (
            width > _WIDEST_WRAP
            or end - start + 1 + len(word) <= width
            or _BULLET.match(passage, following)
            or _LEAD.search(passage[start:end])
        ):
            yield begin, end
            begin = following
    yield begin, lines[-1][1]


def _introduced(passage: str, blocks: Sequence[tuple[str, Span]], language: str) -> Iterator[Piece]:
    """Give each block, or each sentence of it, what introduces it: a lead-in line, a table's header."""
    lead: Span | None = None
    items: list[Span] = []  # a list, or the lines under a lead-in, as far as it is read
    header: Span = (0, 0)

    def finished() -> Iterator[Piece]:
        nonlocal lead
        if lead and items and items[-1][1] - lead[0] <= _LONGEST_WHOLE:
            yield Piece(((lead[0], items[-1][1]),), block=True)
        else:
            for item in items:
                yield Piece((lead, item), block=True) if lead else Piece((item,))
        items.clear()
        lead = None

    for number, (kind, span) in enumerate(blocks):
        text = passage[slice(*span)]
        if kind == "fence":
            begin = lead[0] if lead and not items else span[0]
            yield from finished()
            yield Piece(((begin, span[1]),), block=True)
        elif kind == "table":
            yield from finished()
            header = span
        elif kind == "row":
            if span[0] > header[1]:  # the header itself is a row too
                adjoins = not passage[header[1] : span[0]].strip()
                yield Piece(((header[0], span[1]),) if adjoins else (header, span), block=True)
        elif kind == "heading":
            yield from finished()
        elif _LEAD.search(text):
            yield from finished()
            *before, lead = parts(passage, span, sentence_ends(text, language)) if kind == "line" else [span]
            yield from (Piece((sentence,)) for sentence in before)
        elif kind == "item":
            items.append(span)
        elif lead and (not items or blocks[number - 1][0] == "line"):
            items.append(span)
            if _FULL_STOP.search(text):
                yield from finished()
        else:
            yield from finished()
            looks_like_heading = len(text) <= _LONGEST_HEADING and not _FULL_STOP.search(text)
            if not looks_like_heading or number + 1 == len(blocks):
                yield from (Piece((sentence,)) for sentence in parts(passage, span, sentence_ends(text, language)))
    yield from finished()


class ExtractiveLLM:
    """Answers with the sentences of the passages that fit the question best, each with its citation.

    No model beyond the embedder. It cannot say anything that the documents do not say; when nothing is close
    enough to the question, it abstains.

    Args:
        embedder: Compares question and sentences.
        max_quotes: Sentences (or code blocks, list items, table rows) in an answer, at most.
        min_relevance: Abstain if no sentence reaches it; see `ragkit.engine.extractive` for what it is made of.
            None takes a value measured for all-MiniLM-L6-v2; other models spread their cosines differently, so set it
            for them.
    """

    generative = False

    def __init__(self, embedder: Embedder, *, max_quotes: int = 3, min_relevance: float | None = None) -> None:
        self.name = "extractive"
        self.embedder = embedder
        self.max_quotes = max_quotes
        self.min_relevance = min_relevance

    def __repr__(self) -> str:
        return f"ExtractiveLLM({self.embedder!r}, max_quotes={self.max_quotes}, min_relevance={self.min_relevance})"

    def identity(self) -> dict[str, object]:
        """Say what its answers depend on; see `ragkit.experiments.fingerprint`."""
        return {"embedder": self.embedder, "max_quotes": self.max_quotes, "min_relevance": self.min_relevance}

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Iterator[str]:
        """See `LLM.stream`: a piece for each quote, or exactly `abstention`. Raises EmbeddingError too."""
        if cancelled():
            raise OperationCancelled("The answer was cancelled.")
        quotes = best_quotes(
            prompt.question,
            [passage.text for passage in prompt.passages],
            contexts=[place_of(passage) for passage in prompt.passages],
            embedder=self.embedder,
            language=prompt.language,
            max_quotes=self.max_quotes,
            min_relevance=self.min_relevance,
        )
        if not quotes:
            yield abstention(prompt.language)
        for position, quote in enumerate(quotes):
            if cancelled():
                raise OperationCancelled("The answer was cancelled.")
            yield ("\n\n" if position else "") + quote.cited(prompt.passages[quote.passage].number)
