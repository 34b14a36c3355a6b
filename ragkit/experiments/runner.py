"""Evaluate one system on every question of a dataset.

    question ─ rewrite ─ retrieve ─ rerank ─┬─ rankings
                                            └─ answer ─┬─ answers
                                                       ├─ judge
                                                       └─ follow-ups

Only the stages that a measure needs are computed. Replies of models are cached under the input of the model
(`ragkit.experiments.replies`), so that two systems that send the same passages share the reply. ragkit parses the
replies each time; slow results and those of user-defined code are cached under their fingerprint. If a call fails, its
question is left out of the stages that depend on it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ragkit.chunking.context import passage_text
from ragkit.engine.answer import Answer, cite, passages_of
from ragkit.engine.extractive import ExtractiveLLM
from ragkit.engine.follow_ups import FollowUps, Pipeline
from ragkit.errors import LLMResponseError, OperationCancelled
from ragkit.evaluation.answer_measures import AnswerMeasure, FollowUpQuality
from ragkit.evaluation.dataset import Dataset, Query
from ragkit.evaluation.judges import Judge
from ragkit.evaluation.measures import Measure, Ranked
from ragkit.experiments.calls import Call, Calls, FailedCall
from ragkit.experiments.fingerprint import code_version, identity, is_own
from ragkit.experiments.progress import ProgressReporter
from ragkit.experiments.replies import RecordedLLM, Replies, Reply, encodable, holds_model
from ragkit.experiments.result_cache import ResultCache
from ragkit.experiments.stages import ChunkedCorpus, Ranking, Retrieval, query_batches
from ragkit.experiments.system import System, described
from ragkit.hashing import hash_values
from ragkit.indexing.record_types import DocumentRecord
from ragkit.llm.base import LLM
from ragkit.llm.metering import MeteredLLM
from ragkit.llm.prompt import Prompt
from ragkit.llm.replies import answer_prompt
from ragkit.retrieval.base import Hit, Reranker
from ragkit.retrieval.corpus import Documents, Passages
from ragkit.retrieval.fusion import fused, reranked
from ragkit.retrieval.query import SearchQuery, guess_language
from ragkit.retrieval.search import retrieve


@dataclasses.dataclass(frozen=True, slots=True)
class Judged:
    """One judgement of one answer.

    Attributes:
        query_id: The query that the answer is for.
        measure: The name of the judge.
        repeat: The number of the repeat, from 1.
        score: From 0 to 1.
        reply: The reply of the judge.
    """

    query_id: str
    measure: str
    repeat: int
    score: float
    reply: str


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The output of one system for all questions.

    Attributes:
        rankings: Query id -> passages, best first. Questions whose ranking failed are missing.
        answers: Query id -> answer; questions whose answer failed are missing. Empty if no measure needs answers.
        judgements: All judgements.
        follow_ups: Query id -> follow-up question -> whether the corpus answers it.
        failures: Query id -> the calls that failed.
        facts: Other figures, where known: passages, latency_ms, answer_ms, tokens, cost.
    """

    rankings: Mapping[str, Sequence[Ranked]]
    answers: Mapping[str, Answer]
    judgements: Sequence[Judged]
    follow_ups: Mapping[str, Mapping[str, bool]]
    failures: Mapping[str, Sequence[FailedCall]]
    facts: Mapping[str, Any]


class Evaluation:
    """Runs one system on all questions.

    Args:
        system: The system, without choices.
        dataset: The dataset with the questions.
        measures: The measures that the outcome will be evaluated by.
        chunked: The documents, chunked as the system does.
        corpus: The whole documents.
        results: The result cache.
        calls: Makes the calls to models.
        reporter: Reports the progress.
        cancelled: Polled several times a second; True stops the run.
        timed: Whether to measure the retrieval latency, unless it is cached.
    """

    def __init__(
        self,
        system: System,
        dataset: Dataset,
        measures: Sequence[Measure],
        *,
        chunked: ChunkedCorpus,
        corpus: Documents,
        results: ResultCache,
        calls: Calls,
        reporter: ProgressReporter,
        cancelled: Callable[[], bool],
        timed: bool = True,
    ) -> None:
        self._timed = timed
        self._system = system
        self._dataset = dataset
        self._measures = measures
        self._chunked = chunked
        self._corpus = corpus
        self._results = results
        self._calls = calls
        self._reporter = reporter
        self._cancelled = cancelled
        self._retrieval = Retrieval(system.retriever, chunked, results)
        self._llm: LLM = system.llm or ExtractiveLLM(chunked.embedder.inner)  # uncached, because answers are timed
        self._queries = {query.text: query for query in reversed(dataset.queries)}
        self._questions = [query.text for query in dataset.queries if self._queries[query.text] is query]
        self._search_queries = [SearchQuery(question, self._language(question)) for question in self._questions]
        self._failures: dict[str, list[FailedCall]] = {}

    def run(self) -> Outcome:
        """Compute the results that are not cached, and return all of them.

        Raises:
            BudgetError, OperationCancelled, LLMError: See `ragkit.experiments.calls.Calls`.
            ResultCacheError, EmbeddingError, InputError: See `ragkit.experiments.stages`.
        """
        rankings = self._reranked(self._retrieved(self._texts()))
        facts: dict[str, Any] = {"passages": len(self._chunked.chunks), "latency_ms": self._latency()}
        answers: dict[str, Answer] = {}
        judgements: list[Judged] = []
        follow_ups: dict[str, dict[str, bool]] = {}
        if any(isinstance(measure, AnswerMeasure | FollowUpQuality | Judge) for measure in self._measures):
            prompts = self._prompts(rankings)
            answered: dict[str, Reply] = self._ask(
                "answer", prompts, lambda question: functools.partial(_answered, self._llm, prompts[question][0])
            )
            for question, reply in answered.items():
                answers[question] = cite(
                    question, reply.text, prompts[question][1], language=self._language(question),
                    model=self._llm.name, seconds=reply.seconds, answer_id=reply.key,
                )  # fmt: skip
            facts |= _costs(self._llm, list(answered.values()))
            judgements = [each for m in self._measures if isinstance(m, Judge) for each in self._judged(m, answers)]
            if any(isinstance(measure, FollowUpQuality) for measure in self._measures):
                follow_ups = self._follow_ups(answers)
        queries = self._dataset.queries
        return Outcome(
            rankings={q.id: self._ranked(rankings[q.text]) for q in queries if q.text in rankings},
            answers={q.id: answers[q.text] for q in queries if q.text in answers},
            judgements=judgements,
            follow_ups={q.id: follow_ups[q.text] for q in queries if q.text in follow_ups},
            failures={q.id: self._failures[q.text] for q in queries if q.text in self._failures},
            facts=facts,
        )

    # ------------------------------------------------------------------------------------ ranking

    def _texts(self) -> dict[str, list[str]]:
        """Return the search texts of each question."""
        rewriter = self._system.rewriter
        if rewriter is None:
            return {question: [question] for question in self._questions}
        keys: dict[str, str] | None = None
        if not _is_quick(rewriter):
            method = identity(rewriter)
            keys = {q: hash_values("rewrite", method, self._language(q), q) for q in self._questions}
        return self._ask(
            "rewrite",
            self._questions,
            lambda question: (
                lambda replies, cancelled: replies.recorded(rewriter).rewrite(
                    question, language=self._language(question), cancelled=cancelled
                )
            ),
            keys=keys,
        )

    def _retrieved(self, texts: Mapping[str, Sequence[str]]) -> dict[str, Ranking]:
        """Search for all texts and fuse the rankings of each question.

        Original questions come first and in separate batches. They are the batches of a system without a rewriter, so
        that the two share their results.
        """
        # A text that two questions share is searched in the language of the first question.
        search_queries: dict[str, SearchQuery] = {}
        for question, of_one in texts.items():
            for text in of_one:
                search_queries.setdefault(text, SearchQuery(text, self._language(question)))
        originals = set(self._questions)
        plain = self._search_queries if originals & search_queries.keys() else []
        rewritten = sorted(query for text, query in search_queries.items() if text not in originals)
        known = self._retrieval.known([*plain, *rewritten])
        self._reporter.ranked(sum(all(text in known for text in of_one) for of_one in texts.values()))
        for batch in [*query_batches(plain), *query_batches(rewritten)]:
            if all(query in known for query in batch):
                continue
            if self._cancelled():
                raise OperationCancelled("The experiment was stopped. Run it again to resume.")
            known |= self._retrieval.rank(batch, self._passages(), known=known)
            self._reporter.ranked(sum(all(text in known for text in of_one) for of_one in texts.values()))
        return {
            question: known[of_one[0]] if len(of_one) == 1 else _fused([known[text] for text in of_one])
            for question, of_one in texts.items()
        }

    def _reranked(self, rankings: dict[str, Ranking]) -> dict[str, Ranking]:
        reranker = self._system.reranker
        if reranker is None:
            return rankings
        texts = {
            question: [
                passage_text(self._record(at).title, self._chunked.chunks[at])
                for at in ranking.positions[: reranker.depth].tolist()
            ]
            for question, ranking in rankings.items()
        }
        questions = [question for question, of_one in texts.items() if of_one]
        keys: dict[str, str] | None = None
        if not _is_quick(reranker):
            method = identity(reranker)
            keys = {question: hash_values("rerank", method, question, texts[question]) for question in questions}

        def call(question: str) -> Call:
            return lambda replies, cancelled: _checked(
                reranker,
                replies.recorded(reranker).scores(question, texts[question], cancelled=cancelled),
                len(texts[question]),
            )

        scores_of = self._ask("rerank", questions, call, keys=keys)
        scores_of |= {question: [] for question, of_one in texts.items() if not of_one}
        return {
            question: Ranking.of(reranked(rankings[question].as_scores(), scores, depth=reranker.depth))
            for question, scores in scores_of.items()
        }

    def _latency(self) -> float:
        known = self._retrieval.known_latency()
        if known is None:
            known = self._retrieval.latency(self._search_queries, self._passages()) if self._timed else math.nan
        return known

    def _passages(self) -> Passages:
        return self._chunked.passages(self._corpus, on_progress=self._reporter.embedding, cancelled=self._cancelled)

    def _record(self, position: int) -> DocumentRecord:
        return self._corpus.records[self._chunked.owner[position]]

    def _ranked(self, ranking: Ranking) -> list[Ranked]:
        chunks = self._chunked.chunks
        return [
            Ranked(chunks[at].document_id, score, chunks[at].start, chunks[at].end)
            for at, score in ranking.as_scores().items()
        ]

    # ------------------------------------------------------------------------------------ answers

    def _prompts(self, rankings: Mapping[str, Ranking]) -> dict[str, tuple[Prompt, list[Hit]]]:
        """Return the prompt and the hits of each question."""
        prompts: dict[str, tuple[Prompt, list[Hit]]] = {}
        for question, ranking in rankings.items():
            hits = [
                Hit(self._chunked.chunks[at], self._record(at), score, None, rank)
                for rank, (at, score) in enumerate([*ranking.as_scores().items()][: self._system.k], start=1)
            ]
            prompt = Prompt(
                question=question,
                passages=passages_of(hits),
                language=self._language(question),
                instructions=self._system.instructions,
            )
            prompts[question] = prompt, hits
        return prompts

    def _judged(self, measure: Judge, answers: Mapping[str, Answer]) -> list[Judged]:
        method = None if _is_quick(measure) else identity(measure)
        found: dict[str, list[Judged]] = {}
        queries = {q: self._queries[q] for q, answer in answers.items() if measure.applies(self._queries[q], answer)}
        for repeat in range(1, measure.repeats + 1):
            keys = method and {
                q: hash_values("judge", method, repeat, answers[q].id, answers[q].text, query.answers)
                for q, query in queries.items()
            }
            judgements = self._ask(
                f"judge {measure}",
                queries,
                lambda q: functools.partial(_judgement, measure, queries[q], answers[q]),
                keys=keys,
                repeat=repeat,
            )
            for query in self._dataset.queries:
                if query.text in judgements:
                    score, reply = judgements[query.text]
                    found.setdefault(query.id, []).append(Judged(query.id, str(measure), repeat, score, reply))
        return [judged for of_one in found.values() for judged in of_one]

    def _follow_ups(self, answers: Mapping[str, Answer]) -> dict[str, dict[str, bool]]:
        """Return the follow-up questions of every answer, each with whether the corpus answers it.

        It does if `ExtractiveLLM`, which abstains if no passage is similar enough, finds something to quote.
        """
        extractive = ExtractiveLLM(self._chunked.embedder)
        retriever = self._system.retriever
        code = [code_version(each) for each in (FollowUps, retrieve, cite)]
        method = [code, identity(self._llm), identity(extractive), self._retrieval.key, self._system.k]
        keys = {q: hash_values("follow-ups", method, a.id, a.text) for q, a in answers.items() if not a.abstained}
        if len(self._results.get(list(keys.values()))) < len(set(keys.values())):
            passages = self._passages()
            _ = passages.vectors  # embeds all passages now, while the run can still be cancelled

        def call(question: str) -> Call:
            def answered(follow_up: str, cancelled: Callable[[], bool]) -> bool:
                if cancelled():
                    raise OperationCancelled("The experiment was stopped. Run it again to resume.")
                asked = passages.query(follow_up)
                hits = retrieve(asked, passages, retriever=retriever, k=self._system.k, similarities=False)
                prompt = Prompt(question=asked, passages=passages_of(hits), language=self._language(question))
                text = answer_prompt(extractive, prompt).text
                return not cite(follow_up, text, hits, language=prompt.language, model="", seconds=0).abstained

            query = SearchQuery(question, self._language(question), embedder=self._chunked.embedder)

            def made(replies: Replies, cancelled: Callable[[], bool]) -> dict[str, bool]:
                llm = replies.recorded(self._llm)
                follow_ups = FollowUps(lambda: Pipeline(passages, retriever, llm))
                questions = follow_ups.generate(query, answers[question], cancelled=cancelled)
                return {encodable(q): answered(q, cancelled) for q in questions}

            return made

        return self._ask("follow-ups", keys, call, keys=keys)

    # ------------------------------------------------------------------------------------ calling

    def _ask(
        self,
        stage: str,
        questions: Iterable[str],
        call: Callable[[str], Call],
        *,
        keys: Mapping[str, str] | None = None,
        repeat: int = 1,
    ) -> dict[str, Any]:
        """Make the calls of a stage and return question -> result. Failures are recorded, and their questions left out.

        Args:
            stage: The name of the stage.
            questions: The questions.
            call: Creates the call for a question.
            keys: Question -> the key to cache its result under; if None, only the replies of models are cached.
            repeat: See `Calls.compute`.
        """
        alone = stage == "answer" and not self._llm.generative  # a model in this process uses all cores
        key_of = {question: keys[question] if keys is not None else question for question in questions}
        work = {key: functools.partial(_deferred, call, question) for question, key in key_of.items()}
        found, failures = self._calls.compute(stage, work, repeat=repeat, keep=keys is not None, alone=alone)
        for question, key in key_of.items():
            if key in failures:
                self._failures.setdefault(question, []).append(failures[key])
        return {question: found[key] for question, key in key_of.items() if key in found}

    def _language(self, question: str) -> str:
        """Return the language that the dataset states for a question, or else a guess."""
        query: Query | None = self._queries.get(question)
        if query is not None and query.language != "und":
            return query.language
        return guess_language(question, self._corpus.languages)


def _is_quick(value: Any) -> bool:
    """Return whether a component only processes replies of models, so that its results need not be cached.

    This is known of ragkit's own components. User-defined ones may be slow, or call another paid service.
    """
    return is_own(value) and holds_model(value)


def _deferred(call: Callable[[str], Call], question: str, replies: Replies, cancelled: Callable[[], bool]) -> Any:
    return call(question)(replies, cancelled)  # call(question) also runs in the worker thread


def _answered(llm: LLM, prompt: Prompt, replies: Replies, cancelled: Callable[[], bool]) -> Reply:
    recorded = RecordedLLM(llm, replies)
    text = answer_prompt(recorded, prompt, cancelled=cancelled).text  # without the reasoning of the model
    return dataclasses.replace(recorded.last, text=text)


def _judgement(
    measure: Judge, query: Query, answer: Answer, replies: Replies, cancelled: Callable[[], bool]
) -> tuple[float, str]:
    judgement = replies.recorded(measure).judge(query, answer, cancelled=cancelled)
    return judgement.score, encodable(judgement.reply)


def _checked(reranker: Reranker, scores: Sequence[float], count: int) -> list[float]:
    """Return the scores as floats; invalid scores are a failure of one question."""
    found = [float(score) for score in scores]
    if len(found) != count or not all(map(math.isfinite, found)):
        raise LLMResponseError(
            f"{described(reranker)} returned {len(found)} scores for {count} passages, or a score that is not finite.",
            model=described(reranker),
            base_url="",
        )
    return found


def _fused(rankings: Sequence[Ranking]) -> Ranking:
    return Ranking.of(fused([ranking.as_scores() for ranking in rankings]))


def _costs(llm: LLM, replies: Sequence[Reply]) -> dict[str, Any]:
    """Return median milliseconds and mean tokens per answer, and the total price of all answers, where known."""
    facts: dict[str, Any] = {}
    if replies:
        facts["answer_ms"] = 1_000 * statistics.median(reply.seconds for reply in replies)
    usages = [reply.usage for reply in replies if reply.usage is not None]
    if replies and len(usages) == len(replies):
        facts["tokens"] = statistics.fmean(usage.input_tokens + usage.output_tokens for usage in usages)
        if isinstance(llm, MeteredLLM):
            facts["cost"] = sum(llm.price.of(usage) for usage in usages)
    return facts
