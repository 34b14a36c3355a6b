"""Ignore rules: ``.gitignore``, as Git reads it, and ``.ragkitignore`` with the same syntax.

A pattern becomes a regular expression. Every star but the last of a name is lazy and atomic: this finds the same
matches, and no pattern causes exponential backtracking. See https://git-scm.com/docs/gitignore; the tests compare with
Git itself. One difference: ``?`` and ``[!a]`` match a character, in Git a byte.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from pathlib import Path

IGNORE_FILES = (".gitignore", ".ragkitignore")
"""In increasing order of precedence."""

_MAX_BYTES = 2**20  # of one ignore file
_MAX_PATTERN = 1_000  # characters
_CLASSES = {
    "alnum": "0-9A-Za-z", "alpha": "A-Za-z", "blank": r" \t", "cntrl": r"\x00-\x1f\x7f", "digit": "0-9",
    "graph": r"\x21-\x7e", "lower": "a-z", "print": r"\x20-\x7e", "punct": r"!-/:-@\[-`{-~", "space": r"\s",
    "upper": "A-Z", "xdigit": "0-9A-Fa-f",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class _Pattern:
    regex: re.Pattern[str]  # matches the path relative to the folder of its ignore file; folders end with "/"
    ignores: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Rules:
    """The rules that apply in a folder: its own and those of all folders above.

    Attributes:
        above: The rules of the folders above.
        base: The prefix of the folder's paths: empty, or ending with ``/``.
    """

    above: Rules | None
    base: str
    patterns: tuple[_Pattern, ...]
    any_pattern: re.Pattern[str]

    def ignores(self, path: str, *, is_folder: bool) -> bool:
        """Return whether the rules ignore a path (with ``/``), given that the folders above it are not ignored."""
        name = path + "/" if is_folder else path
        rules: Rules | None = self
        while rules is not None:
            below = name[len(rules.base) :]
            if rules.any_pattern.match(below):
                for pattern in reversed(rules.patterns):
                    if pattern.regex.match(below):
                        return pattern.ignores
            rules = rules.above
        return False


def with_rules_of(folder: str | Path, base: str, above: Rules | None, *names: str) -> Rules | None:
    """Add the rules of a folder's ignore files, if there are any, to those of the folders above.

    Args:
        folder: The folder.
        base: The prefix of its paths in `Rules.ignores`.
        above: The rules of the folders above.
        names: The ignore files; `IGNORE_FILES` by default. Only regular files are read, and no links, as in Git.
    """
    expressions: list[tuple[str, bool]] = []
    for name in names or IGNORE_FILES:
        file = os.path.join(folder, name)
        try:
            if os.path.islink(file) or not os.path.isfile(file):
                continue
            with open(file, "rb") as stream:
                content = stream.read(_MAX_BYTES)
        except OSError:
            continue  # unreadable rules do not apply
        for line in os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")).split("\n"):
            if translated := translate(line):
                expressions.append(translated)
    if not expressions:
        return above
    patterns = tuple(_Pattern(re.compile(expression, re.DOTALL), ignores) for expression, ignores in expressions)
    any_pattern = re.compile("|".join(expression for expression, _ in expressions), re.DOTALL)
    return Rules(above, base, patterns, any_pattern)


def rules_above(root: Path) -> tuple[Rules | None, str]:
    """Return the rules for a folder from the Git repository that it is in.

    Returns:
        The rules of the folders above, and the prefix of the folder's paths in `Rules.ignores`. The rules are None
        without a repository, and if they ignore the folder itself, because the user named it explicitly.
    """
    top = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), None)
    if top is None:
        return None, ""
    rules = with_rules_of(top, "", None, ".git/info/exclude")
    base = ""
    for part in root.relative_to(top).parts:
        rules = with_rules_of(top / base, base, rules)
        base += f"{part}/"
        if rules is not None and rules.ignores(base[:-1], is_folder=True):
            return None, ""
    return rules, base


def translate(line: str) -> tuple[str, bool] | None:
    """Translate one line of an ignore file to a regular expression.

    Returns:
        The expression, which matches a whole path, and whether a match is ignored (False for ``!``: a match is
        included again). None for a line that is not a pattern, or never matches.
    """
    pattern = _without_spaces(line.removesuffix("\r"))
    if not pattern or pattern.startswith("#") or len(pattern) > _MAX_PATTERN:
        return None
    ignores = not pattern.startswith("!")
    pattern = pattern if ignores else pattern[1:]
    end = r"/\Z" if pattern.endswith("/") else r"/?\Z"
    pattern = pattern.removesuffix("/")
    names = pattern.removeprefix("/").split("/")
    if "/" not in pattern:
        names.insert(0, "**")
    # Between two "**" is a run of names. The first place where a run matches is as good as any later one.
    runs: list[list[str]] = [[]]
    for before, name in itertools.pairwise(["", *names]):
        if name != "**":
            translated = _name(name)
            if translated is None:
                return None
            runs[-1].append(translated)
        elif before != "**":
            runs.append([])
    first, *middle = ["/".join(run) for run in runs]
    if not middle:
        return first + end, ignores
    last = middle.pop()
    expression = f"{first}/" if first else ""
    expression += "".join(rf"(?>(?:[^/]+/)*?{run}/)" for run in middle)
    return expression + (rf"(?:[^/]+/)*{last}{end}" if last else rf"(?=[^/]).*{end}"), ignores


def _without_spaces(line: str) -> str:
    """Strip trailing spaces, except an escaped one."""
    cut = line.rstrip(" ")
    escapes = len(cut) - len(cut.rstrip("\\"))
    return cut + " " if escapes % 2 and len(cut) < len(line) else cut


def _name(glob: str) -> str | None:
    """Return the expression for one name, without slashes; None if nothing can match."""
    pieces = [""]
    at = 0
    while at < len(glob):
        char = glob[at]
        at += 1
        if char == "*":
            pieces += [""] if pieces[-1] or len(pieces) == 1 else []
        elif char == "?":
            pieces[-1] += "[^/]"
        elif char == "[":
            found = _class(glob, at)
            if found is None:
                return None
            expression, at = found
            pieces[-1] += expression
        elif char == "\\":
            if at == len(glob):
                return None
            pieces[-1] += re.escape(glob[at])
            at += 1
        else:
            pieces[-1] += re.escape(char)
    first, *rest = pieces
    middle = "".join(f"(?>[^/]*?{piece})" for piece in rest[:-1])
    return "(?=[^/])" + first + middle + (f"[^/]*{rest[-1]}" if rest else "") if glob else None


def _class(glob: str, at: int) -> tuple[str, int] | None:
    """Return the expression for ``[...]``, whose content starts at `at`, and its end; None if it is not closed."""
    is_negated = glob[at : at + 1] in ("!", "^")
    at += is_negated
    start = at
    members = ""
    while at < len(glob):
        if glob[at] == "]" and at > start:
            chars = f"[{'^' if is_negated else ''}{members}]" if members else "[^/]" if is_negated else "(?!)"
            return f"(?!/){chars}", at + 1
        if glob.startswith("[:", at) and (name := re.match(r"\[:([a-z]+):\]", glob[at:])):
            if name[1] not in _CLASSES:
                return None
            members += _CLASSES[name[1]]
            at += len(name[0])
            continue
        low, at = _member(glob, at)
        high = low
        if glob[at : at + 1] == "-" and at + 1 < len(glob) and glob[at + 1] != "]":
            high, at = _member(glob, at + 1)
        members += f"{re.escape(low)}-{re.escape(high)}" if low <= high else re.escape(low)
    return None


def _member(glob: str, at: int) -> tuple[str, int]:
    is_escape = glob[at] == "\\" and at + 1 < len(glob)
    return glob[at + is_escape], at + is_escape + 1
