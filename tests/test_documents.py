from __future__ import annotations

import os
from pathlib import Path

import pytest

from ragkit.documents import Document, Found, Mark, detect_language
from ragkit.errors import NoDocumentsError, SourceNotFoundError
from ragkit.loaders import SUFFIXES, find_sources


def ids(found: Found) -> list[str]:
    return [source.id for source in found.sources]


def reasons(found: Found) -> dict[str, str]:
    return {Path(failure.source).name: failure.reason for failure in found.failures}


def test_headings_and_pages_by_offset() -> None:
    marks = (
        Mark(0, "page", "1", 0),
        Mark(10, "heading", "A", 1),
        Mark(20, "heading", "A.1", 3),
        Mark(30, "page", "2", 0),
        Mark(40, "heading", "A.2", 2),
        Mark(50, "heading", "B", 1),
    )
    document = Document(id="x", text="." * 60, source="x", title="x", marks=marks)
    assert document.headings_at(9) == ()
    assert document.headings_at(10) == ("A",)
    assert document.headings_at(35) == ("A", "A.1")
    assert document.headings_at(45) == ("A", "A.2")  # level 2 is not above level 3
    assert document.headings_at(59) == ("B",)
    assert [document.page_at(offset) for offset in (0, 29, 30, 59)] == [1, 1, 2, 2]
    assert Document(id="x", text="", source="x", title="x").page_at(0) is None


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The quick brown fox jumps over the lazy dog and runs away.", "en"),
        ("Le renard brun saute par-dessus le chien paresseux et s'enfuit.", "fr"),
        ("Der schnelle braune Fuchs springt über den faulen Hund und läuft weg.", "de"),
        ("12 + 34 = 46", "und"),
        ("", "und"),
    ],
)
def test_language(text: str, language: str) -> None:
    assert detect_language(text) == language


def test_language_among_a_few() -> None:
    assert detect_language("le chat", among={"en", "fr"}) == "fr"
    assert detect_language("42", among={"en", "fr"}, default="en") == "en"


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


def test_nothing_there(tmp_path: Path) -> None:
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
    # Whoever names a link means what it leads to.
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


def test_suffixes() -> None:
    assert {".md", ".txt", ".html", ".pdf", ".jsonl", ".ipynb"} <= set(SUFFIXES)
