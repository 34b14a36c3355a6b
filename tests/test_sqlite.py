"""SQLite files that threads and processes share."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
import sys
import threading
from pathlib import Path

import pytest

from ragkit.sqlite import SharedDatabase, connect, primary_code, select_in, transaction

SCHEMA = "CREATE TABLE IF NOT EXISTS numbers (n INTEGER PRIMARY KEY);"


@pytest.fixture
def database(tmp_path: Path) -> SharedDatabase:
    return SharedDatabase(tmp_path / "sub" / "numbers.db", SCHEMA)


def numbers(database: SharedDatabase) -> list[int]:
    with database.connection() as db:
        return [n for (n,) in db.execute("SELECT n FROM numbers ORDER BY n")]


def test_a_file_is_created_at_first_use_and_reopened_after_close(database: SharedDatabase) -> None:
    assert not database.path.exists()
    with database.transaction() as db:
        db.execute("INSERT INTO numbers VALUES (1)")
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert db.execute("PRAGMA synchronous").fetchone() == (1,)
    database.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        db.execute("SELECT 1")
    assert numbers(database) == [1]
    database.delete()
    assert list(database.path.parent.iterdir()) == []
    assert numbers(database) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_transaction_is_atomic(database: SharedDatabase, error: type[BaseException]) -> None:
    def stop() -> None:
        with database.transaction() as db:
            db.execute("INSERT INTO numbers VALUES (1)")
            raise error

    with pytest.raises(error):
        stop()
    assert numbers(database) == []


def test_a_transaction_locks_other_writers_out_from_its_beginning(database: SharedDatabase) -> None:
    with database.transaction():
        other = connect(database.path, busy_seconds=0)
        with pytest.raises(sqlite3.OperationalError) as caught, transaction(other):
            raise AssertionError
        other.close()
    assert primary_code(caught.value) == sqlite3.SQLITE_BUSY
    assert primary_code(ValueError()) == 0


def test_threads_take_turns(database: SharedDatabase) -> None:
    def work(base: int) -> None:
        for n in range(base, base + 50):
            with database.transaction() as db:
                db.execute("INSERT INTO numbers VALUES (?)", (n,))

    threads = [threading.Thread(target=work, args=(base,)) for base in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(numbers(database)) == 150


def _insert(database: SharedDatabase, n: int) -> None:
    with database.transaction() as db:
        db.execute("INSERT INTO numbers VALUES (?)", (n,))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_connection_does_not_cross_a_fork(database: SharedDatabase) -> None:
    with database.connection() as before:
        pass
    child = multiprocessing.get_context("fork").Process(target=_insert, args=(database, 7))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    with database.connection() as after:
        assert after is before
    assert numbers(database) == [7]


def test_any_number_of_keys_can_be_selected(database: SharedDatabase) -> None:
    with database.transaction() as db:
        db.executemany("INSERT INTO numbers VALUES (?)", [(n,) for n in range(0, 3000, 2)])
        assert sum(1 for _ in select_in(db, "SELECT n FROM numbers WHERE n", range(2001))) == 1001
        assert list(select_in(db, "SELECT n FROM numbers WHERE n", [])) == []


@pytest.mark.skipif(sys.platform == "win32", reason="permissions are others")
def test_a_private_file_can_be_read_by_this_user_alone(tmp_path: Path) -> None:
    database = SharedDatabase(tmp_path / "mine" / "private.db", SCHEMA, private=True)
    assert numbers(database) == []
    assert stat.S_IMODE(database.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(database.path.parent.stat().st_mode) == 0o700


def test_a_file_that_is_not_a_database_raises(database: SharedDatabase) -> None:
    database.path.parent.mkdir()
    database.path.write_bytes(b"x" * 4096)
    with pytest.raises(sqlite3.DatabaseError) as caught:
        numbers(database)
    assert primary_code(caught.value) == sqlite3.SQLITE_NOTADB
    assert os.listdir(database.path.parent) == [database.path.name]  # and no connection is left open
