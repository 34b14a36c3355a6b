"""The examples of docs/protocol.md, each with the directions in which it travels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"


class Example(NamedTuple):
    line: int
    directions: tuple[str, ...]
    text: str


def examples() -> Iterator[Example]:
    """Every ```json block, with the directions of the last line that begins with "Goes:"."""
    directions: tuple[str, ...] = ()
    block: list[str] | None = None
    began = 0
    for number, line in enumerate(PAGE.read_text(encoding="utf-8").splitlines(), start=1):
        if block is not None:
            if line == "```":
                yield Example(began, directions, "\n".join(block))
                block = None
            else:
                block.append(line)
        elif line.startswith("#"):
            directions = ()
        elif line.startswith("Goes: "):
            directions = tuple(line.removeprefix("Goes: ").rstrip(".").split(", "))
        elif line == "```json":
            block, began = [], number
    assert block is None


EXAMPLES = list(examples())
