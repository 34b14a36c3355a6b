"""`ragkit.broadcast`: any broadcast of the protocol, from a kernel or a script, to every listener."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ragkit
from ragkit.errors import InputError
from ragkit.live.messages import (
    MAX_BROADCAST_BYTES,
    EnginesChanged,
    ExperimentResult,
    FollowUpQuestions,
    IndexingProgress,
    Response,
    ResponseContent,
    to_broadcast,
)
from ragkit.live.publisher import Publisher
from tests.server.live_server import ROOT
from tests.support.hub import DEADLINE_SECONDS, running

FOLLOW_UPS = {"type": "follow_up_questions", "questions": ["a", "b", "c"]}
RESULT = {"type": "experiment_result", "task_id": "t", "experiment": "e"}


def test_a_dict_and_a_struct_are_broadcast_alike(tmp_path: Path) -> None:
    with running() as hub:
        publisher = Publisher(server=hub.server, journal_folder=tmp_path)
        message = FOLLOW_UPS | {"questions": ["a", "b", "c"], "index": "handbook"}
        ragkit.broadcast(message, publisher=publisher)
        message["questions"] = []  # broadcast() has made a copy
        ragkit.broadcast(FollowUpQuestions(questions=["a", "b", "c"], index="handbook"), publisher=publisher)
        assert publisher.flush(DEADLINE_SECONDS)
        publisher.close()
        one, two = [event for _, _, event in hub.events]
    assert (one.questions, one.index, one.origin) == (two.questions, two.index, two.origin)
    assert one.questions == ["a", "b", "c"]
    assert one.origin.run_id
    assert one.time <= two.time


@pytest.mark.parametrize("has_server", [True, False], ids=["with a server", "without a server"])
def test_a_script_broadcasts_in_one_line_and_exits(tmp_path: Path, has_server: bool) -> None:
    with running() as hub:
        environment = os.environ | {
            "PYTHONPATH": str(ROOT), "RAGKIT_JOURNAL_DIR": str(tmp_path / "journal"),
            "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "RAGKIT_TOKEN": hub.token,
        }  # fmt: skip
        if has_server:
            environment["RAGKIT_URL"] = hub.server.url
        code = f"import ragkit; ragkit.broadcast({FOLLOW_UPS!r})"
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        events = [event.questions for _, _, event in hub.events]
    if has_server:
        assert events == [["a", "b", "c"]]
    else:
        (journal,) = (tmp_path / "journal").glob("*.jsonl")
        _hello, published = map(json.loads, journal.read_text().splitlines())
        assert published["event"]["questions"] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"type": "my_event", "x": 1}, "of type 'my_event'.*types are: .*follow_up_questions.*'row'"),
        ({"questions": ["a"]}, "needs a 'type'.*follow_up_questions"),
        ({"type": 7}, "no broadcast of type 7"),
        ({"type": "response", "content": {}}, "no broadcast of type 'response'"),
        (Response(content=ResponseContent(answer="", sources=[])), "no broadcast of type 'response'"),
        ("follow_up_questions", "a dict or a struct of ragkit.live.messages, not 'follow_up_questions'"),
        ({"type": "engines", "engines": []}, "Only the hub broadcasts 'engines'"),
        (EnginesChanged(engines=[]), "Only the hub broadcasts 'engines'"),
        ({"type": "follow_up_questions"}, "missing required field `questions`"),
        (FOLLOW_UPS | {"questions": "a"}, r"Expected `array`, got `str` - at `\$.questions`"),
        (FollowUpQuestions(questions="a"), r"Expected `array`, got `str` - at `\$.questions`"),  # type: ignore[arg-type]
        (FOLLOW_UPS | {"questions": [None]}, r"Expected `str`, got `null` - at `\$.questions\[0\]`"),
        (FOLLOW_UPS | {"indx": "i"}, "no key 'indx'. The keys are: .*index"),
        (
            {"type": "indexing_progress", "task_id": "t", "index": "i", "state": "runing"},
            r"'runing' - at `\$.state` \(a state is one of queued, running, done, failed, cancelled\)",
        ),
        (
            {"type": "indexing_progress", "task_id": "t", "index": "i", "state": "done",
             "failures": [{"source": "s", "reason": "r"}, {"source": "s", "reason": "r", "page": 3}]},
            "no key 'failures.1.page'",
        ),
        (RESULT | {"row": {"x": object()}}, "cannot be encoded as JSON: .*builtins.object"),
        (RESULT | {"row": {"x": np.zeros(3)}}, "cannot be encoded as JSON: .*numpy.ndarray"),
        (RESULT | {"row": {"x": "\ud800"}}, "cannot be encoded as JSON: .*surrogates"),
        (RESULT | {"row": {"x": "y" * MAX_BROADCAST_BYTES}}, "it has 8,3.* bytes; the limit is 8,323,072"),
    ],
)  # fmt: skip
def test_invalid_messages_are_rejected_and_the_error_names_the_key(message: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        ragkit.broadcast(message)


def test_a_row_that_is_too_deep_or_contains_itself_is_rejected() -> None:
    deep: Any = 1
    for _ in range(60):
        deep = {"deeper": deep}
    with pytest.raises(InputError, match="more than 50 levels"):
        to_broadcast(RESULT | {"row": deep})
    endless: dict[str, Any] = {}
    endless["again"] = endless
    with pytest.raises(InputError, match="cannot be encoded as JSON"):
        to_broadcast(ExperimentResult(task_id="t", experiment="e", row=endless))


def test_a_row_may_contain_numpy_scalars() -> None:
    values = {"mean": np.mean([0.25, 0.75]), "n": np.int64(3), "best": np.bool_(True), "half": np.float32(0.5)}
    event = to_broadcast(RESULT | {"row": values})
    assert isinstance(event, ExperimentResult)
    assert event.row == {"mean": 0.5, "n": 3, "best": True, "half": 0.5}
    assert [type(value) for value in event.row.values()] == [float, int, bool, float]


def test_the_largest_broadcast_is_not_too_large_for_its_publisher(tmp_path: Path) -> None:
    with running() as hub:
        publisher = Publisher(server=hub.server, journal_folder=tmp_path)
        empty = len(json.dumps(RESULT | {"row": {"x": ""}, "leaderboard": []}, separators=(",", ":")))
        ragkit.broadcast(RESULT | {"row": {"x": "y" * (MAX_BROADCAST_BYTES - empty)}}, publisher=publisher)
        assert publisher.flush(DEADLINE_SECONDS)
        publisher.close()
        assert publisher.counts.rejected == 0
        assert len(hub.events) == 1


def test_custom_progress_is_accepted() -> None:
    event = to_broadcast({"type": "indexing_progress", "task_id": "t", "index": "mine", "state": "running"})
    assert event == IndexingProgress(task_id="t", index="mine", state="running")
