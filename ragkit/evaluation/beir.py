"""Read and write datasets in the layout of BEIR, extended by gold spans."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ragkit.documents.document import Document
from ragkit.errors import InputError
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.evaluation.rows import Judgements, Spans, read_corpus, read_rows, row_answers, row_id, row_query
from ragkit.evaluation.trec import read_qrels
from ragkit.files import refused


def save_dataset(dataset: Dataset, folder: str | Path) -> Path:
    """Write a dataset atomically, so that `load_dataset` returns a dataset with the same digest.

    ``corpus.jsonl`` has the documents with their headings and pages, ``queries.jsonl`` the questions with their
    answers, ``qrels/test.tsv`` the judgements, and ``spans.jsonl`` the gold spans with their text. The sources of
    documents are not saved.

    Args:
        dataset: The dataset.
        folder: A new or empty folder.

    Returns:
        The folder.

    Raises:
        InputError: The folder is not empty, or the dataset cannot be read back unchanged: for example, an id contains a
            tab, or a question has no judgements.
        RagkitError: The files cannot be written.
    """
    folder = Path(folder).expanduser()
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"'{folder}' already exists and is not an empty folder. Choose a new folder.")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
            written = Path(temporary) / "dataset"
            _write(dataset, written)
            try:
                lost = _lost(dataset, read_beir(written).to_dataset())
            except InputError as error:
                raise InputError(f"'{dataset.name}' could not be read back unchanged: {error}") from error
            if lost:
                raise InputError(f"'{dataset.name}' could not be read back unchanged: {lost}. Change that first.")
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
        {"_id": query_id, "spans": [{**dataclasses.asdict(span), "text": _span_text(span, texts)} for span in found]}
        for query_id, found in dataset.spans.items()
    ]
    if spans:
        _write_rows(folder / "spans.jsonl", spans)


def _span_text(span: GoldSpan, texts: Mapping[str, str]) -> str:
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
    """Describe what changed when a dataset was written and read back; empty if nothing did."""
    if found.digest() == dataset.digest():
        return ""
    kept = {document.digest() for document in found.documents}
    if lost := [document.id for document in dataset.documents if document.digest() not in kept]:
        return (
            f"the document '{lost[0]}': a title must be one line, and a text must not contain NUL and must end its "
            "lines with \\n"
        )
    if lost := [query.id for query in dataset.queries if query not in found.queries]:
        return f"the query '{lost[0]}': an answerable query needs judgements"
    return "ids or judgements: an id must not contain a tab or a line break, or start or end with white space"


def read_beir(folder: Path, corpus: Any = None, split: str | None = None, language: str | None = None) -> Judgements:
    queries = [row_query(row, where) for where, row in read_rows(folder / "queries.jsonl")]
    asked = {query.id for query in queries}
    file = _qrels_file(folder, split)
    qrels = read_qrels(file) if file is not None else {}
    documents = read_corpus(folder / "corpus.jsonl" if corpus is None else corpus, language)
    spans = _spans(folder / "spans.jsonl", {document.id: document for document in documents}, asked)
    if file is not None and file.parent != folder:
        spans = {query_id: found for query_id, found in spans.items() if query_id in qrels}
    if not (qrels or spans):
        raise InputError(f"'{folder}' has no judgements. Add a qrels.tsv, qrels/test.tsv or spans.jsonl.")
    answers: dict[str, tuple[str, ...]] = {}
    for where, row in read_rows(folder / "qa.jsonl", optional=True):
        query_id = _known(row, asked, where)
        answers[query_id] = answers.get(query_id, ()) + row_answers(row, where)
    queries = [dataclasses.replace(q, answers=q.answers + answers.get(q.id, ())) for q in queries]
    name = folder.resolve().name + (f"/{split}" if split is not None else "")
    return Judgements(name, documents, queries, qrels, spans)


def _qrels_file(folder: Path, split: str | None) -> Path | None:
    files = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    if split is None and (whole := folder / "qrels.tsv").exists():
        return whole
    if split is None and len(files) < 2:
        return next(iter(files.values()), None)
    if (wanted := split or "test") not in files:
        there = f"There are: {', '.join(files)}." if files else "There are none; omit split=."
        raise InputError(f"'{folder}' has no qrels/{wanted}.tsv. {there}")
    return files[wanted]


def _known(row: Mapping[str, Any], asked: Collection[str], where: str) -> str:
    query_id = row_id(row, where)
    if query_id not in asked:
        raise InputError(f"{where}: there is no query '{query_id}' in queries.jsonl. Add it or remove the line.")
    return query_id


def _spans(path: Path, documents: Mapping[str, Document], asked: Collection[str]) -> Spans:
    """Read rows ``{"_id", "spans": [{"document_id", "start", "end", "text"}]}``.

    If all spans of a row are in one document, also ``{"_id", "doc_id", "spans": [[start, end, text]]}``.
    """
    spans: Spans = {}
    for where, row in read_rows(path, optional=True):
        query_id = _known(row, asked, where)
        given: Any = row.get("spans")
        for item in given if isinstance(given, list) else [given]:
            match item:
                case {"document_id": str(document_id), "start": int(start), "end": int(end)}:
                    words = item.get("text")
                case [int(start), int(end), *rest]:
                    document_id, words = str(row.get("doc_id")), rest[0] if rest else None
                case _:
                    raise InputError(f"{where}: a span of '{query_id}' lacks a document_id, start or end.")
            if (document := documents.get(document_id)) is None:
                raise InputError(f"{where}: a span of '{query_id}' is in '{document_id}', which is not in the corpus.")
            if not 0 <= start < end <= len(document.text):
                raise InputError(
                    f"{where}: a span of '{query_id}' goes from {start} to {end}, but '{document_id}' has "
                    f"{len(document.text)} characters."
                )
            if words is not None and document.text[start:end] != words:
                raise InputError(
                    f"{where}: the text of a span of '{query_id}' does not match: '{document_id}' has "
                    f"{document.text[start:end]!r:.100} from {start} to {end}. Correct it, or pass the right corpus."
                )
            spans.setdefault(query_id, []).append(GoldSpan(document_id, start, end))
    return spans
