"""docs/protocol.md agrees with the code: its examples decode, its tables are made from it."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Callable
from typing import Any, get_args

import msgspec
import pytest

from ragkit.live import messages
from tests.support.protocol_page import EXAMPLES, PAGE, Example

DIRECTIONS: dict[str, tuple[Callable[[str], msgspec.Struct], Any]] = {
    "listener → hub": (messages.decode_client_message, messages.ClientMessage),
    "hub → listener": (messages.decode_listener_message, messages.ListenerMessage),
    "publisher → hub": (messages.decode_engine_message, messages.EngineMessage),
    "hub → publisher": (messages.decode_hub_message, messages.HubMessage),
}
MESSAGES = list(dict.fromkeys(message for _, union in DIRECTIONS.values() for message in get_args(union)))


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
        again = json.loads(messages.encode(decode(example.text)))
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
    assert tags(messages.Broadcast) - shown == set()


def test_the_tables_are_up_to_date() -> None:
    generate = runpy.run_path(str(PAGE.with_name("generate.py")))["generate"]
    page = PAGE.read_text(encoding="utf-8")
    assert page == generate(page), "docs/protocol.md is not what `make docs` makes of it"


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__struct_config__.tag)
def test_every_key_is_documented_with_its_message(message: type[msgspec.Struct]) -> None:
    """In a table, in the text, or at least in an example."""
    tag = message.__struct_config__.tag
    sections = re.split(r"^###? ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (section,) = (section for section in sections if tag in section.partition("\n")[0].split(" and "))
    (broadcasts,) = (section for section in sections if section.startswith("Broadcasts\n"))
    documented = set(re.findall(r"[`\".](\w+)[`\"]", section + broadcasts))
    assert set(message.__struct_fields__) - documented == set()
