from __future__ import annotations

import io
from pathlib import Path

import pptx
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from ragkit.documents.loading import load
from ragkit.documents.sources import find_sources
from tests.support.reading import BILLION_LAUGHS, headings, one, part, refused, with_part


def slides(*titles: str) -> bytes:
    deck = pptx.Presentation()
    for title in titles:
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = title
        body = slide.placeholders[1].text_frame
        body.text = f"Text of {title}"
        body.add_paragraph().text = "below"
        body.paragraphs[1].level = 1
        slide.notes_slide.notes_text_frame.text = f"Said about {title}"
    out = io.BytesIO()
    deck.save(out)
    return out.getvalue()


def test_slides_are_pages(tmp_path: Path) -> None:
    document = one(tmp_path, "a.pptx", slides("Les marées", "La lune"))
    assert headings(document) == [("Les marées", 2, "## Les marées"), ("La lune", 2, "## La lune")]
    assert document.title == "Les marées"
    assert document.metadata["pages"] == 2
    for number, title in enumerate(("Les marées", "La lune"), start=1):
        for text in (f"Text of {title}", f"Notes: Said about {title}"):
            assert document.page_at(document.text.index(text)) == number
            assert document.headings_at(document.text.index(text)) == (title,)
    assert "Text of La lune\n  - below" in document.text


def test_tables_charts_and_groups(tmp_path: Path) -> None:
    deck = pptx.Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    table = slide.shapes.add_table(2, 2, 0, 0, Inches(2), Inches(1)).table
    for at, text in enumerate(("Port", "Hour", "Brest", "6|12")):
        table.cell(at // 2, at % 2).text = text
    data = CategoryChartData()
    data.categories = ["north", "south"]
    data.add_series("sales", (1.5, 2))
    slide.shapes.add_chart(XL_CHART_TYPE.PIE, 0, 0, Inches(2), Inches(2), data)
    slide.shapes.add_group_shape().shapes.add_textbox(0, 0, 9, 9).text_frame.text = "in a group"
    out = io.BytesIO()
    deck.save(out)
    document = one(tmp_path, "a.pptx", out.getvalue())
    assert "| Port | Hour |\n| --- | --- |\n| Brest | 6\\|12 |" in document.text
    assert "|  | north | south |" in document.text
    assert "| sales | 1.5 | 2 |" in document.text
    assert "in a group" in document.text
    assert document.title == "a"


def test_a_real_deck(shared: Path) -> None:
    (document,) = load(find_sources(shared / "messy" / "mixed" / "test.pptx").sources[0]).documents
    assert document.metadata["pages"] == 6
    # The strings that MarkItDown's tests expect in this file.
    for text in (
        "2cdda5c8-e50e-4db4-b5f0-9722a649f455", "04191ea8-5c73-4215-a1d3-1cfb43aaaf12",
        "44bf7d06-5e7a-4a40-a2e1-a2e42ef28c8a", "1b92870d-e3b5-4e65-8153-919f4ff45592",
        "AutoGen: Enabling Next-Gen LLM Applications via Multi-Agent Conversation",
        "a3f6004b-6f4f-4ea8-bee3-3741f4dc385f", "2003",
    ):  # fmt: skip
        assert text in document.text


def test_hostile_slides(tmp_path: Path) -> None:
    name = "ppt/slides/slide1.xml"
    xml = part(slides("One"), name)
    head, _, tail = xml.partition("<p:sld ")
    bomb = head + BILLION_LAUGHS.replace("x [", "p:sld [") + "<p:sld " + tail.replace("Text of One", "&a12;")
    assert refused(tmp_path, "a.pptx", with_part(slides("One"), name, bomb)).startswith("damaged")
    deep = "<p:grpSp><p:nvGrpSpPr><p:cNvPr id='9' name='x'/></p:nvGrpSpPr><p:grpSpPr/>" * 3_000 + "</p:grpSp>" * 3_000
    assert refused(tmp_path, "b.pptx", with_part(slides("One"), name, xml.replace("<p:sp>", deep + "<p:sp>", 1)))
    assert "empty" in refused(tmp_path, "c.pptx", slides())
    assert refused(tmp_path, "d.pptx", slides("One")[:-9_000]).startswith("damaged")
