"""Reading judged sets: the layout of BEIR, TREC's files, sets of ir_datasets, tables of pandas."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ragkit.documents.builder import one_line
from ragkit.documents.document import Document, Mark, with_language
from ragkit.documents.encoding import clean
from ragkit.documents.loading import find_sources
from ragkit.documents.sandbox import Reader
from ragkit.errors import DocumentError, InputError, MissingExtraError, RagkitError, SourceNotFoundError
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.evaluation.trec import judge, numbered_lines, read_qrels, read_run, read_topics, write_run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Dataset", "GoldSpan", "Query", "load_dataset", "read_run", "write_run"]

IR_DATASETS = "ir_datasets:"
_ID_KEYS = ("_id", "id")
_PAGE = re.compile(r"[0-9]{1,9}")

Qrels = dict[str, dict[str, int]]
Spans = dict[str, list[GoldSpan]]


def load_dataset(
    source: str | Path | pd.DataFrame,
    *,
    corpus: str | Path | pd.DataFrame | Iterable[Document] | None = None,
    qrels: str | Path | None = None,
    split: str | None = None,
    name: str | None = None,
    language: str | None = None,
) -> Dataset:
    """Read a judged set. Queries without judgements are left out, but for those marked ``"answerable": false``.

    Args:
        source: One of

            - a folder in the layout of BEIR: ``corpus.jsonl``, ``queries.jsonl``, ``qrels.tsv`` or
              ``qrels/<split>.tsv``, and where there are any ``spans.jsonl`` (gold spans) and ``qa.jsonl`` (answers);
            - a file of TREC topics, or of lines ``id<tab>query``, with ``qrels`` and ``corpus``;
            - ``"ir_datasets:NAME"``, a set that ir_datasets knows and may download;
            - a DataFrame with a row a judgement and ``corpus``: columns ``query`` and ``document_id``, and where there
              are any ``grade`` (else 1), ``query_id``, ``language``, ``answers``, and ``start`` and ``end`` of a gold
              span. A row without a document is a query that the documents do not answer.
        corpus: The documents, where ``source`` does not hold them: a ``corpus.jsonl``, a folder or file of any kind
            that ragkit reads (a document's id is then its path below that folder), a DataFrame with columns ``id``,
            ``text`` and perhaps ``title``, or documents.
        qrels: Judgements for TREC topics; see `ragkit.trec.read_qrels`.
        split: Which ``qrels/<split>.tsv``; if None, ``qrels.tsv``, or else "test".
        name: What it is called; made of the source's name if None.
        language: ISO 639-1 code of the documents; guessed for each that does not say, if None.

    Raises:
        DocumentError: A file is not text.
        InputError: Something is missing or damaged; the message names the file and the line.
        MissingExtraError: ir_datasets is not installed.
    """
    is_named = isinstance(source, str) and source.startswith(IR_DATASETS)
    path = Path(source).expanduser() if isinstance(source, str | Path) and not is_named else None
    if path is not None and not path.exists():
        raise SourceNotFoundError(path)
    is_folder = path is not None and path.is_dir()
    if split is not None and not is_folder:
        raise InputError("split= names a qrels/<split>.tsv in a folder, and this is none. Leave it out.")
    if qrels is not None and (path is None or is_folder):
        raise InputError("qrels= goes with a file of queries, and this has judgements of its own. Leave it out.")
    if is_named:
        found = _ir_dataset(str(source).removeprefix(IR_DATASETS), corpus, language)
    elif path is None:
        found = _frame(source, corpus, language)
    elif is_folder:
        found = _beir(path, corpus, split, language)
    else:
        found = _trec(path, corpus, qrels, language)
    judged = found.qrels.keys() | found.spans.keys()
    known = {document.id for document in found.documents}
    if found.qrels and not any(not known.isdisjoint(documents) for documents in found.qrels.values()):
        first = next(each for documents in found.qrels.values() for each in documents)
        raise InputError(
            f"None of the judged documents is in the corpus: '{first}' is judged, and the corpus begins with "
            f"'{found.documents[0].id if found.documents else ''}'. Give the corpus that the judgements are for."
        )
    kept = [query for query in found.queries if query.id in judged or query.answerable is False]
    return Dataset(name or found.name, found.documents, kept, found.qrels, found.spans)


@dataclasses.dataclass(slots=True)
class _Found:
    name: str
    documents: list[Document]
    queries: list[Query]
    qrels: Qrels
    spans: Spans = dataclasses.field(default_factory=dict)


def _beir(folder: Path, corpus: Any, split: str | None, language: str | None) -> _Found:
    queries = [_query(row, where) for where, row in _rows(folder / "queries.jsonl")]
    asked = {query.id for query in queries}
    file = _qrels_file(folder, split)
    qrels = read_qrels(file) if file is not None else {}
    documents = _documents(folder / "corpus.jsonl" if corpus is None else corpus, language)
    spans = _spans(folder / "spans.jsonl", {document.id: document for document in documents}, asked)
    if file is not None and file.parent != folder:
        spans = {query_id: found for query_id, found in spans.items() if query_id in qrels}
    if not (qrels or spans):
        raise InputError(f"'{folder}' holds no judgements: put a qrels.tsv, qrels/test.tsv or spans.jsonl there.")
    answers: dict[str, tuple[str, ...]] = {}
    for where, row in _rows(folder / "qa.jsonl", optional=True):
        query_id = _known(row, asked, where)
        answers[query_id] = answers.get(query_id, ()) + _answers(row, where)
    queries = [dataclasses.replace(q, answers=q.answers + answers.get(q.id, ())) for q in queries]
    name = folder.resolve().name + (f"/{split}" if split is not None else "")
    return _Found(name, documents, queries, qrels, spans)


def _qrels_file(folder: Path, split: str | None) -> Path | None:
    files = {path.stem: path for path in sorted((folder / "qrels").glob("*.tsv"))}
    if split is None and (whole := folder / "qrels.tsv").exists():
        return whole
    if split is None and len(files) < 2:
        return next(iter(files.values()), None)
    if (wanted := split or "test") not in files:
        there = f"There are: {', '.join(files)}." if files else "There is none; leave split out."
        raise InputError(f"'{folder}' has no qrels/{wanted}.tsv. {there}")
    return files[wanted]


def _trec(path: Path, corpus: Any, qrels: str | Path | None, language: str | None) -> _Found:
    if qrels is None or corpus is None:
        raise InputError(f"'{path}' is a file of queries. Name the rest: load_dataset(topics, qrels=..., corpus=...).")
    queries = [Query(query_id, text) for query_id, text in read_topics(path).items()]
    judged = read_qrels(qrels)
    return _Found(path.stem, _documents(corpus, language), queries, judged)


def _ir_dataset(name: str, corpus: Any, language: str | None) -> _Found:
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingExtraError("ir_datasets", extra="eval") from error
    where = IR_DATASETS + name
    try:
        data = ir_datasets.load(name)
        if lacking := [part for part in ("docs", "queries", "qrels") if not getattr(data, f"has_{part}")()]:
            raise InputError(f"'{where}' has no {lacking[0]}. Give one that has docs, queries and qrels.")
        if corpus is None:
            rows = (
                {"_id": d.doc_id, "text": _text_of(d), "title": getattr(d, "title", None)} for d in data.docs_iter()
            )
            corpus = [_document(row, where) for row in rows]
        queries = [_query({"_id": q.query_id, "text": q.default_text()}, where) for q in data.queries_iter()]
        qrels: Qrels = {}
        for judgement in data.qrels_iter():
            judge(qrels, judgement.query_id, judgement.doc_id, judgement.relevance, where=where)
    except RagkitError:
        raise
    except KeyError as error:
        raise InputError(f"ir_datasets knows no set '{name}'. https://ir-datasets.com lists them.") from error
    except Exception as error:  # it downloads: anything that a network, a server or a disk can do
        raise InputError(
            f"ir_datasets could not give '{name}': {type(error).__name__}: {one_line(str(error))[:300]}. If it has to "
            "download it, make sure that there is a network; then ask again."
        ) from error
    return _Found(name, _documents(corpus, language), queries, qrels)


def _text_of(document: Any) -> str:
    """The text without the title, which has a place of its own; sets name and divide their texts as they like."""
    text = getattr(document, "text", None)
    return text if isinstance(text, str) else str(document.default_text())


def _frame(frame: pd.DataFrame, corpus: Any, language: str | None) -> _Found:
    if not _is_frame(frame) or not {"query", "document_id"} <= set(frame.columns) or corpus is None:
        there = f", not {', '.join(map(str, frame.columns))}" if _is_frame(frame) else ""
        raise InputError(
            f"Judgements are a folder, a file, or a DataFrame with columns 'query' and 'document_id'{there}; and a "
            "DataFrame needs corpus=, for example a folder of documents."
        )
    queries: dict[str, Query] = {}
    qrels: Qrels = {}
    spans: Spans = {}
    numbers: dict[str, str] = {}
    for number, row in enumerate(_records(frame), start=1):
        where = f"row {number} of the judgements"
        given = (
            row.get("query_id") if "query_id" in row else numbers.setdefault(str(row["query"]), f"q{len(numbers) + 1}")
        )
        query = _query({**row, "_id": given, "id": None, "text": row["query"]}, where)
        if queries.setdefault(query.id, query).text != query.text:
            raise InputError(f"{where}: '{query.id}' is another query further up. Give each query one id.")
        if row["document_id"] is None:
            continue
        document_id = _id({"_id": row["document_id"]}, where)
        grade = row.get("grade")
        judge(qrels, query.id, document_id, 1 if grade is None else grade, where=where)
        ends = [row.get("start"), row.get("end")]
        if ends != [None, None]:
            spans.setdefault(query.id, []).append(GoldSpan(document_id, *(_offset(each, where) for each in ends)))
    asked = [q if q.id in qrels else dataclasses.replace(q, answerable=False) for q in queries.values()]
    return _Found("table", _documents(corpus, language), asked, qrels, spans)


def _offset(value: Any, where: str) -> int:
    if not isinstance(value, int | float) or not float(value).is_integer():
        raise InputError(f"{where}: {value!r:.40} is no offset. A span needs a whole 'start' and 'end', in characters.")
    return int(value)


def _is_frame(value: Any) -> bool:
    return hasattr(value, "columns") and hasattr(value, "to_dict")


def _records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    rows: list[dict[Any, Any]] = frame.astype(object).where(frame.notna(), None).to_dict("records")
    return rows


# ------------------------------------------------------------------------------------------ rows


def _documents(corpus: Any, language: str | None) -> list[Document]:
    if isinstance(corpus, str | Path):
        path = Path(corpus).expanduser()
        rows = path if path.suffix == ".jsonl" else path / "corpus.jsonl"
        found = [_document(row, where) for where, row in _rows(rows)] if rows.is_file() else _files(corpus)
    elif _is_frame(corpus):
        found = [_document(row, f"row {at} of the corpus") for at, row in enumerate(_records(corpus), start=1)]
    else:
        found = list(corpus)
        if odd := [each for each in found if not isinstance(each, Document)]:
            raise InputError(f"The corpus holds a {type(odd[0]).__name__}. Give documents, a DataFrame or a folder.")
    return [dataclasses.replace(d, language=language) if language is not None else with_language(d) for d in found]


def _files(corpus: str | Path) -> list[Document]:
    there = find_sources(corpus)
    documents: list[Document] = []
    failures = list(there.failures)
    with Reader() as reader:
        for source in there.sources:
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
            f"{len(failures)} files of the corpus cannot be read, the first: {failures[0]}. Mend them, or name them in "
            "a .ragkitignore."
        ) from failures[0]
    return documents


def _rows(path: Path, *, optional: bool = False) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give the objects of a JSONL file, each after where it stands."""
    if optional and not path.exists():
        return
    for where, line in numbered_lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON: {one_line(str(error))[:200]}. Mend the line.") from error
        if not isinstance(row, dict):
            raise InputError(f'{where}: no object. A line looks like {{"_id": "1", ...}}.')
        yield where, row


def _id(row: Mapping[str, Any], where: str) -> str:
    value = next((row[key] for key in _ID_KEYS if row.get(key) is not None), None)
    if isinstance(value, float) and value.is_integer():  # a column of a DataFrame that has gaps
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise InputError(f"{where}: no id. Give it an '_id' or 'id': text, or a whole number.")
    return clean(str(value))


def _known(row: Mapping[str, Any], asked: Collection[str], where: str) -> str:
    query_id = _id(row, where)
    if query_id not in asked:
        raise InputError(f"{where}: there is no query '{query_id}' in queries.jsonl. Add it, or take the line out.")
    return query_id


def _text(row: Mapping[str, Any], where: str) -> str:
    if not isinstance(text := row.get("text"), str):
        raise InputError(f"{where}: no text. Give it a 'text'; an empty one is written \"\".")
    return clean(text)


def _document(row: Mapping[str, Any], where: str) -> Document:
    """The text and title that `ragkit.tables.read_jsonl` gives, under its plain id; a blank text is a document, too."""
    title, language = row.get("title"), row.get("language")
    text = _text(row, where)
    marks = _marks(row["marks"], text, where) if isinstance(row.get("marks"), list) else ()
    known = {"text", "title", "language", *_ID_KEYS}
    return Document(
        id=_id(row, where),
        text=text,
        source=where,
        title=one_line(title) if isinstance(title, str) else "",
        language=language if isinstance(language, str) else "und",
        marks=marks,
        metadata={k: v for k, v in row.items() if k not in known and isinstance(v, str | int | float | bool)},
    )


def _marks(given: list[Any], text: str, where: str) -> tuple[Mark, ...]:
    """Read headings and pages, ``[start, "heading" or "page", label, level]`` each, as `ragkit.beir` writes them."""
    try:
        marks = [Mark(*each) for each in msgspec.convert(given, list[tuple[int, Literal["heading", "page"], str, int]])]
    except (msgspec.ValidationError, RecursionError) as error:
        raise InputError(
            f'{where}: {error} in \'marks\'. A mark is [start, "heading" or "page", label, level].'
        ) from error
    for before, mark in itertools.pairwise([Mark(0, "page", "1"), *marks]):
        if not before.start <= mark.start <= len(text) or (mark.kind == "page" and not _PAGE.fullmatch(mark.label)):
            raise InputError(
                f"{where}: {mark} is no mark of this text. Marks stand within it, sorted; pages are numbers."
            )
    return tuple(dataclasses.replace(mark, label=clean(mark.label)) for mark in marks)


def _query(row: Mapping[str, Any], where: str) -> Query:
    text, language, answerable = _text(row, where), row.get("language"), row.get("answerable")
    if not text.strip():
        raise InputError(f"{where}: the query is empty. Give it words, or take it out.")
    return Query(
        _id(row, where),
        text,
        language=language if isinstance(language, str) else "und",
        answers=_answers(row, where),
        answerable=answerable if isinstance(answerable, bool) else None,
        synthetic=row.get("synthetic") is True,
    )


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Answers as text, as a list of texts, or as SQuAD has them, ``[{"text": ...}]``."""
    given = row.get("answers") or ()
    several = given if isinstance(given, list | tuple) else [given]
    found = [each.get("text") if isinstance(each, dict) else each for each in several]
    if not all(isinstance(each, str) for each in found):
        raise InputError(f"{where}: 'answers' should be a list of texts.")
    return tuple(clean(str(each)) for each in found)


def _spans(path: Path, documents: Mapping[str, Document], asked: Collection[str]) -> Spans:
    """Read rows ``{"_id", "spans": [{"document_id", "start", "end", "text"}]}``.

    Or, where all of a row's spans are in its ``doc_id``, ``{"_id", "doc_id", "spans": [[start, end, text]]}``.
    """
    spans: Spans = {}
    for where, row in _rows(path, optional=True):
        query_id = _known(row, asked, where)
        given: Any = row.get("spans")
        for item in given if isinstance(given, list) else [given]:
            match item:
                case {"document_id": str(document_id), "start": int(start), "end": int(end)}:
                    words = item.get("text")
                case [int(start), int(end), *rest]:
                    document_id, words = str(row.get("doc_id")), rest[0] if rest else None
                case _:
                    raise InputError(f"{where}: a span of '{query_id}' lacks a document, a start or an end.")
            if (document := documents.get(document_id)) is None:
                raise InputError(f"{where}: a span of '{query_id}' is in '{document_id}', which is not in the corpus.")
            if not 0 <= start < end <= len(document.text):
                raise InputError(
                    f"{where}: a span of '{query_id}' goes from {start} to {end}, and '{document_id}' from 0 to "
                    f"{len(document.text)}."
                )
            if words is not None and document.text[start:end] != words:
                raise InputError(
                    f"{where}: a span of '{query_id}' does not stand where it says: '{document_id}' has "
                    f"{document.text[start:end]!r:.100} from {start} to {end}. Correct it, or give the right corpus."
                )
            spans.setdefault(query_id, []).append(GoldSpan(document_id, start, end))
    return spans
