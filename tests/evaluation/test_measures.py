from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import bm25s
import ir_measures
import pytest
import pytrec_eval
from hypothesis import given
from hypothesis import strategies as st

from ragkit.documents.document import Document
from ragkit.errors import InputError
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.evaluation.loading import load_dataset
from ragkit.evaluation.measures import Ranked, SpanIoU, SpanPrecision, SpanRecall, check_gold, evaluate, parse_measure

Span = tuple[int, int]
Place = tuple[str, int, int]

# Our notation -> trec_eval's.
TREC_EVAL = {
    "nDCG@10": "ndcg_cut_10", "nDCG": "ndcg", "R@5": "recall_5", "R@100": "recall_100", "P@5": "P_5", "AP": "map",
    "AP@100": "map_cut_100", "RR": "recip_rank", "Success@5": "success_5", "Rprec": "Rprec", "Bpref": "bpref",
}  # fmt: skip


def made(qrels: dict[str, dict[str, int]], spans: dict[str, list[GoldSpan]] | None = None) -> Dataset:
    documents = [Document(id=each, text="x" * 200, source=each, title="", language="en") for each in "abc"]
    queries = [Query(each, "what?") for each in dict.fromkeys([*qrels, *(spans or {})])]
    return Dataset("made", documents, queries, qrels, spans or {})


def on_spans(gold: Sequence[Place], retrieved: Sequence[Place]) -> list[float]:
    dataset = made({}, {"q": [GoldSpan(*place) for place in gold]})
    ranking = [Ranked(document, 0.0, start, end) for document, start, end in retrieved]
    return list(evaluate([SpanRecall, SpanPrecision, SpanIoU], dataset, {"q": ranking})["value"])


# ------------------------------------------------------------------------------------- documents


@pytest.mark.parametrize("name", ["scifact", "cranfield"])
def test_measures_agree_with_trec_eval(shared: Path, name: str) -> None:
    dataset = load_dataset(shared / "datasets" / name, language="en").sample(60)
    index = bm25s.BM25()
    index.index(
        bm25s.tokenize([f"{d.title} {d.text}" for d in dataset.documents], show_progress=False), show_progress=False
    )
    words = bm25s.tokenize([query.text for query in dataset.queries], show_progress=False)
    found, scores = index.retrieve(words, k=200, show_progress=False)
    run = {
        query.id: {dataset.documents[at].id: float(score) for at, score in zip(*pair, strict=True)}
        for query, *pair in zip(dataset.queries, found, scores, strict=True)
    }
    silent = dataset.queries[7].id
    # Two passages a document, the second of them worse; and one query for which nothing is found.
    rankings = {
        query_id: [Ranked(d, score - worse) for worse in (0, 0.5) for d, score in ranking.items() if query_id != silent]
        for query_id, ranking in run.items()
    }
    table = evaluate([*TREC_EVAL, "RR@10"], dataset, rankings).pivot(
        index="query_id", columns="measure", values="value"
    )

    expected = pytrec_eval.RelevanceEvaluator(dataset.qrels, set(TREC_EVAL.values())).evaluate(run)
    assert set(table.index) == set(expected) == {query.id for query in dataset.queries}
    for query_id, values in expected.items():
        for ours, theirs in TREC_EVAL.items():
            wanted = 0.0 if query_id == silent else values[theirs]
            assert table.loc[query_id, ours] == pytest.approx(wanted, abs=1e-4), (query_id, ours)
        first_ten = values["recip_rank"] if values["recip_rank"] >= 0.1 and query_id != silent else 0.0
        assert table.loc[query_id, "RR@10"] == pytest.approx(first_ten, abs=1e-4)
    assert 0.3 < table["nDCG@10"].mean() < 0.9
    assert table.loc[silent].eq(0).all()


def test_a_document_stands_where_its_best_passage_does() -> None:
    dataset = made({"q": {"b": 1}})
    ranking = [Ranked("a", 3, 0, 5), Ranked("b", 2, 0, 5), Ranked("a", 1, 5, 9)]
    table = evaluate(["P@1", "RR", "P@2"], dataset, {"q": ranking})
    assert table.to_dict("list") == {
        "query_id": ["q"] * 3,
        "measure": ["P@1", "RR", "P@2"],
        "value": [0.0, 0.5, 0.5],
    }


def test_equal_scores_are_ordered_as_trec_eval_does() -> None:
    dataset = made({"q": {"b": 1}})
    for score in (1.0, 1.0 + 1e-12):  # the same in 32 bits
        table = evaluate(["RR", "RR@10"], dataset, {"q": [Ranked("a", score), Ranked("b", 1.0)]})
        assert table["value"].iloc[0] == 1.0
    assert list(evaluate(["RR@10"], dataset, {"q": [Ranked("a", 1), Ranked("b", 1)]})["value"]) == [0.5]


def test_exactly_the_judged_queries_count() -> None:
    dataset = made({"q": {"b": 1}, "r": {"c": 1}})
    some = evaluate(["RR"], dataset, {"q": [Ranked("b", 1)], "other": [Ranked("b", 1)]})
    assert list(some["value"]) == [1.0, 0.0]
    assert list(evaluate(["AP", "P@3"], dataset, {})["value"]) == [0.0] * 4
    unanswerable = Dataset(
        "made", dataset.documents, [*dataset.queries, Query("u", "?", answerable=False)], dataset.qrels
    )
    assert list(evaluate(["RR"], unanswerable, {"u": [Ranked("b", 1)]})["query_id"]) == ["q", "r"]
    with pytest.raises(InputError, match="None of the 1 rankings is for a query of 'made': the first is for 'Q'"):
        evaluate(["RR"], dataset, {"Q": [Ranked("b", 1)]})


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_scores_that_are_not_finite(score: float) -> None:
    with pytest.raises(InputError, match="score of 'b' for the query 'q'"):
        evaluate(["RR"], made({"q": {"b": 1}}), {"q": [Ranked("b", score)]})


def test_errors_of_ir_measures_are_reported() -> None:
    with pytest.raises(InputError, match="ir_measures cannot compute Accuracy@5 for 'made': ZeroDivisionError"):
        evaluate(["Accuracy@5"], made({"q": {"b": 1}}), {"q": [Ranked("b", 1)]})


# ------------------------------------------------------------------------------------------ spans


@pytest.mark.parametrize(
    ("gold", "retrieved", "recall", "precision", "iou"),
    [
        ([("a", 0, 10)], [("a", 0, 10)], 1, 1, 1),
        ([("a", 0, 10)], [("a", 5, 25)], 0.5, 0.25, 0.2),
        ([("a", 0, 10)], [("a", 20, 30)], 0, 0, 0),
        ([("a", 0, 10)], [], 0, 0, 0),
        ([("a", 0, 10), ("a", 20, 30)], [("a", 0, 40)], 1, 0.5, 0.5),
        ([("a", 0, 10)], [("a", 0, 10), ("a", 0, 10)], 1, 0.5, 0.5),  # retrieved characters count each time
        ([("a", 0, 10), ("a", 0, 10)], [("a", 0, 10)], 1, 1, 1),  # gold characters count once
        ([("a", 0, 10)], [("b", 0, 10)], 0, 0, 0),
        ([("a", 0, 10), ("b", 0, 30)], [("b", 10, 40), ("c", 0, 10)], 0.5, 0.5, 1 / 3),
    ],
)
def test_against_values_computed_by_hand(
    gold: list[Place], retrieved: list[Place], recall: float, precision: float, iou: float
) -> None:
    assert on_spans(gold, retrieved) == pytest.approx([recall, precision, iou])


PLACES = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 50), st.integers(1, 20)).map(lambda p: (p[0], p[1], p[1] + p[2])),
    max_size=6,
)


@given(gold=PLACES.filter(bool), retrieved=PLACES)
def test_intervals_agree_with_sets_of_characters(gold: list[Place], retrieved: list[Place]) -> None:
    wanted = {(document, at) for document, start, end in gold for at in range(start, end)}
    found = {(document, at) for document, start, end in retrieved for at in range(start, end)}
    shared, size = len(wanted & found), sum(end - start for _, start, end in retrieved)
    expected = [shared / len(wanted), shared / size if size else 0.0, shared / (len(wanted) + size - shared)]
    assert on_spans(gold, retrieved) == pytest.approx(expected)


def test_the_cutoff_counts_passages() -> None:
    dataset = made({}, {"q": [GoldSpan("a", 0, 10)], "r": [GoldSpan("b", 0, 4)]})
    ranking = [Ranked("b", 3, 0, 10), Ranked("a", 2, 0, 5), Ranked("a", 1, 5, 10)]
    table = evaluate(["SpanRecall@2", SpanRecall @ 3, "SpanPrecision@1"], dataset, {"q": ranking, "r": ranking})
    assert list(table["value"]) == [0.5, 1.0, 1.0, 1.0, 0.0, 0.4]
    assert list(table["measure"].unique()) == ["SpanRecall@2", "SpanRecall@3", "SpanPrecision@1"]


def test_spans_need_offsets() -> None:
    dataset = made({}, {"q": [GoldSpan("a", 0, 10)]})
    with pytest.raises(InputError, match="without offsets"):
        evaluate([SpanRecall @ 5], dataset, {"q": [Ranked("a", 1.0)]})


# --------------------------------------------------------------------------------------- notation


@pytest.mark.parametrize(
    "text", ["nDCG@10", "R@100", "RR@10", "AP", "P(rel=2)@5", "IPrec@0.1", "SpanIoU@5", "SpanRecall"]
)
def test_notation_round_trips(text: str) -> None:
    measure = parse_measure(text)
    assert str(measure) == text
    assert parse_measure(measure) == measure
    assert isinstance(measure, ir_measures.Measure) or measure in (SpanRecall, SpanIoU @ 5)


def test_aliases_are_the_same_measure() -> None:
    assert parse_measure(" NDCG@10 ") == parse_measure(ir_measures.nDCG @ 10)
    table = evaluate(["Recall@5", "R@5"], made({"q": {"a": 1}}), {})
    assert list(table["measure"]) == ["R@5"]


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "nDCG@", "a b", "nDCG@10; AP", "__import__('os').system('true')", "nDCG(**{'cutoff': 5})",
     "((" * 500, "nDCG\0", "SpanRecall(k=5)", "SpanRecall@5.0", "R(5)", "nDCG.params"],
)  # fmt: skip
def test_unknown_measures(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a measure|cutoff of"):
        parse_measure(text)


# trec_eval exits the process for a cutoff below 1.
@pytest.mark.parametrize("text", ["nDCG@0", "R@-1", "P@True", "R@'5'", "SpanIoU@0", "nDCG@10000000"])
def test_invalid_cutoffs(text: str) -> None:
    with pytest.raises(InputError, match=r"cutoff of .* must be a whole number"):
        parse_measure(text)


@pytest.mark.parametrize(
    "text", ["R", "P(foo=1)@5", "IPrec@10", "P(rel=10000000000)@5", "SetF(beta=-1.0)", "alpha_nDCG@5"]
)
def test_measures_that_cannot_be_computed(text: str) -> None:
    with pytest.raises(InputError, match="cannot be computed: an option is wrong or missing"):
        parse_measure(text)


def test_the_error_lists_the_measures() -> None:
    with pytest.raises(InputError, match=r"'Nonsense@3' is not a measure.*AP.*SpanRecall.*nDCG"):
        parse_measure("Nonsense@3")
    with pytest.raises(InputError, match="None is not a measure"):
        parse_measure(None)  # type: ignore[arg-type]


def test_missing_gold_data() -> None:
    judged = made({"q": {"a": 1}})
    with pytest.raises(InputError, match="'SpanIoU@5' needs gold spans, and 'made' has none"):
        evaluate(["nDCG@10", "SpanIoU@5"], judged, {})
    bare = Dataset("bare", judged.documents, judged.queries)
    with pytest.raises(InputError, match=r"'AP' needs judgements \(qrels\), and 'bare' has none"):
        check_gold([parse_measure("AP")], bare)
