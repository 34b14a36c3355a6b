from __future__ import annotations

import contextlib
import itertools
import json
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragkit.documents.document import Document
from ragkit.documents.formats import tables
from ragkit.documents.loading import read
from ragkit.documents.sources import find_sources
from ragkit.errors import DocumentError
from tests.support.reading import one, refused
from tests.support.reading import read as read_file


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_rows_include_the_column_names(tmp_path: Path, delimiter: str) -> None:
    rows = [
        ["Ville", "Population", "Note"],
        ["Brest", "139 619", "a, b; c"],
        ["Saint-Malo", "", 'dit "la cité"\ncorsaire'],
    ]
    text = "\r\n".join(delimiter.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows)
    for name, encoding in (("a.csv", "utf-8-sig"), ("b.csv", "cp1252"), ("c.csv", "utf-16")):
        document = one(tmp_path, name, (text + "\r\n").encode(encoding))
        assert document.text.split("\n\n") == [
            "Ville: Brest; Population: 139 619; Note: a, b; c",
            'Ville: Saint-Malo; Note: dit "la cité" corsaire',
            "",
        ]


def test_tsv(tmp_path: Path) -> None:
    assert one(tmp_path, "a.tsv", "name\tage, in years\nAda\t36\n").text == "name: Ada; age, in years: 36\n\n"


def test_without_a_header(tmp_path: Path) -> None:
    assert one(tmp_path, "a.csv", "1,2\n3,4\n").text == "1; 2\n\n3; 4\n\n"
    assert one(tmp_path, "b.csv", "just,a header\n").text == "just; a header\n\n"
    assert one(tmp_path, "c.csv", "words\nin one column\n").text == "words\n\nin one column\n\n"
    assert one(tmp_path, "d.csv", "a,b\n1,2,3\n").text == "a: 1; b: 2; 3\n\n"


def test_a_real_file_in_shift_jis(shared: Path) -> None:
    (source,) = find_sources(shared / "messy" / "mixed" / "test_mskanji.csv").sources
    (document,) = (item for item in read(source) if isinstance(item, Document))
    assert "名前: 髙橋淳; 年齢: 35; 住所: 名古屋" in document.text


def test_a_long_table_becomes_several_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "PART_CHARACTERS", 2_000)
    rows = "".join(f"name {n},{n}\n" for n in range(1_000))
    loaded = read_file(tmp_path, "a.csv", "Name,Number\n" + rows)
    assert len({document.id for document in loaded.documents}) == len(loaded.documents) > 9
    text = "".join(document.text for document in loaded.documents)
    assert all(f"Name: name {n}; Number: {n}\n" in text for n in range(1_000))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.lists(
            st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=20), min_size=2, max_size=2
        ),
        min_size=1,
        max_size=8,
    )
)
def test_no_cell_is_lost(tmp_path: Path, rows: list[list[str]]) -> None:
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in [["head", "line"], *rows]]
    (tmp_path / "a.csv").write_text("\n".join(quoted), encoding="utf-8")
    text = "".join(
        item.text for item in read(find_sources(tmp_path / "a.csv").sources[0]) if isinstance(item, Document)
    )
    for cell in itertools.chain.from_iterable(rows):
        assert " ".join(cell.replace("\ufeff", "").split()) in text.replace("\ufeff", "")


@pytest.mark.parametrize(
    "content", ['"' * 100_001, '"never closed\n' * 50_000, "," * 1_000_000, "a,b\n" + '"x' * 10_000, "\x00a,b\n1,2\n"]
)
def test_hostile_tables(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.csv").write_text(content)
    started = time.monotonic()
    with contextlib.suppress(DocumentError):  # both outcomes are fine
        read_file(tmp_path, "a.csv", content)
    assert time.monotonic() - started < 20


def test_empty(tmp_path: Path) -> None:
    assert refused(tmp_path, "a.csv", ",,\n,,\n") == "empty: it contains no text"


# ----------------------------------------------------------------------------------------- JSONL


def test_rows_stream(tmp_path: Path) -> None:
    """The first row is yielded before the last is read, and the rows are never all in memory."""
    file = tmp_path / "a.jsonl"
    with file.open("w") as out:
        for number in range(20_000):
            out.write(json.dumps({"_id": str(number), "text": f"{number} " + "x" * 2_000}) + "\n")
    (source,) = find_sources(file).sources
    assert source.size_bytes > 40_000_000
    items = read(source)
    first = next(items)
    assert isinstance(first, Document)
    assert first.id == "a.jsonl#0"
    tracemalloc.start()
    try:
        count = sum(isinstance(item, Document) for item in itertools.islice(items, 500))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 500
    assert peak < 15e6


def test_two_rows_with_the_same_id_are_two_documents(tmp_path: Path) -> None:
    loaded = read_file(tmp_path, "a.jsonl", '{"_id": "1", "text": "one"}\n{"_id": "1", "text": "two"}\n')
    assert [d.id for d in loaded.documents] == ["a.jsonl#1", "a.jsonl#1 (line 2)"]


def test_a_row_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CHARACTERS", 1_000)
    loaded = read_file(tmp_path, "a.jsonl", '{"text": "' + "x" * 5_000 + '"}\n{"text": "short"}\n')
    assert [d.text for d in loaded.documents] == ["short"]
    assert "longer than 1,000 characters" in loaded.failures[0].reason
    assert loaded.failures[0].source.endswith("line 1")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252", "cp1251"])
def test_rows_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    text = "Привет, как дела? Всё хорошо." if encoding == "cp1251" else "L'été à la plage, les élèves étonnés."
    rows = "".join(json.dumps({"text": f"{text} {n}"}, ensure_ascii=False) + "\n" for n in range(50))
    loaded = read_file(tmp_path, "a.jsonl", rows.encode(encoding))
    assert loaded.documents[49].text == f"{text} 49"
