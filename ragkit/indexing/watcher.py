"""Indexing again as files change."""

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
_living: weakref.WeakSet[IndexWatcher] = weakref.WeakSet()
_STEP_SECONDS = 0.3  # of quiet after which changes count as one


class IndexWatcher:
    """Keeps an index as its folder is, in a thread, until it is stopped or the process ends.

    Use it in a ``with`` statement, call `stop`, or forget it.

    Args:
        index: Indexes the folder; is given a function that tells whether to stop.
        path: The folder or file to watch.
        ignored: A folder in which changes do not count: the index's own may lie in ``path``.
        on_report: Called with each report that says anything new.

    Attributes:
        report: The last one.
        error: Why the last attempt failed; None if it did not. The next change is the next attempt.
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
        if not _living:
            atexit.register(_stop_all)
        _living.add(self)
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
        """Whether it still watches."""
        return self._thread.is_alive()

    def stop(self, *, timeout_seconds: float = 10.0) -> None:
        """Stop watching, and what is being indexed just now; what was committed is kept."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        import watchfiles

        step = round(1000 * _STEP_SECONDS)
        is_late = True  # what changed before the watch began is found by looking once
        for changes in watchfiles.watch(
            self._path,
            watch_filter=lambda _, name: self._counts(Path(name)),
            stop_event=self._stop,
            step=step,
            rust_timeout=step,
            yield_on_timeout=True,
            raise_interrupt=False,
            ignore_permission_denied=True,
        ):
            if changes or is_late:
                is_late = not self._again()

    def _counts(self, path: Path) -> bool:
        """Whether a change may be one of a document."""
        if path.is_relative_to(self._ignored):
            return False
        return path == self._path or not any(
            part.startswith(".") and part != ".gitignore" for part in path.relative_to(self._path).parts
        )

    def _again(self) -> bool:
        """Index once; return whether it was possible, or at least will not become so by trying again."""
        try:
            report = self._index(self._stop.is_set)
        except OperationCancelled:
            return True
        except IndexLockedError as error:
            self.error = error
            return self._stop.wait(1.0)
        except NoDocumentsError as error:  # as if all had been deleted; they may come back
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
        is_news = self.report is None or report.added + report.updated + report.deleted > 0
        self.report, self.error = report, None
        if self._on_report is not None and is_news:
            self._on_report(report)
        return True


def _stop_all() -> None:
    for refreshing in list(_living):
        refreshing.stop()
