"""Which index is meant, where a command does not say."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from ragkit.errors import InputError

__all__ = ["default_index", "existing_index", "find_index", "index_from_environment"]

INDEXES = Path("indexes")


def find_index(given: Path | None) -> Path:
    """Say which index is meant: the one given, RAGKIT_INDEX, or the only one in ./indexes.

    Raises:
        InputError: That cannot be told; the message lists what there is.
    """
    if found := given or index_from_environment():
        return found
    here = _indexes()
    if len(here) == 1:
        return here[0]
    what = f"There are several: {', '.join(map(str, here))}" if here else f"There is none in '{INDEXES.absolute()}'"
    how = "Name one" if here else "Make one with 'ragkit index FOLDER', or name one"
    raise InputError(f"Which index? {what}. {how} (--index FOLDER or RAGKIT_INDEX).")


def existing_index(given: Path | None) -> Path:
    """`find_index`, for those who need it to be there.

    Raises:
        InputError: That cannot be told, or there is no such index.
    """
    folder = find_index(given)
    if not (folder / "index.db").exists():
        others = f" There are: {', '.join(map(str, _indexes()))}." if _indexes() else ""
        raise InputError(f"There is no index at '{folder}'. Make it: ragkit index FOLDER --index {folder}.{others}")
    return folder


def default_index(documents: str | Path) -> Path:
    """Say where the index of a folder, of a file in it or of a page goes: ``indexes/<the folder's or host's name>``."""
    if str(documents).startswith(("http://", "https://")):
        return INDEXES / (urlsplit(str(documents)).hostname or "pages")
    place = Path(documents).resolve()
    return INDEXES / ((place if place.is_dir() else place.parent).name or "documents")


def index_from_environment() -> Path | None:
    """The index that RAGKIT_INDEX names."""
    named = os.environ.get("RAGKIT_INDEX")
    return Path(named) if named else None


def _indexes() -> list[Path]:
    return sorted(path.parent for path in INDEXES.glob("*/index.db"))
