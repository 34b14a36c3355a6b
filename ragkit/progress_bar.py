"""How progress is shown to a person, and that of indexing told to the socket."""

from __future__ import annotations

import sys
from typing import Any

from ragkit.indexing.report import Progress
from ragkit.live import messages

__all__ = ["CellsBar", "ProgressBar", "progress_event"]

_MAX_FAILURES_TOLD = 100


class ProgressBar:
    """A tqdm bar over passages: in the notebook where there is one, else in the terminal."""

    def __init__(self, wanted: bool, label: str) -> None:
        self._bar: Any = None
        self._wanted = wanted
        self._label = label

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, progress: Progress) -> None:
        """Show how far it is; nothing when there is nothing to embed."""
        if not self._wanted or progress.chunks_total == 0:
            self._wanted = False
            if self._bar is not None:
                self._bar.leave = False
            return
        if self._bar is None:
            from tqdm.auto import tqdm

            self._bar = tqdm(desc=self._label, unit=" passages", total=None, disable=False if _in_notebook() else None)
        if progress.chunks_total is not None and self._bar.total != progress.chunks_total:
            self._bar.reset(total=progress.chunks_total)
        self._bar.n = progress.chunks_done
        documents = f"{progress.documents_done}/{progress.documents_total} documents"
        failed = f", {len(progress.failures)} failed" if progress.failures else ""
        reading = f"reading {progress.current_document}" if progress.chunks_total is None else documents
        self._bar.set_postfix_str(reading + failed, refresh=True)


class CellsBar:
    """A tqdm bar over the cells of an experiment."""

    def __init__(self, wanted: bool, label: str) -> None:
        from tqdm.auto import tqdm

        self._bar: Any = tqdm(
            desc=label, unit=" cells", disable=(False if _in_notebook() else None) if wanted else True
        )

    def __enter__(self) -> CellsBar:
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.close()

    def show(self, done: int, total: int, doing: str) -> None:
        """Show how far it is."""
        self._bar.total, self._bar.n = total, done
        self._bar.set_postfix_str(doing, refresh=True)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def progress_event(progress: Progress, task_id: str, index: str) -> messages.IndexingProgress:
    told = progress.failures[:_MAX_FAILURES_TOLD]
    return messages.IndexingProgress(
        task_id=task_id,
        index=index,
        state=progress.state,  # type: ignore[arg-type]
        documents_done=progress.documents_done,
        documents_total=progress.documents_total,
        chunks_done=progress.chunks_done,
        chunks_total=progress.chunks_total,
        current_document=progress.current_document[-1024:] if progress.current_document else None,
        rate=progress.rate,
        eta_seconds=progress.eta_seconds,
        failures=[messages.Failure(source=f.source[-1024:], reason=f.reason[:2000]) for f in told],
        failures_total=len(progress.failures),
        message=progress.message,
    )
