"""WebSocket frames as bytes, built once and shared by all listeners.

A server's text frame is a header of 2, 4 or 10 bytes and the unmasked payload (RFC 6455, section 5.2), so the same
bytes can be sent to every listener. A run of frames is their concatenation.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_FINAL_TEXT = 0x81


def text_frame(payload: bytes) -> bytes:
    """Return a UTF-8 payload as one final text frame."""
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", _FINAL_TEXT, size) + payload
    if size <= 0xFFFF:
        return struct.pack("!BBH", _FINAL_TEXT, 126, size) + payload
    return struct.pack("!BBQ", _FINAL_TEXT, 127, size) + payload


def payloads(frames: bytes) -> Iterator[bytes]:
    """Yield the payload of each frame in a run of frames built by `text_frame`."""
    at = 0
    while at < len(frames):
        size = frames[at + 1]
        at += 2
        if size == 126:
            (size,) = struct.unpack_from("!H", frames, at)
            at += 2
        elif size == 127:
            (size,) = struct.unpack_from("!Q", frames, at)
            at += 8
        yield frames[at : at + size]
        at += size
