"""Hashes of values, files and folders; those of folders are tested with the run store."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from ragkit.hashing import hash_bytes, hash_file, hash_path, hash_values


def test_hashes_are_stable(tmp_path: Path) -> None:
    """They are stored in indexes and run stores: if they changed, every file would be read again."""
    file = tmp_path / "a.txt"
    file.write_bytes(b"bytes of a file")
    assert hash_bytes(b"bytes of a file") == hash_file(file) == hash_path(file) == "49346a177b4c1cbc30adbaa5b815650c"
    assert hash_path(tmp_path) == "1aed37e53827a024037a1833c15acd96"
    assert hash_values("é", 1, [True, None], {"b": 2, "a": 0.5}) == "cf04f2c0f5e32e25e1095a1042e64670"


@pytest.mark.skipif(sys.platform == "win32", reason="there are no named pipes")
def test_a_pipe_is_rejected_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        hash_file(tmp_path / "pipe")
