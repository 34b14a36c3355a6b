from __future__ import annotations

import os
import time
import tracemalloc
from pathlib import Path

import pytest

from ragkit.documents.document import Found, SourceFile
from ragkit.documents.filetypes import SUFFIXES, kind_of
from ragkit.documents.sources import find_sources
from ragkit.errors import NoDocumentsError, SourceNotFoundError


def ids(found: Found) -> list[str]:
    return [source.id for source in found.sources]


def reasons(found: Found) -> dict[str, str]:
    return {Path(failure.source).name: failure.reason for failure in found.failures}


def test_a_folder_is_walked_in_order(tmp_path: Path) -> None:
    for name in ("b.md", "a/z.TXT", "a/b/c.html", ".hidden.md", ".git/x.md", "image.png", "node_modules/readme.md"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("text")
    found = find_sources(tmp_path)
    assert ids(found) == ["a/b/c.html", "a/z.TXT", "b.md"]
    assert found.failures == ()
    assert found.root == tmp_path.resolve()
    assert found.sources[0].size_bytes == 4
    assert not found.alone


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    found = find_sources(tmp_path / "a.md")
    assert ids(found) == ["a.md"]
    assert found.alone
    assert found.root == tmp_path.resolve()


def test_missing_and_unsupported_paths(tmp_path: Path) -> None:
    with pytest.raises(SourceNotFoundError, match="no file or folder"):
        find_sources(tmp_path / "missing")
    with pytest.raises(NoDocumentsError, match=r"\.md"):
        find_sources(tmp_path)
    (tmp_path / "image.png").write_bytes(b"")
    with pytest.raises(NoDocumentsError):
        find_sources(tmp_path / "image.png")
    with pytest.raises(SourceNotFoundError):
        find_sources("nul\0.md")
    (tmp_path / "loop.md").symlink_to(tmp_path / "loop.md")
    with pytest.raises(SourceNotFoundError):
        find_sources(tmp_path / "loop.md")


def test_a_folder_with_a_documents_name_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "x.md").mkdir()
    (tmp_path / "x.md" / "y.md").write_text("text")
    assert ids(find_sources(tmp_path)) == ["x.md/y.md"]
    assert ids(find_sources(tmp_path / "x.md")) == ["y.md"]


def test_links(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (root / "sub").mkdir(parents=True)
    (outside / "secret.md").write_text("secret")
    (root / "sub" / "real.md").write_text("text")
    (root / ".versions").mkdir()
    (root / ".versions" / "3").write_text("text")
    (root / "copy.md").symlink_to(root / "sub" / "real.md")  # the same document, listed once
    (root / "current.md").symlink_to(root / ".versions" / "3")
    (root / "round").symlink_to(root)
    (root / "round.md").symlink_to(root)
    (root / "dangling.md").symlink_to(root / "nothing")
    (root / "out.md").symlink_to(outside / "secret.md")
    (root / "folder").symlink_to(outside)
    (root / "loop.md").symlink_to(root / "loop.md")
    found = find_sources(root)
    assert ids(found) == ["current.md", "sub/real.md"]
    failed = reasons(found)
    assert set(failed) == {"dangling.md", "folder", "loop.md", "out.md"}
    assert "leads nowhere" in failed["dangling.md"]
    assert "leads nowhere" in failed["loop.md"]
    assert "out of the folder" in failed["out.md"]
    assert "out of the folder" in failed["folder"]
    # A link that is given as the path may lead anywhere.
    assert ids(find_sources(root / "out.md")) == ["out.md"]


def test_a_link_to_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("text")
    (tmp_path / "link").symlink_to(tmp_path / "docs")
    assert ids(find_sources(tmp_path / "link")) == ["a.md"]


@pytest.mark.parametrize("alone", [False, True])
def test_too_large(tmp_path: Path, alone: bool) -> None:
    (tmp_path / "big.md").write_bytes(b"x" * 2000)
    found = find_sources(tmp_path / "big.md" if alone else tmp_path, max_bytes=1999)
    assert found.sources == ()
    assert "too large" in reasons(found)["big.md"]
    assert ids(find_sources(tmp_path, max_bytes=2000)) == ["big.md"]


@pytest.mark.parametrize("alone", [False, True])
def test_a_pipe_does_not_block(tmp_path: Path, alone: bool) -> None:
    os.mkfifo(tmp_path / "pipe.md")
    found = find_sources(tmp_path / "pipe.md" if alone else tmp_path)
    assert reasons(found) == {"pipe.md": "not a regular file"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    (tmp_path / "closed").mkdir(mode=0)
    found = find_sources(tmp_path)
    assert ids(found) == ["a.md"]
    assert "cannot be read" in reasons(found)["closed"]


def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.md")).write_text("text")
    (source,) = find_sources(tmp_path).sources
    assert source.id == "caf\\xe9.md"
    assert source.where.encode().endswith(rb"caf\xe9.md")


def test_a_very_deep_folder(tmp_path: Path) -> None:
    """Deeper than Python's stack, which `os.walk` uses; as are the functions that would make and remove it at once."""
    folders = [tmp_path / "a"]
    for _ in range(1200):
        folders.append(folders[-1] / "a")
    for folder in folders:
        folder.mkdir()
    file = folders[-1] / "x.md"
    file.write_text("text")
    try:
        assert len(ids(find_sources(tmp_path))) == 1
    finally:
        file.unlink()
        for folder in reversed(folders):
            folder.rmdir()


def skipped(found: Found) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {what.reason.partition(":")[0]: (what.count, what.examples) for what in found.skipped}


def test_what_is_skipped_is_said(tmp_path: Path) -> None:
    names = [
        "a.md",
        ".hidden.md",
        ".git/x.md",
        "image.png",
        "film.mp4",
        "photo.PNG",
        "node_modules/x.md",
        "README",
        "notes",
    ]
    for name in [*names, *(f"x{n}.bak" for n in range(9))]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    found = find_sources(tmp_path)
    assert ids(found) == ["README", "a.md"]
    assert {what.reason: what.count for what in found.skipped} == {
        "hidden: the name begins with a dot": 2,
        "installed packages or caches": 1,
        "no file ending": 1,
        "not of a kind that ragkit reads: .bak": 9,
        "not of a kind that ragkit reads: .mp4": 1,
        "not of a kind that ragkit reads: .png": 2,
    }
    assert skipped(found)["installed packages or caches"] == (1, ("node_modules/",))
    assert len(found.skipped[0].examples) == 5


def test_the_number_of_reasons_is_limited(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text")
    for number in range(1_000):
        (tmp_path / f"x.{number}").write_text("")
    found = find_sources(tmp_path)
    assert len(found.skipped) <= 51
    assert sum(what.count for what in found.skipped) == 1_000


def test_a_file_given_by_path_may_be_hidden_or_ignored(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*\n")
    for name in (".hidden.md", "ignored.md", "LICENSE"):
        (tmp_path / name).write_text("text")
        assert ids(find_sources(tmp_path / name)) == [name]


def test_files_of_rows_may_be_larger(tmp_path: Path) -> None:
    """A file that is read row by row may be larger than one that is read at once."""
    for name in ("a.jsonl", "b.csv", "c.md"):
        (tmp_path / name).write_bytes(b"x" * 5_000)
    found = find_sources(tmp_path, max_bytes=1_000)
    assert ids(found) == ["a.jsonl", "b.csv"]
    assert "too large" in reasons(found)["c.md"]
    assert "too large" in reasons(find_sources(tmp_path, max_bytes=200))["a.jsonl"]


def test_only_the_corpus_of_a_beir_folder_is_indexed(tmp_path: Path) -> None:
    (tmp_path / "qrels").mkdir()
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "README.md"):
        (tmp_path / name).write_text("{}")
    found = find_sources(tmp_path)
    assert ids(found) == ["README.md", "corpus.jsonl"]
    assert sum(what.count for what in found.skipped) == 2
    (tmp_path / "corpus.jsonl").unlink()
    assert ids(find_sources(tmp_path)) == ["README.md", "qrels/test.tsv", "queries.jsonl"]


def test_five_thousand_files_are_found_quickly(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("".join(f"*.x{n}\n/a{n}/**/b\n" for n in range(40)))
    for number in range(5_000):
        folder = tmp_path / str(number // 100)
        folder.mkdir(exist_ok=True)
        (folder / f"file-{number}.md").touch()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        assert len(find_sources(tmp_path).sources) == 5_000
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.5  # 0.06 on a laptop; the margin is for a busy machine


def test_a_hundred_thousand_sources_need_little_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        kept = [
            SourceFile(root=tmp_path, name=f"some/folder/file-{n:06}.md", size_bytes=1_000 + n) for n in range(100_000)
        ]
        size, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(kept) == 100_000
    assert size < 25e6


def test_kinds() -> None:
    assert {".md", ".txt", ".html", ".pdf", ".jsonl", ".ipynb", ".docx", ".csv", ".epub", ".py"} <= set(SUFFIXES)
    assert kind_of("A.PDF") == ".pdf"
    assert kind_of("Makefile") == ".txt"
    assert kind_of(".md") is None
    assert kind_of("a.exe") is None
