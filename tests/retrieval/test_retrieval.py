from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.chunking.structure import StructureChunker
from ragkit.embedding.hashed import HashEmbedder
from ragkit.errors import EmptyIndexError, EmptyQuestionError, InputError, LLMError, OperationCancelled
from ragkit.indexing.index import Index
from ragkit.llm.base import ScriptedLLM
from ragkit.retrieval.base import Retriever
from ragkit.retrieval.corpus import Passages
from ragkit.retrieval.fusion import best_first, fused, reciprocal_rank_fusion, reranked, weighted_fusion
from ragkit.retrieval.index_passages import IndexPassages
from ragkit.retrieval.lexical import tokenize
from ragkit.retrieval.query import guess_language
from ragkit.retrieval.reranking import LLMReranker
from ragkit.retrieval.retrievers import BM25, Dense, Hybrid
from ragkit.retrieval.rewriting import HyDE, MultiQuery
from ragkit.retrieval.search import retrieve
from tests.support.corpora import write_pages


def make_index(folder: Path) -> Index:
    index = Index(folder / "index", embedder=HashEmbedder(), chunker=StructureChunker(max_tokens=60))
    index.update(write_pages(folder / "docs"))
    return index


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return make_index(tmp_path)


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Passages:
    return IndexPassages(make_index(tmp_path_factory.mktemp("pages"))).get()


RETRIEVERS: list[Retriever] = [
    BM25(),
    BM25("documents"),
    Dense(),
    Dense(exact=True),
    Hybrid(),
    Hybrid(exact=True),
    Hybrid(fusion="rrf"),
]


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


def test_similarity_is_the_cosine_of_the_embeddings(passages: Passages) -> None:
    hits = retrieve("weights of rare words", passages, retriever=BM25(), k=4)
    exact = passages.vectors @ passages.query("weights of rare words").vector
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


def test_bad_questions_are_rejected(passages: Passages, tmp_path: Path) -> None:
    with pytest.raises(EmptyQuestionError):
        retrieve("  \n", passages, retriever=Hybrid())
    with pytest.raises(InputError, match="at least 1"):
        retrieve("x", passages, retriever=Hybrid(), k=0)
    with pytest.raises(InputError, match="whole number"):
        retrieve("x", passages, retriever=Hybrid(), k="3")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="between 0 and 1"):
        Hybrid(dense_weight=2)
    with pytest.raises(InputError, match="'weighted' or 'rrf'"):
        Hybrid(fusion="sum")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="documents"):
        BM25("chapters")  # type: ignore[arg-type]
    nothing = Index(tmp_path / "nothing", embedder=HashEmbedder(), chunker=StructureChunker())
    with pytest.raises(EmptyIndexError, match=r"engine\.index"):
        IndexPassages(nothing).get()


@pytest.mark.parametrize("question", ["?!", "the of and", "qwertyuiop asdfgh", "🎈", "k1 " * 2000])
def test_strange_questions_never_fail(passages: Passages, question: str) -> None:
    assert len(retrieve(question, passages, retriever=Hybrid(), k=3)) <= 3


def test_passages_are_reloaded_after_a_change(index: Index, tmp_path: Path) -> None:
    cache = IndexPassages(index)
    first = cache.get()
    assert cache.get() is first
    (tmp_path / "docs" / "new.md").write_text("# Papermill\n\nPapermill runs notebooks with parameters.\n")
    index.update(tmp_path / "docs")
    second = cache.get()
    assert second is not first
    assert retrieve("papermill parameters", second, retriever=Hybrid(), k=1)[0].document.id == "new.md"


def test_an_unused_generation_is_garbage_collected(index: Index) -> None:
    passages = IndexPassages(index).get()
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


def test_hybrid_fuses_three_views_by_score_or_two_by_rank(passages: Passages) -> None:
    question = "How should k1 and b be chosen?"
    lexical, whole, dense = (r.scores(question, passages) for r in (BM25(), BM25("documents"), Dense()))
    weighted = weighted_fusion([(0.25, lexical), (0.25, whole), (0.5, dense)])
    assert Hybrid().scores(question, passages) == weighted
    by_rank = Hybrid(fusion="rrf").scores(question, passages)
    plain = reciprocal_rank_fusion([(1.0, lexical), (1.0, dense)])
    assert best_first(by_rank) == best_first(plain)
    assert by_rank == pytest.approx({p: score / 2 for p, score in plain.items()})
    shares = reciprocal_rank_fusion([(0.75, lexical), (0.25, dense)])
    assert Hybrid(0.25, fusion="rrf").scores(question, passages) == shares
    assert "fusion" not in Hybrid().name
    assert "fusion='rrf'" in Hybrid(fusion="rrf").name


def test_rankings_of_several_texts_are_fused_by_rank_and_a_single_one_is_unchanged() -> None:
    one, other = {1: 10.0, 2: 5.0}, {2: 0.5, 3: 0.1}
    assert fused([one]) == one
    assert fused([one, other]) == reciprocal_rank_fusion([(1, one), (1, other)])
    assert best_first(fused([one, other])) == [2, 1, 3]


SCORES = st.dictionaries(st.integers(0, 50), st.floats(-1e6, 1e6), min_size=1)


@given(scores=SCORES, new_scores=st.lists(st.floats(-1e300, 1e300)))
def test_reranking_reorders_the_best_and_nothing_else(scores: Mapping[int, float], new_scores: list[float]) -> None:
    before, depth = best_first(scores), max(len(new_scores), 1)
    new_scores = (new_scores or [0.0])[: len(before)]
    found = reranked(scores, new_scores, depth=depth)
    assert list(found) == best_first(found)  # sorting again gives the same order
    assert list(found)[depth:] == before[depth:]
    rank = {p: at for at, p in enumerate(before)}
    assert list(found)[:depth] == sorted(before[:depth], key=lambda p: (-new_scores[rank[p]], rank[p]))
    assert max(found.values()) == max(new_scores)


@pytest.mark.parametrize("new_scores", [[], [1.0], [1.0, 2.0, 3.0], [1.0, float("nan")], [float("inf"), 1.0]])
def test_invalid_scores_are_rejected(new_scores: list[float]) -> None:
    with pytest.raises(InputError, match="finite number for each"):
        reranked({4: 3.0, 5: 2.0, 6: 1.0}, new_scores, depth=2)


def test_rewriting_finds_passages_that_the_question_alone_does_not(passages: Passages) -> None:
    question = "Which knobs?"
    assert retrieve(question, passages, retriever=BM25()) == []
    imagined = HyDE(ScriptedLLM(["BM25 has two parameters, k1 and b: k1 saturates, b normalizes by length."]))
    hits = retrieve(question, passages, retriever=BM25(), rewriter=imagined)
    assert hits[0].document.id == "bm25.md"
    similarity = passages.similarities(question, range(len(passages)))
    position = {stored.chunk: p for p, stored in enumerate(passages.stored)}
    assert [hit.similarity for hit in hits] == [similarity[position[hit.chunk]] for hit in hits]  # with the question


def test_a_rewriter_that_returns_only_the_question_changes_nothing(passages: Passages) -> None:
    question = "reciprocal rank fusion"
    same = MultiQuery(ScriptedLLM([question]))
    assert retrieve(question, passages, retriever=Hybrid(), rewriter=same) == retrieve(
        question, passages, retriever=Hybrid()
    )


def test_a_reranker_reads_passages_under_their_titles_and_orders_hits(passages: Passages) -> None:
    question, before = "What does b do?", retrieve("What does b do?", passages, retriever=Hybrid(), k=6)

    class Noting(LLMReranker):
        def scores(
            self, question: str, texts: Sequence[str], *, cancelled: Callable[[], bool] = lambda: False
        ) -> list[float]:
            read.extend(texts)
            return super().scores(question, texts, cancelled=cancelled)

    read: list[str] = []
    after = retrieve(
        question, passages, retriever=Hybrid(), reranker=Noting(ScriptedLLM(["[3] > [1] > [2]"]), depth=3), k=5
    )
    position = {stored.chunk: p for p, stored in enumerate(passages.stored)}
    assert read == [passages.text(position[hit.chunk]) for hit in before[:3]]
    assert [hit.chunk for hit in after] == [before[at].chunk for at in (2, 0, 1, 3, 4)]
    assert [hit.score for hit in after[:3]] == [1, 1 / 2, 1 / 3]
    assert [hit.rank for hit in after] == [1, 2, 3, 4, 5]
    assert [hit.score for hit in after] == sorted((hit.score for hit in after), reverse=True)


@pytest.mark.parametrize("stage", ["rewriter", "reranker"])
def test_a_failing_or_cancelled_model_ends_the_retrieval(passages: Passages, stage: str) -> None:
    kind = {"rewriter": MultiQuery, "reranker": LLMReranker}[stage]
    broken: dict[str, object] = {stage: kind(ScriptedLLM(["[1]"], error=LLMError("gone", model="m", base_url="u")))}
    with pytest.raises(LLMError, match="gone"):
        retrieve("What is b?", passages, retriever=Hybrid(), **broken)  # type: ignore[arg-type]
    slow: dict[str, object] = {stage: kind(ScriptedLLM(["[1]"], delay_seconds=30))}
    with pytest.raises(OperationCancelled):
        retrieve("What is b?", passages, retriever=Hybrid(), cancelled=lambda: True, **slow)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("question", "languages", "language"),
    [
        ("Quelle taille pour mes passages ?", {"en": 100}, "fr"),
        ("What size should my passages be?", {"fr": 100}, "en"),
        ("Wie lang darf ein Abschnitt höchstens sein?", {"en": 3, "de": 2, "und": 50}, "de"),
        ("42", {"und": 9, "fr": 5, "en": 1}, "fr"),
        ("42", {}, "en"),
    ],
)
def test_the_language_of_a_question(question: str, languages: dict[str, int], language: str) -> None:
    assert guess_language(question, languages) == language


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
