from __future__ import annotations

import dataclasses
import json
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.documents.document import Document
from ragkit.documents.loading import parse
from ragkit.documents.sources import find_sources
from ragkit.errors import DocumentError, InputError, MissingExtraError, SourceNotFoundError
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.evaluation.loading import load_dataset
from ragkit.evaluation.measures import evaluate
from tests.conftest import ROOT

CORPUS = [
    {"_id": "d1", "title": "Un titre\nlong", "text": "Le premier document\r\nparle de recherche.", "year": 1999},
    {"_id": 2, "title": "", "text": "The second document is about ranking."},
    {"_id": "d3", "text": ""},
]
QUERIES = [
    {"_id": "q1", "text": "recherche ?", "language": "fr", "metadata": {"a": 1}},
    {"_id": "q2", "text": "what ranks?", "synthetic": True},
    {"_id": "q3", "text": "nobody judged this"},
    {"_id": "q4", "text": "nobody can answer this", "answerable": False},
]
QRELS = "query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\tgone\t1\nq2\t2\t1\n"
SPANS = [{"_id": "q1", "spans": [{"document_id": "d1", "start": 3, "end": 10, "text": "premier"}]}]


def jsonl(path: Path, rows: list[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def folder(path: Path, **files: Any) -> Path:
    """Write a dataset in BEIR's layout; the arguments replace default files, and None omits a file."""
    usual = {"corpus": CORPUS, "queries": QUERIES, "qrels": QRELS, "spans": None, "qa": None}
    for name, content in {**usual, **files}.items():
        if isinstance(content, list):
            jsonl(path / f"{name}.jsonl", content)
        elif isinstance(content, Mapping):
            (path / name).mkdir()
            for split, text in content.items():
                (path / name / f"{split}.tsv").write_text(text, encoding="utf-8")
        elif content is not None:
            (path / f"{name}.{'tsv' if name == 'qrels' else 'jsonl'}").write_text(content, encoding="utf-8")
    return path


# -------------------------------------------------------------------------------------- real sets


@pytest.mark.parametrize(
    ("name", "split", "documents", "queries", "judgements", "language"),
    [
        ("cranfield", None, 1400, 225, 1837, "en"),
        ("scifact", None, 5183, 300, 339, "en"),
        ("scifact", "train", 5183, 809, 919, "en"),
        ("servicepublic_fr", None, 889, 535, 535, None),
        ("chunking_evaluation", None, 5, 472, 472, "en"),
    ],
)
def test_real_datasets(
    shared: Path, name: str, split: str | None, documents: int, queries: int, judgements: int, language: str | None
) -> None:
    dataset = load_dataset(shared / "datasets" / name, split=split, language=language)
    assert dataset.name == (f"{name}/{split}" if split else name)
    assert (len(dataset.documents), len(dataset.queries)) == (documents, queries)
    assert sum(map(len, dataset.qrels.values())) == judgements
    assert {query.id for query in dataset.queries} == set(dataset.qrels)
    if name == "servicepublic_fr":
        assert sum(document.language == "fr" for document in dataset.documents) > 880
        assert sum(bool(query.answers) for query in dataset.queries) == 105
    if name == "chunking_evaluation":
        assert sum(map(len, dataset.spans.values())) == 790
        assert set(dataset.spans) == set(dataset.qrels)


def test_texts_are_the_same_as_in_the_index(shared: Path) -> None:
    (source,) = find_sources(shared / "datasets" / "scifact" / "corpus.jsonl").sources
    indexed = [item for item in parse(source) if isinstance(item, Document)]
    own = load_dataset(shared / "datasets" / "scifact", language="und").documents
    assert [f"corpus.jsonl#{document.id}" for document in own] == [document.id for document in indexed]
    assert [document.digest() for document in own] == [document.digest() for document in indexed]


def test_the_handbook() -> None:
    dataset = load_dataset(ROOT / "data" / "questions", corpus=ROOT / "data" / "handbook")
    assert len(dataset.documents) == 30
    assert {"bm25.md", "fr/glossaire.md"} & {document.id for document in dataset.documents}
    assert set(dataset.spans) == set(dataset.qrels) >= {"a01", "c18"}
    assert {query.language for query in dataset.queries} == {"en", "fr"}
    for row in map(json.loads, (ROOT / "data/questions/spans.jsonl").read_text(encoding="utf-8").splitlines()):
        texts = {document.id: document.text for document in dataset.documents}
        words = [texts[span.document_id][span.start : span.end] for span in dataset.spans[row["_id"]]]
        assert words == [span["text"] for span in row["spans"]]


# ------------------------------------------------------------------------------------------- BEIR


def test_a_folder(tmp_path: Path) -> None:
    dataset = load_dataset(folder(tmp_path, spans=SPANS, qa=[{"_id": "q2", "answers": [{"text": "BM25"}, "RRF"]}]))
    first, second, third = dataset.documents
    assert (first.id, first.title, first.text) == ("d1", "Un titre long", "Le premier document\nparle de recherche.")
    assert (first.language, second.language, third.language) == ("fr", "en", "und")
    assert (second.id, third.text, first.metadata) == ("2", "", {"year": 1999})
    assert [query.id for query in dataset.queries] == ["q1", "q2", "q4"]
    assert dataset.queries[0] == Query("q1", "recherche ?", language="fr")
    assert dataset.queries[1] == Query("q2", "what ranks?", answers=("BM25", "RRF"), synthetic=True)
    assert dataset.qrels == {"q1": {"d1": 2, "gone": 1}, "q2": {"2": 1}}
    assert dataset.spans == {"q1": (GoldSpan("d1", 3, 10),)}
    assert repr(dataset) == (
        f"Dataset({tmp_path.name!r}: 3 documents, 3 queries, 3 judgements, 1 spans, 1 queries without an answer)"
    )


def test_spans_imply_judgements(tmp_path: Path) -> None:
    rows = [{"_id": "q1", "question": "?", "doc_id": "d1", "spans": [[3, 10, "premier"], [0, 2]]}]
    dataset = load_dataset(folder(tmp_path, qrels=None, spans=rows))
    assert dataset.qrels == {"q1": {"d1": 1}}
    assert dataset.spans == {"q1": (GoldSpan("d1", 3, 10), GoldSpan("d1", 0, 2))}
    assert [query.id for query in dataset.queries] == ["q1", "q4"]


def test_splits(tmp_path: Path) -> None:
    path = folder(tmp_path, qrels={"train": "q1\td1\t1\n", "test": "q2\t2\t1\n"}, spans=SPANS)
    assert set(load_dataset(path).qrels) == {"q2"}
    train = load_dataset(path, split="train", name="mine")
    assert (train.name, set(train.qrels), set(train.spans)) == ("mine", {"q1"}, {"q1"})
    for split in ("dev", "../qrels/train", ""):
        with pytest.raises(InputError, match=r"There are: test, train|has no qrels"):
            load_dataset(path, split=split or "x")


def test_a_separate_corpus(tmp_path: Path) -> None:
    pages, questions = tmp_path / "pages", tmp_path / "questions"
    (pages / "fr").mkdir(parents=True)
    questions.mkdir()
    (pages / "fr" / "a page.md").write_text("# Titre\n\nUn texte.\n", encoding="utf-8")
    folder(questions, corpus=None, qrels="q1\tfr/a page.md\t1\n")
    dataset = load_dataset(questions, corpus=pages, language="fr")
    assert [(d.id, d.title, d.language) for d in dataset.documents] == [("fr/a page.md", "Titre", "fr")]
    (pages / "broken.pdf").write_bytes(b"%PDF-1.7 and no more")
    with pytest.raises(InputError, match=r"1 files of the corpus cannot be read, the first: .*broken\.pdf"):
        load_dataset(questions, corpus=pages)
    with pytest.raises(InputError, match=r"no file or folder|There is no"):
        load_dataset(questions)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"queries": '{"_id": "q1", "text": "a"}\n{"_id": \n'}, r"queries\.jsonl, line 2: not JSON"),
        ({"queries": '["q1"]\n'}, r"queries\.jsonl, line 1: not a JSON object"),
        ({"queries": "[" * 100_000}, r"queries\.jsonl, line 1: not JSON"),
        ({"queries": [{"_id": "q1", "text": " "}]}, r"queries\.jsonl, line 1: the query is empty"),
        ({"queries": [{"text": "a"}]}, r"queries\.jsonl, line 1: no id"),
        ({"queries": [{"_id": "q1"}]}, r"queries\.jsonl, line 1: no text"),
        ({"queries": [*QUERIES, QUERIES[0]]}, "Two queries of .* have the id 'q1'"),
        ({"queries": [{**QUERIES[0], "answers": [1]}, QUERIES[1]]}, "line 1: 'answers' must be a list of strings"),
        ({"queries": [{**QUERIES[0], "answers": 5}, QUERIES[1]]}, "line 1: 'answers' must be a list of strings"),
        ({"corpus": [*CORPUS, {"_id": "2", "text": "again"}]}, "Two documents of .* have the id '2'"),
        ({"corpus": [{"_id": "d1", "text": None}]}, r"corpus\.jsonl, line 1: no text"),
        ({"corpus": [{"_id": ["d1"], "text": "a"}]}, r"corpus\.jsonl, line 1: no id"),
        ({"corpus": [{"_id": "other", "text": "a"}]}, "None of the judged documents is in the corpus: 'd1' is judged"),
        ({"qrels": QRELS + "q9\td1\t1\n"}, "has judgements or spans for 'q9', which is not among its queries"),
        ({"qrels": QRELS + "q1\td1\n"}, r"qrels\.tsv, line 5: not a judgement"),
        ({"qrels": None}, "has no judgements"),
        ({"qrels": ""}, "has no judgements"),
        ({"qrels": {"a": QRELS, "b": QRELS}}, r"no qrels/test\.tsv. There are: a, b"),
        ({"qa": [{"_id": "q9", "answers": []}]}, r"qa\.jsonl, line 1: there is no query 'q9'"),
        ({"spans": [{"_id": "q9", "spans": []}]}, r"spans\.jsonl, line 1: there is no query 'q9'"),
        ({"spans": [{"_id": "q1"}]}, "line 1: a span of 'q1' lacks"),
        ({"spans": [{"_id": "q1", "spans": [{"document_id": "d1", "start": "3", "end": 10}]}]}, "of 'q1' lacks"),
        ({"spans": [{"_id": "q1", "doc_id": "d9", "spans": [[3, 10]]}]}, "'q1' is in 'd9', which is not in the corpus"),
        ({"spans": [{"_id": "q1", "doc_id": "d1", "spans": [[3, 10, "second"]]}]}, "does not match: .* has 'premier'"),
        ({"spans": [{"_id": "q1", "doc_id": "d1", "spans": [[3, 1000]]}]}, "goes from 3 to 1000, but 'd1' has"),
        ({"spans": [{"_id": "q1", "doc_id": "d1", "spans": [[-3, 3]]}]}, "of 'q1' goes from -3"),
    ],
)  # fmt: skip
def test_errors_name_the_file_and_line(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(folder(tmp_path, **files))


def test_binary_and_missing_files(tmp_path: Path) -> None:
    (folder(tmp_path) / "queries.jsonl").write_bytes(b"\x89PNG\x00\x00\xff\xfe\x00\x01" * 50)
    with pytest.raises(DocumentError, match="not text"):
        load_dataset(tmp_path)
    (tmp_path / "queries.jsonl").unlink()
    with pytest.raises(InputError, match="There is no file"):
        load_dataset(tmp_path)
    with pytest.raises(SourceNotFoundError):
        load_dataset(tmp_path / "none")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(folder(tmp_path, queries=None) / "queries.jsonl")
    with pytest.raises(InputError, match="There is no file"):
        load_dataset(tmp_path)


# ---------------------------------------------------------------------------- TREC, ir_datasets


def test_trec_files(tmp_path: Path) -> None:
    (tmp_path / "topics.txt").write_text("<top>\n<num> Number: 1\n<title> Ranking\n</top>\n", encoding="utf-8")
    (tmp_path / "qrels.txt").write_text("1 0 d2 2\n1 0 d9 0\n", encoding="utf-8")
    corpus = [Document(id="d2", text="About ranking.", source="d2", title="", language="en")]
    dataset = load_dataset(tmp_path / "topics.txt", qrels=tmp_path / "qrels.txt", corpus=corpus)
    assert dataset == Dataset("topics", corpus, [Query("1", "Ranking")], {"1": {"d2": 2, "d9": 0}})
    for options in ({"split": "test"}, {"split": "test", "qrels": tmp_path / "qrels.txt"}):
        with pytest.raises(InputError, match="split= selects"):
            load_dataset(tmp_path / "topics.txt", corpus=corpus, **options)
    with pytest.raises(InputError, match="qrels= is for a source of queries only"):
        load_dataset(tmp_path, corpus=corpus, qrels=tmp_path / "qrels.txt")
    with pytest.raises(InputError, match="Pass the rest"):
        load_dataset(tmp_path / "topics.txt", corpus=corpus)


@pytest.fixture
def ir_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """ir_datasets with a temporary folder and without network."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    return pytest.importorskip("ir_datasets")


def test_a_dataset_of_ir_datasets(tmp_path: Path, ir_datasets: Any) -> None:
    (tmp_path / "docs.tsv").write_text("d1\tUn texte.\nd2\tA text.\n", encoding="utf-8")
    (tmp_path / "queries.tsv").write_text("q1\tlequel ?\nq2\tnot judged\n", encoding="utf-8")
    (tmp_path / "qrels.txt").write_text("q1 0 d1 2\nq1 0 d2 0\n", encoding="utf-8")
    own = ir_datasets.create_dataset(*(str(tmp_path / name) for name in ("docs.tsv", "queries.tsv", "qrels.txt")))
    ir_datasets.registry.register("ragkit-own", own)
    dataset = load_dataset("ir_datasets:ragkit-own", language="fr")
    assert [(d.id, d.text, d.language) for d in dataset.documents] == [
        ("d1", "Un texte.", "fr"),
        ("d2", "A text.", "fr"),
    ]
    assert dataset.queries == (Query("q1", "lequel ?"),)
    assert dataset.qrels == {"q1": {"d1": 2, "d2": 0}}
    ir_datasets.registry.register("ragkit-docs", ir_datasets.create_dataset(str(tmp_path / "docs.tsv")))
    with pytest.raises(InputError, match="'ir_datasets:ragkit-docs' has no queries"):
        load_dataset("ir_datasets:ragkit-docs")
    (tmp_path / "qrels.txt").write_text("q1 0 d1\n", encoding="utf-8")
    with pytest.raises(InputError, match="ir_datasets could not load 'ragkit-own'"):
        load_dataset("ir_datasets:ragkit-own")


def test_datasets_that_ir_datasets_lacks(ir_datasets: Any) -> None:
    with pytest.raises(InputError, match="ir_datasets has no dataset 'nonsense'"):
        load_dataset("ir_datasets:nonsense")
    with pytest.raises(InputError, match=r"could not load 'cranfield': .* check the network connection"):
        load_dataset("ir_datasets:cranfield")


def test_ir_datasets_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ragkit-lab\[eval\]'"):
        load_dataset("ir_datasets:cranfield")


# ----------------------------------------------------------------------------------------- tables


def test_a_dataframe() -> None:
    corpus = pd.DataFrame({"id": [1, 2], "text": ["Le chat dort dans la maison.", "A dog."], "title": ["Chat", None]})
    table = pd.DataFrame(
        {
            "query": ["le chat ?", "le chat ?", "dogs?", "fish?"],
            "document_id": [1, 2, 2, None],
            "grade": [2, None, 1, None],
            "start": [3, None, None, None],
            "end": [7, None, None, None],
        }
    )
    dataset = load_dataset(table, corpus=corpus, name="pets")
    assert [(d.id, d.title) for d in dataset.documents] == [("1", "Chat"), ("2", "")]
    assert [(q.id, q.text, q.answerable) for q in dataset.queries] == [
        ("q1", "le chat ?", None),
        ("q2", "dogs?", None),
        ("q3", "fish?", False),
    ]
    assert dataset.qrels == {"q1": {"1": 2, "2": 1}, "q2": {"2": 1}}
    assert dataset.spans == {"q1": (GoldSpan("1", 3, 7),)}
    assert load_dataset(table, corpus=list(dataset.documents), name="pets") == dataset


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"question": ["a"], "document_id": ["1"]}), "columns 'query' and 'document_id', not question"),
        (["a"], "The source must be a folder, a file, or a DataFrame"),
        (pd.DataFrame({"query": ["a"], "document_id": ["1"], "grade": ["high"]}), "row 1 of the judgements: 'high'"),
        (pd.DataFrame({"query": [None], "document_id": ["1"]}), "row 1 of the judgements: no text"),
        (pd.DataFrame({"query": ["a"], "document_id": ["1"], "query_id": [None]}), "row 1 of the judgements: no id"),
        (
            pd.DataFrame({"query": ["a", "b"], "document_id": ["1", "1"], "query_id": [7, 7]}),
            "row 2 of the judgements: the id '7' already belongs to another query",
        ),
        (
            pd.DataFrame({"query": ["a"], "document_id": ["1"], "start": [0], "end": [1.5]}),
            "row 1 .*: 1.5 is not an offset",
        ),
        (pd.DataFrame({"query": ["a"], "document_id": ["1"], "start": [0], "end": [None]}), "None is not an offset"),
        (pd.DataFrame({"query": ["a"], "document_id": ["9"]}), "None of the judged documents is in the corpus"),
        (
            pd.DataFrame({"query": ["a"], "document_id": ["1"], "start": [0], "end": [99]}),
            "ends at 99, but '1' has 6 characters",
        ),
    ],
)
def test_invalid_dataframes(table: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_dataset(table, corpus=pd.DataFrame({"id": ["1"], "text": ["A dog."]}))


# ----------------------------------------------------------------------------------------- values


def made(queries: int = 10) -> Dataset:
    documents = [Document(id=each, text="Some text.", source=each, title="", language="en") for each in "ab"]
    ids = [f"q{n}" for n in range(queries)]
    spans = {query_id: [GoldSpan("a", 0, 4)] for query_id in ids[::2]}
    return Dataset("made", documents, [Query(i, "what?") for i in ids], {i: {"b": 1} for i in ids}, spans)


@given(n=st.integers(1, 10), seed=st.integers(0, 5))
def test_samples_keep_the_order(n: int, seed: int) -> None:
    dataset = made()
    sample = dataset.sample(n, seed=seed)
    assert len(sample.queries) == n
    assert [query for query in dataset.queries if query in sample.queries] == list(sample.queries)
    assert sample == dataset.sample(n, seed=seed)
    assert set(sample.qrels) == {query.id for query in sample.queries}
    assert set(sample.spans) == set(dataset.spans) & set(sample.qrels)
    assert sample.documents_digest() == dataset.documents_digest()


@given(fraction=st.floats(0.06, 0.94), seed=st.integers(0, 5))
def test_splits_are_disjoint_and_complete(fraction: float, seed: int) -> None:
    dataset = made()
    train, test = dataset.split(fraction, seed=seed)
    assert len(train.queries) == round(10 * fraction)
    assert sorted(q.id for part in (train, test) for q in part.queries) == sorted(q.id for q in dataset.queries)
    assert dataset.split(fraction, seed=seed)[0].digest() == train.digest()


def test_impossible_samples_and_splits() -> None:
    assert [query.id for query in made().head(3).queries] == ["q0", "q1", "q2"]
    assert len(made().head(100).queries) == 10
    assert made().head(3).name == "made (first 3)"
    with pytest.raises(InputError, match="There are no queries of"):
        made().head(0)
    with pytest.raises(InputError, match="has 10 queries, so 11 cannot be sampled"):
        made().sample(11)
    for fraction in (0.0, 1.0, 0.01, -1.0, float("nan")):
        with pytest.raises(InputError, match="would be empty"):
            made().split(fraction)


def test_digests_change_with_the_content() -> None:
    dataset = made()
    assert dataset.digest() == made().digest() == pickle.loads(pickle.dumps(dataset)).digest()
    assert dataclasses.replace(dataset, name="other").digest() == dataset.digest()
    others = {
        "documents": [dataclasses.replace(dataset.documents[0], text="Some other text."), dataset.documents[1]],
        "queries": [dataclasses.replace(dataset.queries[0], language="fr"), *dataset.queries[1:]],
        "qrels": {**dataset.qrels, "q0": {"b": 2}},
        "spans": {**dataset.spans, "q0": [GoldSpan("a", 1, 4)]},
    }
    for field, value in others.items():
        changed = dataclasses.replace(dataset, **{field: value})
        assert changed.digest() != dataset.digest()
        assert (changed.documents_digest() != dataset.documents_digest()) == (field == "documents")
        assert (changed.queries_digest() != dataset.queries_digest()) == (field == "queries")


def test_a_dataset_copies_its_arguments() -> None:
    qrels = {"q0": {"a": 1}}
    dataset = Dataset("made", made().documents, [Query("q0", "what?")], qrels)
    before = dataset.digest()
    qrels["q0"]["b"] = 1
    assert dataset.digest() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"documents": []}, "There are no documents of 'made'"),
        ({"queries": []}, "There are no queries of 'made'"),
        ({"qrels": {"q99": {"a": 1}}}, "for 'q99', which is not among"),
        ({"qrels": {"q0": {"a": 10**12}}}, "'a' for the query 'q0': 1000000000000 is not a grade"),
        ({"spans": {"q0": [GoldSpan("z", 0, 1)]}}, "'q0' is in 'z', which is not among the documents"),
        ({"spans": {"q0": [GoldSpan("a", 0, 11)]}}, "'q0' ends at 11, but 'a' has 10 characters"),
    ],
)
def test_inconsistent_datasets_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(made(), **changes)
    for make in (lambda: GoldSpan("a", 3, 3), lambda: GoldSpan("a", -1, 3), lambda: Query("q", " \n")):
        with pytest.raises(InputError):
            make()


def test_pyterrier_dataframes() -> None:
    """Topics, judgements, a corpus and a run in PyTerrier's columns; values agree with trec_eval."""
    topics = pd.DataFrame({"qid": ["q1", "q2", "q3"], "query": ["cats", "dogs", "unjudged"]})
    qrels = pd.DataFrame({"qid": ["q1", "q2", "q2"], "docno": ["d1", "d2", "d1"], "label": [1, 2, 0]})
    corpus = pd.DataFrame({"docno": ["d1", "d2"], "text": ["A cat.", "A dog."]})
    dataset = load_dataset(topics, qrels=qrels, corpus=corpus)
    assert [query.id for query in dataset.queries] == ["q1", "q2"]
    assert dataset.qrels == {"q1": {"d1": 1}, "q2": {"d2": 2, "d1": 0}}
    assert [document.id for document in dataset.documents] == ["d1", "d2"]
    joined = load_dataset(topics.merge(qrels, on="qid"), corpus=corpus)
    assert (joined.qrels, joined.queries) == (dataset.qrels, dataset.queries)
    run = pd.DataFrame({"qid": ["q1", "q2", "q2"], "docno": ["d1", "d1", "d2"], "score": [1.0, 3.0, 2.0]})
    values = evaluate(["RR"], dataset, run)
    assert dict(zip(values["query_id"], values["value"], strict=True)) == {"q1": 1.0, "q2": 0.5}
    with pytest.raises(InputError, match="'score' is missing"):
        evaluate(["RR"], dataset, run.drop(columns="score"))
    with pytest.raises(InputError, match="row 1 of the judgements: no grade"):
        load_dataset(topics, qrels=qrels.drop(columns="label"), corpus=corpus)
