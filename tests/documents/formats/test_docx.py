from __future__ import annotations

import io
from pathlib import Path

import docx
import pytest

from ragkit.documents.loading import load
from ragkit.documents.sources import find_sources
from tests.support.reading import BILLION_LAUGHS, headings, one, part, refused, with_part, zipped

BODY = "word/document.xml"


def word(*, title: str = "", language: str = "en") -> bytes:
    document = docx.Document()
    document.core_properties.title = title
    document.add_heading("Les marées" if language == "fr" else "The tides", level=0)
    document.add_heading("La lune", level=1)
    document.add_paragraph("L'eau monte deux fois par jour.")
    document.add_heading("Tableau", level=2)
    table = document.add_table(rows=2, cols=2)
    for cell, text in zip(table._cells, ("Port", "Heure", "Brest | Ouest", "6 h 12"), strict=True):
        cell.text = text
    for text in ("un", "deux"):
        document.add_paragraph(text, style="List Bullet")
    document.add_paragraph("snake_case *and* stars")
    out = io.BytesIO()
    document.save(out)
    return out.getvalue()


def test_headings_lists_and_tables(tmp_path: Path) -> None:
    document = one(tmp_path, "a.docx", word(language="fr"))
    assert headings(document) == [
        ("Les marées", 1, "# Les marées"),
        ("La lune", 1, "# La lune"),
        ("Tableau", 2, "## Tableau"),
    ]
    assert document.title == "Les marées"
    assert document.language == "fr"
    assert "| Port | Heure |\n| --- | --- |\n| Brest" in document.text
    assert "- un\n- deux" in document.text
    assert "snake_case *and* stars" in document.text  # as it is written, without escapes


def test_the_title_is_the_documents_own(tmp_path: Path) -> None:
    assert one(tmp_path, "a.docx", word(title="Annuaire")).title == "Annuaire"
    assert one(tmp_path, "a.docx", word(title="Microsoft Word - draft.docx")).title == "The tides"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("footnotes", "1. A tachyon walks into a bar."),
        ("endnotes", "1. A tachyon walks into a bar."),
        ("comments", "A tachyon walks into a bar."),
        ("text-box", "Datum plane"),
        ("tables", "| Bottom left | Bottom right |"),
        ("simple-list", "- Apple\n- Banana"),
        ("footnote-hyperlink", "[Example](http://www.example.com)"),
        ("strict-format", "Test"),
        ("utf8-bom", "This XML has a byte order mark."),
    ],
)
def test_real_documents(shared: Path, name: str, text: str) -> None:
    (document,) = load(find_sources(shared / "messy" / "docx" / f"{name}.docx").sources[0]).documents
    assert text in document.text


def test_equations_are_text(shared: Path) -> None:
    (document,) = load(find_sources(shared / "messy" / "mixed" / "equations.docx").sources[0]).documents
    assert "For m=1," in document.text
    assert "=mλ/a=" in document.text
    assert "2.2×10^(-4)" in document.text


def test_only_a_picture(shared: Path) -> None:
    for name in ("tiny-picture", "external-picture"):
        source = find_sources(shared / "messy" / "docx" / f"{name}.docx").sources[0]
        with pytest.raises(Exception, match="no text, only pictures"):
            load(source)


# -------------------------------------------------------------------------------------- hostile


def test_content_that_does_not_match_the_name(tmp_path: Path) -> None:
    assert "not what its name says" in refused(tmp_path, "a.docx", b"PK\x03\x04 and so on")
    assert "not what its name says" in refused(tmp_path, "b.docx", "plain text")
    assert "not what its name says" in refused(tmp_path, "c.docx", zipped({"a.txt": "x"}))
    assert "not what its name says" in refused(tmp_path, "d.docx", word()[:-3_000])
    assert refused(tmp_path, "e.docx", b"") == "empty: it contains no text"


def test_encrypted_or_old(tmp_path: Path) -> None:
    head = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)
    assert refused(tmp_path, "a.docx", head + "EncryptedPackage".encode("utf-16-le")).startswith("encrypted")
    assert "older Office file" in refused(tmp_path, "b.docx", head + "WordDocument".encode("utf-16-le"))


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    xml = part(word(), BODY)
    head, _, tail = xml.partition("<w:document")
    bomb = head + BILLION_LAUGHS.replace("x [", "w:document [") + "<w:document" + tail.replace("La lune", "&a12;")
    assert refused(tmp_path, "a.docx", with_part(word(), BODY, bomb))
    (tmp_path / "secret").write_text("TOP SECRET")
    entity = f"<!DOCTYPE w:document [<!ENTITY s SYSTEM '{(tmp_path / 'secret').as_uri()}'>]>"
    file = with_part(word(), BODY, head + entity + "<w:document" + tail.replace("La lune", "&s;"))
    try:
        text = one(tmp_path, "b.docx", file).text
    except Exception as error:
        text = str(error)
    assert "SECRET" not in text


def test_zip_bombs(tmp_path: Path) -> None:
    large = with_part(word(), BODY, b" " * (65 * 2**20))
    assert "more than is safe" in refused(tmp_path, "a.docx", large)
    # A central directory that understates the size: only the declared size is read.
    lying = large.replace((65 * 2**20).to_bytes(4, "little"), (1_000).to_bytes(4, "little"))
    assert "damaged" in refused(tmp_path, "b.docx", lying)
    assert "20,001 parts" in refused(tmp_path, "d.docx", zipped({str(n): b"" for n in range(20_001)}))


def test_deeply_nested_tables(tmp_path: Path) -> None:
    cell = "<w:tbl><w:tr><w:tc>{}</w:tc></w:tr></w:tbl>"
    inner = "<w:p><w:r><w:t>inside</w:t></w:r></w:p>"
    for _ in range(2_000):
        inner = cell.format(inner)
    xml = part(word(), BODY)
    at = xml.index("<w:p>")
    assert refused(tmp_path, "a.docx", with_part(word(), BODY, xml[:at] + inner + xml[at:]))
