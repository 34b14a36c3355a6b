"""Word documents (DOCX): mammoth converts them to HTML by style, which becomes Markdown.

Page headers and footers are dropped, because they repeat on every page.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from typing import Any

from ragkit.documents.builder import DocumentBuilder
from ragkit.documents.document import Document, SourceFile
from ragkit.documents.formats.zipped import core_title, open_archive, parsed, part_of
from ragkit.documents.markup import html_in_full
from ragkit.errors import DocumentError

_BODY = "word/document.xml"
_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_M = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_STYLES = "\n".join(
    ["p[style-name='Title'] => h1:fresh", "p[style-name='Titre'] => h1:fresh", "comment-reference => sup"]
    # Word stores "heading 1" in every language; some other programs store the localized name.
    + [f"p[style-name='Titre {level}'] => h{level}:fresh" for level in range(1, 7)]
)


def read_docx(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    """See `ragkit.documents.read`."""
    import mammoth

    with open_archive(source) as archive:
        title = core_title(archive)
        file = _with_plain_equations(archive)
    no_pictures = mammoth.images.img_element(lambda image: {})
    html = mammoth.convert_to_html(file, style_map=_STYLES, convert_image=no_pictures).value
    builder = DocumentBuilder(source)
    builder.add(html_in_full(html), is_markdown=True)
    if not builder.size and "<img" in html:
        raise DocumentError(source.where, "no text, only pictures; run OCR on it first")
    yield builder.finish(title=title)


def _with_plain_equations(archive: zipfile.ZipFile) -> io.BytesIO:
    """Return a copy of the file with equations as text, because mammoth ignores equations."""
    body = part_of(archive, _BODY)
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w") as out:
        for name in dict.fromkeys(archive.namelist()):
            if name == _BODY and b":oMath" in body:
                out.writestr(name, _without_equations(body))
            elif not name.startswith("word/media/"):
                out.writestr(name, archive.read(name))
    copy.seek(0)
    return copy


def _without_equations(body: bytes) -> bytes:
    from lxml import etree

    tree = parsed(body)
    for equation in list(tree.iter(f"{_M}oMath")):
        run = etree.Element(f"{_W}r")
        etree.SubElement(run, f"{_W}t").text = _linear(equation)
        run.tail = equation.tail
        equation.getparent().replace(equation, run)
    for paragraph in list(tree.iter(f"{_M}oMathPara")):
        parent = paragraph.getparent()
        for run in list(paragraph.iterchildren(f"{_W}r")):
            parent.insert(parent.index(paragraph), run)
        parent.remove(paragraph)
    return bytes(etree.tostring(tree, encoding="utf-8", xml_declaration=True))


def _linear(element: Any) -> str:
    """Return an equation in one line, in keyboard notation: ``(a+b)/c``, ``x^2``, ``a_n``."""
    if element.tag == f"{_M}t":
        return element.text or ""
    parts = {child.tag: _linear(child) for child in element}
    match str(element.tag).removeprefix(_M):
        case "f":
            return f"{_grouped(parts.get(f'{_M}num', ''))}/{_grouped(parts.get(f'{_M}den', ''))}"
        case "sSup" | "sSub" | "sSubSup":
            below, above = parts.get(f"{_M}sub", ""), parts.get(f"{_M}sup", "")
            return (
                parts.get(f"{_M}e", "")
                + (f"_{_grouped(below)}" if below else "")
                + (f"^{_grouped(above)}" * bool(above))
            )
        case "rad":
            return f"√{_grouped(parts.get(f'{_M}e', ''))}"
    return "".join(_linear(child) for child in element)


def _grouped(text: str) -> str:
    return text if len(text) < 2 or text.isalnum() else f"({text})"
