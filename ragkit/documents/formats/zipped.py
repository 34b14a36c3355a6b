"""ZIP archives (Office documents and EPUB books), opened only if they are safe to unpack.

Nothing is written to disk, so a path in an archive that points outside it is harmless. An archive declares the size of
its parts, and `zipfile` reads no more of a part than its declared size, so checking the declared sizes is enough.
"""

from __future__ import annotations

import zipfile
from typing import Any

from ragkit.documents.builder import ENCRYPTED, NO_TEXT
from ragkit.documents.document import SourceFile
from ragkit.errors import DocumentError

MAX_PARTS = 20_000
MAX_UNPACKED_BYTES = 2**30
MAX_MARKUP_BYTES = 32 * 2**20  # of a part that is parsed to a tree in memory, which takes up to 40 times its size
_TREES = (".xml", ".rels", ".xhtml", ".html", ".htm", ".opf", ".ncx")
_STREAMED = ("xl/worksheets/", "xl/sharedStrings.xml")
_COMPOUND_FILE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def open_archive(source: SourceFile) -> zipfile.ZipFile:
    """Open an archive after checking the size of its parts.

    Raises:
        DocumentError: The file is empty or encrypted, or its parts are too large or too many.
        BadZipFile: The file is not a ZIP archive.
        OSError: The file cannot be read.
    """
    with source.path.open("rb") as file:
        head = file.read(8)
        if not head.strip():
            raise DocumentError(source.where, NO_TEXT)
        if head == _COMPOUND_FILE:
            raise DocumentError(source.where, _compound(file.read(2**20)))
    archive = zipfile.ZipFile(source.path)
    parts = archive.infolist()
    problem = ""
    if any(part.flag_bits & 1 for part in parts):
        problem = ENCRYPTED
    elif len(parts) > MAX_PARTS:
        problem = f"unfolds to more than is safe to read: {len(parts):,} parts"
    elif (total := sum(part.file_size for part in parts)) > MAX_UNPACKED_BYTES:
        problem = f"unfolds to more than is safe to read: {total / 2**20:,.0f} MiB"
    else:
        for part in parts:
            is_tree = part.filename.lower().endswith(_TREES) and not part.filename.startswith(_STREAMED)
            if is_tree and part.file_size > MAX_MARKUP_BYTES:
                problem = f"unfolds to more than is safe to read: a part of {part.file_size / 2**20:,.0f} MiB"
    if problem:
        archive.close()
        raise DocumentError(source.where, problem)
    return archive


def _compound(data: bytes) -> str:
    if "EncryptedPackage".encode("utf-16-le") in data:
        return ENCRYPTED
    return "an older Office file (.doc, .ppt, .xls) with a newer extension; save it in the newer format"


def part_of(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the content of a part; empty if there is no part of that name."""
    try:
        return archive.read(name)
    except KeyError:
        return b""


def parsed(xml: bytes) -> Any:
    """Parse XML safely: no entity is expanded, no other file is read."""
    from lxml import etree

    return etree.fromstring(xml, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))


def core_title(archive: zipfile.ZipFile) -> str:
    """Return the title in an Office document's properties; empty if there is none."""
    xml = part_of(archive, "docProps/core.xml")
    return (parsed(xml).findtext("{http://purl.org/dc/elements/1.1/}title") or "") if xml else ""
