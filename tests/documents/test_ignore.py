from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragkit.documents.ignore import Rules, rules_above, translate, with_rules_of
from ragkit.documents.sources import find_sources

NAMES = ("a", "b", "ab", "a.b", "b-a", "a b", "A", "]")
FILES = [
    *NAMES,
    *(f"{folder}/{name}" for folder in ("d", "ba") for name in NAMES),
    *(f"d/ba/{name}" for name in NAMES),
    "d/ba/d/a", "d/ba/d/b", "ba/d/ba/a",
]  # fmt: skip


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("git") is None:
        pytest.skip("git is not installed; the test compares with it")
    root = tmp_path_factory.mktemp("repository")
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    git(root, "init", "--quiet")
    return root


def git(root: Path, *arguments: str) -> str:
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    completed = subprocess.run(
        ["git", *arguments], cwd=root, env=environment, capture_output=True, check=True, timeout=60
    )
    return os.fsdecode(completed.stdout)


def included_by_git(root: Path) -> set[str]:
    return {name for name in git(root, "ls-files", "--others", "--exclude-standard", "-z").split("\0") if name}


def taken(root: Path, rules: Rules | None, base: str = "") -> set[str]:
    found: set[str] = set()
    rules = with_rules_of(root / base, base, rules)
    for entry in os.scandir(root / base):
        path = base + entry.name
        if entry.name == ".git" or (rules is not None and rules.ignores(path, is_folder=entry.is_dir())):
            continue
        found |= taken(root, rules, path + "/") if entry.is_dir() else {path}
    return found


pieces = st.sampled_from(
    ["a", "b", "d", "ba", "*", "**", "?", "/", "/**/", "[ab]", "[!a]", "[a-c]", "[]]", "[", "]", "\\", "\\ ", " ", "!"]
    + ["#", ".", "-", "[^b]", "[[:upper:]]", "[b-a]", "[a\\-z]", "*a", "b*"]
)
lines = st.one_of(
    st.lists(pieces, min_size=1, max_size=6).map("".join), st.sampled_from(["*", "!a", "/d/*", "!/d/ba/"])
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(top=st.lists(lines, max_size=4), inner=st.lists(lines, max_size=2), ending=st.sampled_from(["\n", "\r\n"]))
def test_git_agrees(repository: Path, top: list[str], inner: list[str], ending: str) -> None:
    (repository / ".gitignore").write_bytes(ending.join([*top, ""]).encode())
    (repository / "d" / ".gitignore").write_bytes(ending.join([*inner, ""]).encode())
    assert taken(repository, None) == included_by_git(repository)


@pytest.mark.parametrize(
    "content",
    [
        "*.b\n!a.b\n", "/a\n", "d/\n", "d\n!d/a\n", "**/ba\n", "d/**\n", "d/**/a\n", "**\n", "*\n!*/\n!a\n", "a b\n",
        "# a\n\\#\n", "a\\ b \n", "\\!a\n", "*a*b*\n", "???\n", "[!a-z]\n", "\xef\xbb\xbfa\n", "a//b\n", "/\n",
        "//\n", "d/*/\n",
    ],
)  # fmt: skip
def test_git_agrees_on_the_manuals_examples(repository: Path, content: str) -> None:
    (repository / ".gitignore").write_bytes(content.encode("latin-1" if content.startswith("\xef") else "utf-8"))
    (repository / "d" / ".gitignore").unlink(missing_ok=True)
    assert taken(repository, None) == included_by_git(repository)


def test_lines_that_are_not_patterns() -> None:
    for line in ("", "# comment", "   ", "/", "!", "a\\", "[a"):
        assert translate(line) is None


def test_a_question_mark_matches_a_character(tmp_path: Path) -> None:
    """In Git it matches a byte, which is half an é in UTF-8."""
    (tmp_path / ".gitignore").write_text("?.md\nété.txt\n", encoding="utf-8")
    for name in ("é.md", "été.txt", "été.md"):
        (tmp_path / name).write_text("text")
    assert [s.id for s in find_sources(tmp_path).sources] == ["été.md"]


def test_a_hostile_pattern_is_fast(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*a" * 300 + "b\n" + "**/a*/" * 100 + "b\n")
    rules = with_rules_of(tmp_path, "", None)
    assert rules is not None
    started = time.monotonic()
    assert not rules.ignores("a" * 250, is_folder=False)
    assert not rules.ignores("/".join(["a" * 20] * 100), is_folder=False)
    assert time.monotonic() - started < 5


def test_only_regular_ignore_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "rules").write_text("*.md\n")
    (tmp_path / ".gitignore").symlink_to(tmp_path / "rules")
    assert with_rules_of(tmp_path, "", None) is None
    (tmp_path / ".gitignore").unlink()
    os.mkfifo(tmp_path / ".gitignore")  # opening it would block
    assert with_rules_of(tmp_path, "", None) is None


def test_rules_of_the_repository_above(tmp_path: Path) -> None:
    docs = tmp_path / "sub" / "docs"
    (docs / "build").mkdir(parents=True)
    for name in ("a.md", "b.txt", "build/c.md", "private.md"):
        (docs / name).write_text("text")
    (tmp_path / ".gitignore").write_text("*.txt\n/sub/docs/build/\n")
    assert {s.id for s in find_sources(docs).sources} == {"a.md", "b.txt", "build/c.md", "private.md"}
    (tmp_path / ".git" / "info").mkdir(parents=True)
    (tmp_path / ".git" / "info" / "exclude").write_text("private.md\n")
    found = find_sources(docs)
    assert {s.id for s in found.sources} == {"a.md"}
    (ignored,) = (skipped for skipped in found.skipped if "rules" in skipped.reason)
    assert ignored.count == 3
    assert ignored.examples == ("b.txt", "build/", "private.md")


def test_an_ignored_folder_given_by_path_is_read(tmp_path: Path) -> None:
    """A home directory may be a repository that ignores everything."""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".gitignore").write_text("*\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("text")
    assert rules_above(tmp_path / "docs") == (None, "")
    assert [s.id for s in find_sources(tmp_path / "docs").sources] == ["a.md"]


def test_ragkitignore_overrides_gitignore(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("*.csv\nold/\n")
    (tmp_path / ".ragkitignore").write_text("!wanted.csv\n*.py\n")
    (tmp_path / "old").mkdir()
    for name in ("a.csv", "wanted.csv", "x.py", "old/y.md", "z.md"):
        (tmp_path / name).write_text("text")
    assert [s.id for s in find_sources(tmp_path).sources] == ["wanted.csv", "z.md"]
