from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragkit.documents import builder as module
from ragkit.documents.builder import DocumentBuilder, one_line
from ragkit.documents.document import SourceFile
from ragkit.errors import DocumentError

SOURCE = SourceFile(root=Path("/folder"), name="some.notes.md", size_bytes=1)

blocks = st.one_of(
    st.tuples(st.just("page"), st.integers(1, 99)),
    st.tuples(st.just("heading"), st.text(max_size=40), st.integers(1, 6)),
    st.tuples(st.just("text"), st.text(max_size=80)),
)


@given(st.lists(blocks, max_size=12))
def test_marks_point_to_the_start_of_their_blocks(given_blocks: list[tuple[str, object, int]]) -> None:
    builder = DocumentBuilder(SOURCE)
    builder.add("The beginning.")
    for kind, value, *level in given_blocks:
        match kind:
            case "page":
                builder.page(int(str(value)))
            case "heading":
                builder.heading(str(value), level=level[0])
            case _:
                builder.add(str(value))
    document = builder.finish()
    assert len(document.text) == builder.size
    document.text.encode()
    starts = [mark.start for mark in document.marks]
    assert starts == sorted(starts)
    for mark in document.marks:
        assert mark.start == 0 or document.text[mark.start - 2 : mark.start] == "\n\n"
        if mark.kind == "heading":
            assert document.text.startswith(f"{'#' * mark.level} {mark.label}\n", mark.start)
            assert document.headings_at(mark.start)[-1] == mark.label
    labels = [one_line(str(value)) for kind, value, *_ in given_blocks if kind == "heading"]
    assert [mark.label for mark in document.marks if mark.kind == "heading"] == [label for label in labels if label]


def test_titles() -> None:
    def title(given: str, heading: str = "", source: SourceFile = SOURCE) -> str:
        builder = DocumentBuilder(source)
        builder.heading(heading, level=1)
        builder.add("text")
        return builder.finish(title=given).title

    assert title("Given", "Heading") == "Given"
    assert title("Untitled", "Heading") == "Heading"
    assert title("report.docx") == "some.notes"
    assert title("", source=SourceFile(root=Path("/x"), name="README", size_bytes=1)) == "README"
    for url, name in (("http://host/a/b%20c.html?q=1", "b c"), ("http://host/", "host"), ("http://host/a/", "a")):
        assert title("", source=SourceFile(root=Path("/x"), name="download.html", size_bytes=1, url=url)) == name


def test_text_length_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CHARACTERS", 100)
    builder = DocumentBuilder(SOURCE)
    builder.add("x" * 60)
    with pytest.raises(DocumentError, match="too much text"):
        builder.add("x" * 60)
    with pytest.raises(DocumentError, match="empty"):
        DocumentBuilder(SOURCE).finish()
