"""Watching a folder, and indexing it again when files change."""

from __future__ import annotations

import atexit
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

from ragkit.errors import IndexLockedError, NoDocumentsError, OperationCancelled, RagkitError
from ragkit.indexing.report import IndexReport

_log = logging.getLogger("ragkit")
_watchers: weakref.WeakSet[IndexWatcher] = weakref.WeakSet()
_STEP_SECONDS = 0.3  # changes within this time are handled together


class IndexWatcher:
    """Update an index in a background thread whenever its folder changes, until stopped or the process ends.

    Call `stop`, or use it in a ``with`` statement.

    Args:
        index: Indexes the folder. Its argument is a function that returns True to cancel.
        path: The folder or file to watch.
        ignored: A folder whose changes are ignored: the index's own folder may be inside ``path``.
        on_report: Called with each report that contains changes.

    Attributes:
        report: The last report.
        error: Why the last run failed; None if it succeeded. The next change starts another run.
    """

    def __init__(
        self,
        index: Callable[[Callable[[], bool]], IndexReport],
        path: Path,
        *,
        ignored: Path,
        on_report: Callable[[IndexReport], None] | None = None,
    ) -> None:
        self.report: IndexReport | None = None
        self.error: RagkitError | None = None
        self._index, self._path, self._ignored = index, path.expanduser().resolve(), ignored.resolve()
        self._on_report = on_report
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ragkit-refresh", daemon=True)
        if not _watchers:
            atexit.register(_stop_all)
        _watchers.add(self)
        self._thread.start()

    def __enter__(self) -> IndexWatcher:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "watching" if self.is_alive else "stopped"
        return f"IndexWatcher({str(self._path)!r}, {state}{f', {self.error}' if self.error else ''})"

    @property
    def is_alive(self) -> bool:
        """Whether the watcher is running."""
        return self._thread.is_alive()

    def stop(self, *, timeout_seconds: float = 10.0) -> None:
        """Stop watching, and cancel a running update; what was committed is kept."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        import watchfiles

        step = round(1000 * _STEP_SECONDS)
        must_index = True  # once at the start: files may have changed before the watch began
        for changes in watchfiles.watch(
            self._path,
            watch_filter=lambda _, name: self._is_relevant(Path(name)),
            stop_event=self._stop,
            step=step,
            rust_timeout=step,
            yield_on_timeout=True,
            raise_interrupt=False,
            ignore_permission_denied=True,
        ):
            if changes or must_index:
                must_index = not self._index_again()

    def _is_relevant(self, path: Path) -> bool:
        """Return whether a changed path may be a document."""
        if path.is_relative_to(self._ignored):
            return False
        return path == self._path or not any(
            part.startswith(".") and part != ".gitignore" for part in path.relative_to(self._path).parts
        )

    def _index_again(self) -> bool:
        """Index once; return False if it should be retried without another change."""
        try:
            report = self._index(self._stop.is_set)
        except OperationCancelled:
            return True
        except IndexLockedError as error:
            self.error = error
            return self._stop.wait(1.0)
        except NoDocumentsError as error:  # all documents were deleted; there may be new ones later
            self.error = error
            return True
        except RagkitError as error:
            if str(error) != str(self.error):
                _log.warning("'%s' could not be indexed again: %s", self._path, error)
            self.error = error
            return True
        except Exception:
            _log.exception("'%s' could not be indexed again", self._path)
            return True
        has_changes = self.report is None or report.added + report.updated + report.deleted > 0
        self.report, self.error = report, None
        if self._on_report is not None and has_changes:
            self._on_report(report)
        return True


def _stop_all() -> None:
    for watcher in list(_watchers):
        watcher.stop()
