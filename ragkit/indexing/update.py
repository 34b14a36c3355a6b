"""One run of indexing: what differs between a folder and the records is done, and told as it goes.

`ragkit.indexing.records` tells how a document is replaced so that an interruption at any moment does no harm,
`ragkit.indexing.pipeline` does it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path, PurePosixPath

from ragkit.chunking.base import Chunker
from ragkit.documents.document import Found, SourceFile, printable_path
from ragkit.embedding.cache import CachedEmbedder
from ragkit.errors import DocumentError, IndexMismatchError, OperationCancelled
from ragkit.indexing.pipeline import Pipeline, Place
from ragkit.indexing.records import FORMAT, Records, SourceRecord
from ragkit.indexing.report import IndexProgress, IndexReport, Meter
from ragkit.indexing.vector_store import VectorStore

MAX_READERS = 4
_ROWS = ".jsonl"  # a document a line


class Update:
    """One run of `Index.update`, under the index's lock.

    Args:
        found: The files.
        path: The index's folder.
        records, store, embedder, chunker: The index's own.
        on_progress, cancelled, executor: See `Index.update`.
    """

    def __init__(
        self,
        found: Found,
        *,
        path: Path,
        records: Records,
        vector_store: VectorStore,
        embedder: CachedEmbedder,
        chunker: Chunker,
        on_progress: Callable[[IndexProgress], None],
        cancelled: Callable[[], bool],
        executor: Executor | None = None,
    ) -> None:
        self.path, self.records, self.vector_store = path, records, vector_store
        self.embedder, self.chunker, self.executor = embedder, chunker, executor
        self.found = found  # for as long as it is read: it may keep a download
        self.root, self.sources, self.alone = found.root, found.sources, found.alone
        self.failed = frozenset(failure.source for failure in found.failures)
        self.cancelled = cancelled
        self.meter = Meter(on_progress)
        self.meter.failed.extend(found.failures)
        self.unchanged = 0
        self._is_fixed = False

    def run(self) -> IndexReport:
        began = time.monotonic()
        done, total = len(self.failed), len(self.sources) + len(self.failed)
        try:
            self.meter.tell(force=True, documents_done=done, documents_total=total)
            self.records.sweep(self.vector_store)
            place, absorbed = self._place()
            changed, expected, missing = self._compare(place)
            if not changed:
                self.meter.tell(chunks_total=0)
            pipeline = Pipeline(
                changed,
                expected=expected,
                place=place,
                records=self.records,
                vector_store=self.vector_store,
                embedder=self.embedder,
                chunker=self.chunker,
                meter=self.meter,
                stop_if_asked=self._stop_if_asked,
                prepare=self._fix_settings,
                readers=min(MAX_READERS, os.cpu_count() or 1),
                executor=self.executor,
            )
            if changed:
                pipeline.run()
            deleted = pipeline.deleted + self._finish(place, pipeline, missing, absorbed)
        except BaseException as error:  # told to those who watch, then raised on: Ctrl-C and kernel restarts too
            stopped = isinstance(error, OperationCancelled | KeyboardInterrupt)
            message = "Stopped; what was done is kept." if stopped else str(error)
            state = "cancelled" if stopped else "failed"
            self.meter.tell(force=True, state=state, message=message, current_document=None)
            raise
        chunks = self.meter.progress.chunks_done
        self.meter.tell(force=True, state="done", current_document=None, eta_seconds=0.0, chunks_total=chunks)
        return IndexReport(
            added=pipeline.added,
            updated=pipeline.updated,
            unchanged=self.unchanged + pipeline.unchanged,
            deleted=deleted,
            failed=tuple(self.meter.failed),
            chunks=chunks,
            embedded=pipeline.embedded,
            seconds=time.monotonic() - began,
            skipped=self.found.skipped,
        )

    def _place(self) -> tuple[Place, list[int]]:
        """Find the root that this path belongs to, and the roots that it swallows."""
        roots = self.records.roots()
        around = [root for root in roots if self.root.is_relative_to(root[1])]
        inside = [root for root in roots if root not in around and root[1].is_relative_to(self.root)]
        absorbed = [root_id for root_id, path, _ in inside if self._covers(path)]
        if not around:
            root_id, prefix = self._moved(roots) or self.records.add_root(self.root)
            return Place(root_id, prefix, ""), absorbed
        root_id, path, prefix = max(around, key=lambda root: len(root[1].parts))
        scope = self.root.relative_to(path).as_posix()
        return Place(root_id, prefix, "" if scope == "." else f"{scope}/"), absorbed

    def _moved(self, roots: list[tuple[int, Path, str]]) -> tuple[int, str] | None:
        """Find a root that is no longer there and most of whose files are here, and let it be here."""
        here = {source.id for source in self.sources}
        for root_id, path, prefix in roots:
            if path.exists() or path.parts[0] in ("http:", "https:"):
                continue
            known = [each.id for each, _ in self.records.sources(root_id)]
            if 2 * sum(id_ in here for id_ in known) > len(known):
                self.records.move_root(root_id, self.root)
                return root_id, prefix
        return None

    def _covers(self, folder: Path) -> bool:
        """Whether this run speaks for a folder inside its own: one file does not, nor a walk that skips hidden ones."""
        return not self.alone and (not folder.exists() or any(s.path.is_relative_to(folder) for s in self.sources))

    def _was_passed_over(self, source_id: str) -> bool:
        """Whether a file, or a folder above it, is there and could not be read."""
        path = PurePosixPath(source_id)
        return any(printable_path(self.root / part) in self.failed for part in (path, *path.parents))

    def _compare(self, place: Place) -> tuple[list[SourceFile], dict[str, int], list[str]]:
        """Hash what is known; return what has to be read, how many documents that seems to be, and what is gone."""
        changed: list[SourceFile] = []
        expected: dict[str, int] = {}
        missing: list[str] = []
        for source, known, count in self._side_by_side(place):
            self._stop_if_asked()
            if source is None:
                # One file indexed by itself says nothing about its neighbours, though its folder is the root.
                if not self.alone and not self._was_passed_over(known.id.removeprefix(place.scope)):
                    missing.append(known.id)
                continue
            self.meter.tell(current_document=source.id)
            try:
                if known.hash and source.hash() == known.hash:
                    self.meter.failed.extend(DocumentError(s, r) for s, r in known.failures)
                    self.unchanged += count
                    found = count + len(known.failures)
                    self.meter.documents(done=found, total=found - 1)
                    continue
                if source.path.suffix.lower() == _ROWS:
                    expected[source.id] = _count_lines(source.path)
                    self.meter.documents(total=expected[source.id] - 1)
            except (DocumentError, OSError):
                pass  # who reads it says so
            changed.append(source)
        return changed, expected, missing

    def _side_by_side(self, place: Place) -> Iterator[tuple[SourceFile | None, SourceRecord, int]]:
        """Give every source, on disk or recorded or both, with its number of recorded documents; both are sorted."""
        sources = iter(self.sources)
        source = next(sources, None)
        for known, count in self.records.sources(place.root_id):
            if not known.id.startswith(place.scope):
                continue
            name = known.id.removeprefix(place.scope)
            while source is not None and source.id < name:
                yield source, SourceRecord(source.id, ""), 0
                source = next(sources, None)
            if source is not None and source.id == name:
                yield source, known, count
                source = next(sources, None)
            else:
                yield None, known, count
        while source is not None:
            yield source, SourceRecord(source.id, ""), 0
            source = next(sources, None)

    def _fix_settings(self, dimension: int) -> None:
        """Note what the index is made with at its first write, and hold every later write against it."""
        if self._is_fixed:
            return
        settings = self.records.settings()
        if "embedder" not in settings:
            ours = {"format": FORMAT, "embedder": self.embedder.name, "chunker": self.chunker.name}
            self.records.set_settings(ours | {"dimension": str(dimension)})
        elif settings.get("dimension") != str(dimension):
            raise IndexMismatchError(
                self.path, what="vectors of dimension", expected=settings.get("dimension"), found=dimension
            )
        self._is_fixed = True

    def _finish(self, place: Place, pipeline: Pipeline, missing: list[str], absorbed: list[int]) -> int:
        """Remove what is no longer there; return how many documents that were."""
        if pipeline.finished:
            self.records.commit(place.root_id, [], pipeline.finished, pipeline.gone)
        gone = [d for source_id in missing for d in self.records.documents_of(place.root_id, source_id)]
        if missing:
            self.records.delete(place.root_id, gone, missing)
        for other in absorbed:  # a folder inside this one: its files are here now, under this root's ids
            self.records.delete_root(other)
        self.records.sweep(self.vector_store)
        return len(pipeline.gone) + len(gone)

    def _stop_if_asked(self) -> None:
        if self.cancelled():
            raise OperationCancelled("Indexing was stopped. What was done is kept; run it again to go on.")


def _count_lines(path: Path) -> int:
    count, last = 0, b""
    with path.open("rb") as file:
        while block := file.read(2**20):
            count += block.count(b"\n")
            last = block
    return max(1, count + (not last.endswith(b"\n")))
