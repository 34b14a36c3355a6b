"""The handbook and its questions are complete and consistent with each other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

from tests.conftest import ROOT

HANDBOOK = ROOT / "data" / "handbook"
QUESTIONS = ROOT / "data" / "questions"
PAGES = {path.relative_to(HANDBOOK).as_posix(): path.read_text(encoding="utf-8") for path in HANDBOOK.rglob("*.md")}


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (QUESTIONS / name).read_text(encoding="utf-8").splitlines()]


def test_number_and_length_of_pages() -> None:
    assert len(PAGES) == 30
    assert sum(name.startswith("fr/") for name in PAGES) == 5
    for name, text in PAGES.items():
        assert re.match(r"# \S", text), name
        assert len(re.findall(r"^## ", text, re.M)) >= 4, name


def test_every_link_between_pages_is_valid() -> None:
    for name, text in PAGES.items():
        for target in re.findall(r"\]\(([^)#\s]+\.md)", text):
            assert (HANDBOOK / name).parent.joinpath(target).resolve().is_relative_to(HANDBOOK), (name, target)
            assert (HANDBOOK / name).parent.joinpath(target).exists(), (name, target)


def test_every_span_is_at_its_offsets() -> None:
    for row in rows("spans.jsonl"):
        for span in row["spans"]:
            assert PAGES[span["document_id"]][span["start"] : span["end"]] == span["text"], row["_id"]


def test_there_are_enough_questions_of_each_kind() -> None:
    queries = {row["_id"]: row for row in rows("queries.jsonl")}
    answered = {row["_id"] for row in rows("spans.jsonl")}
    assert len(queries) == len(rows("queries.jsonl")) >= 80
    assert sum(query["language"] == "fr" for query in queries.values()) >= 15
    assert len(queries.keys() - answered) >= 10
    assert answered <= queries.keys()
    assert len({query["text"] for query in queries.values()}) == len(queries)


def test_judgements_match_the_spans() -> None:
    lines = (QUESTIONS / "qrels.tsv").read_text(encoding="utf-8").splitlines()[1:]
    judged = {tuple(line.split("\t")) for line in lines}
    assert judged == {(row["_id"], span["document_id"], "1") for row in rows("spans.jsonl") for span in row["spans"]}


def test_anchor_is_idempotent_and_lists_missing_spans(tmp_path: Path) -> None:
    for folder in ("handbook/fr", "questions"):
        (tmp_path / folder).mkdir(parents=True)
    for name, text in PAGES.items():
        (tmp_path / "handbook" / name).write_text(text, encoding="utf-8")
    for path in QUESTIONS.iterdir():
        (tmp_path / "questions" / path.name).write_bytes(path.read_bytes())
    command = [sys.executable, str(tmp_path / "questions" / "anchor.py")]
    subprocess.run(command, check=True, capture_output=True)
    for name in ("spans.jsonl", "qrels.tsv"):
        assert (tmp_path / "questions" / name).read_bytes() == (QUESTIONS / name).read_bytes()
    page = tmp_path / "handbook" / "bm25.md"
    page.write_text("New first words.\n\n" + PAGES["bm25.md"], encoding="utf-8")
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "questions" / "spans.jsonl").read_bytes() != (QUESTIONS / "spans.jsonl").read_bytes()
    page.write_text("# BM25\n", encoding="utf-8")
    lost = subprocess.run(command, check=False, capture_output=True, text=True)
    assert lost.returncode == 1
    assert "0 times in bm25.md" in lost.stderr


def test_notebooks_are_committed_without_outputs_and_can_be_parameterised() -> None:
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        book = nbformat.read(path, as_version=4)
        nbformat.validate(book)
        code = [cell for cell in book.cells if cell.cell_type == "code"]
        assert all(cell.outputs == [] and cell.execution_count is None for cell in code), path.name
        assert any("parameters" in cell.metadata.get("tags", []) for cell in code), path.name
