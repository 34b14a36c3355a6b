"""Measures of answers: what they cite, whether they are right, whether they abstain where they should.

`CitationRecall` is the share of a query's gold spans that are cited, and `CitationPrecision` the share of citations
that are right. What a citation holds is what the answer quotes of its passage word for word, else the whole passage. A
span is cited if the citations together hold at least half of its characters. A citation is right if it holds at least
half of a span, or lies at least half within spans.

`ExactMatch` and `F1` compare with right answers in words as SQuAD does (Rajpurkar et al. 2016, "SQuAD: 100,000+
Questions for Machine Comprehension of Text"), the best of several counting: in lower case, without punctuation and
articles, and F1 on words as often as both hold them. French articles are le, la, les, l', un, une, des and du; other
elisions (d'eau) are two words. Accents stay: they tell words apart, and SQuAD keeps them.

`Abstention` is 1 for an answer that abstains where the documents hold no answer, `Answered` 1 for one that does not
where they hold one.
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
    "ExactMatch": "right answers in words. Give queries 'answers', or add a qa.jsonl",
    "F1": "right answers in words. Give queries 'answers', or add a qa.jsonl",
    "Abstention": 'queries that the documents do not answer. Mark some with "answerable": false',
    "Answered": 'queries that the documents surely answer. Mark some with "answerable": true, or add a spans.jsonl',
}

# -------------------------------------------------------------------------------------- declared


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerMeasure:
    """A measure of one answer, from 0 to 1. ``str`` of it is its notation, which is its name.

    Attributes:
        name: Which one; the module's docstring defines them.
    """

    name: Literal["CitationPrecision", "CitationRecall", "ExactMatch", "F1", "Abstention", "Answered"]

    def __str__(self) -> str:
        return self.name

    def applies(self, query: Query, spans: Sequence[GoldSpan]) -> bool:
        """Tell whether there is anything to compare an answer with.

        Args:
            query: With its right answers, and whether it is answerable.
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
        """Measure one answer.

        An abstention where there is an answer, and an answer without citations, have recall, exact match and F1 of 0:
        nothing right was said. Their citation precision is not 0 but unknown, as nothing wrong was cited either; the
        other measures show what that cost.

        Args:
            query: What was asked.
            answer: What was answered.
            spans: The query's gold spans.

        Returns:
            From 0 to 1; None if the measure does not apply.
        """
        if not self.applies(query, spans):
            return None
        match self.name:
            case "CitationPrecision":
                right = [_is_right(places, spans) for places in _cited(answer)]
                return sum(right) / len(right) if right else None
            case "CitationRecall":
                places = [place for of_one in _cited(answer) for place in of_one]
                return sum(_holds_half(places, span) for span in spans) / len(spans)
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
        """Make sure that the measure applies to a query of a dataset.

        Raises:
            InputError: It applies to none; the message says what to add.
        """
        if not any(self.applies(query, dataset.spans.get(query.id, ())) for query in dataset.queries):
            raise InputError(f"'{self}' needs {_NEEDS[self.name]}: '{dataset.name}' has none.")


@dataclasses.dataclass(frozen=True, slots=True)
class FollowUpCheck:
    """What is to be said for a follow-up question.

    Attributes:
        question: As it was proposed.
        answerable: Whether the corpus answers it.
        new: Whether it is another question than the one that was asked.
        distinct: Whether it is another question than those before it.
    """

    question: str
    answerable: bool
    new: bool
    distinct: bool

    @property
    def good(self) -> bool:
        """Whether all of it can be said."""
        return self.answerable and self.new and self.distinct


@dataclasses.dataclass(frozen=True, slots=True)
class FollowUpQuality:
    """The share of the follow-up questions that a reader is to have which are good; "FollowUps", "FollowUps@5" in text.

    Two questions are the same in other words if they share more than three quarters of the index terms of the one that
    has fewer.

    Attributes:
        wanted: How many are to be had. Those after them do not count: the best come first.
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
        """Look at the questions that count.

        Args:
            query: What was asked.
            follow_ups: What is proposed, best first.
            answerable: Tells whether the corpus answers a question; called once for each that has index terms.
            language: ISO 639-1 code of all of them.
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
        """Return the share of `wanted` that is there and good; see `check`."""
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
"""What a notation without a cutoff names."""


# -------------------------------------------------------------------------------------- computed


def evaluate_answers(
    measures: Iterable[str | AnswerMeasure], dataset: Dataset, answers: Mapping[str, Answer]
) -> pd.DataFrame:
    """Measure answers from anywhere, for example from `RAGEngine.ask`.

    Args:
        measures: For example ``["CitationRecall", "F1"]``.
        dataset: What is right.
        answers: Query id -> answer. A query without one is an error: its value is NaN, never 0. Answers to other
            queries are left alone.

    Returns:
        One row a query and measure, columns ``query_id``, ``measure`` and ``value``, as `ragkit.evaluation.evaluate`
        has them. A measure that does not apply to a query has no row for it.

    Raises:
        InputError: No such measure; no gold for it; answers none of which is for a query of the dataset.
        MissingExtraError: pandas is not installed.
    """
    declared = [ANSWER_MEASURES.get(each, each) if isinstance(each, str) else each for each in measures]
    dataset.check_queries("answers", answers)
    rows: list[tuple[str, str, float]] = []
    for measure in dict.fromkeys(declared):
        if not isinstance(measure, AnswerMeasure):
            known = ", ".join(name for name, each in ANSWER_MEASURES.items() if isinstance(each, AnswerMeasure))
            raise InputError(f"'{measure!s:.100}' cannot be computed from answers alone. These can: {known}.")
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
    """Return scores as a table: ``query_id``, ``measure``, ``value``."""
    with needs("pandas", extra="eval"):
        import pandas as pd
    return pd.DataFrame(rows, columns=["query_id", "measure", "value"])


def exact_match(one: str, other: str, *, language: str) -> float:
    """Return 1 if two texts have the same words, else 0; the module's docstring says what counts as one.

    Args:
        one: Any text, without citation markers.
        other: Likewise.
        language: ISO 639-1 code of both: the articles of French are left out for "fr", those of English for all others.
    """
    return float(_words(one, language) == _words(other, language))


def f1(one: str, other: str, *, language: str) -> float:
    """Return the harmonic mean of how many of each text's words the other has; see `exact_match`.

    Of two texts without words it is 1, of one 0, as in SQuAD 2.0 (Rajpurkar, Jia and Liang 2018).
    """
    words, others = _words(one, language), _words(other, language)
    if not (words and others):
        return float(words == others)
    return 2 * (Counter(words) & Counter(others)).total() / (len(words) + len(others))


def language_of(query: Query, answer: Answer) -> str:
    """Return the language of a question: the judged set's word for it, else the answer's."""
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
    """What each citation holds; nothing where the citations are only what the model was given."""
    if answer.abstained or not answer.cited:
        return []
    return [[(c.document_id, *ends) for ends in c.quotes or ((c.start, c.end),)] for c in answer.citations]


def _is_right(places: list[Place], spans: Sequence[GoldSpan]) -> bool:
    size = covered(places)
    within = shared(places, [(span.document_id, span.start, span.end) for span in spans])
    return 0 < size <= 2 * within or any(_holds_half(places, span) for span in spans)


def _holds_half(places: list[Place], span: GoldSpan) -> bool:
    return 2 * shared(places, [(span.document_id, span.start, span.end)]) >= span.end - span.start


def shared(places: list[Place], others: list[Place]) -> int:
    """Count the characters that lie in both."""
    return covered(places) + covered(others) - covered(places + others)


def covered(places: Iterable[Place]) -> int:
    """Count the characters that lie in at least one place."""
    count = 0
    document, reached = "", 0
    for document_id, start, end in sorted(places):
        if document_id != document:
            document, reached = document_id, 0
        count += max(0, end - max(start, reached))
        reached = max(reached, end)
    return count
