"""Generate src/client/messages.ts, the TypeScript types of `ragkit.live.messages`. `make frontend` runs this."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from msgspec import inspect as types

from ragkit.live import messages
from ragkit_server.handlers.asyncapi import field_docs

TARGET = Path(__file__).with_name("src") / "client" / "messages.ts"
SENT = (messages.Query, messages.QueryContent, messages.Subscribe, messages.Ping, messages.Pong)
HEAD = "// Generated from ragkit/live/messages.py by messages.py (`make frontend`). Do not edit.\n"
SIMPLE = {
    types.StrType: "string",
    types.IntType: "number",
    types.FloatType: "number",
    types.BoolType: "boolean",
    types.NoneType: "null",
    types.AnyType: "unknown",
}


def generate() -> str:
    """Return the generated file."""
    unions = {"ClientMessage": messages.ClientMessage, "ListenerMessage": messages.ListenerMessage}
    unions |= {"Broadcast": messages.Broadcast}
    structs: dict[str, types.StructType] = {}
    for union in unions.values():
        for info in types.multi_type_info(get_args(union)):
            collect(info, structs)
    parts = [HEAD]
    parts += [
        f"export type {name} =\n{''.join(f'  | {t.__name__}{chr(10)}' for t in get_args(union)).rstrip()};\n"
        for name, union in unions.items()
    ]
    codes = "\n".join(f"  | '{code}'" for code in messages.ErrorCode)
    parts += [f"export type ErrorCode =\n{codes};\n"]
    parts += ["\n".join(interface(info)) for _, info in sorted(structs.items())]
    return "\n".join(parts)


def collect(info: types.Type, structs: dict[str, types.StructType]) -> None:
    """Collect every struct that a type refers to."""
    if isinstance(info, types.StructType):
        if info.cls.__name__ not in structs:
            structs[info.cls.__name__] = info
            for field in info.fields:
                collect(field.type, structs)
    elif isinstance(info, types.UnionType):
        for part in info.types:
            collect(part, structs)
    elif isinstance(info, types.ListType):
        collect(info.item_type, structs)


def interface(info: types.StructType) -> Iterator[str]:
    """Yield the lines of a struct's interface."""
    docs = field_docs(info.cls)
    yield from comment(info.cls.__dict__.get("__doc__") and inspect.getdoc(info.cls), "")
    yield f"export interface {info.cls.__name__} {{"
    if info.tag is not None:
        yield f"  {info.tag_field}: '{info.tag}';"
    for field in info.fields:
        # UNSET fields are not encoded. Senders may omit fields with a default; the hub always sends them.
        absent = not field.required and field.default is field.default_factory
        stamped = info.cls in get_args(messages.Broadcast) and field.name in ("epoch", "seq", "time")
        mark = "?" if (absent and not stamped) or (info.cls in SENT and not field.required) else ""
        yield from comment(docs.get(field.name), "  ")
        yield f"  {field.encode_name}{mark}: {typescript(field.type)};"
    yield "}\n"


def comment(text: str | None, indent: str) -> Iterator[str]:
    if text:
        text = re.sub(r"``(.+?)``", r"`\1`", " ".join(text.split())).replace("*/", "* /")
        yield f"{indent}/** {text} */"


def typescript(info: types.Type) -> str:
    """Convert a type to TypeScript."""
    if type(info) in SIMPLE:
        return SIMPLE[type(info)]
    if isinstance(info, types.Metadata):
        return typescript(info.type)
    if isinstance(info, types.StructType | types.EnumType):
        return info.cls.__name__
    if isinstance(info, types.LiteralType):
        return " | ".join(f"'{value}'" for value in info.values)
    if isinstance(info, types.ListType):
        inner = typescript(info.item_type)
        return f"({inner})[]" if " | " in inner else f"{inner}[]"
    if isinstance(info, types.TupleType):
        return f"[{', '.join(map(typescript, info.item_types))}]"
    if isinstance(info, types.DictType):
        return f"Record<string, {typescript(info.value_type)}>"
    if isinstance(info, types.UnionType):
        return " | ".join(map(typescript, info.types))
    raise TypeError(f"no TypeScript for {info}")


def main() -> None:
    TARGET.write_text(generate(), encoding="utf-8")


if __name__ == "__main__":
    main()
