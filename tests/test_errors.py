"""Errors, and checks that raise them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from ragkit import errors
from ragkit.errors import InputError, require_count


@pytest.mark.parametrize("value", [1, 10, np.int64(7)])
def test_integers_are_counts(value: object) -> None:
    require_count("k", value, most=10)


@pytest.mark.parametrize("value", [0, -1, 11, 3.0, float("nan"), True, "3", None, np.float32(2)])
def test_other_values_are_not_counts(value: object) -> None:
    with pytest.raises(InputError, match=r"^k must be a whole number from 1 to 10, not "):
        require_count("k", value, most=10)


def test_the_message_names_the_range() -> None:
    with pytest.raises(InputError, match=r"^seed must be a whole number of at least 0, not -1\.$"):
        require_count("seed", -1, least=0)
    require_count("seed", 0, least=0)


MADE = [
    errors.EmbeddingError("model", "it failed"),
    errors.DocumentError("a.md", "empty"),
    errors.IndexMismatchError("index", what="embedder", expected="a", found="b"),
    errors.MissingExtraError("torch", extra="gpu"),
    errors.LLMTimeoutError("late", model="m", base_url="http://x", billable=False),
]


@pytest.mark.parametrize("error", MADE, ids=lambda e: type(e).__name__)
def test_errors_can_be_pickled(error: errors.RagkitError) -> None:
    """An error that cannot be unpickled breaks a process pool."""
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_a_summary_is_one_short_line() -> None:
    assert errors.summary(KeyError("x")) == "KeyError: 'x'"
    assert errors.summary(ValueError()) == "ValueError"
    assert errors.summary(ValueError("a\nb " * 1_000))[:16] == "ValueError: a b "
    assert len(errors.summary(ValueError("a\nb " * 1_000))) < 250
