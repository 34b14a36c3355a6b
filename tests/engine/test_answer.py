from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from ragkit.chunking.base import Chunk
from ragkit.engine.answer import Answer, cite, passages_of
from ragkit.indexing.record_types import DocumentRecord
from ragkit.llm.prompt import abstention
from ragkit.retrieval.base import Hit

TEXT = "BM25 has two parameters. The usual k1 is 1.2.\nThe usual b is 0.75. Tune them last."


def hit(
    text: str = TEXT, *, title: str = "BM25", start: int = 0, page: int | None = None, source: str = "bm25.md"
) -> Hit:
    document = DocumentRecord("bm25.md", source, title, "en", " " * start + text)
    chunk = Chunk("bm25.md", start, start + len(text), text, ("BM25", "Parameters"), page, 0)
    return Hit(chunk, document, 0.9, 0.8, 1)


def answered(text: str, *hits: Hit, language: str = "en") -> Answer:
    return cite("What is k1?", text, hits or (hit(),), language=language, model="test", seconds=0.1)


def test_citations_are_those_in_the_text_that_exist() -> None:
    answer = answered("One thing [2]. Another [1][9], a third [1, 2] and [0].", hit(), hit("Second passage."))
    assert answer.text == "One thing [1]. Another [2], a third [2][1] and."
    assert [(c.number, c.text) for c in answer.citations] == [(1, "Second passage."), (2, TEXT)]
    assert answer.cited
    assert not answer.abstained


def test_a_quote_is_found_at_its_exact_offsets_despite_white_space() -> None:
    answer = answered("The usual k1 is 1.2. The usual b is 0.75. [1]", hit(start=10))
    ((start, end),) = answer.citations[0].quotes
    document = answer.hits[0].document
    assert document.text[start:end] == "The usual k1 is 1.2.\nThe usual b is 0.75."
    assert answer.citations[0].start == 10


def test_a_very_long_answer_takes_no_quadratic_time() -> None:
    """With quadratic time, the first of these takes minutes."""
    for text in ("The usual b is. " * 20_000 + "[1]", "The usual b is not. [1] " * 5_000, "x " * 200_000 + "[1]"):
        assert answered(text).cited


def test_a_quote_is_found_within_other_words() -> None:
    answer = answered("According to the handbook: it depends. The usual k1 is 1.2. [1]")
    ((start, end),) = answer.citations[0].quotes
    assert TEXT[start:end] == "The usual k1 is 1.2."
    assert answered("Nothing of this stands there word for word. [1]").citations[0].quotes == ()


def test_indices_in_code_are_not_citations() -> None:
    text = "Take `x[1]`:\n\n```python\nfirst = x[0]\n```\n\nThe usual k1 is 1.2. [1]"
    answer = answered(text)
    assert answer.text == text
    assert [c.number for c in answer.citations] == [1]
    page = answer._repr_html_()
    assert page.count("<summary") == 2  # the marker, and the list of sources
    assert "<code>x[1]</code>" in page
    assert "<pre>first = x[0]\n</pre>" in page


def test_a_table_row_is_found_without_its_header() -> None:
    table = "| name | value |\n|---|---|\n| k1 | the usual is 1.2 |\n| b | the usual is 0.75 |"
    answer = answered("| name | value |\n|---|---|\n| b | the usual is 0.75 |\n[1]", hit(table))
    ((start, end),) = answer.citations[0].quotes
    assert table[start:end] == "| b | the usual is 0.75 |"


def test_an_answer_without_citations_shows_all_passages() -> None:
    answer = answered("I simply know.", hit(), hit("Second."))
    assert not answer.cited
    assert [c.number for c in answer.citations] == [1, 2]
    assert "cited no passage" in str(answer)


@pytest.mark.parametrize("language", ["en", "fr"])
def test_an_abstention_has_no_sources(language: str) -> None:
    answer = answered(abstention(language), language=language)
    assert answer.abstained
    assert answer.citations == ()
    assert answer.hits


def test_in_a_terminal_it_is_plain_text() -> None:
    text = str(answered("The usual k1 is 1.2. [1]", hit(page=3)))
    assert text.splitlines()[0] == "The usual k1 is 1.2. [1]"
    assert "[1] BM25 › Parameters, p. 3  (bm25.md)" in text
    assert "<" not in text


def test_passages_are_numbered_from_one() -> None:
    assert [p.number for p in passages_of([hit(), hit("x")])] == [1, 2]


class Elements(HTMLParser):
    """Collect every element and attribute of a page, as a browser would parse it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


HOSTILE = [
    "<script>alert(1)</script> some longer text here.",
    "<img src=x onerror=alert(1)> some longer text here.",
    "</blockquote></details><a href='javascript:alert(1)'>click</a> longer",
    '" onmouseover="alert(1)" x=" some longer text',
    "$\\href{javascript:alert(1)}{x}$ and some longer text",
]


@pytest.mark.parametrize("evil", HOSTILE)
def test_hostile_documents_and_models_are_shown_as_text(evil: str) -> None:
    answer = answered(f"{evil} [1]", hit(evil, title=evil, source=evil))
    answer.pending_follow_ups.set_result((evil,))
    page = Elements(answer._repr_html_())
    assert {tag for tag, _ in page.tags} <= {
        "style", "div", "code", "details", "summary", "blockquote", "mark", "small", "ol", "ul", "li",
    }  # fmt: skip
    names = {name for _, attributes in page.tags for name in attributes}
    assert names <= {"class", "lang", "title", "value"}
    assert evil in page.text
    # MathJax must not process text of documents.
    assert "mathjax_ignore" in str(page.tags[1])


def test_control_characters_in_documents_are_escaped() -> None:
    text = str(
        answered("\x1b[2J Gone. [1]", hit("\x1b]0;title\x07 Gone.", title="a\x1b[31m", source="x\nfake source.md"))
    )
    assert "\x1b" not in text
    assert "(x fake source.md)" in text


def test_a_marker_opens_the_quoted_passage() -> None:
    page = answered("The usual k1 is 1.2. [1]")._repr_html_()
    assert re.search(
        r"<summary title=[^>]*>\[1\]</summary><blockquote>.*<mark>The usual k1 is 1\.2\.</mark>", page, re.S
    )


def test_follow_ups_waits_and_raises_errors(capsys: pytest.CaptureFixture[str]) -> None:
    answer = answered("The usual k1 is 1.2. [1]")
    with pytest.raises(TimeoutError):
        answer.follow_ups(timeout_seconds=0.01)
    answer.pending_follow_ups.set_result(("What next?",))
    assert answer.follow_ups() == ("What next?",)
    assert "What next?" in answer._repr_html_()
    failed = answered("x")
    failed.pending_follow_ups.set_exception(ValueError("broken generator"))
    assert "x" in failed._repr_html_()
    with pytest.raises(ValueError, match="broken generator"):
        failed.follow_ups()


def test_french_answers_have_french_labels() -> None:
    answer = answered("Rien de cité.", language="fr")
    assert "n'a cité aucun passage" in str(answer)
    answer.pending_follow_ups.set_result(("Et ensuite ?",))
    assert "Pour continuer" in answer._repr_html_()
