"""Dry runs: the estimated calls and cost of an experiment."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ragkit.chunking.base import Chunk
from ragkit.documents.document import Document
from ragkit.errors import InputError
from ragkit.evaluation.dataset import Dataset, Query
from ragkit.evaluation.judges import Relevance
from ragkit.experiments.system import System
from ragkit.llm.metering import MeteredLLM, Price
from ragkit.llm.openai import OpenAILLM
from ragkit.retrieval.retrievers import BM25
from ragkit.retrieval.rewriting import HyDE
from ragkit.space import choose
from tests.experiments.test_runner import Reader, billing
from tests.support.experiments import Counting, experiment, pages
from tests.support.llm_servers import RawServer


@pytest.fixture
def dataset() -> Dataset:
    return pages()


def model(url: str = "http://127.0.0.1:1/v1", **options: Any) -> MeteredLLM:
    return MeteredLLM(OpenAILLM("m", base_url=url, max_tokens=20), price=Price(3, 15), **options)


def test_no_model_is_called_and_every_call_is_counted(dataset: Dataset, tmp_path: Path) -> None:
    embedder, answering, judging = Counting(), model(), model()
    systems = System(embedder=embedder, retriever=BM25(), llm=answering, k=choose(1, 2), rewriter=HyDE(answering))
    one = experiment(dataset, systems, tmp_path, measures=["Answered", Relevance(judging, repeats=3)])
    found = one.estimate()
    assert answering.requests == judging.requests == 0  # their server does not exist
    assert found.calls == 2 * (4 + 4 + 4 * 3)  # by system: rewriting, answering, judging
    assert found.frame["calls"].sum() == found.calls
    assert 0 < found.cost < found.max_cost
    assert set(found.frame["system"]) == {system.name for system in one.systems}
    assert f"{found.calls} calls" in repr(found)
    assert "<table" in found._repr_html_()
    assert not {"answer", "rewrite", "judge Relevance"} & set(one.result_cache.computed)


def test_cached_replies_cost_nothing_and_max_cost_is_a_bound(dataset: Dataset, tmp_path: Path) -> None:
    with RawServer(billing) as server:
        llm = model(server.url)
        system = System(embedder=Counting(), retriever=BM25(), llm=llm)
        one = experiment(dataset, system, tmp_path, measures=["Answered"])
        found = one.estimate()
        assert found.calls == 4
        one.run()
        assert llm.cost <= found.max_cost
        assert one.estimate().calls == 0
        assert repr(one.estimate()) == "no calls to language models"
        # A limit, a price or a budget does not change the key of a reply.
        assert experiment(
            dataset, System(embedder=Counting(), retriever=BM25(), llm=llm.inner), tmp_path, measures=["Answered"]
        ).estimate().calls == 0  # fmt: skip


def test_a_model_that_cannot_be_replaced_is_an_error(dataset: Dataset, tmp_path: Path) -> None:
    class Mine:
        def __init__(self, llm: Any) -> None:
            self.llm = llm

        def rewrite(self, question: str, **options: Any) -> list[str]:
            return [question, self.llm.complete([{"role": "user", "content": question}])]

    class Deep:
        def __init__(self, llm: Any) -> None:
            self.parts = {"inner": [Mine(llm)]}
            self.rewrite = lambda question, **options: [question]

    for rewriter in (Mine(model()), Deep(model())):
        system = System(label="mine", embedder=Counting(), rewriter=rewriter)
        with pytest.raises(InputError, match=f"Make {type(rewriter).__name__} a dataclass"):
            experiment(dataset, system, tmp_path).estimate()


@dataclasses.dataclass(frozen=True)
class Titled:
    """A chunker that asks a model what each document is about."""

    llm: Any

    def chunk(self, document: Document, **options: Any) -> list[Chunk]:
        reply = self.llm.complete([{"role": "user", "content": document.text}])
        return [Chunk(document.id, 0, len(document.text), document.text, (reply,))]


def test_results_of_a_stand_in_are_not_cached(dataset: Dataset, tmp_path: Path) -> None:
    llm = Reader()
    one = experiment(dataset, System(embedder=Counting(), retriever=BM25(), chunker=Titled(llm)), tmp_path)
    assert one.estimate().calls == len(dataset.documents)
    assert not llm.asked
    assert not one.result_cache.computed["chunk"]
    one.run()
    assert llm.asked.total() == one.result_cache.computed["chunk"] == len(dataset.documents)
    assert one.estimate().calls == 0


def test_the_estimate_equals_the_calls_of_the_run(dataset: Dataset, tmp_path: Path) -> None:
    """Also if a part is cached: more repeats, another question."""
    llm = Reader()
    system = System(embedder=Counting(), retriever=BM25(), llm=llm, rewriter=HyDE(llm))
    three = dataset.head(3)  # the model abstains from none of them
    four = dataclasses.replace(three, queries=[*three.queries, Query("more", "What is the rank constant?")])
    for data, repeats, calls in ((three, 1, 3 * 3), (three, 2, 3), (four, 2, 4)):
        llm.asked.clear()
        one = experiment(data, system, tmp_path, measures=["Answered", Relevance(llm, repeats=repeats)])
        assert one.estimate().calls == calls
        assert not llm.asked
        one.run()
        assert llm.asked.total() == calls


@dataclasses.dataclass(frozen=True)
class Several:
    """A reranker that calls several models."""

    llms: tuple[Any, ...]
    depth: int = 2

    def scores(self, question: str, texts: Sequence[str], **options: Any) -> list[float]:
        return [sum(len(llm.complete([{"role": "user", "content": text}])) for llm in self.llms) for text in texts]


def test_models_in_a_tuple_are_counted(dataset: Dataset, tmp_path: Path) -> None:
    llms = model(), model()
    system = System(embedder=Counting(), retriever=BM25(), reranker=Several(llms))
    found = experiment(dataset, system, tmp_path).estimate()
    assert found.calls > 4
    assert sum(llm.requests for llm in llms) == 0
