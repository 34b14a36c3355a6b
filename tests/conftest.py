from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # torch's threads would wait for each other
else:
    # Nobody's own cache is read or written, by the processes that tests start neither.
    _cache = tempfile.TemporaryDirectory(prefix="ragkit-test-cache-")
    os.environ["RAGKIT_CACHE_DIR"] = _cache.name


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the project; tests that need it are skipped where it is missing."""
    folder = Path(os.environ.get("RAGKIT_SHARED", ROOT.parent / "shared"))
    if not (folder / "datasets").is_dir():
        pytest.skip(f"the real data is not at {folder}; set RAGKIT_SHARED to where it is")
    return folder
