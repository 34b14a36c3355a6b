"""Presentations (PPTX): each slide becomes a page, with its title as a heading and its notes as text."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from ragkit.documents.builder import DocumentBuilder, one_line, reason_of
from ragkit.documents.document import Document, SourceFile
from ragkit.documents.formats.zipped import core_title, open_archive, parsed
from ragkit.documents.markup import markdown_table
from ragkit.errors import DocumentError

_TEXT = "{http://schemas.openxmlformats.org/drawingml/2006/main}t"
_PARAGRAPH = "{http://schemas.openxmlformats.org/drawingml/2006/main}p"


def read_pptx(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    """See `ragkit.documents.read`."""
    import pptx

    with open_archive(source) as archive:
        title = core_title(archive)
    builder = DocumentBuilder(source)
    slides = pptx.Presentation(str(source.path)).slides
    count = len(slides)
    for number in range(1, count + 1):
        if time.monotonic() > deadline:
            yield DocumentError(f"{source.where}, from slide {number}", reason_of(TimeoutError()))
            break
        builder.page(number)
        try:
            heading, blocks = _slide(slides[number - 1])
        except Exception as error:  # any error, as in `parse`: a bad slide must not affect the others
            yield DocumentError(f"{source.where}, slide {number}", reason_of(error))
            continue
        title = title or heading
        builder.heading(heading, level=2)
        for block in blocks:
            builder.add(block)
    yield builder.finish(title=title, pages=count)


def _slide(slide: Any) -> tuple[str, list[str]]:
    title = slide.shapes.title
    heading = one_line(title.text_frame.text) if title is not None else ""
    blocks: list[str] = []
    shapes = list(reversed(slide.shapes))
    while shapes:
        shape = shapes.pop()
        if title is not None and shape.shape_id == title.shape_id:
            continue
        if hasattr(shape, "shapes"):  # a group
            shapes += reversed(list(shape.shapes))
        elif getattr(shape, "has_table", False):
            blocks.append(markdown_table([[cell.text for cell in row.cells] for row in shape.table.rows]))
        elif getattr(shape, "has_chart", False):
            blocks.append(_chart(shape.chart))
        elif shape.has_text_frame:
            blocks.append(_paragraphs(shape.text_frame))
        else:
            blocks.append(shape.element.xpath("string(.//p:cNvPr/@descr)"))  # alternative text
    for relation in slide.part.rels.values():
        if relation.reltype.endswith("/diagramData"):  # SmartArt
            tree = parsed(relation.target_part.blob)
            blocks += ["".join(t.text or "" for t in p.iter(_TEXT)) for p in tree.iter(_PARAGRAPH)]
    if slide.has_notes_slide and (notes := slide.notes_slide.notes_text_frame) is not None and notes.text.strip():
        blocks.append(f"Notes: {notes.text}")
    return heading, blocks


def _paragraphs(frame: Any) -> str:
    """Return the paragraphs as lines; a vertical tab is a line break within a paragraph."""
    lines = [("  " * p.level + "- " if p.level else "") + p.text.replace("\v", "\n") for p in frame.paragraphs]
    return "\n".join(line for line in lines if line.strip())


def _chart(chart: Any) -> str:
    title = chart.chart_title.text_frame.text if chart.has_title and chart.chart_title.has_text_frame else ""
    rows: list[Sequence[str]] = []
    for plot in chart.plots:
        rows.append(["", *map(str, plot.categories)])
        rows += [[str(series.name), *("" if v is None else f"{v:g}" for v in series.values)] for series in plot.series]
    return f"{title}\n\n{markdown_table(rows)}".strip()
