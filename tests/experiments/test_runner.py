"""Stages after retrieval: rewriting, reranking, answers, judges, follow-ups."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ragkit.errors import (
    BudgetError,
    InputError,
    LLMAuthenticationError,
    LLMConnectionError,
    LLMResponseError,
    RagkitError,
)
from ragkit.evaluation import judges
from ragkit.evaluation.dataset import Dataset, Query
from ragkit.evaluation.judges import Faithfulness, Relevance
from ragkit.experiments import calls, fingerprint
from ragkit.experiments.result import Result
from ragkit.experiments.result_cache import ResultCache
from ragkit.experiments.system import System
from ragkit.live import messages
from ragkit.llm.limits import Budget
from ragkit.llm.metering import MeteredLLM, Price
from ragkit.llm.openai import OpenAILLM
from ragkit.llm.prompt import Prompt, abstention
from ragkit.llm.replies import Reply
from ragkit.retrieval.reranking import LLMReranker
from ragkit.retrieval.retrievers import BM25, Dense
from ragkit.retrieval.rewriting import MultiQuery
from ragkit.runs.run import Run
from ragkit.runs.store import RunStore
from ragkit.space import choose
from tests.support.experiments import Counting, RecordingPublisher, experiment, pages
from tests.support.llm_servers import BillingServer, Connection, RawServer


class Reader:
    """A model that repeats the first words of the first passage, and counts its calls.

    It fails a given number of times for questions that contain a given word.
    """

    generative = True
    name = "reader"

    def __init__(self, *, fails: dict[str, int] | None = None, error: Exception | None = None) -> None:
        self.asked: Counter[str] = Counter()
        self.fails = dict(fails or {})
        self.error = error or LLMConnectionError("cut", model="reader", base_url="")
        self._lock = threading.Lock()

    def identity(self) -> str:
        return type(self).__name__

    def _maybe_fail(self, text: str) -> None:
        with self._lock:
            for word, times in self.fails.items():
                if word in text and times > 0:
                    self.fails[word] -= 1
                    raise self.error

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
        self.asked[prompt.question] += 1
        self._maybe_fail(prompt.question)
        if "accents" in prompt.question or not prompt.passages:
            yield abstention(prompt.language)
        else:
            yield " ".join(prompt.passages[0].text.split()[:12]) + " [1]"

    def complete(
        self, messages: Sequence[Any], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = lambda: False
    ) -> str:
        text = messages[-1]["content"]
        self.asked["judge" if "ANSWER" in text else "rewrite" if len(messages[-1]["content"]) < 60 else "other"] += 1
        self._maybe_fail(text)
        if "--- BEGIN ANSWER" in text:
            return '{"statements": [{"statement": "s", "supported": true}], "score": 4}'
        return "k1 b values\nrank constant sixty"


@pytest.fixture
def dataset() -> Dataset:
    return pages()


@pytest.fixture
def embedder() -> Counting:
    return Counting()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PAUSE_SECONDS", 0.0)


ANSWERS = ["CitationRecall", "CitationPrecision", "Answered"]


def answering(embedder: Counting, llm: Any, **options: Any) -> System:
    return System(embedder=embedder, retriever=BM25(), llm=llm, **options)


def values(result: Result, measure: str, system: str | None = None) -> dict[str, float]:
    frame = result.queries[result.queries["measure"] == measure]
    frame = frame[frame["system"] == (system or result.names[0])]
    return dict(zip(frame["query_id"], frame["value"], strict=True))


def test_answers_are_generated_evaluated_and_cached(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    llm = Reader()
    one = experiment(dataset, answering(embedder, llm), tmp_path, measures=["nDCG@10", *ANSWERS])
    result = one.run()
    assert llm.asked == Counter({query.text: 1 for query in dataset.queries})
    assert values(result, "Answered") == {"k1": 1, "rrf": 1, "taille": 1, "accents": 0}
    assert math.isnan(values(result, "CitationPrecision").get("accents", math.nan))  # it cited nothing
    answers = result.answers(result.names[0])
    assert [answers[q].abstained for q in ("k1", "accents")] == [False, True]
    assert (answers["k1"].citations[0].document_id, answers["k1"].language) == ("bm25.md", "en")
    assert answers["taille"].language == "fr"
    row = result.systems.iloc[0]
    assert (row["errors"], row["answer_ms"] >= 0) == (0, True)
    assert "tokens" not in result.systems.columns  # the model does not report usage

    again = experiment(
        dataset, answering(embedder, llm), tmp_path, measures=["AP", "F1", *ANSWERS[:2]] if 0 else ["AP", *ANSWERS]
    )
    assert again.run().queries.query("measure == 'Answered'")["value"].tolist() == [1, 1, 1, 0]
    assert sum(llm.asked.values()) == 4  # nothing was asked again
    assert not again.result_cache.computed


def test_replies_are_cached_under_the_input_of_the_model(
    dataset: Dataset,
    embedder: Counting,
    tmp_path: Path,
) -> None:
    llm = Reader()
    system = answering(embedder, llm)
    experiment(dataset, system, tmp_path, measures=ANSWERS).run()
    # A retriever that finds the same passages shares the answers.
    same = dataclasses.replace(system, retriever=BM25(depth=90))
    experiment(dataset, same, tmp_path, measures=ANSWERS).run()
    assert sum(llm.asked.values()) == 4
    experiment(dataset, dataclasses.replace(system, instructions="Briefly."), tmp_path, measures=ANSWERS).run()
    assert sum(llm.asked.values()) == 8
    experiment(dataset, dataclasses.replace(system, k=1), tmp_path, measures=ANSWERS).run()
    assert sum(llm.asked.values()) == 9  # for one question BM25 finds more than one passage
    # No measure needs answers: none are generated.
    other = Reader()
    experiment(dataset, answering(embedder, other), tmp_path).run()
    assert not other.asked


def test_without_a_model_answers_are_quotes(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    result = experiment(dataset, System(embedder=embedder, retriever=BM25()), tmp_path, measures=ANSWERS).run()
    assert result.answers(result.names[0])["k1"].model == "extractive"


@pytest.mark.parametrize("kind", [LLMConnectionError, LLMResponseError])
def test_a_failure_is_retried_marked_counted_and_never_scored(
    dataset: Dataset,
    embedder: Counting,
    tmp_path: Path,
    kind: Any,
) -> None:
    error = kind("no such luck", model="reader", base_url="")
    llm = Reader(fails={"taille": 99, "k1": 2}, error=error)
    one = experiment(dataset, answering(embedder, llm), tmp_path, measures=["nDCG@10", *ANSWERS])
    result = one.run()
    assert llm.asked["How do I choose k1 and b for BM25?"] == 3  # the third time it answered
    assert llm.asked["Quelle taille de passage choisir ?"] == 3  # the call failed after all retries
    assert result.errors.to_dict("records") == [
        {
            "system": result.names[0],
            "query_id": "taille",
            "stage": "answer",
            "error": kind.__name__,
            "message": "no such luck",
        }
    ]
    assert math.isnan(values(result, "Answered")["taille"])
    page = result.report(tmp_path / "pages" / "report.html").read_text(encoding="utf-8")
    assert "no such luck" in page
    assert kind.__name__ in page
    assert result.systems["Answered"].item() == pytest.approx(2 / 3)  # of k1, rrf and accents
    assert result.systems["errors"].item() == 1
    assert values(result, "nDCG@10")["taille"] > 0  # its ranking was not touched
    assert "taille" not in result.answers(result.names[0])
    # The next run repeats only the failed call.
    llm.fails.clear()
    before = llm.asked.copy()
    healed = one.run()
    assert llm.asked - before == Counter({"Quelle taille de passage choisir ?": 1})
    assert healed.errors.empty
    assert values(healed, "Answered")["taille"] == 1


def test_a_server_that_fails_a_fifth_of_its_calls(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    more = [Query(f"more{n}", f"What is said of BM25, part {n}?") for n in range(26)]
    many = dataclasses.replace(dataset, queries=[*dataset.queries, *more])
    ways = ("500", "429", "html", "cut", "dropped")
    with BillingServer(failures=ways, every=5) as server:
        llm = MeteredLLM(
            OpenAILLM("m", base_url=server.url, max_retries=0), price=Price(1, 1), budget=Budget(1, folder=tmp_path)
        )
        result = experiment(many, answering(embedder, llm), tmp_path, measures=ANSWERS).run()
    name = result.names[0]
    failed = set(result.errors["query_id"])
    assert server.failed > 5
    assert llm.failures == server.failed
    # Questions whose call failed three times are errors; all others have an answer.
    assert set(result.answers(name)) == {query.id for query in many.queries} - failed
    assert {q for q, value in values(result, "Answered").items() if math.isnan(value)} == failed & set(many.spans)
    assert all(len(answer.text.split()) > 1 for answer in result.answers(name).values())
    assert sum(usage.input_tokens for usage in server.billed) <= llm.usage.input_tokens  # never less than was billed


def test_a_rejected_api_key_ends_the_run(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    llm = Reader(fails={"": 99}, error=LLMAuthenticationError("another key", model="reader", base_url=""))
    with pytest.raises(LLMAuthenticationError):
        experiment(dataset, answering(embedder, llm), tmp_path, measures=ANSWERS, max_concurrency=1).run()
    assert sum(llm.asked.values()) == 1


def test_a_dead_server_ends_the_run(
    dataset: Dataset,
    embedder: Counting,
    tmp_path: Path,
) -> None:
    many = dataclasses.replace(
        dataset, queries=[*dataset.queries, *(Query(f"more{n}", f"What is BM25 number {n}?") for n in range(40))]
    )
    llm = Reader(fails={"": 10_000})
    with pytest.raises(LLMConnectionError):
        experiment(many, answering(embedder, llm), tmp_path, measures=ANSWERS, max_concurrency=1).run()
    assert len(llm.asked) < 12


def test_refused_questions_do_not_end_later_runs(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    refused = [Query(f"no{n}", f"Forbidden BM25 question {n}?") for n in range(12)]
    more = dataclasses.replace(dataset, queries=[*dataset.queries, *refused])
    error = LLMResponseError("content filter", model="reader", base_url="", status=400)
    llm = Reader(fails={"Forbidden": 10_000}, error=error)
    for measures in (ANSWERS, [*ANSWERS, "nDCG@10"]):
        result = experiment(more, answering(embedder, llm), tmp_path, measures=measures).run()
        assert len(result.errors) == 12
        assert len(result.answers(result.names[0])) == 4


def test_a_missing_judge_ends_the_run_although_other_models_answer(
    dataset: Dataset, embedder: Counting, tmp_path: Path
) -> None:
    more = dataclasses.replace(
        dataset, queries=[*dataset.queries, *(Query(f"more{n}", f"What is BM25 number {n}?") for n in range(40))]
    )
    judge = Reader(fails={"": 10_000})
    with pytest.raises(LLMConnectionError):
        experiment(more, answering(embedder, Reader()), tmp_path, measures=[Relevance(judge)], max_concurrency=1).run()
    assert judge.asked.total() == 3 * 8


def test_names_of_measures_are_unique(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    system = answering(embedder, Reader())
    with pytest.raises(InputError, match="same name: Relevance, Relevance"):
        experiment(dataset, system, tmp_path, measures=[Relevance(Reader()), Relevance(Reader())])
    twice = experiment(dataset, system, tmp_path, measures=["nDCG@10", "nDCG@10"])
    assert [str(measure) for measure in twice.measures] == ["nDCG@10"]


def test_reasoning_is_not_part_of_the_answer(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    class Thinker(Reader):
        """A model whose reasoning mentions passages that it does not cite, and is truncated for one question."""

        def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = lambda: False) -> Iterator[str]:
            yield "<think>Passage [2] may say so, or not."
            if "fusion" not in prompt.question:
                yield "</think>\n\n"
                yield from super().stream(prompt, cancelled=cancelled)

    systems = {"plain": answering(embedder, Reader()), "thinks": answering(embedder, Thinker())}
    result = experiment(dataset, systems, tmp_path, measures=ANSWERS).run()
    cut = {query.id for query in dataset.queries if "fusion" in query.text}
    assert cut
    for measure in ANSWERS:
        plain, thinks = (values(result, measure, name) for name in systems)
        assert {q: v for q, v in thinks.items() if q not in cut} == {q: v for q, v in plain.items() if q not in cut}
        assert all(math.isnan(thinks[q]) for q in cut if q in thinks)
    assert not any("think" in answer.text or "Passage" in answer.text for answer in result.answers("thinks").values())
    assert set(result.answers("plain")) - set(result.answers("thinks")) == cut


def test_an_unpaired_surrogate_is_replaced(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    class Broken(Reader):
        def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
            yield "bad \ud83d text [1]"

    result = experiment(dataset, answering(embedder, Broken()), tmp_path, measures=ANSWERS).run()
    assert {answer.text for answer in result.answers(result.names[0]).values()} <= {"bad ? text [1]", "bad ? text"}
    assert result.errors.empty


def test_judgements_are_repeated_and_cached(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    class Moody(Reader):
        def complete(self, messages: Sequence[Any], **options: Any) -> str:
            super().complete(messages, **options)
            with self._lock:
                self.asked["mood"] += 1
                return f'{{"score": {self.asked["mood"] % 5 + 1}}}'

    judge = Moody()
    measures = [*ANSWERS, Relevance(judge, repeats=4), Faithfulness(Reader(), repeats=2)]
    one = experiment(dataset, answering(embedder, Reader()), tmp_path, measures=measures)
    result = one.run()
    judgements = result.judgements
    assert len(judgements[judgements["measure"] == "Relevance"]) == 3 * 4  # an abstention is not judged
    assert judgements["reply"].str.contains("score").all()
    mean = judgements[judgements["measure"] == "Relevance"].groupby("query_id")["score"].mean()
    assert values(result, "Relevance") == pytest.approx(mean.to_dict())
    row = result.systems.iloc[0]
    assert row["Relevance spread"] > 0
    assert (row["Faithfulness"], row["Faithfulness spread"]) == (1, 0)
    # More repeats reuse the earlier judgements.
    asked = judge.asked["mood"]
    more = experiment(dataset, answering(embedder, Reader()), tmp_path, measures=[Relevance(judge, repeats=5)])
    more.run()
    assert judge.asked["mood"] == asked + 3


def test_an_invalid_judgement_is_not_a_score(
    dataset: Dataset,
    embedder: Counting,
    tmp_path: Path,
) -> None:
    class Silly(Reader):
        def complete(self, messages: Sequence[Any], **options: Any) -> str:
            return "ten out of ten!" if "k1 and b" in messages[-1]["content"] else '{"score": 5}'

    result = experiment(
        dataset, answering(embedder, Reader()), tmp_path, measures=["Answered", Relevance(Silly(), repeats=2)]
    ).run()
    assert values(result, "Relevance") == pytest.approx({"k1": math.nan, "rrf": 1, "taille": 1}, nan_ok=True)
    assert result.errors["stage"].tolist() == ["judge Relevance"] * 2
    assert values(result, "Answered")["k1"] == 1


def test_follow_ups_are_generated_checked_and_scored(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    one = experiment(dataset, System(embedder=embedder, retriever=BM25()), tmp_path, measures=["FollowUps"])
    result = one.run()
    assert set(result.follow_ups.columns) == {"system", "query_id", "question", "answerable"}
    assert all(0 <= value <= 1 for value in values(result, "FollowUps").values())
    one.result_cache.computed.clear()
    one.run()
    assert not one.result_cache.computed


def paid(embedder: Counting, llm: Any, **options: Any) -> dict[str, Any]:
    """Return a system and measures that call a model at every stage."""
    system = answering(embedder, llm, rewriter=MultiQuery(llm), reranker=Orders(llm), **options)
    return {"systems": system, "measures": ["nDCG@10", *ANSWERS, "FollowUps", Relevance(llm), Faithfulness(llm)]}


@dataclasses.dataclass(frozen=True)
class Orders(LLMReranker):
    """A user-defined reranker: its results are cached under its fingerprint, besides the replies."""

    def scores(self, question: str, texts: Sequence[str], **options: Any) -> list[float]:
        self.llm.complete(self.messages(question, texts))  # type: ignore[attr-defined]
        return [1 / (1 + at) for at in range(len(texts))]


@pytest.mark.parametrize("package", ["ipython", "beautifulsoup4", "chromadb", "torch", "pandas", "requests", "openai"])
def test_an_upgrade_of_an_unused_package_computes_nothing(
    dataset: Dataset, embedder: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    llm = Reader()
    experiment(dataset, **paid(embedder, llm), folder=tmp_path).run()
    assert llm.asked.total() == 4 + 4 + 4 + 3 + 3 * 3 * 2  # rewriting, reranking, answers, follow-ups, judges
    llm.asked.clear()
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "999" if name == package else real(name))
    fingerprint._installed.cache_clear()
    again = experiment(dataset, **paid(embedder, llm), folder=tmp_path)
    assert again.run().errors.empty
    fingerprint._installed.cache_clear()
    assert not again.result_cache.computed
    assert not llm.asked


def test_an_upgrade_of_all_packages_calls_no_model(
    dataset: Dataset, embedder: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = Reader()
    before = experiment(dataset, **paid(embedder, llm), folder=tmp_path).run()
    llm.asked.clear()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "999")
    fingerprint._installed.cache_clear()
    again = experiment(dataset, **paid(embedder, llm), folder=tmp_path)
    estimated = again.estimate().calls
    after = again.run()
    fingerprint._installed.cache_clear()
    assert again.result_cache.computed["retrieve"] > 0  # BM25 has another version
    assert estimated == llm.asked.total() == 0
    assert after.queries.equals(before.queries)
    assert after.judgements.equals(before.judgements)


def test_two_experiments_share_replies(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    llm = Reader()
    options = paid(embedder, llm)
    experiment(dataset, **options, folder=tmp_path).run()
    llm.asked.clear()
    other = dataclasses.replace(
        options["systems"], label="another", retriever=BM25(depth=90), llm=MeteredLLM(llm, price=Price(1, 1))
    )
    subset = dataset.sample(2, seed=0)
    two = experiment(subset, other, tmp_path, measures=["Answered", Faithfulness(llm), Relevance(llm, repeats=2)])
    two.run()
    assert not llm.asked
    assert two.result_cache.computed["retrieve"] > 0


def test_another_parser_reads_the_cached_replies(
    dataset: Dataset, embedder: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = Reader()
    options = {"measures": [Relevance(llm), Faithfulness(llm)]}
    system = answering(embedder, llm)
    assert experiment(dataset, system, tmp_path, **options).run().systems["Relevance"].item() == 0.75
    llm.asked.clear()
    real = judges._read

    def stricter(reply: Reply, *of: Any) -> Any:
        return real(dataclasses.replace(reply, text=reply.text.replace('"score": 4', '"score": 2')), *of)

    monkeypatch.setattr(judges, "_read", stricter)
    again = experiment(dataset, system, tmp_path, **options).run()
    assert again.systems["Relevance"].item() == 0.25
    assert again.systems["Faithfulness"].item() == 1
    assert not llm.asked


def test_an_invalid_judgement_is_requested_again_and_kept(
    dataset: Dataset, embedder: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silly(Reader):
        def complete(self, messages: Sequence[Any], **options: Any) -> str:
            super().complete(messages, **options)
            return "ten out of ten!" if "k1 and b" in messages[-1]["content"] else '{"score": 5}'

    judge = Silly()
    one = experiment(dataset, answering(embedder, Reader()), tmp_path, measures=[Relevance(judge, repeats=1)])
    assert one.run().errors["query_id"].tolist() == ["k1"]
    assert judge.asked.total() == 2 + 3  # two that can be read, and three attempts
    assert one.estimate().calls == 1
    assert one.run().errors["query_id"].tolist() == ["k1"]
    assert judge.asked.total() == 5 + 3
    real = judges._read

    def kinder(reply: Reply, *of: Any) -> Any:
        return real(dataclasses.replace(reply, text=reply.text.replace("ten out of ten!", '{"score": 5}')), *of)

    monkeypatch.setattr(judges, "_read", kinder)
    healed = one.run()
    assert healed.errors.empty
    assert values(healed, "Relevance")["k1"] == 1
    assert judge.asked.total() == 8


class Hidden:
    """A user-defined rewriter with a hidden model."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def rewrite(self, question: str, **options: Any) -> list[str]:
        return [question, self.llm.complete([{"role": "user", "content": question}])]


def test_results_of_user_code_are_cached_under_its_fingerprint(
    dataset: Dataset, embedder: Counting, tmp_path: Path
) -> None:
    llm = Reader()
    system = System(embedder=embedder, retriever=BM25(), rewriter=Hidden(llm), label="hidden")
    one = experiment(dataset, system, tmp_path)
    one.run()
    assert (llm.asked.total(), one.result_cache.computed["rewrite"]) == (4, 4)
    experiment(dataset, system, tmp_path).run()
    assert llm.asked.total() == 4


def test_rewriting_shares_the_search_for_the_original_question(
    dataset: Dataset,
    embedder: Counting,
    tmp_path: Path,
) -> None:
    llm = Reader()
    plain = System(embedder=embedder, retriever=Dense(), label="plain")
    more = System(embedder=embedder, retriever=Dense(), rewriter=MultiQuery(llm), label="more")
    one = experiment(dataset, [plain, more], tmp_path)
    result = one.run()
    assert one.result_cache.computed["rewrite"] == 4
    assert one.result_cache.computed["retrieve"] == 4 + 2  # the two other wordings are always the same ones
    assert result.rankings("plain") != result.rankings("more")
    one.result_cache.computed.clear()
    one.run()
    assert not one.result_cache.computed


def test_a_question_whose_rewriting_failed_is_not_scored(
    dataset: Dataset,
    embedder: Counting,
    tmp_path: Path,
) -> None:
    llm = Reader(fails={"taille": 99})
    result = experiment(
        dataset,
        System(embedder=embedder, retriever=BM25(), rewriter=MultiQuery(llm)),
        tmp_path,
        measures=["nDCG@10", "Answered"],
    ).run()
    assert math.isnan(values(result, "nDCG@10")["taille"])
    assert math.isnan(values(result, "Answered")["taille"])
    assert "taille" not in result.rankings(result.names[0])
    assert result.errors["stage"].tolist() == ["rewrite"]


def test_a_system_without_values_is_in_the_table(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    class Silent(Reader):
        def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
            yield abstention(prompt.language)

    systems = {"reads": answering(embedder, Reader()), "silent": answering(embedder, Silent())}
    nothing = dataclasses.replace(dataset, queries=[*dataset.queries, Query("none", "Xyzzy?", answerable=False)])
    result = experiment(nothing, systems, tmp_path, measures=["CitationPrecision", "nDCG@10", "Abstention"]).run()
    assert math.isnan(result.systems.set_index("system").loc["silent", "CitationPrecision"])
    assert result.compare().set_index("system").loc["silent", "n"] == 0
    assert "silent" in repr(result)
    assert "silent" in result.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert result.rankings("reads")["none"] == []  # BM25 finds nothing, which is not a failure
    reranked = dataclasses.replace(systems["reads"], reranker=Backwards())
    assert experiment(nothing, reranked, tmp_path).run().errors.empty


@dataclasses.dataclass(frozen=True)
class Backwards:
    """A user-defined reranker."""

    depth: int = 2

    def scores(self, question: str, texts: Sequence[str], *, cancelled: Any = None) -> list[float]:
        return [float(at) for at in range(len(texts))]


def test_reranking_reorders_the_best_passages(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    plain = System(embedder=embedder, retriever=BM25(), label="plain")
    one = experiment(dataset, [plain, dataclasses.replace(plain, reranker=Backwards(), label="backwards")], tmp_path)
    result = one.run()
    assert one.result_cache.computed["retrieve"] == one.result_cache.computed["rerank"] == 4
    for query in dataset.queries:
        before, after = result.rankings("plain")[query.id], result.rankings("backwards")[query.id]
        places = [[(p.document_id, p.start) for p in ranking] for ranking in (before, after)]
        assert places[1][:2] == places[0][:2][::-1]
        assert places[1][2:] == places[0][2:]
        assert [p.score for p in after] == sorted((p.score for p in after), reverse=True)


def test_invalid_scores_are_failures_and_not_cached(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    wrong = [math.nan]

    class Mine:
        depth = 5

        def identity(self) -> str:
            return "mine"

        def scores(self, question: str, texts: Sequence[str], *, cancelled: Any = None) -> list[float]:
            return [*wrong, *range(len(texts))][: len(texts)]

    one = experiment(dataset, System(label="mine", embedder=embedder, retriever=BM25(), reranker=Mine()), tmp_path)
    result = one.run()
    assert result.errors["stage"].tolist() == ["rerank"] * 4
    assert values(result, "nDCG@10") == pytest.approx(
        dict.fromkeys(["k1", "rrf", "taille", "accents"], math.nan), nan_ok=True
    )
    wrong.clear()
    assert one.run().errors.empty


def test_an_embedder_has_an_identity_without_a_cache(dataset: Dataset, tmp_path: Path) -> None:
    class Trained(Counting):
        def __init__(self, version: str) -> None:
            super().__init__()
            self.version = version

        def fingerprint(self, kind: Any) -> str | None:
            return self.version

    class Plain(Counting):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        fingerprint = None  # type: ignore[assignment]

    for first, second in ((Trained("one"), Trained("two")), (Plain(1.0), Plain(2.0))):
        folder = tmp_path / type(first).__name__
        for each in (first, second):
            one = experiment(dataset, System(embedder=each, retriever=Dense()), folder, cache=False)
            one.run()
            assert one.result_cache.computed["retrieve"] == 4


def test_no_call_starts_after_cancellation(tmp_path: Path) -> None:
    made: list[int] = []

    def call(cancelled: Callable[[], bool]) -> int:
        made.append(1)
        return 1

    def interrupted(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    asking = calls.Calls(ResultCache(tmp_path / "results.db"), max_concurrency=1, on_progress=interrupted)
    with pytest.raises(KeyboardInterrupt):
        asking.compute("answer", {str(number): call for number in range(5_000)})
    assert len(made) < 5_000


def test_a_run_that_cannot_be_recorded_has_failed(
    dataset: Dataset, embedder: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RagkitError("the disk is full")

    monkeypatch.setattr(Run, "record", full)
    publisher = RecordingPublisher()
    with pytest.raises(RagkitError, match="disk is full"):
        experiment(dataset, System(embedder=embedder, retriever=BM25()), tmp_path, publisher=publisher).run()
    assert [info.state for info in RunStore(tmp_path / "runs").list()] == ["failed"]
    assert isinstance(publisher.events[-1], messages.ExperimentProgress)
    assert publisher.events[-1].state == "failed"


def test_a_document_with_only_a_title_is_ranked(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    bare = dataclasses.replace(dataset.documents[0], id="bare.md", text="", title="BM25 k1")
    more = dataclasses.replace(dataset, documents=[*dataset.documents, bare])
    result = experiment(more, System(embedder=embedder, retriever=Dense(), chunker=None), tmp_path).run()
    assert any(passage.document_id == "bare.md" for passage in result.rankings(result.names[0])["k1"])
    assert all(0 <= value <= 1 for value in values(result, "SpanRecall@3").values())


def test_choices_in_any_field(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    system = answering(embedder, Reader(), k=choose(1, 5), reranker=choose(None, Backwards()))
    names = [each.name for each in experiment(dataset, system, tmp_path).systems]
    assert len(names) == len(set(names)) == 4
    assert any("k=1" in name and "Backwards()" in name for name in names)
    with pytest.raises(InputError, match="k must be"):
        System(k=0)


def test_a_run_is_in_the_store(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    system = System(embedder=embedder, retriever=choose(BM25(), BM25(depth=50)))
    result = experiment(dataset, system, tmp_path, name="stored").run()
    store = RunStore(tmp_path / "runs")
    (info,) = store.list()
    assert (info.name, info.kind, info.state) == ("stored", "experiment", "done")
    assert info.provenance.data == {"pages": dataset.digest()}
    assert info.recorded["best"] in result.names
    assert set(info.settings["systems"]) == set(result.names)
    run = store.get(info.id)
    assert run.tables() == ["comparisons", "queries", "systems"]
    assert run.read_table("queries").equals(result.queries)
    llm = Reader(fails={"": 99}, error=LLMAuthenticationError("another key", model="reader", base_url=""))
    with pytest.raises(LLMAuthenticationError):
        experiment(dataset, answering(embedder, llm), tmp_path, measures=ANSWERS).run()
    assert [each.state for each in store.list()] == ["done", "failed"]
    experiment(dataset, system, tmp_path, record=False).run()
    assert len(store.list()) == 2


def billing(connection: Connection) -> None:
    """Answer a prompt, and say what it cost: 100 tokens in, 20 out."""
    connection.start_stream()
    connection.say("Yes [1].", finish="stop")
    connection.event(
        {
            "id": "x",
            "object": "chat.completion.chunk",
            "choices": [],
            "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
        }
    )
    connection.end_stream()


def test_a_spent_budget_pauses_and_resumes(dataset: Dataset, embedder: Counting, tmp_path: Path) -> None:
    with RawServer(billing) as server:
        budget = Budget(0.00075, name="test", folder=tmp_path / "runs")
        llm = MeteredLLM(OpenAILLM("m", base_url=server.url, max_tokens=20), price=Price(0, 15), budget=budget)
        running = experiment(dataset, answering(embedder, llm), tmp_path, measures=ANSWERS, max_concurrency=2).start()
        with pytest.raises(BudgetError, match="raise_to"):
            running.result(timeout_seconds=60)
        assert "paused" in repr(running)
        assert len(server.connections) == 2  # 300 millionths each
        assert budget.spent == pytest.approx(2 * 300e-6)
        budget.raise_to(1.0)
        running.resume()
        result = running.result(timeout_seconds=60)
        assert "done" in repr(running)
        running.add(System(label="late", embedder=embedder, retriever=Dense()))  # it resumes
        assert running.result(timeout_seconds=60).names[-1] == "late"
        assert len(server.connections) == 4  # no request was repeated
        assert budget.spent == pytest.approx(4 * 300e-6)
        assert result.systems["cost"].item() == pytest.approx(4 * 300e-6)
        assert result.systems["tokens"].item() == 120
        assert "cost of all answers" in result.plot("tradeoff", measure="Answered", against="cost").axes[0].get_xlabel()
