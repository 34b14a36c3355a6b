"""Measures of answers: citations, correctness and abstention.

`CitationRecall` is the fraction of a query's gold spans that are cited, `CitationPrecision` the fraction of citations
that are correct. A citation covers the text that the answer quotes verbatim from its passage, or else the whole
passage. A span is cited if the citations together cover at least half of its characters. A citation is correct if it
covers at least half of a span, or at least half of its text lies within spans.

`ExactMatch` and `F1` compare the answer with reference answers as SQuAD does (Rajpurkar et al. 2016, "SQuAD: 100,000+
Questions for Machine Comprehension of Text"): in lower case, without punctuation and articles; F1 on multisets of
words; with several reference answers, the best value counts. French articles are le, la, les, l', un, une, des and du;
other elisions (d'eau) are two words. Accents are kept, as in SQuAD, because they distinguish words.

`Abstention` is 1 if the answer abstains on a query that the documents do not answer; `Answered` is 1 if it does not
abstain on a query that they do answer.
"""

from __future__ import annotations

import dataclasses
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ragkit.engine.answer import Answer
from ragkit.errors import InputError, needs, require_count
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.llm.replies import without_citations
from ragkit.retrieval.lexical import is_same_question, tokenize

if TYPE_CHECKING:
    import pandas as pd

Place = tuple[str, int, int]
"""(document id, start, end), in characters of the document's text."""

_NEEDS = {
    "CitationPrecision": "gold spans. Add a spans.jsonl",
    "CitationRecall": "gold spans. Add a spans.jsonl",
    "ExactMatch": "reference answers. Add 'answers' to queries, or a qa.jsonl",
    "F1": "reference answers. Add 'answers' to queries, or a qa.jsonl",
    "Abstention": 'queries that the documents do not answer. Mark some with "answerable": false',
    "Answered": 'queries that are known to be answerable. Mark some with "answerable": true, or add a spans.jsonl',
}

# ----------------------------------------------------------------------------------- declarations


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerMeasure:
    """A measure of an answer, from 0 to 1; ``str`` of it is its notation.

    Attributes:
        name: The measure; the module's docstring defines them.
    """

    name: Literal["CitationPrecision", "CitationRecall", "ExactMatch", "F1", "Abstention", "Answered"]

    def __str__(self) -> str:
        return self.name

    def applies(self, query: Query, spans: Sequence[GoldSpan]) -> bool:
        """Return whether the query has the gold data that the measure needs.

        Args:
            query: The query, with its reference answers and whether it is answerable.
            spans: Its gold spans.
        """
        match self.name:
            case "CitationPrecision" | "CitationRecall":
                return bool(spans)
            case "ExactMatch" | "F1":
                return bool(query.answers)
            case "Abstention":
                return query.answerable is False
            case "Answered":
                return query.answerable is True or (query.answerable is None and bool(spans))

    def score(self, query: Query, answer: Answer, spans: Sequence[GoldSpan]) -> float | None:
        """Score one answer.

        An abstention on an answerable query has citation recall, exact match and F1 of 0, and an answer without
        citations has citation recall 0. Their citation precision is None rather than 0: nothing wrong was cited.

        Args:
            query: The query.
            answer: The answer.
            spans: The query's gold spans.

        Returns:
            From 0 to 1; None if the measure does not apply.
        """
        if not self.applies(query, spans):
            return None
        match self.name:
            case "CitationPrecision":
                correct = [_is_correct(places, spans) for places in _cited(answer)]
                return sum(correct) / len(correct) if correct else None
            case "CitationRecall":
                places = [place for of_one in _cited(answer) for place in of_one]
                return sum(_covers_half(places, span) for span in spans) / len(spans)
            case "ExactMatch" | "F1":
                if answer.abstained:
                    return 0.0
                compare = exact_match if self.name == "ExactMatch" else f1
                text, language = without_citations(answer.text), language_of(query, answer)
                return max(compare(text, right, language=language) for right in query.answers)
            case "Abstention":
                return float(answer.abstained)
            case "Answered":
                return float(not answer.abstained)

    def check_gold(self, dataset: Dataset) -> None:
        """Check that the measure applies to at least one query of a dataset.

        Raises:
            InputError: It applies to none; the message says what to add.
        """
        if not any(self.applies(query, dataset.spans.get(query.id, ())) for query in dataset.queries):
            raise InputError(f"'{self}' needs {_NEEDS[self.name]}: '{dataset.name}' has none.")


@dataclasses.dataclass(frozen=True, slots=True)
class FollowUpCheck:
    """The assessment of one follow-up question.

    Attributes:
        question: The follow-up question.
        answerable: Whether the corpus answers it.
        new: Whether it differs from the original question.
        distinct: Whether it differs from the follow-up questions before it.
    """

    question: str
    answerable: bool
    new: bool
    distinct: bool

    @property
    def good(self) -> bool:
        """Whether all three conditions hold."""
        return self.answerable and self.new and self.distinct


@dataclasses.dataclass(frozen=True, slots=True)
class FollowUpQuality:
    """The fraction of the wanted follow-up questions that are good; "FollowUps" or "FollowUps@5" as text.

    Two questions count as the same if they share more than three quarters of the index terms of the shorter one.

    Attributes:
        wanted: The number of follow-up questions that are wanted. Only the first ``wanted`` ones count.
    """

    wanted: int = 3

    def __post_init__(self) -> None:
        require_count("The number of follow-up questions", self.wanted)

    def __matmul__(self, wanted: int) -> FollowUpQuality:
        return FollowUpQuality(wanted)

    def __str__(self) -> str:
        return "FollowUps" if self.wanted == 3 else f"FollowUps@{self.wanted}"

    def check(
        self, query: Query, follow_ups: Sequence[str], *, answerable: Callable[[str], bool], language: str
    ) -> tuple[FollowUpCheck, ...]:
        """Assess the first ``wanted`` follow-up questions.

        Args:
            query: The original question.
            follow_ups: The follow-up questions, best first.
            answerable: Returns whether the corpus answers a question; called once for each that has index terms.
            language: ISO 639-1 code of the questions.
        """
        checks = []
        asked = set(tokenize(query.text, language))
        before: list[set[str]] = []
        for question in follow_ups[: self.wanted]:
            terms = set(tokenize(question, language))
            checks.append(
                FollowUpCheck(
                    question,
                    answerable=bool(terms) and answerable(question),
                    new=bool(terms) and not is_same_question(terms, asked),
                    distinct=bool(terms) and not any(is_same_question(terms, other) for other in before),
                )
            )
            before.append(terms)
        return tuple(checks)

    def score_questions(
        self, query: Query, follow_ups: Sequence[str], *, answerable: Callable[[str], bool], language: str
    ) -> float:
        """Return the number of good questions divided by `wanted`; see `check`."""
        checks = self.check(query, follow_ups, answerable=answerable, language=language)
        return sum(check.good for check in checks) / self.wanted


CitationPrecision = AnswerMeasure("CitationPrecision")
CitationRecall = AnswerMeasure("CitationRecall")
ExactMatch = AnswerMeasure("ExactMatch")
F1 = AnswerMeasure("F1")
Abstention = AnswerMeasure("Abstention")
Answered = AnswerMeasure("Answered")
ANSWER_MEASURES: Mapping[str, AnswerMeasure | FollowUpQuality] = {
    str(each): each
    for each in (CitationPrecision, CitationRecall, ExactMatch, F1, Abstention, Answered, FollowUpQuality())
}
"""The measures by their notation without a cutoff."""


# ------------------------------------------------------------------------------------ computation


def evaluate_answers(
    measures: Iterable[str | AnswerMeasure], dataset: Dataset, answers: Mapping[str, Answer]
) -> pd.DataFrame:
    """Evaluate answers from any source, for example from `RAGEngine.ask`.

    Args:
        measures: For example ``["CitationRecall", "F1"]``.
        dataset: The dataset with the gold data.
        answers: Query id -> answer. A missing answer counts as an error: the value is NaN, never 0. Answers to unknown
            queries are ignored.

    Returns:
        One row per query and measure, columns ``query_id``, ``measure`` and ``value``, as in
        `ragkit.evaluation.evaluate`. A measure that does not apply to a query has no row for it.

    Raises:
        InputError: A measure does not exist or has no gold data, or no answer is for a query of the dataset.
        MissingExtraError: pandas is not installed.
    """
    declared = [ANSWER_MEASURES.get(each, each) if isinstance(each, str) else each for each in measures]
    dataset.check_queries("answers", answers)
    rows: list[tuple[str, str, float]] = []
    for measure in dict.fromkeys(declared):
        if not isinstance(measure, AnswerMeasure):
            known = ", ".join(name for name, each in ANSWER_MEASURES.items() if isinstance(each, AnswerMeasure))
            raise InputError(f"'{measure!s:.100}' cannot be computed from answers alone. These measures can: {known}.")
        measure.check_gold(dataset)
        for query in dataset.queries:
            spans = dataset.spans.get(query.id, ())
            if query.id in answers:
                value = measure.score(query, answers[query.id], spans)
            else:
                value = math.nan if measure.applies(query, spans) else None
            if value is not None:
                rows.append((query.id, str(measure), value))
    return frame_of(rows)


def frame_of(rows: Iterable[tuple[str, str, float]]) -> pd.DataFrame:
    """Return scores as a DataFrame: ``query_id``, ``measure``, ``value``."""
    with needs("pandas", extra="eval"):
        import pandas as pd
    return pd.DataFrame(rows, columns=["query_id", "measure", "value"])


def exact_match(one: str, other: str, *, language: str) -> float:
    """Return 1 if two texts have the same words, else 0; the module's docstring defines words.

    Args:
        one: A text without citation markers.
        other: Another such text.
        language: ISO 639-1 code of both: French articles are removed for "fr", English ones for all other languages.
    """
    return float(_words(one, language) == _words(other, language))


def f1(one: str, other: str, *, language: str) -> float:
    """Return the F1 of the words of two texts; see `exact_match`.

    It is 1 if both texts have no words and 0 if one has none, as in SQuAD 2.0 (Rajpurkar, Jia and Liang 2018).
    """
    words, others = _words(one, language), _words(other, language)
    if not (words and others):
        return float(words == others)
    return 2 * (Counter(words) & Counter(others)).total() / (len(words) + len(others))


def language_of(query: Query, answer: Answer) -> str:
    """Return the language of a question as the dataset states it, or else the answer's language."""
    return query.language if query.language != "und" else answer.language


_ARTICLES = {"en": {"a", "an", "the"}, "fr": {"le", "la", "les", "un", "une", "des", "du"}}


def _words(text: str, language: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).lower()  # PDF files have ligatures, keyboards decomposed accents
    if language == "fr":
        text = re.sub("['’ʼ]", " ", re.sub(r"\bl['’ʼ]", " ", text))
    text = "".join(c for c in text if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    articles = _ARTICLES.get(language, _ARTICLES["en"])
    return [word for word in text.split() if word not in articles]


def _cited(answer: Answer) -> list[list[Place]]:
    """Return the text that each citation covers; nothing if the answer itself has no citation markers."""
    if answer.abstained or not answer.cited:
        return []
    return [[(c.document_id, *ends) for ends in c.quotes or ((c.start, c.end),)] for c in answer.citations]


def _is_correct(places: list[Place], spans: Sequence[GoldSpan]) -> bool:
    size = covered(places)
    within = shared(places, [(span.document_id, span.start, span.end) for span in spans])
    return 0 < size <= 2 * within or any(_covers_half(places, span) for span in spans)


def _covers_half(places: list[Place], span: GoldSpan) -> bool:
    return 2 * shared(places, [(span.document_id, span.start, span.end)]) >= span.end - span.start


def shared(places: list[Place], others: list[Place]) -> int:
    """Count the characters in both lists of places."""
    return covered(places) + covered(others) - covered(places + others)


def covered(places: Iterable[Place]) -> int:
    """Count the characters in at least one place."""
    count = 0
    document, reached = "", 0
    for document_id, start, end in sorted(places):
        if document_id != document:
            document, reached = document_id, 0
        count += max(0, end - max(start, reached))
        reached = max(reached, end)
    return count
