"""The notebook widget: shows live activity and answers questions below a cell.

    from ragkit.widgets import Live
    live = Live(engine)
    live            # the last line of a cell displays the widget
    live.answer     # the last answer; live.follow_up is the suggested question that was clicked

The JavaScript side (``static/widget.js``, built from ``frontend/src/widget.ts``) connects to the socket itself, so the
view is updated while a cell runs. If the page cannot reach the Jupyter server (VS Code, Colab), it connects to the
Python side, which sends the events of this process and answers with ``engine``. Without a browser (papermill,
nbconvert), the output is a summary that is updated while the notebook runs.
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
EVERY_SECONDS = 1.0  # between two updates of the state that is saved with the notebook
FLUSH_SECONDS = 2.0
NOTHING = "ragkit: nothing has run yet."

_STATIC = Path(__file__).with_name("static")


class Live(anywidget.AnyWidget):
    """Shows the activity of all notebooks and runs, and lets the user ask questions, below a cell.

    Args:
        engine: Answers questions if the page cannot reach the server. Otherwise the engines on offer answer
            (`RAGEngine.serve`).
        views: The views to show, in this order, out of ``"activity"``, ``"ask"`` and ``"experiments"``.
        language: The language of the widget's texts, such as ``"fr"``; if empty, that of the page.
        publisher: The publisher whose events are shown without a server; the process's publisher by default.

    Attributes:
        question: The last question that was asked in the widget and answered.
        answer: Its answer: the ``content`` of a `response` message, with ``answer`` and ``sources``.
        follow_up: The suggested question that was clicked last.

    All three can be observed: ``live.observe(print, "answer")``.

    Raises:
        ValueError: A view is unknown, or there are no views.
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
            raise ValueError(f"views are some of {', '.join(VIEWS)}, not {', '.join(sorted(unknown))}.")
        self._engine = engine
        self._publisher = publisher or (engine.publisher if engine is not None else default_publisher())
        # Fewer than the hub keeps, because the state is saved with the notebook.
        self._state = SnapshotState(max_live_tasks=100, max_follow_ups=5, max_results=5)
        self._seq = 0
        self._saved_at = 0.0
        self._listens = False
        self._lock = threading.RLock()  # keeps changes of the state and messages about them in the same order
        self._refresh: Any = None
        self._replies: dict[str, Reply] = {}
        super().__init__(views=list(views), language=language)
        self.on_msg(self._receive)
        self._publisher.watchers.append(self._take)

    def close(self) -> None:
        """Remove the widget from the page and stop watching events."""
        publisher: Publisher | None = vars(self).get("_publisher")  # absent if __init__ has failed
        if publisher is not None and self._take in publisher.watchers:
            publisher.watchers.remove(self._take)
        if vars(self).get("_refresh") is not None:
            from IPython import get_ipython

            get_ipython().events.unregister("post_run_cell", self._refresh)
            self._refresh = None
        super().close()

    # ------------------------------------------------------------------------ events of this process

    def _take(self, event: messages.Broadcast) -> None:
        """Apply one event to the state; called in the publisher's thread."""
        encoded = messages.encode(event)  # first, because it raises an error for an invalid message
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

    # -------------------------------------------------------------------------- without a server

    def _receive(self, _widget: object, content: Any, _buffers: object) -> None:
        """Handle a message from the browser."""
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
                    "This page cannot reach a Jupyter server with ragkit. Pass the engine to the widget: Live(engine)."
                )
                self._send_message(_error(messages.ErrorCode.NO_ENGINE, advice, id))
                return
            # In a thread, so that cells can run meanwhile, and a cancel message can be handled between cells.
            reply = self._replies[id] = Reply(id, self._send_message)
            work = partial(self._answer, self._engine, message.content, reply)
            threading.Thread(target=work, name="ragkit-answer", daemon=True).start()

    def _answer(self, engine: RAGEngine, content: messages.QueryContent, reply: Reply) -> None:
        try:
            answer(engine.answer_query, content, reply, index=engine.document_index.name)
        finally:
            self._replies.pop(reply.id, None)

    # ---------------------------------------------------------------------------- without a browser

    def _ipython_display_(self) -> None:
        from IPython import get_ipython
        from IPython.display import display

        if not is_run_without_browser():
            data, metadata = super()._repr_mimebundle_() or ({}, {})
            display(data | self._summary(), metadata=metadata, raw=True)  # type: ignore[no-untyped-call]
            return
        handle: Any = display(self._summary(), raw=True, display_id=True)  # type: ignore[no-untyped-call]

        def refresh(_result: object) -> None:
            self._publisher.flush(FLUSH_SECONDS)  # wait until the events of this cell are in the state
            handle.update(self._summary(), raw=True)

        # Not in the publisher's thread: executors drop output that does not belong to the running cell.
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
            what, done, total, unit = f"Experiment {task.experiment}", task.cells_done, task.cells_total, "results"
        of = f"{done:,}" if total is None else f"{done:,} of {total:,}"
        yield f"{what}: {task.state}, {of} {unit}{failed}{f': {task.message}' if task.message else ''}"
    for event in snapshot.follow_ups:
        after = f" after “{event.question}”" if isinstance(event.question, str) else ""
        yield f"Follow-up questions{after}: {' · '.join(event.questions)}"


def _plain(message: msgspec.Struct) -> Any:
    """Convert a message to JSON types."""
    return msgspec.json.decode(messages.encode(message))


def _error(code: messages.ErrorCode, message: str, id: str = "") -> messages.Error:
    return messages.Error(content=messages.ErrorContent(code=code, message=message), id=id or msgspec.UNSET)
