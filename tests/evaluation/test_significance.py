from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from ragkit.errors import InputError
from ragkit.evaluation.significance import _holm, compare, interval, paired_differences

P = ["p_t", "p_wilcoxon", "p_randomisation"]
UNPROVEN = ["low", "high", "effect_size", *P, *(f"{p}_holm" for p in P)]


def scores(queries: int, *, seed: int = 0, **lifts: float) -> pd.DataFrame:
    """Return realistic scores between 0 and 1, many of them 0 or 1; one column per system, shifted by its lift."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(0.5, 0.4, queries)
    columns = {name: (ease + lift + rng.normal(0, 0.3, queries)).clip(0, 1) for name, lift in lifts.items()}
    return pd.DataFrame(columns, index=[f"q{i}" for i in range(queries)])


def frame(baseline: Sequence[float], system: Sequence[float]) -> pd.DataFrame:
    return pd.DataFrame({"base": baseline, "system": system}, dtype="float64")


def test_against_values_computed_by_hand() -> None:
    """Differences 1, 1, -1, 1: mean 0.5, deviation 1, t = 1 with 3 degrees of freedom; of 16 flips 10 are as far."""
    (row,) = compare(frame([0, 0, 1, 0, 1], [1, 1, 0, 1, math.nan]), baseline="base").to_dict("records")
    assert (row["system"], row["baseline"], row["n"], row["left_out"]) == ("system", "base", 4, 1)
    assert (row["wins"], row["ties"], row["losses"]) == (3, 0, 1)
    assert (row["mean"], row["baseline_mean"], row["difference"]) == (0.75, 0.25, 0.5)
    assert row["effect_size"] == pytest.approx(0.5)
    assert row["p_t"] == pytest.approx(1 - 2 / math.pi * (math.atan(1 / math.sqrt(3)) + math.sqrt(3) / 4))
    assert row["p_wilcoxon"] == row["p_randomisation"] == 10 / 16
    assert row["low"] < 0.5 < row["high"]


def test_agrees_with_scipy_and_statsmodels() -> None:
    values = scores(60, base=0.0, same=0.0, worse=-0.05, better=0.2)
    values.loc[["q3", "q9"], "worse"] = math.nan
    table = compare(values, baseline="base").set_index("system")
    assert list(table.index) == ["same", "worse", "better"]
    for system, row in table.iterrows():
        a, b = values[[system, "base"]].dropna().to_numpy().T
        bounds = stats.bootstrap((a - b,), np.mean, n_resamples=10_000, rng=np.random.default_rng(0))
        assert (row["low"], row["high"]) == pytest.approx(tuple(bounds.confidence_interval), abs=1e-9)
        assert row["p_t"] == pytest.approx(stats.ttest_rel(a, b).pvalue)
        assert row["p_wilcoxon"] == pytest.approx(stats.wilcoxon((a - b)[a != b]).pvalue)
        drawn = stats.permutation_test(
            (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", rng=np.random.default_rng(1)
        )
        assert row["p_randomisation"] == pytest.approx(drawn.pvalue, abs=0.02)
        assert row["effect_size"] == pytest.approx(stats.ttest_rel(a, b).statistic / math.sqrt(len(a)))
    for p in P:
        assert table[f"{p}_holm"].to_numpy() == pytest.approx(multipletests(table[p], method="holm")[1])
    assert table.loc["better", "p_randomisation_holm"] < 0.05 < table.loc["same", "p_randomisation_holm"]


def test_holm_agrees_with_statsmodels() -> None:
    random = np.random.default_rng(0)
    for n in (1, 2, 7, 30):
        p = random.random(n) ** 4
        p[: n // 3] = p[0]  # ties
        assert _holm(p) == pytest.approx(multipletests(p, method="holm")[1], rel=1e-12)


@pytest.mark.parametrize(
    "pairs",
    [
        [0.1, 0.2, 0.3, -0.05, 0.4],
        [0.5, 0.5, -0.5, 1.0, 0.5, 0.0],
        [1.0, 1.0],
        [0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
    ],
)
def test_few_pairs_are_tested_exactly(pairs: list[float]) -> None:
    (row,) = compare(frame([0.0] * len(pairs), pairs), baseline="base", resamples=100).to_dict("records")
    differing = [d for d in pairs if d]
    flips = [
        np.dot(differing, signs) for signs in np.ndindex(*[2] * len(differing)) for signs in [1 - 2 * np.array(signs)]
    ]
    as_far = np.mean([abs(total) >= abs(sum(pairs)) - 1e-9 for total in flips])
    assert row["p_randomisation"] == pytest.approx(as_far)
    assert row["p_wilcoxon"] == pytest.approx(stats.wilcoxon(differing).pvalue)


def test_the_significance_level_holds() -> None:
    """Without a difference, 5% of the tests are significant, within bounds that fail once in 10,000 runs."""
    systems, queries = 400, 30
    null = scores(systems * queries, base=0.0, same=0.0)
    blocks = np.arange(len(null)) // queries  # each system has its own queries, so that all are independent
    own = {f"s{i}": null["same"].where(blocks == i) for i in range(systems)}
    table = compare(pd.DataFrame({"base": null["base"]} | own), baseline="base", resamples=400)
    assert (table["n"] == queries).all()
    low, high = stats.binom(systems, 0.05).interval(1 - 1e-4)
    for p in P:
        assert low <= (table[p] <= 0.05).sum() <= high, p
    assert 0.90 < ((table["low"] <= 0) & (table["high"] >= 0)).mean() < 0.98


SCORE = st.one_of(st.just(math.nan), st.sampled_from([0, 0.1, 0.2, 0.3, 1]), st.floats(0, 1))
PAIRS = st.lists(st.tuples(SCORE, SCORE), max_size=8)


@settings(max_examples=30, deadline=None)
@given(PAIRS)
def test_swapping_the_systems_negates_the_differences(pairs: list[tuple[float, float]]) -> None:
    base, system = [a for a, _ in pairs], [b for _, b in pairs]
    (row,) = compare(frame(base, system), baseline="base", resamples=200).to_dict("records")
    (turned,) = compare(frame(system, base), baseline="base", resamples=200).to_dict("records")
    assert (row["wins"], row["ties"], row["losses"]) == (turned["losses"], turned["ties"], turned["wins"])
    assert row["wins"] + row["ties"] + row["losses"] == row["n"] == len(pairs) - row["left_out"]
    for one, other in (("difference", "difference"), ("effect_size", "effect_size"), ("low", "high")):
        assert row[one] == pytest.approx(-turned[other], nan_ok=True, abs=1e-9)
    for p in P:
        assert row[p] == pytest.approx(turned[p], nan_ok=True)
        assert math.isnan(row[p]) or 0 < row[p] <= 1


def test_identical_scores_are_not_significant() -> None:
    (row,) = compare(frame([0.1, 0.5, 1], [0.1, 0.5, 1]), baseline="base").to_dict("records")
    assert [row[p] for p in P] == [1, 1, 1]
    assert [row[f"{p}_holm"] for p in P] == [1, 1, 1]
    assert (row["difference"], row["low"], row["high"], row["effect_size"], row["ties"]) == (0, 0, 0, 0, 3)


def test_one_constant_difference_has_no_deviation() -> None:
    (row,) = compare(frame([0.1, 0.2, 0.3], [0.2, 0.3, 0.4]), baseline="base").to_dict("records")
    assert (row["low"], row["high"]) == pytest.approx((0.1, 0.1))
    assert math.isnan(row["effect_size"])
    assert math.isnan(row["p_t"])
    assert row["p_wilcoxon"] == row["p_randomisation"] == 2 / 8


@pytest.mark.parametrize(("system", "n"), [([0.4, math.nan, math.nan], 1), ([math.nan] * 3, 0)])
def test_fewer_than_two_pairs_give_nan(system: list[float], n: int) -> None:
    (row,) = compare(frame([0.1, 0.2, 0.3], system), baseline="base").to_dict("records")
    assert (row["n"], row["left_out"], row["wins"]) == (n, 3 - n, n)
    assert all(math.isnan(row[name]) for name in UNPROVEN)
    assert math.isnan(row["difference"]) == (n == 0)


def test_holm_ignores_systems_without_a_p_value() -> None:
    values = scores(20, base=0.0, a=0.1, b=0.2)
    expected = compare(values, baseline="base")
    values.insert(1, "failed", math.nan)
    table = compare(values, baseline="base")
    pd.testing.assert_frame_equal(table[1:].reset_index(drop=True), expected)


def test_a_baseline_alone_gives_an_empty_table_with_the_same_columns() -> None:
    values = scores(5, base=0.0, a=0.1)
    alone, table = compare(values[["base"]], baseline="base"), compare(values, baseline="base")
    assert len(alone) == 0
    assert list(alone.columns) == list(table.columns)
    assert (alone.dtypes.drop(["system", "baseline"]) == table.dtypes.drop(["system", "baseline"])).all()


def test_a_row_does_not_depend_on_the_other_systems() -> None:
    values = scores(40, base=0.0, a=0.1, b=0.2)
    both = compare(values, baseline="base", seed=3)
    alone = compare(values[["b", "base"]], baseline="base", seed=3)
    assert both.iloc[1][["low", "high", *P]].equals(alone.iloc[0][["low", "high", *P]])
    assert not both[["low", "high"]].equals(compare(values, baseline="base", seed=4)[["low", "high"]])


def test_rounding_errors_are_ties() -> None:
    found = paired_differences([0.1 + 0.2, 0.3, 0.2, math.nan], [0.3, 0.2, 0.1, 0.1])
    assert found[0] == 0
    assert found[1] == found[2] == pytest.approx(0.1)
    assert math.isnan(found[3])


def test_interval_of_a_mean() -> None:
    values = scores(50, a=0.0)["a"]
    expected = stats.bootstrap((values,), np.mean, n_resamples=500, confidence_level=0.8, rng=np.random.default_rng(7))
    found = interval(values, confidence=0.8, resamples=500, seed=7)
    assert found == pytest.approx(tuple(expected.confidence_interval))
    assert interval([*values, math.nan], confidence=0.8, resamples=500, seed=7) == pytest.approx(found)
    assert interval([0.1] * 10) == (0.1, 0.1)
    assert interval([0.1 + 0.2, 0.3]) == pytest.approx((0.3, 0.3))
    for few in ([], [0.5], [math.nan, 0.5]):
        assert np.isnan(interval(few)).all()


def test_pandas_na_is_nan() -> None:
    values = pd.DataFrame({"base": [0.1, 0.2, 0.3], "system": pd.array([0.2, None, 0.5], dtype="Float64")})
    assert compare(values, baseline="base").loc[0, ["n", "left_out"]].tolist() == [2, 1]
    assert np.isfinite(interval(pd.Series([0.1, 0.2, None], dtype=object))).all()


def test_invalid_arguments_are_refused() -> None:
    values = scores(4, base=0.0, a=0.1)
    with pytest.raises(InputError, match=r"no system 'bm25'.*base, a"):
        compare(values, baseline="bm25")
    with pytest.raises(InputError, match="system 'a' occurs more than once"):
        compare(values[["base", "a", "a"]], baseline="base")
    with pytest.raises(InputError, match="query 'q1' occurs more than once"):
        compare(pd.concat([values, values.loc[["q1"]]]), baseline="base")
    with pytest.raises(InputError, match="scores of 'a' is infinite"):
        compare(values.assign(a=[0, 1, math.inf, 0]), baseline="base")
    with pytest.raises(InputError, match="scores of 'a' are numbers"):
        compare(values.assign(a=["high", "low", "high", "low"]), baseline="base")
    with pytest.raises(InputError, match="one list"):
        interval([[0.1, 0.2]])  # type: ignore[list-item]
    with pytest.raises(InputError, match="the lengths are 2 and 1"):
        paired_differences([0.1, 0.2], [0.1])
    for options in ({"confidence": 95}, {"resamples": 10}, {"resamples": 1e4}, {"seed": -1}):
        with pytest.raises(InputError, match=next(iter(options))):
            interval([0.1, 0.2], **options)  # type: ignore[arg-type]
