"""The notebook widget: what goes on, and a place to ask, under a cell.

    from ragkit.widgets import Live
    live = Live(engine)
    live            # the last line of a cell shows it
    live.answer     # what was last asked there, and live.follow_up the question that was clicked

The browser's half (``static/widget.js``, made from ``frontend/src/widget.ts``) listens to the socket by itself, so
the view goes on while a cell runs. Where the page reaches no Jupyter server (VS Code, Colab) it asks this half,
which tells what this process does and lets ``engine`` answer. Where there is no browser at all (papermill,
nbconvert) the output is a summary that is kept up to date while the notebook runs.
"""

from __future__ import annotations

import html
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ragkit.errors import needs
from ragkit.live import messages
from ragkit.live.origin import is_run_without_browser
from ragkit.live.publisher import Publisher, default_publisher
from ragkit.live.serving import Reply, answer
from ragkit.live.snapshot import SnapshotState
from ragkit.terminal import printable

with needs("anywidget", extra="lab"):
    import anywidget
    import traitlets

if TYPE_CHECKING:
    from ragkit.engine.engine import RAGEngine

__all__ = ["Live"]

VIEWS = ("activity", "ask", "experiments")
EVERY_SECONDS = 1.0  # between two states that are saved with the notebook
FLUSH_SECONDS = 2.0
NOTHING = "ragkit: nothing has run yet."

_STATIC = Path(__file__).with_name("static")


class Live(anywidget.AnyWidget):
    """Live activity of every notebook and run, and questions to the engine, under a cell.

    Args:
        engine: Answers where the page reaches no server; elsewhere the engines on offer do (`RAGEngine.serve`).
        views: Which of ``"activity"``, ``"ask"`` and ``"experiments"``, in this order.
        language: Of the widget's own words, as ``"fr"``; the page's if empty.
        publisher: Whose events are told where there is no server; the process's by default.

    Attributes:
        question: What was last asked in the widget and answered.
        answer: Its answer: the ``content`` of a `response` message, with ``answer`` and ``sources``.
        follow_up: The suggested question that was last clicked.

    All three can be observed: ``live.observe(print, "answer")``.

    Raises:
        ValueError: There is no such view.
    """

    _esm = _STATIC / "widget.js"
    _css = _STATIC / "widget.css"

    views = traitlets.List(traitlets.Enum(VIEWS)).tag(sync=True)
    language = traitlets.Unicode("").tag(sync=True)
    question = traitlets.Unicode("").tag(sync=True)
    answer = traitlets.Dict().tag(sync=True)
    follow_up = traitlets.Unicode("").tag(sync=True)
    _snapshot = traitlets.Dict().tag(sync=True)

    def __init__(
        self,
        engine: RAGEngine | None = None,
        *,
        views: Sequence[str] = ("activity", "ask"),
        language: str = "",
        publisher: Publisher | None = None,
    ) -> None:
        if unknown := set(views) - set(VIEWS) or (not views and {"none"}):
            raise ValueError(f"views are {', '.join(VIEWS)}, not {', '.join(sorted(unknown))}.")
        self._engine = engine
        self._publisher = publisher or (engine.publisher if engine is not None else default_publisher())
        # Less than a server keeps: it is saved with the notebook.
        self._state = SnapshotState(max_live_tasks=100, max_follow_ups=5, max_results=5)
        self._seq = 0
        self._saved_at = 0.0
        self._listens = False
        self._lock = threading.RLock()  # around what becomes the state and what is told of it, in one order
        self._refresh: Any = None
        self._replies: dict[str, Reply] = {}
        super().__init__(views=list(views), language=language)
        self.on_msg(self._receive)
        self._publisher.watchers.append(self._take)

    def close(self) -> None:
        """Take the widget off its page, and watch no more."""
        publisher: Publisher | None = vars(self).get("_publisher")  # ipywidgets closes what was never made, too
        if publisher is not None and self._take in publisher.watchers:
            publisher.watchers.remove(self._take)
        if vars(self).get("_refresh") is not None:
            from IPython import get_ipython

            get_ipython().events.unregister("post_run_cell", self._refresh)
            self._refresh = None
        super().close()

    # ------------------------------------------------------------------------ what this process does

    def _take(self, event: messages.Broadcast) -> None:
        """Take one event in; called in the publisher's thread."""
        encoded = messages.encode(event)  # raises, and changes nothing, for what is no message
        with self._lock:
            self._seq += 1
            self._state.apply(event, size=len(encoded))
            if self._listens:
                self.send({"kind": "message", "message": msgspec.json.decode(encoded)})
        now = time.monotonic()
        ended = getattr(event, "state", "") in messages.TERMINAL or isinstance(event, messages.FollowUpQuestions)
        if ended or now - self._saved_at >= EVERY_SECONDS:
            self._saved_at = now
            self._snapshot = _plain(self._current())

    def _current(self) -> messages.Snapshot:
        with self._lock:
            return self._state.snapshot(epoch="kernel", seq=self._seq)

    def _send_message(self, message: msgspec.Struct) -> None:
        self.send({"kind": "message", "message": _plain(message)})

    # -------------------------------------------------------------------------- where no server is

    def _receive(self, _widget: object, content: Any, _buffers: object) -> None:
        """Act upon what the browser says."""
        kind = content.get("kind") if isinstance(content, dict) else None
        if kind == "unlisten":
            self._listens = False
        elif kind == "listen":
            self._state.engines = [self._engine.describe()] if self._engine is not None else []
            with self._lock:
                self._listens = True
                self.send({"kind": "attached"})
                self._send_message(self._current())
        elif kind == "message":
            try:
                message = msgspec.convert(content.get("message"), messages.ClientMessage)
            except msgspec.ValidationError as problem:
                given = content.get("message")
                id = given.get("id") if isinstance(given, dict) else None
                id = id if isinstance(id, str) and 0 < len(id) <= 128 else ""
                self._send_message(_error(messages.ErrorCode.INVALID_MESSAGE, f"{problem}.", id))
                return
            self._act(message)

    def _act(self, message: messages.ClientMessage) -> None:
        if isinstance(message, messages.Cancel):
            if (reply := self._replies.get(message.id)) is not None:
                reply.cancel()
            else:
                unknown = "No question with this id is being answered; it may have just ended."
                self._send_message(_error(messages.ErrorCode.UNKNOWN_REQUEST, unknown, message.id))
        elif isinstance(message, messages.Query):
            id = message.id if isinstance(message.id, str) else "query"
            if self._engine is None:
                advice = (
                    "This page reaches no Jupyter server with ragkit. Make the widget with the engine: Live(engine)."
                )
                self._send_message(_error(messages.ErrorCode.NO_ENGINE, advice, id))
                return
            # A thread: cells can be run meanwhile, and between cells Stop is heard.
            reply = self._replies[id] = Reply(id, self._send_message)
            work = partial(self._answer, self._engine, message.content, reply)
            threading.Thread(target=work, name="ragkit-answer", daemon=True).start()

    def _answer(self, engine: RAGEngine, content: messages.QueryContent, reply: Reply) -> None:
        try:
            answer(engine.answer_query, content, reply, index=engine.document_index.name)
        finally:
            self._replies.pop(reply.id, None)

    # ---------------------------------------------------------------------------- where no browser is

    def _ipython_display_(self) -> None:
        from IPython import get_ipython
        from IPython.display import display

        if not is_run_without_browser():
            data, metadata = super()._repr_mimebundle_() or ({}, {})
            display(data | self._summary(), metadata=metadata, raw=True)  # type: ignore[no-untyped-call]
            return
        handle: Any = display(self._summary(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

        def refresh(_result: object) -> None:
            self._publisher.flush(FLUSH_SECONDS)  # what this cell did has been told by now
            handle.update(self._summary(), raw=True)

        # Not from the publisher's thread: executors drop what does not belong to the cell that runs.
        self._refresh = refresh
        get_ipython().events.register("post_run_cell", refresh)

    def _summary(self) -> dict[str, str]:
        lines = list(_summary_lines(self._current()))
        if not lines:
            return {"text/plain": NOTHING, "text/html": f"<p>{NOTHING}</p>"}
        items = "".join(f"<li>{html.escape(line)}</li>" for line in lines)
        return {"text/plain": printable("\n".join(lines)), "text/html": f"<ul>{items}</ul>"}


def _summary_lines(snapshot: messages.Snapshot) -> Iterator[str]:
    for task in snapshot.tasks:
        failed = ""
        if isinstance(task, messages.IndexingProgress):
            what, done, total, unit = f"Indexing {task.index}", task.chunks_done, task.chunks_total, "passages"
            failed = f", {task.failures_total} files failed" if task.failures_total else ""
        else:
            what, done, total, unit = f"Experiment {task.experiment}", task.cells_done, task.cells_total, "cells"
        of = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        yield f"{what}: {task.state}, {of} {unit}{failed}{f': {task.message}' if task.message else ''}"
    for event in snapshot.follow_ups:
        asked = f" after “{event.question}”" if isinstance(event.question, str) else ""
        yield f"Follow-up questions{asked}: {' · '.join(event.questions)}"


def _plain(message: msgspec.Struct) -> Any:
    """The message as JSON's types."""
    return msgspec.json.decode(messages.encode(message))


def _error(code: messages.ErrorCode, message: str, id: str = "") -> messages.Error:
    return messages.Error(content=messages.ErrorContent(code=code, message=message), id=id or msgspec.UNSET)
