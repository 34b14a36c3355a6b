"""Sweeps: run a notebook under papermill once for each combination of parameters; each is a run of the store.

Each combination runs in a process of its own, ``python -m ragkit.runs.worker FOLDER``, which executes the copy of the
notebook in the run's folder in place. The standard input of the worker is a pipe from the sweep: when the pipe closes,
the worker stops the notebook. It therefore also stops when the sweep is killed, and the sweep signals no other process.
The output of the worker is in ``log.txt`` in the same folder.
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
GRACE_SECONDS = 20.0  # for a kernel to shut down before it is killed
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
    """Run a notebook once for every combination of parameters and collect the recorded values.

    Progress and rows are published. If a notebook fails, the others still run. An interrupt stops the running
    notebooks; finished runs are kept, and the same call resumes the sweep. A combination is not run again if the store
    has a run of it with the state "done" and the same code cells, parameters, kernel and ``data``. Changes in modules
    that the notebook imports, and in files that ``data`` does not list, are not detected: use ``rerun`` after them.

    Args:
        notebook: The notebook's file. One of its cells is tagged "parameters". It is read once and not changed.
        parameters: Parameter names and the values to try; a single value needs no list. The last name varies fastest.
        max_concurrency: How many notebooks run at the same time.
        store: The store for the runs; `RunStore()` by default.
        kernel_name: The kernel to use; the notebook's by default.
        timeout_seconds: Time limit for each notebook, from its start; None for no limit.
        data: Files and folders that the runs depend on; their digests are stored with the runs.
        rerun: Whether to run combinations again that are done.
        cwd: Working directory of the notebooks; the notebook's folder by default, as in JupyterLab.
        publisher: Publishes the progress; the process's publisher by default.
        on_row: Called when a combination changes its state ("queued", "running", and its final state), with its
            number (from 0, in the grid's order) and its row.

    Returns:
        One row per combination, in the grid's order: run, name, state, seconds, parameters, recorded values, and for
        failed runs ``error``, ``message`` and ``traceback``.

    Raises:
        InputError: The notebook or the kernel does not exist, the notebook has no such parameter, or a value cannot
            be a parameter. Nothing was run.
        MissingExtraError: papermill is not installed.
        SourceNotFoundError: A path in ``data`` does not exist.
        RagkitError: The store cannot be written.
    """
    require_count("max_concurrency", max_concurrency)
    if timeout_seconds is not None and timeout_seconds <= 0:
        raise InputError(f"timeout_seconds must be more than 0, not {timeout_seconds:g}.")
    book = ParameterizedNotebook(notebook, kernel_name=kernel_name)
    combinations = grid(parameters)
    book.check(combinations[0])
    folder = Path(cwd).expanduser().absolute() if cwd is not None else book.path.parent
    if not folder.is_dir():
        raise InputError(f"There is no folder '{folder}' to run the notebook in. Create it, or pass another cwd.")
    digests = {str(path): hash_path(path) for path in data}
    store = store if isinstance(store, RunStore) else RunStore(store)
    show = _Reporter(
        book.path.stem,
        len(combinations),
        max_concurrency=max_concurrency,
        publisher=publisher or default_publisher(),
        on_row=on_row,
    )

    keys = [book.key(combination, digests) for combination in combinations]
    done = {} if rerun else {info.settings.get("key"): info for info in store.list() if info.state == "done"}
    waiting = []
    for at, key in enumerate(keys):
        if key in done:
            show.ended(at, done[key], is_reused=True)
        else:
            waiting.append(at)
            show.row(at, {**combinations[at], "state": "queued"})
    running: dict[int, _Child] = {}
    try:
        show.progress("running")
        while waiting or running:
            while waiting and len(running) < max_concurrency:
                at = waiting.pop(0)
                run = store.create(
                    name=book.path.stem,
                    kind="sweep",
                    parameters=combinations[at],
                    settings={
                        "sweep": show.id, "key": keys[at], "notebook": str(book.path), "kernel_name": book.kernel_name,
                        "cwd": str(folder), "defaults": book.defaults,
                    },
                    seeds={k: v for k, v in (book.defaults | combinations[at]).items() if "seed" in k.lower()},
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
        was_cancelled = isinstance(error, KeyboardInterrupt | OperationCancelled)
        show.progress("cancelled" if was_cancelled else "failed", str(error) or type(error).__name__)
        raise
    show.finish()
    return store.to_frame(show.infos()).drop(columns=["kind", "started"])


# ------------------------------------------------------------------------------------ processes


class _Child:
    """The worker process of one notebook."""

    def __init__(self, run: Run, *, timeout_seconds: float | None) -> None:
        self.run = run
        self._limit = timeout_seconds
        self._deadline = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        self._reason: str | None = None
        with (run.path / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ragkit.runs.worker", str(run.path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,  # Ctrl-C must reach only the sweep, which stops its workers
                env=os.environ | {"RAGKIT_RUN": str(run.path), "PYDEVD_DISABLE_FILE_VALIDATION": "1"},
            )

    def has_ended(self) -> bool:
        """Return whether the process has ended; stop or kill it if it has exceeded its deadline."""
        status = self._process.poll()
        if status is None and time.monotonic() > self._deadline:
            if self._reason is None:
                self.stop(f"The notebook was not done after {self._limit:g} seconds.")
            else:
                self.kill()
        if status is not None:
            self._finish_run(status)
            self.stop()  # closes the pipe
        return status is not None

    def stop(self, reason: str = "") -> None:
        """Ask the worker to end its run: as "failed" if a reason is given, else as "cancelled"."""
        if self._reason is None and self._process.stdin is not None:
            self._reason, self._deadline = reason, time.monotonic() + GRACE_SECONDS
            with contextlib.suppress(OSError):  # it has ended
                self._process.stdin.write(reason.encode())
            self._process.stdin.close()

    def kill(self) -> None:
        import psutil

        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(self._process.pid).children(recursive=True), self._process]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def _finish_run(self, status: int) -> None:
        """Finish the run if its process ended without doing so."""
        if self.run.info.state == "running":
            log = (self.run.path / "log.txt").read_text(encoding="utf-8", errors="replace")[-_MAX_LOG:]
            if self._reason:
                self.run.finish("failed", error="TimeoutError", message=self._reason, traceback=log)
            elif self._reason is not None:
                self.run.finish("cancelled", message="The sweep was stopped, and the notebook had to be killed.")
            else:
                how = f"signal {-status}" if status < 0 else f"status {status}"
                message = f"The process that ran the notebook ended with {how}, perhaps out of memory; see log.txt."
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


# ------------------------------------------------------------------------------------ reporting


class _Reporter:
    """Reports the progress of a sweep to its publisher and its caller."""

    def __init__(
        self,
        name: str,
        total: int,
        *,
        max_concurrency: int,
        publisher: Publisher,
        on_row: Callable[[int, dict[str, Any]], object] | None,
    ) -> None:
        self._events = ExperimentEvents(name, publisher)
        self.id = self._events.task_id
        self._max_concurrency = max_concurrency
        self._on_row = on_row
        self._infos: list[RunInfo | None] = [None] * total
        self._seconds: list[float] = []

    def infos(self) -> list[RunInfo]:
        return [info for info in self._infos if info is not None]

    def row(self, at: int, row: dict[str, Any]) -> None:
        if self._on_row is not None:
            self._on_row(at, row)

    def ended(self, at: int, info: RunInfo, *, is_reused: bool = False) -> None:
        self._infos[at] = info
        if not is_reused and info.seconds is not None:
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
    """Return a run's row without empty values and values published elsewhere; the columns about its end come last."""
    row = info.row()
    last = {name: row.pop(name) for name in ("state", "seconds", "error", "message", "run")}
    for name in ("kind", "name", "started", "traceback"):
        del row[name]
    kept = dict(list(row.items())[:MAX_PUBLISHED_COLUMNS]) | last
    return {name: value for name, value in kept.items() if value is not None}
