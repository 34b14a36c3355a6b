from __future__ import annotations

from pathlib import Path

import ir_measures
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.errors import DocumentError, InputError, RagkitError
from ragkit.evaluation.trec import read_qrels, read_run, read_topics, write_run

TOPICS = """
<top>
<num> Number: 301
<title> International Organized Crime

<desc> Description:
Identify organizations.
</top>
<top>
<num> Number:  051
<title> Topic:  Élections
 françaises
<narr> Narrative: ...
"""

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=8)
RUNS = st.dictionaries(
    NAMES, st.dictionaries(NAMES, st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5), max_size=4
)


def file(folder: Path, text: str | bytes) -> Path:
    path = folder / "file.txt"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_topics(tmp_path: Path) -> None:
    expected = {"301": "International Organized Crime", "051": "Élections françaises"}
    assert read_topics(file(tmp_path, TOPICS)) == expected
    assert read_topics(file(tmp_path, TOPICS.encode("cp1252"))) == expected
    assert (
        read_topics(file(tmp_path, TOPICS.upper().replace("TOPIC:", "Topic:")))["301"]
        == "INTERNATIONAL ORGANIZED CRIME"
    )


def test_topics_as_lines(tmp_path: Path) -> None:
    assert read_topics(file(tmp_path, "q1\tWhat is it?\r\n\r\nq2\tEt ça ?\n")) == {"q1": "What is it?", "q2": "Et ça ?"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<top>\n<num> 1 <title> a </top>\n<top>\n<title> b\n</top>", "line 3: not a topic"),
        ("<top><num> 1 <title></top>", "line 1: not a topic"),
        ("1\ta\n2 b\n", "line 2: not a topic"),
        ("1\ta\n1\tb\n", "line 2: the topic '1' occurs twice"),
    ],
)
def test_malformed_topics(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_topics(file(tmp_path, text))


def test_qrels_of_trec_and_of_beir(tmp_path: Path) -> None:
    expected = {"q1": {"d1": 2, "d2": 0}, "q2": {"d1": -1}}
    assert read_qrels(file(tmp_path, "q1 0 d1 2\nq1 0 d2 0\n\nq2 0 d1 -1\n")) == expected
    assert read_qrels(file(tmp_path, "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-1")) == expected
    assert read_qrels(file(tmp_path, "q1\td1\t2\nq1\td2\t0\r\nq2\td1\t-1\nq2\td1\t-1\n")) == expected
    assert read_qrels(file(tmp_path, "q 1\ta page.md\t1\n")) == {"q 1": {"a page.md": 1}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q1\td1\t1\nq1\td2\n", "line 2: not a judgement"),
        ("q1\td1\tx\n", "line 1: 'x' is not a grade"),
        ("q1\td1\t0.5\n", "line 1: '0.5' is not a grade"),
        ("q1\td1\tnan\n", "line 1: 'nan' is not a grade"),
        ("q1\td1\t99999999999\n", "line 1: '99999999999' is not a grade"),
        ("q1\t\t1\n", "line 1: not a judgement"),
        ("q1 0 d1 1 extra\n", "line 1: not a judgement"),
        ("q1\td1\t1\nq1\td1\t2\n", "line 2: document 'd1' is judged twice for query 'q1', 2 and 1"),
    ],
)
def test_malformed_judgements(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_qrels(file(tmp_path, text))


def test_unreadable_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.tsv", tmp_path, tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=r"There is no file|cannot be read"):
            read_qrels(path)
    with pytest.raises(DocumentError, match="not text"):
        read_qrels(file(tmp_path, b"\x89PNG\x00\x00\xff\xfe\x00\x01" * 50))


def test_runs_are_written_in_the_format_of_trec_eval(tmp_path: Path) -> None:
    path = tmp_path / "a.run"
    write_run(path, {"q1": [("d2", 1.5), ("d1", 3), ("d3", 1.5)], "q2": [("d1", -1e-9)]}, tag="bm25")
    assert path.read_text(encoding="utf-8") == (
        "q1 Q0 d1 1 3.0 bm25\nq1 Q0 d2 2 1.5 bm25\nq1 Q0 d3 3 1.5 bm25\nq2 Q0 d1 1 -1e-09 bm25\n"
    )
    assert [each.doc_id for each in ir_measures.read_trec_run(str(path))] == ["d1", "d2", "d3", "d1"]


@given(run=RUNS)
def test_runs_round_trip(tmp_path_factory: pytest.TempPathFactory, run: dict[str, dict[str, float]]) -> None:
    path = tmp_path_factory.mktemp("runs") / "a.run"
    write_run(path, {query_id: list(ranking.items()) for query_id, ranking in run.items()}, tag="é")
    assert {query_id: dict(ranking) for query_id, ranking in read_run(path).items()} == run


@pytest.mark.parametrize(
    ("run", "tag", "message"),
    [
        ({"q": [("my page.md", 1.0)]}, "t", "'my page.md' cannot be written to a run: white space"),
        ({"": [("d", 1.0)]}, "t", "'' cannot be written to a run"),
        ({"q": [("d\u2028", 1.0)]}, "t", "cannot be written to a run"),
        ({"q": [("d", 1.0)]}, "my system", "'my system' cannot be written to a run"),
        ({"q": [("d", float("nan"))]}, "t", "nan is not a score"),
        ({"q": [("d", 1.0), ("d", 0.5)]}, "t", "contains a document twice"),
    ],
)
def test_runs_that_cannot_be_written(
    tmp_path: Path, run: dict[str, list[tuple[str, float]]], tag: str, message: str
) -> None:
    path = file(tmp_path, "what was there")
    with pytest.raises(InputError, match=message):
        write_run(path, run, tag=tag)
    assert path.read_text(encoding="utf-8") == "what was there"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(RagkitError, match="could not be written"):
        write_run(tmp_path / "none" / "a.run", {"q": [("d", 1.0)]}, tag="t")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("q Q0 d 1 1.0\n", "line 1: 5 columns"),
        ("q Q0 d 1 1.0 t\nq Q0 d 2 0.5 t\n", "line 2: document 'd' is ranked twice for query 'q'"),
        ("q Q0 d 1 high t\n", "line 1: 'high' is not a score"),
        ("q Q0 d 1 inf t\n", "line 1: 'inf' is not a score"),
    ],
)
def test_malformed_runs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_run(file(tmp_path, text))
