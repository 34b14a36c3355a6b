"""Who is publishing: a notebook, a papermill run, a script, a command."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from msgspec import UNSET, UnsetType

from ragkit.live.messages import Origin

Kind = Literal["notebook", "papermill", "script", "cli"]


def ancestors() -> Iterator[tuple[int, list[str]]]:
    """This process's ancestors, nearest first: process id and command line."""
    try:
        psutil: Any = importlib.import_module("psutil")  # ipykernel brings it; a plain script may lack it
    except ImportError:
        yield os.getppid(), []
        return
    try:
        for process in psutil.Process().parents():
            try:
                command = process.cmdline()
            except psutil.Error:
                command = []  # another user's process
            yield process.pid, command
    except psutil.Error:
        return  # an ancestor ended while we looked: there are no more to see


def find_origin(*, kind: Kind | None = None, name: str | None = None, env: Mapping[str, str] = os.environ) -> Origin:
    """Say who publishes: the notebook, the papermill run or the script, and this run of it.

    Args:
        kind: Given by who knows better, for example the command line.
        name: Likewise.
        env: The environment to look at.

    Returns:
        The origin. Its ``run_id`` is unique for each process; what a papermill run forks keeps the run's.
        Its ``path`` is left out where who knows better says that this is something else.
    """
    found_kind, found_name, path = _identify(env)
    kind, name = kind or found_kind, name or found_name
    return Origin(
        kind=kind,
        name=name[:1_024].encode(errors="replace").decode(),  # files may have names that are not UTF-8
        run_id=_run_id(0 if kind == "papermill" else os.getpid()),
        path=_file(path) if path is not None and (kind, name) == (found_kind, found_name) else UNSET,
    )


def find_notebook(*, env: Mapping[str, str] = os.environ) -> Path | None:
    """The path of the notebook that this process runs, or None where that cannot be known."""
    kind, _, path = _identify(env)
    return path if kind != "script" else None


def is_run_without_browser(*, env: Mapping[str, str] = os.environ) -> bool:
    """Whether this kernel belongs to a batch run, so that what is shown is saved and seen by nobody meanwhile."""
    executors = {"nbconvert", "jupyter-nbconvert", "jupyter-execute", "jupyter-run"}
    starter = [Path(word).stem for word in next(ancestors(), (0, []))[1][:3] if word != "-m"][:2]  # python, program
    return _identify(env)[0] == "papermill" or not executors.isdisjoint(starter)


@functools.cache
def _run_id(_key: int) -> str:
    return uuid.uuid4().hex


def _identify(env: Mapping[str, str]) -> tuple[Kind, str, Path | None]:
    if not _in_kernel():
        script = file = Path(sys.argv[0] if sys.argv else "")
        if script.name == "__main__.py":
            script = script.parent  # python -m package
        if script.name in ("", "-c", "-m"):
            return "script", "python", None
        return "script", script.name, file

    namespace = vars(sys.modules["__main__"])
    _, parent = next(ancestors(), (0, []))
    injected = namespace.get("PAPERMILL_INPUT_PATH") or namespace.get("PAPERMILL_OUTPUT_PATH")
    path = injected if isinstance(injected, str) else _papermill_input(parent)
    if path:
        return "papermill", Path(path).name, _existing(path)
    if isinstance(path := namespace.get("__vsc_ipynb_file__"), str):
        return "notebook", Path(path).name, _existing(path)
    session = env.get("JPY_SESSION_NAME", "")
    # A kernel that another kernel started has inherited the name of that one's notebook.
    nested = any(Path(word).stem == "ipykernel_launcher" for word in parent)
    if session and not nested:
        return "notebook", Path(session).name, _existing(session)
    starter = Path(session).name or next((Path(word).name for word in parent if word.endswith(".py")), "")
    if any(isinstance(cell, str) and cell.startswith("# Parameters\n") for cell in namespace.get("In", ())):
        return "papermill", f"a notebook run by {starter}" if starter else "a notebook", None
    return "notebook", f"a notebook run by {starter}" if starter else "a notebook", None


def _in_kernel() -> bool:
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython and hasattr(ipython, "get_ipython") else None
    return hasattr(shell, "kernel")


def _papermill_input(command: Sequence[str]) -> str | None:
    """The notebook in ``[python] [-m] papermill [options] INPUT [OUTPUT] ...``, or None if it is not papermill."""
    for at, word in enumerate(command[:4]):
        if Path(word).stem == "papermill" or (Path(word).name == "__main__.py" and "papermill" in Path(word).parts):
            rest = command[at + 1 :]
            return next((word for word in rest if word.endswith(".ipynb")), None)
    return None


def _file(path: Path) -> str | UnsetType:
    with contextlib.suppress(OSError, ValueError):  # the working directory is gone; or the name is not UTF-8
        file = os.path.abspath(path)  # not resolved: the Jupyter server knows it by its links, too
        file.encode()
        # A Jupyter session may be a console's, and VS Code knows notebooks that were never saved.
        if len(file) <= 1_024 and os.path.isfile(file):
            return file
    return UNSET


def _existing(path: str) -> Path | None:
    found = Path(path).absolute()
    return found if found.parent.is_dir() else None
