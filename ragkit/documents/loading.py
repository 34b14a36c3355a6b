"""Reading of files into documents, with one reader per kind of file.

The contents of a file are untrusted. Sizes are bounded, and any exception of a parser becomes a `DocumentError` with a
reason that a user can act on. A bad file does not affect other files; a bad page or row does not affect the rest of
its file.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping

from ragkit.cancellation import is_fatal
from ragkit.documents.builder import reason_of
from ragkit.documents.document import Document, SourceFile
from ragkit.documents.filetypes import kind_of
from ragkit.documents.formats.docx import read_docx
from ragkit.documents.formats.epub import read_epub
from ragkit.documents.formats.notebook import read_notebook
from ragkit.documents.formats.pdf import read_pdf
from ragkit.documents.formats.pptx import read_pptx
from ragkit.documents.formats.tables import read_csv, read_jsonl
from ragkit.documents.formats.text import read_html, read_markdown, read_text
from ragkit.documents.formats.xlsx import read_xlsx
from ragkit.documents.language import with_language
from ragkit.errors import DocumentError

TIMEOUT_SECONDS = 120.0

_Reader = Callable[[SourceFile, float], Iterator[Document | DocumentError]]


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """The result of `load`: a file's documents, and the pages or rows that could not be read."""

    documents: tuple[Document, ...]
    failures: tuple[DocumentError, ...] = ()


def load(source: SourceFile, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Loaded:
    """Read one file completely; see `read`."""
    documents: list[Document] = []
    failures: list[DocumentError] = []
    for item in read(source, timeout_seconds=timeout_seconds):
        if isinstance(item, Document):
            documents.append(item)
        else:
            failures.append(item)
    return Loaded(tuple(documents), tuple(failures))


def read(source: SourceFile, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Document | DocumentError]:
    """Read one file and yield its documents one by one, with detected languages; see `parse`."""
    for item in parse(source, timeout_seconds=timeout_seconds):
        yield with_language(item) if isinstance(item, Document) else item


def parse(source: SourceFile, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[Document | DocumentError]:
    """Read one file and yield its documents one by one. Languages are unknown unless the file declares them.

    Args:
        source: A file that `find_sources` found.
        timeout_seconds: The time limit for pages and sheets, of which a small file may have very many. What was read
            by then is kept; the rest is reported as a failure.

    Yields:
        Documents, and a `DocumentError` for each page or row that cannot be read.

    Raises:
        DocumentError: The file as a whole is unusable: unreadable, damaged, encrypted, empty, scanned, ...
    """
    reader = _READERS.get(kind_of(source.name) or "", read_text)
    try:
        yield from reader(source, time.monotonic() + timeout_seconds)
    except DocumentError:
        raise
    except BaseException as error:
        # A parser may raise anything on a hostile file; other files must still be read.
        if is_fatal(error) and not isinstance(error, MemoryError):
            raise
        raise DocumentError(source.where, reason_of(error)) from error


_READERS: Mapping[str, _Reader] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".pdf": read_pdf,
    ".ipynb": read_notebook,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".docx": read_docx,
    ".pptx": read_pptx,
    ".xlsx": read_xlsx,
    ".epub": read_epub,
}
