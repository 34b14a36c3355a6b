"""The pages under docs/ match the code, and their links are valid."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("*.md")])


def first_column(page: Path) -> set[str]:
    """Return the first cell of every table row of a page, without backticks."""
    text = page.read_text(encoding="utf-8")
    return {cell.strip().strip("`") for cell in re.findall(r"^\|([^|]+)\|", text, re.MULTILINE)}


def test_architecture_names_every_package() -> None:
    named = {name for cell in first_column(DOCS / "architecture.md") for name in re.findall(r"\w+", cell)}
    packages = {path.parent.name for path in (ROOT / "ragkit").glob("*/__init__.py")}
    server = ROOT / "server_extension" / "ragkit_server"
    parts = {path.parent.name for path in server.glob("*/__init__.py")} | {path.stem for path in server.glob("*.py")}
    sources = {path.parent.name for path in (ROOT / "frontend" / "src").glob("*/*.ts")}
    assert packages | parts | sources <= named | {"__init__"}


def test_architecture_shows_the_layers_of_the_packages() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = [set(re.findall(r"\w+", layer)) for layer in contracts[0]["layers"]]
    drawings = re.findall(r"^```\n(.*?)^```", (DOCS / "architecture.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    drawn = [set(re.findall(r"\w+", line)) for line in drawings[1].splitlines()]
    packages = {path.parent.name for path in (ROOT / "ragkit").glob("*/__init__.py")} | {"widgets"}
    assert [layer & packages for layer in drawn if layer & packages] == [
        under & packages for under in layers if under & packages
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_files_that_are_mentioned_exist(page: Path) -> None:
    folders = "benchmarks|data|docs|frontend|notebooks|ragkit|ragkit_server|server_extension|tests"
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text(encoding="utf-8"))
    places = (ROOT, ROOT / "server_extension")
    assert [path for path in named if not any((place / path).exists() for place in places)] == []


def test_dependencies_gives_every_dependency_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra in project["optional-dependencies"].values() for line in extra]
    names = {re.split(r"[\[<>=!~]", line)[0] for line in [*project["dependencies"], *extras]} - {project["name"]}
    assert first_column(DOCS / "dependencies.md") - {"package", "---"} == names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_are_valid(page: Path) -> None:
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
    """Return GitHub's anchors for the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
