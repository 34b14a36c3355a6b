"""Read and write TREC files: topics, judgements (qrels) and runs, as trec_eval reads them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragkit.documents.builder import MAX_CHARACTERS, one_line
from ragkit.documents.document import printable_path
from ragkit.documents.encoding import lines
from ragkit.errors import InputError
from ragkit.files import replacing

MAX_GRADE = 1_000
"""The largest grade: trec_eval allocates a 32-bit counter per grade; large grades take gigabytes or overflow."""

_HEADERS = frozenset({"score", "grade", "relevance", "rel", "label"})
_TOPIC = re.compile(r"<top>(.*?)(?=</top>|<top>|\Z)", re.DOTALL | re.IGNORECASE)
_NUMBER = re.compile(r"<num>\s*(?:Number\s*:)?\s*([^<\s]+)", re.IGNORECASE)
_TITLE = re.compile(r"<title>\s*(?:Topic\s*:)?([^<]*)", re.IGNORECASE)


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the lines of a file that are not blank, each with its location: ``"qrels.tsv, line 3"``.

    Raises:
        DocumentError: The file is not text.
        InputError: The file cannot be read.
    """
    for where, line in _every_line(path):
        if line.strip():
            yield where, line.rstrip("\n")


def _every_line(path: Path) -> Iterator[tuple[str, str]]:
    shown = printable_path(path)
    try:
        if not path.is_file():  # opening a named pipe would block
            raise InputError(f"There is no file '{shown}'. Check the path.")
        for number, line in enumerate(lines(path, where=shown, max_characters=MAX_CHARACTERS), start=1):
            if line is None:
                raise InputError(f"{shown}, line {number}: longer than {MAX_CHARACTERS:,} characters. Remove the line.")
            yield f"{shown}, line {number}", line
    except OSError as error:
        raise InputError(f"'{shown}' cannot be read: {error.strerror}. Fix that, or use another file.") from error


# ------------------------------------------------------------------------------- topics and qrels


def read_topics(path: str | Path) -> dict[str, str]:
    """Read queries: the titles of topics between ``<top>`` and ``</top>``, or lines ``id<tab>text``.

    Returns:
        Query id -> text, in the order of the file.

    Raises:
        DocumentError: The file is not text.
        InputError: The file cannot be read, or contains something else.
    """
    text = "".join(line for _, line in _every_line(Path(path)))
    topics: dict[str, str] = {}
    for at, query_id, title in _tagged(text) if "<top>" in text.lower() else _tabbed(text):
        if query_id and title and query_id not in topics:
            topics[query_id] = title
            continue
        where = f"{printable_path(path)}, line {text.count(chr(10), 0, at) + 1}"
        if query_id in topics:
            raise InputError(f"{where}: the topic '{query_id}' occurs twice. Remove one.")
        raise InputError(
            f"{where}: not a topic. A topic is '<top> <num> Number: 1 <title> text </top>', or a line with an id, a "
            "tab and the text."
        )
    return topics


def _tagged(text: str) -> Iterator[tuple[int, str, str]]:
    """Yield the offset, the id and the title of each topic."""
    for topic in _TOPIC.finditer(text):
        number, title = _NUMBER.search(topic[1]), _TITLE.search(topic[1])
        yield topic.start(), number[1] if number else "", one_line(title[1]) if title else ""


def _tabbed(text: str) -> Iterator[tuple[int, str, str]]:
    at = 0
    for line in text.split("\n"):
        if line.strip():
            query_id, _, title = line.partition("\t")
            yield at, query_id.strip(), title.strip()
        at += len(line) + 1


def read_qrels(path: str | Path) -> dict[str, dict[str, int]]:
    """Read judgements: TREC's ``query 0 document grade``, or BEIR's ``query<tab>document<tab>grade`` under a header.

    Returns:
        Query id -> document id -> grade.

    Raises:
        DocumentError: The file is not text.
        InputError: The file cannot be read, or a line is not a judgement.
    """
    qrels: dict[str, dict[str, int]] = {}
    for at, (where, line) in enumerate(numbered_lines(Path(path))):
        columns = [column.strip() for column in line.split("\t")] if "\t" in line else line.split()
        if at == 0 and columns[-1].lower() in _HEADERS:
            continue
        match columns:
            case [str(query_id), str(document_id), grade] | [str(query_id), _, str(document_id), grade] if (
                query_id and document_id
            ):
                judge(qrels, query_id, document_id, grade, where=where)
            case _:
                raise InputError(
                    f"{where}: not a judgement. Write query, document and grade with tabs between them, or "
                    "TREC's 'query 0 document grade'."
                )
    return qrels


def judge(qrels: dict[str, dict[str, int]], query_id: str, document_id: str, grade: Any, *, where: str) -> None:
    """Add a judgement.

    Raises:
        InputError: The grade is invalid, or contradicts an earlier one.
    """
    found = as_grade(grade, where=where)
    if qrels.setdefault(query_id, {}).setdefault(document_id, found) != found:
        raise InputError(
            f"{where}: document '{document_id}' is judged twice for query '{query_id}', {found} and "
            f"{qrels[query_id][document_id]}. Remove one."
        )


def as_grade(value: Any, *, where: str) -> int:
    """Return a grade as an integer.

    Raises:
        InputError: The value is not an integer, or beyond `MAX_GRADE`.
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer() or abs(number) > MAX_GRADE:
        raise InputError(
            f"{where}: {value!r:.40} is not a grade. A grade is an integer of at most {MAX_GRADE:,}: 0 for not "
            "relevant, 1 or more for relevant."
        )
    return int(number)


# ------------------------------------------------------------------------------------------ runs


def read_run(path: str | Path) -> dict[str, list[tuple[str, float]]]:
    """Read a run: lines ``query Q0 document rank score tag``. The rank is ignored, as in trec_eval.

    Returns:
        Query id -> (document id, score), best score first; equal scores in the order of the file.

    Raises:
        DocumentError: The file is not text.
        InputError: The file cannot be read, or a line is malformed.
    """
    run: dict[str, dict[str, float]] = {}
    for where, line in numbered_lines(Path(path)):
        columns = line.split()
        if len(columns) != 6:
            raise InputError(f"{where}: {len(columns)} columns. A run has six: query Q0 document rank score tag.")
        query_id, _, document_id, _, score, _ = columns
        ranking = run.setdefault(query_id, {})
        if document_id in ranking:
            raise InputError(f"{where}: document '{document_id}' is ranked twice for query '{query_id}'.")
        ranking[document_id] = _score(score, where)
    return {query_id: _best_first(list(ranking.items())) for query_id, ranking in run.items()}


def write_run(path: str | Path, run: Mapping[str, Sequence[tuple[str, float]]], *, tag: str) -> None:
    """Write a run atomically, in the format of trec_eval.

    Args:
        path: The file; an existing file is replaced.
        run: Query id -> (document id, score). Written best score first, with ranks from 1.
        tag: The name of the system.

    Raises:
        InputError: An id or the tag is empty or contains white space, a score is not a finite number, or a document is
            ranked twice for a query.
        RagkitError: The file cannot be written.
    """
    run_lines = []
    for query_id, ranking in run.items():
        where = f"The ranking of query {query_id!r:.100}"
        if len({document_id for document_id, _ in ranking}) < len(ranking):
            raise InputError(f"{where} contains a document twice. Keep its best passage.")
        scored = [(document_id, _score(score, where)) for document_id, score in ranking]
        for rank, (document_id, score) in enumerate(_best_first(scored), start=1):
            columns = (query_id, "Q0", document_id, str(rank), repr(score), tag)
            for column in columns:
                if column.split() != [column]:
                    raise InputError(
                        f"{column!r:.100} cannot be written to a run: white space separates its columns. Replace it in "
                        "the id or tag, for example by '_'."
                    )
            run_lines.append(" ".join(columns) + "\n")
    with replacing(Path(path)) as temporary:
        temporary.write_text("".join(run_lines), encoding="utf-8", newline="\n")


def _score(value: Any, where: str) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{where}: {value!r:.40} is not a score. It must be a finite number.")
    return score


def _best_first(ranking: list[tuple[str, float]]) -> list[tuple[str, float]]:
    return sorted(ranking, key=lambda ranked: -ranked[1])
