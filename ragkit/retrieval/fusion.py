"""Fusion of rankings, and reranking."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ragkit.errors import InputError
from ragkit.retrieval.base import Scores


def best_first(scores: Scores) -> list[int]:
    """Return candidates by descending score. Ties keep the order of the corpus."""
    return sorted(scores, key=lambda p: (-scores[p], p))


def weighted_fusion(views: Sequence[tuple[float, Scores]]) -> dict[int, float]:
    """Add the weighted scores of several views, each scaled to 0..1 (Bruch, Gai and Ingber 2023).

    Scaling maps a view's worst candidate to 0 and its best to 1. A candidate that is missing from a view counts as 0.
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
    """Fuse one retriever's rankings for several texts by `reciprocal_rank_fusion`. A single ranking is unchanged.

    Ranks are fused and not scores, because the scores of two texts have no common scale: BM25 scores grow with the
    number of words in the query.
    """
    if len(rankings) == 1:
        return dict(rankings[0])
    return reciprocal_rank_fusion([(1.0, scores) for scores in rankings])


def reranked(scores: Scores, new_scores: Sequence[float], *, depth: int) -> dict[int, float]:
    """Reorder the best candidates by new scores.

    Args:
        scores: All candidates.
        new_scores: New scores of the ``depth`` best candidates (or of all, if there are fewer), best first.
        depth: The reranker's depth.

    Returns:
        All candidates, best first: those with new scores in the order of these, then the others in their old order.
        Scores decrease strictly: where they would not, the next score is the largest float below the one before.

    Raises:
        InputError: The number of new scores is wrong, or a score is not finite.
    """
    ranked = best_first(scores)
    top, rest = ranked[:depth], ranked[depth:]
    if len(new_scores) != len(top) or not all(map(math.isfinite, new_scores)):
        raise InputError(
            f"A reranker returned {len(new_scores)} scores for {len(top)} passages, or one that is not finite. Its "
            "scores() must return a finite number for each text."
        )
    new = dict(zip(top, map(float, new_scores), strict=True))
    result: dict[int, float] = {}
    limit = math.inf
    for candidate in [*sorted(top, key=lambda p: -new[p]), *rest]:
        result[candidate] = min(new.get(candidate, math.inf), limit)
        limit = math.nextafter(result[candidate], -math.inf)
    return result
