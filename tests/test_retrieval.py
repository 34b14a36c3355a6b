from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ragkit.analysis import tokenize
from ragkit.chunking import StructureChunker
from ragkit.corpus import Passages
from ragkit.embedding import HashEmbedder
from ragkit.errors import EmptyIndexError, EmptyQuestionError, InputError
from ragkit.index import Index, PassagesCache
from ragkit.retrieval import (
    BM25,
    Dense,
    Hybrid,
    Retriever,
    reciprocal_rank_fusion,
    retrieve,
    weighted_fusion,
)
from tests.corpora import write_pages


@pytest.fixture
def index(tmp_path: Path) -> Index:
    index = Index(tmp_path / "index", embedder=HashEmbedder(), chunker=StructureChunker(max_tokens=60))
    index.update(write_pages(tmp_path / "docs"))
    return index


@pytest.fixture
def passages(index: Index) -> Passages:
    return index.passages()


RETRIEVERS: list[Retriever] = [BM25(), BM25("documents"), Dense(), Dense(exact=True), Hybrid(), Hybrid(exact=True)]


@pytest.mark.parametrize("retriever", RETRIEVERS, ids=lambda r: r.name)
@pytest.mark.parametrize(
    ("question", "page"),
    [
        ("How should k1 and b be chosen?", "bm25.md"),
        ("reciprocal rank fusion", "fusion.md"),
        ("Quelle taille pour mes passages ?", "fr/decoupage.md"),
        ("faut il retirer les accents", "fr/accents.md"),
    ],
)
def test_finds_the_right_page(passages: Passages, retriever: Retriever, question: str, page: str) -> None:
    hits = retrieve(question, passages, retriever=retriever, k=3)
    assert hits[0].document.id == page
    assert [h.rank for h in hits] == list(range(1, len(hits) + 1))
    assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    for h in hits:
        assert h.document.text[h.chunk.start : h.chunk.end] == h.chunk.text
        assert h.similarity is not None
        assert -1 <= h.similarity <= 1


def test_similarity_is_the_cosine_of_what_was_embedded(passages: Passages) -> None:
    hits = retrieve("weights of rare words", passages, retriever=BM25(), k=4)
    exact = passages.vectors @ passages.embed("weights of rare words")
    position = {s.chunk: i for i, s in enumerate(passages.stored)}
    for h in hits:
        assert h.similarity == pytest.approx(float(exact[position[h.chunk]]), abs=1e-5)


def test_exact_and_approximate_dense_agree_on_a_small_corpus(passages: Passages) -> None:
    question = "how long are passages"
    assert Dense().scores(question, passages) == pytest.approx(Dense(exact=True).scores(question, passages), abs=1e-5)


def test_the_questions_language_reaches_the_tokenizer(passages: Passages) -> None:
    assert passages.languages == Counter(en=2, fr=2)
    assert passages.language_of("Quelle taille pour mes passages ?") == "fr"
    assert passages.language_of("What size should my passages be?") == "en"


def test_bm25_matches_the_formula(passages: Passages) -> None:
    """Lucene's BM25 by hand, for one question word and every passage."""
    terms = [tokenize(passages.text(i), passages.documents[o].language) for i, o in enumerate(passages.owner)]
    (term,) = tokenize("fusion", "en")
    n, df = len(terms), sum(term in t for t in terms)
    idf = np.log(1 + (n - df + 0.5) / (df + 0.5))
    mean = sum(map(len, terms)) / n
    expected = {
        i: idf * t.count(term) / (t.count(term) + 1.2 * (1 - 0.75 + 0.75 * len(t) / mean))
        for i, t in enumerate(terms)
        if term in t
    }
    assert BM25().scores("fusion", passages) == pytest.approx(expected, rel=1e-5)


def test_bad_questions_are_refused(passages: Passages, tmp_path: Path) -> None:
    with pytest.raises(EmptyQuestionError):
        retrieve("  \n", passages, retriever=Hybrid())
    with pytest.raises(InputError, match="at least 1"):
        retrieve("x", passages, retriever=Hybrid(), k=0)
    with pytest.raises(InputError, match="whole number"):
        retrieve("x", passages, retriever=Hybrid(), k="3")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="between 0 and 1"):
        Hybrid(dense_weight=2)
    with pytest.raises(InputError, match="documents"):
        BM25("chapters")  # type: ignore[arg-type]
    nothing = Index(tmp_path / "nothing", embedder=HashEmbedder(), chunker=StructureChunker())
    with pytest.raises(EmptyIndexError, match=r"engine\.index"):
        PassagesCache(nothing).get()


@pytest.mark.parametrize("question", ["?!", "the of and", "qwertyuiop asdfgh", "🎈", "k1 " * 2000])
def test_strange_questions_find_something_or_nothing_but_never_fail(passages: Passages, question: str) -> None:
    assert len(retrieve(question, passages, retriever=Hybrid(), k=3)) <= 3


def test_the_cache_sees_what_changed(index: Index, tmp_path: Path) -> None:
    cache = PassagesCache(index)
    first = cache.get()
    assert cache.get() is first
    (tmp_path / "docs" / "new.md").write_text("# Papermill\n\nPapermill runs notebooks with parameters.\n")
    index.update(tmp_path / "docs")
    second = cache.get()
    assert second is not first
    assert retrieve("papermill parameters", second, retriever=Hybrid(), k=1)[0].document.id == "new.md"


def test_a_generation_that_nobody_holds_is_let_go(index: Index) -> None:
    passages = index.passages()
    retrieve("papermill parameters", passages, retriever=Hybrid(), k=1)
    held = weakref.ref(passages)
    del passages
    gc.collect()
    assert held() is None


def test_fusions_by_hand() -> None:
    one, two = {1: 10.0, 2: 5.0, 3: 0.0}, {2: 1.0, 4: 0.5}
    assert weighted_fusion([(0.5, one), (0.5, two)]) == {1: 0.5, 2: 0.25 + 0.5, 3: 0.0, 4: 0.0}
    assert weighted_fusion([(1.0, {7: 3.0})]) == {7: 1.0}
    assert weighted_fusion([(0.5, {}), (0.5, two)]) == {2: 0.5, 4: 0.0}
    assert reciprocal_rank_fusion([(1.0, one), (1.0, two)], k=60) == pytest.approx(
        {1: 1 / 61, 2: 1 / 62 + 1 / 61, 3: 1 / 63, 4: 1 / 62}
    )


@pytest.mark.parametrize(
    ("text", "language", "terms"),
    [
        ("Les évaluations de l'élève", "fr", ["evalu", "elev"]),
        ("evaluations de l’eleve", "fr", ["evalu", "elev"]),
        ("Running the runners", "en", ["run", "runner"]),
        ("permis B, article 5", "fr", ["perm", "b", "articl", "5"]),
        ("cœur", "fr", ["coeur"]),
        ("xyzzy PLUGH", "und", ["xyzzy", "plugh"]),
        ("", "en", []),
    ],
)
def test_terms(text: str, language: str, terms: list[str]) -> None:
    assert tokenize(text, language) == terms
