"""Atomic writes of JSON and Parquet files, and conversion of values to JSON."""

from __future__ import annotations

import contextlib
import math
import os
import re
import secrets
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ragkit.errors import InputError, RagkitError, needs

if TYPE_CHECKING:
    import pandas as pd

_FILE_NAME = re.compile(r"[^\W_][\w.@+-]*")
_MAX_NAME_BYTES = 120


def plain(value: Any, name: str, *, nested: bool = False) -> Any:
    """Convert a value to plain JSON types.

    Args:
        value: The value to store.
        name: The value's name, for error messages.
        nested: Whether dictionaries are accepted.

    Raises:
        InputError: The value has no JSON form.
    """
    match value:
        case None | bool():
            return value
        case int() if -(2**63) <= value < 2**63:
            return int(value)
        case float():
            if math.isinf(value):
                warnings.warn(
                    f"'{name}' is {value}, and JSON has no infinity: null is stored. Give str({name}) to keep it.",
                    RuntimeWarning,
                    stacklevel=5,
                )
            return float(value) if math.isfinite(value) else None
        case str():
            return value.encode(errors="replace").decode()
        case list() | tuple():
            return [plain(each, name, nested=nested) for each in value]
        case Mapping() if nested:
            if bad := [key for key in value if not isinstance(key, str)]:
                raise InputError(f"'{name}' has the key {bad[0]!r:.100}. Keys must be text: str({bad[0]!r:.100}).")
            return {plain(key, name): plain(each, f"{name}.{key}", nested=True) for key, each in value.items()}
    if hasattr(value, "tolist"):  # NumPy's scalars and arrays, tensors, a Series
        return plain(value.tolist(), name, nested=nested)
    hint = {
        "dict": "Give its items one by one, record(**values), or ragkit.runs.current_run().write_json(name, values)",
        "set": "Give sorted(values)",
        "int": "It is too large: give str(value) or float(value)",
    }.get(type(value).__name__, "Give str(value), a number, or a pandas.DataFrame")
    raise InputError(
        f"'{name}' is a {type(value).__name__}, which cannot be kept. {hint}. "
        "Numbers, text, True, False, None, lists of them and DataFrames can."
    )


def write_json(path: Path, value: Any) -> None:
    """Write a result of `plain`, or a dataclass of such values, as indented JSON."""
    with replacing(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def write_parquet(frame: pd.DataFrame, path: Path, name: str) -> None:
    """Write a table as Parquet.

    Raises:
        InputError: The table has no Parquet form.
        MissingExtraError: pyarrow is not installed.
        RagkitError: The file could not be written.
    """
    with needs("pyarrow", extra="eval"), replacing(path) as temporary:
        try:
            frame.to_parquet(temporary, engine="pyarrow")
        except (ValueError, TypeError, NotImplementedError) as error:
            raise InputError(
                f"'{name}' cannot be written as Parquet: {error}. "
                "Give every column one type (frame.astype(str) is the last resort)."
            ) from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write, and atomically replace ``path`` with it once it is flushed to disk.

    Raises:
        RagkitError: The file could not be written; ``path`` is unchanged.
    """
    temporary = path.with_name(f".{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        if sys.platform != "win32":  # where folders cannot be opened
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    except OSError as error:
        raise refused(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def refused(path: Path, error: OSError) -> RagkitError:
    """Return the error for a failed write."""
    return RagkitError(
        f"'{path}' could not be written: {error.strerror or error}. Free some disk space, fix the permissions, "
        "or choose another folder (RAGKIT_RUNS)."
    )


def file_name(name: str) -> str:
    """Return a name if it is a valid file name on every operating system.

    Raises:
        InputError: The name is not valid, or could point outside the folder.
    """
    if not _FILE_NAME.fullmatch(name) or name.endswith(".") or len(name.encode(errors="replace")) > _MAX_NAME_BYTES:
        raise InputError(
            f"{name!r:.200} cannot be a file's name. Begin with a letter or digit, followed by letters, digits "
            f"or any of _ . @ + -, at most {_MAX_NAME_BYTES} bytes in all."
        )
    return name
