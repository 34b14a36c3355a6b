"""Escaping of untrusted text for a terminal.

Documents, models and other people's notebooks are untrusted: an escape sequence in a file's name
must not clear the screen, change the window's title or reverse the text.
"""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1, bidirectional controls, lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Replace control characters by visible escapes, like ``\x1b``; newlines and tabs stay."""
    return _UNSAFE.sub(lambda match: ascii(match.group())[1:-1], text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """Return `printable` text on one line: every run of white space becomes one space."""
    return printable(" ".join(text.split()))
