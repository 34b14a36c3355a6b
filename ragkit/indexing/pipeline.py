"""From files that have changed to passages in the index: reading, cutting, embedding and writing at the same time.

::

    readers (threads, each with a child process)      the caller's thread        writer (thread)
      file > documents > chunks > Item  --belt-->  window > vectors  --belt-->  the four steps of
      `ragkit.indexing.records`

What embeds is what everybody waits for, so it never waits for the others while there is work. A *window* is as many
chunks as about a minute embeds: its texts are embedded in the order of their lengths, for a batch takes as long as its
longest text; it is then written, and committed, as one. Belts are bounded, so memory is that of a few windows however
large the folder is.

Stopped at any moment, the index holds the windows that were committed, and the embedding cache what was embedded.
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
from ragkit.indexing.records import Records, Replacement, SourceRecord
from ragkit.indexing.report import Meter
from ragkit.indexing.stored import DocumentRecord, StoredChunk
from ragkit.indexing.vector_store import VectorStore

_FIRST_WINDOW = 64  # chunks: the model begins when the first few files are read
_MAX_WINDOW = 1_024
_WINDOW_SECONDS = 60.0
_SLICE_SECONDS = 0.7  # between two looks at whether to stop
_MAX_SLICE = 1_024
_WRITE_CHUNKS = 512  # at a time: questions that are asked meanwhile wait for one such step
_IN_FLIGHT = 32  # slices that an executor has at once
_LOOK_SECONDS = 0.1
_PLAIN = "A plain sentence."  # embedded to see whether an embedder that failed works at all


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where a run's files stand in the index: their root, its documents' prefix, and the folder within the root."""

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
    size_bytes: float = 0.0  # of the file, read to get here
    finishes: SourceRecord | None = None  # on the last document of a source, with those that it no longer holds
    gone: list[str] = dataclasses.field(default_factory=list)
    is_embedded: bool = True  # else only what else it carries is written

    @property
    def record(self) -> DocumentRecord:
        d = self.document
        return DocumentRecord(self.document_id, d.source, d.title, d.language, d.text)


@dataclasses.dataclass(slots=True)
class _Outcome:
    """What became of one file once it has been read."""

    source: SourceFile
    failures: list[DocumentError]
    size_bytes: float = 0.0  # what no document of it accounts for
    unchanged: int = 0
    documents: int = 0
    finished: SourceRecord | None = None  # if no document of it has changed
    gone: list[str] = dataclasses.field(default_factory=list)


class _Ended:
    """Says that a reader has nothing more."""


class Pipeline:
    """One run over the files that have changed.

    Args:
        changed: What to read, in this order.
        expected: By source id, how many documents a file seems to hold, if not one.
        place: Where they stand.
        records, store, embedder, chunker: The index's own.
        meter: Is told of progress.
        stop_if_asked: Raises if the run is to end; called several times a second.
        prepare: Called with the dimension before the first vectors are written.
        readers: Files that are read at the same time.
        executor: Embeds instead of this thread, if given.

    Attributes:
        added, updated, deleted, unchanged: Documents.
        embedded: Texts that the embedder was asked for.
        finished, gone: Files in which no document has changed, and the documents that they no longer hold; noting
            both is the caller's.
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
        stop_if_asked: Callable[[], None],
        prepare: Callable[[int], None],
        readers: int,
        executor: Executor | None = None,
    ) -> None:
        self._place, self._expected, self._records, self._store = place, expected, records, vector_store
        self._embedder, self._chunker, self._meter = embedder, chunker, meter
        self._stop_if_asked, self._prepare, self._executor = stop_if_asked, prepare, executor
        self._todo = iter(changed)
        self._todo_lock = threading.Lock()
        self._readers = [Reader() for _ in range(max(1, min(readers, len(changed))))]
        self._belt: BoundedQueue[_Item | _Outcome | _Ended | BaseException] = BoundedQueue(_MAX_WINDOW)
        self._written: BoundedQueue[tuple[list[_Item], Vectors] | None] = BoundedQueue(1)
        self._problem: BaseException | None = None  # the writer's
        self._committed = 0  # documents, by the writer
        self._told = 0
        self._bytes = sum(source.size_bytes for source in changed)
        self._bytes_read, self._chunks_read, self._chunks_done = 0.0, 0, 0
        self._is_read = False
        self._window, self._slice = _FIRST_WINDOW, 16
        self._incomplete: set[str] = set()  # sources with a document that could not be embedded
        self.added = self.updated = self.deleted = self.unchanged = self.embedded = 0
        self.gone: list[str] = []
        self.finished: list[SourceRecord] = []

    def run(self) -> None:
        """Do it all; what was committed stays, whatever is raised."""
        threads = [
            threading.Thread(target=self._read_all, args=(reader,), name="ragkit-index", daemon=True)
            for reader in self._readers
        ]
        writer = threading.Thread(target=self._write_all, name="ragkit-index", daemon=True)
        for thread in (*threads, writer):
            thread.start()
        try:
            for window in self._windows(len(threads)):
                self._written.put((window, self._embed(window)), 1)
            self._written.put(None)
            while writer.is_alive():
                writer.join(_LOOK_SECONDS)
                self._look()
            self._look()
        finally:
            self._belt.close()
            for reader in self._readers:
                reader.close()
            self._written.close()
            for thread in (*threads, writer):
                thread.join()

    def _look(self) -> None:
        """See whether to stop, and tell what the writer has done."""
        self._stop_if_asked()
        if self._problem is not None:
            raise self._problem
        if (done := self._committed - self._told) > 0:
            self._told += done
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
            self._belt.put(_Ended())
        except BaseException as error:
            with contextlib.suppress(OperationCancelled):  # nobody waits for it any longer
                self._belt.put(error)

    def _read_one(self, reader: Reader, source: SourceFile) -> None:
        """Read a file, and put on the belt those of its documents that differ from what is recorded."""
        source_id = self._place.scope + source.id
        before = self._records.documents_of(self._place.root_id, source_id)
        outcome = _Outcome(source, [], source.size_bytes)
        seen: set[str] = set()
        share, size = source.size_bytes / self._expected.get(source.id, 1), 0.0
        waiting: _Item | None = None  # the last one goes when it is known to be the last
        uncut = 0
        try:
            digest = source.hash()  # before it is read: what changes meanwhile is read again next time
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
                content = thing.digest()
                if before.get(document_id) == content:
                    outcome.unchanged += 1
                    continue
                if waiting is not None:
                    waiting.size_bytes, size = size, 0.0
                    outcome.size_bytes -= waiting.size_bytes
                    self._belt.put(waiting, len(waiting.chunks))
                    waiting = None
                is_new = document_id not in before
                try:
                    waiting = self._cut(thing, document_id, source_id, content, is_new=is_new)
                except DocumentError as error:  # as below, for this document alone
                    outcome.failures.append(error)
                    uncut += 1
            gone = [document_id for document_id in before if document_id not in seen]
            record = SourceRecord(source_id, digest, tuple((e.source, e.reason) for e in outcome.failures))
            if waiting is not None:
                waiting.finishes, waiting.gone = None if uncut else record, gone
            elif gone or not uncut:
                outcome.finished, outcome.gone = SourceRecord(source_id, "") if uncut else record, gone
        except DocumentError as error:  # what is indexed of it stays, and it is tried again next time
            outcome.failures.append(error)
        outcome.documents = len(seen) - uncut
        if waiting is not None:
            self._belt.put(waiting, len(waiting.chunks))
        self._belt.put(outcome)

    def _cut(self, document: Document, document_id: str, source_id: str, digest: str, *, is_new: bool) -> _Item:
        with document_errors(document, self._chunker, self._embedder):
            chunks = list(self._chunker.chunk(document, embedder=self._embedder))
            texts, tokens = embedded_texts(document.title, chunks, self._embedder)
        return _Item(document, document_id, source_id, digest, chunks, texts, tokens, is_new)

    # ------------------------------------------------------------------------------- embedding

    def _windows(self, reading: int) -> Iterator[list[_Item]]:
        """Gather what comes into windows; the first are small, so that nobody waits long for a first result."""
        window: list[_Item] = []
        size = 0
        while reading:
            thing = self._belt.get(_LOOK_SECONDS)
            self._look()
            match thing:
                case BaseException():
                    raise thing
                case _Ended():
                    reading -= 1
                case _Outcome():
                    self._note(thing)
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

    def _note(self, outcome: _Outcome) -> None:
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
        places: dict[str, int] = {}  # of the texts to embed, each once, with how often it stands here
        for at, text in enumerate(texts):
            if at in known:
                vectors[text] = known[at]
            else:
                places[text] = places.get(text, 0) + 1
        self._tell(len(known), window[0])
        tokens = {text: n for item in window for text, n in zip(item.texts, item.tokens, strict=True)}
        # Longest first: if memory runs out, it does at once; and the time left is not said too short.
        missing = sorted(places, key=lambda text: -tokens[text])
        began = time.monotonic()
        refused: dict[str, EmbeddingError] = {}
        for part, found in self._slices(missing, refused):
            self._embedder.keep(part, found)
            vectors |= dict(zip(part, found, strict=True))
            self._tell(sum(places[text] for text in part), window[-1])
        if missing:
            per_second = len(missing) / max(time.monotonic() - began, 1e-6)
            self._window = round(min(_MAX_WINDOW, 2 * self._window, max(_FIRST_WINDOW, per_second * _WINDOW_SECONDS)))
        self.embedded += len(missing) - len(refused)
        for item in window:
            self._leave_out(item, refused, vectors)
        if refused:
            self._tell(0, window[-1])
        rows = [vectors[text] for item in window if item.is_embedded for text in item.texts]
        return np.stack(rows) if rows else np.zeros((0, self._embedder.dimension), dtype=np.float32)

    def _leave_out(self, item: _Item, refused: Mapping[str, EmbeddingError], vectors: Mapping[str, Vectors]) -> None:
        """Let a document fail that has a text which cannot be embedded, as one that cannot be cut does."""
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
        """Embed texts, as many at a time as take a moment; those that cannot be embedded become ``refused``."""
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
        """Embed texts; if that fails and the embedder works otherwise, find those which it cannot embed."""
        try:
            vectors = first()
        except EmbeddingError as error:
            self._look()
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
            while not wait([future], timeout=_LOOK_SECONDS).done:
                self._look()
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
                for future in wait(running, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED).done:
                    yield from self._bisected(running.pop(future), future.result, embed, refused)
                self._look()
        finally:
            for future in running:
                future.cancel()

    def _tell(self, more: int, item: _Item) -> None:
        self._look()
        self._chunks_done += more
        total = self._chunks_read
        if not self._is_read and self._bytes_read:
            total = max(total, round(self._chunks_read * self._bytes / self._bytes_read))
        self._meter.chunks(self._chunks_done, total, current_document=item.document_id)

    # --------------------------------------------------------------------------------- writing

    def _write_all(self) -> None:
        try:
            while (window := self._written.get()) is not None:
                self._write(*window)
        except OperationCancelled:
            pass  # it was told to go
        except BaseException as error:
            self._problem = error
            self._written.close()

    def _write(self, window: list[_Item], vectors: Vectors) -> None:
        """Write, commit, delete the old: the four steps of `ragkit.indexing.records`."""
        self._prepare(vectors.shape[1])
        written = [item for item in window if item.is_embedded]
        stored = [[StoredChunk(uuid.uuid4().hex, chunk) for chunk in item.chunks] for item in written]
        ids = [each.vector_id for chunks in stored for each in chunks]
        begun = dict.fromkeys(item.source_id for item in window if item.is_embedded or item.gone)
        self._records.reserve(ids)
        for start in range(0, len(ids), _WRITE_CHUNKS):
            self._written.check()
            self._store.add(ids[start : start + _WRITE_CHUNKS], vectors[start : start + _WRITE_CHUNKS])
        self._records.commit(
            self._place.root_id,
            [
                Replacement(item.record, item.source_id, item.hash, tuple(chunks))
                for item, chunks in zip(written, stored, strict=True)
            ],
            # Until it is finished, a file is not known by its former hash: it could come back to it.
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
    """A queue between threads, bounded by weight, that can be torn down from either end."""

    def __init__(self, max_weight: int) -> None:
        self._max_weight = max_weight
        self._weight = 0
        self._things: deque[tuple[T, int]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False

    def put(self, thing: T, weight: int = 0) -> None:
        """Wait until there is room; one thing always has."""
        with self._changed:
            while self._weight and self._weight + weight > self._max_weight and not self._is_closed:
                self._changed.wait()
            if self._is_closed:
                raise OperationCancelled("Indexing was stopped.")
            self._things.append((thing, weight))
            self._weight += weight
            self._changed.notify_all()

    def get(self, timeout_seconds: float | None = None) -> T | None:
        """Return the next thing, or None if none has come in time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._things or self._is_closed, timeout_seconds):
                return None
            if self._is_closed:
                raise OperationCancelled("Indexing was stopped.")
            thing, weight = self._things.popleft()
            self._weight -= weight
            self._changed.notify_all()
            return thing

    def check(self) -> None:
        """Raise if it is closed."""
        if self._is_closed:
            raise OperationCancelled("Indexing was stopped.")

    def close(self) -> None:
        """Let everybody who waits go."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def portable(embedder: Embedder) -> bytes:
    """Pickle an embedder for `embed_there`.

    Raises:
        InputError: It cannot be sent to another process.
    """
    try:
        return pickle.dumps(embedder)
    except Exception as error:  # pickle calls code of the embedder's own
        raise InputError(
            f"{embedder!r} cannot be sent to an executor: {error}. Give it a __getstate__ without its model, or leave "
            "executor out."
        ) from error


@functools.lru_cache(maxsize=4)
def _unpickled(embedder: bytes) -> Embedder:
    found: Embedder = pickle.loads(embedder)
    return found


def embed_there(embedder: bytes, texts: Sequence[str]) -> Vectors:
    """Embed passages in a worker of an executor; a worker loads its model once."""
    model = _unpickled(embedder)
    with embedding_errors(model):
        return model.embed(texts)
