"""The run store: what experiments and notebooks measured, in a folder that outlives the kernel.

A folder of runs (`ragkit.runs.run`), no two of which share a folder; pandas and DuckDB read it without ragkit.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import datetime
import math
import os
import secrets
import threading
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ragkit.errors import InputError, RagkitError
from ragkit.files import plain, refused, replacing, write_json, write_parquet
from ragkit.live.origin import find_origin
from ragkit.runs.provenance import environment, find_provenance, this_process
from ragkit.runs.run import HEAD, TAIL, Run, RunInfo, now

if TYPE_CHECKING:
    import pandas as pd


class RunStore:
    """A folder of runs.

    Args:
        path: The folder, made by the first run. Default: what RAGKIT_RUNS names, else ``runs``.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path or os.environ.get("RAGKIT_RUNS") or "runs").expanduser()
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"'{self.path}' is a file. Runs need a folder; name another.")

    def __repr__(self) -> str:
        return f"RunStore({str(self.path)!r}: {len(self._folders())} runs)"

    def create(
        self,
        *,
        name: str,
        kind: str = "experiment",
        parameters: Mapping[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
        seeds: Mapping[str, Any] | None = None,
        data: Mapping[str, str] | None = None,
        folder: str | Path = ".",
    ) -> Run:
        """Begin a run.

        Args:
            name: Of the experiment or notebook.
            kind: See `RunInfo.kind`.
            parameters: What it is run with.
            settings: What else is to be known about it.
            seeds: Seeds of random numbers by name.
            data: Digests of the data by name; `ragkit.hashing.hash_path` makes them.
            folder: Where the code is, for git.

        Raises:
            InputError: A parameter or setting cannot be JSON.
            RagkitError: The disk refused.
        """
        started = datetime.datetime.now(datetime.UTC)
        info = RunInfo(
            id=f"{started:%Y%m%d-%H%M%S-%f}-{secrets.token_hex(3)}",
            kind=kind,
            name=plain(name, "name"),
            state="running",
            started=now(started),
            parameters=plain(parameters or {}, "parameters", nested=True),
            settings=plain(settings or {}, "settings", nested=True),
            provenance=find_provenance(
                folder, seeds=plain(seeds or {}, "seeds", nested=True), data=plain(data or {}, "data", nested=True)
            ),
            process=this_process(),
        )
        path = self.path / info.id
        try:
            path.mkdir(parents=True)
        except OSError as error:
            raise refused(path, error) from error
        write_json(path / "run.json", info)
        return Run(path)

    def list(self) -> Sequence[RunInfo]:
        """All runs, oldest first; one whose ``run.json`` cannot be read is there as "damaged"."""
        return [_look(path) for path in self._folders()]

    def get(self, id: str) -> Run:
        """Find a run by its id, or by so much of the id's beginning or end that only one is meant.

        Raises:
            InputError: There is none, or more than one.
        """
        ids = [path.name for path in self._folders()]
        found = [each for each in ids if each == id] or [each for each in ids if id and each.startswith(id)]
        found = found or [each for each in ids if id and each.endswith(id)]
        if len(found) == 1:
            return Run(self.path / found[0])
        if found:
            raise InputError(f"'{id}' could be {len(found)} runs: {', '.join(found[-5:])}. Give more of the id.")
        newest = f" The newest: {', '.join(ids[-5:])}." if ids else " There is none at all."
        raise InputError(f"There is no run '{id}' in '{self.path}'.{newest}")

    def to_frame(self, runs: Iterable[RunInfo] | None = None) -> pd.DataFrame:
        """Return runs as a table, a row each; see `RunInfo.row`.

        Args:
            runs: Which; all if None.
        """
        import pandas as pd

        rows = [info.row() for info in (self.list() if runs is None else runs)]
        own = dict.fromkeys(name for row in rows for name in row if name not in (*HEAD, *TAIL))
        return pd.DataFrame(rows, columns=[*HEAD, *own, *TAIL])

    def compare(self, a: str, b: str) -> pd.DataFrame:
        """Return what differs between two runs: a row each, a column a run, None for what one of them has not.

        Rows are ``state``, ``seconds``, ``parameters.NAME``, ``recorded.NAME``, ``seeds.NAME``, ``data.NAME``,
        ``git.commit``, ``python``, ``packages.NAME`` and so on.
        """
        import pandas as pd

        one, two = self.get(a), self.get(b)
        left, right = one.info.facts(), two.info.facts()
        differ = [name for name in dict.fromkeys([*left, *right]) if left.get(name) != right.get(name)]
        pairs = [(left.get(name), right.get(name)) for name in differ]
        return pd.DataFrame(pairs, index=differ, columns=[one.id, two.id], dtype=object)

    def export(self, to: str | Path, ids: Sequence[str] = ()) -> Path:
        """Write runs to one file: a table as ``.csv`` or ``.parquet``, or everything that they hold as ``.zip``.

        Args:
            to: The file; its ending says which.
            ids: Which runs; all if there are none.

        Raises:
            InputError: Another ending, or an unknown run.
        """
        to = Path(to)
        runs = [self.get(id) for id in ids] or [Run(path) for path in self._folders()]
        match to.suffix.lower():
            case ".csv":
                with replacing(to) as temporary:
                    self._flat(runs).to_csv(temporary, index=False)
            case ".parquet":
                write_parquet(self._flat(runs), to, to.name)
            case ".zip":
                with replacing(to) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                    for run in runs:
                        for file in sorted(run.path.rglob("*")):
                            if file.is_file() and not file.name.startswith("."):
                                archive.write(file, file.relative_to(run.path.parent))
            case suffix:
                raise InputError(f"'{to}' ends in '{suffix}'. Runs are exported to .csv, .parquet or .zip.")
        return to

    def _flat(self, runs: Iterable[Run]) -> pd.DataFrame:
        """A table whose columns hold one type each, or else JSON."""
        frame = self.to_frame(_look(run.path) for run in runs)
        for name, column in frame.items():
            if column.dtype == object and {type(value) for value in column.dropna()} - {str}:
                frame[name] = [None if _is_missing(v) else msgspec.json.encode(v).decode() for v in column]
        return frame

    def _folders(self) -> Sequence[Path]:
        return sorted(path.parent for path in self.path.glob("*/run.json"))


def _look(path: Path) -> RunInfo:
    try:
        return Run(path).info
    except InputError as error:
        return RunInfo(id=path.name, kind="", name="", state="damaged", message=str(error))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


# ------------------------------------------------------------------------------- in a notebook

_own: dict[int, Run] = {}  # by process: a fork's runs are not its parent's
_greeted: set[tuple[int, Path]] = set()
_lock = threading.Lock()


def record(**values: Any) -> Run:
    """Keep values of the run that this notebook is.

    Run by a sweep, they go to that run; else to a run of this process's own in ``./runs`` (or where RAGKIT_RUNS
    says), which its first `record` begins and the end of the process ends. They are on the disk when this returns.

    Args:
        values: Numbers, text, True, False, None, and lists and arrays of them; a DataFrame becomes a table of the run.
            NaN and infinity become null, for JSON has neither.

    Returns:
        The run.

    Raises:
        InputError: A value is of another kind; nothing of this call was kept.
    """
    run = current_run()
    run.record(**values)
    return run


def current_run() -> Run:
    """Return the run that `record` writes to, and begin one where there is none; see there.

    Raises:
        InputError: RAGKIT_RUN names no run.
    """
    named = os.environ.get("RAGKIT_RUN")
    if named is None:
        return _own_run()
    run = Run(named)
    if not (run.path / "run.json").is_file():
        raise InputError(f"RAGKIT_RUN names '{named}', which is no run. A sweep sets it; else leave it unset.")
    if (os.getpid(), run.path) not in _greeted:
        _greeted.add((os.getpid(), run.path))
        here, made = environment(), run.info.provenance
        if here.executable != made.executable:  # the kernel is of another environment than the sweep
            here = dataclasses.replace(here, git=made.git, seeds=made.seeds, data=made.data)
            run.update_info(lambda info: dataclasses.replace(info, provenance=here))
    return run


def _own_run() -> Run:
    pid = os.getpid()
    with _lock:
        if pid not in _own:
            origin = find_origin()
            _own[pid] = RunStore().create(name=origin.name, kind=origin.kind)
            atexit.register(_end, pid, _own[pid])
        return _own[pid]


def _end(pid: int, run: Run) -> None:
    if pid == os.getpid():
        with contextlib.suppress(RagkitError):  # finished by hand, or its folder is gone
            run.finish()
