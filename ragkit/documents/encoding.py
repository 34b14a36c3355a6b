"""Detection of encodings, and clean-up of decoded text.

Encodings are tried in this order: byte-order marks; UTF-8; UTF-8 with some damaged bytes; the declared encoding; Latin
encodings that fit the text's language; the best guess of charset-normalizer.
"""

from __future__ import annotations

import codecs
import io
import re
from collections.abc import Iterator
from pathlib import Path

from ragkit.documents.language import detect_language
from ragkit.errors import DocumentError

_DETECTION_BYTES = 500_000
_BLOCK_BYTES = 2**22
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # first: it begins with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CHARSET = re.compile(
    rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w.:-]{1,40})"
    rb"|\A\s*<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([\w.:-]{1,40})"
    rb"|\A(?:[^\n]*\n)?[ \t]*#[^\n]{0,200}?coding[:=][ \t]*([-\w.]{1,40})",  # PEP 263
    re.IGNORECASE,
)


# The characters beyond ASCII of each language in Latin script, for `_latin`.
_ALPHABETS = {
    "ca": "àçèéíïòóúü·", "cs": "áčďéěíňóřšťúůýž", "da": "æøåéä", "de": "äöüß", "en": "éèêçïöñ", "es": "áéíñóúü¿¡ªº",
    "et": "äõöüšž", "fi": "äöåšž", "fr": "àâæçéèêëîïôœùûüÿ", "hr": "čćđšž", "hu": "áéíóöőúüű", "is": "áðéíóúýþæö",
    "it": "àèéìíîòóùú", "lt": "ąčęėįšųūž", "lv": "āčēģīķļņšūž", "nl": "áéèëïíóöúü", "no": "æøåéòôó",
    "pl": "ąćęłńóśźż", "pt": "áâãàçéêíóôõúüªº", "ro": "ăâîșțşţ", "sk": "áäčďéíĺľňóôŕšťúýž", "sl": "čšž",
    "sv": "åäöéà", "tr": "çğıöşüâîûi\u0307",
}  # fmt: skip
_PUNCTUATION = frozenset("\u00a0«»“”„‘’‚–—…•€£°§©®±×²³½¼¾´")
_LATIN = (
    "cp1252", "iso8859_15", "cp1250", "iso8859_2", "cp1254", "cp1257", "cp850", "cp852", "cp857", "mac_roman",
    "mac_latin2",
)  # fmt: skip
_LATIN_BYTES = 20_000
_LETTER = re.compile(rb"[A-Za-z]")
_ACCENT = re.compile(r"[^\x00-\x7f]")
_MOST_ACCENTS = 0.35  # of the letters of a text in Latin script
_FEWEST_FITTING = 0.85


def clean(text: str) -> str:
    """Normalize line ends to ``\\n`` and remove NULs and lone surrogates, which databases and encoders reject."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").removeprefix("\ufeff")
    return text if text.isascii() else text.encode("utf-8", "ignore").decode("utf-8")


def decode(data: bytes, *, where: str, declares: bool = False) -> tuple[str, str]:
    """Decode bytes of unknown encoding.

    Args:
        data: A file's bytes.
        where: The file, for error messages.
        declares: Whether to use the encoding that the file declares: ``<meta charset>`` in HTML, the first line of
            XML, ``coding:`` in Python.

    Returns:
        The text, cleaned (see `clean`), and the encoding.

    Raises:
        DocumentError: The bytes are not text.
    """
    text, encoding = _decoded(data, where, declares)
    if len(_CONTROLS.findall(text)) * 20 > len(text):
        raise DocumentError(where, "not text: it has too many control characters")
    return clean(text), encoding


def _decoded(data: bytes, where: str, declares: bool) -> tuple[str, str]:
    for bom, encoding in _BOMS:
        if data.startswith(bom):
            return data.decode(encoding, "replace"), encoding
    try:
        return data.decode("utf-8-sig"), "utf-8"
    except UnicodeDecodeError as error:
        first = error.start
    if b"\x00" in data[:8192]:
        raise DocumentError(where, "not text: it contains binary data")
    # Tolerate a few damaged bytes: another encoding would turn each accent of a long text into two wrong letters.
    text = data.decode("utf-8", "replace")
    if text.count("\ufffd") * 20 < sum(map("\x7f".__lt__, text)):
        return text, "utf-8"
    if declares and (declared := _declared(data)):
        return data.decode(declared, "replace"), declared
    # Sample around the first non-ASCII byte: a long file may begin with pages of plain English.
    start = max(0, first - 1_000)
    sample = data[start : start + _DETECTION_BYTES]
    encoding = _latin(sample)
    if not encoding:
        from charset_normalizer import from_bytes

        best = from_bytes(sample).best()
        if best is None:
            raise DocumentError(where, "its encoding could not be recognised; save it as UTF-8")
        encoding = best.encoding
    return data.decode(encoding, "replace"), encoding


def _latin(data: bytes) -> str:
    """Return the encoding in which a text in Latin script has the accents of its language; empty if none fits.

    charset-normalizer does not take the language into account: it accepts "trčs" as readily as "très".
    """
    data = data[:_LATIN_BYTES]
    accents = sum(map("\x7f".__lt__, data.decode("latin-1")))
    if accents > _MOST_ACCENTS * (accents + len(_LETTER.findall(data))):
        return ""
    best, best_fit = "", _FEWEST_FITTING
    for encoding in _LATIN:
        text = data.decode(encoding, "replace")
        alphabet = _ALPHABETS[detect_language(text, among=_ALPHABETS, default="en")]
        fit = sum(_fits(text, found.start(), alphabet) for found in _ACCENT.finditer(text)) / accents
        if fit > best_fit:
            best, best_fit = encoding, fit
    return best


def _fits(text: str, at: int, alphabet: str) -> bool:
    """Return whether a character is plausible in this position in its language."""
    char, before, after = text[at], text[at - 1 : at], text[at + 1 : at + 2]
    if char in _PUNCTUATION:
        return char in "’–—" or not (after.isalpha() and (before.isalpha() or char in "½¼¾²³±×´"))
    return char.lower() in alphabet and not (char.isupper() and before.islower())


def _declared(data: bytes) -> str:
    """Return the encoding that a text declares; empty if there is none or Python does not know it."""
    found = _CHARSET.search(data[:4096])
    try:
        name = codecs.lookup((found[1] or found[2] or found[3]).decode()).name if found else ""
        "".encode(name or "ascii")  # some codecs (base64, zlib, ...) are not for text
    except LookupError:
        return ""
    return "cp1252" if name in ("iso8859-1", "ascii") else name  # as browsers do


def lines(path: Path, *, where: str, max_characters: int) -> Iterator[str | None]:
    """Read a file of any size line by line, decoded and cleaned; None for a line that is longer than the limit.

    Args:
        path: The file.
        where: The file, for error messages.
        max_characters: The longest line.

    Raises:
        DocumentError: The bytes are not text.
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
    """Detect the encoding of a file too large for memory: the first block that is not UTF-8 decides. See `decode`."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    while block := stream.read(_BLOCK_BYTES):
        if stream.tell() == len(block) and (block.startswith(tuple(bom for bom, _ in _BOMS)) or b"\x00" in block):
            return decode(block, where=where)[1]
        try:
            decoder.decode(block)
        except UnicodeDecodeError:
            return decode(block, where=where)[1]
    return "utf-8-sig"
