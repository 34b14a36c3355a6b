"""ResultCache: what is put is there, and nothing else is given back."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from ragkit.errors import ResultCacheError
from ragkit.experiments.result_cache import ResultCache

VALUES = {"a": {"positions": np.arange(50).tobytes()}, "b": [1, 2.5, None, "é"], "c": "x" * 100}


def test_each_value_is_kept_once_for_all(tmp_path: Path) -> None:
    cells = ResultCache(tmp_path / "runs" / "cells.db")
    cells.put("stage", VALUES)
    cells.put("stage", {"a": "another"})
    assert ResultCache(cells.path).get([*VALUES, "d"]) == VALUES
    assert cells.computed == {"stage": 4}


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE cells SET value = substr(value, 1, 60)",
        "UPDATE cells SET value = x'c1'",  # never in MessagePack
        "UPDATE cells SET value = 'text'",
        # Sound in every way, and other figures.
        "UPDATE cells SET value = (SELECT value FROM cells WHERE key = 'b')",
    ],
)
def test_a_damaged_value_in_a_sound_file_is_not_given_back(tmp_path: Path, damage: str) -> None:
    cells = ResultCache(tmp_path / "cells.db")
    cells.put("stage", VALUES)
    with closing(sqlite3.connect(cells.path)) as db, db:
        db.execute(f"{damage} WHERE key = 'a'")
    with pytest.raises(ResultCacheError, match=r"cell a is damaged.*delete it"):
        cells.get(list(VALUES))
    assert cells.get(["b"]) == {"b": VALUES["b"]}


def test_a_changed_byte_on_disk_is_found(tmp_path: Path) -> None:
    cells = ResultCache(tmp_path / "cells.db")
    cells.put("stage", VALUES)
    cells.close()
    data = bytearray(cells.path.read_bytes())
    data[data.index(b"x" * 100) + 50] ^= 1
    cells.path.write_bytes(data)
    with pytest.raises(ResultCacheError, match="cell c"):
        cells.get(["c"])
