"""What a run was made of: the code's state in git, the packages, the machine, the process, the seeds and the data."""

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
_SAME_START_SECONDS = 10.0  # by so much a system's clock may be put right meanwhile


@dataclasses.dataclass(frozen=True, slots=True)
class Git:
    """The state of a working tree.

    Attributes:
        commit: The full hash of HEAD.
        dirty: Whether tracked files differ from it. Untracked files are not looked at.
        diff: Hash of ``git diff HEAD``, so that two dirty trees can be told apart; None if it is clean.
    """

    commit: str
    dirty: bool = False
    diff: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Provenance:
    """What a run was made of.

    Attributes:
        git: The code's state; None outside of git.
        python: Version of the interpreter.
        executable: The interpreter.
        platform: System, its version and the processor.
        packages: Everything installed beside that interpreter, as ``name==version``, sorted.
        seeds: Seeds of random numbers by name.
        data: Digests of the data that was used, by name; see `ragkit.hashing.hash_path`.
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
    """A process on some machine; its id alone is given again to others."""

    pid: int
    started: float
    host: str

    def is_gone(self) -> bool:
        """Whether it has ended. Of another machine's process nobody can tell: False."""
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
    """Describe the process that asks."""
    import psutil

    return Process(os.getpid(), psutil.Process().create_time(), platform.node())


def find_provenance(
    folder: str | Path = ".", *, seeds: Mapping[str, Any] | None = None, data: Mapping[str, str] | None = None
) -> Provenance:
    """Describe this process, and the code in a folder.

    Args:
        folder: Where the code is that git may know.
        seeds: As they are to be kept.
        data: Likewise.
    """
    return dataclasses.replace(environment(), git=find_git(folder), seeds=dict(seeds or {}), data=dict(data or {}))


@functools.cache
def environment() -> Provenance:
    """Describe this interpreter, its packages and the machine."""
    installed = {f"{each.name}=={each.version}" for each in metadata.distributions() if each.name}
    return Provenance(
        python=platform.python_version(),
        executable=sys.executable,
        platform=platform.platform(),
        packages=tuple(sorted(installed, key=str.casefold)),
    )


def find_git(folder: str | Path = ".") -> Git | None:
    """Describe the git working tree that a folder is in; None where there is none, no commit, or no git."""
    try:
        commit = _git(folder, "rev-parse", "--verify", "HEAD").decode().strip()
        # What the repository's settings would run instead has no say in what differs.
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
