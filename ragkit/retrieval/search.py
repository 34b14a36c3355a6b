"""From a question to ranked passages.

    question ─ rewriter ─ texts ─ retriever ─ fused ─ reranker ─ hits

Only the retriever is required. `Hybrid`, the default, fuses three views of relevance: BM25 over passages, BM25
over whole documents (of two equal passages, the one in the more relevant document ranks higher), and cosine
similarity of embeddings. The scores of each view's best candidates are scaled to 0..1 and added with weights: the
convex combination of Bruch, Gai and Ingber (2023). With it, a weak view did not lower the quality of a strong one,
as it did with reciprocal rank fusion; ``make bench-retrieval`` prints both. If the embedder does not know the
question's language, the dense view gets a small weight.

A rewriter (`ragkit.retrieval.rewriting`) adds texts to search with, a reranker (`ragkit.retrieval.reranking`) scores
the best passages again. This module knows both only as protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from ragkit.errors import EmptyIndexError, EmptyQuestionError, require_count
from ragkit.retrieval.base import Hit, Hits, QueryRewriter, Reranker, Retriever, Scores
from ragkit.retrieval.corpus import Passages
from ragkit.retrieval.fusion import best_first, fused, reranked
from ragkit.retrieval.query import SearchQuery, guess_language, search_queries


@overload
def retrieve(  # type: ignore[overload-overlap]  # a str is a sequence of them
    queries: str,
    passages: Passages,
    *,
    retriever: Retriever,
    rewriter: QueryRewriter | None = ...,
    reranker: Reranker | None = ...,
    k: int = ...,
    similarities: bool = ...,
    cancelled: Callable[[], bool] = ...,
) -> Hits: ...
@overload
def retrieve(
    queries: Sequence[str],
    passages: Passages,
    *,
    retriever: Retriever,
    rewriter: QueryRewriter | None = ...,
    reranker: Reranker | None = ...,
    k: int = ...,
    similarities: bool = ...,
    cancelled: Callable[[], bool] = ...,
) -> list[Hits]: ...
def retrieve(
    queries: str | Sequence[str],
    passages: Passages,
    *,
    retriever: Retriever,
    rewriter: QueryRewriter | None = None,
    reranker: Reranker | None = None,
    k: int = 5,
    similarities: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Hits | list[Hits]:
    """Return the k best passages for one query, or for each of several queries, which are embedded together.

    Args:
        queries: One query or several: texts, or `SearchQuery` objects, whose language and embedding are used.
        passages: The corpus.
        retriever: Scores passages.
        rewriter: Adds texts to search with.
        reranker: Scores the best passages again.
        k: Number of passages.
        similarities: Whether to compute each hit's cosine similarity to the query, even if the score is another.
        cancelled: Polled while a model rewrites or reranks; True stops the work.

    Returns:
        The hits of the query; for several queries, a list of the hits of each.

    Raises:
        EmptyQuestionError: A query has no words.
        InputError: k is less than 1.
        EmptyIndexError: There are no passages.
        EmbeddingError, LLMError, RerankingError: A model failed.
        OperationCancelled: ``cancelled`` returned True.
    """
    given = [queries] if isinstance(queries, str) else list(queries)
    if not all(query.strip() for query in given):
        raise EmptyQuestionError
    require_count("k", k)
    if not len(passages):
        raise EmptyIndexError(passages.path)
    if not all(isinstance(query, SearchQuery) for query in given):
        languages = [q.language if isinstance(q, SearchQuery) else guess_language(q, passages.languages) for q in given]
        given = list(search_queries(given, languages, embedder=passages.embedder))

    def of_one(query: SearchQuery) -> Hits:
        searched: list[SearchQuery] = [query]
        if rewriter is not None:
            texts = rewriter.rewrite(query, language=query.language, cancelled=cancelled)
            new = search_queries(texts, [query.language] * len(texts), embedder=passages.embedder)
            searched = [query if text == query else text for text in new]
        scores: Scores = fused([retriever.scores(text, passages) for text in searched])
        if reranker is not None:
            texts = [passages.text(p) for p in best_first(scores)[: reranker.depth]]
            scores = reranked(scores, reranker.scores(query, texts, cancelled=cancelled), depth=reranker.depth)
        best = best_first(scores)[:k]
        similarity = passages.similarities(query, best) if similarities else {}
        return Hits(
            Hit(passages.stored[p].chunk, passages.documents[passages.owner[p]], scores[p], similarity.get(p), rank)
            for rank, p in enumerate(best, start=1)
        )

    found = [of_one(query) for query in given if isinstance(query, SearchQuery)]
    return found[0] if isinstance(queries, str) else found
