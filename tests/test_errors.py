"""Errors, and checks that raise them."""

from __future__ import annotations

import numpy as np
import pytest

from ragkit.errors import InputError, require_count


@pytest.mark.parametrize("value", [1, 10, np.int64(7)])
def test_a_whole_number_is_a_count(value: object) -> None:
    require_count("k", value, most=10)


@pytest.mark.parametrize("value", [0, -1, 11, 3.0, float("nan"), True, "3", None, np.float32(2)])
def test_anything_else_is_none(value: object) -> None:
    with pytest.raises(InputError, match=r"^k must be a whole number from 1 to 10, not "):
        require_count("k", value, most=10)


def test_the_message_says_what_is_wanted() -> None:
    with pytest.raises(InputError, match=r"^seed must be a whole number of at least 0, not -1\.$"):
        require_count("seed", -1, least=0)
    require_count("seed", 0, least=0)
