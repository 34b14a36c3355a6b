"""After a kill at any step and a restart, an index equals that of an uninterrupted run; see `tests.support.killing`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = int(os.environ.get("RAGKIT_KILLS", "20"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def killing(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.killing", *arguments],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=1_500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    return done.stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("scenario", "fewest"), [("first run", 14), ("changes", 20), ("rebuild", 20)])
def test_a_crash_before_and_after_every_durable_step(scenario: str, fewest: int) -> None:
    output = killing("points", scenario)
    found = re.search(r"(\d+) points", output)
    assert found
    assert int(found[1]) >= fewest


@pytest.mark.timeout(1_600)
def test_killed_at_random() -> None:
    """RAGKIT_KILLS sets the number of kills: 200 take about four minutes."""
    output = killing("random", str(KILLS), "1")
    killed = re.findall(r"^killed (\d+) times: as an undisturbed run$", output, re.MULTILINE)
    assert int(killed[-1]) >= KILLS
