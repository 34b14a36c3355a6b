"""Convert the rows of dataset files and DataFrames to documents, queries and judgements."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ragkit.documents.builder import one_line
from ragkit.documents.document import Document, Mark
from ragkit.documents.encoding import clean
from ragkit.documents.language import with_language
from ragkit.documents.sandbox import Reader
from ragkit.documents.sources import find_sources
from ragkit.errors import DocumentError, InputError
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.evaluation.trec import numbered_lines

if TYPE_CHECKING:
    import pandas as pd

_ID_KEYS = ("_id", "id", "docno")
_PYTERRIER = {"qid": "query_id", "docno": "document_id", "label": "grade"}

_PAGE = re.compile(r"[0-9]{1,9}")

Qrels = dict[str, dict[str, int]]

Spans = dict[str, list[GoldSpan]]


@dataclasses.dataclass(slots=True)
class Judgements:
    """The content of a dataset source, before queries without judgements are removed."""

    name: str
    documents: list[Document]
    queries: list[Query]
    qrels: Qrels
    spans: Spans = dataclasses.field(default_factory=dict)

    def to_dataset(self, name: str | None = None) -> Dataset:
        """Return a dataset with the queries that have judgements or are known to be unanswerable.

        Raises:
            InputError: None of the judged documents is in the corpus.
        """
        judged = self.qrels.keys() | self.spans.keys()
        known = {document.id for document in self.documents}
        if self.qrels and not any(not known.isdisjoint(documents) for documents in self.qrels.values()):
            first = next(each for documents in self.qrels.values() for each in documents)
            raise InputError(
                f"None of the judged documents is in the corpus: '{first}' is judged, but the corpus starts with "
                f"'{self.documents[0].id if self.documents else ''}'. Pass the corpus that the judgements are for."
            )
        kept = [query for query in self.queries if query.id in judged or query.answerable is False]
        return Dataset(name or self.name, self.documents, kept, self.qrels, self.spans)


def is_frame(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "to_dict")


def with_our_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """Rename PyTerrier's columns (``qid``, ``docno``, ``label``) to ragkit's names."""
    return frame.rename(columns={theirs: ours for theirs, ours in _PYTERRIER.items() if ours not in frame.columns})


def frame_rows(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    rows: list[dict[Any, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows


def read_corpus(corpus: Any, language: str | None) -> list[Document]:
    if isinstance(corpus, str | Path):
        path = Path(corpus).expanduser()
        rows = path if path.suffix == ".jsonl" else path / "corpus.jsonl"
        found = [row_document(row, where) for where, row in read_rows(rows)] if rows.is_file() else _files(corpus)
    elif is_frame(corpus):
        found = [row_document(row, f"row {at} of the corpus") for at, row in enumerate(frame_rows(corpus), start=1)]
    else:
        found = list(corpus)
        if invalid := [each for each in found if not isinstance(each, Document)]:
            raise InputError(
                f"The corpus contains a {type(invalid[0]).__name__}. Pass documents, a DataFrame or a folder."
            )
    return [dataclasses.replace(d, language=language) if language is not None else with_language(d) for d in found]


def _files(corpus: str | Path) -> list[Document]:
    found = find_sources(corpus)
    documents: list[Document] = []
    failures = list(found.failures)
    with Reader() as reader:
        for source in found.sources:
            try:
                for item in reader.read(source):
                    if isinstance(item, Document):
                        documents.append(item)
                    else:
                        warnings.warn(f"Not in the corpus: {item}", RuntimeWarning, stacklevel=4)
            except DocumentError as error:
                failures.append(error)
    if failures:
        raise InputError(
            f"{len(failures)} files of the corpus cannot be read, the first: {failures[0]}. Fix them, or list them in "
            "a .ragkitignore."
        ) from failures[0]
    return documents


def read_rows(path: Path, *, optional: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the objects of a JSONL file, each with its location (file and line)."""
    if optional and not path.exists():
        return
    for where, line in numbered_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON: {one_line(str(error))[:200]}. Correct the line.") from error
        if not isinstance(row, dict):
            raise InputError(f'{where}: not a JSON object. A line looks like {{"_id": "1", ...}}.')
        yield where, row


def row_id(row: Mapping[str, Any], where: str) -> str:
    value = next((row[key] for key in _ID_KEYS if row.get(key) is not None), None)
    if isinstance(value, float) and value.is_integer():  # from a DataFrame column with missing values
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(f"{where}: no id. Add an '_id' or 'id': a string or an integer.")
    return clean(str(value))


def _text(row: Mapping[str, Any], where: str) -> str:
    if not isinstance(text := row.get("text"), str):
        raise InputError(f"{where}: no text. Add a 'text'; it may be \"\".")
    return clean(text)


def row_document(row: Mapping[str, Any], where: str) -> Document:
    """Return the document that `read_jsonl` returns, but with the plain id; the text may be blank."""
    title, language = row.get("title"), row.get("language")
    text = _text(row, where)
    marks = _marks(row["marks"], text, where) if isinstance(row.get("marks"), list) else ()
    known = {"text", "title", "language", *_ID_KEYS}
    return Document(
        id=row_id(row, where),
        text=text,
        source=where,
        title=one_line(title) if isinstance(title, str) else "",
        language=language if isinstance(language, str) else "und",
        marks=marks,
        metadata={k: v for k, v in row.items() if k not in known and isinstance(v, str | int | float | bool)},
    )


def _marks(given: list[Any], text: str, where: str) -> tuple[Mark, ...]:
    """Parse headings and pages as `save_dataset` writes them: ``[start, "heading" or "page", label, level]``."""
    try:
        marks = [Mark(*each) for each in msgspec.convert(given, list[tuple[int, Literal["heading", "page"], str, int]])]
    except (msgspec.ValidationError, RecursionError) as error:
        raise InputError(
            f'{where}: {error} in \'marks\'. A mark is [start, "heading" or "page", label, level].'
        ) from error
    for before, mark in itertools.pairwise([Mark(0, "page", "1"), *marks]):
        if not before.start <= mark.start <= len(text) or (mark.kind == "page" and not _PAGE.fullmatch(mark.label)):
            raise InputError(
                f"{where}: {mark} is not valid. Marks must lie within the text and be sorted; pages must be numbers."
            )
    return tuple(dataclasses.replace(mark, label=clean(mark.label)) for mark in marks)


def row_query(row: Mapping[str, Any], where: str) -> Query:
    text, language, answerable = _text(row, where), row.get("language"), row.get("answerable")
    if not text.strip():
        raise InputError(f"{where}: the query is empty. Add a text or remove the line.")
    return Query(
        row_id(row, where),
        text,
        language=language if isinstance(language, str) else "und",
        answers=row_answers(row, where),
        answerable=answerable if isinstance(answerable, bool) else None,
        synthetic=row.get("synthetic") is True,
    )


def row_answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Parse answers: a string, a list of strings, or the format of SQuAD, ``[{"text": ...}]``."""
    given = row.get("answers") or ()
    several = given if isinstance(given, list | tuple) else [given]
    found = [each.get("text") if isinstance(each, dict) else each for each in several]
    if not all(isinstance(each, str) for each in found):
        raise InputError(f"{where}: 'answers' must be a list of strings.")
    return tuple(clean(str(each)) for each in found)
