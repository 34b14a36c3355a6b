"""From a question to ranked passages.

    question ─ rewriting ─ texts ─ retriever ─ fused ─ reranker ─ hits

The retriever alone is needed. `Hybrid`, the default, fuses three views of relevance: BM25 over passages, BM25
over whole documents (a passage of the right document beats an equal passage of another), and cosine
similarity of embeddings. Scores are scaled to 0..1 over each view's best candidates and added with weights,
the convex combination of Bruch, Gai and Ingber (2023), which kept a weak view from dragging a strong one down
where reciprocal rank fusion did not; ``make bench-retrieval`` prints both. An embedder that does not know the
question's language gets a small weight.

A rewriting (`ragkit.rewriting`) finds other texts to search with, a reranker (`ragkit.reranking`) reads the best
passages again. Both are seen here only as protocols, so that a retriever is the same whatever becomes of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, Protocol

from ragkit.chunking.structure import Chunk
from ragkit.documents.document import detect_language
from ragkit.errors import EmptyIndexError, EmptyQuestionError, InputError
from ragkit.indexing.records import DocumentRecord
from ragkit.retrieval.corpus import Passages, best_of
from ragkit.retrieval.lexical import tokenize
from ragkit.space import is_open

__all__ = [
    "BM25",
    "Dense",
    "Hit",
    "Hybrid",
    "Reranker",
    "Retriever",
    "Rewriting",
    "Scores",
    "best_first",
    "fused",
    "language_asked",
    "reciprocal_rank_fusion",
    "reranked",
    "retrieve",
    "weighted_fusion",
]

Scores = Mapping[int, float]
"""Candidates: position of a passage in `Passages` -> score, higher is better."""


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage.

    Attributes:
        chunk: The passage with its offsets into the document.
        document: The document that it stands in.
        score: What it is ranked by: the retriever's score, that of `fused` rankings, or the reranker's; comparable
            within one question only.
        similarity: Cosine of question and passage embeddings; None if the retriever does not embed.
        rank: 1 for the best.
    """

    chunk: Chunk
    document: DocumentRecord
    score: float
    similarity: float | None
    rank: int


class Retriever(Protocol):
    """Ranks passages for a question."""

    @property
    def name(self) -> str: ...

    def scores(self, question: str, passages: Passages) -> Scores:
        """Score candidate passages; what is not in the result is not a candidate."""
        ...


class Rewriting(Protocol):
    """Finds the texts to search with for a question: `ragkit.rewriting` has two."""

    def rewrite(self, question: str, *, language: str, cancelled: Callable[[], bool] = ...) -> list[str]:
        """Return one or more texts, the question first unless it is replaced.

        Args:
            question: As it was asked.
            language: ISO 639-1 code of the question.
            cancelled: Asked several times a second; True stops the work.

        Raises:
            LLMError: A language model did not give any.
            CancelledError: ``cancelled`` said so.
        """
        ...


class Reranker(Protocol):
    """Reads the best passages together with the question, and ranks them anew: `ragkit.reranking` has two.

    Attributes:
        depth: How many passages it reads at most.
    """

    @property
    def depth(self) -> int: ...

    def scores(self, question: str, texts: Sequence[str], *, cancelled: Callable[[], bool] = ...) -> Sequence[float]:
        """Score passages, higher is better.

        Args:
            question: As it was asked.
            texts: n passages under their titles and headings, best first.
            cancelled: Asked several times a second; True stops the work.

        Returns:
            A finite score for each, shape (n,); equal ones leave the passages in their order.

        Raises:
            RerankingError, LLMError: The model failed.
            CancelledError: ``cancelled`` said so.
        """
        ...


# ----------------------------------------------------------------------------------- retrievers


@dataclasses.dataclass(frozen=True, slots=True)
class BM25:
    """Okapi BM25 (Robertson and Zaragoza 2009) in Lucene's form, stemmed by each document's language.

    Args:
        over: Score each passage by itself, or by the whole document that it stands in.
        depth: How many candidates.
    """

    over: Literal["passages", "documents"] = "passages"
    depth: int = 100

    def __post_init__(self) -> None:
        if not is_open(self) and self.over not in ("passages", "documents"):
            raise InputError(f"over must be 'passages' or 'documents', not {self.over!r}.")

    @property
    def name(self) -> str:
        return f"BM25({self.over})"

    def scores(self, question: str, passages: Passages) -> Scores:
        query = tokenize(question, passages.language_of(question))
        if self.over == "passages":
            return best_of(passages.passage_bm25.scores(query), self.depth, positive=True)
        documents = best_of(passages.document_bm25.scores(query), self.depth, positive=True)
        return {p: score for document, score in documents.items() for p in passages.members(document)}


@dataclasses.dataclass(frozen=True, slots=True)
class Dense:
    """Cosine similarity of embeddings.

    Args:
        exact: Compare with every vector, in memory, instead of asking the store's approximate graph.
        depth: How many candidates.
    """

    exact: bool = False
    depth: int = 100

    @property
    def name(self) -> str:
        return "Dense(exact)" if self.exact else "Dense()"

    def scores(self, question: str, passages: Passages) -> Scores:
        if self.exact:
            return best_of(passages.cosines(question), self.depth)
        return passages.nearest(question, k=self.depth)


@dataclasses.dataclass(frozen=True, slots=True)
class Hybrid:
    """BM25 and dense similarity, fused.

    Args:
        dense_weight: Share of the dense view where the embedder knows the question's language; BM25 has the rest.
        foreign_dense_weight: The same where it does not.
        exact: See `Dense`.
        depth: How many candidates each view gives.
        fusion: ``"weighted"`` adds scaled scores of three views, BM25 over passages and over documents sharing a
            weight. ``"rrf"`` is reciprocal rank fusion of two, BM25 over passages and dense; with the default
            dense_weight both count alike, as in Cormack, Clarke and Büttcher (2009).
    """

    dense_weight: float = 0.5
    foreign_dense_weight: float = 0.2
    exact: bool = False
    depth: int = 100
    fusion: Literal["weighted", "rrf"] = "weighted"

    def __post_init__(self) -> None:
        if is_open(self):
            return
        if self.fusion not in ("weighted", "rrf"):
            raise InputError(f"fusion must be 'weighted' or 'rrf', not {self.fusion!r}.")
        for weight in (self.dense_weight, self.foreign_dense_weight):
            if not 0 <= weight <= 1:
                raise InputError(f"A weight lies between 0 and 1, not {weight}.")

    @property
    def name(self) -> str:
        fusion = "" if self.fusion == "weighted" else f", fusion={self.fusion!r}"
        return f"Hybrid(dense_weight={self.dense_weight}, foreign_dense_weight={self.foreign_dense_weight}{fusion})"

    def scores(self, question: str, passages: Passages) -> Scores:
        known = passages.embedder.languages
        foreign = known is not None and passages.language_of(question) not in known
        dense = self.foreign_dense_weight if foreign else self.dense_weight
        by_passage = BM25("passages", self.depth).scores(question, passages)
        nearest = Dense(self.exact, self.depth).scores(question, passages)
        if self.fusion == "rrf":
            return reciprocal_rank_fusion([(1 - dense, by_passage), (dense, nearest)])
        by_document = BM25("documents", self.depth).scores(question, passages)
        lexical = (1 - dense) / 2
        return weighted_fusion([(lexical, by_passage), (lexical, by_document), (dense, nearest)])


# ------------------------------------------------------------------------------------- pipeline


def retrieve(
    question: str,
    passages: Passages,
    *,
    retriever: Retriever,
    rewriting: Rewriting | None = None,
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
        rewriting: Finds other texts to search with.
        reranker: Ranks the best anew.
        k: How many.
        similarities: Whether to look up each hit's cosine with the question, whatever it is ranked by.
        cancelled: Asked while a model rewrites or reranks; True stops the work.

    Raises:
        EmptyQuestionError: The question has no words.
        InputError: k is less than 1.
        EmptyIndexError: There is nothing to search.
        EmbeddingError, LLMError, RerankingError: A model failed.
        CancelledError: ``cancelled`` said so.
    """
    if not question.strip():
        raise EmptyQuestionError
    if not isinstance(k, int) or k < 1:
        raise InputError(f"k must be a whole number of at least 1, not {k!r}.")
    if not len(passages):
        raise EmptyIndexError(passages.path)
    texts = [question]
    if rewriting is not None:
        language = language_asked(question, passages.languages)
        texts = rewriting.rewrite(question, language=language, cancelled=cancelled)
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


# --------------------------------------------------------------------------------------- fusion


def best_first(scores: Scores) -> list[int]:
    """Rank candidates; of two with the same score, the one that comes first in the corpus is first."""
    return sorted(scores, key=lambda p: (-scores[p], p))


def weighted_fusion(views: Sequence[tuple[float, Scores]]) -> dict[int, float]:
    """Add views after scaling each to 0..1 between its worst and best candidate (Bruch, Gai and Ingber 2023).

    A candidate that a view does not know counts as that view's worst.
    """
    total: dict[int, float] = {}
    for weight, scores in views:
        if not scores:
            continue
        low, high = min(scores.values()), max(scores.values())
        for candidate, score in scores.items():
            scaled = (score - low) / (high - low) if high > low else 1.0
            total[candidate] = total.get(candidate, 0.0) + weight * scaled
    return total


def reciprocal_rank_fusion(views: Sequence[tuple[float, Scores]], *, k: int = 60) -> dict[int, float]:
    """Add weight / (k + rank) over views (Cormack, Clarke and Büttcher 2009)."""
    total: dict[int, float] = {}
    for weight, scores in views:
        for rank, candidate in enumerate(best_first(scores), start=1):
            total[candidate] = total.get(candidate, 0.0) + weight / (k + rank)
    return total


def fused(rankings: Sequence[Scores]) -> dict[int, float]:
    """Fuse one retriever's rankings for several texts by `reciprocal_rank_fusion`; one alone stays as it is.

    Ranks and not scores, because those of two texts are on no common scale: BM25 grows with the words of the query.
    """
    if len(rankings) == 1:
        return dict(rankings[0])
    return reciprocal_rank_fusion([(1.0, scores) for scores in rankings])


def reranked(scores: Scores, anew: Sequence[float], *, depth: int) -> dict[int, float]:
    """Put the best candidates in a new order.

    Args:
        scores: All candidates.
        anew: New scores of the ``depth`` best, or of all if they are fewer, best first.
        depth: The reranker's.

    Returns:
        All candidates, best first: those with new scores by these, then the others in their order. Scores fall
        strictly: of two equal ones, and for the others, the next is the nearest smaller number.

    Raises:
        InputError: The number of new scores is another, or one is not finite.
    """
    ranked = best_first(scores)
    read, rest = ranked[:depth], ranked[depth:]
    if len(anew) != len(read) or not all(map(math.isfinite, anew)):
        raise InputError(
            f"A reranker gave {len(anew)} scores for {len(read)} passages, or one that is not finite. Its scores() "
            "must return a finite number for each text."
        )
    new = dict(zip(read, map(float, anew), strict=True))
    result: dict[int, float] = {}
    below = math.inf
    for candidate in [*sorted(read, key=lambda p: -new[p]), *rest]:
        result[candidate] = min(new.get(candidate, math.inf), below)
        below = math.nextafter(result[candidate], -math.inf)
    return result
