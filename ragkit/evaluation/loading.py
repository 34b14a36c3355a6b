"""Load datasets: the layout of BEIR, TREC files, ir_datasets, pandas DataFrames."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragkit.documents.builder import one_line
from ragkit.documents.document import Document
from ragkit.errors import InputError, RagkitError, SourceNotFoundError, needs
from ragkit.evaluation.beir import read_beir
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.evaluation.rows import (
    Judgements,
    Qrels,
    Spans,
    frame_rows,
    is_frame,
    read_corpus,
    row_document,
    row_id,
    row_query,
    with_our_columns,
)
from ragkit.evaluation.trec import judge, read_qrels, read_topics

if TYPE_CHECKING:
    import pandas as pd

IR_DATASETS = "ir_datasets:"


def load_dataset(
    source: str | Path | pd.DataFrame,
    *,
    corpus: str | Path | pd.DataFrame | Iterable[Document] | None = None,
    qrels: str | Path | pd.DataFrame | None = None,
    split: str | None = None,
    name: str | None = None,
    language: str | None = None,
) -> Dataset:
    """Load a dataset. Queries without judgements are left out, unless they are marked ``"answerable": false``.

    Args:
        source: One of

            - a folder in the layout of BEIR: ``corpus.jsonl``, ``queries.jsonl``, ``qrels.tsv`` or
              ``qrels/<split>.tsv``, and optionally ``spans.jsonl`` (gold spans) and ``qa.jsonl`` (answers);
            - a file of TREC topics, or of lines ``id<tab>query``, with ``qrels`` and ``corpus``;
            - ``"ir_datasets:NAME"``, a dataset of ir_datasets, which may download it;
            - a DataFrame with one row per judgement, and ``corpus``. Columns: ``query`` and ``document_id``, and
              optionally ``grade`` (1 if missing), ``query_id``, ``language``, ``answers``, and ``start`` and ``end`` of
              a gold span. A row without a document is a query that the documents do not answer. PyTerrier's column
              names ``qid``, ``docno``, ``label`` work too, and so do its topics (``qid``, ``query``) with ``qrels``.
        corpus: The documents, if ``source`` does not contain them: a ``corpus.jsonl``, a folder or file in any format
            that ragkit reads (the id of a document is then its path relative to the folder), a DataFrame with columns
            ``id``, ``text`` and optionally ``title``, or `Document` objects.
        qrels: Judgements for topics: a file (see `ragkit.evaluation.trec.read_qrels`) or a DataFrame with columns
            ``qid``, ``docno`` and ``label``.
        split: Selects ``qrels/<split>.tsv``; if None, ``qrels.tsv``, or else "test".
        name: The name of the dataset; made from the source's name if None.
        language: ISO 639-1 code of the documents; if None, guessed for each document that does not state it.

    Raises:
        DocumentError: A file is not text.
        InputError: A file or a value is missing or invalid; the message names the file and the line.
        MissingExtraError: ir_datasets is not installed.
    """
    is_named = isinstance(source, str) and source.startswith(IR_DATASETS)
    path = Path(source).expanduser() if isinstance(source, str | Path) and not is_named else None
    if path is not None and not path.exists():
        raise SourceNotFoundError(path)
    is_folder = path is not None and path.is_dir()
    if split is not None and not is_folder:
        raise InputError("split= selects a qrels/<split>.tsv in a folder, but this source is not a folder. Omit it.")
    is_judged = is_folder or is_named or (is_frame(source) and "document_id" in with_our_columns(source).columns)
    if qrels is not None and is_judged:
        raise InputError("qrels= is for a source of queries only, but this source has judgements. Omit it.")
    if is_named:
        found = _ir_dataset(str(source).removeprefix(IR_DATASETS), corpus, language)
    elif path is None:
        found = _frame(source, corpus, language) if qrels is None else _topics(source, corpus, qrels, language)
    elif is_folder:
        found = read_beir(path, corpus, split, language)
    else:
        found = _trec(path, corpus, qrels, language)
    return found.to_dataset(name)


def _trec(path: Path, corpus: Any, qrels: Any, language: str | None) -> Judgements:
    if qrels is None or corpus is None:
        raise InputError(f"'{path}' is a file of queries. Pass the rest: load_dataset(topics, qrels=..., corpus=...).")
    queries = [Query(query_id, text) for query_id, text in read_topics(path).items()]
    judged = _qrels(qrels)
    return Judgements(path.stem, read_corpus(corpus, language), queries, judged)


def _ir_dataset(name: str, corpus: Any, language: str | None) -> Judgements:
    with needs("ir_datasets", extra="eval"):
        import ir_datasets
    where = IR_DATASETS + name
    try:
        data = ir_datasets.load(name)
        if lacking := [part for part in ("docs", "queries", "qrels") if not getattr(data, f"has_{part}")()]:
            raise InputError(f"'{where}' has no {lacking[0]}. Choose a dataset with docs, queries and qrels.")
        if corpus is None:
            rows = (
                {"_id": d.doc_id, "text": _text_of(d), "title": getattr(d, "title", None)} for d in data.docs_iter()
            )
            corpus = [row_document(row, where) for row in rows]
        queries = [row_query({"_id": q.query_id, "text": q.default_text()}, where) for q in data.queries_iter()]
        qrels: Qrels = {}
        for judgement in data.qrels_iter():
            judge(qrels, judgement.query_id, judgement.doc_id, judgement.relevance, where=where)
    except RagkitError:
        raise
    except KeyError as error:
        raise InputError(f"ir_datasets has no dataset '{name}'. See the list at https://ir-datasets.com.") from error
    except Exception as error:  # downloads can raise many kinds of network and disk errors
        raise InputError(
            f"ir_datasets could not load '{name}': {type(error).__name__}: {one_line(str(error))[:300]}. If it has to "
            "download it, check the network connection and try again."
        ) from error
    return Judgements(name, read_corpus(corpus, language), queries, qrels)


def _text_of(document: Any) -> str:
    """Return the text without the title, which is a separate field; fields differ between datasets."""
    text = getattr(document, "text", None)
    return text if isinstance(text, str) else str(document.default_text())


def _qrels(given: str | Path | pd.DataFrame) -> Qrels:
    if isinstance(given, str | Path):
        return read_qrels(given)
    qrels: Qrels = {}
    for number, row in enumerate(frame_rows(with_our_columns(given)), start=1):
        where = f"row {number} of the judgements"
        if missing := [name for name in ("query_id", "document_id", "grade") if row.get(name) is None]:
            raise InputError(f"{where}: no {missing[0]}. A DataFrame of judgements needs columns qid, docno and label.")
        judge(qrels, row_id({"_id": row["query_id"]}, where), row_id({"_id": row["document_id"]}, where), row["grade"],
              where=where)  # fmt: skip
    return qrels


def _topics(frame: pd.DataFrame, corpus: Any, qrels: Any, language: str | None) -> Judgements:
    rows = enumerate(frame_rows(with_our_columns(frame)), start=1)
    topics = [
        row_query({**row, "_id": row.get("query_id"), "text": row.get("query")}, f"row {number} of the topics")
        for number, row in rows
    ]
    return Judgements("table", read_corpus(corpus, language), topics, _qrels(qrels))


def _frame(frame: pd.DataFrame, corpus: Any, language: str | None) -> Judgements:
    if is_frame(frame):
        frame = with_our_columns(frame)
    if not is_frame(frame) or not {"query", "document_id"} <= set(frame.columns) or corpus is None:
        there = f", not {', '.join(map(str, frame.columns))}" if is_frame(frame) else ""
        raise InputError(
            f"The source must be a folder, a file, or a DataFrame with columns 'query' and 'document_id'{there}; a "
            "DataFrame also needs corpus=, for example a folder of documents."
        )
    queries: dict[str, Query] = {}
    qrels: Qrels = {}
    spans: Spans = {}
    numbers: dict[str, str] = {}
    for number, row in enumerate(frame_rows(frame), start=1):
        where = f"row {number} of the judgements"
        given = (
            row.get("query_id") if "query_id" in row else numbers.setdefault(str(row["query"]), f"q{len(numbers) + 1}")
        )
        query = row_query({**row, "_id": given, "id": None, "text": row["query"]}, where)
        if queries.setdefault(query.id, query).text != query.text:
            raise InputError(
                f"{where}: the id '{query.id}' already belongs to another query. Give each query its own id."
            )
        if row["document_id"] is None:
            continue
        document_id = row_id({"_id": row["document_id"]}, where)
        grade = row.get("grade")
        judge(qrels, query.id, document_id, 1 if grade is None else grade, where=where)
        ends = [row.get("start"), row.get("end")]
        if ends != [None, None]:
            spans.setdefault(query.id, []).append(GoldSpan(document_id, *(_offset(each, where) for each in ends)))
    asked = [q if q.id in qrels else dataclasses.replace(q, answerable=False) for q in queries.values()]
    return Judgements("table", read_corpus(corpus, language), asked, qrels, spans)


def _offset(value: Any, where: str) -> int:
    if not isinstance(value, int | float) or not float(value).is_integer():
        raise InputError(
            f"{where}: {value!r:.40} is not an offset. A span needs integers 'start' and 'end', in characters."
        )
    return int(value)
