"""docs/protocol.md says what the code does: its examples decode, its tables are complete."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from ragkit import events
from ragkit_server.app import RagkitApp

PAGE = Path(__file__).resolve().parent.parent / "docs" / "protocol.md"

DIRECTIONS: dict[str, tuple[Callable[[str], msgspec.Struct], Any]] = {
    "listener → hub": (events.decode_client_message, events.ClientMessage),
    "hub → listener": (events.decode_listener_message, events.ListenerMessage),
    "publisher → hub": (events.decode_engine_message, events.EngineMessage),
    "hub → publisher": (events.decode_hub_message, events.HubMessage),
}


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


def tags(union: Any) -> set[str]:
    return {str(member.__struct_config__.tag) for member in union.__args__}


def missing(part: Any, whole: Any) -> list[str]:
    """Paths in ``part`` that are not in ``whole``: keys that the decoder ignored, values that it changed."""
    if isinstance(part, dict) and isinstance(whole, dict):
        return [
            f".{key}{path}" for key, value in part.items() for path in missing(value, whole.get(key, f"no '{key}'"))
        ]
    if isinstance(part, list) and isinstance(whole, list) and len(part) == len(whole):
        return [f"[{i}]{path}" for i, pair in enumerate(zip(part, whole, strict=True)) for path in missing(*pair)]
    return [] if part == whole else [f": {part!r} is not {whole!r}"]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: f"line {example.line}")
def test_an_example_decodes_in_each_of_its_directions(example: Example) -> None:
    assert example.directions, "no line 'Goes: ...' under the heading above it"
    for direction in example.directions:
        decode, _ = DIRECTIONS[direction]
        again = json.loads(events.encode(decode(example.text)))
        # A key that events.py does not know would be ignored in silence, on the wire and here.
        assert missing(json.loads(example.text), again) == []


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_every_message_type_has_an_example(direction: str) -> None:
    _, union = DIRECTIONS[direction]
    shown = {json.loads(example.text)["type"] for example in EXAMPLES if direction in example.directions}
    assert tags(union) - shown == set()


def test_every_broadcast_is_shown_with_its_stamp() -> None:
    stamped = {"epoch", "seq", "time"}
    shown = {m["type"] for m in (json.loads(example.text) for example in EXAMPLES) if stamped <= m.keys()}
    assert tags(events.Broadcast) - shown == set()


def first_column(header: str) -> set[str]:
    """The code names in the first column of the table with this header."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found: set[str] = set()
    for line in lines[lines.index(header) + 2 :]:
        if not line.startswith("|"):
            return found
        (name,) = re.findall(r"^\| `(\w+)` \|", line)
        found.add(name)
    return found


def test_the_error_codes_are_those_that_there_are() -> None:
    assert first_column("| code | meaning |") == {str(code) for code in events.ErrorCode}


def test_the_traits_are_those_that_there_are() -> None:
    assert first_column("| trait | default | limits |") == set(RagkitApp.class_own_traits(config=True))
