"""One run: a folder with the parameters, results and provenance of one experiment or notebook.

Its files can be read without ragkit::

    runs/20261126-112518-482193-3f9ac1/
        run.json            kind, state, parameters, recorded values, provenance
        tables/NAME.parquet
        NAME.json
        notebook.ipynb      the executed notebook, if `ragkit.runs.sweep` made the run

Every file is written to a temporary file, synced to disk and renamed, so a crash leaves either the old version or the
new one. ``run.json`` is changed under a file lock, because a notebook and the process that runs it may both write to
it. If the process of a run dies before it ends the run, the state on disk stays "running" and is reported as "lost".
"""

from __future__ import annotations

import dataclasses
import datetime
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec
from filelock import FileLock

from ragkit.errors import InputError, OperationCancelled, needs
from ragkit.files import file_name, plain, write_json, write_parquet
from ragkit.runs.provenance import Process, Provenance

if TYPE_CHECKING:
    import pandas as pd

RunState = Literal["running", "done", "failed", "cancelled", "lost", "damaged"]
"""The state of a run. "lost" (its process is gone) and "damaged" (it cannot be read) are never stored on disk."""

HEAD = ("run", "kind", "name", "state", "started", "seconds")
TAIL = ("error", "message", "traceback")


@dataclasses.dataclass(frozen=True, slots=True)
class RunInfo:
    """The contents of ``run.json``.

    Attributes:
        id: The name of the run's folder. Ids sort by time.
        kind: ``"experiment"``, ``"sweep"``, or, for a process that called `record` outside of a sweep,
            ``"notebook"``, ``"papermill"``, ``"script"`` or ``"cli"``.
        name: The name of the experiment or notebook.
        state: See `RunState`.
        started: Start time, RFC 3339.
        ended: End time, RFC 3339; None while the run has not ended.
        parameters: The parameters of the run.
        recorded: The recorded values.
        settings: Further values that the creator of the run stored with it.
        error: The type of the error that ended the run.
        message: The message of that error, or why the run was cancelled.
        traceback: The traceback of that error.
        provenance: Code, packages, machine, seeds and data of the run.
        process: The process that created the run.
    """

    id: str
    kind: str
    name: str
    state: RunState
    started: str = ""
    ended: str | None = None
    parameters: dict[str, Any] = dataclasses.field(default_factory=dict)
    recorded: dict[str, Any] = dataclasses.field(default_factory=dict)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    error: str | None = None
    message: str | None = None
    traceback: str | None = None
    provenance: Provenance = dataclasses.field(default_factory=Provenance)
    process: Process | None = None

    @property
    def seconds(self) -> float | None:
        """Duration in seconds; None if the run has not ended."""
        if self.ended is None:
            return None
        parse = datetime.datetime.fromisoformat
        return round((parse(self.ended) - parse(self.started)).total_seconds(), 3)

    def row(self) -> dict[str, Any]:
        """Return the run as one row of a table, with parameters and recorded values as columns.

        If a column name is already taken, a parameter becomes ``parameters.NAME`` and a recorded value
        ``recorded.NAME``.
        """
        row: dict[str, Any] = {"run": self.id} | {name: getattr(self, name) for name in HEAD[1:]}
        for group in ("parameters", "recorded"):
            for name, value in getattr(self, group).items():
                row[f"{group}.{name}" if name in row or name in TAIL else name] = value
        return row | {name: getattr(self, name) for name in TAIL}

    def facts(self) -> dict[str, Any]:
        """Return flat values to compare with another run: ``parameters.NAME``, ``git.commit``, ``packages.NAME``."""
        provenance = self.provenance
        groups = {
            "parameters": self.parameters,
            "recorded": self.recorded,
            "seeds": provenance.seeds,
            "data": provenance.data,
            "git": dataclasses.asdict(provenance.git) if provenance.git is not None else {},
            "packages": dict(each.partition("==")[::2] for each in provenance.packages),
        }
        ungrouped = ("kind", "name", "state", "seconds", "error", "message")
        return (
            {name: getattr(self, name) for name in ungrouped}
            | {name: getattr(provenance, name) for name in ("python", "executable", "platform")}
            | {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
        )


class Run:
    """One run of a run store.

    Get one from `RunStore.create`, `RunStore.get` or `current_run`. As a context manager it finishes the run when the
    block ends: as "done", or as "failed" or "cancelled" if the block raised an exception.

    Attributes:
        path: The run's folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    def __repr__(self) -> str:
        info = self.info
        return f"Run({str(self.path)!r}: {info.state}, {len(info.recorded)} values, {len(self.tables())} tables)"

    @property
    def id(self) -> str:
        """The run's id, which is the name of its folder."""
        return self.path.name

    @property
    def info(self) -> RunInfo:
        """The run's current contents. Raises `InputError` if ``run.json`` is damaged."""
        info = _read(self.path)
        if info.state == "running" and info.process is not None and info.process.is_gone():
            return dataclasses.replace(info, state="lost", message="Its process ended before the run was finished.")
        return info

    def record(self, **values: Any) -> None:
        """Store values on disk before returning, so that they survive a crash.

        Recording a name again replaces its value. See `record` for the types that can be recorded.

        Raises:
            InputError: A value has an unsupported type (then none of the values of this call are stored), or the run
                has ended.
        """
        tables = {name: value for name, value in values.items() if hasattr(value, "to_parquet")}
        plains = {name: plain(value, name) for name, value in values.items() if name not in tables}
        for name, frame in tables.items():
            self.write_table(name, frame)
        if plains:
            self.update_info(lambda info: dataclasses.replace(info, recorded=info.recorded | plains))

    def write_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Write a table to ``tables/NAME.parquet``.

        Raises:
            InputError: The name is no valid file name, the frame cannot be stored as Parquet, or the run has ended.
            MissingExtraError: pyarrow is not installed.
        """
        path = self.path / "tables" / f"{file_name(name)}.parquet"
        if not hasattr(frame, "to_parquet"):
            raise InputError(f"'{name}' is a {type(frame).__name__}, not a table. Convert it: pandas.DataFrame(...)")
        self._require_running()
        path.parent.mkdir(exist_ok=True)
        write_parquet(frame, path, name)
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Write a JSON value, nested dictionaries included, to ``NAME.json``.

        Raises:
            InputError: The name is no valid file name or is "run", the value cannot be JSON, or the run has ended.
        """
        if name == "run":
            raise InputError("The name 'run' is reserved: run.json is the run's own file. Use another name.")
        path = self.path / f"{file_name(name)}.json"
        value = plain(value, name, nested=True)
        self._require_running()
        write_json(path, value)
        return path

    def tables(self) -> list[str]:
        """Return the names of the run's tables."""
        return sorted(path.stem for path in (self.path / "tables").glob("*.parquet") if not path.name.startswith("."))

    def read_table(self, name: str) -> pd.DataFrame:
        """Return a table. Raises `InputError` if there is no table of that name."""
        path = self.path / "tables" / f"{file_name(name)}.parquet"
        if not path.exists():
            raise InputError(f"Run {self.id} has no table '{name}'. It has: {', '.join(self.tables()) or 'none'}.")
        with needs("pyarrow", extra="eval"):
            import pandas as pd

            return pd.read_parquet(path, engine="pyarrow")

    def read_json(self, name: str) -> Any:
        """Return a value that `write_json` stored. Raises `InputError` if there is none of that name."""
        path = self.path / f"{file_name(name)}.json"
        if not path.exists():
            raise InputError(f"Run {self.id} has no '{path.name}'.")
        return msgspec.json.decode(path.read_bytes())

    def finish(
        self,
        state: Literal["done", "failed", "cancelled"] = "done",
        *,
        error: str | None = None,
        message: str | None = None,
        traceback: str | None = None,
    ) -> RunInfo:
        """End the run; nothing can be recorded afterwards.

        Args:
            state: The final state.
            error: The type of the error that ended the run, if any.
            message: The message of that error, or why the run was cancelled.
            traceback: The traceback of that error.

        Raises:
            InputError: The run has already ended.
        """
        if state not in ("done", "failed", "cancelled"):
            raise InputError(f"A run ends as 'done', 'failed' or 'cancelled', not as '{state}'.")
        return self.update_info(
            lambda info: dataclasses.replace(
                info,
                state=state,
                ended=now(),
                error=_text(error),
                message=_text(message),
                traceback=_text(traceback),
            )
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            self.finish()
        elif isinstance(error, Exception) and not isinstance(error, OperationCancelled):
            trace = "".join(traceback.format_exception(error))
            self.finish("failed", error=type(error).__name__, message=str(error), traceback=trace)
        else:
            self.finish("cancelled", message=str(error) or type(error).__name__)

    def _require_running(self) -> RunInfo:
        info = _read(self.path)
        if info.state != "running":
            raise InputError(f"Run {self.id} has ended ({info.state}); nothing can be added to it. Create a new run.")
        return info

    def update_info(self, change: Callable[[RunInfo], RunInfo]) -> RunInfo:
        """Apply ``change`` to the contents of ``run.json`` under the run's file lock."""
        with FileLock(self.path / ".lock"):
            info = change(self._require_running())
            write_json(self.path / "run.json", info)
        return info


def _read(path: Path) -> RunInfo:
    try:
        info = msgspec.json.decode((path / "run.json").read_bytes(), type=RunInfo)
        for when in (info.started, info.ended or info.started):
            if datetime.datetime.fromisoformat(when).tzinfo is None:
                raise ValueError(f"{when} has no time zone")
    except FileNotFoundError as error:
        raise InputError(f"'{path}' is not a run: it has no run.json.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"'{path / 'run.json'}' cannot be read: {error}. Repair the file, or move the run's folder elsewhere."
        ) from error
    return dataclasses.replace(info, id=path.name)  # the folder may have been renamed


def now(when: datetime.datetime | None = None) -> str:
    return (when or datetime.datetime.now(datetime.UTC)).isoformat(timespec="milliseconds")


def _text(text: str | None) -> str | None:
    return None if text is None else text.encode(errors="replace").decode()
