from __future__ import annotations

import contextlib
import json
import os
import time
import zlib
from pathlib import Path
from typing import NoReturn

import pytest

from ragkit.documents import language, loading
from ragkit.documents.document import SourceFile
from ragkit.documents.loading import load
from ragkit.documents.sandbox import Reader
from ragkit.documents.sources import find_sources
from ragkit.errors import DocumentError
from tests.support.reading import ENCODINGS, headings, one, read, refused


def pdf(*pages: bytes, title: bytes = b"") -> bytes:
    """A PDF by hand: each page's content stream, compressed."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * n) for n in range(len(pages)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(pages)),
        b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for n, page in enumerate(pages):
        packed = zlib.compress(page, 9)
        objects.append(
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 500 500]/Contents %d 0 R/Resources<</Font<</F1 3 0 R>>>>>>"
            % (5 + 2 * n)
        )
        objects.append(b"<</Filter/FlateDecode/Length %d>>stream\n%s\nendstream" % (len(packed), packed))
    objects.append(b"<</Title(%s)>>" % title)
    out, offsets = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    trailer = b"trailer<</Size %d/Root 1 0 R/Info %d 0 R>>\nstartxref\n%d\n%%%%EOF" % (size, len(objects), len(out))
    return out + b"xref\n0 %d\n0000000000 65535 f \n%s%s" % (size, table, trailer)


def page(text: bytes) -> bytes:
    return b"BT /F1 12 Tf 50 400 Td (%s) Tj ET" % text


# ------------------------------------------------------------------------------------ real files


def test_every_messy_file_is_read_or_fails_with_a_reason(shared: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = find_sources(shared / "messy")
    assert found.failures == ()
    reasons = {}
    for source in found.sources:
        started = time.monotonic()
        try:
            loaded = load(source)
        except DocumentError as error:
            reasons[source.id] = error.reason
        else:
            assert loaded.failures == ()
            for document in loaded.documents:
                assert document.text.strip()
                assert document.title
                assert document.id == source.id
                document.text.encode()
                assert not {"\r", "\x00"} & set(document.text)
        assert time.monotonic() - started < 60
    assert capfd.readouterr() == ("", "")
    assert len(found.sources) - len(reasons) > 120
    kinds = {reason.partition(":")[0].partition(" (")[0] for reason in reasons.values()}
    assert kinds == {
        "encrypted",
        "empty",
        "no text on its pages",
        "no text, only pictures; run OCR on it first",
        "not a notebook",
    }
    assert "password" in reasons["pdf/libreoffice-writer-password.pdf"]
    assert "OCR" in reasons["mixed/MEDRPT-2024-PAT-3847_medical_report_scan.pdf"]
    # Encrypted with an empty password: these can be read.
    assert not [name for name in reasons if "empty-password" in name]


@pytest.mark.parametrize("name", sorted(ENCODINGS))
def test_real_encodings(shared: Path, name: str) -> None:
    file = shared / "messy" / "encodings" / f"sample-{name}.txt"
    (document,) = load(find_sources(file).sources[0]).documents
    assert document.metadata["encoding"] == ENCODINGS[name]
    expected = file.read_bytes().decode(ENCODINGS[name]).removeprefix("\ufeff").replace("\r\n", "\n")
    assert document.text == expected


def test_offsets_of_the_chunking_corpus_are_valid(shared: Path) -> None:
    """The spans of the chunking corpus are offsets into its files."""
    folder = shared / "datasets" / "chunking_evaluation"
    texts = {s.path.stem: load(s).documents[0].text for s in find_sources(folder / "corpora").sources}
    originals = {path.stem: path.read_bytes().decode() for path in (folder / "corpora").glob("*.md")}
    assert texts == originals


# ------------------------------------------------------------------------------------- encodings


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "cp1252"]
)
def test_encodings(tmp_path: Path, encoding: str) -> None:
    text = "L'été à la plage, où les élèves ont été très étonnés par les vagues. " * 5
    with_mark = "\ufeff" + text if encoding in ("utf-16-le", "utf-16-be", "utf-32-be") else text
    document = one(tmp_path, "a.txt", with_mark.encode(encoding))
    assert document.text == text
    assert document.language == "fr"


def test_line_ends_and_unwanted_characters(tmp_path: Path) -> None:
    assert one(tmp_path, "a.txt", "one\r\ntwo\rthree\x00\n").text == "one\ntwo\nthree\n"


def test_one_damaged_byte_does_not_spoil_the_rest(tmp_path: Path) -> None:
    document = one(tmp_path, "a.txt", "été à la plage ".encode() * 50 + b"\xff" + "où".encode())
    assert document.text == "été à la plage " * 50 + "\ufffdoù"


def test_a_late_accent_decides(tmp_path: Path) -> None:
    text = "Plain English, at length. " * 50_000 + "Puis l'été arriva, et les élèves étaient très étonnés. " * 9
    assert one(tmp_path, "a.txt", text.encode("cp1252")).text == text


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n\x00\x00\x00\xff", bytes(range(256)) * 8, b"\x01\x02\x03" * 99])
def test_binary_is_not_text(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path, "a.txt", content).startswith("not text: ")


@pytest.mark.parametrize("name", ["a.md", "a.txt", "a.html", "a.pdf", "a.ipynb", "a.jsonl"])
@pytest.mark.parametrize("content", [b"", b" \n\t\r\n ", b"\xef\xbb\xbf"])
def test_empty(tmp_path: Path, name: str, content: bytes) -> None:
    assert refused(tmp_path, name, content)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Puis l'été arriva, et les élèves étaient très étonnés.", "cp1252"),
        ("Die Vögel flogen über die Häuser und die Bäume am Fluß, weit weg von hier.", "cp1252"),
        ("Zażółć gęślą jaźń, powiedział książę, a potem poszedł do łóżka i zasnął głęboko. " * 3, "cp1250"),
    ],
)
def test_latin_encodings_are_detected_by_language(tmp_path: Path, text: str, encoding: str) -> None:
    assert one(tmp_path, "a.txt", text.encode(encoding)).text == text


# -------------------------------------------------------------------------------------- Markdown


def test_markdown_headings(tmp_path: Path) -> None:
    text = (
        "intro\n\n# The *first* `one` #\n\n```\n# code\n```\n\n~~~\n## code too\n~~~\n\n    # indented code\n\n"
        "Set\next\n---\n\n> ## Quoted\n\n#no heading\n\n\\# nor this\n\nSecond\n===\n\n"
        "###### Deep [link](http://x) \\*\n"
    )
    document = one(tmp_path, "a.md", text)
    assert document.text == text
    assert document.title == "The first one"
    assert headings(document) == [
        ("The first one", 1, "# The *first* `one` #"),
        ("Set ext", 2, "Set"),
        ("Quoted", 2, "> ## Quoted"),
        ("Second", 1, "Second"),
        ("Deep link *", 6, "###### Deep [link](http://x) \\*"),
    ]


def test_front_matter_gives_no_marks(tmp_path: Path) -> None:
    text = "---\ntitle: 'A title'\n# comment: no heading\ntags: [a]\n---\n\n## Real\n\ntext\n"
    document = one(tmp_path, "a.md", text)
    assert document.text == text
    assert headings(document) == [("Real", 2, "## Real")]
    assert document.title == "A title"
    # A rule at the top is not front matter.
    assert headings(one(tmp_path, "b.md", "---\n\nA heading\n---\n")) == [("A heading", 2, "A heading")]


def test_front_matter_that_is_mostly_blank(tmp_path: Path) -> None:
    title = "A title" + " " * 100_000  # a backtracking regex would take seconds
    started = time.monotonic()
    assert one(tmp_path, "a.md", f"---\ntitle: '{title}.'\n---\n\nText.").title == "A title ."
    assert time.monotonic() - started < 5


def test_title_without_headings(tmp_path: Path) -> None:
    assert one(tmp_path, "some.notes.md", "text").title == "some.notes"


@pytest.mark.parametrize(
    "text",
    [
        "word " * 2_000_000,
        "x" * 10_000_000,
        ">" * 100_000 + " x",
        "# " + "[" * 50_000,
        "# " + "*a **b " * 50_000,
        "".join("  " * n + "- a\n" for n in range(1_000)),
        "a\n" * 50_000 + "===",
    ],
    ids=["line", "word", "quotes", "brackets", "stars", "lists", "setext"],
)
def test_hostile_markdown(tmp_path: Path, text: str) -> None:
    started = time.monotonic()
    assert one(tmp_path, "a.md", text).text == text
    assert time.monotonic() - started < 60


# ------------------------------------------------------------------------------------------ HTML

ARTICLE = "<p>" + "The main text goes on for a while, as articles do, with commas and words. " * 8 + "</p>"


def test_html_article(tmp_path: Path) -> None:
    html = (
        f"<html><head><title>A page</title></head><body><nav>Home | About</nav><article><h1>Main</h1>{ARTICLE}"
        f"<h2>Part</h2>{ARTICLE}<pre><code># not a heading\nx = 1</code></pre></article>"
        "<script>evil()</script></body></html>"
    )
    document = one(tmp_path, "a.html", html)
    assert "main text goes on" in document.text
    assert "evil" not in document.text
    assert [(label, level) for label, level, _ in headings(document)] == [("Main", 1), ("Part", 2)]
    assert document.title in ("A page", "Main")
    assert document.language == "en"


def test_html_without_an_article_keeps_its_text_and_headings(tmp_path: Path) -> None:
    nested = "<ul><li>" * 900  # trafilatura gives up on this
    html = f"{nested}<style>x{{}}</style><h2>Add &amp; go</h2><div>One<br>Two <b>bo</b>ld<!-- no --></div>"
    document = one(tmp_path, "a.html", html)
    assert document.text.split("\n\n") == ["## Add & go", "One", "Two bold"]
    assert headings(document) == [("Add & go", 2, "## Add & go")]


def test_html_declares_its_encoding(tmp_path: Path) -> None:
    html = "<meta charset='windows-1251'><body><p>Привет</p></body>"
    assert "Привет" in one(tmp_path, "a.html", html.encode("cp1251")).text
    assert "été" in one(tmp_path, "b.html", "<meta charset=latin1><p>été</p>".encode("latin-1")).text


@pytest.mark.parametrize("opening", ["<div>", "<b>", "<table><tr><td>", "<ul><li>"])
def test_deeply_nested_html(tmp_path: Path, opening: str) -> None:
    """Read up to a limit of depth; fail beyond it instead of truncating silently."""
    assert "the text inside" in one(tmp_path, "a.html", f"<body>{opening * 400}the text inside").text
    assert "nested too deep" in refused(tmp_path, "a.html", f"<body>{ARTICLE}{opening * 20_000}the text inside")


@pytest.mark.parametrize("junk", ["<", "<a ", "<!--", '<a b="', "&", "<p>"])
def test_hostile_html(tmp_path: Path, junk: str) -> None:
    started = time.monotonic()
    with contextlib.suppress(DocumentError):  # both outcomes are fine
        one(tmp_path, "a.html", junk * 50_000)
    assert time.monotonic() - started < 60


def test_html_made_by_a_script(tmp_path: Path) -> None:
    assert "script" in refused(tmp_path, "a.html", "<html><body><div id=app></div><script>x()</script></body></html>")


# ------------------------------------------------------------------------------------------- PDF


def test_pdf_pages(tmp_path: Path) -> None:
    document = one(tmp_path, "a.pdf", pdf(page(b"First page."), page(b""), page(b"Third page."), title=b"The title"))
    assert document.title == "The title"
    assert document.metadata["pages"] == 3
    assert [document.page_at(document.text.index(word)) for word in ("First", "Third")] == [1, 3]


def test_pdf_title_that_is_a_file_name(tmp_path: Path) -> None:
    assert one(tmp_path, "a.pdf", pdf(page(b"x"), title=b"Microsoft Word - draft3.docx")).title == "a"


def test_pdf_without_text(tmp_path: Path) -> None:
    assert "OCR" in refused(tmp_path, "a.pdf", pdf(b"0 0 100 100 re f"))


def test_a_bad_page_does_not_affect_the_others(tmp_path: Path) -> None:
    bomb = b"0" * 100_000_000
    loaded = read(tmp_path, "a.pdf", pdf(page(b"First."), bomb, page(b"Third.")))
    (document,) = loaded.documents
    assert document.text.split() == ["First.", "Third."]
    assert document.page_at(document.text.index("Third")) == 3
    (failure,) = loaded.failures
    assert failure.source.endswith("a.pdf, page 2")
    assert "more than is safe" in failure.reason


def test_pdf_bomb(tmp_path: Path) -> None:
    assert "more than is safe" in refused(tmp_path, "a.pdf", pdf(b"0" * 200_000_000))


def test_deeply_nested_pdf(tmp_path: Path) -> None:
    assert "nested too deep" in refused(tmp_path, "a.pdf", pdf(b"[" * 100_000))


def test_pdf_time_out(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="not read in time"):
        read(tmp_path, "a.pdf", pdf(page(b"x")), timeout_seconds=0)


@pytest.mark.parametrize("content", [b"%PDF-1.7\ngarbage", b"not a pdf", pdf(page(b"x"))[:200]])
def test_damaged_pdf(tmp_path: Path, content: bytes) -> None:
    assert refused(tmp_path, "a.pdf", content).startswith(("damaged", "no text"))


# ------------------------------------------------------------------------------------- notebooks


def test_notebook(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "```\n", "open fence"]},
        {"cell_type": "markdown", "source": "## Part\n\ntext"},
        {
            "cell_type": "code",
            "source": "s = '''\n```\n# no heading\n'''",
            "outputs": [
                {"output_type": "stream", "text": ["\x1b[31mred\x1b[0m\n", "two"]},
                {"output_type": "execute_result", "data": {"text/plain": "y" * 5_000, "image/png": "AAAA"}},
                {"output_type": "error", "ename": "NameError", "evalue": "x", "traceback": ["\x1b[0;31m----"]},
            ],
        },
        {"cell_type": "code", "source": ""},
        "nonsense",
    ]
    notebook = {"cells": cells, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4}
    document = one(tmp_path, "a.ipynb", json.dumps(notebook))
    assert headings(document) == [("Title", 1, "# Title"), ("Part", 2, "## Part")]
    assert "````python\ns = '''\n```\n# no heading\n'''\n````" in document.text
    assert "red\ntwo" in document.text
    assert "NameError: x" in document.text
    assert "[3,000 more characters]" in document.text
    assert "\x1b" not in document.text
    assert "AAAA" not in document.text


def test_real_notebooks_agree_with_nbformat(shared: Path) -> None:
    """The text contains the source of each cell as nbformat reads it, in every format."""
    import nbformat

    checked = set()
    for name in ("test2", "test3", "test4", "test4plus", "test4.5"):
        file = shared / "messy" / "notebooks" / f"{name}.ipynb"
        (document,) = load(find_sources(file).sources[0]).documents
        original = nbformat.reader.reads(file.read_text(encoding="utf-8"))
        checked.add(original.nbformat)
        for cell in nbformat.convert(original, 4).cells:
            assert cell.get("source", "").strip("\n") in document.text
    assert checked == {2, 3, 4}


@pytest.mark.parametrize("content", ["[]", "{}", '{"cells": 3}', "{", '{"cells":' + "[" * 100_000])
def test_not_a_notebook(tmp_path: Path, content: str) -> None:
    assert refused(tmp_path, "a.ipynb", content).startswith(("not a notebook", "damaged", "nested too deep"))


# ----------------------------------------------------------------------------------------- JSONL


def test_jsonl(tmp_path: Path) -> None:
    rows = [
        '{"_id": "7", "title": "A  title", "text": "Some text\u2028here.", "year": 1962, "list": []}',
        "",
        '{"id": 8, "content": "' + r"lone \ud800 surrogate, \u0000 NUL" + '"}',
        '{"body": "no id"}',
        "not json",
        '{"_id": "9", "text": ""}',
        '["text"]',
        '{"_id": "10", "title": "no text"}',
        "[" * 100_000,
        '{"text": NaN}',
    ]
    loaded = read(tmp_path, "a.jsonl", "\n".join(rows))
    assert [d.id for d in loaded.documents] == ["a.jsonl#7", "a.jsonl#8", "a.jsonl#4"]
    first, second, _ = loaded.documents
    assert (first.title, first.text, dict(first.metadata)) == ("A title", "Some text\u2028here.", {"year": 1962})
    assert second.text == "lone  surrogate,  NUL"
    lines = [int(failure.source.rpartition("line ")[2]) for failure in loaded.failures]
    assert lines == [5, 6, 7, 8, 9, 10]
    assert "not JSON" in loaded.failures[0].reason
    assert "blank" in loaded.failures[1].reason
    assert "needs one of" in loaded.failures[2].reason


def test_jsonl_with_nothing_but_bad_rows(tmp_path: Path) -> None:
    loaded = read(tmp_path, "a.jsonl", "bad\n" * 1_000)
    assert loaded.documents == ()
    assert len(loaded.failures) == 101
    assert "900 more rows" in loaded.failures[-1].reason


# --------------------------------------------------------------------------------- unreadable


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match="cannot be read: No such file"):
        load(SourceFile(root=tmp_path, name="gone.md", size_bytes=1))


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "x.md").mkdir()
    with pytest.raises(DocumentError, match="cannot be read: Is a directory"):
        load(SourceFile(root=tmp_path, name="x.md", size_bytes=1))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(tmp_path: Path) -> None:
    file = tmp_path / "x.md"
    file.write_text("text")
    file.chmod(0)
    with pytest.raises(DocumentError, match="cannot be read: Permission denied"):
        load(find_sources(file).sources[0])


# -------------------------------------------------------------------------------- what readers raise


class Panic(BaseException):
    """Like a panic in native code: neither an `Exception` nor a request to stop."""


@pytest.mark.parametrize("error", [KeyError("x"), Panic("at the disco"), MemoryError(), RecursionError()], ids=repr)
def test_any_exception_of_a_reader_becomes_a_failure_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def reader(source: SourceFile, deadline: float) -> NoReturn:
        raise error

    monkeypatch.setattr(loading, "_READERS", {".md": reader})
    (tmp_path / "a.md").write_text("text")
    (source,) = find_sources(tmp_path).sources
    with pytest.raises(DocumentError) as raised:
        load(source)
    assert raised.value.__cause__ is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit()], ids=repr)
def test_requests_to_stop_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def reader(source: SourceFile, deadline: float) -> NoReturn:
        raise error

    monkeypatch.setattr(loading, "_READERS", {".md": reader})
    (tmp_path / "a.md").write_text("text")
    (source,) = find_sources(tmp_path).sources
    with pytest.raises(type(error)):
        load(source)


@pytest.mark.parametrize("error", [ValueError("x"), Panic("at the disco")], ids=repr)
def test_an_error_in_language_detection_fails_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Also with a child process: languages are detected in the parent."""

    def detect(text: str) -> NoReturn:
        raise error

    monkeypatch.setattr(language, "detect_language", detect)
    (tmp_path / "a.md").write_text("text")
    (source,) = find_sources(tmp_path).sources
    with Reader() as reader, pytest.raises(DocumentError, match=f"language.*{type(error).__name__}"):
        list(reader.read(source))
