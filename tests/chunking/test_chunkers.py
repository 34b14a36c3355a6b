"""Invariants of every chunker on any text: exact offsets, no lost text, no chunk over the model's limit."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragkit.chunking.base import Chunker
from ragkit.chunking.recursive import RecursiveChunker
from ragkit.chunking.semantic import SemanticChunker
from ragkit.chunking.sentence import SentenceChunker
from ragkit.chunking.structure import StructureChunker
from ragkit.chunking.token import TokenChunker
from ragkit.documents.document import Document, Mark
from ragkit.documents.loading import load
from ragkit.documents.markup import markdown_headings
from ragkit.documents.sources import find_sources
from ragkit.embedding.base import Embedder, Kind, Vectors
from ragkit.embedding.hashed import HashEmbedder
from ragkit.embedding.openai import OpenAIEmbedder
from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
from ragkit.errors import DocumentError, InputError
from tests.chunking.test_structure import TEXTS

MAKE: dict[str, Callable[[int], Chunker]] = {
    "structure": lambda n: StructureChunker(max_tokens=n),
    "token": lambda n: TokenChunker(max_tokens=n),
    "token, overlapping": lambda n: TokenChunker(max_tokens=n, overlap_tokens=n // 3),
    "sentence": lambda n: SentenceChunker(max_tokens=n),
    "sentence, overlapping": lambda n: SentenceChunker(max_tokens=n, overlap_tokens=n // 2),
    "recursive": lambda n: RecursiveChunker(max_tokens=n),
    "recursive, overlapping": lambda n: RecursiveChunker(max_tokens=n, overlap_tokens=n // 3),
    "semantic": lambda n: SemanticChunker(max_tokens=n, piece_tokens=max(1, n // 4)),
}
every_chunker = pytest.mark.parametrize("make", MAKE.values(), ids=list(MAKE))


class Minilm(SentenceTransformerEmbedder):
    """The real tokenizer with cheap hash vectors."""

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        return HashEmbedder(dimension=16).embed(texts)


@functools.cache
def minilm() -> Minilm:
    return Minilm()


def document(text: str, language: str = "en", **options: Any) -> Document:
    marks = options.pop("marks", markdown_headings(text))
    return Document(id="d", text=text, source="d.md", title="d", language=language, marks=marks, **options)


def check(document: Document, chunker: Any, embedder: Embedder) -> list[str]:
    chunks = chunker.chunk(document, embedder=embedder)
    text, at = document.text, 0
    for ordinal, chunk in enumerate(chunks):
        assert (chunk.ordinal, chunk.document_id) == (ordinal, document.id)
        assert text[chunk.start : chunk.end] == chunk.text
        assert chunk.text.strip() == chunk.text != ""
        assert not text[at : chunk.start].strip(), "text between chunks is lost"
        if ordinal:
            assert (chunk.start, chunk.end) > (chunks[ordinal - 1].start, chunks[ordinal - 1].end), "no progress"
            if not getattr(chunker, "overlap_tokens", 0):
                assert chunk.start >= at, "chunks overlap"
        at = max(at, chunk.end)
    assert not text[at:].strip(), "text at the end is lost"
    for chunk, tokens in zip(chunks, embedder.count_tokens([chunk.text for chunk in chunks]), strict=True):
        assert tokens <= chunker.max_tokens or len(chunk.text) == 1
        assert len(chunk.text) <= 32 * chunker.max_tokens, "too many characters for a passage"
    return [chunk.text for chunk in chunks]


@every_chunker
@settings(deadline=None, max_examples=120)
@given(text=TEXTS, max_tokens=st.integers(1, 60), language=st.sampled_from(["en", "fr", "und", "zh"]))
def test_offsets_cover_and_limits(make: Callable[[int], Chunker], text: str, max_tokens: int, language: str) -> None:
    check(document(text, language), make(max_tokens), HashEmbedder(dimension=8))


@every_chunker
@settings(deadline=None, max_examples=60)
@given(text=TEXTS, max_tokens=st.integers(4, 60))
def test_with_the_real_tokenizer(make: Callable[[int], Chunker], text: str, max_tokens: int) -> None:
    check(document(text), make(max_tokens), minilm())


class Hosted(OpenAIEmbedder):
    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        return HashEmbedder(dimension=16).embed(texts)


@every_chunker
@settings(deadline=None, max_examples=40)
@given(text=TEXTS, max_tokens=st.integers(2, 60))
def test_with_an_unknown_tokenizer(make: Callable[[int], Chunker], text: str, max_tokens: int) -> None:
    check(document(text), make(max_tokens), Hosted("m"))


@every_chunker
def test_all_messy_files(make: Callable[[int], Chunker], shared: Path) -> None:
    done = 0
    for source in find_sources(shared / "messy").sources:
        try:
            documents = load(source).documents
        except DocumentError:
            continue
        for each in documents:
            check(each, make(200), minilm())
            done += 1
    assert done > 80


@every_chunker
@pytest.mark.parametrize(
    "text",
    [
        "x" * 300_000,
        "a " * 200_000,
        "« l'été ? " * 30_000,
        "line\n" * 60_000,
        "\n\n" * 100_000 + "end",
        "中文" * 60_000,
    ],
    ids=["one word", "short words", "unclosed quotes", "lines", "blank", "no spaces"],
)
def test_hostile_texts_need_few_token_counts(make: Callable[[int], Chunker], text: str) -> None:
    """Counting is linear in the length of the text: each part is counted a few times, in few calls."""

    class Counting(HashEmbedder):
        calls = characters = 0

        def count_tokens(self, texts: Sequence[str]) -> list[int]:
            Counting.calls += 1
            Counting.characters += sum(map(len, texts))
            return super().count_tokens(texts)

    check(document(text, marks=()), make(200), Counting(dimension=8))
    assert Counting.characters < 14 * len(text) + 10_000
    assert Counting.calls < 200


@every_chunker
@pytest.mark.parametrize(
    "text",
    [
        "x" * 50_000,
        ("y" * 150 + " ") * 500,
        "\u0301" * 20_000,
        "\ue000 " * 20_000,
        "😀" * 20_000,
        "a" + " " * 99_999 + "b",
    ],
    ids=["one word", "words", "accents", "private use", "emoji", "white space"],
)
def test_unknown_words_are_split_by_length(make: Callable[[int], Chunker], text: str) -> None:
    """MiniLM's tokenizer counts a word of over 100 characters as one unknown token, and drops some characters."""
    check(document(text, marks=()), make(50), minilm())


@every_chunker
def test_a_limit_over_the_models_limit_is_rejected(make: Callable[[int], Chunker]) -> None:
    with pytest.raises(InputError, match="254"):
        make(300).chunk(document("text"), embedder=minilm())
    assert make(254).chunk(document("text"), embedder=minilm())


@every_chunker
def test_chunks_have_headings_and_pages(make: Callable[[int], Chunker]) -> None:
    text = "# Top\n\nOne two three.\n\n## Below\n\n" + "Four five six. " * 20
    page = Mark(text.index("Four"), "page", "2")
    marks = tuple(sorted([*markdown_headings(text), Mark(0, "page", "1"), page], key=lambda mark: mark.start))
    chunks = make(20).chunk(document(text, marks=marks), embedder=HashEmbedder(dimension=8))
    assert chunks[0].headings[:1] == ("Top",)
    assert chunks[-1].headings == ("Top", "Below")
    assert (chunks[0].page, chunks[-1].page) == (1, 2)


@every_chunker
def test_names_include_settings(make: Callable[[int], Chunker]) -> None:
    assert make(20).name != make(30).name
    assert make(20).name == make(20).name


@pytest.mark.parametrize(
    "make",
    [
        lambda: TokenChunker(max_tokens=0),
        lambda: SentenceChunker(max_tokens=5, overlap_tokens=5),
        lambda: RecursiveChunker(max_tokens=5, overlap_tokens=-1),
        lambda: SemanticChunker(max_tokens=5, piece_tokens=6),
    ],
)
def test_invalid_settings(make: Callable[[], Chunker]) -> None:
    with pytest.raises(InputError):
        make()


def test_token_chunks_overlap_by_overlap_tokens() -> None:
    text = " ".join(f"w{n}" for n in range(100))
    chunks = check(document(text), TokenChunker(max_tokens=10, overlap_tokens=3), HashEmbedder(dimension=8))
    assert chunks[0] == " ".join(f"w{n}" for n in range(10))
    assert chunks[1] == " ".join(f"w{n}" for n in range(7, 17))


def test_words_are_not_split() -> None:
    text = "Donaudampfschifffahrtsgesellschaft unquestionably antidisestablishmentarianism. " * 20
    for chunk in check(document(text), TokenChunker(max_tokens=40), minilm()):
        assert chunk.split()[0] in text.split()
        assert chunk.split()[-1] in text.split()


def test_sentences_follow_the_rules_of_the_language() -> None:
    french = "M. Dupont habite au 3, av. Foch. Où va-t-il ? Il part à 8 h. C'est tout !"
    chunks = check(document(french, "fr"), SentenceChunker(max_tokens=14), HashEmbedder(dimension=8))
    assert chunks[0] == "M. Dupont habite au 3, av. Foch."
    english = "Dr. Smith lives at 3 Main St. in town. Where does he go? He leaves at 8 a.m. sharp."
    chunks = check(document(english), SentenceChunker(max_tokens=12), HashEmbedder(dimension=8))
    assert chunks[0] == "Dr. Smith lives at 3 Main St. in town."


def test_recursion_uses_the_largest_separator_that_suffices() -> None:
    text = "One two three four.\nFive six seven.\n\nEight nine ten. Eleven twelve."
    chunks = check(document(text), RecursiveChunker(max_tokens=10), HashEmbedder(dimension=8))
    assert chunks == ["One two three four.\nFive six seven.", "Eight nine ten. Eleven twelve."]


class Topics(HashEmbedder):
    """Two topics: texts that mention fish, and all others."""

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        return np.asarray([[1.0, 0.0] if "fish" in text else [0.0, 1.0] for text in texts], dtype=np.float32)


def test_chunks_end_where_the_meaning_changes() -> None:
    fish, tax = ["A fish swims here.", "The fish eats.", "Every fish sleeps."], ["Tax is due.", "Pay the tax now."]
    chunks = check(document(" ".join(fish + tax)), SemanticChunker(max_tokens=100, piece_tokens=6), Topics(dimension=2))
    assert chunks == [" ".join(fish), " ".join(tax)]


@pytest.mark.parametrize("pieces", [2, 3, 30])
def test_similar_pieces_are_kept_together(pieces: int) -> None:
    """The similarity of every pair equals the mean: only the limit separates pieces."""
    text = " ".join(["A fish swims here."] * pieces)
    chunks = check(document(text), SemanticChunker(max_tokens=50, piece_tokens=6), HashEmbedder(dimension=8))
    assert len(chunks) == -(-5 * pieces // 50)


@pytest.mark.parametrize("embedder", [minilm(), HashEmbedder(), Hosted("m")], ids=["minilm", "hash", "hosted"])
@pytest.mark.parametrize("text", ["Hello, world", "L'été à Noël", "😀 smile", "中文字", "e\u0301te\u0301", "", "  "])
def test_token_spans_are_offsets_of_characters(embedder: Embedder, text: str) -> None:
    spans = embedder.token_spans(text)
    assert all(0 <= a <= b <= len(text) for a, b in spans)
    assert spans == sorted(spans)
    covered = {at for a, b in spans for at in range(a, b)}
    missed = "".join(c for at, c in enumerate(text) if at not in covered and not c.isspace())
    assert not missed.strip("\u0301")  # MiniLM's tokenizer drops combining accents
