"""ResultCache: stored values are returned unchanged, or an error is raised."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ragkit.errors import ResultCacheError
from ragkit.experiments.result_cache import ResultCache

VALUES = {"a": {"positions": np.arange(50).tobytes()}, "b": [1, 2.5, None, "é"], "c": "x" * 100}


def test_a_stored_value_is_never_replaced(tmp_path: Path) -> None:
    results = ResultCache(tmp_path / "runs" / "results.db")
    results.put("stage", VALUES)
    results.put("stage", {"a": "another"})
    assert ResultCache(results.path).get([*VALUES, "d"]) == VALUES
    assert results.computed == {"stage": 4}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE results SET value = substr(value, 1, 60)",
        "UPDATE results SET value = x'c1'",  # never in MessagePack
        "UPDATE results SET value = 'text'",
        # Valid MessagePack with other numbers.
        "UPDATE results SET value = (SELECT value FROM results WHERE key = 'b')",
    ],
)
def test_a_damaged_value_in_a_valid_file_is_an_error(tmp_path: Path, damage: str) -> None:
    results = ResultCache(tmp_path / "results.db")
    results.put("stage", VALUES)
    with closing(sqlite3.connect(results.path)) as db, db:
        db.execute(f"{damage} WHERE key = 'a'")
    with pytest.raises(ResultCacheError, match=r"result a is damaged.*delete it"):
        results.get(list(VALUES))
    assert results.get(["b"]) == {"b": VALUES["b"]}


def test_a_changed_byte_on_disk_is_detected(tmp_path: Path) -> None:
    results = ResultCache(tmp_path / "results.db")
    results.put("stage", VALUES)
    results.close()
    data = bytearray(results.path.read_bytes())
    data[data.index(b"x" * 100) + 50] ^= 1
    results.path.write_bytes(data)
    with pytest.raises(ResultCacheError, match="result c"):
        results.get(["c"])
