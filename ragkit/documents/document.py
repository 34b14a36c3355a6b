"""Documents: a text, where it came from, and what stands where in it.

`ragkit.documents.find_sources` says which files of a folder are documents; `ragkit.documents.read` reads one.
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
    """Something that begins at an offset of the text: a heading with its level (from 1), or a page with its number."""

    start: int
    kind: Literal["heading", "page"]
    label: str
    level: int = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Document:
    """A text that can be indexed.

    Attributes:
        id: Names the document within its folder, the same in every run: its path with ``/``; a row of a JSONL file
            has ``path#row id``.
        text: The text; all offsets are characters of it. Encodable as UTF-8, lines end in ``\\n``.
        source: The file, as a person would open it.
        title: Shown with citations.
        language: ISO 639-1 code; "und" if unknown.
        marks: Headings and pages, sorted by offset.
        metadata: What else the file says about itself.
    """

    id: str
    text: str = dataclasses.field(repr=False)
    source: str
    title: str
    language: str = "und"
    marks: tuple[Mark, ...] = dataclasses.field(default=(), repr=False)
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def headings_at(self, offset: int) -> tuple[str, ...]:
        """The headings above an offset, outermost first; one that begins at the offset counts."""
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
        """The page of an offset, from 1; None in a document without pages."""
        for at in range(self._marks_until(offset) - 1, -1, -1):
            if self.marks[at].kind == "page":
                return int(self.marks[at].label)
        return None

    def digest(self) -> str:
        """Return the hash of what would be indexed of it."""
        parts = (self.title, self.language, repr(self.marks), self.text)
        return hash_bytes("\0".join(parts).encode())

    def _marks_until(self, offset: int) -> int:
        return bisect.bisect_right(self.marks, offset, key=lambda mark: mark.start)


# ----------------------------------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A file to load. There may be a hundred thousand of them: what can be derived is.

    Attributes:
        root: The folder that was asked for.
        name: The file's path below it, as the system writes it.
        size_bytes: Its size.
        url: Where it was downloaded from; empty for a file that was there.
    """

    root: Path
    name: str
    size_bytes: int
    url: str = ""

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.root / self.name

    @property
    def id(self) -> str:
        r"""Its path below the root, with ``/``; for a download, its address without the host.

        Bytes of a name that are not UTF-8 are written ``\xNN``.
        """
        if self.url:
            return self.url.partition("://")[2].partition("/")[2] or "/"
        return printable_path(self.name).replace(os.sep, "/")

    @property
    def where(self) -> str:
        """Its path or address for people and for the wire: always encodable as UTF-8."""
        return self.url or printable_path(self.path)

    def hash(self) -> str:
        """Return the hash of its bytes.

        Raises:
            DocumentError: It cannot be read.
        """
        try:
            return hash_file(self.path)
        except OSError as error:
            raise DocumentError(self.where, f"cannot be read: {error.strerror or error}") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Skipped:
    """Files or folders that are passed over without being looked into, all for one reason.

    Attributes:
        reason: Why, as a phrase: ``"hidden"``.
        count: How many; a folder counts once, whatever it holds.
        examples: The first few, as paths below the root, a folder's with a ``/`` at the end.
    """

    reason: str
    count: int
    examples: tuple[str, ...]

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.count}, {self.reason} ({', '.join(self.examples)}{more})"


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What there is to index at a place.

    Attributes:
        root: The folder; of a file that was asked for, the folder that it is in; of a download, its host.
        sources: Files to load, sorted by id.
        failures: Files that ragkit would read, and cannot: each with its reason.
        alone: True where one file was asked for, whether it can be loaded or not.
        skipped: What is no document, or is not wanted.
        keeps: What has to live as long as this: the folder of a download.
    """

    root: Path
    sources: tuple[SourceFile, ...]
    failures: tuple[DocumentError, ...] = ()
    alone: bool = False
    skipped: tuple[Skipped, ...] = ()
    keeps: object = dataclasses.field(default=None, repr=False, compare=False)


def printable_path(path: str | Path) -> str:
    """Write a path for people and for the wire: always encodable as UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
