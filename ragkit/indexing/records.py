"""The records of an index: one SQLite file.

Theory of operation
===================

The vector store takes no part in the transactions of the records, so a crash can happen between writing a
vector and writing its record. The table ``garbage`` makes this recoverable: it lists the vectors that must
not exist. A document is replaced in four steps:

1. the new vectors' ids are added to ``garbage``                 (one transaction)
2. the new vectors are written to the store
3. the records are replaced; the new ids are removed from ``garbage``, the old ids added   (one transaction)
4. the old vectors are deleted from the store, and their ids from ``garbage``

After a crash at any step, the records refer only to vectors that exist, and all other vectors are listed in
``garbage``; the next writer deletes them. The change takes effect with step 3.

A *source* is a file, a *document* is what a loader makes of it (a JSONL file contains many). A source is
stored with the hash of its bytes, so an unchanged file is not parsed. A document is stored with the hash of
its content, so if one row changes, the others are not embedded again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from ragkit.chunking.base import Chunk
from ragkit.documents.document import printable_path
from ragkit.errors import IndexCorruptError, IndexingError, IndexWriteError
from ragkit.indexing.record_types import DocumentRecord, StoredChunk
from ragkit.indexing.vector_store import VectorStore
from ragkit.sqlite import connect, create, transaction

FORMAT = "1"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS roots (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, prefix TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS sources (
    root_id INTEGER NOT NULL REFERENCES roots(id) ON DELETE CASCADE, id TEXT NOT NULL,
    hash TEXT NOT NULL, failures TEXT NOT NULL, PRIMARY KEY (root_id, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    id TEXT PRIMARY KEY, root_id INTEGER NOT NULL REFERENCES roots(id), source_id TEXT NOT NULL,
    source TEXT NOT NULL, title TEXT NOT NULL, language TEXT NOT NULL, text TEXT NOT NULL, hash TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS documents_by_source ON documents (root_id, source_id);
CREATE TABLE IF NOT EXISTS chunks (
    vector_id TEXT PRIMARY KEY, document_id TEXT NOT NULL REFERENCES documents(id) ON DELETE CASCADE,
    ordinal INTEGER NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, headings TEXT NOT NULL, page INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS chunks_by_document ON chunks (document_id, ordinal);
CREATE TABLE IF NOT EXISTS garbage (vector_id TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclasses.dataclass(frozen=True, slots=True)
class SourceRecord:
    """A file as last indexed. ``failures`` are (source, reason) pairs."""

    id: str
    hash: str
    failures: tuple[tuple[str, str], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """The consistent state of an index: its generation, its documents, and the chunks of each, in order."""

    generation: int
    documents: dict[str, DocumentRecord]
    chunks: dict[str, list[StoredChunk]]


@dataclasses.dataclass(frozen=True, slots=True)
class Replacement:
    """A document that replaces the one recorded under its id, if any."""

    document: DocumentRecord
    source_id: str
    hash: str
    chunks: tuple[StoredChunk, ...]


# Index folder -> the generation up to which this process has seen or made every change. Changes by another process
# make the vector store's cache stale; changes by this process do not.
_seen: dict[str, int] = {}


class Records:
    """The SQLite file ``index.db`` of one index. Any number of readers, one writer; thread-safe.

    Args:
        path: The index's folder.

    Raises:
        IndexCorruptError: The file is damaged.
        IndexWriteError: The file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._folder = path
        self._file = path / "index.db"
        self._key = str(path.resolve())
        with self._connection() as db:
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                create(db, _SCHEMA)

    @contextlib.contextmanager
    def _connection(self, *, write: bool = False, visible: bool = True) -> Iterator[sqlite3.Connection]:
        """Open a connection, for one write transaction if ``write``. ``visible``: the change concerns readers."""
        try:
            with contextlib.closing(connect(self._file)) as db:
                db.execute("PRAGMA foreign_keys = ON")
                if not write:
                    yield db
                    return
                with transaction(db):
                    yield db
                    (generation,) = db.execute(
                        "INSERT INTO meta VALUES ('generation', '1') "
                        "ON CONFLICT DO UPDATE SET value = value + ? RETURNING value",
                        (int(visible),),
                    ).fetchone()
                if visible and _seen.get(self._key, 0) == int(generation) - 1:
                    _seen[self._key] = int(generation)
        except sqlite3.OperationalError as error:
            if write:
                raise IndexWriteError(self._folder, str(error)) from error
            raise IndexingError(self._folder, f"The index at '{self._folder}' could not be read: {error}.") from error
        except sqlite3.DatabaseError as error:
            raise IndexCorruptError(self._folder, f"{self._file.name}: {error}") from error

    def _rows(self, sql: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._connection() as db:
            return db.execute(sql, arguments).fetchall()

    # ------------------------------------------------------------------------------ settings

    def settings(self) -> dict[str, str]:
        """Return the settings the index was built with (format, embedder, dimension, chunker), and its generation."""
        return dict(self._rows("SELECT key, value FROM meta"))

    def set_settings(self, settings: dict[str, str]) -> None:
        with self._connection(write=True) as db:
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", settings.items())

    def generation(self) -> int:
        """Return a number that increases with every change, so that readers know when to reload."""
        return int(self.settings().get("generation", "0"))

    def changed_elsewhere(self) -> bool:
        """Return whether another process has changed the index since the last call in this process."""
        generation = self.generation()
        changed = _seen.get(self._key, 0) != generation
        _seen[self._key] = generation
        return changed

    # --------------------------------------------------------------------------------- roots

    def roots(self) -> list[tuple[int, Path, str]]:
        """Return (id, folder, prefix of its document ids) of every indexed folder."""
        return [(i, Path(p), prefix) for i, p, prefix in self._rows("SELECT id, path, prefix FROM roots ORDER BY id")]

    def add_root(self, path: Path) -> tuple[int, str]:
        """Register a folder. Document ids of the first folder have no prefix; those of later ones begin with its name.

        The prefix ends in ``//``, which no path within a folder contains, so ``notes//x.md`` differs from
        ``notes/x.md`` of another folder.
        """
        taken = {prefix for _, _, prefix in self.roots()}
        prefix, number = ("" if not taken else f"{path.name}//"), 2
        while prefix in taken:
            prefix, number = f"{path.name}-{number}//", number + 1
        with self._connection(write=True) as db:
            row = db.execute(
                "INSERT INTO roots (path, prefix) VALUES (?, ?) RETURNING id", (str(path), prefix)
            ).fetchone()
        return int(row[0]), prefix

    def move_root(self, root_id: int, path: Path) -> None:
        """Record the new path of a folder that was moved."""
        with self._connection(write=True) as db:
            ((old,),) = db.execute("SELECT path FROM roots WHERE id = ?", (root_id,)).fetchall()
            db.execute("UPDATE roots SET path = ? WHERE id = ?", (str(path), root_id))
            # `source` is text for display; one that does not begin with the folder is left unchanged.
            db.execute(
                "UPDATE documents SET source = ?1 || substr(source, length(?2) + 1) "
                "WHERE root_id = ?3 AND substr(source, 1, length(?2)) = ?2",
                (printable_path(path), printable_path(Path(old)), root_id),
            )

    # ------------------------------------------------------------------------------- reading

    def sources(self, root_id: int) -> Iterator[tuple[SourceRecord, int]]:
        """Yield every source of a root with the number of its documents, in order of source id.

        A source with an empty hash was never finished. Do not write to the records during the iteration.
        """
        with self._connection() as db:
            for id_, digest, failures, count in db.execute(
                "SELECT ids.id, s.hash, s.failures, (SELECT count(*) FROM documents AS d "
                " WHERE d.root_id = ?1 AND d.source_id = ids.id) "
                "FROM (SELECT id FROM sources WHERE root_id = ?1 "
                " UNION SELECT source_id FROM documents WHERE root_id = ?1) AS ids "
                "LEFT JOIN sources AS s ON s.root_id = ?1 AND s.id = ids.id ORDER BY ids.id",
                (root_id,),
            ):
                reasons = tuple((s, r) for s, r in json.loads(failures or "[]"))
                yield SourceRecord(id_, digest or "", reasons), count

    def documents_of(self, root_id: int, source_id: str) -> dict[str, str]:
        """Return {document id: content hash} of one source."""
        return dict(
            self._rows("SELECT id, hash FROM documents WHERE root_id = ? AND source_id = ?", (root_id, source_id))
        )

    def document(self, document_id: str) -> DocumentRecord | None:
        rows = self._rows("SELECT id, source, title, language, text FROM documents WHERE id = ?", (document_id,))
        return DocumentRecord(*rows[0]) if rows else None

    def snapshot(self) -> Snapshot:
        """Return a consistent snapshot, even during a write."""
        with self._connection() as db:
            db.execute("BEGIN")
            generation = db.execute("SELECT value FROM meta WHERE key = 'generation'").fetchone()
            documents = {
                row[0]: DocumentRecord(*row)
                for row in db.execute("SELECT id, source, title, language, text FROM documents ORDER BY id")
            }
            chunks: dict[str, list[StoredChunk]] = {document_id: [] for document_id in documents}
            for vector_id, document_id, ordinal, start, stop, headings, page in db.execute(
                "SELECT vector_id, document_id, ordinal, start, stop, headings, page FROM chunks "
                "ORDER BY document_id, ordinal"
            ):
                text = documents[document_id].text[start:stop]
                chunk = Chunk(document_id, start, stop, text, tuple(json.loads(headings)), page, ordinal)
                chunks[document_id].append(StoredChunk(vector_id, chunk))
        return Snapshot(int(generation[0]) if generation else 0, documents, chunks)

    def counts(self) -> tuple[int, int]:
        """Return the numbers of (documents, chunks)."""
        return tuple(self._rows("SELECT (SELECT count(*) FROM documents), (SELECT count(*) FROM chunks)")[0])

    # ------------------------------------------------------------------------------- writing

    def reserve(self, vector_ids: Collection[str]) -> None:
        """Step 1: register the ids of vectors that are about to be written."""
        with self._connection(write=True, visible=False) as db:
            db.executemany("INSERT OR IGNORE INTO garbage VALUES (?)", [(i,) for i in vector_ids])

    def commit(
        self,
        root_id: int,
        replacements: Sequence[Replacement],
        sources: Sequence[SourceRecord],
        gone: Collection[str] = (),
    ) -> None:
        """Step 3: in one transaction, replace documents, remove those in ``gone``, and record the finished sources.

        A source recorded with a hash is not read again while its bytes have that hash.
        """
        with self._connection(write=True) as db:
            self._forget(db, gone)
            for new in replacements:
                self._forget(db, [new.document.id])
                d = new.document
                db.execute(
                    "INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                    (d.id, root_id, new.source_id, d.source, d.title, d.language, d.text, new.hash),
                )
                rows = [_chunk_row(d.id, each) for each in new.chunks]
                db.executemany("INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                db.executemany("DELETE FROM garbage WHERE vector_id = ?", [(s.vector_id,) for s in new.chunks])
            for source in sources:
                db.execute(
                    "INSERT OR REPLACE INTO sources VALUES (?, ?, ?, ?)",
                    (root_id, source.id, source.hash, json.dumps(source.failures, ensure_ascii=False)),
                )

    def delete(self, root_id: int, document_ids: Collection[str], source_ids: Collection[str] = ()) -> None:
        """Remove documents and sources; the documents' vectors become garbage."""
        with self._connection(write=True) as db:
            self._forget(db, document_ids)
            db.executemany("DELETE FROM sources WHERE root_id = ? AND id = ?", [(root_id, i) for i in source_ids])

    def delete_root(self, root_id: int) -> int:
        """Remove a root with all its documents; return the number of documents."""
        with self._connection(write=True) as db:
            ids = [i for (i,) in db.execute("SELECT id FROM documents WHERE root_id = ?", (root_id,))]
            self._forget(db, ids)
            db.execute("DELETE FROM roots WHERE id = ?", (root_id,))
        return len(ids)

    def clear(self) -> None:
        """Remove everything, settings too; every vector becomes garbage."""
        with self._connection(write=True) as db:
            db.execute("INSERT OR IGNORE INTO garbage SELECT vector_id FROM chunks")
            for table in ("chunks", "documents", "sources", "roots"):
                db.execute(f"DELETE FROM {table}")
            db.execute("DELETE FROM meta WHERE key <> 'generation'")

    def garbage(self) -> list[str]:
        """Return the ids of the vectors that must not exist."""
        return [i for (i,) in self._rows("SELECT vector_id FROM garbage")]

    def sweep(self, store: VectorStore) -> None:
        """Step 4: delete the vectors that must not exist."""
        if garbage := self.garbage():
            store.delete(garbage)
            self.swept(garbage)

    def swept(self, vector_ids: Collection[str]) -> None:
        """Record that these vectors were deleted."""
        with self._connection(write=True, visible=False) as db:
            db.executemany("DELETE FROM garbage WHERE vector_id = ?", [(i,) for i in vector_ids])

    @staticmethod
    def _forget(db: sqlite3.Connection, document_ids: Collection[str]) -> None:
        ids = [(i,) for i in document_ids]
        db.executemany("INSERT OR IGNORE INTO garbage SELECT vector_id FROM chunks WHERE document_id = ?", ids)
        db.executemany("DELETE FROM chunks WHERE document_id = ?", ids)
        db.executemany("DELETE FROM documents WHERE id = ?", ids)


def _chunk_row(document_id: str, stored: StoredChunk) -> tuple[Any, ...]:
    c = stored.chunk
    headings = json.dumps(c.headings, ensure_ascii=False)
    return stored.vector_id, document_id, c.ordinal, c.start, c.end, headings, c.page
