from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.chunking.base import Chunk
from ragkit.documents.document import Document
from ragkit.engine.answer import Answer, cite
from ragkit.errors import InputError
from ragkit.evaluation.answer_measures import (
    ANSWER_MEASURES,
    F1,
    Abstention,
    Answered,
    AnswerMeasure,
    CitationPrecision,
    CitationRecall,
    ExactMatch,
    FollowUpQuality,
    Place,
    covered,
    evaluate_answers,
    exact_match,
    f1,
)
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.evaluation.loading import load_dataset
from ragkit.evaluation.measures import check_gold, evaluate, parse_measure
from ragkit.indexing.record_types import DocumentRecord
from ragkit.llm.prompt import abstention
from ragkit.llm.replies import without_citations
from ragkit.retrieval.base import Hit
from tests.conftest import ROOT

SENTENCES = ["The usual k1 is 1.2.", "The usual b is 0.75.", "Tune them as the very last."]
TEXT = " ".join(SENTENCES)  # sentences at 0:20, 21:41, 42:69
FIRST, SECOND, THIRD = (GoldSpan("a", TEXT.index(s), TEXT.index(s) + len(s)) for s in SENTENCES)


def hit(document_id: str = "a", text: str = TEXT) -> Hit:
    document = DocumentRecord(document_id, document_id, document_id.upper(), "en", text)
    return Hit(Chunk(document_id, 0, len(text), text, (), None, 0), document, 1.0, 0.5, 1)


def answered(text: str, *hits: Hit, language: str = "en") -> Answer:
    return cite("What?", text, hits or (hit(),), language=language, model="test", seconds=0.1)


def query(*answers: str, language: str = "en", answerable: bool | None = None) -> Query:
    return Query("q", "What?", language=language, answers=answers, answerable=answerable)


def dataset(*queries: Query, spans: Sequence[GoldSpan] = ()) -> Dataset:
    documents = [Document(id=each, text=TEXT, source=each, title="", language="en") for each in "ab"]
    return Dataset("made", documents, queries, {}, {"q": spans} if spans else {})


# -------------------------------------------------------------------------------------- citations


@pytest.mark.parametrize(
    ("text", "spans", "precision", "recall"),
    [
        ("The usual k1 is 1.2. [1]", [FIRST], 1, 1),
        ("The usual k1 is 1.2. [1]", [SECOND], 0, 0),
        ("The usual k1 is 1.2. [1]", [FIRST, SECOND], 1, 0.5),
        ("Both are usual. [1]", [FIRST, SECOND], 1, 1),  # not verbatim: the whole passage, with both sentences
        ("Both are usual. [1] So says another. [2]", [FIRST, SECOND], 0.5, 1),
        ("The usual k1 is 1.2. [1] The usual b is 0.75. [2]", [FIRST, SECOND], 0.5, 0.5),  # the other document
        ("The usual k1 is 1.2. [1] The usual b is 0.75. [1]", [FIRST, SECOND], 1, 1),  # one citation, two quotes
        ("usual k1 is 1.2. [1]", [FIRST], 1, 1),  # 16 of 20 characters
        ("The usual k1 is 1.2. [1]", [GoldSpan("a", 0, 40)], 1, 1),  # half of a span
        (
            "The usual k1 is 1.2. [1]",
            [GoldSpan("a", 0, 41)],
            1,
            0,
        ),  # less than half of the span, but all of the citation within it
        ("The usual k1 is 1.2. [1]", [GoldSpan("a", 10, 50)], 1, 0),  # half of the citation within
        ("The usual k1 is 1.2. [1]", [GoldSpan("a", 11, 50)], 0, 0),
        ("Nobody says where this stands.", [FIRST], None, 0),
        (abstention("en"), [FIRST], None, 0),
        ("The usual k1 is 1.2. [1]", [], None, None),
    ],
)
def test_citations_against_values_computed_by_hand(
    text: str, spans: list[GoldSpan], precision: float | None, recall: float | None
) -> None:
    answer = answered(text, hit(), hit("b"))
    assert CitationPrecision.score(query(), answer, spans) == precision
    assert CitationRecall.score(query(), answer, spans) == recall


PLACES = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 60), st.integers(1, 9)).map(lambda p: (p[0], p[1], p[1] + p[2])),
    min_size=1,
    max_size=5,
)


@given(PLACES)
def test_characters_count_once(places: list[Place]) -> None:
    assert covered(places) == len({(document, at) for document, start, end in places for at in range(start, end)})


@given(st.lists(st.sampled_from([*SENTENCES, "Something else."]), min_size=1), PLACES)
def test_citation_measures_are_between_0_and_1(sentences: list[str], places: list[Place]) -> None:
    answer = answered(" ".join(f"{sentence} [{n % 2 + 1}]" for n, sentence in enumerate(sentences)), hit(), hit("b"))
    spans = [GoldSpan(*place) for place in places]
    precision, recall = (m.score(query(), answer, spans) for m in (CitationPrecision, CitationRecall))
    assert precision is not None
    assert recall is not None
    assert 0 <= precision <= 1
    assert 0 <= recall <= 1
    every = [GoldSpan("a", 0, len(TEXT)), GoldSpan("b", 0, len(TEXT))]
    assert CitationPrecision.score(query(), answer, every) == 1


# ------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("one", "other", "language", "expected"),
    [
        ("The Cat sat.", "a cat sat", "en", 1),
        ("cat sat", "cat", "en", 2 / 3),
        ("cat cat", "cat", "en", 2 / 3),  # a word counts as often as both hold it
        ("cat", "dog", "en", 0),
        ("well-known", "wellknown", "en", 1),  # as SQuAD's own program does
        ("don't", "dont", "en", 1),
        ("the", "a", "en", 1),
        ("the", "cat", "en", 0),
        ("le chat", "chat", "en", 2 / 3),  # French articles are words in English
        ("L’exactitude", "exactitude", "fr", 1),
        ("l'exactitude", "« L’exactitude »", "fr", 1),
        ("Le chat, la souris et les chiens", "un chat, une souris et des chiens", "fr", 1),
        ("a", "the", "fr", 0),  # "a" is a verb in French
        ("d'eau", "eau", "fr", 2 / 3),
        ("5 l", "5", "fr", 2 / 3),  # litres
        ("péché", "pêche", "fr", 0),
        ("peche\u0301", "pech\u00e9", "fr", 1),
        ("20\u202f%", "20 %", "fr", 1),
        ("20\u00a0%", "20", "fr", 1),
        ("ﬁn", "fin", "fr", 1),
        ("Oui – enfin…", "oui enfin", "fr", 1),
        ("", "", "fr", 1),
        ("", "mot", "fr", 0),
    ],
)
def test_f1_against_values_computed_by_hand(one: str, other: str, language: str, expected: float) -> None:
    assert f1(one, other, language=language) == pytest.approx(expected)
    assert exact_match(one, other, language=language) == (expected == 1)


TEXTS = (
    st.lists(st.sampled_from(["a", "le", "l'eau", "chat", "Chat!", "b-c", "€", "[1]", "…"])).map(" ".join) | st.text()
)


@given(TEXTS, TEXTS, st.sampled_from(["en", "fr", "de", "und"]))
def test_f1_and_exact_match(one: str, other: str, language: str) -> None:
    found = f1(one, other, language=language)
    assert 0 <= found <= 1
    assert found == f1(other, one, language=language)
    assert f1(one, one, language=language) == exact_match(one, one, language=language) == 1
    if exact_match(one, other, language=language):
        assert found == 1


def test_the_best_of_several_right_answers_counts() -> None:
    answer = answered("The usual k1 is 1.2. [1]")
    asked = query("1.2", "usual k1 is 1.2", "0.75")
    assert ExactMatch.score(asked, answer, ()) == 1
    assert F1.score(query("1.2", "nothing"), answer, ()) == pytest.approx(2 / 5)  # usual, k1, is, 12; 12
    assert ExactMatch.score(query("1.2"), answer, ()) == 0
    assert F1.score(query(), answer, ()) is None


def test_the_language_is_the_datasets_or_else_the_answers() -> None:
    answer = answered("Le chat [1]", language="fr")
    assert ExactMatch.score(query("chat", language="und"), answer, ()) == 1
    assert ExactMatch.score(query("chat", language="en"), answer, ()) == 0


def test_an_abstention_on_an_answerable_query_scores_zero() -> None:
    text = abstention("fr")
    answer = answered(text, language="fr")
    assert F1.score(query(text), answer, ()) == ExactMatch.score(query(text), answer, ()) == 0


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("One [1], two[2][3].", "One, two."),
        ("Take `x[1]`. [1]", "Take `x[1]`."),
        ("```\nx[0]\n``` [1]", "```\nx[0]\n```"),
        ("[a] [12345]", "[a] [12345]"),
    ],
)
def test_citation_markers_are_not_words(text: str, without: str) -> None:
    assert without_citations(text) == without


# ------------------------------------------------------------------------------------- abstention


@pytest.mark.parametrize(
    ("answerable", "spans", "abstained", "abstention_score", "answered_score"),
    [
        (False, [], True, 1, None),
        (False, [], False, 0, None),
        (True, [], True, None, 0),
        (True, [], False, None, 1),
        (None, [FIRST], False, None, 1),
        (None, [FIRST], True, None, 0),
        (None, [], True, None, None),
        (False, [FIRST], True, 1, None),
    ],
)
def test_abstention(
    answerable: bool | None,
    spans: list[GoldSpan],
    abstained: bool,
    abstention_score: float | None,
    answered_score: float | None,
) -> None:
    answer = answered(abstention("fr") if abstained else "It is 1.2. [1]")
    assert Abstention.score(query(answerable=answerable), answer, spans) == abstention_score
    assert Answered.score(query(answerable=answerable), answer, spans) == answered_score


# -------------------------------------------------------------------------------------- follow-ups

ASKED = Query("q", "How should I choose k1 for BM25?")


@pytest.mark.parametrize(
    ("follow_ups", "language", "score"),
    [
        (["What is the effect of b?", "Which stemmer is used for French?", "How is recall measured?"], "en", 1),
        (["What is the effect of b?", "Which stemmer is used for French?"], "en", 2 / 3),
        ([], "en", 0),
        # The second repeats the first in other words; the third repeats the original question.
        (["What is the effect of b?", "What effects does b have?", "Choosing k1 for BM25?"], "en", 1 / 3),
        (["Unanswerable things?", "What is the effect of b?", "?"], "en", 1 / 3),
        (
            ["", "the", "What is the effect of b?", "How is recall measured?"],
            "en",
            1 / 3,
        ),  # the fourth exceeds the wanted number
        (["Quel est l'effet de b ?", "Quels sont les effets de b ?", "Comment mesurer le rappel ?"], "fr", 2 / 3),
    ],
)
def test_follow_ups(follow_ups: list[str], language: str, score: float) -> None:
    put: list[str] = []

    def answerable(question: str) -> bool:
        put.append(question)
        assert question not in ("", "the", "?"), "a question without words cannot be searched"
        return "Unanswerable" not in question

    measure = FollowUpQuality()
    found = measure.score_questions(ASKED, follow_ups, answerable=answerable, language=language)
    assert found == pytest.approx(score)
    assert len(put) == len(set(put)) <= 3


def test_follow_ups_part_by_part() -> None:
    checks = FollowUpQuality(5).check(
        ASKED,
        ["Choose k1 for BM25?", "And in Lucene?", "Lucene?", "Gone?"],
        answerable=lambda question: question != "Gone?",
        language="en",
    )
    assert [(c.question, c.answerable, c.new, c.distinct, c.good) for c in checks] == [
        ("Choose k1 for BM25?", True, False, True, False),
        ("And in Lucene?", True, True, True, True),
        ("Lucene?", True, True, False, False),
        ("Gone?", False, True, True, False),
    ]


@pytest.mark.parametrize(
    ("question", "new"), [("Alpha, beta, gamma, kappa?", True), ("Alpha, beta, gamma, delta, kappa?", False)]
)
def test_questions_may_share_three_quarters_of_their_terms(question: str, new: bool) -> None:
    asked = Query("q", "Alpha, beta, gamma, delta, lambda?")
    (check,) = FollowUpQuality().check(asked, [question], answerable=lambda _: True, language="en")
    assert check.new == new


@given(st.lists(st.text(max_size=30), max_size=6), st.integers(1, 6))
def test_follow_up_scores_are_between_0_and_1(follow_ups: list[str], wanted: int) -> None:
    score = FollowUpQuality(wanted).score_questions(ASKED, follow_ups, answerable=lambda _: True, language="en")
    assert 0 <= score <= min(1, len(follow_ups) / wanted)


# --------------------------------------------------------------------------------- tables and texts


def test_a_missing_answer_is_nan_and_other_queries_have_no_row() -> None:
    queries = [
        query("1.2", answerable=True),
        Query("r", "And b?", answers=("0.75",)),
        Query("u", "Who?", answerable=False),
        Query("v", "Where?", answerable=False),
    ]
    answers = {"q": answered("The usual k1 is 1.2. [1]"), "u": answered(abstention("en")), "other": answered("x")}
    names: list[str | AnswerMeasure] = ["CitationPrecision", CitationRecall, "F1", "Abstention", "Answered", "F1"]
    table = evaluate_answers(names, dataset(*queries, spans=[FIRST]), answers)
    assert list(table.columns) == ["query_id", "measure", "value"]
    rows = [(q, m, None if math.isnan(v) else v) for q, m, v in table.itertuples(index=False)]
    assert rows == [
        ("q", "CitationPrecision", 1.0),
        ("q", "CitationRecall", 1.0),
        ("q", "F1", pytest.approx(2 / 5)),
        ("r", "F1", None),
        ("u", "Abstention", 1.0),
        ("v", "Abstention", None),
        ("q", "Answered", 1.0),
    ]


def test_measures_that_need_more_than_answers() -> None:
    made = dataset(query("1.2"), spans=[FIRST])
    answers = {"q": answered("The usual k1 is 1.2. [1]")}
    for name in ("FollowUps", "nDCG@10", "nonsense"):
        with pytest.raises(InputError, match=f"'{name}' cannot be computed from answers alone"):
            evaluate_answers([name], made, answers)
    with pytest.raises(InputError, match="None of the 1 answers is for a query of 'made': the first is for 'Q'"):
        evaluate_answers(["F1"], made, {"Q": answers["q"]})
    assert evaluate_answers([F1], made, {})["value"].isna().all()


@pytest.mark.parametrize("name", [*ANSWER_MEASURES, "FollowUps@5"])
def test_notation_round_trips(name: str) -> None:
    measure = parse_measure(name)
    assert isinstance(measure, AnswerMeasure | FollowUpQuality)
    assert str(measure) == name
    assert parse_measure(measure) is measure
    with pytest.raises(InputError, match=f"'{name}' measures answers, and these are rankings"):
        evaluate(["RR", name], dataset(query("1.2"), spans=[FIRST]), {})


@pytest.mark.parametrize("text", ["F1@5", "FollowUps@0", "FollowUps@'x'", "FollowUps(wanted=2)", "ExactMatch(x=1)"])
def test_unknown_measures(text: str) -> None:
    with pytest.raises(InputError, match=r"is not a measure|must be a whole number"):
        parse_measure(text)


def test_judges_cannot_be_given_as_strings() -> None:
    with pytest.raises(InputError, match=r"'Faithfulness' needs a judge model: pass Faithfulness\(llm\)"):
        parse_measure("Faithfulness")
    with pytest.raises(
        InputError, match=r"The measures are: .*CitationRecall.*FollowUps.*nDCG.*Faithfulness and Relevance"
    ):
        parse_measure("Faith")


@pytest.mark.parametrize(
    ("measure", "what"),
    [
        (CitationPrecision, "gold spans"),
        (CitationRecall, "gold spans"),
        (ExactMatch, "reference answers"),
        (F1, "reference answers"),
        (Abstention, "the documents do not answer"),
        (Answered, "known to be answerable"),
    ],
)
def test_missing_gold_data(measure: AnswerMeasure, what: str) -> None:
    bare = dataset(Query("q", "What?"))
    with pytest.raises(InputError, match=f"'{measure}' needs .*{what}.*: 'made' has none"):
        check_gold([measure], bare)
    check_gold([FollowUpQuality()], bare)


def test_the_handbook_has_gold_for_every_measure() -> None:
    handbook = load_dataset(ROOT / "data" / "questions", corpus=ROOT / "data" / "handbook")
    check_gold([parse_measure(name) for name in ANSWER_MEASURES], handbook)
    texts = {document.id: document.text for document in handbook.documents}
    assert sum(each.answerable is False for each in handbook.queries) == 12
    assert all((each.answerable is True) == (each.id in handbook.spans) for each in handbook.queries)
    with_answers = [each for each in handbook.queries if each.answers]
    assert len(with_answers) >= 10
    assert {each.language for each in with_answers} == {"en", "fr"}
    for each in with_answers:
        spans = [texts[s.document_id][s.start : s.end] for s in handbook.spans[each.id]]
        for right in each.answers:
            assert any(right in " ".join(span.split()) for span in spans), (each.id, right)
