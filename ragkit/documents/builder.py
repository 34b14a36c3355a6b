"""The `DocumentBuilder`, to which a reader adds text block by block. Marks point to the start of their block."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote, urlsplit

from ragkit.documents.document import Document, Mark, SourceFile
from ragkit.documents.encoding import clean
from ragkit.documents.markup import markdown_headings
from ragkit.errors import DocumentError

MAX_CHARACTERS = 20_000_000  # the longest text of a document; stops zip bombs
NO_TEXT = "empty: it contains no text"
ENCRYPTED = "encrypted: it needs a password; save a copy without one"
_MAX_LABEL = 300
_NO_TITLES = frozenset({"untitled", "untitled document", "(anonymous)", "none", "powerpoint presentation"})


class DocumentBuilder:
    """Collect the text and the marks of a document while its file is read.

    Attributes:
        source: The file.
        size: The number of characters so far.
        marks: The marks so far.
    """

    def __init__(self, source: SourceFile) -> None:
        self.source = source
        self.size = 0
        self.marks: list[Mark] = []
        self._parts: list[str] = []

    def page(self, number: int) -> None:
        """Start a page."""
        self.marks.append(Mark(self.size, "page", str(number)))

    def heading(self, label: str, *, level: int) -> None:
        """Add a heading as a separate block, in Markdown notation."""
        if line := one_line(label):
            self.marks.append(Mark(self.size, "heading", line, level))
            self.add(f"{'#' * level} {line}")

    def add(self, text: str, *, is_markdown: bool = False) -> None:
        """Add a block, followed by a blank line.

        Args:
            text: The block; a blank one is ignored.
            is_markdown: Whether the block is Markdown whose headings become marks.

        Raises:
            DocumentError: The document's text is too long.
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
        """Create the document.

        Args:
            text: The whole text, to use it verbatim; None uses the text of the blocks.
            title: The title to show with citations; if empty, the first heading of level 1 or the file's name.
            part: Identifies the document within its file, if the file has several.
            metadata: Other metadata from the file.

        Raises:
            DocumentError: The text is empty or too long.
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
    """Return a label: the text on one line, truncated."""
    return " ".join(clean(text).split())[:_MAX_LABEL]


def _title(title: str) -> str:
    """Return the title on one line; empty for the placeholders that programs write into untitled files."""
    line = one_line(title).removeprefix("Microsoft Word - ")
    return "" if line.lower() in _NO_TITLES or line.lower().endswith((".pdf", ".doc", ".docx", ".pptx")) else line


def _name(source: SourceFile) -> str:
    address = urlsplit(source.url)
    name = unquote(address.path).rstrip("/").rpartition("/")[2] if source.url else source.id.rpartition("/")[2]
    return one_line(name.rpartition(".")[0]) or one_line(name) or address.netloc or source.id


_UNFOLDS = frozenset({"LimitReachedError", "EntitiesForbidden"})  # pypdf's, defusedxml's


def reason_of(error: BaseException) -> str:
    """Describe in one sentence why a file, a page or a row could not be read."""
    match error:
        case TimeoutError():
            return "not read in time"
        case OSError(errno=int()):  # without errno, a parser raised it
            return f"cannot be read: {error.strerror}"
        case RecursionError():
            return "nested too deeply to be read"
        case MemoryError():
            return "too large for this machine's memory"
    detail = clean(" ".join(str(error).split())[:200]) or type(error).__name__
    if type(error).__name__ in _UNFOLDS:  # by name: importing their modules is slow, and text files do not need them
        return f"unfolds to more than is safe to read: {detail}"
    return f"damaged, or not what its name says: {detail}"
