"""Sweeps: one notebook under papermill for each cell of a grid of parameters, each a run of the store.

A cell is a process of its own, ``python -m ragkit.runs.worker FOLDER``, which executes the copy of the notebook in the
run's
folder in place. Its standard input is a pipe from the process that sweeps; when that closes, the notebook is to stop.
So it stops when the sweep is killed, too, and nothing else is ever signalled. What its processes print is in
``log.txt`` beside it.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ragkit.errors import InputError, OperationCancelled, require_count
from ragkit.files import replacing
from ragkit.hashing import hash_path
from ragkit.live.experiment_events import ExperimentEvents
from ragkit.live.messages import TaskState
from ragkit.live.publisher import Publisher, default_publisher
from ragkit.runs.notebook import ParameterizedNotebook, grid
from ragkit.runs.run import Run, RunInfo
from ragkit.runs.store import RunStore

if TYPE_CHECKING:
    import pandas as pd

POLL_SECONDS = 0.1
GRACE_SECONDS = 20.0  # for a kernel to be shut down, before it is killed
MAX_PUBLISHED_COLUMNS = 40
_MAX_LOG = 4_000


def sweep(
    notebook: str | Path,
    parameters: Mapping[str, Any],
    *,
    max_concurrency: int = 1,
    store: RunStore | str | Path | None = None,
    kernel_name: str | None = None,
    timeout_seconds: float | None = None,
    data: Iterable[str | Path] = (),
    rerun: bool = False,
    cwd: str | Path | None = None,
    publisher: Publisher | None = None,
    on_row: Callable[[int, dict[str, Any]], object] | None = None,
) -> pd.DataFrame:
    """Run a notebook once for every combination of parameters, and collect what each records.

    Progress and rows go out on the socket. A notebook that fails does not stop the others. An interrupt stops the
    notebooks that run; those that are done are kept, and the same call goes on from there: a cell is not run again if
    the store has a run of it that is done, with the same code cells, parameters, kernel and ``data``. Modules that the
    notebook imports, and files that ``data`` does not name, are not looked at: ``rerun`` when they have changed.

    Args:
        notebook: Its file; a cell of it is tagged "parameters". It is read once, and not changed.
        parameters: Name -> values to try (a single value stands for itself). The last varies fastest.
        max_concurrency: Notebooks at a time.
        store: Where the runs go; `RunStore()` by default.
        kernel_name: Default: the notebook's.
        timeout_seconds: For each notebook, from its start; None for no limit.
        data: Files and folders whose contents the runs depend on; their digests are kept with the runs.
        rerun: Whether to run cells again that are done.
        cwd: Where the notebooks run; default: the notebook's folder, as in JupyterLab.
        publisher: Who tells the socket; one for the whole process by default.
        on_row: Called with a cell's number (from 0, in the grid's order) and its row whenever its state changes:
            "queued", "running", and how it ended.

    Returns:
        A row a cell, in the grid's order: run, name, state, seconds, parameters, recorded values, and of what failed
        ``error``, ``message`` and ``traceback``.

    Raises:
        InputError: There is no such notebook or kernel, the notebook has no such parameter, or a value cannot be one.
            Nothing was run.
        MissingExtraError: papermill is not installed.
        SourceNotFoundError: Something in ``data`` is not there.
        RagkitError: The store cannot be written.
    """
    require_count("max_concurrency", max_concurrency)
    if timeout_seconds is not None and timeout_seconds <= 0:
        raise InputError(f"timeout_seconds must be more than 0, not {timeout_seconds:g}.")
    book = ParameterizedNotebook(notebook, kernel_name=kernel_name)
    cells = grid(parameters)
    book.check(cells[0])
    folder = Path(cwd).expanduser().absolute() if cwd is not None else book.path.parent
    if not folder.is_dir():
        raise InputError(f"There is no folder '{folder}' to run the notebook in. Make it, or give another cwd.")
    digests = {str(path): hash_path(path) for path in data}
    store = store if isinstance(store, RunStore) else RunStore(store)
    show = _Reporter(
        book.path.stem,
        cells,
        max_concurrency=max_concurrency,
        publisher=publisher or default_publisher(),
        on_row=on_row,
    )

    keys = [book.key(cell, digests) for cell in cells]
    done = {} if rerun else {info.settings.get("key"): info for info in store.list() if info.state == "done"}
    waiting = []
    for at, key in enumerate(keys):
        if key in done:
            show.ended(at, done[key], is_kept=True)
        else:
            waiting.append(at)
            show.row(at, {**cells[at], "state": "queued"})
    running: dict[int, _Child] = {}
    try:
        show.progress("running")
        while waiting or running:
            while waiting and len(running) < max_concurrency:
                at = waiting.pop(0)
                run = store.create(
                    name=book.path.stem,
                    kind="sweep",
                    parameters=cells[at],
                    settings={
                        "sweep": show.id, "key": keys[at], "notebook": str(book.path), "kernel_name": book.kernel_name,
                        "cwd": str(folder), "defaults": book.defaults,
                    },
                    seeds={k: v for k, v in (book.defaults | cells[at]).items() if "seed" in k.lower()},
                    data=digests,
                    folder=book.path.parent,
                )  # fmt: skip
                with replacing(run.path / "notebook.ipynb") as copy:
                    copy.write_text(book.text, encoding="utf-8")
                running[at] = _Child(run, timeout_seconds=timeout_seconds)
                show.row(at, run.info.row())
            time.sleep(POLL_SECONDS)
            for at in [at for at, child in running.items() if child.has_ended()]:
                show.ended(at, running.pop(at).run.info)
    except BaseException as error:
        _stop(list(running.values()))
        for at, child in running.items():
            show.ended(at, child.run.info)
        is_wanted = isinstance(error, KeyboardInterrupt | OperationCancelled)
        show.progress("cancelled" if is_wanted else "failed", str(error) or type(error).__name__)
        raise
    show.finish()
    return store.to_frame(show.infos()).drop(columns=["kind", "started"])


# ------------------------------------------------------------------------------------ processes


class _Child:
    """One notebook in a process of its own."""

    def __init__(self, run: Run, *, timeout_seconds: float | None) -> None:
        self.run = run
        self._limit = timeout_seconds
        self._ends = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._reason: str | None = None
        with (run.path / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ragkit.runs.worker", str(run.path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,  # Ctrl-C is the sweep's to pass on
                env=os.environ | {"RAGKIT_RUN": str(run.path), "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
            )

    def has_ended(self) -> bool:
        """Look whether it has; also ends what has had its time."""
        status = self._process.poll()
        if status is None and time.monotonic() > self._ends:
            if self._reason is None:
                self.stop(f"It was not done after {self._limit:g} seconds.")
            else:
                self.kill()
        if status is not None:
            self._settle(status)
            self.stop()  # lets go of the pipe
        return status is not None

    def stop(self, reason: str = "") -> None:
        """Ask it to end: as failed for a reason, else as cancelled."""
        if self._reason is None and self._process.stdin is not None:
            self._reason, self._ends = reason, time.monotonic() + GRACE_SECONDS
            with contextlib.suppress(OSError):  # it has ended
                self._process.stdin.write(reason.encode())
            self._process.stdin.close()

    def kill(self) -> None:
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def _settle(self, status: int) -> None:
        """Say how the run ended, if its process could not."""
        if self.run.info.state == "running":
            log = (self.run.path / "log.txt").read_text(encoding="utf-8", errors="replace")[-_MAX_LOG:]
            if self._reason:
                self.run.finish("failed", error="TimeoutError", message=self._reason, traceback=log)
            elif self._reason is not None:
                self.run.finish("cancelled", message="The sweep was stopped, and the notebook had to be killed.")
            else:
                how = f"signal {-status}" if status < 0 else f"status {status}"
                message = f"The process that ran the notebook ended with {how}; out of memory, or killed? See log.txt."
                self.run.finish("failed", error="ProcessDied", message=message, traceback=log)


def _stop(children: Sequence[_Child]) -> None:
    try:
        for child in children:
            child.stop()
        while not all(child.has_ended() for child in children):
            time.sleep(POLL_SECONDS)
    except BaseException:
        for child in children:
            child.kill()
        raise


# ----------------------------------------------------------------------------------------- live


class _Reporter:
    """Reports to the socket and the caller how far it is."""

    def __init__(
        self,
        name: str,
        cells: Sequence[Mapping[str, Any]],
        *,
        max_concurrency: int,
        publisher: Publisher,
        on_row: Callable[[int, dict[str, Any]], object] | None,
    ) -> None:
        self._events = ExperimentEvents(name, publisher)
        self.id = self._events.task_id
        self._max_concurrency = max_concurrency
        self._on_row = on_row
        self._infos: list[RunInfo | None] = [None] * len(cells)
        self._seconds: list[float] = []

    def infos(self) -> list[RunInfo]:
        return [info for info in self._infos if info is not None]

    def row(self, at: int, row: dict[str, Any]) -> None:
        if self._on_row is not None:
            self._on_row(at, row)

    def ended(self, at: int, info: RunInfo, *, is_kept: bool = False) -> None:
        self._infos[at] = info
        if not is_kept and info.seconds is not None:
            self._seconds.append(info.seconds)
        self._events.result(_published_row(info), map(_published_row, self.infos()), traceback=info.traceback)
        self.progress("running")
        self.row(at, info.row())

    def progress(self, state: TaskState, message: str | None = None) -> None:
        done, total = len(self.infos()), len(self._infos)
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else None
        eta_seconds = None if mean is None else round(mean * (total - done) / self._max_concurrency, 1)
        self._events.progress(state, done=done, total=total, eta_seconds=eta_seconds, message=message)

    def finish(self) -> None:
        failed = sum(info.state != "done" for info in self.infos())
        message = f"{failed} of {len(self._infos)} notebooks failed." if failed else None
        self.progress("failed" if failed == len(self._infos) else "done", message)


def _published_row(info: RunInfo) -> dict[str, Any]:
    """A run's row without what is empty or is published otherwise, and with what says how it ended at its end."""
    row = info.row()
    last = {name: row.pop(name) for name in ("state", "seconds", "error", "message", "run")}
    for name in ("kind", "name", "started", "traceback"):
        del row[name]
    kept = dict(list(row.items())[:MAX_PUBLISHED_COLUMNS]) | last
    return {name: value for name, value in kept.items() if value is not None}
