"""Detects what kind of program publishes: a notebook, a papermill run, a script or a command."""

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
    """Yield the process id and command line of this process's ancestors, nearest first."""
    try:
        psutil: Any = importlib.import_module("psutil")  # installed with ipykernel, but a plain script may lack it
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
        return  # an ancestor has ended meanwhile


def find_origin(*, kind: Kind | None = None, name: str | None = None, env: Mapping[str, str] = os.environ) -> Origin:
    """Detect the origin of this process's events: the notebook, papermill run or script.

    Args:
        kind: Overrides the detected kind; used, for example, by the command line.
        name: Overrides the detected name.
        env: The environment variables.

    Returns:
        The origin. Its ``run_id`` is unique for each process, except that processes forked by a papermill run share
        the run's id. Its ``path`` is absent if ``kind`` or ``name`` differs from what was detected.
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
    """Return the path of the notebook that this process runs, or None if it cannot be determined."""
    kind, _, path = _identify(env)
    return path if kind != "script" else None


def is_run_without_browser(*, env: Mapping[str, str] = os.environ) -> bool:
    """Return whether this kernel belongs to a batch run, whose output is saved but not displayed while it runs."""
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
    # A kernel started by another kernel has inherited JPY_SESSION_NAME from it.
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
    """Return INPUT of ``[python] [-m] papermill [options] INPUT [OUTPUT] ...``, or None for another command."""
    for at, word in enumerate(command[:4]):
        if Path(word).stem == "papermill" or (Path(word).name == "__main__.py" and "papermill" in Path(word).parts):
            rest = command[at + 1 :]
            return next((word for word in rest if word.endswith(".ipynb")), None)
    return None


def _file(path: Path) -> str | UnsetType:
    with contextlib.suppress(OSError, ValueError):  # the working directory is gone, or the name is not UTF-8
        file = os.path.abspath(path)  # symlinks are not resolved, because the Jupyter server uses the unresolved path
        file.encode()
        # The file may not exist: a Jupyter session may be a console, and VS Code has notebooks that were never saved.
        if len(file) <= 1_024 and os.path.isfile(file):
            return file
    return UNSET


def _existing(path: str) -> Path | None:
    found = Path(path).absolute()
    return found if found.parent.is_dir() else None
