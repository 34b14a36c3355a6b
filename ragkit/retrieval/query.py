"""Queries that carry their language and embedding through retrieval, quoting and follow-up questions."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ragkit.documents.language import detect_language
from ragkit.embedding.base import Embedder, Vectors
from ragkit.errors import InputError


class SearchQuery(str):
    """A query text with its language and its embedding.

    It is a string, so code that needs only the text (a notebook's own retriever, a model) can use it as one.
    ``SearchQuery(text, language="und", vector=None, embedder=None)``: without a vector, the embedder makes one when one
    is first needed.

    Attributes:
        language: ISO 639-1 code of the text; "und" if unknown.
        batch: The queries that are embedded and compared together with this one.
    """

    language: str
    batch: QueryBatch
    _row: int

    def __new__(
        cls, text: str, language: str = "und", vector: Vectors | None = None, *, embedder: Embedder | None = None
    ) -> SearchQuery:
        """Make a query.

        Args:
            text: The query text.
            language: ISO 639-1 code of the text; "und" if unknown.
            vector: The text's embedding, shape (dimension,), if already computed.
            embedder: The embedder of ``vector``; embeds the text when its vector is first needed.
        """
        query = super().__new__(cls, text)
        query.language = language
        query.batch, query._row = QueryBatch([query.text], embedder), 0
        if vector is not None:
            query.batch.vectors = vector.reshape(1, -1)
        return query

    @property
    def text(self) -> str:
        """The text as a plain string."""
        return str.__str__(self)

    @property
    def vector(self) -> Vectors:
        """The embedding, shape (dimension,).

        Raises:
            InputError: There is neither an embedding nor an embedder.
            EmbeddingError: The embedder failed.
        """
        return self.embedded_by(self.batch.embedder)

    def embedded_by(self, embedder: Embedder | None) -> Vectors:
        """Return the embedding by an embedder, shape (dimension,); the stored one if it is by this embedder."""
        row: Vectors = self.batch.embedded_by(embedder)[self._row]
        return row

    def row_of(self, table: Vectors) -> Vectors:
        """Return this query's row of a matrix with one row per query of its batch."""
        row: Vectors = table[self._row]
        return row

    def __deepcopy__(self, memo: dict[int, Any]) -> SearchQuery:
        return self  # immutable

    def __reduce__(self) -> tuple[type[SearchQuery], tuple[str, str]]:
        return SearchQuery, (self.text, self.language)  # without the embedder, which may contain a model


class QueryBatch:
    """Queries that are embedded in one call, when a vector is first needed.

    Args:
        texts: n texts.
        embedder: Embeds them; if None, the argument of the first `embedded_by` is used.

    Attributes:
        vectors: Their embeddings, shape (n, dimension); None until first needed.
    """

    def __init__(self, texts: Sequence[str], embedder: Embedder | None) -> None:
        self.texts = texts
        self.embedder = embedder
        self.vectors: Vectors | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.texts)

    def embedded_by(self, embedder: Embedder | None) -> Vectors:
        """Return the embeddings by an embedder, shape (n, dimension). Only those by `embedder` are stored."""
        if embedder is None and self.vectors is None:
            raise InputError("This query has no embedder. Give it one: SearchQuery(text, embedder=...).")
        if self.embedder is not None and embedder is not None and _bare(self.embedder) is not _bare(embedder):
            return embedder.embed(self.texts, kind="query")
        with self._lock:
            if self.vectors is None:
                self.embedder = self.embedder or embedder
                assert self.embedder is not None
                self.vectors = self.embedder.embed(self.texts, kind="query")
            return self.vectors


def _bare(embedder: Embedder) -> Any:
    return getattr(embedder, "inner", embedder)  # a cache does not change vectors


def search_queries(
    texts: Sequence[str], languages: Sequence[str], *, embedder: Embedder, vectors: Vectors | None = None
) -> list[SearchQuery]:
    """Make queries that are embedded together, and compared with all passages in one matrix product.

    Args:
        texts: n texts.
        languages: The ISO 639-1 code of each text.
        embedder: Embeds the texts when a vector is first needed.
        vectors: The texts' embeddings by this embedder, shape (n, dimension), if already computed.
    """
    batch = QueryBatch([str(text) for text in texts], embedder)
    batch.vectors = vectors
    queries = [SearchQuery(text, language) for text, language in zip(texts, languages, strict=True)]
    for row, query in enumerate(queries):
        query.batch, query._row = batch, row
    return queries


def guess_language(text: str, languages: Mapping[str, int]) -> str:
    """Guess a query's language: English, French, or one of the five most common of a corpus.

    Args:
        text: The query text.
        languages: ISO 639-1 code -> number of documents; ``"und"`` is not a language.
    """
    common = sorted(languages, key=lambda code: -languages[code])[:5]
    known = [language for language in common if language != "und"]
    return detect_language(text, among={"en", "fr", *known}, default=known[0] if known else "en")
