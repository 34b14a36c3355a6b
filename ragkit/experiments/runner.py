"""One system, asked every question of a judged set.

    question ─ rewrite ─ retrieve ─ rerank ─┬─ rankings
                                            └─ answer ─┬─ answers
                                                       ├─ judge
                                                       └─ follow-ups

Only what a measure looks at is computed. What a model replies is kept under what the model was given
(`ragkit.experiments.replies`), so that two systems that give a model the same passages share the reply. What ragkit
makes of a reply is computed each time; what costs time, and what a user's own code makes, is kept under its
fingerprint. A call that fails takes its question out of what depends on it.
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
from ragkit.experiments.stages import ChunkedCorpus, Ranking, Retrieval, windows
from ragkit.experiments.system import System, described
from ragkit.hashing import hash_values
from ragkit.indexing.stored import DocumentRecord
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
        query_id: Whose answer.
        measure: What was judged.
        repeat: Which time, from 1.
        score: From 0 to 1.
        reply: What the judge said.
    """

    query_id: str
    measure: str
    repeat: int
    score: float
    reply: str


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a system made of the questions.

    Attributes:
        rankings: Query id -> passages, best first. A question whose ranking failed is not there.
        answers: Query id -> answer, likewise; empty if no measure looks at answers.
        judgements: All of them.
        follow_ups: Query id -> follow-up questions, and whether the corpus answers each.
        failures: Query id -> what failed.
        facts: What else is known: passages, latency_ms, answer_ms, tokens, cost.
    """

    rankings: Mapping[str, Sequence[Ranked]]
    answers: Mapping[str, Answer]
    judgements: Sequence[Judged]
    follow_ups: Mapping[str, Mapping[str, bool]]
    failures: Mapping[str, Sequence[FailedCall]]
    facts: Mapping[str, Any]


class Evaluation:
    """Asks one system all questions.

    Args:
        system: Without choices.
        dataset: The questions.
        measures: What will be measured of the outcome.
        cut: The documents as the system cuts them.
        corpus: The documents uncut.
        results: What was computed before.
        calls: Asks models.
        live: Is told how far it is.
        cancelled: Asked several times a second.
        timed: Whether to measure the latency of retrieval, if it is not known.
    """

    def __init__(
        self,
        system: System,
        dataset: Dataset,
        measures: Sequence[Measure],
        *,
        cut: ChunkedCorpus,
        corpus: Documents,
        results: ResultCache,
        calls: Calls,
        live: ProgressReporter,
        cancelled: Callable[[], bool],
        timed: bool = True,
    ) -> None:
        self._timed = timed
        self._system = system
        self._dataset = dataset
        self._measures = measures
        self._cut = cut
        self._corpus = corpus
        self._results = results
        self._calls = calls
        self._live = live
        self._cancelled = cancelled
        self._retrieval = Retrieval(system.retriever, cut, results)
        self._llm: LLM = system.llm or ExtractiveLLM(cut.embedder.inner)  # which is timed
        self._queries = {query.text: query for query in reversed(dataset.queries)}
        self._questions = [query.text for query in dataset.queries if self._queries[query.text] is query]
        self._search_queries = [SearchQuery(question, self._language(question)) for question in self._questions]
        self._failures: dict[str, list[FailedCall]] = {}

    def run(self) -> Outcome:
        """Compute what is not kept yet.

        Raises:
            BudgetError, OperationCancelled, LLMError: See `ragkit.experiments.calls.Calls`.
            ResultCacheError, EmbeddingError, InputError: See `ragkit.experiments.stages`.
        """
        rankings = self._reranked(self._retrieved(self._texts()))
        facts: dict[str, Any] = {"passages": len(self._cut.chunks), "latency_ms": self._latency()}
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
            rankings={q.id: self._places(rankings[q.text]) for q in queries if q.text in rankings},
            answers={q.id: answers[q.text] for q in queries if q.text in answers},
            judgements=judgements,
            follow_ups={q.id: follow_ups[q.text] for q in queries if q.text in follow_ups},
            failures={q.id: self._failures[q.text] for q in queries if q.text in self._failures},
            facts=facts,
        )

    # ------------------------------------------------------------------------------------ ranking

    def _texts(self) -> dict[str, list[str]]:
        """What is searched for each question."""
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
        """Search for all texts, and fuse those of each question.

        Questions as they were asked come first and in windows of their own: so they are those of a system that
        rewrites none, and shared with it.
        """
        # A text that two questions share is searched in the language of the first.
        every: dict[str, SearchQuery] = {}
        for question, of_one in texts.items():
            for text in of_one:
                every.setdefault(text, SearchQuery(text, self._language(question)))
        asked = set(self._questions)
        plain = self._search_queries if asked & every.keys() else []
        more = sorted(query for text, query in every.items() if text not in asked)
        known = self._retrieval.known([*plain, *more])
        self._live.ranked(sum(all(text in known for text in of_one) for of_one in texts.values()))
        for window in [*windows(plain), *windows(more)]:
            if all(query in known for query in window):
                continue
            if self._cancelled():
                raise OperationCancelled("The experiment was stopped. Run it again, and it goes on.")
            known |= self._retrieval.rank(window, self._passages(), known=known)
            self._live.ranked(sum(all(text in known for text in of_one) for of_one in texts.values()))
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
                passage_text(self._record(at).title, self._cut.chunks[at])
                for at in ranking.positions[: reranker.depth].tolist()
            ]
            for question, ranking in rankings.items()
        }
        asked = [question for question, of_one in texts.items() if of_one]
        keys: dict[str, str] | None = None
        if not _is_quick(reranker):
            method = identity(reranker)
            keys = {question: hash_values("rerank", method, question, texts[question]) for question in asked}

        def call(question: str) -> Call:
            return lambda replies, cancelled: _checked(
                reranker,
                replies.recorded(reranker).scores(question, texts[question], cancelled=cancelled),
                len(texts[question]),
            )

        again = self._ask("rerank", asked, call, keys=keys)
        again |= {question: [] for question, of_one in texts.items() if not of_one}
        return {
            question: Ranking.of(reranked(rankings[question].as_scores(), scores, depth=reranker.depth))
            for question, scores in again.items()
        }

    def _latency(self) -> float:
        known = self._retrieval.known_latency()
        if known is None:
            known = self._retrieval.latency(self._search_queries, self._passages()) if self._timed else math.nan
        return known

    def _passages(self) -> Passages:
        return self._cut.passages(self._corpus, tell=self._live.embedding, cancelled=self._cancelled)

    def _record(self, position: int) -> DocumentRecord:
        return self._corpus.records[self._cut.owner[position]]

    def _places(self, ranking: Ranking) -> list[Ranked]:
        chunks = self._cut.chunks
        return [
            Ranked(chunks[at].document_id, score, chunks[at].start, chunks[at].end)
            for at, score in ranking.as_scores().items()
        ]

    # ------------------------------------------------------------------------------------ answers

    def _prompts(self, rankings: Mapping[str, Ranking]) -> dict[str, tuple[Prompt, list[Hit]]]:
        """Each question's prompt, and its passages."""
        prompts: dict[str, tuple[Prompt, list[Hit]]] = {}
        for question, ranking in rankings.items():
            hits = [
                Hit(self._cut.chunks[at], self._record(at), score, None, rank)
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
        """Follow-up questions of every answer, each with whether the corpus answers it.

        It does if `ExtractiveLLM`, which abstains where nothing is close enough, finds something to quote.
        """
        extractive = ExtractiveLLM(self._cut.embedder)
        retriever = self._system.retriever
        code = [code_version(each) for each in (FollowUps, retrieve, cite)]
        method = [code, identity(self._llm), identity(extractive), self._retrieval.key, self._system.k]
        keys = {q: hash_values("follow-ups", method, a.id, a.text) for q, a in answers.items() if not a.abstained}
        if len(self._results.get(list(keys.values()))) < len(set(keys.values())):
            passages = self._passages()
            _ = passages.vectors  # what has to be embedded is embedded here, where the work can be stopped

        def call(question: str) -> Call:
            def answered(follow_up: str, cancelled: Callable[[], bool]) -> bool:
                if cancelled():
                    raise OperationCancelled("The experiment was stopped. Run it again, and it goes on.")
                asked = passages.query(follow_up)
                hits = retrieve(asked, passages, retriever=retriever, k=self._system.k, similarities=False)
                prompt = Prompt(question=asked, passages=passages_of(hits), language=self._language(question))
                text = answer_prompt(extractive, prompt).text
                return not cite(follow_up, text, hits, language=prompt.language, model="", seconds=0).abstained

            query = SearchQuery(question, self._language(question), embedder=self._cut.embedder)

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
        """Make a stage's calls: question -> result. What failed is noted, and not there.

        Args:
            stage: What they are for.
            questions: About which.
            call: Makes a question's call.
            keys: What each question's result is kept under; None keeps nothing but what models reply.
            repeat: See `Calls.compute`.
        """
        alone = stage == "answer" and not self._llm.generative  # a model of this process has all its processors
        key_of = {question: keys[question] if keys is not None else question for question in questions}
        work = {key: functools.partial(_later, call, question) for question, key in key_of.items()}
        found, failures = self._calls.compute(stage, work, repeat=repeat, keep=keys is not None, alone=alone)
        for question, key in key_of.items():
            if key in failures:
                self._failures.setdefault(question, []).append(failures[key])
        return {question: found[key] for question, key in key_of.items() if key in found}

    def _language(self, question: str) -> str:
        """As the judged set says, or else guessed."""
        query: Query | None = self._queries.get(question)
        if query is not None and query.language != "und":
            return query.language
        return guess_language(question, self._corpus.languages)


def _is_quick(value: Any) -> bool:
    """Whether it only makes something of what models reply, so that its results need not be kept.

    That is known of what ragkit has. A user's own may be slow, or pay for something else.
    """
    return is_own(value) and holds_model(value)


def _later(call: Callable[[str], Call], question: str, replies: Replies, cancelled: Callable[[], bool]) -> Any:
    return call(question)(replies, cancelled)  # what the call needs is made in the thread that makes it


def _answered(llm: LLM, prompt: Prompt, replies: Replies, cancelled: Callable[[], bool]) -> Reply:
    recorded = RecordedLLM(llm, replies)
    text = answer_prompt(recorded, prompt, cancelled=cancelled).text  # without what the model thought before
    return dataclasses.replace(recorded.last, text=text)


def _judgement(
    measure: Judge, query: Query, answer: Answer, replies: Replies, cancelled: Callable[[], bool]
) -> tuple[float, str]:
    judgement = replies.recorded(measure).judge(query, answer, cancelled=cancelled)
    return judgement.score, encodable(judgement.reply)


def _checked(reranker: Reranker, scores: Sequence[float], count: int) -> list[float]:
    """Return scores that can be kept; what cannot is one question's failure."""
    found = [float(score) for score in scores]
    if len(found) != count or not all(map(math.isfinite, found)):
        raise LLMResponseError(
            f"{described(reranker)} gave {len(found)} scores for {count} passages, or one that is no finite number.",
            model=described(reranker),
            base_url="",
        )
    return found


def _fused(rankings: Sequence[Ranking]) -> Ranking:
    return Ranking.of(fused([ranking.as_scores() for ranking in rankings]))


def _costs(llm: LLM, replies: Sequence[Reply]) -> dict[str, Any]:
    """What the answers took: milliseconds (median), tokens (mean) and the price of them all, where known."""
    facts: dict[str, Any] = {}
    if replies:
        facts["answer_ms"] = 1_000 * statistics.median(reply.seconds for reply in replies)
    usages = [reply.usage for reply in replies if reply.usage is not None]
    if replies and len(usages) == len(replies):
        facts["tokens"] = statistics.fmean(usage.input_tokens + usage.output_tokens for usage in usages)
        if isinstance(llm, MeteredLLM):
            facts["cost"] = sum(llm.price.of(usage) for usage in usages)
    return facts
