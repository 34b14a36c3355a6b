"""Rankings made into one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ragkit.errors import InputError
from ragkit.retrieval.base import Scores


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
