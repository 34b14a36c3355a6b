"""Generate the tables of protocol.md from the code: `make docs`.

Each table is between ``<!-- generated: NAME -->`` and ``<!-- end -->``. The meaning of a key is the docstring
below it in ragkit/live/messages.py; that of a setting is its help in ragkit_server/app.py.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import FieldInfo

from ragkit.live import messages
from ragkit_server.app import RagkitApp
from ragkit_server.handlers.asyncapi import field_docs

PAGE = Path(__file__).with_name("protocol.md")
REGION = re.compile(r"^<!-- generated: (?P<name>.+) -->\n(?:.*\n)*?<!-- end -->$", re.MULTILINE)

TYPES = {messages.Id: "id", messages.Name: "name", messages.Text: "text", messages.Count: "count"}
WORDS = TYPES | {str: "string", int: "integer", float: "number", bool: "boolean", messages.ErrorCode: "a code below"}
UNIONS = (messages.ClientMessage, messages.ListenerMessage, messages.EngineMessage, messages.HubMessage)
MESSAGES = {message.__struct_config__.tag: message for union in UNIONS for message in get_args(union)}
STAMP = messages.EnginesChanged.__bases__[0]  # the keys of all broadcasts


def generate(page: str) -> str:
    """Return the page with tables generated from the code."""
    keys = Keys()
    tables: dict[str, Callable[[], Iterator[str]]] = {"codes": codes, "traits": traits, "types": limits}

    def region(match: re.Match[str]) -> str:
        name = match["name"]
        if name.startswith("keys of "):
            heading = re.findall(r"^#+ (.+)$", page[: match.start()], re.MULTILINE)[-1]
            lines = keys.table(name.removeprefix("keys of "), anchor=f"#{heading.lower()}")
        else:
            lines = tables[name]()
        return "\n".join([f"<!-- generated: {name} -->", *lines, "<!-- end -->"])

    return REGION.sub(region, page)


class Keys:
    """Tables of keys. The keys of an object are listed at its first use on the page; later uses link to it."""

    def __init__(self) -> None:
        self._anchors: dict[type, str] = {message: f"#{tag}" for tag, message in MESSAGES.items()}

    def table(self, name: str, *, anchor: str) -> Iterator[str]:
        """Yield the table of a message's own keys, or of the keys of all broadcasts."""
        if name == "all broadcasts":
            # No column for defaults: a publisher may omit these keys, and a listener always gets them.
            short = ([key, kind, text] for key, kind, _, text in self._rows(STAMP, anchor))
            return table("key | type | meaning", short)
        message = MESSAGES[name]
        inherited = STAMP.__struct_fields__ if issubclass(message, STAMP) else ()
        return table("key | type | default | meaning", self._rows(message, anchor, leave_out=inherited))

    def _rows(
        self, struct: type[Struct], anchor: str, path: str = "", leave_out: Collection[str] = ()
    ) -> Iterator[list[str]]:
        docs = field_docs(struct)
        for field in msgspec.structs.fields(struct):
            if field.name in leave_out:
                continue
            key = f"{path}{field.encode_name}"
            inner, brackets = only_struct(field.type)
            new = inner is not None and inner not in self._anchors
            # An object that is always present needs no row of its own beside those of its keys.
            if not new or brackets or not field.required:
                text = docs.get(field.name) or (new and inspect.getdoc(inner)) or ""
                absent = default(field)
                kind = self._words(field.type)
                yield [f"`{key}`", kind.removesuffix(f" or {absent}"), absent, text]
            if new:
                self._anchors[inner] = anchor
                yield from self._rows(inner, anchor, f"{key}{brackets}.")

    def _words(self, kind: Any, s: str = "") -> str:
        """Describe a type in words; ``s`` makes them plural."""
        origin, arguments = get_origin(kind), get_args(kind)
        if kind in WORDS:
            return WORDS[kind] + s
        if kind == messages.Broadcast:
            return f"[broadcast{s}](#broadcasts)"
        if is_union(kind):
            return " or ".join(self._words(part, s) for part in arguments if part is not UnsetType)
        if kind is types.NoneType:
            return "`null`"
        if origin is Annotated:
            return f"{self._words(arguments[0], s)} ({bounds(kind)})"
        if origin is Literal:
            *others, last = (f"`{value}`" for value in arguments)
            return f"{', '.join(others)} or {last}"
        if origin in (list, tuple):
            return f"{'list' if origin is list else 'pair'}{s} of {self._words(arguments[0], 's')}"
        if kind not in self._anchors:
            return f"object{s}"
        tag = kind.__struct_config__.tag
        return f"[{tag or re.findall('[A-Z][a-z]+', kind.__name__)[-1].lower() + s}]({self._anchors[kind]})"


def is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def only_struct(kind: Any) -> tuple[type[Struct] | None, str]:
    """Return the struct in a type, which may be optional or in lists, and one ``[]`` for each list."""
    if isinstance(kind, type) and issubclass(kind, Struct):
        return kind, ""
    if get_origin(kind) is list:
        inner, brackets = only_struct(get_args(kind)[0])
        return inner, f"[]{brackets}"
    parts = [part for part in get_args(kind) if part not in (UnsetType, types.NoneType)] if is_union(kind) else []
    return only_struct(parts[0]) if len(parts) == 1 else (None, "")


def default(field: FieldInfo) -> str:
    """Describe the default of a key."""
    if field.required:
        return "required"
    value = field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
    return "absent" if value is UNSET else f"`{msgspec.json.encode(value).decode()}`"


def bounds(kind: Any) -> str:
    """Format the bounds of an annotated type."""
    (meta,) = (part for part in get_args(kind) if isinstance(part, Meta))
    if meta.ge is not None:
        return f"{meta.ge} or more"
    return f"{meta.min_length} to {meta.max_length:,}" if meta.min_length else f"at most {meta.max_length:,}"


def limits() -> Iterator[str]:
    """Yield the table of the named types."""
    unit = {str: "string, {} characters", int: "integer, {}"}
    return table(
        "type | is", ([f"*{word}*", unit[get_args(kind)[0]].format(bounds(kind))] for kind, word in TYPES.items())
    )


def codes() -> Iterator[str]:
    """Yield the table of error codes."""
    return table("code | meaning", ([f"`{code}`", code.meaning] for code in messages.ErrorCode))


def traits() -> Iterator[str]:
    """Yield the table of the extension's traits."""
    own = sorted(RagkitApp.class_own_traits(config=True).items())
    return table(
        "trait | default | meaning",
        ([f"`{name}`", in_units(name, trait.default()), trait.help] for name, trait in own),
    )


def in_units(name: str, value: Any) -> str:
    """Format a trait's default with its unit."""
    if isinstance(value, list):
        return f"`{' '.join('python' if word == sys.executable else word for word in value)}`"
    if isinstance(value, bool):
        return f"`{value}`"
    if isinstance(value, str):
        return f"`{value}`" if value else "empty"
    if name.endswith("_bytes") and value % 2**20 == 0:
        return f"{value // 2**20:,} MiB"
    return f"{value:,.10g}"


def table(header: str, rows: Iterable[list[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table; converts the markup of docstrings to Markdown."""
    titles, lines = header.split(" | "), list(rows)
    if not any(row[-1] for row in lines):  # no descriptions: omit the last column
        titles, lines = titles[:-1], [row[:-1] for row in lines]
    yield f"| {' | '.join(titles)} |"
    yield "|---" * len(titles) + "|"
    for row in lines:
        cells = (" ".join(cell.split()).replace("``", "`").replace("|", "\\|").rstrip(".") for cell in row)
        yield re.sub(r"\|  +\|", "| |", f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    PAGE.write_text(generate(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
