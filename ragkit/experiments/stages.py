"""The stages of an experiment; each computes only the results that are not cached.

    documents ─ chunk ─ embed ─┬─ retrieve (one result per question)
                               └─ ...

The key of a stage is a hash of its identity (`ragkit.experiments.fingerprint`) and of the keys of its inputs, so that
systems share the stages that they have in common, and a change invalidates only what depends on it. Embeddings are
cached by `ragkit.embedding.cache`, which indexes use too; everything else by `ragkit.experiments.result_cache`.

Results do not depend on where a run was interrupted: a batch of texts or questions is computed and stored as a whole,
so that floating-point sums have the same order in every run.
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
from ragkit.indexing.record_types import DocumentRecord, StoredChunk
from ragkit.retrieval.base import Retriever
from ragkit.retrieval.corpus import Documents, Passages
from ragkit.retrieval.query import SearchQuery, search_queries

BATCH_QUERIES = 64  # embedded and searched together
MAX_RANKED = 1_000  # passages of a ranking
_BATCH_TEXTS = 512  # embedded together
_BATCH_DOCUMENTS = 256  # chunked and stored together
_TIMED_QUERIES = 16  # whose retrieval is timed one by one

OnProgress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True, slots=True)
class Ranking:
    """The ranked passages of a question, best first.

    Attributes:
        positions: Indices of the passages in `ChunkedCorpus.chunks`, shape (n,).
        scores: Their scores, shape (n,).
    """

    positions: npt.NDArray[np.int32]
    scores: npt.NDArray[np.float64]

    @classmethod
    def of(cls, scores: Mapping[int, float]) -> Ranking:
        """Rank passages by score (position -> score); ties are broken by the smaller position."""
        best = sorted(scores, key=lambda p: (-scores[p], p))[:MAX_RANKED]
        return cls(np.asarray(best, dtype="<i4"), np.asarray([scores[p] for p in best], dtype="<f8"))

    def as_scores(self) -> dict[int, float]:
        """Return position -> score, best first."""
        return dict(zip(self.positions.tolist(), self.scores.tolist(), strict=True))


class ChunkedCorpus:
    """Documents split into chunks by a chunker, for an embedder.

    Args:
        documents: The documents.
        chunks: The chunks of each document.
        embedder: Embeds the chunks, through the cache.
        chunker: The chunker; None if each document is one chunk.
        key: The cache key of the documents, the chunker and the embedder.

    Attributes:
        key: The key that stages which read passages depend on.
        chunks: All chunks, in order.
        owner: For each chunk, the index of its document.
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
        """Return the text of each passage that the embedder receives."""
        found: list[str] = []
        for document, chunks in zip(self._documents, self._by_document, strict=True):
            if self._chunker is None:
                found += [passage_text(document.title, chunk) for chunk in chunks]
            else:
                with document_errors(document, self._chunker, self.embedder):
                    found += embedded_texts(document.title, chunks, self.embedder)[0]
        return found

    def passages(self, corpus: Documents, *, on_progress: OnProgress, cancelled: Callable[[], bool]) -> Passages:
        """Return the passages for retrievers; they are embedded when a retriever first needs their vectors.

        Args:
            corpus: The whole documents, shared by all chunkings of them.
            on_progress: Called with the number of embedded texts and their total.
            cancelled: Polled between batches.

        A search in the passages raises:
            OperationCancelled: ``cancelled`` returned True.
            EmbeddingError: The embedder failed.
        """
        if self._passages is None:
            numbers = itertools.count()
            self._passages = Passages(
                corpus,
                [[StoredChunk(str(next(numbers)), chunk) for chunk in of_one] for of_one in self._by_document],
                embedder=self.embedder.inner,  # uncached: retrieval is timed with the embedding of the question
                vectors=lambda: embed(self.texts(), self.embedder, on_progress=on_progress, cancelled=cancelled),
            )
        return self._passages


def records(documents: Sequence[Document]) -> Documents:
    """Return the documents in the form that retrievers read."""
    return Documents(DocumentRecord(d.id, d.source, d.title, d.language, d.text) for d in documents)


# ---------------------------------------------------------------------------------------- chunk


def chunk_documents(
    documents: Sequence[Document],
    chunker: Chunker | None,
    embedder: CachedEmbedder,
    results: ResultCache,
    *,
    cancelled: Callable[[], bool],
) -> ChunkedCorpus:
    """Chunk documents; the chunks of each document are cached.

    Raises:
        DocumentError: The chunker or the embedder's tokenizer failed for a document; no document is silently left out.
        OperationCancelled: ``cancelled`` returned True.
        InputError: The chunks are longer than the embedder's maximum input.
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
    for start in range(0, len(documents), _BATCH_DOCUMENTS):
        _stop_if(cancelled)
        part = documents[start : start + _BATCH_DOCUMENTS]
        keys = [hash_values(method, each) for each in digests[start : start + _BATCH_DOCUMENTS]]
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


def embed(
    texts: Sequence[str], embedder: CachedEmbedder, *, on_progress: OnProgress, cancelled: Callable[[], bool]
) -> Vectors:
    """Embed texts, each distinct text once; shape (len(texts), dimension).

    The texts that are not cached are embedded in batches, longest first. The batches are the same whether or not an
    earlier run was interrupted.
    """
    distinct = list(dict.fromkeys(texts))
    known: dict[str, Vectors] = {}
    for start in range(0, len(distinct), 10 * _BATCH_TEXTS):
        part = distinct[start : start + 10 * _BATCH_TEXTS]
        known |= {part[at]: vector for at, vector in embedder.known(part).items()}
    missing = sorted((text for text in distinct if text not in known), key=lambda text: (-len(text), text))
    for start in range(0, len(missing), _BATCH_TEXTS):
        _stop_if(cancelled)
        on_progress(start, len(missing))
        batch = missing[start : start + _BATCH_TEXTS]
        known |= dict(zip(batch, embedder.embed(batch), strict=True))
    if missing:
        on_progress(len(missing), len(missing))
    if not texts:
        return np.zeros((0, embedder.dimension), dtype=np.float32)
    return np.stack([known[text] for text in texts])


# ------------------------------------------------------------------------------------- retrieve


class Retrieval:
    """One retriever over one chunked corpus.

    Args:
        retriever: The retriever.
        chunked: The passages.
        results: The cache for rankings.
    """

    def __init__(self, retriever: Retriever, chunked: ChunkedCorpus, results: ResultCache) -> None:
        self.retriever = retriever
        self.chunked = chunked
        self._results = results
        # A user-defined retriever may use anything of Passages; for ragkit's own, the source shows what they use.
        given = None if is_own(retriever) else code_version(Passages)
        code = [code_version(each) for each in (Ranking, query_batches)]
        self.key = hash_values("retrieve", identity(retriever), given, code, chunked.key)

    def known(self, queries: Sequence[SearchQuery]) -> dict[str, Ranking]:
        """Return the cached rankings: text of a query -> ranking."""
        keys = {self._key_of(query): query.text for query in queries}
        return {keys[key]: _decoded(value) for key, value in self._results.get(list(keys)).items()}

    def rank(
        self, queries: Sequence[SearchQuery], passages: Passages, *, known: Container[str] = ()
    ) -> dict[str, Ranking]:
        """Rank the passages for the queries of one batch, except the known ones, and cache the rankings."""
        languages = [query.language for query in queries]
        together = search_queries(queries, languages, embedder=self.chunked.embedder)
        found = {q.text: Ranking.of(self.retriever.scores(q, passages)) for q in together if q.text not in known}
        keys = {query.text: self._key_of(query) for query in queries}
        self._results.put("retrieve", {keys[text]: _encoded(ranking) for text, ranking in found.items()})
        return found

    def _key_of(self, query: SearchQuery) -> str:
        return hash_values(self.key, query.language, query.text)

    def latency(self, queries: Sequence[SearchQuery], passages: Passages) -> float:
        """Return the median milliseconds of a single query, including its embedding; measured once and cached.

        Embedding time is measured once per embedder, and added if the retriever asks for the vector of the query.
        """
        known = self.known_latency()
        if known is None:
            first, *others = queries[: _TIMED_QUERIES + 1]
            # The first query warms up (loads models and caches) and is not counted.
            embeds = _timed_search(self.retriever, first, passages, self.chunked.embedder)[1]
            took = [_timed_search(self.retriever, q, passages, self.chunked.embedder)[0] for q in others or [first]]
            known = statistics.median(took) + (self._embedding_latency([first, *others]) if embeds else 0.0)
            self._results.put("latency", {hash_values("latency", self.key): known})
        return known

    def _embedding_latency(self, queries: Sequence[SearchQuery]) -> float:
        embedder = self.chunked.embedder.inner
        key = hash_values("latency", identity(embedder))
        known = self._results.get([key])
        if key not in known:
            took = []
            for query in queries:
                began = time.perf_counter()
                embedder.embed([query.text], kind="query")
                took.append(1_000 * (time.perf_counter() - began))
            known = {key: statistics.median(took[1:] or took)}  # without the first query, which warms up
            self._results.put("latency", known)
        return float(known[key])

    def known_latency(self) -> float | None:
        """Return the cached latency in milliseconds, or None."""
        key = hash_values("latency", self.key)
        return self._results.get([key]).get(key)


def query_batches(queries: Sequence[SearchQuery]) -> Iterator[Sequence[SearchQuery]]:
    """Split the distinct queries into batches."""
    distinct = list(dict.fromkeys(queries))
    for start in range(0, len(distinct), BATCH_QUERIES):
        yield distinct[start : start + BATCH_QUERIES]


class _TimedEmbedder:
    """An embedder that records the duration of each call, in seconds."""

    def __init__(self, embedder: CachedEmbedder) -> None:
        self.inner = embedder.inner
        self.seconds: list[float] = []
        self._cached = embedder  # the time is subtracted, so a vector from the cache will do

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        began = time.perf_counter()
        vectors = self._cached.embed(texts, kind=kind)
        self.seconds.append(time.perf_counter() - began)
        return vectors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _timed_search(
    retriever: Retriever, query: SearchQuery, passages: Passages, embedder: CachedEmbedder
) -> tuple[float, bool]:
    """Return the milliseconds of a search without the embedding, and whether it embedded the query."""
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
        raise OperationCancelled("The experiment was stopped. Run it again to resume.")
