"""Documents, the files they come from, and the results of a search for files.

`ragkit.documents.find_sources` finds the documents in a folder; `ragkit.documents.read` reads one file.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ragkit.errors import DocumentError
from ragkit.hashing import hash_bytes, hash_file


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A heading with its level (from 1), or a page with its number, that begins at an offset of the text."""

    start: int
    kind: Literal["heading", "page"]
    label: str
    level: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A text that can be indexed.

    Attributes:
        id: Identifies the document within its folder, the same in every run: its path with ``/``, or
            ``path#row id`` for a row of a JSONL file.
        text: The text. All offsets count its characters. It can be encoded as UTF-8; lines end in ``\\n``.
        source: The path or address of the file, for display.
        title: The title to show with citations.
        language: ISO 639-1 code; "und" if unknown.
        marks: Headings and pages, sorted by offset.
        metadata: Other metadata from the file.
    """

    id: str
    text: str = dataclasses.field(repr=False)
    source: str
    title: str
    language: str = "und"
    marks: tuple[Mark, ...] = dataclasses.field(default=(), repr=False)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def headings_at(self, offset: int) -> tuple[str, ...]:
        """Return the headings above an offset, outermost first, including one that begins at the offset."""
        path: list[str] = []
        level = 7
        for at in range(self._marks_until(offset) - 1, -1, -1):
            mark = self.marks[at]
            if mark.kind == "heading" and mark.level < level:
                path.append(mark.label)
                level = mark.level
                if level <= 1:
                    break
        return tuple(reversed(path))

    def page_at(self, offset: int) -> int | None:
        """Return the page number of an offset, from 1; None in a document without pages."""
        for at in range(self._marks_until(offset) - 1, -1, -1):
            if self.marks[at].kind == "page":
                return int(self.marks[at].label)
        return None

    def digest(self) -> str:
        """Return a hash of everything that is indexed: title, language, marks and text."""
        parts = (self.title, self.language, repr(self.marks), self.text)
        return hash_bytes("\0".join(parts).encode())

    def _marks_until(self, offset: int) -> int:
        return bisect.bisect_right(self.marks, offset, key=lambda mark: mark.start)


# ----------------------------------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file to load. Derived values are properties, because there may be a hundred thousand instances.

    Attributes:
        root: The folder to which `name` is relative.
        name: The file's path below `root`, in the system's notation.
        size_bytes: Its size.
        url: The address that it was downloaded from; empty for a local file.
    """

    root: Path
    name: str
    size_bytes: int
    url: str = ""

    @property
    def path(self) -> Path:
        """The full path of the file."""
        return self.root / self.name

    @property
    def id(self) -> str:
        r"""The path below the root, with ``/``; for a download, the address without the host.

        Bytes of a name that are not UTF-8 become ``\xNN``.
        """
        if self.url:
            return self.url.partition("://")[2].partition("/")[2] or "/"
        return printable_path(self.name).replace(os.sep, "/")

    @property
    def where(self) -> str:
        """The path or address for display and for messages: always encodable as UTF-8."""
        return self.url or printable_path(self.path)

    def hash(self) -> str:
        """Return a hash of the file's bytes.

        Raises:
            DocumentError: The file cannot be read.
        """
        try:
            return hash_file(self.path)
        except OSError as error:
            raise DocumentError(self.where, f"cannot be read: {error.strerror or error}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """Files and folders that were skipped for the same reason, without being read.

    Attributes:
        reason: The reason as a phrase, such as ``"hidden"``.
        count: The number of files and folders; a folder counts once, regardless of its contents.
        examples: The first few, as paths below the root; those of folders end with ``/``.
    """

    reason: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count}, {self.reason} ({', '.join(self.examples)}{more})"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """The result of a search for files.

    Attributes:
        root: The folder that was searched; the parent folder of a single file; the host of a download.
        sources: The files to load, sorted by id.
        failures: Files of a supported kind that cannot be read, each with its reason.
        alone: True if a single file or address was given, even if it cannot be loaded.
        skipped: Files that are not documents or are excluded.
        keeps: An object to keep alive with this one: the temporary folder of a download.
    """

    root: Path
    sources: tuple[SourceFile, ...]
    failures: tuple[DocumentError, ...] = ()
    alone: bool = False
    skipped: tuple[Skipped, ...] = ()
    keeps: object = dataclasses.field(default=None, repr=False, compare=False)


def printable_path(path: str | Path) -> str:
    """Return a path for display and for messages: always encodable as UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
