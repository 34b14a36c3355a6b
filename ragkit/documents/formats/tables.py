"""Tables: each row of a JSONL file becomes a document, each row of a CSV file or a sheet becomes a line.

A table's row becomes ``header: value; header: value``, so that it can be found and understood without the rows above
it. Tables are read row by row, and a long table becomes several documents instead of being truncated.
"""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from ragkit.documents.builder import MAX_CHARACTERS, NO_TEXT, DocumentBuilder, one_line
from ragkit.documents.document import Document, SourceFile
from ragkit.documents.encoding import clean, lines
from ragkit.errors import DocumentError

PART_CHARACTERS = 1_000_000  # the longest document of a long table
_MAX_ROW_FAILURES = 100
_MAX_CELL = 100_000  # characters; a longer value is a file rather than a cell
_SAMPLE_LINES = 50
_TEXT_KEYS = ("text", "contents", "content", "body")
_ID_KEYS = ("_id", "id", "doc_id")
_NUMBER = re.compile(r"[-+]?[\d\s.,:/%€$£-]+")


def read_jsonl(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    """See `ragkit.documents.read`."""
    failures = 0
    is_empty = True
    seen: set[int] = set()
    for number, line in enumerate(lines(source.path, where=source.where, max_characters=MAX_CHARACTERS), start=1):
        if line is not None and not line.strip():
            continue
        is_empty = False
        try:
            yield _row(source, number, line, seen)
        except DocumentError as error:
            failures += 1
            if failures <= _MAX_ROW_FAILURES:
                yield error
    if failures > _MAX_ROW_FAILURES:
        yield DocumentError(source.where, f"and {failures - _MAX_ROW_FAILURES:,} more rows that cannot be read")
    if is_empty:
        raise DocumentError(source.where, NO_TEXT)


def _row(source: SourceFile, number: int, line: str | None, seen: set[int]) -> Document:
    where = f"{source.where}, line {number}"
    if line is None:
        raise DocumentError(where, f"longer than {MAX_CHARACTERS:,} characters")
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DocumentError(where, f"not JSON: {one_line(str(error))[:200]}") from error
    text = next((row[k] for k in _TEXT_KEYS if isinstance(row.get(k), str)), None) if isinstance(row, dict) else None
    if text is None:
        raise DocumentError(where, f"no text: a row needs one of {', '.join(_TEXT_KEYS)}")
    text = clean(text)
    if not text.strip():
        raise DocumentError(where, "empty: its text is blank")
    given = next((row[k] for k in _ID_KEYS if isinstance(row.get(k), str | int) and row[k] != ""), number)
    row_id = one_line(str(given))[:200] or str(number)
    if hash(row_id) in seen:  # rows with the same id would overwrite each other
        row_id += f" (line {number})"
    seen.add(hash(row_id))
    title = row.get("title")
    known = {"title", *_TEXT_KEYS, *_ID_KEYS}
    return Document(
        id=f"{source.id}#{row_id}",
        text=text,
        source=f"{source.where}#{row_id}",
        title=one_line(title) if isinstance(title, str) else "",
        metadata={k: v for k, v in row.items() if k not in known and isinstance(v, str | int | float | bool)},
    )


# ---------------------------------------------------------------------------------------- tables


def read_csv(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    """See `ragkit.documents.read`. The delimiter is the one that gives the first lines the most uniform columns."""
    some = lines(source.path, where=source.where, max_characters=MAX_CHARACTERS)
    sample = list(itertools.islice(some, _SAMPLE_LINES))
    if None in sample:
        raise DocumentError(source.where, f"a line is longer than {MAX_CHARACTERS:,} characters")
    first = [line for line in sample if line is not None]
    delimiter = "\t" if source.name.lower().endswith(".tsv") else _delimiter(first)
    csv.field_size_limit(MAX_CHARACTERS)
    # `None` (a line that is too long) becomes an empty line: csv.reader accepts only text.
    rest = (line if line is not None else "\n" for line in some)
    rows = csv.reader(itertools.chain(first, rest), delimiter=delimiter, skipinitialspace=True)
    yield from documents_of_sheets(source, [("", rows)])


def _delimiter(sample: Sequence[str]) -> str:
    """Guess the delimiter. Not with `csv.Sniffer`, which also guesses letters."""

    def fit(delimiter: str) -> tuple[float, int]:
        widths = [len(row) for row in csv.reader(sample[:-1] or sample, delimiter=delimiter) if row]
        usual = max(set(widths), key=lambda width: (widths.count(width), width), default=1)
        return (widths.count(usual) / len(widths) if usual > 1 else 0.0), usual

    return max(",;\t|", key=fit)


def documents_of_sheets(
    source: SourceFile, sheets: Iterable[tuple[str, Iterable[Sequence[str]]]], *, title: str = ""
) -> Iterator[Document | DocumentError]:
    """Convert tables to text, in as many documents as necessary.

    Args:
        source: The file.
        sheets: The name of each table, which becomes a heading if it is not empty, and its rows.
        title: The file's own title; empty if it has none.

    Raises:
        DocumentError: The tables contain no text.
    """
    builder = DocumentBuilder(source)
    part = 0
    for name, rows in sheets:
        headers: list[str] | None = None
        is_named = False
        for cells in rows:
            values = [" ".join(cell.split()) for cell in cells]
            if not any(values):
                continue
            if headers is None and (headers := _headers(values)):
                continue
            line = _line(headers, values)
            if builder.size and builder.size + len(line) > PART_CHARACTERS:
                part += 1
                yield builder.finish(title=title, part=f"part {part}")
                builder, is_named = DocumentBuilder(source), False
            if not is_named:
                builder.heading(name, level=2)
                is_named = True
            builder.add(line)
        if headers and not is_named:  # a table without rows: keep the headers
            builder.heading(name, level=2)
            builder.add("; ".join(headers))
    yield builder.finish(title=title, part=f"part {part + 1}" if part else "")


def _headers(first: list[str]) -> list[str]:
    """Return the first row if it looks like column names: several short, distinct values that are not numbers."""
    names = [value for value in first if value]
    is_header = len(names) > 1 and len(set(names)) == len(names) and len(names) * 2 > len(first)
    return first if is_header and not any(_NUMBER.fullmatch(n) or len(n) > 100 for n in names) else []


def _line(headers: list[str] | None, values: list[str]) -> str:
    names = itertools.chain(headers or (), itertools.repeat(""))
    return "; ".join(f"{name}: {value}" if name else value for name, value in zip(names, values, strict=False) if value)
