"""Statistical significance of the differences between systems.

Scores are paired: both systems answered the same queries, so the tests use the difference of each query. There are
three tests, because each alone can mislead (Smucker, Allan and Carterette 2007, "A comparison of statistical
significance tests for information retrieval evaluation"): Student's t test, Wilcoxon's signed-rank test and Fisher's
randomisation test. Several comparisons with one baseline are corrected by Holm's method (Holm 1979). The computation
is done by scipy.
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
_DECIMALS = 12  # relative to the largest score; smaller differences are rounding errors
_MAX_EXACT_PAIRS = 13  # up to 2**13 sign flips are enumerated
_MAX_BATCH_NUMBERS = 300_000  # in one array of resamples; larger arrays are slower

Floats = npt.NDArray[np.float64]


def interval(
    values: Sequence[float] | Floats | pd.Series,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bootstrap confidence interval of a mean.

    The interval is bias-corrected and accelerated (BCa; Efron 1987, "Better bootstrap confidence intervals"). Scores of
    queries are bounded and skewed, many of them 0 or 1, so the plain percentile interval would be biased.

    Args:
        values: One value per query, in any unit; NaN is ignored.
        confidence: The confidence level, between 0 and 1.
        resamples: The number of bootstrap samples; at least 100.
        seed: The same seed gives the same interval.

    Returns:
        The ends of the interval, in the unit of the values. If all values are equal, both ends are that value; with
        fewer than two values, both are NaN.

    Raises:
        InputError: A value is not a number or infinite, or an option is out of range.
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
    """Compare every system with the baseline by one measure.

    Args:
        values: One row per query, indexed by query id; one column per system. NaN means that the system has no score
            for the query: the pair is left out and counted.
        baseline: The column that the others are compared with.
        confidence: The confidence level of the interval; see `interval`.
        resamples: The number of samples of the bootstrap and of the randomisation test; at least 100.
        seed: The same seed gives the same table; the row of a system does not depend on the other systems.

    Returns:
        One row per system other than the baseline, in the order of the columns of ``values``:

        - ``system``, ``baseline``; the numbers of pairs used, ``n``, and ``left_out``;
        - ``mean`` and ``baseline_mean`` over the pairs, their ``difference`` (positive if the system scores higher),
          and ``low`` and ``high``, the ends of its bootstrap interval;
        - ``effect_size``: Cohen's d_z, the mean difference over the sample standard deviation (n - 1; Cohen 1988,
          "Statistical power analysis for the behavioral sciences", section 2.3; Lakens 2013, formula 6);
        - ``p_t`` of Student's paired t test, ``p_wilcoxon`` of Wilcoxon's signed-rank test and ``p_randomisation`` of
          Fisher's randomisation test, which flips the signs of the differences; all are two-sided. The last two
          ignore pairs without a difference. With up to 13 differing pairs they enumerate all sign flips; with more,
          the randomisation test samples flips, and Wilcoxon's test is `scipy.stats.wilcoxon`;
        - each p again with the suffix ``_holm``: corrected for the number of systems in this call;
        - ``wins``, ``ties``, ``losses``: the numbers of queries on which the system is better, equal, worse.

        If all differences are 0, every p is 1 and the effect size 0. With fewer than two pairs, interval, effect size
        and p are NaN. If all differences are equal but not 0, effect size and ``p_t`` are NaN.

    Raises:
        InputError: The baseline does not exist, a system or query occurs twice, a value is not a number or infinite, or
            an option is out of range.
    """
    import pandas as pd

    _check(confidence, resamples, seed)
    for what, names in (("system", values.columns), ("query", values.index)):
        if not names.is_unique:
            twice = names[names.duplicated()][0]
            raise InputError(f"The {what} {twice!r} occurs more than once. Give each {what} a unique name.")
    if baseline not in values.columns:
        raise InputError(
            f"There is no system {baseline!r} to compare with. The systems are: {', '.join(map(str, values.columns))}."
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
    """Apply Holm's correction: the smallest p times n, the next times n - 1, ..., made monotonic and at most 1.

    Holm 1979, "A simple sequentially rejective multiple test procedure". The implementation in statsmodels runs a full
    garbage collection at each call, which takes 0.2 seconds and more in a notebook.
    """
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected


def paired_differences(
    scores: Sequence[float] | Floats | pd.Series, others: Sequence[float] | Floats | pd.Series
) -> Floats:
    """Subtract the others from the scores, query by query, without floating-point noise.

    In floating point, 0.3 - 0.2 differs from 0.2 - 0.1, and 0.1 + 0.2 - 0.3 is not 0, which would affect ranks and
    counts of wins. Differences are therefore rounded to twelve digits relative to the largest score.

    Args:
        scores: One score per query, shape (n,).
        others: Scores of the same queries in the same order, shape (n,).

    Returns:
        The differences, shape (n,); NaN where either score is NaN.

    Raises:
        InputError: A score is not a number or infinite, or the lengths differ.
    """
    a, b = as_floats(scores, "scores"), as_floats(others, "others")
    if len(a) != len(b):
        raise InputError(f"Each query needs a pair of scores; the lengths are {len(a)} and {len(b)}.")
    scale = max(float(np.abs(x[~np.isnan(x)]).max(initial=0)) for x in (a, b)) or 1.0
    differences: Floats = np.round(a / scale - b / scale, _DECIMALS) * scale + 0.0  # + 0.0 turns -0.0 into 0.0
    return differences


def as_floats(values: Sequence[float] | Floats | pd.Series, what: str) -> Floats:
    """Convert user input to an array of floats, shape (n,); None and pandas' NA become NaN.

    Args:
        values: A list of numbers.
        what: A description of the values, for the error message.

    Raises:
        InputError: A value is not a number or infinite, or the input is not one-dimensional.
    """
    to_numpy = getattr(values, "to_numpy", None)
    try:
        floats: Floats = to_numpy(np.float64, na_value=np.nan) if to_numpy else np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as problem:
        raise InputError(f"Not all of {what} are numbers ({problem}). Use NaN for a missing value.") from problem
    if floats.ndim != 1:
        raise InputError(f"Pass {what} as one list of numbers; this has the shape {floats.shape}.")
    if np.isinf(floats).any():
        raise InputError(f"One of {what} is infinite. Use NaN for a missing value.")
    return floats


def _compared(a: Floats, b: Floats, *, confidence: float, resamples: int, seed: int) -> dict[str, Any]:
    """Compare one system with the baseline; without their names and Holm's correction."""
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
    """Return the p values in the order of _TESTS."""
    from scipy import stats

    differing = d[d != 0]
    if len(d) < 2:
        return math.nan, math.nan, math.nan
    if not len(differing):
        return 1.0, 1.0, 1.0
    t = float(stats.ttest_1samp(d, 0).pvalue) if np.ptp(d) else math.nan
    if len(differing) <= _MAX_EXACT_PAIRS:
        # The same as scipy.stats.wilcoxon with ties, which takes a second per system.
        ranks = np.sign(differing) * stats.rankdata(np.abs(differing))
        wilcoxon = _sign_flips(ranks, resamples, seed)
    else:
        wilcoxon = float(stats.wilcoxon(differing).pvalue)
    return t, wilcoxon, _sign_flips(differing, resamples, seed)


def _sign_flips(d: Floats, resamples: int, seed: int) -> float:
    """Return the two-sided p: the fraction of sign flips whose sum is at least as far from 0."""
    from scipy import stats

    if len(d) < 2:
        return 1.0  # scipy requires two values; with one, both flips are equally far from 0

    def total(flipped: Floats, axis: int) -> Floats:
        rounded: Floats = np.round(flipped.sum(axis=axis), 9)  # removes differences caused by the order of summation
        return rounded

    found = stats.permutation_test(
        (d / np.abs(d).max(),),
        total,
        permutation_type="samples",
        vectorized=True,
        n_resamples=2 ** len(d) if len(d) <= _MAX_EXACT_PAIRS else resamples,
        batch=_batch(d),
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def _batch(values: Floats) -> int:
    return max(1, _MAX_BATCH_NUMBERS // len(values))


def _check(confidence: float, resamples: int, seed: int) -> None:
    if not 0 < confidence < 1:
        raise InputError(f"confidence must be between 0 and 1, for example 0.95, not {confidence!r}.")
    require_count("resamples", resamples, least=100)
    require_count("seed", seed, least=0)
