"""What the tests of every reader need: a file on disk, and what became of it."""

from __future__ import annotations

import io
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ragkit.documents.document import Document
from ragkit.documents.loading import Loaded, load
from ragkit.documents.sources import find_sources
from ragkit.errors import DocumentError

MOST_SECONDS = 30.0  # for the worst of files, on a busy machine

# As the makers of the files say (charset-normalizer's own tests).
ENCODINGS = {
    "arabic-1": "cp1256", "arabic": "utf-8", "bulgarian": "utf-8", "chinese": "big5", "english.bom": "utf-8",
    "french-1": "cp1252", "french": "utf-8", "greek-2": "cp1253", "greek": "cp1253", "hebrew-2": "cp1255",
    "hebrew-3": "cp1255", "korean": "cp949", "polish": "utf-8", "russian-2": "utf-8", "russian-3": "utf-8",
    "russian": "mac_cyrillic", "spanish": "utf-8", "turkish": "cp1254",
}  # fmt: skip


def read(folder: Path, name: str, content: str | bytes, **options: Any) -> Loaded:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    started = time.monotonic()
    try:
        return load(find_sources(file).sources[0], **options)
    finally:
        assert time.monotonic() - started < MOST_SECONDS


def one(folder: Path, name: str, content: str | bytes) -> Document:
    loaded = read(folder, name, content)
    assert loaded.failures == ()
    (document,) = loaded.documents
    check_marks(document)
    return document


def refused(folder: Path, name: str, content: str | bytes) -> str:
    with pytest.raises(DocumentError) as caught:
        read(folder, name, content)
    assert caught.value.source == str((folder / name).resolve())
    return caught.value.reason


def check_marks(document: Document) -> None:
    """Marks are in order, within the text, and a heading's first word stands where its mark says."""
    starts = [mark.start for mark in document.marks]
    assert starts == sorted(starts)
    for mark in document.marks:
        assert 0 <= mark.start < len(document.text)
        if mark.kind == "heading":
            assert mark.label.split()[0][:3] in document.text[mark.start : mark.start + len(mark.label) + 200]


def headings(document: Document) -> list[tuple[str, int, str]]:
    """Each heading with its level and the line that it begins on."""
    return [
        (mark.label, mark.level, document.text[mark.start :].split("\n", 1)[0])
        for mark in document.marks
        if mark.kind == "heading"
    ]


def zipped(parts: Mapping[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return out.getvalue()


def with_part(archive: bytes, name: str, content: str | bytes) -> bytes:
    """The same archive with another content of one part."""
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        parts: dict[str, str | bytes] = {part: old.read(part) for part in old.namelist()}
    return zipped(parts | {name: content})


def part(archive: bytes, name: str) -> str:
    with zipfile.ZipFile(io.BytesIO(archive)) as old:
        return old.read(name).decode()


BILLION_LAUGHS = (
    "<!DOCTYPE x [<!ENTITY a0 'ha'>" + "".join(f"<!ENTITY a{n + 1} '{f'&a{n};' * 10}'>" for n in range(12)) + "]>"
)
"""Before an element that holds ``&a12;``: two terabytes of laughter."""
