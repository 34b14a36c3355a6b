"""The protocols of retrievers, query rewriters and rerankers, and their results."""

from __future__ import annotations

import dataclasses
import html
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from ragkit.chunking.base import Chunk
from ragkit.errors import needs
from ragkit.indexing.record_types import DocumentRecord
from ragkit.retrieval.corpus import Passages
from ragkit.retrieval.query import SearchQuery
from ragkit.terminal import one_line, printable

if TYPE_CHECKING:
    import pandas as pd

Scores = Mapping[int, float]
"""Candidates: position of a passage in `Passages` -> score; higher is better."""


@dataclasses.dataclass(frozen=True, slots=True)
class Hit:
    """A retrieved passage.

    Attributes:
        chunk: The passage with its offsets into the document.
        document: The document that contains it.
        score: The score that determines the rank: the retriever's, that of `fused` rankings, or the reranker's.
            Comparable only within one question.
        similarity: Cosine similarity of question and passage; None if it was not computed.
        rank: 1 for the best.
    """

    chunk: Chunk
    document: DocumentRecord
    score: float
    similarity: float | None
    rank: int

    @property
    def text(self) -> str:
        """The passage's text: the document's ``text[chunk.start:chunk.end]``."""
        return self.chunk.text

    @property
    def title(self) -> str:
        """The document's title."""
        return self.document.title

    @property
    def page(self) -> int | None:
        """The page in a paged document, from 1."""
        return self.chunk.page

    @property
    def place(self) -> str:
        """The passage's location, for display: title, headings, page."""
        return place_of(self.document.title, self.chunk.headings, self.page, default=self.document.id)


def place_of(title: str, headings: Iterable[str], page: int | None, *, default: str) -> str:
    """Format a passage's location, for display; ``default`` if neither title nor headings are known."""
    parts = [*dict.fromkeys(part for part in (title, *headings) if part)] or [default]
    return " › ".join(parts) + (f", p. {page}" if page is not None else "")


class Hits(list[Hit]):
    """The passages found for a query, best first: a list that is displayed as a table in a notebook."""

    def to_frame(self) -> pd.DataFrame:
        """Return one row per hit: rank, score, similarity, document_id, title, headings, page, start, end, text.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        with needs("pandas", extra="lab"):
            import pandas as pd
        columns = ["rank", "score", "similarity", "document_id", "title", "headings", "page", "start", "end", "text"]
        rows = [
            (h.rank, h.score, h.similarity, h.document.id, h.title, " › ".join(h.chunk.headings), h.page, h.chunk.start)
            + (h.chunk.end, h.text)
            for h in self
        ]
        return pd.DataFrame(rows, columns=columns).astype({"page": "Int64"})

    def __str__(self) -> str:
        lines = []
        for hit in self:
            lines.append(f"{hit.rank:2}. {hit.score:.3f}  {hit.place}  ({one_line(hit.document.source)})")
            lines.append(textwrap.indent(_shortened(hit.text, 200), "    "))
        return printable("\n".join(lines)) or "no passages"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{hit.rank}</td><td>{hit.score:.3f}</td><td>{html.escape(printable(hit.place))}</td>"
            f"<td style='text-align:left'>{html.escape(printable(_shortened(hit.text, 300)))}</td></tr>"
            for hit in self
        )
        head = "<tr><th>rank</th><th>score</th><th>place</th><th>passage</th></tr>"
        return f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>"


class Retriever(Protocol):
    """Ranks passages for a question."""

    @property
    def name(self) -> str: ...

    def scores(self, query: SearchQuery, passages: Passages) -> Scores:
        """Score candidate passages. Passages that are not in the result are not candidates.

        Args:
            query: The query text: a string that also has a language and an embedding.
            passages: The corpus: ``passages.text(position)``, ``passages.cosines(query)`` and others.

        Returns:
            Position in ``passages`` -> score; higher is better.
        """
        ...


def _shortened(text: str, characters: int) -> str:
    return textwrap.shorten(text, characters, placeholder=" …")


class QueryRewriter(Protocol):
    """Writes the texts to search with for a question. `ragkit.retrieval.rewriting` has two implementations."""

    def rewrite(self, question: str, *, language: str, cancelled: Callable[[], bool] = ...) -> list[str]:
        """Return one or more texts, the question first unless it is replaced.

        Args:
            question: The question as asked.
            language: ISO 639-1 code of the question.
            cancelled: Polled several times a second; True stops the work.

        Raises:
            LLMError: A language model failed to write any.
            OperationCancelled: ``cancelled`` returned True.
        """
        ...


class Reranker(Protocol):
    """Scores the best passages again, together with the question. `ragkit.retrieval.reranking` has two implementations.

    Attributes:
        depth: Maximum number of passages to score.
    """

    @property
    def depth(self) -> int: ...

    def scores(self, question: str, texts: Sequence[str], *, cancelled: Callable[[], bool] = ...) -> Sequence[float]:
        """Score passages; higher is better.

        Args:
            question: The question as asked.
            texts: n passages with their titles and headings, best first.
            cancelled: Polled several times a second; True stops the work.

        Returns:
            A finite score for each, shape (n,). Passages with equal scores keep their order.

        Raises:
            RerankingError, LLMError: The model failed.
            OperationCancelled: ``cancelled`` returned True.
        """
        ...
