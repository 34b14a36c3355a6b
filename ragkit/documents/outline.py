"""Headings of Python, reStructuredText, TeX and Org files: classes, functions and sections."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Callable, Mapping

from ragkit.documents.document import Mark

_MAX_CODE = 500_000  # characters; longer code is usually generated, and its syntax tree takes much memory
_ADORNMENT = re.compile(r"([=\-~^\"'`#*+.:_<>])\1{2,}[ \t]*")
_TEX = re.compile(r"^[ \t]*\\(chapter|section|subsection|subsubsection)\*?(?:\[[^\]\n]*\])?\{([^\n]*)\}", re.MULTILINE)
_TEX_LEVELS = {"chapter": 1, "section": 2, "subsection": 3, "subsubsection": 4}
_ORG = re.compile(r"^(\*{1,6})[ \t]+(?:(?:TODO|DONE)[ \t]+)?(\S.*)$", re.MULTILINE)


def outline(text: str, kind: str) -> tuple[Mark, ...]:
    """Return the headings of a text; none for other kinds, or if the text cannot be parsed.

    Args:
        text: The text, with ``\\n`` line ends.
        kind: The kind of file; see `ragkit.documents.filetypes.kind_of`.
    """
    find = _OUTLINES.get(kind)
    return tuple(mark for mark in find(text) if mark.label) if find is not None else ()


def _python(text: str) -> list[Mark]:
    """Return classes, their methods, and functions."""
    if len(text) > _MAX_CODE:
        return []
    try:
        with warnings.catch_warnings(action="ignore"):  # invalid escape sequences
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    starts = _line_starts(text)
    found: list[Mark] = []
    stack: list[tuple[ast.stmt, int]] = [(node, 1) for node in reversed(tree.body)]
    while stack:
        node, level = stack.pop()
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        found.append(Mark(starts[line - 1], "heading", node.name, level))
        if isinstance(node, ast.ClassDef) and level < 6:
            stack += [(child, level + 1) for child in reversed(node.body)]
    return found


def _rst(text: str) -> list[Mark]:
    """Return lines with an adornment below, and optionally above. Styles get levels in order of appearance."""
    lines = text.split("\n")
    starts = _line_starts(text)
    styles: list[tuple[str, bool]] = []
    found: list[Mark] = []
    for at, below in enumerate(lines[1:], start=1):
        title = lines[at - 1]
        above = lines[at - 2] if at > 1 else ""
        mark = _ADORNMENT.fullmatch(below)
        if (
            mark is None
            or not title.strip()
            or len(below.rstrip()) < len(title.rstrip())
            or _ADORNMENT.fullmatch(title)
        ):
            continue
        has_line_above = above.rstrip() == below.rstrip()
        follows_text = above.strip() and _ADORNMENT.fullmatch(above) is None
        if not has_line_above and (follows_text or title[0].isspace()):
            continue
        style = (mark[1], has_line_above)
        if style not in styles:
            styles.append(style)
        start = starts[at - 2] if has_line_above else starts[at - 1]
        found.append(Mark(start, "heading", " ".join(title.split())[:300], min(6, styles.index(style) + 1)))
    return found


def _tex(text: str) -> list[Mark]:
    return [Mark(m.start(), "heading", " ".join(m[2].split())[:300], _TEX_LEVELS[m[1]]) for m in _TEX.finditer(text)]


def _org(text: str) -> list[Mark]:
    return [Mark(m.start(), "heading", " ".join(m[2].split())[:300], len(m[1])) for m in _ORG.finditer(text)]


def _line_starts(text: str) -> list[int]:
    return [0, *(found.end() for found in re.finditer("\n", text))]


_OUTLINES: Mapping[str, Callable[[str], list[Mark]]] = {
    ".py": _python, ".pyi": _python, ".rst": _rst, ".tex": _tex, ".org": _org,
}  # fmt: skip
