from __future__ import annotations

from pathlib import Path

import pytest

from ragkit.documents.loading import load
from ragkit.documents.sources import find_sources
from tests.support.reading import BILLION_LAUGHS, headings, one, read, refused, zipped

CONTAINER = """<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">
<rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>"""
NCX = """<ncx xmlns="http://www.daisy.org/z3986/2005/ncx/"><navMap><navPoint><navLabel><text>Prologue</text></navLabel>
<content src="text/one.xhtml#start"/></navPoint></navMap></ncx>"""


def chapter(body: str) -> str:
    return (
        "<?xml version='1.0' encoding='utf-8'?><!DOCTYPE html><html xmlns='http://www.w3.org/1999/xhtml'>"
        f"<head><title/><style>p {{}}</style></head><body>{body}</body></html>"
    )


def book(*chapters: str, title: str = "Les marées", **more: str) -> bytes:
    names = [f"text/{name}.xhtml" for name in ("one", "two", "three", "four")[: len(chapters)]]
    items = "".join(
        f"<item id='c{n}' href='{name}' media-type='application/xhtml+xml'/>" for n, name in enumerate(names)
    )
    refs = "".join(f"<itemref idref='c{n}'/>" for n in range(len(names)))
    opf = f"""<package xmlns="http://www.idpf.org/2007/opf" xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata>
    <dc:title>{title}</dc:title></metadata><manifest>{items}
    <item id="ncx" href="toc.ncx" media-type="application/x-dtbncx+xml"/></manifest><spine>{refs}</spine></package>"""
    parts = {
        "mimetype": "application/epub+zip",
        "META-INF/container.xml": CONTAINER,
        "OPS/book.opf": opf,
        "OPS/toc.ncx": NCX,
    }
    return zipped(parts | {f"OPS/{n}": c for n, c in zip(names, chapters, strict=True)} | more)


def test_chapters_in_reading_order(tmp_path: Path) -> None:
    one_ = chapter("<p>L'eau <b>monte</b>.</p><p><a id='x'/>Elle descend.</p>")
    two = chapter(
        "<h1>La lune</h1><h2>Les <i>quartiers</i></h2><table><tr><th>a</th></tr><tr><td>b</td></tr></table>"
        "<nav>Not lost</nav>"
    )
    document = one(tmp_path, "a.epub", book(one_, two))
    assert document.title == "Les marées"
    assert headings(document) == [
        ("Prologue", 1, "# Prologue"),  # the chapter has no heading, so this is its name in the table of contents
        ("La lune", 1, "# La lune"),
        ("Les quartiers", 2, "## Les quartiers"),
    ]
    assert "L'eau monte.\n\nElle descend." in document.text
    assert "| a |\n| --- |\n| b |" in document.text
    assert "Not lost" in document.text
    assert "xml" not in document.text


def test_a_real_book(shared: Path) -> None:
    (document,) = load(find_sources(shared / "messy" / "mixed" / "test.epub").sources[0]).documents
    assert document.title == "Test EPUB Document"
    assert [label for label, *_ in headings(document)] == ["Chapter 1: Test Content", "Chapter 2: More Content"]
    assert "> This is a blockquote for testing." in document.text


def test_a_missing_chapter_does_not_affect_the_others(tmp_path: Path) -> None:
    file = book(chapter("<p>One</p>"), chapter("<p>Two</p>")).replace(b"OPS/text/one", b"OPS/text/eno")
    loaded = read(tmp_path, "a.epub", file)
    assert "Two" in loaded.documents[0].text
    assert [f.source.rpartition(", ")[2] for f in loaded.failures] == ["chapter 1"]


def test_paths_outside_the_archive_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("TOP SECRET")
    for way in ("../../../secret", "/secret", "..%2f..%2fsecret", (tmp_path / "secret").as_uri()):
        opf = f"""<package><manifest><item id="a" href="{way}" media-type="application/xhtml+xml"/></manifest>
            <spine><itemref idref="a"/></spine></package>"""
        file = zipped({"META-INF/container.xml": CONTAINER, "OPS/book.opf": opf})
        assert "empty" in refused(tmp_path, "a.epub", file)


def test_copy_protection(tmp_path: Path) -> None:
    def protected(method: str) -> bytes:
        xml = f"<e><EncryptedData><EncryptionMethod Algorithm='{method}'/></EncryptedData></e>"
        return book(chapter("<p>One</p>"), **{"META-INF/encryption.xml": xml})

    assert "copy protection" in refused(tmp_path, "a.epub", protected("http://www.w3.org/2001/04/xmlenc#aes128-cbc"))
    one(tmp_path, "b.epub", protected("http://www.idpf.org/2008/embedding"))  # fonts only


@pytest.mark.parametrize(
    "body",
    [
        "<div>" * 20_000 + "x",
        "<p>" * 50_000,
        "<b>" * 50_000,
        "<a href='x'>" * 20_000,
        "<img alt='x'/><!-- -->" * 20_000,
        "&a12;" * 1_000,
        "<table><tr><td>" * 5_000,
        "<script>" * 20_000,
        "<" * 100_000,
    ],
)
def test_hostile_chapters(tmp_path: Path, body: str) -> None:
    loaded = read(tmp_path, "a.epub", book(chapter(body), chapter("<p>Two</p>")))
    assert "Two" in loaded.documents[0].text
    assert len(loaded.documents[0].text) < 200_000


def test_hostile_packages(tmp_path: Path) -> None:
    bomb = f"{BILLION_LAUGHS.replace('x [', 'package [')}<package><metadata><title>&a12;</title></metadata></package>"
    file = {"META-INF/container.xml": CONTAINER, "OPS/book.opf": bomb}
    assert refused(tmp_path, "a.epub", zipped(file))
    assert "does not say what it contains" in refused(tmp_path, "b.epub", zipped({"a": ""}))
    assert refused(tmp_path, "c.epub", zipped(file | {"OPS/book.opf": "<package"})).startswith("damaged")
    assert refused(tmp_path, "d.epub", zipped(file | {"OPS/book.opf": "<package/>"})) == "empty: it contains no text"
