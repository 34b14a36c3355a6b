"""The indexing pipeline: changed files are read, split into chunks, embedded and written concurrently.

::

    readers (threads, each with a child process)      the caller's thread        writer (thread)
      file > documents > chunks > Item  --queue-->  window > vectors  --queue-->  the four steps of
      `ragkit.indexing.records`

Embedding is the bottleneck, so it never waits for the other stages while there is work. A *window* contains as many
chunks as can be embedded in about a minute. Its texts are embedded in order of length, because a batch takes as long
as its longest text; then the window is written and committed as one. The queues are bounded, so memory use is that of
a few windows however large the folder is.

If the run is stopped, the index contains the committed windows, and the embedding cache everything embedded so far.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pickle
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from typing import Generic, TypeVar

import numpy as np

from ragkit.chunking.base import Chunk, Chunker
from ragkit.chunking.context import embedded_texts
from ragkit.chunking.failures import document_errors
from ragkit.documents.document import Document, SourceFile
from ragkit.documents.sandbox import Reader
from ragkit.embedding.base import Embedder, Vectors, embedding_errors
from ragkit.embedding.cache import CachedEmbedder
from ragkit.errors import DocumentError, EmbeddingError, InputError, OperationCancelled
from ragkit.indexing.record_types import DocumentRecord, StoredChunk
from ragkit.indexing.records import Records, Replacement, SourceRecord
from ragkit.indexing.report import Meter
from ragkit.indexing.vector_store import VectorStore

_FIRST_WINDOW = 64  # chunks: small, so embedding starts when the first few files are read
_MAX_WINDOW = 1_024
_WINDOW_SECONDS = 60.0
_SLICE_SECONDS = 0.7  # between two checks for cancellation
_MAX_SLICE = 1_024
_WRITE_CHUNKS = 512  # per write: concurrent questions wait for at most one write
_IN_FLIGHT = 32  # slices submitted to an executor at a time
_POLL_SECONDS = 0.1
_PLAIN = "A plain sentence."  # embedded to test whether an embedder that failed works at all


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """The location of a run's files in the index: their root, its id prefix, and the folder within the root."""

    root_id: int
    prefix: str
    scope: str


@dataclasses.dataclass(slots=True)
class _Item:
    """A document on its way into the index."""

    document: Document
    document_id: str
    source_id: str
    hash: str
    chunks: list[Chunk]
    texts: list[str]
    tokens: list[int]
    is_new: bool
    size_bytes: float = 0.0  # this document's share of the file
    finishes: SourceRecord | None = None  # set on the last document of a source, with `gone`
    gone: list[str] = dataclasses.field(default_factory=list)  # documents that the source no longer contains
    is_embedded: bool = True  # if False, only `finishes` and `gone` are written

    @property
    def record(self) -> DocumentRecord:
        d = self.document
        return DocumentRecord(self.document_id, d.source, d.title, d.language, d.text)


@dataclasses.dataclass(slots=True)
class _Outcome:
    """The outcome of reading one file."""

    source: SourceFile
    failures: list[DocumentError]
    size_bytes: float = 0.0  # bytes not counted for one of its documents
    unchanged: int = 0
    documents: int = 0
    finished: SourceRecord | None = None  # if none of its documents has changed
    gone: list[str] = dataclasses.field(default_factory=list)


class _Ended:
    """Signals that a reader is finished."""


class Pipeline:
    """One run over the changed files.

    Args:
        changed: The files to read, in this order.
        expected: Source id -> estimated number of documents, for files with more than one.
        place: The location of the files in the index.
        records, vector_store, embedder, chunker: The index's own.
        meter: Receives progress.
        raise_if_cancelled: Raises if the run was cancelled; called several times a second.
        prepare: Called with the dimension before the first vectors are written.
        readers: Number of files to read concurrently.
        executor: Embeds in place of this thread, if given.

    Attributes:
        added, updated, deleted, unchanged: Numbers of documents.
        embedded: Number of texts sent to the embedder.
        finished, gone: Files in which no document has changed, and documents that they no longer contain. The caller
            must record both.
    """

    def __init__(
        self,
        changed: Sequence[SourceFile],
        *,
        expected: Mapping[str, int],
        place: Place,
        records: Records,
        vector_store: VectorStore,
        embedder: CachedEmbedder,
        chunker: Chunker,
        meter: Meter,
        raise_if_cancelled: Callable[[], None],
        prepare: Callable[[int], None],
        readers: int,
        executor: Executor | None = None,
    ) -> None:
        self._place, self._expected, self._records, self._store = place, expected, records, vector_store
        self._embedder, self._chunker, self._meter = embedder, chunker, meter
        self._raise_if_cancelled, self._prepare, self._executor = raise_if_cancelled, prepare, executor
        self._todo = iter(changed)
        self._todo_lock = threading.Lock()
        self._readers = [Reader() for _ in range(max(1, min(readers, len(changed))))]
        self._items: BoundedQueue[_Item | _Outcome | _Ended | BaseException] = BoundedQueue(_MAX_WINDOW)
        self._embedded_windows: BoundedQueue[tuple[list[_Item], Vectors] | None] = BoundedQueue(1)
        self._writer_error: BaseException | None = None
        self._committed = 0  # documents committed by the writer
        self._reported = 0  # how many of these were reported
        self._bytes = sum(source.size_bytes for source in changed)
        self._bytes_read, self._chunks_read, self._chunks_done = 0.0, 0, 0
        self._is_read = False
        self._window, self._slice = _FIRST_WINDOW, 16
        self._incomplete: set[str] = set()  # sources with a document that could not be embedded
        self.added = self.updated = self.deleted = self.unchanged = self.embedded = 0
        self.gone: list[str] = []
        self.finished: list[SourceRecord] = []

    def run(self) -> None:
        """Run the pipeline. What was committed stays, whatever is raised."""
        threads = [
            threading.Thread(target=self._read_all, args=(reader,), name="ragkit-index", daemon=True)
            for reader in self._readers
        ]
        writer = threading.Thread(target=self._write_all, name="ragkit-index", daemon=True)
        for thread in (*threads, writer):
            thread.start()
        try:
            for window in self._windows(len(threads)):
                self._embedded_windows.put((window, self._embed(window)), 1)
            self._embedded_windows.put(None)
            while writer.is_alive():
                writer.join(_POLL_SECONDS)
                self._poll()
            self._poll()
        except OperationCancelled:
            # The writer closes its queue when it fails, which is seen here as a cancellation.
            if self._writer_error is not None:
                raise self._writer_error from None
            raise
        finally:
            self._items.close()
            for reader in self._readers:
                reader.close()
            self._embedded_windows.close()
            for thread in (*threads, writer):
                thread.join()

    def _poll(self) -> None:
        """Check for cancellation and for an error of the writer, and report what the writer has committed."""
        self._raise_if_cancelled()
        if self._writer_error is not None:
            raise self._writer_error
        if (done := self._committed - self._reported) > 0:
            self._reported += done
            self._meter.documents(done=done)

    # ------------------------------------------------------------------------------- reading

    def _read_all(self, reader: Reader) -> None:
        try:
            while True:
                with self._todo_lock:
                    source = next(self._todo, None)
                if source is None:
                    break
                self._read_one(reader, source)
            self._items.put(_Ended())
        except BaseException as error:
            with contextlib.suppress(OperationCancelled):  # the queue is closed: the run has ended
                self._items.put(error)

    def _read_one(self, reader: Reader, source: SourceFile) -> None:
        """Read a file, and queue the documents that differ from the records."""
        source_id = self._place.scope + source.id
        before = self._records.documents_of(self._place.root_id, source_id)
        outcome = _Outcome(source, [], source.size_bytes)
        seen: set[str] = set()
        share, size = source.size_bytes / self._expected.get(source.id, 1), 0.0
        pending: _Item | None = None  # held back until it is known whether it is the file's last document
        unsplit = 0  # documents that could not be split into chunks
        try:
            file_hash = source.hash()  # before reading: a file that changes meanwhile is read again next time
            for thing in reader.read(source):
                size = min(size + share, outcome.size_bytes)
                if isinstance(thing, DocumentError):
                    outcome.failures.append(thing)
                    continue
                document_id = self._place.prefix + self._place.scope + thing.id
                if document_id in seen:
                    problem = DocumentError(thing.source, f"a second document with the id '{thing.id}'")
                    outcome.failures.append(problem)
                    continue
                seen.add(document_id)
                digest = thing.digest()
                if before.get(document_id) == digest:
                    outcome.unchanged += 1
                    continue
                if pending is not None:
                    pending.size_bytes, size = size, 0.0
                    outcome.size_bytes -= pending.size_bytes
                    self._items.put(pending, len(pending.chunks))
                    pending = None
                is_new = document_id not in before
                try:
                    pending = self._split(thing, document_id, source_id, digest, is_new=is_new)
                except DocumentError as error:  # this document fails, and is retried next time
                    outcome.failures.append(error)
                    unsplit += 1
            gone = [document_id for document_id in before if document_id not in seen]
            record = SourceRecord(source_id, file_hash, tuple((e.source, e.reason) for e in outcome.failures))
            if pending is not None:
                pending.finishes, pending.gone = None if unsplit else record, gone
            elif gone or not unsplit:
                outcome.finished, outcome.gone = SourceRecord(source_id, "") if unsplit else record, gone
        except DocumentError as error:  # its indexed documents stay, and the file is retried next time
            outcome.failures.append(error)
        outcome.documents = len(seen) - unsplit
        if pending is not None:
            self._items.put(pending, len(pending.chunks))
        self._items.put(outcome)

    def _split(self, document: Document, document_id: str, source_id: str, digest: str, *, is_new: bool) -> _Item:
        with document_errors(document, self._chunker, self._embedder):
            chunks = list(self._chunker.chunk(document, embedder=self._embedder))
            texts, tokens = embedded_texts(document.title, chunks, self._embedder)
        return _Item(document, document_id, source_id, digest, chunks, texts, tokens, is_new)

    # ------------------------------------------------------------------------------- embedding

    def _windows(self, reading: int) -> Iterator[list[_Item]]:
        """Collect queued documents into windows. The first windows are small, so that first results come soon."""
        window: list[_Item] = []
        size = 0
        while reading:
            thing = self._items.get(_POLL_SECONDS)
            self._poll()
            match thing:
                case BaseException():
                    raise thing
                case _Ended():
                    reading -= 1
                case _Outcome():
                    self._record_outcome(thing)
                case _Item():
                    window.append(thing)
                    size += len(thing.chunks)
                    self._chunks_read += len(thing.chunks)
                    self._bytes_read += thing.size_bytes
            if size >= self._window:
                yield window
                window, size = [], 0
        self._is_read = True
        if window:
            yield window

    def _record_outcome(self, outcome: _Outcome) -> None:
        self._bytes_read += outcome.size_bytes
        self._meter.failed.extend(outcome.failures)
        self.unchanged += outcome.unchanged
        self.gone += outcome.gone
        if outcome.finished is not None:
            self.finished.append(outcome.finished)
        found, expected = outcome.documents + len(outcome.failures), self._expected.get(outcome.source.id, 1)
        self._meter.documents(done=outcome.unchanged + len(outcome.failures), total=found - expected)

    def _embed(self, window: list[_Item]) -> Vectors:
        """Return the vectors of a window's chunks, in order, shape (chunks, dimension)."""
        texts = [text for item in window for text in item.texts]
        vectors: dict[str, Vectors] = {}
        known = self._embedder.known(texts)
        occurrences: dict[str, int] = {}  # text to embed -> how often it occurs in the window
        for at, text in enumerate(texts):
            if at in known:
                vectors[text] = known[at]
            else:
                occurrences[text] = occurrences.get(text, 0) + 1
        self._report(len(known), window[0])
        tokens = {text: n for item in window for text, n in zip(item.texts, item.tokens, strict=True)}
        # Longest first: if memory runs out, it does so early, and the estimate of the remaining time is not too low.
        missing = sorted(occurrences, key=lambda text: -tokens[text])
        began = time.monotonic()
        refused: dict[str, EmbeddingError] = {}
        for part, found in self._slices(missing, refused):
            self._embedder.keep(part, found)
            vectors |= dict(zip(part, found, strict=True))
            self._report(sum(occurrences[text] for text in part), window[-1])
        if missing:
            per_second = len(missing) / max(time.monotonic() - began, 1e-6)
            self._window = round(min(_MAX_WINDOW, 2 * self._window, max(_FIRST_WINDOW, per_second * _WINDOW_SECONDS)))
        self.embedded += len(missing) - len(refused)
        for item in window:
            self._fail_refused(item, refused, vectors)
        if refused:
            self._report(0, window[-1])
        rows = [vectors[text] for item in window if item.is_embedded for text in item.texts]
        return np.stack(rows) if rows else np.zeros((0, self._embedder.dimension), dtype=np.float32)

    def _fail_refused(self, item: _Item, refused: Mapping[str, EmbeddingError], vectors: Mapping[str, Vectors]) -> None:
        """Mark a document as failed if one of its texts could not be embedded."""
        error = next((refused[text] for text in item.texts if text in refused), None)
        if error is not None:
            item.is_embedded = False
            self._incomplete.add(item.source_id)
            self._meter.failed.append(DocumentError(item.document.source, f"cannot be embedded: {error}"))
            self._chunks_read -= len(item.texts)
            self._chunks_done -= sum(text in vectors for text in item.texts)
        if item.source_id in self._incomplete:
            item.finishes = None

    def _slices(self, texts: list[str], refused: dict[str, EmbeddingError]) -> Iterator[tuple[list[str], Vectors]]:
        """Embed texts in slices of about `_SLICE_SECONDS`. Texts that cannot be embedded are added to ``refused``."""
        if self._executor is not None:
            yield from self._slices_elsewhere(texts, self._executor, refused)
            return

        seconds = 0.0

        def embed(part: list[str]) -> Vectors:
            nonlocal seconds
            began = time.monotonic()
            with embedding_errors(self._embedder.inner):
                vectors = self._embedder.inner.embed(part)
            seconds += time.monotonic() - began
            return vectors

        start = 0
        while start < len(texts):
            part = texts[start : start + self._slice]
            start += len(part)
            seconds = 0.0
            yield from self._bisected(part, functools.partial(embed, part), embed, refused)
            if seconds < _SLICE_SECONDS / 2 and len(part) == self._slice:
                self._slice = min(_MAX_SLICE, 2 * self._slice)
            elif seconds > 2 * _SLICE_SECONDS:
                self._slice = max(8, self._slice // 2)

    def _bisected(
        self,
        texts: list[str],
        first: Callable[[], Vectors],
        embed: Callable[[list[str]], Vectors],
        refused: dict[str, EmbeddingError],
    ) -> Iterator[tuple[list[str], Vectors]]:
        """Embed texts. If that fails but the embedder works otherwise, bisect to find the texts that it rejects."""
        try:
            vectors = first()
        except EmbeddingError as error:
            self._poll()
            try:
                embed([_PLAIN])
            except EmbeddingError:
                raise error from error.__cause__
            if len(texts) == 1:
                refused[texts[0]] = error
                return
        else:
            yield texts, vectors
            return
        for half in (texts[: len(texts) // 2], texts[len(texts) // 2 :]):
            yield from self._bisected(half, functools.partial(embed, half), embed, refused)

    def _slices_elsewhere(
        self, texts: list[str], executor: Executor, refused: dict[str, EmbeddingError]
    ) -> Iterator[tuple[list[str], Vectors]]:
        def embed(part: list[str]) -> Vectors:
            future = executor.submit(embed_there, embedder, part)
            while not wait([future], timeout=_POLL_SECONDS).done:
                self._poll()
            return future.result()

        embedder = portable(self._embedder.inner)
        size = 64
        parts = deque(texts[start : start + size] for start in range(0, len(texts), size))
        running: dict[Future[Vectors], list[str]] = {}
        try:
            while parts or running:
                while parts and len(running) < _IN_FLIGHT:
                    part = parts.popleft()
                    running[executor.submit(embed_there, embedder, part)] = part
                for future in wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                    yield from self._bisected(running.pop(future), future.result, embed, refused)
                self._poll()
        finally:
            for future in running:
                future.cancel()

    def _report(self, more: int, item: _Item) -> None:
        self._poll()
        self._chunks_done += more
        total = self._chunks_read
        if not self._is_read and self._bytes_read:
            total = max(total, round(self._chunks_read * self._bytes / self._bytes_read))
        self._meter.chunks(self._chunks_done, total, current_document=item.document_id)

    # --------------------------------------------------------------------------------- writing

    def _write_all(self) -> None:
        try:
            while (window := self._embedded_windows.get()) is not None:
                self._write(*window)
        except BaseException as error:
            # A closed queue means that the run has ended. An `OperationCancelled` of the store itself is an error.
            if not (isinstance(error, OperationCancelled) and self._embedded_windows.is_closed):
                self._writer_error = error
                self._embedded_windows.close()

    def _write(self, window: list[_Item], vectors: Vectors) -> None:
        """Write a window: the four steps of `ragkit.indexing.records`."""
        self._prepare(vectors.shape[1])
        written = [item for item in window if item.is_embedded]
        stored = [[StoredChunk(uuid.uuid4().hex, chunk) for chunk in item.chunks] for item in written]
        ids = [each.vector_id for chunks in stored for each in chunks]
        begun = dict.fromkeys(item.source_id for item in window if item.is_embedded or item.gone)
        self._records.reserve(ids)
        for start in range(0, len(ids), _WRITE_CHUNKS):
            self._embedded_windows.check()
            self._store.add(ids[start : start + _WRITE_CHUNKS], vectors[start : start + _WRITE_CHUNKS])
        self._records.commit(
            self._place.root_id,
            [
                Replacement(item.record, item.source_id, item.hash, tuple(chunks))
                for item, chunks in zip(written, stored, strict=True)
            ],
            # Until a file is finished, its old hash is cleared: the file could be reverted to that content.
            [SourceRecord(source_id, "") for source_id in begun]
            + [item.finishes for item in window if item.finishes is not None],
            [document_id for item in window for document_id in item.gone],
        )
        self._records.sweep(self._store)
        self.added += sum(item.is_new for item in written)
        self.updated += sum(not item.is_new for item in written)
        self.deleted += sum(len(item.gone) for item in window)
        self._committed += len(window)


T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """A queue between threads, bounded by total weight, that can be closed from either end."""

    def __init__(self, max_weight: int) -> None:
        self._max_weight = max_weight
        self._weight = 0
        self._things: deque[tuple[T, int]] = deque()
        self._changed = threading.Condition()
        self.is_closed = False

    def put(self, thing: T, weight: int = 0) -> None:
        """Add an item, waiting for room. An empty queue accepts an item of any weight."""
        with self._changed:
            while self._weight and self._weight + weight > self._max_weight and not self.is_closed:
                self._changed.wait()
            if self.is_closed:
                raise OperationCancelled("Indexing was stopped.")
            self._things.append((thing, weight))
            self._weight += weight
            self._changed.notify_all()

    def get(self, timeout_seconds: float | None = None) -> T | None:
        """Return the next item, or None after the time-out."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._things or self.is_closed, timeout_seconds):
                return None
            if self.is_closed:
                raise OperationCancelled("Indexing was stopped.")
            thing, weight = self._things.popleft()
            self._weight -= weight
            self._changed.notify_all()
            return thing

    def check(self) -> None:
        """Raise `OperationCancelled` if the queue is closed."""
        if self.is_closed:
            raise OperationCancelled("Indexing was stopped.")

    def close(self) -> None:
        """Close the queue: all waiting and later calls raise `OperationCancelled`."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()


def portable(embedder: Embedder) -> bytes:
    """Pickle an embedder for `embed_there`.

    Raises:
        InputError: The embedder cannot be pickled.
    """
    try:
        return pickle.dumps(embedder)
    except Exception as error:  # pickle calls the embedder's own code
        raise InputError(
            f"{embedder!r} cannot be sent to an executor: {error}. Give it a __getstate__ without its model, or leave "
            "executor out."
        ) from error


@functools.lru_cache(maxsize=4)
def _unpickled(embedder: bytes) -> Embedder:
    found: Embedder = pickle.loads(embedder)
    return found


def embed_there(embedder: bytes, texts: Sequence[str]) -> Vectors:
    """Embed passages in a worker of an executor. Each worker loads its model once."""
    model = _unpickled(embedder)
    with embedding_errors(model):
        return model.embed(texts)
