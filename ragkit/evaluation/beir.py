"""Writing judged sets in the layout of BEIR, with gold spans; `ragkit.datasets.load_dataset` reads it."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ragkit.documents.document import Document
from ragkit.errors import InputError
from ragkit.evaluation.dataset import GoldSpan, Query
from ragkit.evaluation.loading import Dataset, load_dataset
from ragkit.files import refused

__all__ = ["write_dataset"]


def write_dataset(dataset: Dataset, folder: str | Path) -> Path:
    """Write a judged set, whole or not at all, so that `load_dataset` reads the same: its digest does not change.

    ``corpus.jsonl`` holds the documents with their headings and pages, ``queries.jsonl`` the questions with their
    answers, ``qrels/test.tsv`` the judgements, and ``spans.jsonl`` the gold spans with their words. Where a document
    was read from is not kept.

    Args:
        dataset: The set.
        folder: Where to; a new folder, or an empty one.

    Returns:
        The folder.

    Raises:
        InputError: There is something already, or the set cannot be written so that it reads the same: an id with a
            tab, a question that is judged by nothing.
        RagkitError: The disk refused.
    """
    folder = Path(folder).expanduser()
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"There is something at '{folder}' already. Name a new folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            written = Path(temporary) / "dataset"
            _write(dataset, written)
            try:
                lost = _lost(dataset, load_dataset(written))
            except InputError as error:
                raise InputError(f"'{dataset.name}' would not be read again as it is: {error}") from error
            if lost:
                raise InputError(f"'{dataset.name}' would not be read again as it is: {lost}. Change that first.")
            if folder.exists():
                folder.rmdir()
            shutil.move(written, folder)
    except OSError as error:
        raise refused(folder, error) from error
    return folder


def _write(dataset: Dataset, folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    _write_rows(folder / "corpus.jsonl", map(_document_row, dataset.documents))
    _write_rows(folder / "queries.jsonl", map(_query_row, dataset.queries))
    lines = [f"{q}\t{d}\t{grade}\n" for q, judged in dataset.qrels.items() for d, grade in judged.items()]
    _write_text(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n" + "".join(lines))
    texts = {document.id: document.text for document in dataset.documents}
    spans = [
        {"_id": query_id, "spans": [{**dataclasses.asdict(span), "text": _words(span, texts)} for span in found]}
        for query_id, found in dataset.spans.items()
    ]
    if spans:
        _write_rows(folder / "spans.jsonl", spans)


def _words(span: GoldSpan, texts: Mapping[str, str]) -> str:
    return texts[span.document_id][span.start : span.end]


def _document_row(document: Document) -> dict[str, Any]:
    own = {
        "_id": document.id,
        "title": document.title,
        "text": document.text,
        "language": document.language,
        "marks": [[mark.start, mark.kind, mark.label, mark.level] for mark in document.marks],
    }
    known = {k: v for k, v in document.metadata.items() if k != "id" and isinstance(v, str | int | float | bool)}
    return known | {key: value for key, value in own.items() if value != []}


def _query_row(query: Query) -> dict[str, Any]:
    row: dict[str, Any] = {"_id": query.id, "text": query.text, "language": query.language}
    if query.answers:
        row["answers"] = query.answers
    if query.answerable is not None:
        row["answerable"] = query.answerable
    if query.synthetic:
        row["synthetic"] = True
    return row


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    _write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", errors="replace", newline="\n")


def _lost(dataset: Dataset, found: Dataset) -> str:
    """Say what a set has lost by being written and read again; nothing if it is the same."""
    if found.digest() == dataset.digest():
        return ""
    kept = {document.digest() for document in found.documents}
    if lost := [document.id for document in dataset.documents if document.digest() not in kept]:
        return f"the document '{lost[0]}': a title is one line, a text holds no NUL, and its lines end in \\n"
    if lost := [query.id for query in dataset.queries if query not in found.queries]:
        return f"the query '{lost[0]}': whatever the documents may answer needs judgements"
    return "ids or judgements: no id holds a tab, a line break or white space at its ends"
