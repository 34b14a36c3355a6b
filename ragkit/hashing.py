"""Hashes of values, of files and of folders: BLAKE2b, as 32 hexadecimal digits."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

from ragkit.errors import SourceNotFoundError


def hash_bytes(data: bytes) -> str:
    """Return the hash of bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def hash_values(*parts: Any) -> str:
    """Return the hash of JSON values. Equal values have equal hashes in every process."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hash_bytes(text.encode())


def hash_file(path: Path) -> str:
    """Return the hash of a file's bytes.

    Raises:
        OSError: The file cannot be read, or is not a regular file.
    """
    # The file may have been replaced by a pipe since it was found: opening that must not block.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file any more")
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def hash_path(path: str | Path) -> str:
    """Return the hash of a file's bytes, or of the names and bytes of all files in a folder.

    Hidden files and folders are ignored.

    Raises:
        SourceNotFoundError: There is no such file or folder.
    """
    path = Path(path)
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        raise SourceNotFoundError(path)
    whole = hashlib.blake2b(digest_size=16)
    for folder, subfolders, names in os.walk(path):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(names):
            file = Path(folder, name)
            if not name.startswith(".") and file.is_file():  # no pipes or broken links
                whole.update(os.fsencode(file.relative_to(path).as_posix()) + b"\0" + hash_file(file).encode())
    return whole.hexdigest()
