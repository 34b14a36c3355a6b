"""The stages of an experiment: failures of a single document."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragkit.cancellation import never
from ragkit.chunking.base import Chunk, Chunker
from ragkit.chunking.sentence import SentenceChunker
from ragkit.documents.document import Document
from ragkit.embedding.base import Embedder
from ragkit.embedding.cache import CachedEmbedder
from ragkit.embedding.hashed import HashEmbedder
from ragkit.errors import DocumentError, InputError
from ragkit.experiments.result_cache import ResultCache
from ragkit.experiments.stages import chunk_documents
from tests.indexing.test_pipeline import ERRORS, Trap, TrappedChunker, TrappedTokenizer


def documents(*texts: str) -> list[Document]:
    return [
        Document(id=f"{n}.md", text=text, source=f"docs/{n}.md", title="", language="en")
        for n, text in enumerate(texts)
    ]


def texts_of(tmp_path: Path, chunker: Chunker, embedder: Embedder, *texts: str) -> list[str]:
    results = ResultCache(tmp_path / "results.db")
    cached = CachedEmbedder(embedder, False)
    return chunk_documents(documents(*texts), chunker, cached, results, cancelled=never).texts()


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["chunker", "tokenizer"])
def test_a_document_that_cannot_be_chunked_is_an_error_with_its_name(
    tmp_path: Path, where: str, error: BaseException
) -> None:
    TrappedChunker.trap = TrappedTokenizer.trap = Trap(error=error)
    chunker = TrappedChunker() if where == "chunker" else SentenceChunker()
    embedder = TrappedTokenizer(dimension=8) if where == "tokenizer" else HashEmbedder(dimension=8)
    with pytest.raises(DocumentError) as raised:
        texts_of(tmp_path, chunker, embedder, "One text.", "A line of poison.")
    assert raised.value.source == "docs/1.md"
    assert chunker.name in raised.value.reason
    assert str(error) in raised.value.reason


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()], ids=lambda e: type(e).__name__)
def test_interrupts_are_not_document_errors(tmp_path: Path, error: BaseException) -> None:
    TrappedChunker.trap = Trap(error=error)
    with pytest.raises(type(error)):
        texts_of(tmp_path, TrappedChunker(), HashEmbedder(dimension=8), "A line of poison.")


def test_a_chunker_that_fits_no_document_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="would not see the end"):
        texts_of(tmp_path, SentenceChunker(max_tokens=10**7), HashEmbedder(dimension=8), "One text.")


def test_a_capital_letter_a_wide_space_and_a_full_stop(tmp_path: Path) -> None:
    text = "Oranges hold vitamin C\u00a0. And pears do not."
    assert texts_of(tmp_path, SentenceChunker(max_tokens=7), HashEmbedder(dimension=8), text) == [
        "Oranges hold vitamin C\u00a0.",
        "And pears do not.",
    ]


class WantsMetadata(SentenceChunker):
    """A chunker that also fails for the plain document that is used to test whether any document works."""

    def chunk(self, document: Document, *, embedder: Embedder) -> list[Chunk]:
        document.metadata["chapter"]
        return super().chunk(document, embedder=embedder)


def test_a_chunker_that_wants_what_a_document_lacks(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"docs/0.md.*KeyError: 'chapter'"):
        texts_of(tmp_path, WantsMetadata(), HashEmbedder(dimension=8), "One text.")
