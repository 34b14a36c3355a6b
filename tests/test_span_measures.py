"""The measures of benchmarks/chunkers.py, against cases that can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chunkers import Span, interval, span_measures

SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)).map(lambda s: (s[0], s[0] + s[1])), max_size=5)


@pytest.mark.parametrize(
    ("gold", "retrieved", "recall", "precision", "iou"),
    [
        ([(0, 10)], [(0, 10)], 1, 1, 1),
        ([(0, 10)], [(5, 25)], 0.5, 0.25, 0.2),
        ([(0, 10)], [(20, 30)], 0, 0, 0),
        ([(0, 10)], [], 0, 0, 0),
        ([(0, 10), (20, 30)], [(0, 40)], 1, 0.5, 0.5),
        ([(0, 10)], [(0, 10), (0, 10)], 1, 0.5, 0.5),  # what is retrieved twice is paid for twice
        ([(0, 10), (0, 10)], [(0, 10)], 1, 1, 1),  # and what is asked for twice counts once
    ],
)
def test_counted_by_hand(gold: list[Span], retrieved: list[Span], recall: float, precision: float, iou: float) -> None:
    assert span_measures(gold, retrieved) == pytest.approx((recall, precision, iou))


@given(gold=SPANS.filter(bool), retrieved=SPANS)
def test_bounds(gold: list[Span], retrieved: list[Span]) -> None:
    recall, precision, iou = span_measures(gold, retrieved)
    assert 0 <= iou <= min(recall, precision) <= 1
    assert span_measures(gold, [*retrieved, *gold])[0] == 1


def test_an_interval_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(7).normal(size=1_000)
    assert interval(values) == pytest.approx(1.96 / np.sqrt(1_000), rel=0.1)
    assert interval(np.ones(10)) == 0
