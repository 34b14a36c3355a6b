"""Text from outside, made fit for a terminal.

Documents, models and other people's notebooks are untrusted: an escape sequence in a file's name
must not clear the screen, retitle the window or turn the text around.
"""

from __future__ import annotations

import re

# C0 without tab and newline, DEL, C1, what changes the direction of writing, lone surrogates.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    r"""Show characters that command a terminal as escapes, like ``\x1b``; lines and tabs stay."""
    return _UNSAFE.sub(lambda match: ascii(match.group())[1:-1], text.replace("\r\n", "\n"))


def one_line(text: str) -> str:
    """`printable`, with every run of white space made one space."""
    return printable(" ".join(text.split()))
