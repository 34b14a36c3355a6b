"""The transactional index of documents: their passages and vectors.

`Index.update` compares the files on disk with the records, by content and not by date. For each document that
differs, it embeds the passages, writes the vectors, commits the record, then deletes the old vectors
(`ragkit.indexing.records` explains the steps, `ragkit.indexing.update` implements them). If it is interrupted by
Ctrl-C, a full disk or ``kill -9``, the index answers from what was committed, and the next run resumes from there.
"""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Literal

import filelock

from ragkit.chunking.base import Chunker
from ragkit.documents.sources import find_sources
from ragkit.embedding.base import Embedder
from ragkit.embedding.cache import CachedEmbedder, EmbeddingCache
from ragkit.errors import EmptyIndexError, IndexLockedError, IndexMismatchError, IndexWriteError, InputError
from ragkit.indexing.integrity import IndexCheck, check, repair
from ragkit.indexing.record_types import DocumentRecord
from ragkit.indexing.records import FORMAT, Records
from ragkit.indexing.report import IndexProgress, IndexReport
from ragkit.indexing.update import Update
from ragkit.indexing.vector_store import ChromaStore, VectorStore

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class Index:
    """An index: a folder with records (SQLite), vectors (Chroma) and a lock.

    Args:
        path: The index's own folder; created by the first `update`.
        embedder: Embeds passages and questions. An index records its embedder and rejects any other.
        chunker: Splits documents into chunks.
        vector_store: Stores the vectors; an embedded ChromaDB inside the folder if None.
        cache: Cache of embeddings; this user's if None, no cache if False.

    Raises:
        InputError: The path is something other than an index.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        embedder: Embedder,
        chunker: Chunker,
        vector_store: VectorStore | None = None,
        cache: EmbeddingCache | Literal[False] | None = None,
    ) -> None:
        self.path = Path(path)
        self.embedder = embedder if isinstance(embedder, CachedEmbedder) else CachedEmbedder(embedder, cache)
        self.chunker = chunker
        self.vector_store: VectorStore = vector_store or ChromaStore(self.path / "vectors")
        self._records: Records | None = None
        _refuse_foreign_folder(self.path)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def exists(self) -> bool:
        """Whether anything has been indexed here."""
        return (self.path / "index.db").exists()

    @property
    def records(self) -> Records:
        if self._records is None or not self.exists:  # never opened, or deleted since
            self._records = Records(self.path)
        return self._records

    def check(self) -> None:
        """Raise `IndexMismatchError` if the index was built with another embedder or format."""
        self._compare(("format", FORMAT), ("embedder", self.embedder.name))

    def catch_up(self) -> None:
        """Refresh the vector store if another process has written to the index."""
        if self.records.changed_elsewhere():
            self.vector_store.refresh()

    def document(self, document_id: str) -> DocumentRecord | None:
        """Return a document as it was indexed; None if there is none with this id."""
        return self.records.document(document_id) if self.exists else None

    def counts(self) -> tuple[int, int]:
        """Return the numbers of (documents, chunks)."""
        return self.records.counts() if self.exists else (0, 0)

    def update(
        self,
        path: str | Path,
        *,
        rebuild: bool = False,
        on_progress: Callable[[IndexProgress], None] = lambda progress: None,
        cancelled: Callable[[], bool] = lambda: False,
        executor: Executor | None = None,
    ) -> IndexReport:
        """Update the index from a folder, a file or a web page: add, replace and delete documents that differ.

        Args:
            path: A folder (read recursively), a file, or a web address. Documents from other paths are kept.
            rebuild: Delete the index's contents first, even if it was built with another embedder.
            on_progress: Called a few times a second, and at the end; must not raise.
            cancelled: Polled several times a second; True stops the update.
            executor: Where to embed, if not in this process: a `concurrent.futures` executor or a compatible one
                (Dask's, ipyparallel's, mpi4py's) whose workers can import ragkit. Each worker loads the model once.

        Returns:
            What was done. Files that cannot be read are listed in ``failed`` and do not affect other files.

        Raises:
            SourceNotFoundError, NoDocumentsError: There is nothing to index; the index is unchanged.
            IndexLockedError: Another process is writing.
            IndexMismatchError: The index was built with another embedder or chunker.
            IndexWriteError: The disk is full or read-only.
            EmbeddingError: The embedder failed.
            OperationCancelled: ``cancelled`` returned True; what was committed is kept.
        """
        found = find_sources(path)
        with self._locked():
            self.catch_up()
            if rebuild:
                self._clear()
            else:
                self.check()
                self._compare(("chunker", self.chunker.name))
            return Update(
                found,
                path=self.path,
                records=self.records,
                vector_store=self.vector_store,
                embedder=self.embedder,
                chunker=self.chunker,
                on_progress=on_progress,
                cancelled=cancelled,
                executor=executor,
            ).run()

    def verify(self) -> IndexCheck:
        """Compare records, vectors and files without changing anything.

        Raises:
            EmptyIndexError: Nothing was indexed here.
            IndexCorruptError: The records or the vectors cannot be read; `repair` restores the vectors.
        """
        self._require()
        self.catch_up()
        return check(self.records, self.vector_store)

    def repair(self) -> IndexCheck:
        """Make records and vectors consistent: embed passages without a vector, delete orphaned vectors.

        Files are not read; `update` handles changed files.

        Returns:
            The state after the repair.

        Raises:
            EmptyIndexError, IndexLockedError, IndexMismatchError, EmbeddingError: See `update`.
            IndexCorruptError: The records cannot be read. Rebuild the index.
        """
        self._require()
        with self._locked():
            self.check()
            self.catch_up()
            repair(self.records, self.vector_store, self.embedder)
            return check(self.records, self.vector_store)

    def close(self) -> None:
        """Close the vector store. Later calls open it again."""
        self.vector_store.close()

    def forget(self, path: str | Path) -> int:
        """Remove the documents of an indexed folder, even if the folder no longer exists.

        Returns:
            The number of documents removed.

        Raises:
            InputError: The folder was not indexed; the message lists those that were.
            IndexLockedError: Another process is writing.
        """
        given = Path(path).expanduser().absolute()
        with self._locked():
            self.catch_up()
            roots = {root: root_id for root_id, root, _ in self.records.roots()}
            if given not in roots and (resolved := given.resolve()) in roots:
                given = resolved
            if given not in roots:
                known = ", ".join(f"'{root}'" for root in roots) or "none"
                raise InputError(f"'{path}' was not indexed here. Folders that were: {known}.")
            count = self.records.delete_root(roots[given])
            self.records.sweep(self.vector_store)
        return count

    # ------------------------------------------------------------------------------- internals

    def _require(self) -> None:
        if not self.exists:
            raise EmptyIndexError(self.path)

    def _compare(self, *expected: tuple[str, str]) -> None:
        settings = self.records.settings()
        for what, ours in expected:
            theirs = settings.get(what)
            if theirs is not None and theirs != ours:
                raise IndexMismatchError(self.path, what=what, expected=theirs, found=ours)

    def _clear(self) -> None:
        self.records.clear()
        self.vector_store.clear()  # the dimension may change, and that of a collection is fixed
        self.records.swept(self.records.garbage())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = filelock.FileLock(self.path / "lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout as error:
            raise IndexLockedError(self.path) from error
        except OSError as error:
            raise IndexWriteError(self.path, error.strerror or str(error)) from error
        try:
            yield
        except OSError as error:
            if error.errno not in _DISK_ERRORS:
                raise
            raise IndexWriteError(self.path, error.strerror or str(error)) from error
        finally:
            lock.release()


def _refuse_foreign_folder(path: Path) -> None:
    """Raise if a folder contains other files, such as the user's documents."""
    if path.is_file():
        raise InputError(
            f"'{path}' is a file; an index is a folder. Give a new folder's path, like 'indexes/{path.stem}'."
        )
    if path.is_dir() and not (path / "index.db").exists():
        others = sorted(p.name for p in path.iterdir() if p.name not in {"lock", "vectors"})
        if others:
            raise InputError(
                f"'{path}' contains files that are not an index ('{others[0]}', ...). An index needs its own folder: "
                f"RAGEngine('indexes/{path.name}'), then engine.index('{path}')."
            )


def remove_index(path: str | Path) -> None:
    """Delete an index's folder. Documents are not touched.

    Raises:
        InputError: The folder is not an index.
    """
    folder = Path(path)
    if not (folder / "index.db").exists():
        raise InputError(f"'{folder}' is not an index, so it is not deleted.")
    shutil.rmtree(folder)
