"""Progress and report of an indexing run."""

from __future__ import annotations

import dataclasses
import html
import time
from collections.abc import Callable
from typing import Any

from ragkit.documents.document import Skipped
from ragkit.errors import DocumentError
from ragkit.progress_bar import Pace, in_notebook
from ragkit.terminal import one_line, printable

_REPORT_SECONDS = 0.1
_FAILURES_SHOWN = 10
_REASONS_SHOWN = 4


@dataclasses.dataclass(frozen=True, slots=True)
class IndexProgress:
    """Progress of an indexing task.

    Attributes:
        state: ``"running"``, then one of ``"done"``, ``"failed"``, ``"cancelled"``.
        documents_done: Documents that are indexed or have failed, unchanged ones included.
        documents_total: None until every file has been checked. Until a JSONL file has been read, its documents are
            estimated by counting lines.
        chunks_done: Chunks of this run that have been embedded.
        chunks_total: Chunks of this run. None until a file has been read; until all files have been read, an estimate
            from their sizes.
        current_document: The document that is being processed.
        rate: Chunks per second over the last ten seconds.
        eta_seconds: Estimated remaining seconds at that rate.
        failures: The failures so far.
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
    """The result of an update.

    Attributes:
        added: Number of new documents.
        updated: Number of changed documents.
        unchanged: Number of unchanged documents.
        deleted: Number of documents that no longer exist.
        failed: Files, pages or rows that could not be read, split into chunks or embedded, with reasons.
        chunks: Number of passages of the added and updated documents.
        embedded: Number of texts sent to the embedder; the embeddings of the others were cached.
        seconds: How long it took.
        skipped: Files and folders that are not documents, or are ignored, by reason.
    """

    added: int
    updated: int
    unchanged: int
    deleted: int
    failed: tuple[DocumentError, ...]
    chunks: int
    embedded: int
    seconds: float
    skipped: tuple[Skipped, ...] = ()

    def __str__(self) -> str:
        counts = f"{self.added} added, {self.updated} updated, {self.unchanged} unchanged, {self.deleted} deleted"
        embedded = f"{self.embedded} passages embedded" if self.embedded == self.chunks else (
            f"{self.embedded} of {self.chunks} passages embedded, the others were cached"
        )  # fmt: skip
        lines = [f"{counts}, {len(self.failed)} failed; {embedded} in {self.seconds:.1f} s"]
        lines += [f"  failed: {one_line(str(error))}" for error in self.failed[:_FAILURES_SHOWN]]
        if len(self.failed) > _FAILURES_SHOWN:
            lines.append(f"  ... and {len(self.failed) - _FAILURES_SHOWN} more, in report.failed")
        lines += [f"  skipped: {one_line(str(each))}" for each in self.skipped[:_REASONS_SHOWN]]
        if len(self.skipped) > _REASONS_SHOWN:
            lines.append(f"  ... and for {len(self.skipped) - _REASONS_SHOWN} more reasons, in report.skipped")
        return printable("\n".join(lines))

    def _repr_html_(self) -> str:
        head, *rest = str(self).split("\n")
        items = "".join(f"<li>{html.escape(line.strip())}</li>" for line in rest)
        return f"<p>{html.escape(head)}</p>" + (f"<ul>{items}</ul>" if items else "")


class Meter:
    """Report the progress of one run: a few times a second, and at the end.

    Args:
        on_progress: Called with the progress.
    """

    def __init__(self, on_progress: Callable[[IndexProgress], None]) -> None:
        self.progress = IndexProgress()
        self.failed: list[DocumentError] = []
        self._on_progress = on_progress
        self._reported_at = 0.0
        self._pace = Pace()

    def report(self, *, force: bool = False, **changes: object) -> None:
        """Update the progress, and report it unless the last report was less than 0.1 seconds ago."""
        self.progress = dataclasses.replace(self.progress, **changes)  # type: ignore[arg-type]
        now = time.monotonic()
        if force or now - self._reported_at >= _REPORT_SECONDS:
            self._reported_at = now
            self.progress = dataclasses.replace(self.progress, failures=tuple(self.failed))
            self._on_progress(self.progress)

    def documents(self, *, done: int = 0, total: int = 0) -> None:
        """Add to the numbers of documents done and in total."""
        self.report(
            documents_done=self.progress.documents_done + done,
            documents_total=(self.progress.documents_total or 0) + total,
        )

    def chunks(self, done: int, total: int | None, *, current_document: str | None) -> None:
        """Report how many chunks have been embedded, with the rate and the remaining time."""
        rate = self._pace.rate(done)
        eta = (total - done) / rate if rate is not None and total is not None else None
        self.report(
            force=True,  # batches are rare, and the next one may take long
            chunks_done=done,
            chunks_total=total,
            current_document=current_document,
            rate=rate and round(rate, 2),
            eta_seconds=eta if eta is None else round(eta, 1),
        )


class ProgressBar:
    """A tqdm bar over passages, in the notebook if there is one, else in the terminal."""

    def __init__(self, wanted: bool, label: str) -> None:
        self._bar: Any = None
        self._wanted = wanted
        self._label = label

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: IndexProgress) -> None:
        """Update the bar; show nothing if there is nothing to embed."""
        if not self._wanted or progress.chunks_total == 0:
            self._wanted = False
            if self._bar is not None:
                self._bar.leave = False
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(desc=self._label, unit=" passages", total=None, disable=False if in_notebook() else None)
        if progress.chunks_total is not None and self._bar.total != progress.chunks_total:
            self._bar.reset(total=progress.chunks_total)
        self._bar.n = progress.chunks_done
        documents = f"{progress.documents_done}/{progress.documents_total} documents"
        failed = f", {len(progress.failures)} failed" if progress.failures else ""
        reading = f"reading {progress.current_document}" if progress.chunks_total is None else documents
        self._bar.set_postfix_str(reading + failed, refresh=True)
