"""The search for documents in a folder, with reasons for the files that are skipped.

It runs at the start of every indexing, so it must be fast: one `scandir` per folder and one `stat` per file; links are
resolved.
"""

from __future__ import annotations

import os
import re
import stat
from collections import defaultdict
from pathlib import Path

from ragkit.documents.document import Found, Skipped, SourceFile, printable_path
from ragkit.documents.download import download
from ragkit.documents.filetypes import SUFFIXES, kind_of
from ragkit.documents.ignore import IGNORE_FILES, Rules, rules_above, with_rules_of
from ragkit.errors import DocumentError, NoDocumentsError, SourceNotFoundError

MAX_BYTES = 100 * 2**20
STREAMED = 20
"""The factor by which files that are read row by row (JSONL, CSV) may exceed `MAX_BYTES`."""

_ROWS = frozenset({".jsonl", ".csv", ".tsv"})
_INSTALLED = frozenset({"node_modules", "__pycache__", "site-packages"})
_EXAMPLES = 5
_MAX_REASONS = 50

_HIDDEN = "hidden: the name begins with a dot"
_IS_INSTALLED = "installed packages or caches"
_IGNORED = f"excluded by the rules of {' or '.join(IGNORE_FILES)}"
_BEIR = "the queries and judgements of a BEIR dataset, next to its corpus.jsonl"
_OUT = "a link that leads out of the folder; to include its target, index it separately"
_NOWHERE = "a link that leads nowhere"
_URL = re.compile(r"(https?):/{1,2}(?=[^/])", re.IGNORECASE)  # one slash: `Path` collapses two


def find_sources(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Found:
    """Find the documents in a folder and its subfolders, or use one file or one address.

    Hidden files and folders, unsupported kinds of files, installed packages and ignored files are skipped and listed in
    `Found.skipped`. Files over ``max_bytes``, links that lead out of the folder or nowhere, and unreadable files are
    failures with a reason. A single file that is given as ``path`` may be hidden, ignored, or a link to anywhere.

    Args:
        path: A folder, a file, or an address that begins with ``http://`` or ``https://``, which is downloaded.
        max_bytes: The largest file to read; a file that is read row by row (JSONL, CSV) may be 20 times as large.

    Raises:
        SourceNotFoundError: ``path`` does not exist.
        NoDocumentsError: ``path`` exists but has no file of a supported kind.
    """
    if address := _URL.match(str(path)):
        return download(f"{address[1].lower()}://{str(path)[address.end() :]}", max_bytes=max_bytes)
    given = Path(path).expanduser().absolute()
    try:
        target = given.resolve(strict=True)
        is_folder = target.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a link that leads to itself; a NUL in the name
        raise SourceNotFoundError(path) from error
    if not is_folder:
        if kind_of(given.name) is None:
            raise NoDocumentsError(path, SUFFIXES)
        # The name as given: the target of a link may have any name.
        return _alone(given.parent.resolve(), given.name, target, max_bytes)
    walk = _Walk(target, max_bytes)
    walk.run()
    found = walk.found()
    if not found.sources and not found.failures:
        raise NoDocumentsError(path, SUFFIXES, [f"{what.count} {what.reason}" for what in found.skipped])
    return found


def _alone(root: Path, name: str, target: Path, max_bytes: int) -> Found:
    try:
        status = target.stat()
        problem = _problem(name, status, max_bytes)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    if problem is not None:
        return Found(root, (), (DocumentError(printable_path(root / name), problem),), alone=True)
    return Found(root, (SourceFile(root=root, name=name, size_bytes=status.st_size),), alone=True)


def _problem(name: str, status: os.stat_result, max_bytes: int) -> str | None:
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"  # opening a pipe would block
    limit = max_bytes
    if status.st_size > limit and kind_of(name) in _ROWS:
        limit *= STREAMED
    if status.st_size > limit:
        return f"too large: {status.st_size / 2**20:.1f} MiB, and the limit is {limit / 2**20:.1f} MiB"
    return None


class _Walk:
    """One traversal of a folder. It has an explicit stack: `os.walk` recurses, and folders can be deep."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._sources: dict[str, SourceFile] = {}
        self._failures: list[DocumentError] = []
        self._links: list[str] = []
        self._skipped: defaultdict[str, list[str]] = defaultdict(list)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._rules, self._base = rules_above(root)

    def run(self) -> None:
        folders: list[tuple[str, Rules | None]] = [("", self._rules)]
        while folders:
            below, rules = folders.pop()
            place = os.path.join(self._root, below)
            try:
                with os.scandir(place) as entries:
                    found = list(entries)
            except OSError as error:
                self._fail(below, f"the folder cannot be read: {error.strerror}")
                continue
            names = {entry.name for entry in found}
            if not names.isdisjoint(IGNORE_FILES):
                rules = with_rules_of(place, (self._base + below).replace(os.sep, "/"), rules)
            is_beir = "corpus.jsonl" in names and "queries.jsonl" in names
            for entry in found:
                if is_beir and entry.name in ("queries.jsonl", "qrels.tsv", "qrels"):
                    self._skip(_BEIR, below + entry.name)
                elif self._take(entry, below, rules):
                    folders.append((below + entry.name + os.sep, rules))
        self._follow()

    def found(self) -> Found:
        sources = sorted(self._sources.values(), key=lambda source: source.id)
        failures = sorted(self._failures, key=lambda failure: failure.source)
        skipped = sorted(
            (Skipped(reason, self._counts[reason], tuple(sorted(some))) for reason, some in self._skipped.items()),
            key=lambda s: (-s.count, s.reason),
        )
        return Found(self._root, tuple(sources), tuple(failures), skipped=tuple(skipped))

    def _take(self, entry: os.DirEntry[str], below: str, rules: Rules | None) -> bool:
        """Classify an entry; return whether it is a folder to descend into."""
        name = entry.name
        path = below + name
        if name.startswith("."):
            self._skip(_HIDDEN, path)
            return False
        is_folder = entry.is_dir(follow_symlinks=False)
        if is_folder and name in _INSTALLED:
            self._skip(_IS_INSTALLED, path + os.sep)
            return False
        is_link = entry.is_symlink()
        kind = None if is_folder else kind_of(name)
        if kind is None and not is_folder and not is_link:
            self._skip(_other_kind(name), path)
        elif rules is not None and rules.ignores((self._base + path).replace(os.sep, "/"), is_folder=is_folder):
            self._skip(_IGNORED, path + os.sep * is_folder)
        elif is_link:
            self._links.append(path)
        elif not is_folder:
            self._add(path, entry)
        else:
            return True
        return False

    def _add(self, path: str, entry: os.DirEntry[str]) -> None:
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError as error:
            self._fail(path, f"cannot be read: {error.strerror}")
            return
        if problem := _problem(path, status, self._max_bytes):
            self._fail(path, problem)
        else:
            self._sources[path] = SourceFile(root=self._root, name=path, size_bytes=status.st_size)

    def _follow(self) -> None:
        """Resolve the links. A file and links to it are one document, under the file's own name."""
        root = str(self._root)
        inside = root if root.endswith(os.sep) else root + os.sep
        targets: set[str] = set()
        for path in sorted(self._links):
            is_kind = kind_of(path.rpartition(os.sep)[2]) is not None
            try:
                target = os.path.realpath(os.path.join(inside, path), strict=True)
                status = os.stat(target)
            except (OSError, ValueError):
                if is_kind:
                    self._fail(path, _NOWHERE)
                else:
                    self._skip(_NOWHERE, path)
                continue
            is_folder = stat.S_ISDIR(status.st_mode)
            is_inside = target == root or target.startswith(inside)
            if is_folder and is_inside:
                continue  # the traversal reaches it anyway; following the link could loop
            if not is_kind and not is_folder:
                self._skip(_other_kind(path.rpartition(os.sep)[2]), path)
            elif not is_inside:
                self._fail(path, _OUT)
            elif target[len(inside) :] in self._sources or target in targets:
                continue
            elif problem := _problem(path, status, self._max_bytes):
                self._fail(path, problem)
            else:
                targets.add(target)
                self._sources[path] = SourceFile(root=self._root, name=path, size_bytes=status.st_size)

    def _fail(self, path: str, reason: str) -> None:
        self._failures.append(DocumentError(printable_path(self._root / path), reason))

    def _skip(self, reason: str, path: str) -> None:
        if reason not in self._skipped and len(self._skipped) >= _MAX_REASONS:
            reason = "of other kinds that ragkit does not read"
        self._counts[reason] += 1
        if len(some := self._skipped[reason]) < _EXAMPLES:
            some.append(printable_path(path).replace(os.sep, "/"))


def _other_kind(name: str) -> str:
    _, dot, ending = name.rpartition(".")
    return f"not of a kind that ragkit reads: .{printable_path(ending).lower()[:20]}" if dot else "no file ending"
