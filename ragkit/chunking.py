"""From a document to passages, with exact offsets.

Always, for every chunk of every chunker: ``document.text[chunk.start:chunk.end] == chunk.text``. The
chunks of a document, in order, hold everything in it but white space.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

from ragkit.documents import Document
from ragkit.errors import InputError

__all__ = ["Chunk", "Chunker", "StructureChunker"]

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document.

    Attributes:
        document_id: The document.
        start: Offset of its first character in the document's text.
        end: Offset after its last.
        text: ``document.text[start:end]``.
        headings: The headings that it stands under, outermost first.
        page: The page that it begins on; None in a document without pages.
        ordinal: 0 for the document's first chunk, and so on.
    """

    document_id: str
    start: int
    end: int
    text: str
    headings: tuple[str, ...] = ()
    page: int | None = None
    ordinal: int = 0


class Chunker(Protocol):
    """Cuts documents into chunks.

    Attributes:
        name: Method and settings in one string. It is stored with the index: two chunkers with the same name
            must cut alike.
    """

    @property
    def name(self) -> str: ...

    def chunk(self, document: Document, *, count_tokens: CountTokens) -> list[Chunk]:
        """Cut one document.

        Args:
            document: What to cut.
            count_tokens: The embedder's own count, for batches of texts.
        """
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class StructureChunker:
    """Cuts where the document does: headings, then paragraphs, list items, table rows and code blocks, then
    sentences (by the rules of the document's language), then words.

    Neighbouring pieces of one section are packed together up to ``max_tokens``, evenly rather than full and a rest.
    A heading stays with the text below it, a line that ends in a colon with the list or code that it introduces.

    Args:
        max_tokens: The longest chunk, in the embedder's tokens. The default leaves room for the headings, which are
            embedded with each chunk, within the 256 that all-MiniLM-L6-v2 reads.
    """

    max_tokens: int = 200

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, not {self.max_tokens}.")

    @property
    def name(self) -> str:
        return f"structure(max_tokens={self.max_tokens})"

    def chunk(self, document: Document, *, count_tokens: CountTokens) -> list[Chunk]:
        """See `Chunker.chunk`."""
        pieces = list(_blocks(document))
        pieces = self._counted(document.text, pieces, count_tokens)
        for split in (_split_block, _split_words, _split_characters):
            pieces = self._divided(document, pieces, split, count_tokens)
        spans = [span for section in _sections(self._glued(pieces)) for span in self._packed(section)]
        return [
            Chunk(
                document_id=document.id,
                start=start,
                end=end,
                text=document.text[start:end],
                headings=document.headings_at(body),
                page=document.page_at(start),
                ordinal=ordinal,
            )
            for ordinal, (start, end, body) in enumerate(self._fitting(document, spans, count_tokens))
        ]

    def _counted(self, text: str, pieces: list[_Piece], count_tokens: CountTokens) -> list[_Piece]:
        counts = count_tokens([text[p.start : p.end] for p in pieces])
        return [dataclasses.replace(p, tokens=n) for p, n in zip(pieces, counts, strict=True)]

    def _divided(
        self,
        document: Document,
        pieces: list[_Piece],
        split: Callable[[Document, _Piece], list[_Piece]],
        count_tokens: CountTokens,
    ) -> list[_Piece]:
        """Split the pieces that are too long; count all the parts in one call."""
        parts = {i: split(document, p) for i, p in enumerate(pieces) if p.tokens > self.max_tokens}
        if not parts:
            return pieces
        counted = iter(self._counted(document.text, [p for part in parts.values() for p in part], count_tokens))
        return [q for i, p in enumerate(pieces) for q in ([next(counted) for _ in parts[i]] if i in parts else [p])]

    def _glued(self, pieces: list[_Piece]) -> Iterator[list[_Piece]]:
        """Join what must not be parted: headings and lead-in lines with what follows, as far as it fits."""
        unit: list[_Piece] = []
        for piece in pieces:
            if unit and not (unit[-1].leads and sum(p.tokens for p in unit) + piece.tokens <= self.max_tokens):
                yield unit
                unit = []
            unit.append(piece)
        if unit:
            yield unit

    def _packed(self, units: list[list[_Piece]]) -> Iterator[tuple[int, int, int]]:
        """Pack the units of one section; gives (start, end, start of the first text that is no heading)."""
        total = sum(p.tokens for unit in units for p in unit)
        target = total / -(-total // self.max_tokens) if total else 0
        packed: list[_Piece] = []
        size = 0
        for unit in units:
            tokens = sum(p.tokens for p in unit)
            if packed and (size + tokens > self.max_tokens or size + tokens / 2 > target):
                yield _span(packed)
                packed, size = [], 0
            packed += unit
            size += tokens
        if packed:
            yield _span(packed)

    def _fitting(
        self, document: Document, spans: list[tuple[int, int, int]], count_tokens: CountTokens
    ) -> Iterator[tuple[int, int, int]]:
        """Halve what is over the limit after all: tokens of the parts need not add up to those of the whole."""
        counts = count_tokens([document.text[start:end] for start, end, _ in spans])
        for (start, end, body), tokens in zip(spans, counts, strict=True):
            if tokens <= self.max_tokens or end - start < 2:
                yield start, end, body
                continue
            middle = (start + end) // 2
            space = max(document.text.rfind(" ", start + 1, middle), document.text.rfind("\n", start + 1, middle))
            cut = space if space > start else middle
            halves = [_trimmed(document.text, start, cut), _trimmed(document.text, cut, end)]
            yield from self._fitting(
                document, [(s, e, min(max(body, s), e - 1)) for s, e in halves if s < e], count_tokens
            )


# ------------------------------------------------------------------------------------- structure

Kind = Literal["heading", "text", "item", "row", "code"]


@dataclasses.dataclass(frozen=True, slots=True)
class _Piece:
    """A part of the text that is not cut if it can be helped. ``level``: of a heading; ``leads``: belongs to the next."""

    start: int
    end: int
    kind: Kind
    level: int = 0
    leads: bool = False
    tokens: int = 0


_FENCE = re.compile(r"\s{0,3}(`{3,}|~{3,})")
_ITEM = re.compile(r"\s*(?:[-*+•]|\d{1,3}[.)])\s")
_ROW = re.compile(r"\s*\|")
_UNDERLINE = re.compile(r"\s{0,3}(?:=+|-+)\s*$")


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
            start, end = _trimmed(text, block[0][0], block[-1][1])
            if start < end:
                leads = kind == "heading" or (kind in ("text", "item") and text[end - 1] == ":")
                yield _Piece(start, end, kind, level=levels.get(block[0][0], 0), leads=leads)
        block, kind = [], "text"

    at = 0
    for line in text.splitlines(keepends=True):
        start, end = at, at + len(line)
        at = end
        if kind == "code":
            block.append((start, end))
            if line.strip().startswith(fence) and not line.strip().strip(fence[0]):
                yield from closed()
            continue
        if kind == "heading" and block and _UNDERLINE.match(line) and "#" not in text[block[0][0] : block[0][1]][:4]:
            block.append((start, end))  # setext
            yield from closed()
        elif not line.strip():
            yield from closed()
        elif start in levels:
            yield from closed()
            kind = "heading"
            block.append((start, end))
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


def _sections(units: Iterator[list[_Piece]]) -> Iterator[list[list[_Piece]]]:
    """Group units into sections: a heading of the first three levels begins a new one."""
    section: list[list[_Piece]] = []
    for unit in units:
        if section and 1 <= unit[0].level <= 3:
            yield section
            section = []
        section.append(unit)
    if section:
        yield section


def _split_block(document: Document, piece: _Piece) -> list[_Piece]:
    """Code into lines, everything else into sentences."""
    text = document.text[piece.start : piece.end]
    ends: list[int] = []
    if piece.kind == "code":
        ends = [m.end() for m in re.finditer("\n", text)]
    else:
        import sentencex

        language = document.language if document.language != "und" else "en"
        ends = _character_ends(text, [s["text"] for s in sentencex.get_sentence_boundaries(language, text)])
    return _parts(document.text, piece, ends)


def _character_ends(text: str, sentences: list[str]) -> list[int]:
    """Find where sentences end, by their texts: the library's own offsets are not always characters."""
    ends, at = [], 0
    for sentence in sentences:
        found = text.find(sentence, at)
        if found >= 0:
            at = found + len(sentence)
            ends.append(at)
    return ends


def _split_words(document: Document, piece: _Piece) -> list[_Piece]:
    text = document.text[piece.start : piece.end]
    return _parts(document.text, piece, [m.end() for m in re.finditer(r"\s+", text)])


def _split_characters(document: Document, piece: _Piece) -> list[_Piece]:
    # A word that is longer than a chunk: a hash, a data URL, or text without spaces.
    return _parts(document.text, piece, list(range(16, piece.end - piece.start, 16)))


def _parts(text: str, piece: _Piece, ends: list[int]) -> list[_Piece]:
    bounds = [piece.start, *(piece.start + e for e in ends), piece.end]
    spans = [_trimmed(text, a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    spans = [(a, b) for a, b in spans if a < b]
    last = len(spans) - 1
    return [dataclasses.replace(piece, start=a, end=b, leads=piece.leads and i == last) for i, (a, b) in enumerate(spans)]


def _span(pieces: list[_Piece]) -> tuple[int, int, int]:
    body = next((p.start for p in pieces if p.kind != "heading"), pieces[-1].start)
    return pieces[0].start, pieces[-1].end, body


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end
