"""After a kill at any moment and a restart, an experiment has the same result; see `tests.support.resuming`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("RAGKIT_KILLS", "10"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@pytest.mark.timeout(1_000)
def test_killed_at_random() -> None:
    """RAGKIT_KILLS sets the number of kills."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.resuming", str(KILLS), "1"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    ended = re.search(r"^(\d+) times killed, (\d+) times at the end: as an undisturbed run$", done.stdout, re.MULTILINE)
    assert ended
    assert int(ended[1]) == KILLS
    assert int(ended[2]) >= 1
