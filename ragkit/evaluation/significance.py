"""Whether one retrieval system is better than another, or only luckier with the questions that were asked.

Scores are paired: both systems answered the same queries, so what is tested is the difference of each query. Three
tests look at it, because each can mislead alone (Smucker, Allan and Carterette 2007, "A comparison of statistical
significance tests for information retrieval evaluation"): Student's t test, Wilcoxon's signed ranks and Fisher's
randomisation. Where several systems meet one baseline, luck has several chances; Holm's correction (Holm 1979) takes
that into account. scipy does the mathematics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ragkit.errors import InputError, require_count

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 10_000
_TESTS = ("p_t", "p_wilcoxon", "p_randomisation")
_COUNTS = ("n", "left_out", "wins", "ties", "losses")
_COLUMNS = (
    "system", "baseline", "n", "left_out", "mean", "baseline_mean", "difference", "low", "high", "effect_size",
    "p_t", "p_t_holm", "p_wilcoxon", "p_wilcoxon_holm", "p_randomisation", "p_randomisation_holm",
    "wins", "ties", "losses",
)  # fmt: skip
_DECIMALS = 12  # of the largest score; what differs by less differs by rounding
_MOST_EXACT = 13  # pairs: 2**13 ways to flip their signs can all be tried
_NUMBERS_AT_ONCE = 300_000  # in one array of resamples: more is slower, too

Floats = npt.NDArray[np.float64]


def interval(
    values: Sequence[float] | Floats | pd.Series,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap interval of a mean.

    Bias-corrected and accelerated (BCa; Efron 1987, "Better bootstrap confidence intervals"): scores of queries are
    bounded and skewed, most of them 0 or 1, and the percentile interval is then off to one side.

    Args:
        values: One a query, in any unit; NaN is left out.
        confidence: How often such an interval should hold the true mean, between 0 and 1.
        resamples: How many samples are drawn from the values, with replacement; at least 100.
        seed: The same seed gives the same interval.

    Returns:
        Its ends, in the unit of the values. Values that are all equal give that value twice; fewer than two
        give NaN.

    Raises:
        InputError: A value is no number or infinite, or an option is out of range.
    """
    from scipy import stats

    _check(confidence, resamples, seed)
    known = as_floats(values, "values")
    known = known[~np.isnan(known)]
    if len(known) < 2:
        return math.nan, math.nan
    low, high = float(known.min()), float(known.max())
    if high - low <= 10.0**-_DECIMALS * max(abs(low), abs(high)):
        return low, high
    found = stats.bootstrap(
        (known,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        batch=_batch(known),
        vectorized=True,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def compare(
    values: pd.DataFrame,
    *,
    baseline: str,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare every system with the baseline, by one measure.

    Args:
        values: One row a query, indexed by its id; one column a system, named by it. NaN says that the system has no
            score for that query: the pair is left out, and counted.
        baseline: The column that the others are compared with.
        confidence: Of the interval; see `interval`.
        resamples: Of the bootstrap and of the randomisation test, at least 100.
        seed: The same seed gives the same table, and a system's row does not depend on which others there are.

    Returns:
        One row a system other than the baseline, in the order of the columns:

        - ``system``, ``baseline``; ``n`` pairs, ``left_out`` pairs;
        - ``mean`` and ``baseline_mean`` over the pairs, their ``difference`` (positive: the system is better, if more
          of the measure is better), ``low`` and ``high``, the ends of the difference's bootstrap interval;
        - ``effect_size``: Cohen's d_z, the differences' mean over their standard deviation with n - 1 (Cohen 1988,
          "Statistical power analysis for the behavioral sciences", section 2.3; Lakens 2013, formula 6);
        - ``p_t`` of Student's paired t test, ``p_wilcoxon`` of Wilcoxon's signed-rank test and ``p_randomisation`` of
          Fisher's randomisation test, which flips the differences' signs; all two-sided. The last two pass over pairs
          without a difference. They try every flip of up to 13 pairs that differ; beyond that the randomisation test
          draws, and Wilcoxon's is `scipy.stats.wilcoxon`;
        - each p once more with ``_holm``: corrected for the number of systems in this call;
        - ``wins``, ``ties``, ``losses``: queries on which the system is better, equal, worse.

        Without any difference every p is 1 and the effect 0. Fewer than two pairs prove nothing: interval, effect and
        p are NaN. So are the effect and ``p_t`` where every difference is the same and not 0, and there is no
        deviation to divide by.

    Raises:
        InputError: There is no such baseline, a system or query occurs twice, a value is no number or infinite, or an
            option is out of range.
    """
    import pandas as pd

    _check(confidence, resamples, seed)
    for what, names in (("system", values.columns), ("query", values.index)):
        if not names.is_unique:
            twice = names[names.duplicated()][0]
            raise InputError(f"The {what} {twice!r} occurs more than once. Give each {what} a name of its own.")
    if baseline not in values.columns:
        raise InputError(
            f"There is no system {baseline!r} to compare with. There is: {', '.join(map(str, values.columns))}."
        )
    scores = {system: as_floats(values[system], f"the scores of {system!r}") for system in values.columns}
    rows = [
        {"system": system, "baseline": baseline}
        | _compared(own, scores[baseline], confidence=confidence, resamples=resamples, seed=seed)
        for system, own in scores.items()
        if system != baseline
    ]
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    for test in _TESTS:
        known = table[test].notna()
        if known.any():
            table.loc[known, f"{test}_holm"] = _holm(table.loc[known, test].to_numpy())
    names = ("system", "baseline")
    return table.astype({c: "int64" if c in _COUNTS else "float64" for c in _COLUMNS if c not in names})


def _holm(p: Floats) -> Floats:
    """Correct p values for their number: the smallest times n, the next times n - 1, ..., none below one before it.

    Holm 1979, "A simple sequentially rejective multiple test procedure". statsmodels has it, and collects the whole
    process's garbage at every call: 0.2 seconds and more in a notebook.
    """
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected


def paired_differences(
    scores: Sequence[float] | Floats | pd.Series, others: Sequence[float] | Floats | pd.Series
) -> Floats:
    """Subtract the others from the scores, query by query, so that ties are ties.

    0.3 - 0.2 and 0.2 - 0.1 are not the same number to a computer, nor is 0.1 + 0.2 - 0.3 nothing; ranks and counts of
    wins would make something of it. Differences are therefore rounded to twelve digits of the largest score.

    Args:
        scores: One a query, shape (n,).
        others: Of the same queries in the same order, shape (n,).

    Returns:
        The differences, shape (n,); NaN where either is NaN.

    Raises:
        InputError: A score is no number or infinite, or there are more of one than of the other.
    """
    a, b = as_floats(scores, "scores"), as_floats(others, "others")
    if len(a) != len(b):
        raise InputError(f"Give a pair of scores for each query; these are {len(a)} and {len(b)}.")
    scale = max(float(np.abs(x[~np.isnan(x)]).max(initial=0)) for x in (a, b)) or 1.0
    differences: Floats = np.round(a / scale - b / scale, _DECIMALS) * scale + 0.0  # + 0.0: no -0.0
    return differences


def as_floats(values: Sequence[float] | Floats | pd.Series, what: str) -> Floats:
    """Return numbers from outside as an array, shape (n,); pandas' NA and None are NaN.

    Args:
        values: One list of numbers.
        what: What they are, for the message.

    Raises:
        InputError: One of them is no number or infinite, or it is no plain list.
    """
    to_numpy = getattr(values, "to_numpy", None)
    try:
        floats: Floats = to_numpy(np.float64, na_value=np.nan) if to_numpy else np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise InputError(f"Not all of {what} are numbers ({problem}). Give NaN where there is none.") from problem
    if floats.ndim != 1:
        raise InputError(f"Give {what} as one list of numbers; this has the shape {floats.shape}.")
    if np.isinf(floats).any():
        raise InputError(f"One of {what} is infinite. Give NaN where there is none.")
    return floats


def _compared(a: Floats, b: Floats, *, confidence: float, resamples: int, seed: int) -> dict[str, Any]:
    """One system against the baseline; all but their names and Holm's correction."""
    paired = ~(np.isnan(a) | np.isnan(b))
    a, b = a[paired], b[paired]
    d = paired_differences(a, b)
    low, high = interval(d, confidence=confidence, resamples=resamples, seed=seed)
    return {
        "n": len(d),
        "left_out": int((~paired).sum()),
        "mean": _mean(a),
        "baseline_mean": _mean(b),
        "difference": _mean(d),
        "low": low,
        "high": high,
        "effect_size": _effect_size(d),
        **dict(zip(_TESTS, _p_values(d, resamples, seed), strict=True)),
        "wins": int((d > 0).sum()),
        "ties": int((d == 0).sum()),
        "losses": int((d < 0).sum()),
    }


def _mean(values: Floats) -> float:
    return float(values.mean()) if len(values) else math.nan


def _effect_size(d: Floats) -> float:
    if len(d) < 2:
        return math.nan
    if np.ptp(d) == 0:
        return math.nan if d[0] else 0.0
    return float(d.mean() / d.std(ddof=1))


def _p_values(d: Floats, resamples: int, seed: int) -> tuple[float, float, float]:
    """In the order of _TESTS."""
    from scipy import stats

    differing = d[d != 0]
    if len(d) < 2:
        return math.nan, math.nan, math.nan
    if not len(differing):
        return 1.0, 1.0, 1.0
    t = float(stats.ttest_1samp(d, 0).pvalue) if np.ptp(d) else math.nan
    if len(differing) <= _MOST_EXACT:
        # As scipy.stats.wilcoxon does with ties; there it takes a second for each system.
        ranks = np.sign(differing) * stats.rankdata(np.abs(differing))
        wilcoxon = _sign_flips(ranks, resamples, seed)
    else:
        wilcoxon = float(stats.wilcoxon(differing).pvalue)
    return t, wilcoxon, _sign_flips(differing, resamples, seed)


def _sign_flips(d: Floats, resamples: int, seed: int) -> float:
    """The share of sign flips that make a sum at least as far from 0, two-sided."""
    from scipy import stats

    if len(d) < 2:
        return 1.0  # scipy asks for two; one is as far from 0 on either side

    def total(flipped: Floats, axis: int) -> Floats:
        rounded: Floats = np.round(flipped.sum(axis=axis), 9)  # what differs by less differs by the order of adding
        return rounded

    found = stats.permutation_test(
        (d / np.abs(d).max(),),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2 ** len(d) if len(d) <= _MOST_EXACT else resamples,
        batch=_batch(d),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _batch(values: Floats) -> int:
    return max(1, _NUMBERS_AT_ONCE // len(values))


def _check(confidence: float, resamples: int, seed: int) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, for example 0.95, not {confidence!r}.")
    require_count("resamples", resamples, least=100)
    require_count("seed", seed, least=0)
