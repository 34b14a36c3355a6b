"""Verifying and repairing an index: lost and orphaned vectors, changed files."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ragkit.errors import EmptyIndexError, IndexCorruptError, InputError
from ragkit.indexing.index import Index
from tests.indexing.test_index import CountingEmbedder, folder, index_at, state, write  # noqa: F401  # folder is a fixture


@pytest.fixture
def index(tmp_path: Path, folder: Path) -> Index:  # noqa: F811
    index = index_at(tmp_path / "index")
    index.update(folder)
    return index


def test_an_index_that_only_ragkit_wrote_is_sound_and_current(index: Index) -> None:
    check = index.verify()
    assert check.is_sound
    assert check.is_current
    assert (check.documents, check.chunks) == index.counts()
    assert "agree" in str(check)


def test_lost_damaged_and_surplus_vectors_are_found_and_repaired(index: Index) -> None:
    before = state(index)
    chunks = index.records.snapshot().chunks
    lost, damaged = chunks["page0.md"][0].vector_id, chunks["page1.md"][1].vector_id
    good = index.vector_store.get([lost, damaged])
    index.vector_store.delete([lost])
    index.vector_store.add([damaged], np.full((1, 64), 0.5, dtype=np.float32))
    index.vector_store.add(["nobody"], np.ones((1, 64), dtype=np.float32) / 8)
    check = index.verify()
    assert check.missing == ("page0.md", "page1.md")
    assert check.surplus == 1
    assert not check.is_sound
    assert "repair()" in str(check)
    embedder = index.embedder.inner
    assert isinstance(embedder, CountingEmbedder)
    embedder.embedded.clear()
    after = index.repair()
    assert after.is_current, str(after)
    assert len(embedder.embedded) == 2
    assert state(index) == before
    repaired = index.vector_store.get([lost, damaged])
    for id_, vector in good.items():
        assert np.allclose(repaired[id_], vector, atol=1e-6)


def test_a_vector_database_that_cannot_be_opened_is_rebuilt(tmp_path: Path, index: Index) -> None:
    before = state(index)
    index.vector_store.refresh()
    (tmp_path / "index" / "vectors" / "chroma.sqlite3").write_bytes(b"no database " * 1_000)
    again = index_at(tmp_path / "index")
    with pytest.raises(IndexCorruptError, match="repair"):
        again.verify()
    assert again.repair().is_current
    assert state(again) == before


def test_a_missing_vector_database_is_rebuilt(tmp_path: Path, index: Index) -> None:
    before = state(index)
    index.vector_store.refresh()
    shutil.rmtree(tmp_path / "index" / "vectors")
    again = index_at(tmp_path / "index")
    assert len(again.verify().missing) == 7
    assert again.repair().is_sound
    assert state(again) == before


def test_unreadable_records_are_reported(tmp_path: Path, index: Index) -> None:
    (tmp_path / "index" / "index.db").write_bytes(b"no database " * 1_000)
    with pytest.raises(IndexCorruptError, match="rebuild"):
        index_at(tmp_path / "index").verify()


def test_changed_and_deleted_files_are_reported(index: Index, folder: Path) -> None:  # noqa: F811
    write(folder / "page0.md", 77)
    (folder / "page1.md").unlink()
    (folder / "sub" / "deep.md").chmod(0o600)  # no change
    check = index.verify()
    assert (check.changed, check.gone) == (("page0.md",), ("page1.md",))
    assert check.is_sound
    assert not check.is_current
    assert index.repair().changed == ("page0.md",)  # update() handles changed files
    index.update(folder)
    assert index.verify().is_current


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_names_that_are_not_utf8_are_found_again(index: Index, folder: Path) -> None:  # noqa: F811
    write(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.md")), 8)
    index.update(folder)
    assert index.verify().is_current


def test_vectors_of_an_interrupted_run_are_reported(index: Index) -> None:
    index.records.reserve(["half", "done"])
    check = index.verify()
    assert (check.interrupted, check.is_sound, check.is_current) == (2, True, False)
    assert index.repair().is_current


def test_verifying_an_empty_index_raises(tmp_path: Path) -> None:
    with pytest.raises(EmptyIndexError):
        index_at(tmp_path / "none").verify()


def test_a_folder_that_is_gone_can_be_forgotten(tmp_path: Path, index: Index, folder: Path) -> None:  # noqa: F811
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "x.md", 500)
    index.update(tmp_path / "other")
    shutil.rmtree(tmp_path / "other")
    check = index.verify()
    assert check.unreachable == (str(tmp_path / "other"),)
    assert "forget" in str(check)
    with pytest.raises(InputError, match="other"):
        index.forget(tmp_path / "elsewhere")
    assert index.forget(tmp_path / "other") == 1
    assert index.verify().is_current
    assert len(state(index)) == 7


def test_a_folder_that_was_moved_is_the_same_folder(tmp_path: Path, index: Index, folder: Path) -> None:  # noqa: F811
    before = state(index)
    moved = folder.rename(tmp_path / "elsewhere")
    write(moved / "page0.md", 66)
    embedder = index.embedder.inner
    assert isinstance(embedder, CountingEmbedder)
    embedder.embedded.clear()
    report = index.update(moved)
    assert (report.added, report.updated, report.unchanged, report.deleted) == (0, 1, 6, 0)
    assert all("66" in text for text in embedder.embedded)
    assert state(index).keys() == before.keys()
    document = index.document("page1.md")
    assert document is not None
    assert document.source == str(moved / "page1.md")
    assert index.verify().is_current


def test_a_folder_with_some_of_the_files_is_not_moved(tmp_path: Path, index: Index, folder: Path) -> None:  # noqa: F811
    (tmp_path / "other").mkdir()
    for n in range(3):
        write(tmp_path / "other" / f"page{n}.md", n + 40)
    shutil.rmtree(folder)
    report = index.update(tmp_path / "other")  # three of seven: it may come back
    assert (report.added, report.deleted) == (3, 0)
    assert len(state(index)) == 10
