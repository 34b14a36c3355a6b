"""Jupyter notebooks, in every format since 2: Markdown, code and text outputs.

They are parsed without nbformat's validation: invalid notebooks are common, and their text is still useful.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ragkit.documents.builder import NO_TEXT, DocumentBuilder, one_line
from ragkit.documents.document import Document, SourceFile
from ragkit.documents.encoding import clean, decode
from ragkit.errors import DocumentError

_MAX_OUTPUT = 2_000  # characters of one output


def read_notebook(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    """See `ragkit.documents.read`."""
    content, _ = decode(source.path.read_bytes(), where=source.where)
    if not content.strip():
        raise DocumentError(source.where, NO_TEXT)
    try:
        notebook = json.loads(content)
    except ValueError as error:
        raise DocumentError(source.where, f"damaged: not JSON ({one_line(str(error))})") from error
    if not isinstance(notebook, dict) or not any(isinstance(notebook.get(k), list) for k in ("cells", "worksheets")):
        raise DocumentError(source.where, "not a notebook: it has no cells")
    builder = DocumentBuilder(source)
    for kind, body, language, outputs in _cells(notebook):
        block = clean(body).strip("\n")
        if kind == "code" and block.strip():
            builder.add("\n\n".join([_fenced(block, language), *(_fenced(output, "text") for output in outputs)]))
        elif kind != "code":
            builder.add(block, is_markdown=True)
    yield builder.finish()


def _fenced(code: str, language: str) -> str:
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code}\n{fence}"


def _cells(notebook: Mapping[str, Any]) -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield (kind, source, language, text outputs) of each cell, in every notebook format since 2."""
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
    """Return the text of an output, truncated: long tables and logs would dominate the notebook's text."""
    if "ename" in output:  # the last line of a traceback is enough
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
    """Return text that may be a list of lines; format 2 omits the line ends."""
    if not isinstance(value, list):
        return value if isinstance(value, str) else ""
    lines = [line for line in value if isinstance(line, str)]
    return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines).removesuffix("\n")
