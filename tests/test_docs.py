"""The pages under docs/ name what there is, and their links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])


def first_column(page: Path) -> set[str]:
    """The first cell of every table row of a page, without its code marks."""
    text = page.read_text(encoding="utf-8")
    return {cell.strip().strip("`") for cell in re.findall(r"^\|([^|]+)\|", text, re.MULTILINE)}


def test_architecture_names_every_module() -> None:
    modules = [*(ROOT / "ragkit").glob("*.py"), *(ROOT / "server_extension" / "ragkit_server").glob("*.py")]
    assert {path.stem for path in modules} - {"__init__"} - first_column(DOCS / "architecture.md") == set()


def test_dependencies_gives_every_dependency_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    names = {re.split(r"[\[<>=!~]", line)[0] for line in [*project["dependencies"], *extras]} - {project["name"]}
    assert first_column(DOCS / "dependencies.md") - {"package", "---"} == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    broken = []
    for target in targets:
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        other = page.parent / path if path else page
        if not other.exists() or (anchor and anchor not in anchors(other)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
