"""The Python side of the widget: without a server, without a browser, and its saved state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ragkit import ScriptedLLM
from ragkit.engine.engine import RAGEngine
from ragkit.live.messages import (
    ExperimentProgress,
    ExperimentResult,
    FollowUpQuestions,
    IndexingProgress,
    decode_listener_message,
)
from ragkit.live.publisher import Publisher
from ragkit.widgets import Live
from tests.engine.test_engine import QUESTION, make
from tests.server.live_server import ROOT
from tests.support.corpora import write_pages
from tests.support.hub import eventually
from tests.support.lab import SETUP

HOSTILE = "<script>alert(1)</script>"


class RecordingLive(Live):
    """A widget that stores the messages to the browser, and receives messages from the test."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.sent: list[Any] = []
        super().__init__(*args, **options)

    def send(self, content: Any, buffers: Any = None) -> None:
        self.sent.append(content)

    def receive(self, **content: Any) -> None:
        self._handle_custom_msg(content, [])

    def ask(self, question: str, **keys: Any) -> None:
        self.receive(kind="message", message={"type": "query", "content": {"question": question}} | keys)

    def messages(self, *types: str) -> list[Any]:
        """Return the sent messages of these types (default: all), after validating them."""
        found = [content["message"] for content in self.sent if content["kind"] == "message"]
        for message in found:
            decode_listener_message(json.dumps(message))
        return [message for message in found if not types or message["type"] in types]


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    """A publisher that finds no server."""
    publisher = Publisher(journal_folder=tmp_path / "journal", exit_timeout_seconds=0.1)
    yield publisher
    publisher.close(1)


@pytest.fixture
def engine(tmp_path: Path, publisher: Publisher) -> RAGEngine:
    engine = make(tmp_path, publisher)
    engine.index(write_pages(tmp_path / "docs"))
    return engine


def test_a_browser_gets_a_snapshot_and_then_events(publisher: Publisher, tmp_path: Path) -> None:
    live = RecordingLive(publisher=publisher)
    publisher.publish(IndexingProgress(task_id="t", index="i", state="running", chunks_done=1, chunks_total=4))
    publisher.publish(ExperimentResult(task_id="x", experiment="e", row={"nDCG@10": 0.5}))
    eventually(lambda: live._current().results)
    assert live.sent == [], "the browser has not asked for events yet"
    live.receive(kind="listen")
    assert live.sent[0] == {"kind": "attached"}
    (snapshot,) = live.messages()
    assert [(task["index"], task["chunks_done"]) for task in snapshot["tasks"]] == [("i", 1)]
    assert snapshot["results"][0]["row"] == {"nDCG@10": 0.5}
    publisher.publish(FollowUpQuestions(questions=["Why?"]))
    (event,) = eventually(lambda: live.messages("follow_up_questions"))
    assert event["questions"] == ["Why?"]
    assert event["origin"]["run_id"]
    assert event["time"]
    live.close()
    publisher.publish(FollowUpQuestions(questions=["And now?"]))
    assert publisher.flush()
    assert len(live.messages("follow_up_questions")) == 1


def test_without_a_server_the_widgets_engine_answers(engine: RAGEngine) -> None:
    live = RecordingLive(engine)
    live.receive(kind="listen")
    assert live.messages("snapshot")[0]["engines"][0]["index"] == engine.document_index.name
    live.ask(QUESTION, id="q")
    (response,) = eventually(lambda: live.messages("response"))
    assert response["id"] == "q"
    assert "1.2" in response["content"]["answer"]
    assert response["content"]["sources"][0]["document_id"] == "bm25.md"
    assert "".join(m["content"]["delta"] for m in live.messages("response_delta"))
    (follow_ups,) = eventually(lambda: live.messages("follow_up_questions"))
    assert follow_ups["request_id"] == "q"
    live.ask("  ", id="empty")
    (error,) = eventually(lambda: live.messages("error"))
    assert (error["id"], error["content"]["code"]) == ("empty", "EMPTY_QUESTION")
    live.close()


def test_an_answer_can_be_cancelled(tmp_path: Path, publisher: Publisher) -> None:
    engine = make(tmp_path, publisher, llm=ScriptedLLM(["word "] * 10_000, delay_seconds=0.01))
    engine.index(write_pages(tmp_path / "docs"))
    live = RecordingLive(engine)
    live.ask(QUESTION, id="q")
    eventually(lambda: live.messages("response_delta"))
    live.receive(kind="message", message={"type": "cancel", "id": "q"})
    (error,) = eventually(lambda: live.messages("error"))
    assert error["content"]["code"] == "CANCELLED"
    live.close()


def test_without_an_engine_the_error_explains_how_to_pass_one(publisher: Publisher) -> None:
    live = RecordingLive(publisher=publisher)
    live.ask(QUESTION, id="q")
    (error,) = live.messages("error")
    assert error["content"]["code"] == "NO_ENGINE"
    assert "Live(engine)" in error["content"]["message"]
    live.close()


@pytest.mark.parametrize("message", [None, 7, {}, {"type": "nonsense"}, {"type": "query", "content": "?"}])
def test_an_invalid_message_gets_an_error(publisher: Publisher, message: Any) -> None:
    live = RecordingLive(publisher=publisher)
    live.receive(kind="message", message=message)
    (error,) = live.messages()
    assert error["content"]["code"] == "INVALID_MESSAGE"
    live.receive(kind=message)
    live._handle_custom_msg(message, [])
    live.close()


def test_the_question_answer_and_follow_up_can_be_observed(publisher: Publisher) -> None:
    live = Live(publisher=publisher)
    seen: list[Any] = []
    live.observe(lambda change: seen.append((change["name"], change["new"])), ["question", "answer", "follow_up"])
    live.set_state({"question": "Why?", "answer": {"answer": "So. [1]", "sources": []}, "follow_up": "And?"})
    assert dict(seen) == {"question": "Why?", "answer": {"answer": "So. [1]", "sources": []}, "follow_up": "And?"}
    assert live.answer["answer"] == "So. [1]"
    live.close()


def test_views_are_validated(publisher: Publisher) -> None:
    assert Live(publisher=publisher, views=["experiments"]).views == ["experiments"]
    with pytest.raises(ValueError, match="activity, ask, experiments"):
        Live(publisher=publisher, views=["acitvity"])
    with pytest.raises(ValueError, match="views are"):
        Live(publisher=publisher, views=[])


def test_its_state_is_bounded_and_its_summary_is_text(publisher: Publisher) -> None:
    live = Live(publisher=publisher)
    for number in range(500):
        publisher.publish(IndexingProgress(task_id=f"{number}", index=f"i{number}", state="done", chunks_done=1))
        publisher.publish(ExperimentProgress(task_id=f"{number}", experiment="e", state="running"))
        publisher.publish(ExperimentResult(task_id=f"{number}", experiment="e", row={}))
        publisher.publish(FollowUpQuestions(questions=[HOSTILE], question=f"{HOSTILE}{number}"))
    failed = IndexingProgress(task_id="f", index=HOSTILE, state="failed", failures_total=2, message="\x1b[2J disk full")
    publisher.publish(failed)
    assert publisher.flush()
    snapshot = live._current()
    assert len(snapshot.results) == 5
    assert len(snapshot.follow_ups) == 5
    assert sum(task.state == "done" for task in snapshot.tasks) < 20
    summary = live._summary()
    assert HOSTILE not in summary["text/html"]
    assert "&lt;script&gt;" in summary["text/html"]
    assert "\x1b" not in summary["text/plain"]
    assert "2 files failed: " in summary["text/plain"]
    live.close()


def test_a_broken_watcher_does_not_prevent_delivery(publisher: Publisher, caplog: pytest.LogCaptureFixture) -> None:
    was_called = threading.Event()

    def fails(_event: object) -> None:
        was_called.set()
        raise ValueError("broken watcher")

    publisher.watchers.append(fails)
    publisher.publish(FollowUpQuestions(questions=["Why?"]))
    assert publisher.flush()
    assert was_called.is_set()
    assert "broken watcher" in caplog.text
    assert publisher.counts.journalled + publisher.counts.acknowledged == 1


# ---------------------------------------------------------------------------------- without a browser

CELLS = [
    SETUP,
    "live = Live(engine)\nlive",
    'engine.index("docs")',
    f'answer = engine.ask("{QUESTION}"); answer.follow_ups()',
]


@pytest.mark.parametrize("how", ["papermill", "nbconvert"])
def test_a_batch_run_saves_a_summary(tmp_path: Path, how: str) -> None:
    write_pages(tmp_path / "docs")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    command = {
        "papermill": ["papermill", "in.ipynb", "out.ipynb"],
        "nbconvert": ["nbconvert", "--to", "notebook", "--execute", "in.ipynb", "--output", "out.ipynb"],
    }[how]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAGKIT_JOURNAL_DIR": str(tmp_path / "journal")}
    environment |= {"JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (output,) = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells[1].outputs
    assert set(output.data) == {"text/plain", "text/html"}, "no widget output, which a saved notebook cannot display"
    assert "Indexing index: done" in output.data["text/plain"]
    assert "Follow-up questions" in output.data["text/html"]
    html = subprocess.run(
        [sys.executable, "-m", "nbconvert", "--to", "html", "--stdout", "out.ipynb"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    assert "Indexing index: done" in html.stdout
