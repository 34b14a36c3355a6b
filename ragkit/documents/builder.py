"""A document in the making: every reader adds to one, block by block, and marks stand where their blocks begin."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from ragkit.documents.document import Document, Mark, SourceFile
from ragkit.documents.encoding import clean
from ragkit.documents.markup import markdown_headings
from ragkit.errors import DocumentError

MAX_CHARACTERS = 20_000_000  # of text that one document may unfold to: a zip bomb ends here
NO_TEXT = "empty: it holds no text"
ENCRYPTED = "encrypted: it needs a password; save a copy without one"
_MAX_LABEL = 300
_NO_TITLES = frozenset({"untitled", "untitled document", "(anonymous)", "none", "powerpoint presentation"})


class DocumentBuilder:
    """Text and marks of a document that is being read.

    Attributes:
        source: The file.
        size: How many characters there are so far.
        marks: What begins where.
    """

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.size = 0
        self.marks: list[Mark] = []
        self._parts: list[str] = []

    def page(self, number: int) -> None:
        """Begin a page."""
        self.marks.append(Mark(self.size, "page", str(number)))

    def heading(self, label: str, *, level: int) -> None:
        """Add a heading as a block of its own, written as in Markdown."""
        if line := one_line(label):
            self.marks.append(Mark(self.size, "heading", line, level))
            self.add(f"{'#' * level} {line}")

    def add(self, text: str, *, is_markdown: bool = False) -> None:
        """Add a block; a blank line parts it from the next.

        Args:
            text: The block; nothing happens if it is blank.
            is_markdown: Whether to mark its headings.

        Raises:
            DocumentError: The text grows too long.
        """
        block = clean(text).strip("\n")
        if not block.strip():
            return
        if self.size + len(block) > MAX_CHARACTERS:
            raise DocumentError(
                self.source.where, f"too much text: more than {MAX_CHARACTERS:,} characters; split the file"
            )
        if is_markdown:
            self.marks += markdown_headings(block, offset=self.size)
        self._parts += (block, "\n\n")
        self.size += len(block) + 2

    def finish(self, text: str | None = None, *, title: str = "", part: str = "", **metadata: Any) -> Document:
        """Make the document.

        Args:
            text: The whole text, if it is to stay as it is; else that of the blocks.
            title: Shown with citations; if there is none, the first heading of level 1 serves, or the file's name.
            part: Names the document within its file, if the file holds several.
            metadata: What else the file says about itself.

        Raises:
            DocumentError: There is no text.
        """
        text = "".join(self._parts) if text is None else text
        if not text.strip():
            raise DocumentError(self.source.where, NO_TEXT)
        if len(text) > MAX_CHARACTERS:
            raise DocumentError(self.source.where, f"too much text: {len(text):,} characters; split the file")
        top = next((mark.label for mark in self.marks if mark.kind == "heading" and mark.level == 1), "")
        suffix = f"#{part}" if part else ""
        return Document(
            id=self.source.id + suffix,
            text=text,
            source=self.source.where + suffix,
            title=_title(title) or _title(top) or _name(self.source),
            marks=tuple(mark for mark in self.marks if mark.start < len(text)),  # pages at the end may be empty
            metadata=metadata,
        )


def one_line(text: str) -> str:
    """A label: one line, not too long."""
    return " ".join(clean(text).split())[:_MAX_LABEL]


def _title(title: str) -> str:
    """One line; nothing for what programs write when nobody gave a title."""
    line = one_line(title).removeprefix("Microsoft Word - ")
    return "" if line.lower() in _NO_TITLES or line.lower().endswith((".pdf", ".doc", ".docx", ".pptx")) else line


def _name(source: SourceFile) -> str:
    address = urlsplit(source.url)
    name = unquote(address.path).rstrip("/").rpartition("/")[2] if source.url else source.id.rpartition("/")[2]
    return one_line(name.rpartition(".")[0]) or one_line(name) or address.netloc or source.id


_UNFOLDS = frozenset({"LimitReachedError", "EntitiesForbidden"})  # pypdf's, defusedxml's


def reason_of(error: BaseException) -> str:
    """Say in one sentence why a file, a page or a row could not be read."""
    match error:
        case TimeoutError():
            return "not read in time"
        case OSError(errno=int()):  # else it is not the system's, but a parser's
            return f"cannot be read: {error.strerror}"
        case RecursionError():
            return "nested too deep to be read"
        case MemoryError():
            return "too large for this machine's memory"
    detail = clean(" ".join(str(error).split())[:200]) or type(error).__name__
    if type(error).__name__ in _UNFOLDS:  # by name: importing their modules for every text file would cost a while
        return f"unfolds to more than is safe to read: {detail}"
    return f"damaged, or not what its name says: {detail}"
