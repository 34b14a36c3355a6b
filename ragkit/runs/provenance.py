"""The provenance of a run: git commit, packages, machine, process, seeds and data."""

from __future__ import annotations

import dataclasses
import functools
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ragkit.hashing import hash_bytes

GIT_TIMEOUT_SECONDS = 30.0
_SAME_START_SECONDS = 10.0  # tolerance for adjustments of the system clock


@dataclasses.dataclass(frozen=True, slots=True)
class Git:
    """The state of a working tree.

    Attributes:
        commit: The full hash of HEAD.
        dirty: Whether tracked files differ from it. Untracked files are ignored.
        diff: Hash of ``git diff HEAD``, which distinguishes two dirty trees; None if the tree is clean.
    """

    commit: str
    dirty: bool = False
    diff: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Provenance:
    """The code, environment, seeds and data of a run.

    Attributes:
        git: The state of the code's working tree; None outside of a git repository.
        python: Version of the interpreter.
        executable: Path of the interpreter.
        platform: Operating system, its version and the processor.
        packages: All installed packages as ``name==version``, sorted.
        seeds: Random seeds by name.
        data: Digests of the data by name; see `ragkit.hashing.hash_path`.
    """

    git: Git | None = None
    python: str = ""
    executable: str = ""
    platform: str = ""
    packages: tuple[str, ...] = ()
    seeds: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """A process on a machine; the start time and host are needed because process ids are reused."""

    pid: int
    started: float
    host: str

    def is_gone(self) -> bool:
        """Return whether the process has ended; False for a process on another machine, which cannot be checked."""
        import psutil

        if self.host != platform.node():
            return False
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.started) > _SAME_START_SECONDS)
        except psutil.NoSuchProcess:
            return True
        except (psutil.Error, ValueError, OverflowError):
            return False


def this_process() -> Process:
    """Describe the calling process."""
    import psutil

    return Process(os.getpid(), psutil.Process().create_time(), platform.node())


def find_provenance(
    folder: str | Path = ".", *, seeds: Mapping[str, Any] | None = None, data: Mapping[str, str] | None = None
) -> Provenance:
    """Describe this process and the code in a folder.

    Args:
        folder: The folder of the code; its git state is recorded.
        seeds: Random seeds by name, stored unchanged.
        data: Digests of the data by name, stored unchanged.
    """
    return dataclasses.replace(environment(), git=find_git(folder), seeds=dict(seeds or {}), data=dict(data or {}))


@functools.cache
def environment() -> Provenance:
    """Describe this interpreter, its packages and the machine; cached for the process."""
    installed = {f"{each.name}=={each.version}" for each in metadata.distributions() if each.name}
    return Provenance(
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        packages=tuple(sorted(installed, key=str.casefold)),
    )


def find_git(folder: str | Path = ".") -> Git | None:
    """Describe the git working tree that contains a folder; None without a repository, a commit or git itself."""
    try:
        commit = _git(folder, "rev-parse", "--verify", "HEAD").decode().strip()
        # Ignore diff programs and filters from the repository's configuration.
        diff = _git(folder, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color")
    except (OSError, subprocess.SubprocessError):
        return None
    return Git(commit, bool(diff), hash_bytes(diff) if diff else None)


def _git(folder: str | Path, *arguments: str) -> bytes:
    return subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=GIT_TIMEOUT_SECONDS,
    ).stdout
