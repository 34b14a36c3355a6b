"""The transactional index: documents on disk in, exactly their passages and vectors kept.

`Index.update` compares what lies on disk with what is recorded, by content and not by date, and
does only what differs: embed, write the vectors, commit the record, then delete what it replaced
(`ragkit.indexing.records` tells how, `ragkit.indexing.update` does it). Whatever interrupts it, Ctrl-C, a full disk or
``kill -9``, the index answers from what was committed, and the next run goes on from there.
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
from ragkit.indexing.records import FORMAT, Records
from ragkit.indexing.report import IndexProgress, IndexReport
from ragkit.indexing.stored import DocumentRecord
from ragkit.indexing.update import Update
from ragkit.indexing.vector_store import ChromaStore, VectorStore

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG}


class Index:
    """One index: a folder with records (SQLite), vectors (Chroma) and a lock.

    Args:
        path: The index's own folder; made by the first `update`.
        embedder: What embeds passages and questions. An index remembers its embedder and refuses another.
        chunker: What cuts documents into passages.
        vector_store: Where vectors lie; an embedded ChromaDB inside the folder if None.
        cache: Where what was embedded before is looked up; this user's own if None, nowhere if
            False.

    Raises:
        InputError: The path holds something that is not an index.
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
        """Whether anything was ever indexed here."""
        return (self.path / "index.db").exists()

    @property
    def records(self) -> Records:
        if self._records is None or not self.exists:  # never opened, or deleted since
            self._records = Records(self.path)
        return self._records

    def check(self) -> None:
        """Raise `IndexMismatchError` if the index was made with another embedder or format."""
        self._compare(("format", FORMAT), ("embedder", self.embedder.name))

    def catch_up(self) -> None:
        """Make what other processes have written visible to the store of this one."""
        if self.records.changed_elsewhere():
            self.vector_store.refresh()

    def document(self, document_id: str) -> DocumentRecord | None:
        """Read one document as it was indexed."""
        return self.records.document(document_id) if self.exists else None

    def counts(self) -> tuple[int, int]:
        """Count (documents, chunks)."""
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
        """Make the index agree with a folder, a file or a web page: add, update and delete what differs.

        Args:
            path: A folder (read recursively) or one file. Documents of other folders indexed before are kept.
            rebuild: Throw away what the index holds first, also if it was made with another embedder.
            on_progress: Called a few times a second, and with every end; must not raise.
            cancelled: Asked several times a second; True stops the work.
            executor: Where to embed, if not here: a `concurrent.futures` executor or one like it (Dask's,
                ipyparallel's, mpi4py's), whose workers can import ragkit. Each loads the model once.

        Returns:
            What was done. Files that cannot be read are in ``failed``; they stop nobody else.

        Raises:
            SourceNotFoundError, NoDocumentsError: Nothing to index there; the index is as it was.
            IndexLockedError: Another process is writing.
            IndexMismatchError: The index was made with another embedder or chunker.
            IndexWriteError: The disk is full or read-only.
            EmbeddingError: The embedder failed.
            OperationCancelled: ``cancelled`` said so; what was committed is kept.
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
        """Compare records, vectors and files; nothing is changed.

        Raises:
            EmptyIndexError: Nothing was indexed here.
            IndexCorruptError: The records or the vectors cannot be read; `repair` mends the vectors.
        """
        self._require()
        self.catch_up()
        return check(self.records, self.vector_store)

    def repair(self) -> IndexCheck:
        """Make records and vectors agree: embed what has lost its vector, delete vectors that belong to nothing.

        Files are not read; what they have changed is for `update`.

        Returns:
            How it stands now.

        Raises:
            EmptyIndexError, IndexLockedError, IndexMismatchError, EmbeddingError: See `update`.
            IndexCorruptError: The records themselves cannot be read; then only a rebuild helps.
        """
        self._require()
        with self._locked():
            self.check()
            self.catch_up()
            repair(self.records, self.vector_store, self.embedder)
            return check(self.records, self.vector_store)

    def close(self) -> None:
        """Let go of the vector store. What is used afterwards is opened again."""
        self.vector_store.close()

    def forget(self, path: str | Path) -> int:
        """Remove the documents of a folder that was indexed, also if the folder is no longer there.

        Returns:
            How many those were.

        Raises:
            InputError: No such folder was indexed; the message says which were.
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
        self.vector_store.clear()  # the dimension may change, and a collection keeps its first
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
    """An index never moves into a folder of somebody's documents."""
    if path.is_file():
        raise InputError(
            f"'{path}' is a file; an index is a folder. Give a new folder's path, like 'indexes/{path.stem}'."
        )
    if path.is_dir() and not (path / "index.db").exists():
        others = sorted(p.name for p in path.iterdir() if p.name not in {"lock", "vectors"})
        if others:
            raise InputError(
                f"'{path}' holds files that are not an index ('{others[0]}', ...). An index needs a folder of its own: "
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
