"""From a question to ranked passages.

    question ─ rewriting ─ texts ─ retriever ─ fused ─ reranker ─ hits

The retriever alone is needed. `Hybrid`, the default, fuses three views of relevance: BM25 over passages, BM25
over whole documents (a passage of the right document beats an equal passage of another), and cosine
similarity of embeddings. Scores are scaled to 0..1 over each view's best candidates and added with weights,
the convex combination of Bruch, Gai and Ingber (2023), which kept a weak view from dragging a strong one down
where reciprocal rank fusion did not; ``make bench-retrieval`` prints both. An embedder that does not know the
question's language gets a small weight.

A rewriting (`ragkit.retrieval.rewriting`) finds other texts to search with, a reranker (`ragkit.retrieval.reranking`)
reads the best
passages again. Both are seen here only as protocols, so that a retriever is the same whatever becomes of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ragkit.documents.language import detect_language
from ragkit.errors import EmptyIndexError, EmptyQuestionError, require_count
from ragkit.retrieval.base import Hit, QueryRewriter, Reranker, Retriever, Scores
from ragkit.retrieval.corpus import Passages
from ragkit.retrieval.fusion import best_first, fused, reranked

__all__ = ["language_asked", "retrieve"]


def retrieve(
    question: str,
    passages: Passages,
    *,
    retriever: Retriever,
    rewriter: QueryRewriter | None = None,
    reranker: Reranker | None = None,
    k: int = 5,
    similarities: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> list[Hit]:
    """Rank the k best passages.

    Args:
        question: In any words.
        passages: The corpus.
        retriever: What ranks.
        rewriter: Finds other texts to search with.
        reranker: Ranks the best anew.
        k: How many.
        similarities: Whether to look up each hit's cosine with the question, whatever it is ranked by.
        cancelled: Asked while a model rewrites or reranks; True stops the work.

    Raises:
        EmptyQuestionError: The question has no words.
        InputError: k is less than 1.
        EmptyIndexError: There is nothing to search.
        EmbeddingError, LLMError, RerankingError: A model failed.
        OperationCancelled: ``cancelled`` said so.
    """
    if not question.strip():
        raise EmptyQuestionError
    require_count("k", k)
    if not len(passages):
        raise EmptyIndexError(passages.path)
    texts = [question]
    if rewriter is not None:
        language = language_asked(question, passages.languages)
        texts = rewriter.rewrite(question, language=language, cancelled=cancelled)
    scores: Scores = fused([retriever.scores(text, passages) for text in texts])
    if reranker is not None:
        read = [passages.text(p) for p in best_first(scores)[: reranker.depth]]
        anew = reranker.scores(question, read, cancelled=cancelled)
        scores = reranked(scores, anew, depth=reranker.depth)
    best = best_first(scores)[:k]
    similarity = passages.similarities(question, best) if similarities else {}
    return [
        Hit(passages.stored[p].chunk, passages.documents[passages.owner[p]], scores[p], similarity.get(p), rank)
        for rank, p in enumerate(best, start=1)
    ]


def language_asked(question: str, languages: Mapping[str, int]) -> str:
    """Guess a question's language: English, French, or one of the five commonest of a corpus.

    Args:
        question: In any words.
        languages: ISO 639-1 code -> how many documents; ``"und"`` is none.
    """
    common = sorted(languages, key=lambda code: -languages[code])[:5]
    known = [language for language in common if language != "und"]
    return detect_language(question, among={"en", "fr", *known}, default=known[0] if known else "en")
