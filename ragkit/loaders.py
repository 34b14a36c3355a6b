"""From files to documents.

`find_sources` says which files of a folder are documents, `load` reads one. Everything in a file is
untrusted: sizes are bounded, and whatever a parser raises becomes a `DocumentError` with a reason that
a person can act on. One bad file stops nobody else.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ragkit.documents import Document, Mark, detect_language
from ragkit.errors import DocumentError, NoDocumentsError, SourceNotFoundError

__all__ = ["SUFFIXES", "Found", "Loaded", "Source", "find_sources", "load"]

MAX_BYTES = 100 * 2**20
MAX_CHARACTERS = 20_000_000  # of text that one file may unfold to: a zip bomb ends here
_MAX_OUTPUT = 2_000  # characters of one notebook output
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages"})


@dataclasses.dataclass(frozen=True, slots=True)
class Source:
    """A file to load.

    Attributes:
        path: Where it is.
        id: Its path below the root, with ``/``.
        size_bytes: Its size.
        alone: Whether it was asked for by itself, not as part of its folder.
    """

    path: Path
    id: str
    size_bytes: int
    alone: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What `find_sources` found: files to load, sorted by id, and files that are passed over with a reason."""

    root: Path
    sources: tuple[Source, ...]
    failures: tuple[DocumentError, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Loaded:
    """What `load` made of one file: its documents, and rows that could not be read."""

    documents: tuple[Document, ...]
    failures: tuple[DocumentError, ...] = ()


def find_sources(path: str | Path, *, max_bytes: int = MAX_BYTES) -> Found:
    """Find the documents below a folder, or take one file.

    Hidden files and folders, files of other kinds and installed packages are passed over silently. Files over
    ``max_bytes``, links that lead out of the folder or nowhere, and what cannot be read are passed over with a reason.

    Args:
        path: A folder or a file.
        max_bytes: The largest file to read.

    Raises:
        SourceNotFoundError: There is nothing at ``path``.
        NoDocumentsError: There is, but nothing that ragkit reads.
    """
    given = Path(path).expanduser()
    try:
        root = given.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a link that leads to itself
        raise SourceNotFoundError(path) from error
    if root.is_file():
        if root.suffix.lower() not in _LOADERS:
            raise NoDocumentsError(path, SUFFIXES)
        return Found(root.parent, (Source(root, root.name, root.stat().st_size, alone=True),))
    sources: list[Source] = []
    failures: list[DocumentError] = []

    def unreadable(error: OSError) -> None:
        failures.append(DocumentError(str(error.filename), f"the folder cannot be read: {error.strerror}"))

    for folder, names, files in os.walk(root, onerror=unreadable):
        names[:] = sorted(n for n in names if not n.startswith(".") and n not in _SKIPPED_FOLDERS)
        for name in sorted(files):
            file = Path(folder, name)
            if name.startswith(".") or file.suffix.lower() not in _LOADERS:
                continue
            problem, size = _examine(file, root, max_bytes)
            if problem is None:
                sources.append(Source(file, file.relative_to(root).as_posix(), size))
            else:
                failures.append(DocumentError(str(file), problem))
    if not sources and not failures:
        raise NoDocumentsError(path, SUFFIXES)
    return Found(root, tuple(sorted(sources, key=lambda s: s.id)), tuple(failures))


def _examine(file: Path, root: Path, max_bytes: int) -> tuple[str | None, int]:
    """Why a file is passed over (None: it is not), and its size in bytes."""
    try:
        target = file.resolve(strict=True)
        size = target.stat().st_size
    except (OSError, RuntimeError):
        return "a link that leads nowhere", 0
    if not target.is_relative_to(root):
        return "a link that leads out of the folder; index its target by itself if you want it", size
    if not target.is_file():
        return "not a regular file", size
    if size > max_bytes:
        return f"too large: {size / 2**20:.0f} MiB, and the limit is {max_bytes / 2**20:.0f} MiB", size
    return None, size


def load(source: Source) -> Loaded:
    """Read one file.

    Raises:
        DocumentError: The file as a whole cannot be used: unreadable, damaged, encrypted, empty, scanned, ...
    """
    where = str(source.path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parsers warn about what they mend; what they cannot mend they raise
            loaded = _LOADERS[source.path.suffix.lower()](source)
    except DocumentError:
        raise
    except OSError as error:
        raise DocumentError(where, f"cannot be read: {error.strerror or error}") from error
    except RecursionError as error:
        raise DocumentError(where, "nested too deep to be read") from error
    except MemoryError as error:
        raise DocumentError(where, "too large for this machine's memory") from error
    except Exception as error:
        # A parser given a hostile file may raise anything at all; none of it is a reason to stop the others.
        detail = " ".join(str(error).split())[:200]
        raise DocumentError(where, f"damaged, or not what its name says: {detail or type(error).__name__}") from error
    if not loaded.documents and not loaded.failures:
        raise DocumentError(where, "empty: it holds no text")
    return loaded


def _document(source: Source, text: str, title: str, marks: tuple[Mark, ...] = (), **metadata: Any) -> Loaded:
    if not text.strip():
        raise DocumentError(str(source.path), "empty: it holds no text")
    if len(text) > MAX_CHARACTERS:
        raise DocumentError(str(source.path), f"too much text: {len(text):,} characters; split the file")
    return Loaded(
        (
            Document(
                id=source.id,
                text=text,
                source=str(source.path),
                title=_title(title) or source.path.stem,
                language=detect_language(text),
                marks=marks,
                metadata=metadata,
            ),
        )
    )


def _title(title: str) -> str:
    """One line; nothing for what programs write when nobody gave a title."""
    line = " ".join(_clean(title).split())[:300]
    return "" if line.lower() in {"untitled", "untitled document", "(anonymous)", "none"} else line


# ----------------------------------------------------------------------------------------- text


def _clean(text: str) -> str:
    """One kind of line end, no NUL, no lone surrogate: text that every later step and every database can hold."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").removeprefix("\ufeff")
    return text.encode("utf-8", "replace").decode("utf-8") if not text.isascii() else text


def _decode(source: Source, data: bytes) -> str:
    """Decode bytes of unknown encoding: byte-order marks, then UTF-8, then what charset-normalizer finds likely."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _clean(data.decode("utf-32" if data.startswith(b"\xff\xfe\x00\x00") else "utf-16", "replace"))
    try:
        return _clean(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        pass
    if b"\x00" in data[:8192]:
        raise DocumentError(str(source.path), "not text: it holds binary data")
    from charset_normalizer import from_bytes

    best = from_bytes(data).best()
    if best is None:
        raise DocumentError(str(source.path), "its encoding could not be recognised; save it as UTF-8")
    return _clean(str(best))


def _load_text(source: Source) -> Loaded:
    text = _decode(source, source.path.read_bytes())
    return _document(source, text, source.path.stem)


def _load_markdown(source: Source) -> Loaded:
    text = _decode(source, source.path.read_bytes())
    marks = markdown_headings(text)
    title = next((mark.label for mark in marks if mark.level == 1), source.path.stem)
    return _document(source, text, title, marks)


def markdown_headings(text: str, *, offset: int = 0) -> tuple[Mark, ...]:
    """Find the headings of Markdown by its grammar, so that a ``#`` in a code block is none.

    Args:
        text: Markdown.
        offset: Added to each mark's start.
    """
    from markdown_it import MarkdownIt

    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    lines = text.split("\n")
    body = 0
    if lines[0].rstrip() == "---":  # YAML front matter would read as a setext heading
        body = next((n + 1 for n, line in enumerate(lines[1:], 1) if line.rstrip() in ("---", "...")), 0)
    marks = []
    tokens = MarkdownIt("commonmark").enable("table").parse("\n" * body + "\n".join(lines[body:]))
    for token, inline in zip(tokens, tokens[1:], strict=False):
        if token.type == "heading_open" and token.map is not None:
            words = "".join(c.content for c in inline.children or () if c.type in ("text", "code_inline", "softbreak"))
            if label := " ".join(words.split())[:300]:
                marks.append(Mark(offset + starts[token.map[0]], "heading", label, int(token.tag[1])))
    return tuple(marks)


def _load_html(source: Source) -> Loaded:
    import trafilatura

    html = _decode(source, source.path.read_bytes())
    metadata = trafilatura.extract_metadata(html)
    title = (metadata.title if metadata is not None else None) or ""
    # Markdown keeps what matters here: headings, lists, tables and code.
    text = trafilatura.extract(html, output_format="markdown", include_comments=False, favor_recall=True)
    if not text:
        # Pages without an article (indexes, forms, fragments): all that a reader would see.
        text = trafilatura.html2txt(html)
    text = _clean(text or "")
    if not text.strip():
        raise DocumentError(str(source.path), "empty: the page shows no text (it may be made by a script)")
    marks = markdown_headings(text)
    return _document(source, text, title or next((mark.label for mark in marks), ""), marks)


# ------------------------------------------------------------------------------------------ PDF


def _load_pdf(source: Source) -> Loaded:
    import pypdf
    from pypdf.errors import DependencyError, FileNotDecryptedError, PyPdfError

    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it logs each small repair of each file
    where = str(source.path)
    try:
        with source.path.open("rb") as file:
            reader = pypdf.PdfReader(file, strict=False)
            if reader.is_encrypted and not reader.decrypt(""):
                raise DocumentError(where, "encrypted: it needs a password; save a copy without one")
            pages = [_clean(page.extract_text() or "") for page in reader.pages]
            title = str((reader.metadata.title if reader.metadata is not None else None) or "")
    except (DependencyError, FileNotDecryptedError) as error:
        raise DocumentError(where, "encrypted in a way that cannot be read here; save a copy without a password") from error
    except PyPdfError as error:
        raise DocumentError(where, f"damaged: {error}") from error
    text, marks = "", []
    for number, page in enumerate(pages, start=1):
        marks.append(Mark(len(text), "page", str(number)))
        text += page.strip("\n") + "\n\n"
    if not text.strip():
        raise DocumentError(where, f"no text on its {len(pages)} pages: scanned or drawn; run OCR on it first")
    return _document(source, text, title, tuple(marks), pages=len(pages))


# ------------------------------------------------------------------------------ notebooks, JSONL


def _load_notebook(source: Source) -> Loaded:
    try:
        notebook = json.loads(_decode(source, source.path.read_bytes()))
    except ValueError as error:
        raise DocumentError(str(source.path), f"damaged: not JSON ({error})") from error
    if not isinstance(notebook, dict):
        raise DocumentError(str(source.path), "not a notebook: it holds no cells")
    text, marks = "", []
    language = ""
    metadata = notebook.get("metadata")
    if isinstance(metadata, dict) and isinstance(kernel := metadata.get("kernelspec"), dict):
        language = str(kernel.get("language", ""))
    # Read by hand and not with nbformat's validator: notebooks that fail it are common, and their text is as good.
    for kind, body, outputs in _cells(notebook):
        block = _clean(body).strip("\n")
        if not block.strip():
            continue
        if kind == "code":
            fence = "````" if "```" in block else "```"
            block = f"{fence}{language}\n{block}\n{fence}"
            block += "".join(f"\n\n{_clean(output).strip()[:_MAX_OUTPUT]}" for output in outputs if output.strip())
        else:
            marks += markdown_headings(block, offset=len(text))
        text += block + "\n\n"
    title = next((mark.label for mark in marks if mark.level == 1), "")
    return _document(source, text, title, tuple(marks))


def _cells(notebook: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str]]]:
    """Give (kind, source, text outputs) of each cell, in every notebook format since 2."""
    groups = [notebook, *(w for w in _list(notebook.get("worksheets")) if isinstance(w, dict))]  # formats 2 and 3
    for cell in (c for group in groups for c in _list(group.get("cells"))):
        if not isinstance(cell, dict):
            continue
        kind = str(cell.get("cell_type", ""))
        body = _joined(cell.get("source", cell.get("input", "")))
        if kind == "heading":  # format 3
            level = cell.get("level")
            body = "#" * (level if isinstance(level, int) and 1 <= level <= 6 else 1) + " " + body
        outputs = [_output(output) for output in _list(cell.get("outputs")) if isinstance(output, dict)]
        yield kind, body, outputs


def _output(output: Mapping[str, Any]) -> str:
    data = output.get("data")
    if isinstance(data, dict):
        return _joined(data.get("text/plain", ""))
    return _joined(output.get("text", ""))


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _joined(value: Any) -> str:
    if isinstance(value, list):
        return "".join(part for part in value if isinstance(part, str))
    return value if isinstance(value, str) else ""


def _load_jsonl(source: Source) -> Loaded:
    documents: list[Document] = []
    failures: list[DocumentError] = []
    for number, line in enumerate(_decode(source, source.path.read_bytes()).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{source.path}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            failures.append(DocumentError(where, f"not JSON: {error}"))
            continue
        text = next((row[k] for k in _TEXT_KEYS if isinstance(row.get(k), str)), None) if isinstance(row, dict) else None
        if text is None:
            failures.append(DocumentError(where, f"no text: a row needs one of {', '.join(_TEXT_KEYS)}"))
            continue
        if not text.strip():
            failures.append(DocumentError(where, "empty: its text is blank"))
            continue
        row_id = next((str(row[k]) for k in ("_id", "id", "doc_id") if isinstance(row.get(k), str | int)), str(number))
        text = _clean(text)
        title = row.get("title")
        documents.append(
            Document(
                id=f"{source.id}#{_clean(row_id)[:200]}",
                text=text,
                source=f"{source.path}#{row_id[:200]}",
                title=_title(title) if isinstance(title, str) else "",
                language=detect_language(text),
            )
        )
    return Loaded(tuple(documents), tuple(failures))


_TEXT_KEYS = ("text", "contents", "content", "body")

_LOADERS: Mapping[str, Callable[[Source], Loaded]] = {
    ".md": _load_markdown,
    ".markdown": _load_markdown,
    ".txt": _load_text,
    ".text": _load_text,
    ".rst": _load_text,
    ".html": _load_html,
    ".htm": _load_html,
    ".pdf": _load_pdf,
    ".ipynb": _load_notebook,
    ".jsonl": _load_jsonl,
}

SUFFIXES: tuple[str, ...] = tuple(_LOADERS)
"""The file endings that ragkit reads."""
