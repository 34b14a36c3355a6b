"""The ``ragkit sweep`` and ``ragkit runs`` commands."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ragkit.terminal import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_STYLES = {"done": "green", "failed": "red", "damaged": "red", "lost": "red", "cancelled": "yellow", "running": "bold"}
_MAX_COLUMNS = 12  # shown of a sweep's table; the runs have them all
_MAX_CELL = 60
_PLAIN_WIDTH = 240  # without a terminal, for example in a pipe, where lines should not be cut

StoreOption = Annotated[
    Path | None, typer.Option("--store", metavar="FOLDER", help="The run store. Default: RAGKIT_RUNS, else ./runs.")
]

runs = typer.Typer(help="List, show, compare and export the runs of sweeps, experiments and notebooks.")


def add_commands(app: typer.Typer) -> None:
    """Add ``sweep`` and ``runs`` to an application."""
    app.command(cls=_SweepCommand, no_args_is_help=True)(sweep)
    app.add_typer(runs, name="runs")


# ---------------------------------------------------------------------------------------- sweep


class _SweepCommand(TyperCommand):
    """Lets -p take a name and any number of values, which click does not support."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        gathered: list[str] = []
        left = list(args)
        while left:
            gathered.append(left.pop(0))
            if gathered[-1] in ("-p", "--parameter"):
                words = []
                while left and not re.match(r"-(?![\d.])", left[0]):  # a negative number is not an option
                    words.append(left.pop(0))
                gathered.append(json.dumps(words))
        return super().parse_args(ctx, gathered)


def sweep(
    notebook: Annotated[Path, typer.Argument(help="A notebook with a cell tagged 'parameters'. Give it before -p.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "--parameter", "-p", metavar="NAME VALUE...", help="A parameter and its values. Repeat for a grid."
        ),
    ] = None,
    max_concurrency: Annotated[
        int, typer.Option("--max-concurrency", "-j", min=1, help="Notebooks run at the same time.")
    ] = 1,
    store: StoreOption = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH", help="A file or folder that the runs depend on: a change reruns them. Repeatable."
        ),
    ] = None,
    rerun: Annotated[bool, typer.Option("--rerun", help="Also run combinations that are already done.")] = False,
    kernel: Annotated[str | None, typer.Option(metavar="NAME", help="The kernel. Default: the notebook's.")] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.1, help="Time limit for each notebook.")
    ] = None,
    cwd: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Working directory. Default: the notebook's folder.")
    ] = None,
) -> None:
    """Run a notebook with papermill for each combination of parameters.

    Example: ragkit sweep notebook.ipynb -p chunk_size 128 256 -p retriever bm25 hybrid -j 2
    """
    from ragkit.live.origin import find_origin
    from ragkit.live.publisher import Publisher
    from ragkit.runs.store import RunStore
    from ragkit.runs.sweep import sweep as run_sweep

    parameters = _parameters(parameter or [])
    run_store = RunStore(store)
    publisher = Publisher(origin=find_origin(kind="cli", name="ragkit sweep"))
    try:
        with _SweepTable() as table:
            frame = run_sweep(
                notebook,
                parameters,
                max_concurrency=max_concurrency,
                store=run_store,
                kernel_name=kernel,
                timeout_seconds=timeout,
                data=data or (),
                rerun=rerun,
                cwd=cwd,
                publisher=publisher,
                on_row=table.show,
            )
    except KeyboardInterrupt as error:
        typer.echo("\nStopped. Finished runs are kept; run the same command again to resume.", err=True)
        raise typer.Exit(130) from error
    finally:
        publisher.close()
    failed = frame[frame["state"] != "done"]
    for _, row in failed.iterrows():
        typer.echo(f"\n{row['run']}: {row['error'] or row['state']}: {one_line(row['message'] or '')}")
        typer.echo(printable(row["traceback"] or "").strip())
    reused = len(frame) - table.ran
    note = f"; {reused} were already done (--rerun runs them again)" if reused else ""
    typer.echo(f"\n{len(frame) - len(failed)} of {len(frame)} done{note}. The runs are in '{run_store.path}'.")
    if len(failed):
        raise typer.Exit(1)


def _parameters(given: Iterable[str]) -> dict[str, list[Any]]:
    parameters: dict[str, list[Any]] = {}
    for text in given:
        name, *values = json.loads(text) if text.startswith("[") else [text]
        if not values:
            raise typer.BadParameter(f"-p takes a name and at least one value: -p {name or 'chunk_size'} 128 256.")
        parameters.setdefault(name, []).extend(map(_parse_value, values))
    return parameters


def _parse_value(text: str) -> Any:
    """Convert a value in the way that papermill's command line does."""
    if text in (words := {"True": True, "False": False, "None": None}):
        return words[text]
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


class _SweepTable:
    """Shows a sweep as a live table; without a terminal, prints a line per finished notebook and a final table."""

    def __init__(self) -> None:
        from rich.live import Live

        self.ran = 0
        self._rows: dict[int, dict[str, Any]] = {}
        self._console = _console()
        self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=4)

    def show(self, at: int, row: dict[str, Any]) -> None:
        self._rows[at] = row
        self.ran += row["state"] == "queued"
        if not self._console.is_terminal and row["state"] not in ("queued", "running"):
            message = f": {row['error'] or ''} {row['message'] or ''}" if row["message"] else ""
            typer.echo(one_line(f"{row['run']} {row['state']} after {row['seconds']:g} s{message}"[:500]))
            sys.stdout.flush()

    def __enter__(self) -> _SweepTable:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._live.stop()
        if not self._console.is_terminal and kind is None:
            self._console.print(self._table())

    def _table(self) -> Table:
        hidden = {"run", "kind", "name", "started", "error", "traceback"}
        rows = [row for _, row in sorted(self._rows.items())]
        names = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in hidden]
        last = [name for name in ("state", "seconds", "message") if name in names]
        return _table([*[name for name in names if name not in last][:_MAX_COLUMNS], *last], rows)


# ----------------------------------------------------------------------------------------- runs


@runs.callback(invoke_without_command=True)
def _runs(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        list_runs()


@runs.command("list")
def list_runs(
    store: StoreOption = None,
    name: Annotated[str | None, typer.Option(help="Only runs of this experiment or notebook.")] = None,
    newest: Annotated[int, typer.Option("-n", min=1, help="How many runs to list.")] = 30,
) -> None:
    """List runs, the newest last."""
    from ragkit.runs.store import RunStore

    run_store = RunStore(store)
    found = [info for info in run_store.list() if name in (None, info.name)]
    rows = [
        {"run": info.id}
        | {each: getattr(info, each) for each in ("kind", "name", "state", "seconds")}
        | {"parameters": _pairs(info.parameters), "recorded": _pairs(info.recorded)}
        for info in found[-newest:]
    ]
    if not rows:
        typer.echo(f"There are no runs in '{run_store.path}'. Create one with 'ragkit sweep' or ragkit.record().")
        return
    _console().print(_table(list(rows[0]), rows))
    if len(found) > newest:
        typer.echo(f"{len(found) - newest} older runs are not shown. List them with -n {len(found)}.")


@runs.command(no_args_is_help=True)
def show(
    run: Annotated[str, typer.Argument(help="The run's id, or a beginning or end of it that no other id has.")],
    store: StoreOption = None,
    packages: Annotated[bool, typer.Option("--packages", help="Also list the installed packages.")] = False,
) -> None:
    """Show all details of a run."""
    from ragkit.runs.store import RunStore

    chosen = RunStore(store).get(run)
    info = chosen.info
    typer.echo(f"run: {one_line(info.id)}\nstarted: {one_line(info.started)}")
    for name, value in info.facts().items():
        if value is not None and not name.startswith("packages."):
            typer.echo(one_line(f"{name}: {value if isinstance(value, str) else json.dumps(value)}"))
    files = sorted(path for path in chosen.path.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in files:
        typer.echo(f"file: {one_line(str(path))}")
    if packages:
        typer.echo("\n".join(map(one_line, info.provenance.packages)))
    if info.traceback:
        typer.echo("\n" + printable(info.traceback))


@runs.command(no_args_is_help=True)
def compare(
    a: Annotated[str, typer.Argument(help="A run's id.")],
    b: Annotated[str, typer.Argument(help="Another run's id.")],
    store: StoreOption = None,
) -> None:
    """Show the differences between two runs: parameters, values, code, packages, data."""
    from ragkit.runs.store import RunStore

    frame = RunStore(store).compare(a, b)
    if frame.empty:
        typer.echo("The runs do not differ.")
        return
    rows = [{"": name, **dict(zip(frame.columns, pair, strict=True))} for name, *pair in frame.itertuples(name=None)]
    _console().print(_table(["", *frame.columns], rows))


@runs.command(no_args_is_help=True)
def export(
    to: Annotated[Path, typer.Option(help="A .csv or .parquet file with one row per run, or a .zip of all files.")],
    ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="The runs. Default: all.")] = None,
    store: StoreOption = None,
) -> None:
    """Write runs to one file."""
    from ragkit.runs.store import RunStore

    typer.echo(f"Exported to {printable(str(RunStore(store).export(to, ids or [])))}")


# -------------------------------------------------------------------------------------- output


def _table(names: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    names = list(names)
    for name in names:
        # Ids are copied from the table, so they are not cut.
        table.add_column(Text(one_line(name)), overflow="fold", no_wrap=name == "run")
    for row in rows:
        cells = {name: _format(row.get(name)) for name in names}
        style = _STYLES.get(cells.get("state", ""), "")
        table.add_row(*(Text(one_line(text), style=style if name == "state" else "") for name, text in cells.items()))
    return table


def _format(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MAX_CELL else f"{text[:_MAX_CELL]}…"


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_format(value)}" for name, value in values.items())


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_PLAIN_WIDTH)
