"""From one file to its documents, a reader for each format.

Everything in a file is untrusted. Sizes are bounded, and whatever a parser raises becomes a `DocumentError`
with a reason that a person can act on. One bad file stops nobody else; one bad page or row does not stop its file.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ragkit.documents import SUFFIXES, Document, Found, Mark, Source, detect_language, find_sources
from ragkit.errors import DocumentError
from ragkit.markup import clean, decode, front_matter_title, html_to_markdown, markdown_headings

__all__ = ["SUFFIXES", "Found", "Loaded", "Source", "find_sources", "load"]

MAX_CHARACTERS = 20_000_000  # of text that one file may unfold to: a zip bomb ends here
TIMEOUT_SECONDS = 120.0
_MAX_OUTPUT = 2_000  # characters of one notebook output
_MAX_ROW_FAILURES = 100

# It logs each small repair of each file: of use to who configures logging, noise on everybody else's console.
logging.getLogger("pypdf").addHandler(logging.NullHandler())


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """What `load` made of one file: its documents, and the pages or rows that could not be read."""

    documents: tuple[Document, ...]
    failures: tuple[DocumentError, ...] = ()


def load(source: Source, *, timeout_seconds: float = TIMEOUT_SECONDS) -> Loaded:
    """Read one file.

    Args:
        source: One of those that `find_sources` found.
        timeout_seconds: For a PDF, whose pages are programs: what is read until then is kept, the rest reported.

    Raises:
        DocumentError: The file as a whole cannot be used: unreadable, damaged, encrypted, empty, scanned, ...
    """
    read = _READERS[source.path.suffix.lower()]
    try:
        loaded = read(source, source.path.read_bytes(), time.monotonic() + timeout_seconds)
    except DocumentError:
        raise
    except Exception as error:
        # A parser given a hostile file may raise anything at all; none of it is a reason to stop the others.
        raise DocumentError(source.where, _reason(error)) from error
    if not loaded.documents and not loaded.failures:
        raise DocumentError(source.where, "empty: it holds no text")
    return loaded


def _reason(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "not read in time"
        case OSError():
            return f"cannot be read: {error.strerror or error}"
        case RecursionError():
            return "nested too deep to be read"
        case MemoryError():
            return "too large for this machine's memory"
    if type(error).__name__ == "LimitReachedError":  # pypdf's; importing it for every text file would cost a while
        return f"unfolds to more than is safe to read: {_detail(error)}"
    return f"damaged, or not what its name says: {_detail(error)}"


def _detail(error: BaseException) -> str:
    return clean(" ".join(str(error).split())[:200]) or type(error).__name__


def _document(source: Source, text: str, title: str, marks: tuple[Mark, ...] = (), **metadata: Any) -> Loaded:
    if not text.strip():
        raise DocumentError(source.where, "empty: it holds no text")
    if len(text) > MAX_CHARACTERS:
        raise DocumentError(source.where, f"too much text: {len(text):,} characters; split the file")
    document = Document(
        id=source.id,
        text=text,
        source=source.where,
        title=_title(title) or _title(source.id.rpartition("/")[2].rpartition(".")[0]),
        language=detect_language(text),
        marks=marks,
        metadata=metadata,
    )
    return Loaded((document,))


def _title(title: str) -> str:
    """One line; nothing for what programs write when nobody gave a title."""
    line = " ".join(clean(title).split())[:300].removeprefix("Microsoft Word - ")
    return "" if line.lower() in {"untitled", "untitled document", "(anonymous)", "none"} else line


def _read_text(source: Source, data: bytes, deadline: float) -> Loaded:
    text, encoding = decode(data, where=source.where)
    return _document(source, text, "", encoding=encoding)


def _read_markdown(source: Source, data: bytes, deadline: float) -> Loaded:
    text, encoding = decode(data, where=source.where)
    marks = markdown_headings(text)
    title = next((mark.label for mark in marks if mark.level == 1), "") or front_matter_title(text)
    return _document(source, text, title, marks, encoding=encoding)


def _read_html(source: Source, data: bytes, deadline: float) -> Loaded:
    html, encoding = decode(data, where=source.where, html=True)
    if not html.strip():
        raise DocumentError(source.where, "empty: it holds no text")
    text, title = html_to_markdown(html)
    if not text.strip():
        raise DocumentError(source.where, "empty: the page shows no text (it may be made by a script)")
    marks = markdown_headings(text)
    return _document(source, text, title or next((mark.label for mark in marks), ""), marks, encoding=encoding)


# ------------------------------------------------------------------------------------------ PDF


def _read_pdf(source: Source, data: bytes, deadline: float) -> Loaded:
    import pypdf
    from pypdf.errors import DependencyError, FileNotDecryptedError

    def in_time(*_: object) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    if not data.strip():
        raise DocumentError(source.where, "empty: it holds no text")
    failures: list[DocumentError] = []
    marks: list[Mark] = []
    text = title = ""
    try:
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError(source.where, "encrypted: it needs a password; save a copy without one")
        pages = list(reader.pages)
    except (DependencyError, FileNotDecryptedError) as error:
        raise DocumentError(
            source.where, "encrypted in a way that cannot be read here; save a copy without a password"
        ) from error
    for number, page in enumerate(pages, start=1):
        try:
            in_time()
            part = clean(page.extract_text(visitor_operand_before=in_time) or "").strip("\n")
        except TimeoutError as error:
            failures.append(DocumentError(f"{source.where}, from page {number}", _reason(error)))
            break
        except Exception as error:  # as in `load`: a page is a program, and may break the parser in any way
            failures.append(DocumentError(f"{source.where}, page {number}", _reason(error)))
            continue
        if len(text) + len(part) > MAX_CHARACTERS:
            failures.append(DocumentError(f"{source.where}, from page {number}", "too much text; split the file"))
            break
        marks.append(Mark(len(text), "page", str(number)))
        text += part + "\n\n"
    if not text.strip():
        if failures:
            raise DocumentError(source.where, f"none of its pages can be read; the first: {failures[0].reason}")
        raise DocumentError(source.where, f"no text on its pages ({len(pages)}): scanned or drawn; run OCR on it first")
    try:
        title = str((reader.metadata.title if reader.metadata is not None else None) or "")
    except Exception:
        title = ""  # harmless: the file's name serves
    if title.lower().endswith((".pdf", ".doc", ".docx")):
        title = ""  # the name of the file that it was made from
    document = _document(source, text, title, tuple(marks), pages=len(pages))
    return dataclasses.replace(document, failures=tuple(failures))


# ------------------------------------------------------------------------------ notebooks, JSONL


def _read_notebook(source: Source, data: bytes, deadline: float) -> Loaded:
    content, _ = decode(data, where=source.where)
    if not content.strip():
        raise DocumentError(source.where, "empty: it holds no text")
    try:
        notebook = json.loads(content)
    except ValueError as error:
        raise DocumentError(source.where, f"damaged: not JSON ({_detail(error)})") from error
    if not isinstance(notebook, dict) or not any(isinstance(notebook.get(k), list) for k in ("cells", "worksheets")):
        raise DocumentError(source.where, "not a notebook: it holds no cells")
    parts: list[str] = []
    size = 0
    marks: list[Mark] = []
    # Read by hand and not with nbformat's validator: notebooks that fail it are common, and their text is as good.
    for kind, body, language, outputs in _cells(notebook):
        block = clean(body).strip("\n")
        if not block.strip():
            continue
        if kind == "code":
            block = "\n\n".join([_fenced(block, language), *(_fenced(output, "text") for output in outputs)])
        else:
            marks += markdown_headings(block, offset=size)
        parts.append(block + "\n\n")
        size += len(block) + 2
    title = next((mark.label for mark in marks if mark.level == 1), "")
    return _document(source, "".join(parts), title, tuple(marks))


def _fenced(code: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _cells(notebook: Mapping[str, Any]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Give (kind, source, language, text outputs) of each cell, in every notebook format since 2."""
    metadata = _dict(notebook.get("metadata"))
    default = _dict(metadata.get("language_info")).get("name") or _dict(metadata.get("kernelspec")).get("language")
    groups = [notebook, *map(_dict, _list(notebook.get("worksheets")))]  # formats 2 and 3
    for cell in (_dict(c) for group in groups for c in _list(group.get("cells"))):
        kind = str(cell.get("cell_type", ""))
        body = _joined(cell.get("source", cell.get("input", "")))
        if kind == "heading":  # formats 2 and 3
            level = cell.get("level")
            body = "#" * (level if isinstance(level, int) and 1 <= level <= 6 else 1) + " " + " ".join(body.split())
        language = str(cell.get("language") or default or "")
        outputs = [output for o in _list(cell.get("outputs")) if (output := _output(_dict(o)))]
        yield kind, body, language if re.fullmatch(r"[\w+#.-]{1,40}", language) else "", outputs


def _output(output: Mapping[str, Any]) -> str:
    """An output's text, cut where it gets long: tables of numbers and logs bury what a notebook says."""
    if "ename" in output:  # the last line of a traceback says it all
        text = f"{_joined(output['ename'])}: {_joined(output.get('evalue'))}"
    else:
        text = _joined(output.get("text")) or _joined(_dict(output.get("data")).get("text/plain"))
    text = clean(_ANSI.sub("", text)).strip()
    return text if len(text) <= _MAX_OUTPUT else f"{text[:_MAX_OUTPUT]}\n[{len(text) - _MAX_OUTPUT:,} more characters]"


_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _joined(value: Any) -> str:
    """Text that may be a list of lines; format 2 leaves out their line ends."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else ""
    lines = [line for line in value if isinstance(line, str)]
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines).removesuffix("\n")


_TEXT_KEYS = ("text", "contents", "content", "body")
_ID_KEYS = ("_id", "id", "doc_id")


def _read_jsonl(source: Source, data: bytes, deadline: float) -> Loaded:
    documents: list[Document] = []
    failures: list[DocumentError] = []
    for number, line in enumerate(decode(data, where=source.where)[0].split("\n"), start=1):
        if not line.strip():
            continue
        try:
            documents.append(_row(source, number, line))
        except DocumentError as error:
            failures.append(error)
    if (more := len(failures) - _MAX_ROW_FAILURES) > 0:
        failures[_MAX_ROW_FAILURES:] = [DocumentError(source.where, f"and {more:,} more rows that cannot be read")]
    return Loaded(tuple(documents), tuple(failures))


def _row(source: Source, number: int, line: str) -> Document:
    where = f"{source.where}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DocumentError(where, f"not JSON: {_detail(error)}") from error
    text = next((row[k] for k in _TEXT_KEYS if isinstance(row.get(k), str)), None) if isinstance(row, dict) else None
    if text is None:
        raise DocumentError(where, f"no text: a row needs one of {', '.join(_TEXT_KEYS)}")
    text = clean(text)
    if not text.strip():
        raise DocumentError(where, "empty: its text is blank")
    given = next((row[k] for k in _ID_KEYS if isinstance(row.get(k), str | int) and row[k] != ""), number)
    row_id = " ".join(clean(str(given)).split())[:200] or str(number)
    title = row.get("title")
    known = {"title", *_TEXT_KEYS, *_ID_KEYS}
    return Document(
        id=f"{source.id}#{row_id}",
        text=text,
        source=f"{source.where}#{row_id}",
        title=_title(title) if isinstance(title, str) else "",
        language=detect_language(text),
        metadata={k: v for k, v in row.items() if k not in known and isinstance(v, str | int | float | bool)},
    )


_READERS: Mapping[str, Callable[[Source, bytes, float], Loaded]] = {
    ".md": _read_markdown,
    ".markdown": _read_markdown,
    ".txt": _read_text,
    ".text": _read_text,
    ".rst": _read_text,
    ".html": _read_html,
    ".htm": _read_html,
    ".pdf": _read_pdf,
    ".ipynb": _read_notebook,
    ".jsonl": _read_jsonl,
}
