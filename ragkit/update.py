"""One run of indexing: what differs between a folder and the records is done, and told as it goes.

`ragkit.records` tells how a document is replaced so that an interruption at any moment does no harm.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import os
import stat
import time
import uuid
from collections import deque
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from ragkit.chunking import Chunk, Chunker
from ragkit.documents import Document, printable_path
from ragkit.embedding import Embedder
from ragkit.errors import CancelledError, DocumentError, IndexMismatchError
from ragkit.loaders import Found, load
from ragkit.records import FORMAT, DocumentRecord, Records, Replacement, SourceRecord, StoredChunk
from ragkit.store import VectorStore
from ragkit.terminal import one_line, printable

__all__ = ["IndexReport", "Progress", "Update", "passage_text"]

_GROUP_CHUNKS = 128  # a commit's size: small enough that Ctrl-C costs seconds, large enough that commits do not show
_SLICE_CHUNKS = 32  # how often progress is told and a wish to stop is heard
_RATE_WINDOW_SECONDS = 10.0
_FAILURES_SHOWN = 10


def passage_text(title: str, chunk: Chunk) -> str:
    """What is embedded and searched for a chunk: where it stands (title and headings), then its text.

    A passage "It defaults to 0.75." is found by its heading; the headings are not part of the text that
    is quoted.
    """
    context = " > ".join(dict.fromkeys(part for part in (title, *chunk.headings) if part and part not in chunk.text))
    return f"{context[:200]}\n{chunk.text}" if context else chunk.text


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far an indexing task is.

    Attributes:
        state: ``"running"``, then one of ``"done"``, ``"failed"``, ``"cancelled"``.
        documents_done: Documents that are in the index or known to fail, unchanged ones included.
        documents_total: None until it is known.
        chunks_done: Chunks embedded in this run.
        chunks_total: Chunks to embed in this run; None until it is known.
        current_document: What is being worked on.
        rate: Chunks a second over the last ten seconds.
        eta_seconds: Seconds left at that rate.
        failures: What could not be read so far.
        message: Why the task ended early.
    """

    state: str = "running"
    documents_done: int = 0
    documents_total: int | None = None
    chunks_done: int = 0
    chunks_total: int | None = None
    current_document: str | None = None
    rate: float | None = None
    eta_seconds: float | None = None
    failures: tuple[DocumentError, ...] = ()
    message: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class IndexReport:
    """What an update did, counted in documents; ``failed`` says which files could not be read and why."""

    added: int
    updated: int
    skipped: int
    deleted: int
    failed: tuple[DocumentError, ...]
    chunks: int
    seconds: float

    def __str__(self) -> str:
        counts = f"{self.added} added, {self.updated} updated, {self.skipped} unchanged, {self.deleted} deleted"
        lines = [f"{counts}, {len(self.failed)} failed; {self.chunks} passages embedded in {self.seconds:.1f} s"]
        lines += [f"  not read: {one_line(str(error))}" for error in self.failed[:_FAILURES_SHOWN]]
        if len(self.failed) > _FAILURES_SHOWN:
            lines.append(f"  ... and {len(self.failed) - _FAILURES_SHOWN} more, in report.failed")
        return printable("\n".join(lines))

    def _repr_html_(self) -> str:
        head, *rest = str(self).split("\n")
        items = "".join(f"<li>{html.escape(line.strip())}</li>" for line in rest)
        return f"<p>{html.escape(head)}</p>" + (f"<ul>{items}</ul>" if items else "")


@dataclasses.dataclass(slots=True)
class _Pending:
    """A document on its way into the index."""

    document: Document
    document_id: str
    source_id: str
    hash: str
    chunks: list[Chunk]
    finishes: SourceRecord | None = None  # set on the last document of a source


class Update:
    """One run of `Index.update`, under the index's lock."""

    def __init__(
        self,
        found: Found,
        *,
        path: Path,
        records: Records,
        store: VectorStore,
        embedder: Embedder,
        chunker: Chunker,
        on_progress: Callable[[Progress], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self.path, self.records, self.store = path, records, store
        self.embedder, self.chunker = embedder, chunker
        self.root, self.sources, self.alone = found.root, found.sources, found.alone
        self.failed = list(found.failures)
        self.passed_over = frozenset(failure.source for failure in found.failures)
        self.on_progress, self.cancelled = on_progress, cancelled
        self.progress = Progress(
            documents_total=len(found.sources) + len(found.failures), documents_done=len(found.failures)
        )
        self.started = self.told = time.monotonic()
        self.pace: deque[tuple[float, int]] = deque()
        self.added = self.updated = self.skipped = self.deleted = 0

    def run(self) -> IndexReport:
        try:
            self._tell(force=True)
            self._sweep()
            root_id, prefix, scope, absorbed = self._place()
            pending, gone, finished = self._compare(root_id, prefix, scope)
            self._write(root_id, pending)
            self._delete(root_id, gone, finished, absorbed)
        except BaseException as error:  # told to those who watch, then raised on: Ctrl-C and kernel restarts too
            stopped = isinstance(error, CancelledError | KeyboardInterrupt)
            message = "Stopped; what was done is kept." if stopped else str(error)
            self._tell(force=True, state="cancelled" if stopped else "failed", message=message, current_document=None)
            raise
        self._tell(force=True, state="done", current_document=None, eta_seconds=0.0)
        return IndexReport(
            added=self.added,
            updated=self.updated,
            skipped=self.skipped,
            deleted=self.deleted,
            failed=tuple(self.failed),
            chunks=self.progress.chunks_done,
            seconds=time.monotonic() - self.started,
        )

    def _tell(self, *, force: bool = False, **changes: object) -> None:
        now = time.monotonic()
        if "chunks_done" in changes:
            self.pace.append((now, self.progress.chunks_done))
            while len(self.pace) > 2 and now - self.pace[0][0] > _RATE_WINDOW_SECONDS:
                self.pace.popleft()
        self.progress = dataclasses.replace(self.progress, failures=tuple(self.failed), **changes)  # type: ignore[arg-type]
        if not force and now - self.told < 0.1:
            return
        self.told = now
        self.on_progress(self.progress)

    def _sweep(self) -> None:
        """Delete the vectors that an interrupted run left."""
        if garbage := self.records.garbage():
            self.store.delete(garbage)
            self.records.swept(garbage)

    def _place(self) -> tuple[int, str, str, list[int]]:
        """Find the root that this path belongs to: (root id, id prefix, scope inside it, roots that it swallows)."""
        roots = self.records.roots()
        around = [root for root in roots if self.root.is_relative_to(root[1])]
        inside = [root for root in roots if root not in around and root[1].is_relative_to(self.root)]
        absorbed = [root_id for root_id, path, _ in inside if self._covers(path)]
        if not around:
            root_id, prefix = self.records.add_root(self.root)
            return root_id, prefix, "", absorbed
        root_id, path, prefix = max(around, key=lambda root: len(root[1].parts))
        scope = self.root.relative_to(path).as_posix()
        return root_id, prefix, "" if scope == "." else f"{scope}/", absorbed

    def _covers(self, folder: Path) -> bool:
        """Whether this run speaks for a folder inside its own: one file does not, nor a walk that skips hidden ones."""
        return not self.alone and (not folder.exists() or any(s.path.is_relative_to(folder) for s in self.sources))

    def _was_passed_over(self, source_id: str) -> bool:
        """Whether a file, or a folder above it, is there and could not be read."""
        path = PurePosixPath(source_id)
        return any(printable_path(self.root / part) in self.passed_over for part in (path, *path.parents))

    def _compare(
        self, root_id: int, prefix: str, scope: str
    ) -> tuple[list[_Pending], list[str], tuple[list[SourceRecord], list[str]]]:
        """Load what changed. Returns what to write, what to delete, and which sources are finished or gone."""
        known_sources, known_documents = self.records.sources(root_id), self.records.documents_of(root_id)
        pending: list[_Pending] = []
        gone: list[str] = []
        finished: list[SourceRecord] = []
        total = self.progress.documents_total or 0
        seen: set[str] = set()
        for source in self.sources:
            self._stop_if_asked()
            self._tell(current_document=source.id)
            source_id = scope + source.id
            seen.add(source_id)
            before = known_documents.get(source_id, {})
            try:
                digest = _hash_file(source.path)
                known = known_sources.get(source_id)
                if known is not None and known.hash == digest:
                    self.failed.extend(DocumentError(s, r) for s, r in known.failures)
                    self.skipped += len(before)
                    total += len(before) + len(known.failures) - 1
                    done = self.progress.documents_done + len(before) + len(known.failures)
                    self._tell(documents_done=done, documents_total=total)
                    continue
                loaded = load(source)
                documents, failures = loaded.documents, list(loaded.failures)
            except DocumentError as error:
                self.failed.append(error)
                total += len(before)
                self._tell(documents_done=self.progress.documents_done + 1 + len(before), documents_total=total)
                continue  # what is indexed of it stays, and it is tried again next time
            new: dict[str, _Pending] = {}
            for document in documents:
                document_id = prefix + scope + document.id
                if document_id in new:
                    failures.append(DocumentError(document.source, f"a second document with the id '{document.id}'"))
                    continue
                chunks = self.chunker.chunk(document, count_tokens=self.embedder.count_tokens)
                new[document_id] = _Pending(document, document_id, source_id, _hash_document(document), chunks)
            self.failed.extend(failures)
            changed = [p for p in new.values() if before.get(p.document_id) != p.hash]
            gone.extend(document_id for document_id in before if document_id not in new)
            self.skipped += len(new) - len(changed)
            total += len(new) + len(failures) - 1
            record = SourceRecord(source_id, digest, tuple((e.source, e.reason) for e in failures))
            if changed:
                changed[-1].finishes = record
                pending.extend(changed)
            else:
                finished.append(record)
            done = self.progress.documents_done + len(failures) + len(new) - len(changed)
            self._tell(documents_done=done, documents_total=total)
        # One file indexed by itself says nothing about its neighbours, though its folder is the root all the same.
        missing = [
            i
            for i in known_sources
            if not self.alone
            and i.startswith(scope)
            and i not in seen
            and not self._was_passed_over(i.removeprefix(scope))
        ]
        gone.extend(document_id for i in missing for document_id in known_documents.get(i, {}))
        self.updated = sum(p.document_id in known_documents.get(p.source_id, {}) for p in pending)
        self._tell(force=True, documents_total=total, chunks_total=sum(len(p.chunks) for p in pending))
        return pending, gone, (finished, missing)

    def _write(self, root_id: int, pending: list[_Pending]) -> None:
        group: list[_Pending] = []
        size = 0
        for item in pending:
            group.append(item)
            size += len(item.chunks)
            if size >= _GROUP_CHUNKS:
                self._write_group(root_id, group)
                group, size = [], 0
        if group:
            self._write_group(root_id, group)
        self.added = len(pending) - self.updated

    def _write_group(self, root_id: int, group: list[_Pending]) -> None:
        """Embed, write, commit, delete the old: the four steps of `ragkit.records`."""
        stored = [tuple(StoredChunk(uuid.uuid4().hex, chunk) for chunk in item.chunks) for item in group]
        passages = [
            (s.vector_id, passage_text(item.document.title, s.chunk), item)
            for item, chunks in zip(group, stored, strict=True)
            for s in chunks
        ]
        # Similar lengths together: a batch is as slow as its longest text.
        passages.sort(key=lambda passage: len(passage[1]))
        self.records.reserve([vector_id for vector_id, _, _ in passages])
        for start in range(0, len(passages), _SLICE_CHUNKS):
            self._stop_if_asked()
            part = passages[start : start + _SLICE_CHUNKS]
            vectors = self.embedder.embed([text for _, text, _ in part])
            self._fix_settings(vectors.shape[1])
            self.store.add([vector_id for vector_id, _, _ in part], vectors)
            done = self.progress.chunks_done + len(part)
            rate, eta = self._pace(done)
            self._tell(chunks_done=done, rate=rate, eta_seconds=eta, current_document=part[-1][2].document_id)
        self.records.commit(
            root_id,
            [
                Replacement(_record(item), item.source_id, item.hash, chunks)
                for item, chunks in zip(group, stored, strict=True)
            ],
            [item.finishes for item in group if item.finishes is not None],
        )
        self._sweep()
        self._tell(documents_done=self.progress.documents_done + len(group))

    def _pace(self, done: int) -> tuple[float | None, float | None]:
        now = time.monotonic()
        if not self.pace or now - self.pace[0][0] <= 0:
            return None, None
        rate = (done - self.pace[0][1]) / (now - self.pace[0][0])
        left = (self.progress.chunks_total or done) - done
        return round(rate, 2), round(left / rate, 1) if rate > 0 else None

    def _fix_settings(self, dimension: int) -> None:
        """Note what the index is made with at its first write, and hold every later write against it."""
        settings = self.records.settings()
        if "embedder" not in settings:
            ours = {"format": FORMAT, "embedder": self.embedder.name, "chunker": self.chunker.name}
            self.records.set_settings(ours | {"dimension": str(dimension)})
        elif settings.get("dimension") != str(dimension):
            raise IndexMismatchError(
                self.path, what="vectors of dimension", expected=settings.get("dimension"), found=dimension
            )

    def _delete(
        self, root_id: int, gone: list[str], sources: tuple[list[SourceRecord], list[str]], absorbed: list[int]
    ) -> None:
        finished, missing = sources
        self.deleted = len(gone)
        if gone or missing:
            self.records.delete(root_id, gone, missing)
        if finished:
            self.records.commit(root_id, [], finished)
        for other in absorbed:  # a folder inside this one: its files are here now, under this root's ids
            self.records.delete_root(other)
        self._sweep()

    def _stop_if_asked(self) -> None:
        if self.cancelled():
            raise CancelledError("Indexing was stopped. What was done is kept; run it again to go on.")


def _record(item: _Pending) -> DocumentRecord:
    d = item.document
    return DocumentRecord(item.document_id, d.source, d.title, d.language, d.text)


def _hash_file(path: Path) -> str:
    try:
        # Not to wait for a pipe that has taken a file's place since it was found.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DocumentError(str(path), "not a regular file any more")
            return hashlib.file_digest(file, "blake2b").hexdigest()
    except OSError as error:
        raise DocumentError(str(path), f"cannot be read: {error.strerror or error}") from error


def _hash_document(document: Document) -> str:
    parts = (document.title, document.language, document.source, repr(document.marks), document.text)
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
