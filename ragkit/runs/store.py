"""The run store: a folder that keeps the results of experiments and notebooks.

Each run has a folder of its own (`ragkit.runs.run`). pandas and DuckDB can read the store without ragkit.
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
        path: The folder; the first run creates it. Default: the value of RAGKIT_RUNS, else ``runs``.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        self.path = Path(path or os.environ.get("RAGKIT_RUNS") or "runs").expanduser()
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"'{self.path}' is a file, but a run store is a folder. Choose another path.")

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
        """Start a run.

        Args:
            name: The name of the experiment or notebook.
            kind: See `RunInfo.kind`.
            parameters: The parameters of the run.
            settings: Further values to store with the run.
            seeds: Random seeds by name.
            data: Digests of the data by name, as `ragkit.hashing.hash_path` computes them.
            folder: The folder of the code, used to find its git commit.

        Raises:
            InputError: A parameter or setting cannot be stored as JSON.
            RagkitError: The run could not be written to disk.
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
        """Return all runs, oldest first. A run whose ``run.json`` cannot be read is listed as "damaged"."""
        return [_read_info(path) for path in self._folders()]

    def get(self, id: str) -> Run:
        """Return the run with this id, or the only run whose id starts or ends with it.

        Raises:
            InputError: No run matches, or more than one does.
        """
        ids = [path.name for path in self._folders()]
        found = [each for each in ids if each == id] or [each for each in ids if id and each.startswith(id)]
        found = found or [each for each in ids if id and each.endswith(id)]
        if len(found) == 1:
            return Run(self.path / found[0])
        if found:
            raise InputError(f"'{id}' matches {len(found)} runs: {', '.join(found[-5:])}. Give more of the id.")
        newest = f" The newest: {', '.join(ids[-5:])}." if ids else " The store is empty."
        raise InputError(f"There is no run '{id}' in '{self.path}'.{newest}")

    def to_frame(self, runs: Iterable[RunInfo] | None = None) -> pd.DataFrame:
        """Return runs as a table with one row per run; see `RunInfo.row`.

        Args:
            runs: The runs to include; None for all.
        """
        import pandas as pd

        rows = [info.row() for info in (self.list() if runs is None else runs)]
        own = dict.fromkeys(name for row in rows for name in row if name not in (*HEAD, *TAIL))
        return pd.DataFrame(rows, columns=[*HEAD, *own, *TAIL])

    def compare(self, a: str, b: str) -> pd.DataFrame:
        """Return the differences between two runs: one row per difference, one column per run, None where missing.

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
        """Write runs to one file: a table (``.csv`` or ``.parquet``), or all their files (``.zip``).

        Args:
            to: The file; its suffix selects the format.
            ids: The runs to export; empty for all.

        Raises:
            InputError: The suffix is not supported, or a run does not exist.
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
                raise InputError(f"Cannot export to '{to}': the suffix '{suffix}' is not .csv, .parquet or .zip.")
        return to

    def _flat(self, runs: Iterable[Run]) -> pd.DataFrame:
        """Return a table in which each column holds a single type; columns of mixed types become JSON text."""
        frame = self.to_frame(_read_info(run.path) for run in runs)
        for name, column in frame.items():
            if column.dtype == object and {type(value) for value in column.dropna()} - {str}:
                frame[name] = [None if _is_missing(v) else msgspec.json.encode(v).decode() for v in column]
        return frame

    def _folders(self) -> Sequence[Path]:
        return sorted(path.parent for path in self.path.glob("*/run.json"))


def _read_info(path: Path) -> RunInfo:
    try:
        return Run(path).info
    except InputError as error:
        return RunInfo(id=path.name, kind="", name="", state="damaged", message=str(error))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


# ------------------------------------------------------------------------------- in a notebook

_own: dict[int, Run] = {}  # by process id: a forked child does not record into its parent's run
_environment_checked: set[tuple[int, Path]] = set()
_lock = threading.Lock()


def record(**values: Any) -> Run:
    """Record values in the run of this notebook or script.

    In a sweep, the values go to the sweep's run. Otherwise they go to a run of this process in ``./runs`` (or in the
    folder that RAGKIT_RUNS names): the first call creates it, and it ends with the process. The values are on disk
    when this function returns.

    Args:
        values: Numbers, text, True, False, None, and lists and arrays of them. A DataFrame becomes a table of the run.
            NaN and infinity become null, because JSON has neither.

    Returns:
        The run.

    Raises:
        InputError: A value has an unsupported type; none of the values of this call are stored.
    """
    run = current_run()
    run.record(**values)
    return run


def current_run() -> Run:
    """Return the run that `record` writes to; create one if there is none.

    Raises:
        InputError: RAGKIT_RUN names a folder that is not a run.
    """
    folder = os.environ.get("RAGKIT_RUN")
    if folder is None:
        return _own_run()
    run = Run(folder)
    if not (run.path / "run.json").is_file():
        raise InputError(f"RAGKIT_RUN names '{folder}', which is not a run. Unset it; only a sweep sets it.")
    if (os.getpid(), run.path) not in _environment_checked:
        _environment_checked.add((os.getpid(), run.path))
        ours, stored = environment(), run.info.provenance
        if ours.executable != stored.executable:  # the kernel runs in another environment than the sweep
            ours = dataclasses.replace(ours, git=stored.git, seeds=stored.seeds, data=stored.data)
            run.update_info(lambda info: dataclasses.replace(info, provenance=ours))
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
        with contextlib.suppress(RagkitError):  # the user has finished the run, or its folder is gone
            run.finish()
