"""Hashes of values and of files."""

from __future__ import annotations

import hashlib
import json
from typing import Any

__all__ = ["hash_values"]


def hash_values(*parts: Any) -> str:
    """Return the hash of plain values as 32 hexadecimal digits; equal for equal values in every process."""
    text = json.dumps(parts, ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
