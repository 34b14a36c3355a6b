from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ragkit.chunking.structure import StructureChunker
from ragkit.documents.language import detect_language
from ragkit.embedding.hashed import HashEmbedder
from ragkit.engine.answer import cite
from ragkit.engine.extractive import ExtractiveLLM
from ragkit.engine.follow_ups import FollowUps, Pipeline
from ragkit.indexing.index import Index
from ragkit.llm.base import ScriptedLLM
from ragkit.retrieval.corpus import Passages
from ragkit.retrieval.index_passages import IndexPassages
from ragkit.retrieval.retrievers import Hybrid
from ragkit.retrieval.search import retrieve
from tests.support.corpora import write_pages


@pytest.fixture
def passages(tmp_path: Path) -> Passages:
    index = Index(tmp_path / "index", embedder=HashEmbedder(), chunker=StructureChunker(max_tokens=60))
    index.update(write_pages(tmp_path / "docs"))
    return IndexPassages(index).get()


def maker(passages: Passages, llm: object = None) -> FollowUps:
    return FollowUps(
        lambda: Pipeline(passages, Hybrid(), llm or ExtractiveLLM(passages.embedder))  # type: ignore[arg-type]
    )


def test_follow_ups_come_from_headings_and_the_corpus_answers_each(passages: Passages) -> None:
    questions = maker(passages).generate("How does BM25 weigh words?", "By their frequency.")
    assert 1 <= len(questions) <= 3
    for question in questions:
        sections = [h.chunk.headings[-1] for h in retrieve(question, passages, retriever=Hybrid(), k=3)]
        assert any(heading.rstrip(" ?").lower() in question.lower() for heading in sections)


def test_a_french_question_gets_french_follow_ups(passages: Passages) -> None:
    questions = maker(passages).generate("Comment découper mes documents en passages ?", "En passages courts.")
    assert questions
    for question in questions:
        assert detect_language(question, among={"en", "fr"}) == "fr"


def test_what_was_asked_or_cited_is_not_proposed_again(passages: Passages) -> None:
    query = "How do I choose k1 and b?"
    hits = retrieve(query, passages, retriever=Hybrid(), k=1)
    answer = cite(query, "Start with k1 = 1.2 and b = 0.75. [1]", hits, language="en", model="t", seconds=0)
    questions = maker(passages).generate(query, answer)
    assert query not in questions
    assert len(set(questions)) == len(questions)


def test_a_models_drafts_are_checked_before_they_are_shown(passages: Passages) -> None:
    draft = (
        "Here are some questions:\n"
        "1. What is reciprocal rank fusion?\n"
        "- How do I choose k1 and b?\n"
        "* What is reciprocal rank fusion ?\n"
        "How many moons does Jupiter have in orbit tonight?\n" + "x" * 500 + "?\n"
    )
    llm = ScriptedLLM([draft])
    questions = maker(passages, llm).generate("How do I choose k1 and b?", "Start with 1.2.")
    assert questions == ["What is reciprocal rank fusion?"]


def test_the_coroutine_that_existing_code_awaits(passages: Passages) -> None:
    questions = asyncio.run(maker(passages).generate_follow_up_questions("What is rank fusion?", "It joins rankings."))
    assert isinstance(questions, list)
    assert all(isinstance(question, str) for question in questions)
