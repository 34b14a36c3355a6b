from __future__ import annotations

import datetime
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from ragkit.documents.formats import tables
from ragkit.documents.loading import load
from ragkit.documents.sources import find_sources
from ragkit.errors import DocumentError
from tests.support.reading import BILLION_LAUGHS, headings, one, part, read, refused, with_part

SHEET = "xl/worksheets/sheet1.xml"


def workbook(sheets: Mapping[str, Sequence[Sequence[Any]]]) -> bytes:
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


PORTS = workbook(
    {
        "Marées": [
            ["Port", "Hauteur", "Jour", "Note"],
            ["Brest", 6.5, datetime.date(2024, 5, 1), None],
            [None, None, None, None],
            ["Saint-Malo", 12.0, datetime.datetime(2024, 5, 2, 6, 12), "a\nb"],
        ],
        "Vide": [],
        "Plain": [["only one column"], ["two"]],
    }
)


def test_rows_include_the_column_names(tmp_path: Path) -> None:
    document = one(tmp_path, "a.xlsx", PORTS)
    assert document.text.split("\n\n") == [
        "## Marées",
        "Port: Brest; Hauteur: 6.5; Jour: 2024-05-01",
        "Port: Saint-Malo; Hauteur: 12; Jour: 2024-05-02 06:12:00; Note: a b",
        "## Plain",
        "only one column",
        "two",
        "",
    ]
    assert [label for label, *_ in headings(document)] == ["Marées", "Plain"]
    assert document.headings_at(document.text.index("Malo")) == ("Marées",)


def test_a_real_workbook(shared: Path) -> None:
    (document,) = load(find_sources(shared / "messy" / "mixed" / "test.xlsx").sources[0]).documents
    for text in (
        "09060124-b5e7-4717-9d07-3c046eb",
        "6ff4173b-42a5-4784-9b19-f49caff4d93d",
        "affc7dad-52dc-4b98-9b5d-51e65d8a8ad0",
    ):
        assert text in document.text


def test_a_long_sheet_becomes_several_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PART_CHARACTERS", 1_000)
    rows = [[f"name {n}", n] for n in range(300)]
    loaded = read(tmp_path, "a.xlsx", workbook({"Sheet": [["Name", "Number"], *rows]}))
    assert loaded.failures == ()
    assert [d.id for d in loaded.documents] == [f"a.xlsx#part {n}" for n in range(1, len(loaded.documents) + 1)]
    assert len(loaded.documents) > 5
    text = "".join(document.text for document in loaded.documents)
    assert all(f"Name: name {n}; Number: {n}\n" in text for n in range(300))
    assert all(document.text.startswith("## Sheet\n") for document in loaded.documents)


def test_a_damaged_sheet_does_not_affect_the_others(tmp_path: Path) -> None:
    loaded = read(tmp_path, "a.xlsx", with_part(PORTS, SHEET, part(PORTS, SHEET)[:-200]))
    (document,) = loaded.documents
    assert "only one column" in document.text
    (failure,) = loaded.failures
    assert "sheet Marées, from row" in failure.source


def test_empty(tmp_path: Path) -> None:
    assert refused(tmp_path, "a.xlsx", workbook({"Sheet": []})) == "empty: it contains no text"


def test_distant_cells(tmp_path: Path) -> None:
    far = '<c r="XFD1048576" t="inlineStr"><is><t>far away</t></is></c>'
    xml = f'<sheetData><row r="1"><c r="A1"><v>7</v></c></row><row r="1048576">{far}</row></sheetData>'
    sheet = part(PORTS, SHEET)
    whole = sheet[: sheet.index("<sheetData>")] + xml + sheet[sheet.index("</sheetData>") + len("</sheetData>") :]
    assert "far away" in one(tmp_path, "a.xlsx", with_part(PORTS, SHEET, whole)).text


def test_wide_rows_stop_at_the_time_limit(tmp_path: Path) -> None:
    rows = "".join(f'<row r="{n}"><c r="XFD{n}"><v>{n}</v></c></row>' for n in range(1, 200_000))
    sheet = part(PORTS, SHEET)
    whole = sheet[: sheet.index("<sheetData>")] + f"<sheetData>{rows}</sheetData></worksheet>"
    started = time.monotonic()
    loaded = read(tmp_path, "a.xlsx", with_part(PORTS, SHEET, whole), timeout_seconds=2)
    assert time.monotonic() - started < 15
    assert "not read in time" in loaded.failures[0].reason
    assert loaded.documents


def test_entities_are_not_expanded(tmp_path: Path) -> None:
    sheet = part(PORTS, SHEET)
    head, _, tail = sheet.partition("<worksheet")
    bomb = head + BILLION_LAUGHS.replace("x [", "worksheet [") + "<worksheet" + tail.replace("</v>", "&a12;</v>", 1)
    assert refused(tmp_path, "a.xlsx", with_part(PORTS, SHEET, bomb)).startswith("damaged")


def test_a_huge_cell(tmp_path: Path) -> None:
    sheet = part(PORTS, SHEET)
    cell = f'<c r="A9" t="inlineStr"><is><t>{"x" * 30_000_000}</t></is></c>'
    whole = sheet.replace("</sheetData>", f'<row r="9">{cell}</row></sheetData>')
    with pytest.raises(DocumentError, match="too much text"):
        read(tmp_path, "a.xlsx", with_part(PORTS, SHEET, whole))
