"""Books (EPUB): the chapters in reading order, converted to Markdown."""

from __future__ import annotations

import posixpath
import time
import zipfile
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import unquote

from ragkit.documents.builder import DocumentBuilder, one_line, reason_of
from ragkit.documents.document import Document, SourceFile
from ragkit.documents.encoding import decode
from ragkit.documents.formats.zipped import open_archive, parsed, part_of
from ragkit.documents.markup import html_in_full
from ragkit.errors import DocumentError

_HTML = frozenset({"application/xhtml+xml", "text/html", "application/x-dtbook+xml"})
# Fonts are often encrypted when the text is not.
_OF_FONTS = frozenset({"http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC"})


def read_epub(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    """See `ragkit.documents.read`."""
    with open_archive(source) as archive:
        if _is_encrypted(archive):
            raise DocumentError(source.where, "encrypted: it has copy protection; get a copy without")
        folder, tree = _package(archive, source)
        title = one_line(tree.findtext(".//{*}metadata/{*}title") or "")
        items = {item.get("id"): item for item in tree.iterfind(".//{*}manifest/{*}item")}
        labels = _labels(archive, folder, items.values())
        builder = DocumentBuilder(source)
        spine = [ref.get("idref") for ref in tree.iterfind(".//{*}spine/{*}itemref")]
        for number, idref in enumerate(spine, start=1):
            where = f"{source.where}, chapter {number}"
            if time.monotonic() > deadline:
                yield DocumentError(f"{source.where}, from chapter {number}", reason_of(TimeoutError()))
                break
            item = items.get(idref)
            if item is not None and item.get("media-type", "application/xhtml+xml") not in _HTML:
                continue  # a picture
            if item is not None and "nav" in (item.get("properties") or "").split():
                continue  # the table of contents
            name = _inside(folder, item.get("href") or "") if item is not None else ""
            try:
                if name not in archive.namelist():
                    raise DocumentError(where, "the book lists it but does not contain it")
                text = html_in_full(decode(archive.read(name), where=where, declares=True)[0])
            except DocumentError as error:
                yield error
                continue
            except Exception as error:  # any error, as in `parse`: a bad chapter must not affect the others
                yield DocumentError(where, reason_of(error))
                continue
            if text and not text.startswith("#"):
                builder.heading(labels.get(name, ""), level=1)
            builder.add(text, is_markdown=True)
        yield builder.finish(title=title, chapters=len(spine))


def _is_encrypted(archive: zipfile.ZipFile) -> bool:
    xml = part_of(archive, "META-INF/encryption.xml")
    methods = parsed(xml).iterfind(".//{*}EncryptionMethod") if xml else ()
    return any(method.get("Algorithm") not in _OF_FONTS for method in methods)


def _package(archive: zipfile.ZipFile, source: SourceFile) -> tuple[str, Any]:
    """Return the folder and the parsed XML of the package document, which lists the chapters."""
    container = part_of(archive, "META-INF/container.xml")
    root = parsed(container).find(".//{*}rootfile") if container else None
    path = root.get("full-path") if root is not None else None
    package = part_of(archive, path or "")
    if not package:
        raise DocumentError(source.where, "damaged: the book does not say what it contains (META-INF/container.xml)")
    return posixpath.dirname(path or ""), parsed(package)


def _labels(archive: zipfile.ZipFile, folder: str, items: Iterable[Any]) -> dict[str, str]:
    """Return each file's name in the table of contents: the NCX (EPUB 2, and most EPUB 3 books) or the nav document."""
    labels: dict[str, str] = {}
    for item in items:
        is_ncx = item.get("media-type") == "application/x-dtbncx+xml"
        is_nav = "nav" in (item.get("properties") or "").split()
        if not (is_ncx or is_nav):
            continue
        path = _inside(folder, item.get("href") or "")
        try:
            tree = parsed(part_of(archive, path))
        except (SyntaxError, ValueError):  # base classes of lxml's errors; chapters can be read without names
            continue
        if is_ncx:
            points = ((p.find("{*}content"), p.findtext("{*}navLabel/{*}text")) for p in tree.iter("{*}navPoint"))
            pairs = [(c.get("src"), label) for c, label in points if c is not None]
        else:
            pairs = [(a.get("href"), "".join(a.itertext())) for a in tree.iter("{*}a")]
        for href, label in pairs:
            name = _inside(posixpath.dirname(path), (href or "").partition("#")[0])
            labels.setdefault(name, one_line(label or ""))
    return labels


def _inside(folder: str, href: str) -> str:
    """Resolve a reference from one part of the archive to another."""
    return posixpath.normpath(posixpath.join(folder, unquote(href)))
