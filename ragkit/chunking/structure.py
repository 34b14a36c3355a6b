"""The default chunker, which follows a document's structure.

Invariants of every chunker: ``document.text[chunk.start:chunk.end] == chunk.text`` for each chunk, and the chunks of a
document, in order, cover all of its text except white space.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from typing import Literal

from ragkit.chunking.base import Chunk, CountTokens, check_sizes, chunks_at, limit
from ragkit.chunking.spans import Splitter, by, by_sentences, counted, fit, parts, trimmed, word_cuts
from ragkit.documents.document import Document
from ragkit.embedding.base import Embedder
from ragkit.space import has_choices


@dataclasses.dataclass(frozen=True, slots=True)
class StructureChunker:
    """Split along the document's structure.

    Split at headings first, then between paragraphs, list items, table rows and code blocks, then between sentences
    (by the rules of the document's language), then at lines, words, and finally characters.

    Neighbouring pieces of a section are packed into chunks of similar size, up to ``max_tokens``. A heading of level
    1 to 3 begins a new chunk, unless the section above it is tiny and the section below fits as a whole. A heading
    stays with the text below it, a line that ends in a colon with the list or code that it introduces, and a table's
    header with the first row.

    Args:
        max_tokens: The most tokens in a chunk, by the embedder's tokenizer. The default leaves room for the headings,
            which are embedded with each chunk, within the 256 tokens that all-MiniLM-L6-v2 reads. Only a single
            character that counts for more tokens than this can exceed it.
    """

    max_tokens: int = 200

    def __post_init__(self) -> None:
        if not has_choices(self):
            check_sizes(self.max_tokens)

    @property
    def name(self) -> str:
        return f"structure(max_tokens={self.max_tokens})"

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        """See `Chunker.chunk`."""
        limit(self.max_tokens, embedder)
        count_tokens = embedder.count_tokens
        pieces = self._counted(document.text, _linked(document, list(_blocks(document))), count_tokens)
        pieces = self._divided(document, pieces, by_sentences(document.language), count_tokens, is_for_code=False)
        for cut in (by(r"\n"), *word_cuts(self.max_tokens)):
            pieces = self._divided(document, pieces, cut, count_tokens)
        sections = self._sections(self._units(pieces))
        packed = [found for section in sections for found in self._packed(section)]
        within = iter(packed)
        _, last, body = next(within, (0, 0, 0))
        spans, bodies = [], []
        whole = [(start, end) for start, end, _ in packed]
        for start, end in fit(document.text, whole, count_tokens, max_tokens=self.max_tokens):
            while start >= last:
                _, last, body = next(within)
            spans.append((start, end))
            bodies.append(min(max(body, start), end - 1))
        return chunks_at(document, spans, bodies)

    def _counted(self, text: str, pieces: list[_Piece], count_tokens: CountTokens) -> list[_Piece]:
        counts = counted(text, [(p.start, p.end) for p in pieces], count_tokens, max_tokens=self.max_tokens)
        return [dataclasses.replace(p, tokens=tokens) for p, tokens in zip(pieces, counts, strict=True)]

    def _divided(
        self,
        document: Document,
        pieces: list[_Piece],
        cut: Splitter,
        count_tokens: CountTokens,
        *,
        is_for_code: bool = True,
    ) -> list[_Piece]:
        """Split the pieces that are too long; count the tokens of all parts in one call."""
        parts: dict[int, list[_Piece]] = {}
        at = 0
        for unit in self._units(pieces):
            size = 0
            for piece in unit:
                if size + piece.tokens > self.max_tokens and (is_for_code or piece.kind != "code"):
                    parts[at] = _cut(document, piece, cut)
                size += piece.tokens
                at += 1
        new = iter(self._counted(document.text, [p for part in parts.values() for p in part], count_tokens))
        return [q for i, p in enumerate(pieces) for q in ([next(new) for _ in parts[i]] if i in parts else [p])]

    def _units(self, pieces: list[_Piece]) -> Iterator[list[_Piece]]:
        """Group pieces that must stay together.

        Headings (up to half a chunk of them) stay with the text below, which is split if necessary; other lead-in
        lines stay with what they introduce, if it fits.
        """
        unit: list[_Piece] = []
        size = 0
        for piece in pieces:
            if unit:
                under_headings = unit[-1].kind == "heading" and size <= self.max_tokens // 2
                if under_headings and piece.kind == "heading":
                    joins = size + piece.tokens <= self.max_tokens // 2
                else:
                    joins = under_headings or (unit[-1].leads and size + piece.tokens <= self.max_tokens)
                if not joins:
                    yield unit
                    unit, size = [], 0
            unit.append(piece)
            size += piece.tokens
        if unit:
            yield unit

    def _sections(self, units: Iterable[list[_Piece]]) -> Iterator[list[list[_Piece]]]:
        """Group units into sections: a heading of level 1 to 3 begins a new one."""
        sections: list[list[list[_Piece]]] = []
        for unit in units:
            if not sections or 1 <= unit[0].level <= 3:
                sections.append([])
            sections[-1].append(unit)
        open_section: list[list[_Piece]] = []
        for section in sections:
            size, more = _tokens(open_section), _tokens(section)
            is_tiny = size < self.max_tokens // 5 and section[0][0].level >= (open_section or section)[0][0].level
            bare = all(piece.kind == "heading" for unit in section for piece in unit)
            if open_section and not ((is_tiny or bare) and size + more <= self.max_tokens):
                yield open_section
                open_section = []
            open_section += section
        if open_section:
            yield open_section

    def _packed(self, units: list[list[_Piece]]) -> Iterator[_Packed]:
        """Pack the units of one section into chunks."""
        total = _tokens(units)
        target = total / -(-total // self.max_tokens) if total else 0
        packed: list[_Piece] = []
        size = 0
        for unit in units:
            tokens = _tokens([unit])
            if packed and (size + tokens > self.max_tokens or size + tokens / 2 > target):
                yield _span(packed)
                packed, size = [], 0
            packed += unit
            size += tokens
        if packed:
            yield _span(packed)


# ------------------------------------------------------------------------------------- structure

Kind = Literal["heading", "text", "item", "row", "code"]
_Packed = tuple[int, int, int]  # start, end, start of the first piece that is not a heading


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the text that stays whole if possible.

    Attributes:
        level: The level of a heading; 0 otherwise.
        leads: Whether the piece must stay with the next one.
    """

    start: int
    end: int
    kind: Kind
    level: int = 0
    leads: bool = False
    tokens: int = 0


_FENCE = re.compile(r"[ \t]*(`{3,}|~{3,})")
_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s")
_ROW = re.compile(r"\s*\|")
_RULE_ROW = re.compile(r"[\s|:-]+\Z")
_UNDERLINE = re.compile(r"\s{0,3}(?:=+|-+)\s*$")
_WORD = re.compile(r"\w")


def _blocks(document: Document) -> Iterator[_Piece]:
    """Split a text, Markdown or not, into headings, paragraphs, list items, table rows and code blocks."""
    text = document.text
    levels = {mark.start: mark.level for mark in document.marks if mark.kind == "heading"}
    block: list[tuple[int, int]] = []  # lines of the open block
    kind: Kind = "text"
    fence = ""

    def closed() -> Iterator[_Piece]:
        nonlocal block, kind
        if block:
            start, end = trimmed(text, block[0][0], block[-1][1])
            if start < end:
                leads = kind == "heading" or (kind in ("text", "item") and text[end - 1] in ":：")
                yield _Piece(start, end, kind, level=levels.get(block[0][0], 0), leads=leads)
        block, kind = [], "text"

    at = 0
    for line in text.splitlines(keepends=True):
        start, end = at, at + len(line)
        at = end
        if start in levels:  # checked first: in a notebook, a heading ends the fence that a cell left open
            yield from closed()
            kind = "heading"
            block.append((start, end))
        elif kind == "code":
            block.append((start, end))
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                yield from closed()
        elif kind == "heading" and _UNDERLINE.match(line) and "#" not in text[block[0][0] : block[0][1]][:4]:
            block.append((start, end))  # setext
            yield from closed()
        elif not line.strip():
            yield from closed()
        elif opening := _FENCE.match(line):
            yield from closed()
            kind, fence = "code", opening.group(1)
            block.append((start, end))
        elif _ITEM.match(line) or _ROW.match(line):
            yield from closed()
            kind = "row" if _ROW.match(line) else "item"
            block.append((start, end))
        else:
            if kind in ("heading", "row"):
                yield from closed()
            block.append((start, end))
    yield from closed()


def _linked(document: Document, pieces: list[_Piece]) -> list[_Piece]:
    """Mark pieces that stay with the next one: lead-in sentences, table headers, and pieces above a rule."""
    linked: list[_Piece] = []
    for piece in pieces:
        words = document.text[piece.start : piece.end]
        before = linked[-1] if linked else None
        is_rule = not _WORD.search(words)
        if piece.kind == "row":
            is_rule = bool(_RULE_ROW.match(words))
            piece = dataclasses.replace(piece, leads=is_rule or before is None or before.kind != "row")
        if is_rule and before is not None and before.kind != "heading":
            linked[-1] = dataclasses.replace(before, leads=True)
        if piece.kind == "text" and piece.leads:
            *others, last = _cut(document, piece, by_sentences(document.language))
            if others:  # only the last sentence introduces what follows
                linked.append(dataclasses.replace(piece, end=others[-1].end, leads=False))
                piece = last
        linked.append(piece)
    return linked


def _cut(document: Document, piece: _Piece, cut: Splitter) -> list[_Piece]:
    """Split a piece into pieces."""
    spans = parts(document.text, (piece.start, piece.end), cut(document.text[piece.start : piece.end]))
    last = len(spans) - 1
    return [
        # Only the first part keeps the heading level, only the last part leads to the next piece.
        dataclasses.replace(piece, start=a, end=b, leads=piece.leads and i == last, level=0 if i else piece.level)
        for i, (a, b) in enumerate(spans)
    ]


def _span(pieces: list[_Piece]) -> _Packed:
    body = next((p.start for p in pieces if p.kind != "heading"), pieces[-1].start)
    return pieces[0].start, pieces[-1].end, body


def _tokens(units: list[list[_Piece]]) -> int:
    return sum(piece.tokens for unit in units for piece in unit)
