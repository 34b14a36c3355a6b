"""Plain text, code, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Iterator

from ragkit.documents.builder import NO_TEXT, DocumentBuilder
from ragkit.documents.document import Document, SourceFile
from ragkit.documents.encoding import decode
from ragkit.documents.filetypes import CODE_SUFFIXES, kind_of
from ragkit.documents.markup import front_matter_title, html_to_markdown, markdown_headings
from ragkit.documents.outline import outline
from ragkit.errors import DocumentError


def read_text(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    kind = kind_of(source.name) or ""
    is_code = kind in CODE_SUFFIXES
    text, encoding = decode(source.path.read_bytes(), where=source.where, declares=is_code)
    builder = DocumentBuilder(source)
    builder.marks += outline(text, kind)
    # The title of source code is its file name, not the name of its first function.
    title = source.id.rpartition("/")[2] if is_code and not source.url and kind != ".tex" else ""
    yield builder.finish(text, title=title, encoding=encoding)


def read_markdown(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    text, encoding = decode(source.path.read_bytes(), where=source.where)
    builder = DocumentBuilder(source)
    builder.marks += markdown_headings(text)
    has_top = any(mark.level == 1 for mark in builder.marks)
    yield builder.finish(text, title="" if has_top else front_matter_title(text), encoding=encoding)


def read_html(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    html, encoding = decode(source.path.read_bytes(), where=source.where, declares=True)
    if not html.strip():
        raise DocumentError(source.where, NO_TEXT)
    text, title = html_to_markdown(html)
    if not text.strip():
        raise DocumentError(
            source.where,
            "empty: the page has no text (a script may generate it); save it from a browser",
        )
    builder = DocumentBuilder(source)
    builder.marks += markdown_headings(text)
    yield builder.finish(text, title=title or next((mark.label for mark in builder.marks), ""), encoding=encoding)
