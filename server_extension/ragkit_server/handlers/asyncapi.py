"""The AsyncAPI document of the two sockets, generated from the structs in `ragkit.live.messages`.

The types, limits and docstrings of the structs become the document's schemas. This module adds what the structs do not
contain: which messages are replies to which, and how to authenticate.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, NamedTuple, get_args
from urllib.parse import urlsplit

import msgspec

from ragkit.live import messages

Message = type[msgspec.Struct]
_ANSWER = (messages.ResponseDelta, messages.Response, messages.Error)


class _Channel(NamedTuple):
    """One socket from the hub's side: the messages that start an exchange, with their possible replies."""

    address: str
    description: str
    incoming: tuple[Message, ...]
    outgoing: tuple[Message, ...]
    receives: Mapping[Message, tuple[Message, ...]]
    sends: Mapping[Message, tuple[Message, ...]]
    query: Mapping[str, Any]


_SECURITY: dict[str, Any] = {
    "header": {
        "type": "httpApiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`token TOKEN` or `Bearer TOKEN`: for programs.",
    },
    "query": {
        "type": "httpApiKey",
        "in": "query",
        "name": "token",
        "description": "For browsers, which cannot set headers on a WebSocket.",
    },
    "cookie": {
        "type": "httpApiKey",
        "in": "cookie",
        "name": "username-HOST-PORT",
        "description": "Jupyter's login cookie: for pages of the server itself or of an allowed origin.",
    },
}


def document(*, version: str, url: str = "http://localhost:8000/") -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document of the hub.

    Args:
        version: The version of ragkit.
        url: The Jupyter server's address, with its base URL.

    Returns:
        A dict to encode as JSON. Its parts are cached and shared, so do not modify them.
    """
    parts = urlsplit(url)
    server = {
        "host": parts.netloc,
        "pathname": parts.path,
        "protocol": "wss" if parts.scheme in ("https", "wss") else "ws",
        "security": [{"$ref": f"#/components/securitySchemes/{name}"} for name in _SECURITY],
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "ragkit", "version": version, "description": _text(messages.__doc__).partition(". ")[0]},
        "servers": {"jupyter": server},
        **_contract(),
    }


def field_docs(struct: type) -> dict[str, str]:
    """Return the docstrings under the fields of a struct of `ragkit.live.messages`, those that it inherits too."""
    docs = _docs_of_classes()
    return {name: text for cls in reversed(struct.__mro__) for name, text in docs.get(cls.__name__, {}).items()}


@functools.cache
def _contract() -> dict[str, Any]:
    """The part of the document that is the same wherever the server is."""
    schemas = _schemas()
    channels = {
        "listener": _Channel(
            address="api/v1/ws",
            description="For listeners: broadcasts come out, questions go in.",
            incoming=get_args(messages.ClientMessage),
            outgoing=get_args(messages.ListenerMessage),
            receives={
                messages.Query: _ANSWER,
                messages.Subscribe: (messages.Snapshot, messages.Gap, messages.Error),
                messages.Cancel: (messages.Error,),
                messages.Ping: (messages.Pong,),
            },
            sends=dict.fromkeys([*get_args(messages.Broadcast), messages.Gap], ()),
            # What is missed is asked for in the address, or with `subscribe`.
            query=schemas["Since"]["properties"],
        ),
        "publisher": _Channel(
            address="api/v1/engine",
            description="For publishers: events and engines come in, questions go out.",
            incoming=get_args(messages.EngineMessage),
            outgoing=get_args(messages.HubMessage),
            receives={
                messages.Hello: (messages.Welcome, messages.Error),
                messages.Publish: (messages.Ack, messages.Error),
                messages.Offer: (messages.Error,),
                messages.Withdraw: (),
                messages.Ping: (messages.Pong,),
            },
            sends={messages.EngineQuery: _ANSWER, messages.Cancel: ()},
            query={},
        ),
    }
    known = {_tag(message): message for channel in channels.values() for message in _messages(channel)}
    return {
        "defaultContentType": "application/json",
        "channels": {name: _channel(channel) for name, channel in channels.items()},
        "operations": {
            f"{name}_{_tag(message)}": _operation(name, action, message, replies)
            for name, channel in channels.items()
            for action, exchanges in (("receive", channel.receives), ("send", channel.sends))
            for message, replies in exchanges.items()
        },
        "components": {
            "messages": {tag: _message(message) for tag, message in known.items()},
            "schemas": schemas,
            "securitySchemes": _SECURITY,
        },
    }


def _messages(channel: _Channel) -> Iterable[Message]:
    return dict.fromkeys(channel.incoming + channel.outgoing)


def _channel(channel: _Channel) -> dict[str, Any]:
    query = {"type": "object", "properties": {**channel.query, "token": {"type": "string"}}}
    return {
        "address": channel.address,
        "description": channel.description,
        "messages": {tag: {"$ref": f"#/components/messages/{tag}"} for tag in map(_tag, _messages(channel))},
        "bindings": {"ws": {"method": "GET", "query": query, "bindingVersion": "0.1.0"}},
    }


def _operation(channel: str, action: str, message: Message, replies: tuple[Message, ...]) -> dict[str, Any]:
    def refer(*shapes: Message) -> dict[str, Any]:
        return {
            "channel": {"$ref": f"#/channels/{channel}"},
            "messages": [{"$ref": f"#/channels/{channel}/messages/{_tag(shape)}"} for shape in shapes],
        }

    operation = {"action": action, "summary": _text(message.__doc__), **refer(message)}
    return operation | {"reply": refer(*replies)} if replies else operation


def _message(message: Message) -> dict[str, Any]:
    described = {
        "name": _tag(message),
        "title": message.__name__,
        "summary": _text(message.__doc__),
        "payload": {"$ref": f"#/components/schemas/{message.__name__}"},
    }
    if "id" in message.__struct_fields__:
        described["correlationId"] = {"location": "$message.payload#/id"}
    return described


def _schemas() -> dict[str, Any]:
    unions = [messages.ClientMessage, messages.ListenerMessage, messages.EngineMessage, messages.HubMessage]
    _, schemas = msgspec.json.schema_components(unions, ref_template="#/components/schemas/{name}")
    for name, schema in schemas.items():
        for field, text in field_docs(getattr(messages, name)).items():
            schema["properties"][field]["description"] = text
    codes = [f"- `{code}`: {code.meaning}" for code in messages.ErrorCode]
    schemas["ErrorCode"]["description"] += "\n\n" + "\n".join(codes)
    return {name: _draft_7(schema) for name, schema in schemas.items()}


def _draft_7(schema: Any) -> Any:
    """Convert a schema of msgspec to JSON Schema draft 7, which AsyncAPI uses."""
    if isinstance(schema, list):
        return [_draft_7(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: _draft_7(part) for key, part in schema.items() if key != "discriminator"}
    if "prefixItems" in schema:
        schema |= {"items": schema.pop("prefixItems"), "additionalItems": False}
    return schema


@functools.cache
def _docs_of_classes() -> dict[str, dict[str, str]]:
    """Return the docstrings of fields by class and field name; Python does not keep them at run time."""
    return {
        node.name: {
            field.target.id: _text(after.value.value)
            for field, after in pairwise(node.body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        }
        for node in ast.parse(inspect.getsource(messages)).body
        if isinstance(node, ast.ClassDef)
    }


def _tag(message: Message) -> str:
    return str(message.__struct_config__.tag)


def _text(docstring: Any) -> str:
    return " ".join(str(docstring).split())
