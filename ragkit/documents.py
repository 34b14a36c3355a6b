"""Documents: a text, where it came from, and what stands where in it.

`find_sources` says which files of a folder are documents; `ragkit.loaders.load` reads one.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import os
import stat
import unicodedata
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from ragkit.errors import DocumentError, NoDocumentsError, SourceNotFoundError

__all__ = ["SUFFIXES", "Document", "Found", "Mark", "Source", "detect_language", "find_sources", "printable_path"]

SUFFIXES = (".md", ".markdown", ".txt", ".text", ".rst", ".html", ".htm", ".pdf", ".ipynb", ".jsonl")
"""The file endings that ragkit reads."""

MAX_BYTES = 100 * 2**20
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages"})
_LANGUAGE_SAMPLE = 5_000  # characters: more makes no better a guess
_FEWEST_LETTERS = 20


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

    def _marks_until(self, offset: int) -> int:
        return bisect.bisect_right(self.marks, offset, key=lambda mark: mark.start)


def detect_language(text: str, *, among: Collection[str] | None = None, default: str = "und") -> str:
    """Guess a text's language by its byte n-grams (Lui and Baldwin 2012, the py3langid model; offline).

    Args:
        text: Any text; its first 5,000 characters count.
        among: ISO 639-1 codes to choose from; all that the model knows if None. Short texts need a short list.
        default: For a text without letters, or with too few to choose among all languages.
    """
    sample = text[:_LANGUAGE_SAMPLE]
    letters = sum(unicodedata.category(c).startswith("L") for c in sample)
    if letters < (1 if among is not None else _FEWEST_LETTERS):
        return default
    ranked: list[tuple[str, float]] = _identifier().rank(sample)
    # Three-letter codes are languages so rare that a guess of one is nearly always wrong.
    fitting = (language for language, _ in ranked if (len(language) == 2 if among is None else language in among))
    return next(fitting, default)


@functools.cache
def _identifier() -> Any:
    from py3langid import langid

    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)


# ----------------------------------------------------------------------------------------- files


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A file to load.

    Attributes:
        path: Where it is.
        id: Its path below the root, with ``/``. Bytes of a name that are not UTF-8 are written ``\\xNN``.
        size_bytes: Its size.
    """

    path: Path
    id: str
    size_bytes: int

    @property
    def where(self) -> str:
        """The path for people and for the wire: always encodable as UTF-8."""
        return printable_path(self.path)


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What `find_sources` found: files to load, sorted by id, and files that are passed over with a reason.

    ``alone`` is true where one file was asked for, whether it can be loaded or not.
    """

    root: Path
    sources: tuple[Source, ...]
    failures: tuple[DocumentError, ...] = ()
    alone: bool = False


def find_sources(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Found:
    """Find the documents below a folder, or take one file.

    Hidden files and folders, files of other kinds and installed packages are passed over silently. Files over
    ``max_bytes``, links that lead out of the folder or nowhere, and what cannot be read are passed over with a
    reason. A file that is given by itself may be a link to anywhere: whoever names it means it.

    Args:
        path: A folder or a file.
        max_bytes: The largest file to read.

    Raises:
        SourceNotFoundError: There is nothing at ``path``.
        NoDocumentsError: There is, but nothing that ragkit reads.
    """
    given = Path(path).expanduser().absolute()
    try:
        target = given.resolve(strict=True)
        is_folder = target.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a link that leads to itself; a NUL in the name
        raise SourceNotFoundError(path) from error
    if is_folder:
        found = _walk(target, max_bytes)
    else:
        if given.suffix.lower() not in SUFFIXES:
            raise NoDocumentsError(path, SUFFIXES)
        # The name as given: the target of a link may be called anything.
        file = given.parent.resolve() / given.name
        found = _collect([file], file.parent, max_bytes, alone=True)
    if not found.sources and not found.failures:
        raise NoDocumentsError(path, SUFFIXES)
    return found


def _walk(root: Path, max_bytes: int) -> Found:
    """Find the files below a folder. With a stack of our own: `os.walk` recurses, and folders can be deep."""
    folders, files = [root], []
    failures: list[DocumentError] = []
    while folders:
        folder = folders.pop()
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            failures.append(DocumentError(printable_path(folder), f"the folder cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            place = folder / entry.name
            if entry.name.startswith(".") or entry.name in _SKIPPED_FOLDERS:
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(place)
            elif place.suffix.lower() in SUFFIXES and not _is_folder_inside(entry, root):
                files.append(place)
            elif entry.is_symlink() and place.is_dir() and not _is_folder_inside(entry, root):
                failures.append(DocumentError(printable_path(place), _OUT))
    found = _collect(files, root, max_bytes)
    return Found(root, found.sources, (*failures, *found.failures))


def _is_folder_inside(entry: os.DirEntry[str], root: Path) -> bool:
    """Whether this is a link to a folder that the walk comes to anyway; following it could go round in circles."""
    try:
        return entry.is_dir() and Path(entry.path).resolve().is_relative_to(root)
    except OSError:
        return False


_OUT = "a link that leads out of the folder; index its target by itself if you want it"


def _collect(files: list[Path], root: Path, max_bytes: int, *, alone: bool = False) -> Found:
    """Sort files into those to load and those that are passed over with a reason."""
    sources: dict[Path, Source] = {}
    failures: list[DocumentError] = []
    # Links last, so that a file and a link to it are one document, under the file's own name.
    for file in sorted(files, key=lambda f: (f.is_symlink(), f)):
        try:
            target = file.resolve(strict=True)
            status = target.stat()
        except (OSError, RuntimeError) as error:
            reason = "a link that leads nowhere" if file.is_symlink() else f"cannot be read: {error}"
            failures.append(DocumentError(printable_path(file), reason))
            continue
        if target in sources:
            continue
        problem = None
        if not alone and not target.is_relative_to(root):
            problem = _OUT
        elif not stat.S_ISREG(status.st_mode):
            problem = "not a regular file"  # opening a pipe would wait for ever
        elif status.st_size > max_bytes:
            problem = f"too large: {status.st_size / 2**20:.1f} MiB, and the limit is {max_bytes / 2**20:.1f} MiB"
        if problem is None:
            name = printable_path(file.relative_to(root)).replace(os.sep, "/")
            sources[target] = Source(file, name, status.st_size)
        else:
            failures.append(DocumentError(printable_path(file), problem))
    return Found(root, tuple(sorted(sources.values(), key=lambda s: s.id)), tuple(failures), alone)


def printable_path(path: Path) -> str:
    """Write a path for people and for the wire: always encodable as UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
