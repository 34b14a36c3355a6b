"""Decodes incoming frames: each is either a valid message or an error reply to its sender."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from ragkit.errors import InputError
from ragkit.live.messages import (
    MAX_DEPTH,
    Broadcast,
    ClientMessage,
    EngineMessage,
    Error,
    ErrorCode,
    ErrorContent,
    Query,
    check_broadcast,
    decode_client_message,
    decode_engine_message,
    is_too_deep,
)

Message = TypeVar("Message")


class RejectedError(Exception):
    """A frame is not a valid message; ``reply`` is the error for its sender."""

    def __init__(self, reply: Error) -> None:
        self.reply = reply
        super().__init__(reply.content.message)


def error(code: ErrorCode, message: str, *, id: str | UnsetType = UNSET) -> Error:
    """Return an `Error` message."""
    return Error(content=ErrorContent(message=message, code=code), id=id)


def from_listener(frame: str | bytes) -> ClientMessage:
    """Decode a frame from a listener.

    Raises:
        RejectedError: The frame is not a valid message.
    """
    message: ClientMessage = _decode(frame, decode_client_message, ClientMessage)
    if isinstance(message, Query) and is_too_deep(message.content.context):
        problem = f"The context is nested more than {MAX_DEPTH} levels deep. Send a flatter object."
        raise RejectedError(error(ErrorCode.INVALID_MESSAGE, problem, id=message.id))
    return message


def from_publisher(frame: str | bytes) -> EngineMessage:
    """Decode a frame from a publisher.

    Raises:
        RejectedError: The frame is not a valid message.
    """
    message: EngineMessage = _decode(frame, decode_engine_message, EngineMessage)
    return message


def check_event(event: Broadcast) -> None:
    """Check that a publisher may broadcast an event.

    Raises:
        RejectedError: It may not; sending the event again does not help.
    """
    try:
        check_broadcast(event)
    except InputError as problem:
        raise RejectedError(error(ErrorCode.INVALID_MESSAGE, str(problem))) from problem


class _Envelope(Struct):
    """The keys of an invalid message that the error reply uses."""

    type: Any = None
    id: Any = None


_decode_envelope = msgspec.json.Decoder(_Envelope).decode


def _decode(frame: str | bytes, decode: Callable[[str], Message], union: Any) -> Message:
    if isinstance(frame, bytes):
        raise RejectedError(
            error(ErrorCode.INVALID_MESSAGE, "Binary frames are not supported. Send JSON in a text frame.")
        )
    try:
        return decode(frame)
    except (msgspec.ValidationError, RecursionError) as problem:
        raise RejectedError(_explain(frame, str(problem), union)) from problem
    except ValueError as problem:  # msgspec.DecodeError, or a str that is not Unicode text
        raise RejectedError(
            error(ErrorCode.INVALID_JSON, f"The frame is not JSON: {problem}. Send one JSON object in a text frame.")
        ) from problem


def _explain(frame: str, reason: str, union: Any) -> Error:
    """Return the error for an invalid message that is JSON, with the message's id if it has one."""
    try:
        envelope = _decode_envelope(frame)
    except (ValueError, RecursionError):  # not an object, or nested too deeply, so type and id are unknown
        return error(ErrorCode.INVALID_MESSAGE, f"{reason}. Send one JSON object with a string 'type'.")
    id = envelope.id if isinstance(envelope.id, str) and 0 < len(envelope.id) <= 128 else UNSET
    known = {str(member.__struct_config__.tag) for member in union.__args__}
    if isinstance(envelope.type, str) and envelope.type not in known:
        return error(
            ErrorCode.UNKNOWN_TYPE,
            f"There is no message type '{envelope.type[:100]}'. The types are: {', '.join(sorted(known))}.",
            id=id,
        )
    return error(ErrorCode.INVALID_MESSAGE, f"{reason}.", id=id)
