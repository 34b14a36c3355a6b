"""``ragkit watch``: shows published events as progress bars and lines, or as JSON for a pipe."""

from __future__ import annotations

import contextlib
import datetime
import re
import sys
import time
from collections.abc import Collection, Iterable
from typing import Protocol, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from ragkit.live import messages
from ragkit.live.listener import Message, Subscription
from ragkit.terminal import one_line, printable

TYPES = frozenset(str(member.__struct_config__.tag) for member in messages.ListenerMessage.__args__)
"""The types of message that a listener can receive."""

PLAIN_SECONDS = 2.0  # between two lines about a task, when there are no bars
MAX_BARS = 30
MAX_FAILURES = 5
QUERY_ID = "ragkit-watch"

TaskProgress: TypeAlias = messages.IndexingProgress | messages.ExperimentProgress


class View(Protocol):
    """Shows messages: `Screen` or `JsonLines`."""

    def show(self, message: Message) -> None:
        """Show one message from the hub; called in the order of arrival."""
        ...


async def show_messages(
    subscription: Subscription, view: View, *, until: Collection[str] = (), question: str | None = None
) -> frozenset[str]:
    """Show messages until all types in ``until`` have arrived, or the subscription times out.

    Args:
        subscription: The source of the messages.
        view: Shows each message.
        until: Types of message to wait for; if empty, watch until the time-out.
        question: Asked on the socket as soon as an engine is available; the reply is shown like every other message.

    Returns:
        The types in ``until`` that did not arrive.

    Raises:
        ServerNotFoundError, AmbiguousServerError, ServerConnectionError: See `ragkit.live.listener.listen`.
    """
    missing = set(until)
    asker = _Asker(question) if question is not None else None
    async with contextlib.aclosing(subscription.messages()) as received:
        async for message in received:
            view.show(message)
            if asker is not None and asker.wants_to_ask(message):
                await subscription.send(asker.query)
            missing.difference_update(_types_in(message))
            if until and not missing:
                break
    return frozenset(missing)


def _types_in(message: Message) -> Iterable[str]:
    yield str(message.get("type"))
    if message.get("type") == "gap":  # it replaces events that the hub dropped for this listener
        snapshot = message.get("snapshot", {})
        yield from (str(task.get("type")) for task in snapshot.get("tasks", ()))
        if snapshot.get("follow_ups"):
            yield "follow_up_questions"


class _Asker:
    """Decides when to ask: at once and, if there is no engine, again when an engine is offered."""

    def __init__(self, question: str) -> None:
        self.query = messages.Query(content=messages.QueryContent(question=question), id=QUERY_ID)
        self._state = "new"  # new -> asked -> done, or asked -> waiting (for an engine) -> asked

    def wants_to_ask(self, message: Message) -> bool:
        kind, ours = message.get("type"), message.get("id") == QUERY_ID
        if kind == "snapshot" and self._state == "asked":  # a new connection: the old one's replies are lost
            self._state = "new"
        if ours and kind == "response":
            self._state = "done"
        elif ours and kind == "error":
            self._state = "waiting" if message["content"]["code"] == messages.ErrorCode.NO_ENGINE else "done"
        elif (kind == "snapshot" and self._state == "new") or (
            kind == "engines" and self._state == "waiting" and message["engines"]
        ):
            self._state = "asked"
            return True
        return False


# ----------------------------------------------------------------------------------------- JSON


class JsonLines(contextlib.nullcontext[None]):
    """Writes each message as one line of JSON, unbuffered. Raises BrokenPipeError if the reader has closed the pipe."""

    # JSON already escapes C0 control characters; some terminals also interpret these. They only occur inside strings.
    _UNSAFE = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

    def show(self, message: Message) -> None:
        text = self._UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", msgspec.json.encode(message).decode())
        sys.stdout.buffer.write(text.encode() + b"\n")
        sys.stdout.buffer.flush()


# ------------------------------------------------------------------------------------- terminal


class Screen:
    """Shows running tasks as progress bars, and everything else as lines above them.

    Without a terminal there are no bars; each task prints a line every two seconds instead.

    Args:
        console: The console to print to.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._is_terminal = console.is_terminal
        cut = {"no_wrap": True, "overflow": "ellipsis"}
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(ratio=2, **cut)),  # type: ignore[arg-type]
            BarColumn(bar_width=12),
            TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[current]}", markup=False, table_column=Column(ratio=2, **cut)),  # type: ignore[arg-type]
            console=console,
            expand=True,
            transient=True,
            disable=not self._is_terminal,
            refresh_per_second=4,
        )
        self._bars: dict[str, TaskID] = {}
        self._lines: dict[str, tuple[str, float]] = {}  # without bars: each task's last state, and when it was printed
        self._seen: tuple[str, int] = ("", -1)

    def __enter__(self) -> Screen:
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def show(self, message: Message) -> None:
        try:
            known: messages.ListenerMessage = msgspec.convert(message, messages.ListenerMessage)
        except msgspec.ValidationError:
            return  # a newer hub may send messages that this version does not know
        match known:
            case messages.Gap(snapshot=snapshot):
                self._print(UNSET, "Some events were missed. The current state:", style="yellow")
                self._show_snapshot(snapshot)
            case messages.Snapshot():
                self._show_snapshot(known)
            case _:
                self._show_one(known)
                if isinstance(epoch := getattr(known, "epoch", UNSET), str):
                    self._seen = (epoch, known.seq)  # type: ignore[union-attr, assignment]

    def _show_one(self, message: messages.ListenerMessage) -> None:
        match message:
            case messages.IndexingProgress() | messages.ExperimentProgress():
                self._show_task(message)
            case messages.FollowUpQuestions(questions=questions):
                of = f" after “{one_line(message.question)}”" if message.question else ""
                self._print(message.time, f"Follow-up questions{of} ({_who(message.origin)})", style="bold")
                for question in questions:
                    self._print(None, f"  • {one_line(question)}")
            case messages.EnginesChanged(engines=engines):
                self._show_engines(message.time, engines)
            case messages.ExperimentResult(experiment=name, row=row):
                values = ", ".join(f"{key} {value}" for key, value in row.items())
                self._print(message.time, f"{one_line(name)}: {one_line(values)} ({_who(message.origin)})")
            case messages.Response(content=content):
                self._print(UNSET, "Answer", style="bold")
                self._print(None, printable(content.answer))
                for source in content.sources:
                    place = source.heading or source.title
                    self._print(None, f"  [{source.number}] {one_line(place)}  ({one_line(source.source)})")
            case messages.Error(content=content):
                self._print(UNSET, f"{content.code}: {one_line(content.message)}", style="red")

    def _show_snapshot(self, snapshot: messages.Snapshot) -> None:
        self._show_engines(UNSET, snapshot.engines)
        for task in set(self._bars) - {task.task_id for task in snapshot.tasks}:
            self._remove_bar(task)  # it ended while we were disconnected, or the hub's history was reset
        for item in (*snapshot.tasks, *snapshot.follow_ups):
            running = not isinstance(item, messages.FollowUpQuestions) and item.state not in messages.TERMINAL
            if running or self._is_new(item):
                self._show_one(item)
        self._seen = (snapshot.epoch, snapshot.seq)

    def _is_new(self, item: messages.Broadcast) -> bool:
        epoch, seq = self._seen
        return item.epoch != epoch or isinstance(item.seq, UnsetType) or item.seq > seq

    def _show_engines(self, when: str | UnsetType, engines: list[messages.Engine]) -> None:
        if not engines:
            self._print(when, "No engine is on offer.", style="dim")
        for engine in engines[:10]:
            about = f"{engine.documents} documents, {one_line(engine.llm)}, {_who(engine.origin)}"
            self._print(when, f"Engine on offer: {one_line(engine.index)} ({about})", style="dim")

    def _show_task(self, task: TaskProgress) -> None:
        if task.state in messages.TERMINAL:
            self._remove_bar(task.task_id)
            self._lines.pop(task.task_id, None)
            style = {"done": "green", "failed": "red"}.get(task.state, "yellow")
            why = f": {one_line(task.message)}" if task.message else ""
            self._print(task.time, f"{_label(task)} {task.state}, {_figures(task)}{why}", style=style)
            failures = task.failures if isinstance(task, messages.IndexingProgress) else []
            for failure in failures[:MAX_FAILURES]:
                self._print(None, f"  failed: {one_line(failure.source)}: {one_line(failure.reason)}", style="yellow")
            if isinstance(task, messages.IndexingProgress) and task.failures_total > MAX_FAILURES:
                self._print(None, f"  … and {task.failures_total - MAX_FAILURES} more", style="yellow")
        elif self._is_terminal:
            self._show_bar(task)
        else:
            state, printed_at = self._lines.get(task.task_id, ("", 0.0))
            if state != task.state or time.monotonic() - printed_at > PLAIN_SECONDS:
                self._lines[task.task_id] = (task.state, time.monotonic())
                self._print(task.time, f"{_label(task)} {task.state}, {_figures(task)}")

    def _show_bar(self, task: TaskProgress) -> None:
        if task.task_id not in self._bars:
            if len(self._bars) == MAX_BARS:
                self._remove_bar(next(iter(self._bars)))
            self._bars[task.task_id] = self._progress.add_task("", figures="", current="")
        done, total = (
            (task.chunks_done, task.chunks_total)
            if isinstance(task, messages.IndexingProgress)
            else (task.cells_done, task.cells_total)
        )
        current = task.current_document if isinstance(task, messages.IndexingProgress) else None
        self._progress.update(
            self._bars[task.task_id],
            description=_label(task),
            completed=done,
            total=total,
            figures=_figures(task) if task.state == "running" else task.state,
            current=one_line(current or ""),
        )

    def _remove_bar(self, task_id: str) -> None:
        if (bar := self._bars.pop(task_id, None)) is not None:
            self._progress.remove_task(bar)

    def _print(self, when: str | UnsetType | None, text: str, *, style: str = "") -> None:
        # Text, not str: rich would read [brackets] as markup.
        prefix = "" if when is None else f"{_clock(when)}  "
        self._console.print(Text.assemble((prefix, "dim"), (text, style)), soft_wrap=True, highlight=False)


def _clock(when: str | UnsetType) -> str:
    with contextlib.suppress(ValueError, OverflowError):  # OverflowError: the year 1 or 9999 in another time zone
        if isinstance(when, str):
            return f"{datetime.datetime.fromisoformat(when).astimezone():%H:%M:%S}"
    return f"{datetime.datetime.now():%H:%M:%S}"


def _who(origin: messages.Origin | UnsetType) -> str:
    return "unknown" if isinstance(origin, UnsetType) else f"{origin.kind} {one_line(origin.name)}"


def _label(task: TaskProgress) -> str:
    name = f"Indexing {task.index}" if isinstance(task, messages.IndexingProgress) else task.experiment
    return f"{one_line(name)} ({_who(task.origin)})"


def _figures(task: TaskProgress) -> str:
    if isinstance(task, messages.ExperimentProgress):
        parts = [f"results {_of(task.cells_done, task.cells_total)}"]
    else:
        parts = [
            f"documents {_of(task.documents_done, task.documents_total)}",
            f"passages {_of(task.chunks_done, task.chunks_total)}",
        ]
        if task.rate is not None:
            parts.append(f"{task.rate:.0f}/s")
        if task.failures_total:
            parts.append(f"{task.failures_total} failed")
    if task.eta_seconds and task.state not in messages.TERMINAL:
        parts.append(f"{_duration(task.eta_seconds)} left")
    return ", ".join(parts)


def _of(done: int, total: int | None) -> str:
    return f"{done}/{'?' if total is None else total}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(min(seconds, 3.6e6)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
