"""Text out of bytes: which encoding they are in, and what is left out of every text.

In this order: byte-order marks; UTF-8; UTF-8 with some damage; what a page's head declares; what charset-normalizer
finds likely.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path

from ragkit.documents import detect_language
from ragkit.errors import DocumentError

__all__ = ["clean", "decode", "lines"]

_DETECTION_BYTES = 500_000
_BLOCK_BYTES = 2**22
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # first: it begins with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CHARSET = re.compile(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})", re.IGNORECASE)

_LIKE_CP1252 = frozenset(
    {"cp1250", "cp1254", "cp1257", "cp1258", "iso8859_2", "iso8859_3", "iso8859_4", "iso8859_9", "iso8859_10"}
    | {"iso8859_13", "iso8859_14", "iso8859_16", "latin_1"}
)
_WRITTEN_IN_CP1252 = frozenset({"ca", "da", "de", "en", "es", "fi", "fr", "gl", "is", "it", "nl", "no", "pt", "sv"})


def clean(text: str) -> str:
    """Leave one kind of line end, no NUL, no lone surrogate: text that every later step and database can hold."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").removeprefix("\ufeff")
    return text if text.isascii() else text.encode("utf-8", "ignore").decode("utf-8")


def decode(data: bytes, *, where: str, html: bool = False) -> tuple[str, str]:
    """Decode bytes of unknown encoding.

    Args:
        data: A file's bytes.
        where: The file, for the error.
        html: Whether to believe a ``<meta charset>``.

    Returns:
        The text, cleaned (see `clean`), and the encoding.

    Raises:
        DocumentError: These bytes are not text.
    """
    text, encoding = _decoded(data, where, html)
    if len(_CONTROLS.findall(text)) * 20 > len(text):
        raise DocumentError(where, "not text: it is full of control characters")
    return clean(text), encoding


def _decoded(data: bytes, where: str, html: bool) -> tuple[str, str]:
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return data.decode(encoding, "replace"), encoding
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError as error:
        first = error.start
    if b"\x00" in data[:8192]:
        raise DocumentError(where, "not text: it holds binary data")
    # One damaged byte must not turn each accent of a long text into two wrong letters.
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") * 20 < sum(map("\x7f".__lt__, text)):
        return text, "utf-8"
    if html and (declared := _declared(data)):
        return data.decode(declared, "replace"), declared
    from charset_normalizer import from_bytes

    # From the first letter that is not ASCII on: a long file may begin with pages of plain English.
    start = max(0, first - 1_000)
    best = from_bytes(data[start : start + _DETECTION_BYTES]).best()
    if best is None:
        raise DocumentError(where, "its encoding could not be recognised; save it as UTF-8")
    text = data.decode(best.encoding, "replace")
    # These agree on most accents but not on all: "très" reads "trčs". A few accents do not tell which it is; the
    # language does.
    if best.encoding in _LIKE_CP1252 and detect_language(text[start:]) in _WRITTEN_IN_CP1252:
        return data.decode("cp1252", "replace"), "cp1252"
    return text, best.encoding


def _declared(data: bytes) -> str:
    """The encoding that a page's head names, if Python knows it."""
    found = _CHARSET.search(data[:4096])
    try:
        name = codecs.lookup(found[1].decode()).name if found else ""
        "".encode(name or "ascii")  # some codecs (base64, zlib, ...) are not for text
    except LookupError:
        return ""
    return "cp1252" if name in ("iso8859-1", "ascii") else name  # as browsers do


def lines(path: Path, *, where: str, max_characters: int) -> Iterator[str | None]:
    """Read a file of any size line by line, decoded and cleaned; None for a line that is longer than the limit.

    Args:
        path: The file.
        where: The file, for the error.
        max_characters: The longest line.

    Raises:
        DocumentError: These bytes are not text.
    """
    with path.open("rb") as stream:
        encoding = _encoding_of(stream, where)
        stream.seek(0)
        text = io.TextIOWrapper(stream, encoding, errors="replace")
        while line := text.readline(max_characters):
            if line.endswith("\n") or len(line) < max_characters:
                yield clean(line)
                continue
            while line and not line.endswith("\n"):
                line = text.readline(max_characters)
            yield None


def _encoding_of(stream: io.BufferedReader, where: str) -> str:
    """See `decode`, for a file that is too large to hold: the block that is not UTF-8 decides."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    while block := stream.read(_BLOCK_BYTES):
        if stream.tell() == len(block) and (block.startswith(tuple(bom for bom, _ in _BOMS)) or b"\x00" in block):
            return decode(block, where=where)[1]
        try:
            decoder.decode(block)
        except UnicodeDecodeError:
            return decode(block, where=where)[1]
    return "utf-8-sig"
