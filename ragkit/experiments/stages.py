"""The stages of an experiment, each of which computes only what is not kept yet.

    documents ─ chunk ─ embed ─┬─ retrieve (one result a question)
                               └─ ...

A stage's key is a hash of what it is (`ragkit.experiments.fingerprint`) and of the keys of what it reads, so that
set-ups share what they have in common, and a change reaches what depends on it and nothing else. Embeddings are kept by
`ragkit.embedding.cache`, which every index uses too; everything else by `ragkit.experiments.result_cache`.

Nothing depends on where a run was interrupted: what is computed together (a window of texts or of questions) is kept
together, so that floating-point sums are made in the same order in every run.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ragkit.chunking.base import Chunk, Chunker
from ragkit.chunking.context import embedded_texts, passage_text
from ragkit.chunking.failures import document_errors
from ragkit.documents.document import Document
from ragkit.embedding.base import Kind, Vectors
from ragkit.embedding.cache import CachedEmbedder
from ragkit.errors import OperationCancelled
from ragkit.experiments.fingerprint import code_version, identity, is_own
from ragkit.experiments.result_cache import ResultCache
from ragkit.hashing import hash_values
from ragkit.indexing.stored import DocumentRecord, StoredChunk
from ragkit.retrieval.base import Retriever
from ragkit.retrieval.corpus import Documents, Passages
from ragkit.retrieval.query import SearchQuery, search_queries

WINDOW = 64  # questions that are embedded and searched together
KEPT = 1_000  # passages of a ranking, at most
_TEXTS = 512  # texts that are embedded together
_CUT_TOGETHER = 256  # documents
_TIMED = 16  # questions whose retrieval is timed one by one

Tell = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Ranking:
    """A question's passages, best first.

    Attributes:
        positions: Of the passages in `ChunkedCorpus.chunks`, shape (n,).
        scores: Shape (n,).
    """

    positions: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float64]

    @classmethod
    def of(cls, scores: Mapping[int, float]) -> Ranking:
        """Rank scored passages: position -> score; of equal scores the first passage comes first."""
        best = sorted(scores, key=lambda p: (-scores[p], p))[:KEPT]
        return cls(np.asarray(best, dtype="<i4"), np.asarray([scores[p] for p in best], dtype="<f8"))

    def as_scores(self) -> dict[int, float]:
        """Return position -> score, best first."""
        return dict(zip(self.positions.tolist(), self.scores.tolist(), strict=True))


class ChunkedCorpus:
    """Documents cut by a chunker, for an embedder.

    Args:
        documents: The documents.
        chunks: Of each, its chunks.
        embedder: Embeds them, through the cache.
        chunker: What cut them; None if they were left whole.
        key: Names all of this.

    Attributes:
        key: What a stage that reads passages depends on.
        chunks: All of them, in order.
        owner: Of each chunk, the number of its document.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        chunks: Sequence[Sequence[Chunk]],
        embedder: CachedEmbedder,
        *,
        chunker: Chunker | None,
        key: str,
    ) -> None:
        self.key = key
        self.embedder = embedder
        self.chunks = [chunk for of_one in chunks for chunk in of_one]
        self.owner = [number for number, of_one in enumerate(chunks) for _ in of_one]
        self._by_document = chunks
        self._documents = documents
        self._chunker = chunker
        self._passages: Passages | None = None

    def texts(self) -> list[str]:
        """What the embedder reads of each passage."""
        found: list[str] = []
        for document, chunks in zip(self._documents, self._by_document, strict=True):
            if self._chunker is None:
                found += [passage_text(document.title, chunk) for chunk in chunks]
            else:
                with document_errors(document, self._chunker, self.embedder):
                    found += embedded_texts(document.title, chunks, self.embedder)[0]
        return found

    def passages(self, corpus: Documents, *, tell: Tell, cancelled: Callable[[], bool]) -> Passages:
        """Return the passages for retrievers; what was never embedded is embedded when a retriever needs it.

        Args:
            corpus: The documents, as every cut of them shares them.
            tell: Called with texts embedded and to embed.
            cancelled: Asked between windows.

        A search in them raises:
            OperationCancelled: ``cancelled`` said so.
            EmbeddingError: The embedder failed.
        """
        if self._passages is None:
            numbers = itertools.count()
            self._passages = Passages(
                corpus,
                [[StoredChunk(str(next(numbers)), chunk) for chunk in of_one] for of_one in self._by_document],
                embedder=self.embedder.inner,  # a question that is timed is embedded
                vectors=lambda: embed(self.texts(), self.embedder, tell=tell, cancelled=cancelled),
            )
        return self._passages


def records(documents: Sequence[Document]) -> Documents:
    """Return documents as retrievers see them."""
    return Documents(DocumentRecord(d.id, d.source, d.title, d.language, d.text) for d in documents)


# ---------------------------------------------------------------------------------------- chunk


def cut(
    documents: Sequence[Document],
    chunker: Chunker | None,
    embedder: CachedEmbedder,
    results: ResultCache,
    *,
    cancelled: Callable[[], bool],
) -> ChunkedCorpus:
    """ChunkedCorpus documents, each once.

    Raises:
        DocumentError: The chunker, or the embedder's tokenizer, failed for a document; none is left out in silence.
        OperationCancelled: ``cancelled`` said so.
        InputError: The chunker's chunks are longer than what the embedder reads.
    """
    given = None if chunker is None or is_own(chunker) else code_version(Document)
    method = hash_values("chunk", identity(chunker), given, identity(embedder))
    digests = [document.digest() for document in documents]
    read = [code_version(each) for each in (passage_text, embedded_texts)]
    key = hash_values(method, read, [[d.id, own] for d, own in zip(documents, digests, strict=True)])
    if chunker is None:
        whole = [[Chunk(d.id, 0, len(d.text), d.text)] if d.text.strip() or d.title else [] for d in documents]
        return ChunkedCorpus(documents, whole, embedder, chunker=None, key=key)
    chunks: list[list[Chunk]] = []
    for start in range(0, len(documents), _CUT_TOGETHER):
        _stop_if(cancelled)
        part = documents[start : start + _CUT_TOGETHER]
        keys = [hash_values(method, each) for each in digests[start : start + _CUT_TOGETHER]]
        known = results.get(keys)
        fresh: dict[str, list[list[Any]]] = {}
        for k, document in zip(keys, part, strict=True):
            if k in known:
                continue
            with document_errors(document, chunker, embedder):
                found = chunker.chunk(document, embedder=embedder)
                fresh[k] = [[c.start, c.end, c.headings, c.page] for c in found]
        if fresh:
            results.put("chunk", fresh)
        for k, document in zip(keys, part, strict=True):
            spans = known[k] if k in known else fresh[k]
            chunks.append(
                [
                    Chunk(document.id, a, b, document.text[a:b], tuple(headings), page, ordinal)
                    for ordinal, (a, b, headings, page) in enumerate(spans)
                ]
            )
    return ChunkedCorpus(documents, chunks, embedder, chunker=chunker, key=key)


# ---------------------------------------------------------------------------------------- embed


def embed(texts: Sequence[str], embedder: CachedEmbedder, *, tell: Tell, cancelled: Callable[[], bool]) -> Vectors:
    """Embed texts, each distinct one once; shape (len(texts), dimension).

    The same texts fall into the same windows whether or not an earlier run was interrupted: all that is not known, the
    longest first.
    """
    distinct = list(dict.fromkeys(texts))
    known: dict[str, Vectors] = {}
    for start in range(0, len(distinct), 10 * _TEXTS):
        part = distinct[start : start + 10 * _TEXTS]
        known |= {part[at]: vector for at, vector in embedder.known(part).items()}
    missing = sorted((text for text in distinct if text not in known), key=lambda text: (-len(text), text))
    for start in range(0, len(missing), _TEXTS):
        _stop_if(cancelled)
        tell(start, len(missing))
        window = missing[start : start + _TEXTS]
        known |= dict(zip(window, embedder.embed(window), strict=True))
    if missing:
        tell(len(missing), len(missing))
    if not texts:
        return np.zeros((0, embedder.dimension), dtype=np.float32)
    return np.stack([known[text] for text in texts])


# ------------------------------------------------------------------------------------- retrieve


class Retrieval:
    """One retriever over one cut.

    Args:
        retriever: Ranks.
        cut: The passages.
        results: Where rankings are kept.
    """

    def __init__(self, retriever: Retriever, cut: ChunkedCorpus, results: ResultCache) -> None:
        self.retriever = retriever
        self.cut = cut
        self._results = results
        # Of what a user's own retriever is given it may use anything; ragkit's own say what they use.
        given = None if is_own(retriever) else code_version(Passages)
        code = [code_version(each) for each in (Ranking, windows)]
        self.key = hash_values("retrieve", identity(retriever), given, code, cut.key)

    def known(self, queries: Sequence[SearchQuery]) -> dict[str, Ranking]:
        """Return what was computed before: text of a query -> ranking."""
        keys = {self._key_of(query): query.text for query in queries}
        return {keys[key]: _decoded(value) for key, value in self._results.get(list(keys)).items()}

    def rank(
        self, queries: Sequence[SearchQuery], passages: Passages, *, known: Container[str] = ()
    ) -> dict[str, Ranking]:
        """Rank the passages for the queries of one window, but for the known ones, and keep the rankings."""
        languages = [query.language for query in queries]
        together = search_queries(queries, languages, embedder=self.cut.embedder)
        found = {q.text: Ranking.of(self.retriever.scores(q, passages)) for q in together if q.text not in known}
        keys = {query.text: self._key_of(query) for query in queries}
        self._results.put("retrieve", {keys[text]: _encoded(ranking) for text, ranking in found.items()})
        return found

    def _key_of(self, query: SearchQuery) -> str:
        return hash_values(self.key, query.language, query.text)

    def latency(self, queries: Sequence[SearchQuery], passages: Passages) -> float:
        """Return the median milliseconds of one query by itself, its embedding included; measured once.

        How long embedding takes is measured once for an embedder, and counts for those who ask for a vector.
        """
        known = self.known_latency()
        if known is None:
            first, *others = queries[: _TIMED + 1]
            # What is loaded once is loaded by the first.
            embeds = _timed_search(self.retriever, first, passages, self.cut.embedder)[1]
            took = [_timed_search(self.retriever, q, passages, self.cut.embedder)[0] for q in others or [first]]
            known = statistics.median(took) + (self._embedding([first, *others]) if embeds else 0.0)
            self._results.put("latency", {hash_values("latency", self.key): known})
        return known

    def _embedding(self, queries: Sequence[SearchQuery]) -> float:
        embedder = self.cut.embedder.inner
        key = hash_values("latency", identity(embedder))
        known = self._results.get([key])
        if key not in known:
            took = []
            for query in queries:
                began = time.perf_counter()
                embedder.embed([query.text], kind="query")
                took.append(1_000 * (time.perf_counter() - began))
            known = {key: statistics.median(took[1:] or took)}  # the first one loads what is loaded once
            self._results.put("latency", known)
        return float(known[key])

    def known_latency(self) -> float | None:
        """Return what was measured before."""
        key = hash_values("latency", self.key)
        return self._results.get([key]).get(key)


def windows(queries: Sequence[SearchQuery]) -> Iterator[Sequence[SearchQuery]]:
    """Part distinct queries into what is computed together."""
    distinct = list(dict.fromkeys(queries))
    for start in range(0, len(distinct), WINDOW):
        yield distinct[start : start + WINDOW]


class _TimedEmbedder:
    """Measures what an embedder takes, in seconds."""

    def __init__(self, embedder: CachedEmbedder) -> None:
        self.inner = embedder.inner
        self.seconds: list[float] = []

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        began = time.perf_counter()
        vectors: Vectors = self.inner.embed(texts, kind=kind)
        self.seconds.append(time.perf_counter() - began)
        return vectors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _timed_search(
    retriever: Retriever, query: SearchQuery, passages: Passages, embedder: CachedEmbedder
) -> tuple[float, bool]:
    """Return the milliseconds of a search without its embedding, and whether it needed that."""
    timed = _TimedEmbedder(embedder)
    query = SearchQuery(query.text, query.language, embedder=timed)
    began = time.perf_counter()
    retriever.scores(query, passages)
    seconds = time.perf_counter() - began - sum(timed.seconds)
    return 1_000 * seconds, bool(timed.seconds)


def _encoded(ranking: Ranking) -> Any:
    return {"positions": ranking.positions.tobytes(), "scores": ranking.scores.tobytes()}


def _decoded(value: Any) -> Ranking:
    return Ranking(np.frombuffer(value["positions"], dtype="<i4"), np.frombuffer(value["scores"], dtype="<f8"))


def _stop_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise OperationCancelled("The experiment was stopped. Run it again, and it goes on.")
