from __future__ import annotations

import pickle

import pytest

from ragkit import errors

MADE = [
    errors.EmbeddingError("model", "it failed"),
    errors.DocumentError("a.md", "empty"),
    errors.IndexMismatchError("index", what="embedder", expected="a", found="b"),
    errors.MissingExtraError("torch", extra="gpu"),
    errors.LLMTimeoutError("late", model="m", base_url="http://x", billable=False),
]


@pytest.mark.parametrize("error", MADE, ids=lambda e: type(e).__name__)
def test_errors_travel_between_processes(error: errors.RagkitError) -> None:
    """An error that cannot be read at the other end breaks a pool of processes for good."""
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)
    assert vars(found) == vars(error)


def test_a_summary_is_one_short_line() -> None:
    assert errors.summary(KeyError("x")) == "KeyError: 'x'"
    assert errors.summary(ValueError()) == "ValueError"
    assert errors.summary(ValueError("a\nb " * 1_000))[:16] == "ValueError: a b "
    assert len(errors.summary(ValueError("a\nb " * 1_000))) < 250
