"""Workbooks (XLSX): the name of each sheet becomes a heading, each row a line ``header: value; header: value``."""

from __future__ import annotations

import datetime
import itertools
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from ragkit.documents.builder import reason_of
from ragkit.documents.document import Document, SourceFile
from ragkit.documents.formats.tables import documents_of_sheets
from ragkit.documents.formats.zipped import core_title, open_archive
from ragkit.errors import DocumentError

_ROWS_AT_ONCE = 200


def read_xlsx(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    """See `ragkit.documents.read`. A formula is read as its last computed value."""
    import openpyxl

    with open_archive(source) as archive:
        title = core_title(archive)
    failures: list[DocumentError] = []
    # Opened here, because openpyxl does not close its file when it fails.
    with source.path.open("rb") as file:
        with warnings.catch_warnings(action="ignore"):  # about unsupported features, none of which is text
            workbook = openpyxl.load_workbook(file, read_only=True, data_only=True, keep_links=False)
        sheets = ((sheet.title, _rows(source, sheet, deadline, failures)) for sheet in workbook.worksheets)
        try:
            yield from documents_of_sheets(source, sheets, title=title)
        except DocumentError:
            if not failures:
                raise
    yield from failures


def _rows(source: SourceFile, sheet: Any, deadline: float, failures: list[DocumentError]) -> Iterator[Sequence[str]]:
    """Yield the rows up to the first error, which is appended to ``failures``."""
    done = 0
    try:
        sheet.reset_dimensions()  # the declared size of a sheet may be wrong
        rows = sheet.iter_rows(values_only=True)
        while True:
            if time.monotonic() > deadline:
                raise TimeoutError
            with warnings.catch_warnings(action="ignore"):
                some = list(itertools.islice(rows, _ROWS_AT_ONCE))
            if not some:
                return
            for row in some:
                yield [_text(value) for value in row]
            done += len(some)
    except Exception as error:  # any error, as in `parse`: a bad sheet must not affect the others
        failures.append(DocumentError(f"{source.where}, sheet {sheet.title}, from row {done + 1}", reason_of(error)))


def _text(value: object) -> str:
    match value:
        case None:
            return ""
        case bool():
            return "TRUE" if value else "FALSE"
        case float():
            return f"{value:.15g}"
        case datetime.datetime():
            return value.isoformat(" ").removesuffix(" 00:00:00")
    return str(value)
