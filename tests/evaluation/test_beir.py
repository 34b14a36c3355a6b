"""Datasets that are written and read back."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from ragkit.documents.document import Document, Mark
from ragkit.errors import InputError, RagkitError
from ragkit.evaluation.beir import save_dataset
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.evaluation.loading import load_dataset

TEXT = "# Élan\n\nL’élan vit  au nord ; « toujours ».\t\u2028Voilà 🎈.\n\nPage two says that elk live in the north.\n"
DOCUMENT = Document(
    id="fr/élan #1.md",
    text=TEXT,
    source="fr/élan.md",
    title="Élan",
    language="fr",
    marks=(Mark(0, "heading", "Élan"), Mark(8, "page", "1"), Mark(20, "heading", "Où ?", 3), Mark(50, "page", "2")),
    metadata={"year": 1976, "journal": "Cervidae", "tags": ["left", "out"]},
)
SET = Dataset(
    "élans",
    [DOCUMENT, Document(id="empty", text="", source="", title="No text")],
    [
        Query("q 1", "Où vit l’élan ?", language="fr", answers=("au nord", "in the north"), synthetic=True),
        Query("2", "Who wrote\nthis?", answerable=False),
        Query("q3", "What is empty?", answerable=True),
    ],
    {"q 1": {DOCUMENT.id: 2, "elsewhere": 1, "empty": 0}, "q3": {"empty": 1}},
    {"q 1": [GoldSpan(DOCUMENT.id, 16, 27), GoldSpan(DOCUMENT.id, 8, 12)]},
)


def changed(**fields: object) -> Dataset:
    return dataclasses.replace(SET, **fields)  # type: ignore[arg-type]


def test_a_saved_dataset_reads_back_the_same(tmp_path: Path) -> None:
    folder = save_dataset(SET, tmp_path / "sets" / "élans")
    found = load_dataset(folder)
    assert found.digest() == SET.digest()
    assert found.name == SET.name
    assert found.queries == SET.queries
    assert found.qrels == SET.qrels
    assert found.spans == SET.spans
    assert found.documents[0].marks == DOCUMENT.marks
    assert found.documents[0].metadata == {"year": 1976, "journal": "Cervidae"}
    assert [path.name for path in sorted(folder.parent.iterdir())] == ["élans"]  # no temporary files are left
    assert (
        save_dataset(found, tmp_path / "again").joinpath("corpus.jsonl").read_bytes()
        == (folder / "corpus.jsonl").read_bytes()
    )


def test_the_layout_is_that_of_beir(tmp_path: Path) -> None:
    folder = save_dataset(SET, tmp_path / "set")
    lines = (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["query-id\tcorpus-id\tscore", f"q 1\t{DOCUMENT.id}\t2"]
    (row, *_) = (json.loads(line) for line in (folder / "spans.jsonl").read_text(encoding="utf-8").split("\n") if line)
    assert [span["text"] for span in row["spans"]] == [TEXT[16:27], TEXT[8:12]]


def test_a_dataset_without_spans_has_no_spans_file(tmp_path: Path) -> None:
    folder = save_dataset(changed(spans={}), tmp_path / "set")
    assert not (folder / "spans.jsonl").exists()
    assert load_dataset(folder).digest() == changed(spans={}).digest()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"documents": [DOCUMENT, Document(id="empty", text="NUL \x00", source="", title="")]}, "document 'empty'"),
        ({"documents": [DOCUMENT, Document(id="empty", text="a\r\nb", source="", title="")]}, "document 'empty'"),
        ({"documents": [DOCUMENT, Document(id="empty", text="", source="", title="a  b")]}, "document 'empty'"),
        ({"queries": [*SET.queries, Query("q4", "Judged by nothing?")]}, "query 'q4'"),
        ({"queries": [SET.queries[0], SET.queries[1], Query("q3", "\ud800?")]}, "query 'q3'"),
        ({"qrels": {"q3": {"a\tb": 1}}, "spans": {}}, "could not be read back"),
        ({"qrels": {"q3": {"empty ": 1}}, "spans": {}}, "could not be read back"),
    ],
)
def test_a_dataset_that_would_change_is_refused(fields: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        save_dataset(changed(**fields), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    save_dataset(SET, tmp_path / "set")  # empty
    with pytest.raises(InputError, match="already exists and is not an empty folder"):
        save_dataset(SET, tmp_path / "set")
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="already exists and is not an empty folder"):
        save_dataset(SET, tmp_path / "file")
    with pytest.raises(RagkitError, match="could not be written"):
        save_dataset(SET, tmp_path / "file" / "set")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "marks",
    [
        [[0, "heading", "A"]],
        [[0, "footnote", "A", 1]],
        [["0", "heading", "A", 1]],
        [[999, "heading", "A", 1]],
        [[-1, "heading", "A", 1]],
        [[3, "heading", "B", 1], [0, "heading", "A", 1]],
        [[0, "page", "iv", 1]],
    ],
)
def test_invalid_marks_are_refused(marks: object, tmp_path: Path) -> None:
    folder = save_dataset(SET, tmp_path / "set")
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text(encoding="utf-8").split("\n") if line]
    rows[0]["marks"] = marks
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(InputError, match="line 1"):
        load_dataset(folder)
