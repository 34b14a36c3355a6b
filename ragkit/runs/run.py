"""One run: a folder with what an experiment or notebook was, did and measured.

It needs no ragkit to be read::

    runs/20261126-112518-482193-3f9ac1/
        run.json            what it is, how it ended, parameters, recorded values, provenance
        tables/NAME.parquet
        NAME.json
        notebook.ipynb      as executed, of a run of `ragkit.runs.sweep`

Every file is written beside its place, forced to the disk, and renamed, so that a crash leaves the old one or the new
one. ``run.json`` is changed under a file lock: a notebook may record while the process that runs it looks on. A run
whose process died without saying so stays "running" on disk, and is shown as "lost".
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
"""The last two are never on disk: "lost" is a run whose process is gone, "damaged" one that cannot be read."""

HEAD = ("run", "kind", "name", "state", "started", "seconds")
TAIL = ("error", "message", "traceback")


@dataclasses.dataclass(frozen=True, slots=True)
class RunInfo:
    """What ``run.json`` holds.

    Attributes:
        id: The name of its folder; ids sort by time.
        kind: ``"experiment"``, ``"sweep"``, or what recorded by itself: ``"notebook"``, ``"papermill"``, ``"script"``.
        name: Of the experiment or notebook.
        state: See `RunState`.
        started: RFC 3339.
        ended: Likewise; None until then.
        parameters: What it was run with.
        recorded: What it measured.
        settings: What else its maker keeps about it.
        error: The type of the error that ended it.
        message: What that said, or why it was cancelled.
        traceback: Where it came from.
        provenance: What it was made of.
        process: Who made it.
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
        """How long it took; None if it has not ended."""
        if self.ended is None:
            return None
        parse = datetime.datetime.fromisoformat
        return round((parse(self.ended) - parse(self.started)).total_seconds(), 3)

    def row(self) -> dict[str, Any]:
        """Return it as a table's row, with parameters and recorded values as columns.

        A parameter whose name is taken becomes ``parameters.NAME``, a recorded value ``recorded.NAME``.
        """
        row: dict[str, Any] = {"run": self.id} | {name: getattr(self, name) for name in HEAD[1:]}
        for group in ("parameters", "recorded"):
            for name, value in getattr(self, group).items():
                row[f"{group}.{name}" if name in row or name in TAIL else name] = value
        return row | {name: getattr(self, name) for name in TAIL}

    def facts(self) -> dict[str, Any]:
        """Return what can be compared with another run: ``parameters.NAME``, ``git.commit``, ``packages.NAME``."""
        made = self.provenance
        groups = {
            "parameters": self.parameters,
            "recorded": self.recorded,
            "seeds": made.seeds,
            "data": made.data,
            "git": dataclasses.asdict(made.git) if made.git is not None else {},
            "packages": dict(each.partition("==")[::2] for each in made.packages),
        }
        alone = ("kind", "name", "state", "seconds", "error", "message")
        return (
            {name: getattr(self, name) for name in alone}
            | {name: getattr(made, name) for name in ("python", "executable", "platform")}
            | {f"{group}.{name}": value for group, values in groups.items() for name, value in values.items()}
        )


class Run:
    """One run; in a ``with`` statement it ends by itself, "failed" or "cancelled" if an exception ended the block.

    Get one from `RunStore.create`, `RunStore.get` or `current_run`.

    Attributes:
        path: Its folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).absolute()

    def __repr__(self) -> str:
        info = self.info
        return f"Run({str(self.path)!r}: {info.state}, {len(info.recorded)} values, {len(self.tables())} tables)"

    @property
    def id(self) -> str:
        """Its name, which is its folder's."""
        return self.path.name

    @property
    def info(self) -> RunInfo:
        """What is known about it now. Raises `InputError` if its ``run.json`` is damaged."""
        info = _read(self.path)
        if info.state == "running" and info.process is not None and info.process.is_gone():
            return dataclasses.replace(info, state="lost", message="Its process ended without saying how.")
        return info

    def record(self, **values: Any) -> None:
        """Keep values, at once: what was recorded before a crash is there after it.

        A value recorded again replaces the first. See `record` for what can be recorded.

        Raises:
            InputError: A value is of another kind; nothing of this call was kept. Or the run has ended.
        """
        tables = {name: value for name, value in values.items() if hasattr(value, "to_parquet")}
        plains = {name: plain(value, name) for name, value in values.items() if name not in tables}
        for name, frame in tables.items():
            self.write_table(name, frame)
        if plains:
            self.update_info(lambda info: dataclasses.replace(info, recorded=info.recorded | plains))

    def write_table(self, name: str, frame: pd.DataFrame) -> Path:
        """Keep a table as ``tables/NAME.parquet``.

        Raises:
            InputError: The name cannot be a file's, the frame cannot be Parquet, or the run has ended.
            MissingExtraError: pyarrow is not installed.
        """
        path = self.path / "tables" / f"{file_name(name)}.parquet"
        if not hasattr(frame, "to_parquet"):
            raise InputError(f"'{name}' is a {type(frame).__name__}, not a table. Make it one: pandas.DataFrame(...)")
        self._require_running()
        path.parent.mkdir(exist_ok=True)
        write_parquet(frame, path, name)
        return path

    def write_json(self, name: str, value: Any) -> Path:
        """Keep anything that JSON can say as ``NAME.json``, dictionaries included.

        Raises:
            InputError: The name cannot be a file's, or is "run"; JSON cannot say the value; the run has ended.
        """
        if name == "run":
            raise InputError("run.json is the run's own file. Take another name.")
        path = self.path / f"{file_name(name)}.json"
        value = plain(value, name, nested=True)
        self._require_running()
        write_json(path, value)
        return path

    def tables(self) -> list[str]:
        """Names of its tables."""
        return sorted(path.stem for path in (self.path / "tables").glob("*.parquet") if not path.name.startswith("."))

    def read_table(self, name: str) -> pd.DataFrame:
        """Return a table. Raises `InputError` if there is none of that name."""
        path = self.path / "tables" / f"{file_name(name)}.parquet"
        if not path.exists():
            raise InputError(f"Run {self.id} has no table '{name}'. It has: {', '.join(self.tables()) or 'none'}.")
        with needs("pyarrow", extra="eval"):
            import pandas as pd

            return pd.read_parquet(path, engine="pyarrow")

    def read_json(self, name: str) -> Any:
        """Return what `write_json` kept. Raises `InputError` if there is none of that name."""
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
        """Say how it ended; nothing can be recorded afterwards.

        Args:
            state: How.
            error: The type of the error, if one ended it.
            message: What that said, or who stopped it.
            traceback: Where it came from.

        Raises:
            InputError: It has ended already.
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
            raise InputError(f"Run {self.id} has ended ({info.state}); nothing can be added to it. Make a new one.")
        return info

    def update_info(self, change: Callable[[RunInfo], RunInfo]) -> RunInfo:
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
        raise InputError(f"'{path}' is no run: it has no run.json.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"'{path / 'run.json'}' cannot be read: {error}. Mend it, or move the run's folder away."
        ) from error
    return dataclasses.replace(info, id=path.name)  # the folder may have been renamed


def now(when: datetime.datetime | None = None) -> str:
    return (when or datetime.datetime.now(datetime.UTC)).isoformat(timespec="milliseconds")


def _text(text: str | None) -> str | None:
    return None if text is None else text.encode(errors="replace").decode()
