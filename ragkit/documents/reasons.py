"""What a parser raised, as a reason that a person can act on."""

from __future__ import annotations

from ragkit.documents.encoding import clean

__all__ = ["reason_of"]

_UNFOLDS = frozenset({"LimitReachedError", "EntitiesForbidden"})  # pypdf's, defusedxml's


def reason_of(error: Exception) -> str:
    """Say in one sentence why a file, a page or a row could not be read."""
    match error:
        case TimeoutError():
            return "not read in time"
        case OSError(errno=int()):  # else it is not the system's, but a parser's
            return f"cannot be read: {error.strerror}"
        case RecursionError():
            return "nested too deep to be read"
        case MemoryError():
            return "too large for this machine's memory"
    detail = clean(" ".join(str(error).split())[:200]) or type(error).__name__
    if type(error).__name__ in _UNFOLDS:  # by name: importing their modules for every text file would cost a while
        return f"unfolds to more than is safe to read: {detail}"
    return f"damaged, or not what its name says: {detail}"
