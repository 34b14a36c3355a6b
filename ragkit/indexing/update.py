"""One indexing run: find what differs between a folder and the records, update the index, and report progress.

`ragkit.indexing.records` explains how a document is replaced safely despite interruptions;
`ragkit.indexing.pipeline` does the work.
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
_ROWS = ".jsonl"  # one document per line


class Update:
    """One run of `Index.update`, under the index's lock.

    Args:
        found: The files.
        path: The index's folder.
        records, vector_store, embedder, chunker: The index's own.
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
        self.found = found  # keeps a downloaded file alive until it has been read
        self.root, self.sources, self.alone = found.root, found.sources, found.alone
        self.failed = frozenset(failure.source for failure in found.failures)
        self.cancelled = cancelled
        self.meter = Meter(on_progress)
        self.meter.failed.extend(found.failures)
        self.unchanged = 0
        self._has_settings = False

    def run(self) -> IndexReport:
        began = time.monotonic()
        done, total = len(self.failed), len(self.sources) + len(self.failed)
        try:
            self.meter.report(force=True, documents_done=done, documents_total=total)
            self.records.sweep(self.vector_store)
            place, absorbed = self._place()
            changed, expected, missing = self._compare(place)
            if not changed:
                self.meter.report(chunks_total=0)
            pipeline = Pipeline(
                changed,
                expected=expected,
                place=place,
                records=self.records,
                vector_store=self.vector_store,
                embedder=self.embedder,
                chunker=self.chunker,
                meter=self.meter,
                raise_if_cancelled=self._raise_if_cancelled,
                prepare=self._record_settings,
                readers=min(MAX_READERS, os.cpu_count() or 1),
                executor=self.executor,
            )
            if changed:
                pipeline.run()
            deleted = pipeline.deleted + self._finish(place, pipeline, missing, absorbed)
        except BaseException as error:  # reported to listeners, then re-raised: also Ctrl-C and kernel restarts
            stopped = isinstance(error, OperationCancelled | KeyboardInterrupt)
            message = "Stopped; what was done is kept." if stopped else str(error)
            state = "cancelled" if stopped else "failed"
            self.meter.report(force=True, state=state, message=message, current_document=None)
            raise
        chunks = self.meter.progress.chunks_done
        self.meter.report(force=True, state="done", current_document=None, eta_seconds=0.0, chunks_total=chunks)
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
        """Return the location of this path in the index, and the ids of roots inside it, which it replaces."""
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
        """Find a root that no longer exists and most of whose files are in this folder, and record it as moved."""
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
        """Return whether this run includes a folder inside its own. Not so for one file, or a skipped hidden folder."""
        return not self.alone and (not folder.exists() or any(s.path.is_relative_to(folder) for s in self.sources))

    def _is_unreadable(self, source_id: str) -> bool:
        """Return whether a file, or a folder above it, exists but could not be read."""
        path = PurePosixPath(source_id)
        return any(printable_path(self.root / part) in self.failed for part in (path, *path.parents))

    def _compare(self, place: Place) -> tuple[list[SourceFile], dict[str, int], list[str]]:
        """Compare hashes; return the files to read, their expected numbers of documents, and the missing sources."""
        changed: list[SourceFile] = []
        expected: dict[str, int] = {}
        missing: list[str] = []
        for source, known, count in self._side_by_side(place):
            self._raise_if_cancelled()
            if source is None:
                # If a single file is indexed, its folder is the root, but the folder's other files are not missing.
                if not self.alone and not self._is_unreadable(known.id.removeprefix(place.scope)):
                    missing.append(known.id)
                continue
            self.meter.report(current_document=source.id)
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
                pass  # reported when the file is read
            changed.append(source)
        return changed, expected, missing

    def _side_by_side(self, place: Place) -> Iterator[tuple[SourceFile | None, SourceRecord, int]]:
        """Merge the sorted sources on disk and in the records; yield both with the number of recorded documents."""
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

    def _record_settings(self, dimension: int) -> None:
        """Record the index's settings at its first write, and compare the dimension at later ones."""
        if self._has_settings:
            return
        settings = self.records.settings()
        if "embedder" not in settings:
            ours = {"format": FORMAT, "embedder": self.embedder.name, "chunker": self.chunker.name}
            self.records.set_settings(ours | {"dimension": str(dimension)})
        elif settings.get("dimension") != str(dimension):
            raise IndexMismatchError(
                self.path, what="vectors of dimension", expected=settings.get("dimension"), found=dimension
            )
        self._has_settings = True

    def _finish(self, place: Place, pipeline: Pipeline, missing: list[str], absorbed: list[int]) -> int:
        """Remove documents that no longer exist; return their number."""
        if pipeline.finished:
            self.records.commit(place.root_id, [], pipeline.finished, pipeline.gone)
        gone = [d for source_id in missing for d in self.records.documents_of(place.root_id, source_id)]
        if missing:
            self.records.delete(place.root_id, gone, missing)
        for other in absorbed:  # a folder inside this one: its files are now indexed under this root
            self.records.delete_root(other)
        self.records.sweep(self.vector_store)
        return len(pipeline.gone) + len(gone)

    def _raise_if_cancelled(self) -> None:
        if self.cancelled():
            raise OperationCancelled("Indexing was stopped. What was done is kept; run it again to resume.")


def _count_lines(path: Path) -> int:
    count, last = 0, b""
    with path.open("rb") as file:
        while block := file.read(2**20):
            count += block.count(b"\n")
            last = block
    return max(1, count + (not last.endswith(b"\n")))
