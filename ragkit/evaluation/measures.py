"""Retrieval measures, in the notation of ir_measures and computed by standard programs.

``nDCG@10``, ``R@100``, ``RR@10``, ``AP`` and all other measures of ir_measures evaluate rankings of documents;
trec_eval computes most of them. `SpanRecall`, `SpanPrecision` and `SpanIoU` evaluate the first k passages, as in Smith
and Troynikov, "Evaluating Chunking Strategies for Retrieval" (Chroma, 2024), but count characters instead of tokens:
with E the characters of a query's gold spans and R those of the k passages,

    recall = |E and R| / |E|      precision = |E and R| / |R|      IoU = |E and R| / (|E| + |R| - |E and R|)

Characters that two passages share count twice in |R|, so that overlap is penalised. A character in two gold spans
counts once in |E|.

Measures of answers are parsed and checked here too, but computed in `ragkit.evaluation.answer_measures` and
`ragkit.evaluation.judges`.
"""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from ragkit.errors import InputError, needs, require_count
from ragkit.evaluation.answer_measures import ANSWER_MEASURES, AnswerMeasure, FollowUpQuality, covered, frame_of, shared
from ragkit.evaluation.dataset import Dataset
from ragkit.evaluation.judges import Faithfulness, Judge, Relevance
from ragkit.evaluation.rows import frame_rows, is_frame, with_our_columns

if TYPE_CHECKING:
    import ir_measures
    import pandas as pd

_MAX_CUTOFF = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Ranked:
    """A retrieved passage. A ranking is a list of them, best first.

    Attributes:
        document_id: The document that contains the passage.
        score: The retriever's score; higher is better.
        start: The start of the passage, in characters of `Document.text`. Only span measures use the offsets.
        end: The end of the passage.
    """

    document_id: str
    score: float
    start: int = 0
    end: int = 0


# ----------------------------------------------------------------------------------- declarations


@dataclasses.dataclass(frozen=True, slots=True)
class SpanMeasure:
    """A measure of gold spans, written like a measure of ir_measures: ``SpanRecall @ 5``, or "SpanRecall@5" as text.

    Attributes:
        name: The measure; the module's docstring defines them.
        cutoff: The number of passages that count; all if None.
    """

    name: Literal["SpanRecall", "SpanPrecision", "SpanIoU"]
    cutoff: int | None = None

    def __post_init__(self) -> None:
        _check_cutoff(self.cutoff, self.name)

    def __matmul__(self, cutoff: int) -> SpanMeasure:
        return dataclasses.replace(self, cutoff=cutoff)

    def __str__(self) -> str:
        return self.name if self.cutoff is None else f"{self.name}@{self.cutoff}"


def _check_cutoff(cutoff: Any, measure: object) -> None:
    # trec_eval exits the whole process (and with it a notebook's kernel) for a cutoff of 0.
    if cutoff is not None:
        require_count(f"The cutoff of '{measure}'", cutoff, most=_MAX_CUTOFF)


SpanRecall = SpanMeasure("SpanRecall")
SpanPrecision = SpanMeasure("SpanPrecision")
SpanIoU = SpanMeasure("SpanIoU")
_OWN: dict[str, SpanMeasure | AnswerMeasure | FollowUpQuality] = {
    **{each.name: each for each in (SpanRecall, SpanPrecision, SpanIoU)},
    **ANSWER_MEASURES,
}
_OF_ANSWERS = (AnswerMeasure, FollowUpQuality, Faithfulness, Relevance)
_JUDGES = [each.__name__ for each in (Faithfulness, Relevance)]

Measure: TypeAlias = "SpanMeasure | AnswerMeasure | FollowUpQuality | Judge | ir_measures.Measure"


def parse_measure(measure: str | Measure) -> Measure:
    """Parse the notation of a measure.

    Args:
        measure: ``"nDCG@10"``, ``"P(rel=2)@5"``, ``"SpanRecall@5"``, ``"F1"``, ...; a measure object is checked
            and returned. LLM judges must be objects: ``Faithfulness(llm)``.

    Returns:
        The measure; ``str`` of it is its notation.

    Raises:
        InputError: There is no such measure, or it cannot be computed; the message lists the measures.
        MissingExtraError: ir_measures is not installed.
    """
    if isinstance(measure, (SpanMeasure, *_OF_ANSWERS)):
        return measure
    library = _ir_measures()
    found: Any = _parsed(measure, library) if isinstance(measure, str) else measure
    if isinstance(found, (SpanMeasure, *_OF_ANSWERS)):
        return cast(Measure, found)
    if not isinstance(found, library.Measure):
        raise InputError(f"{measure!r:.100} is not a measure. {_available(library)}")
    _check_cutoff(found.params.get("cutoff"), measure)
    try:
        library.calc_aggregate([found], {"query": {"right": 1, "wrong": 0}}, {"query": {"wrong": 2.0, "right": 1.0}})
    except Exception as error:  # ir_measures and its providers raise various exceptions
        raise InputError(
            f"'{measure}' cannot be computed: an option is wrong or missing (it takes "
            f"{', '.join(found.SUPPORTED_PARAMS) or 'none'}; a cutoff is written '@10'), or it needs a package that is "
            "not installed."
        ) from error
    return cast(Measure, found)


def _parsed(text: str, library: Any) -> Any:
    """Parse ``Name(option=value)@cutoff`` as ir_measures does; its own parser does not run on Python 3.14."""
    wrong = f"'{text[:100]}' is not a measure. {_available(library)}"
    try:
        node = ast.parse(text.strip(), mode="eval").body
        options: dict[Any, Any] = {}  # None stands for "**"
        cutoff = None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            cutoff, node = ast.literal_eval(node.right), node.left
        if isinstance(node, ast.Call) and not node.args:
            options = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            node = node.func
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(wrong) from error
    name = node.id if isinstance(node, ast.Name) else ""
    if name in _JUDGES:
        raise InputError(
            f"'{name}' needs a judge model: pass {name}(llm), from ragkit.evaluation.judges, instead of a string."
        )
    declared: Any = _OWN.get(name) or library.measures.registry.get(name)
    without_cutoff = isinstance(declared, AnswerMeasure) and cutoff is not None
    if declared is None or None in options or (options and name in _OWN) or without_cutoff:
        raise InputError(wrong)
    if options:
        declared = declared(**options)
    return declared if cutoff is None else declared @ cutoff


def _available(library: Any) -> str:
    names = sorted({measure.NAME for measure in library.measures.registry.values()} | set(_OWN))
    return (
        f"Examples: 'nDCG@10', 'R@100', 'AP', 'SpanRecall@5', 'F1'. The measures are: {', '.join(names)}; and with a "
        f"judge model, {' and '.join(_JUDGES)}."
    )


def _ir_measures() -> Any:
    with needs("ir_measures", extra="eval"):
        import ir_measures
    return ir_measures


# ------------------------------------------------------------------------------------ computation


def check_gold(measures: Iterable[Measure], dataset: Dataset) -> None:
    """Check that a dataset has the gold data that measures need.

    Raises:
        InputError: Gold data is missing.
    """
    for measure in measures:
        if isinstance(measure, AnswerMeasure):
            measure.check_gold(dataset)
        elif isinstance(measure, SpanMeasure):
            if not dataset.spans:
                raise InputError(
                    f"'{measure}' needs gold spans, and '{dataset.name}' has none. Add a spans.jsonl, or use a "
                    "measure of documents such as 'nDCG@10'."
                )
        elif not isinstance(measure, _OF_ANSWERS) and not dataset.qrels:
            raise InputError(f"'{measure}' needs judgements (qrels), and '{dataset.name}' has none. Add a qrels.tsv.")


def evaluate(
    measures: Iterable[str | Measure], dataset: Dataset, rankings: Mapping[str, Sequence[Ranked]] | pd.DataFrame
) -> pd.DataFrame:
    """Evaluate rankings.

    Every query of the dataset with gold data for a measure counts: a query without a ranking is evaluated as if nothing
    relevant had been found. Rankings of unknown queries are ignored.

    The rank and score of a document are those of its first passage. trec_eval receives the scores unchanged: it ignores
    the order of the list, stores scores as 32-bit floats, and sorts documents with equal scores by descending id.
    (``RR@k`` is computed as for MS MARCO, which sorts them by ascending id.)

    Args:
        measures: Measures of rankings; see `parse_measure`.
        dataset: The dataset with the gold data.
        rankings: Query id -> passages, best first; or a DataFrame as in PyTerrier: one row per document, columns
            ``qid``, ``docno`` and ``score``.

    Returns:
        One row per query and measure, columns ``query_id``, ``measure`` (its notation) and ``value``; in the order of
        the given measures, then of the dataset's queries.

    Raises:
        InputError: A measure does not exist, is a measure of answers, or has no gold data; no ranking is for a query of
            the dataset; a score is not finite; or passages have no offsets for a span measure.
        MissingExtraError: ir_measures or pandas is not installed.
    """
    declared = list(dict.fromkeys(parse_measure(measure) for measure in measures))
    if of_answers := [measure for measure in declared if isinstance(measure, _OF_ANSWERS)]:
        raise InputError(
            f"'{of_answers[0]}' measures answers, and these are rankings. Use ragkit.evaluation.evaluate_answers() for "
            "answers, or an Experiment for both."
        )
    check_gold(declared, dataset)
    if is_frame(rankings):
        rankings = _ranked(rankings)
    dataset.check_queries("rankings", rankings)
    values: dict[tuple[str, Measure], float] = {}
    if any(not isinstance(measure, SpanMeasure) for measure in declared):
        values |= _by_documents([m for m in declared if not isinstance(m, SpanMeasure)], dataset, rankings)
    for measure in declared:
        if isinstance(measure, SpanMeasure):
            for query_id in dataset.spans:
                values[query_id, measure] = _by_spans(measure, dataset, query_id, rankings.get(query_id, ()))
    rows = [
        (query.id, str(measure), values[query.id, measure])
        for measure in declared
        for query in dataset.queries
        if (query.id, measure) in values
    ]
    return frame_of(rows)


def _ranked(frame: Any) -> dict[str, list[Ranked]]:
    frame = with_our_columns(frame)
    if missing := {"query_id", "document_id", "score"} - set(frame.columns):
        raise InputError(f"A DataFrame of rankings needs columns qid, docno and score; '{min(missing)}' is missing.")
    rankings: dict[str, list[Ranked]] = {}
    for row in frame_rows(frame):
        rankings.setdefault(str(row["query_id"]), []).append(Ranked(str(row["document_id"]), float(row["score"])))
    return {query_id: sorted(ranked, key=lambda each: -each.score) for query_id, ranked in rankings.items()}


def _by_documents(
    measures: list[Any], dataset: Dataset, rankings: Mapping[str, Sequence[Ranked]]
) -> dict[tuple[str, Measure], float]:
    run: dict[str, dict[str, float]] = {}
    for query_id in dataset.qrels:
        scores: dict[str, float] = {}
        for passage in rankings.get(query_id, ()):
            score = scores.setdefault(passage.document_id, float(passage.score))
            if not math.isfinite(score):
                raise InputError(
                    f"The score of '{passage.document_id}' for the query '{query_id}' is {score}. It must be finite."
                )
        if scores:
            run[query_id] = scores
    try:
        # For queries that are missing in the run, ir_measures adds the value of an empty ranking, which is 0.
        found = list(_ir_measures().evaluator(measures, dataset.qrels).iter_calc(run))
    except Exception as error:  # Accuracy, for example, divides by the number of non-relevant documents
        raise InputError(
            f"ir_measures cannot compute {', '.join(map(str, measures))} for '{dataset.name}': {error!r:.200}. "
            "Remove measures to find the one that fails."
        ) from error
    return {(metric.query_id, metric.measure): float(metric.value) for metric in found}


def _by_spans(measure: SpanMeasure, dataset: Dataset, query_id: str, ranking: Sequence[Ranked]) -> float:
    gold = [(span.document_id, span.start, span.end) for span in dataset.spans[query_id]]
    passages = [(p.document_id, p.start, p.end) for p in ranking[: measure.cutoff]]
    # A single empty passage may be a document that has only a title.
    if any(start > end for _, start, end in passages) or (passages and all(a == b for _, a, b in passages)):
        raise InputError(
            f"The ranking for query '{query_id}' has a passage without offsets, which '{measure}' needs: "
            "Ranked(document_id, score, start, end)."
        )
    wanted, size = covered(gold), sum(end - start for _, start, end in passages)
    both = shared(gold, passages)
    match measure.name:
        case "SpanRecall":
            return both / wanted
        case "SpanPrecision":
            return both / size if size else 0.0
        case "SpanIoU":
            return both / (wanted + size - both)
