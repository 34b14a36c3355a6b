"""Pages that `mkdocs build` adds to docs/: README, CONTRIBUTING and others, and the API reference.

The reference has a page for each package, with the names in its ``__init__.pyi`` and their docstrings. A link to a file
outside docs/, such as a notebook or a source file, is redirected to a copy of that file in the site.
"""

from __future__ import annotations

import ast
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
ROOT_PAGES = {
    "README.md": "index.md",
    "README.fr.md": "fr.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
PACKAGES = (
    "documents", "embedding", "chunking", "indexing", "llm", "retrieval", "engine", "live", "evaluation", "experiments",
    "runs",
)  # fmt: skip
SERVER = ("ragkit_server.app.RagkitApp", "ragkit_server.hub.manager.WebSocketManager")
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """List the pages of the reference in the navigation."""
    for item in config.nav or ():
        if "API reference" in item:
            item["API reference"] = list(reference())
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files that are not in docs/."""
    for source, page in ROOT_PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page, text in reference().items():
        files.append(File.generated(config, page, content=text))
    for page in [*ROOT.glob("*.md"), *DOCS.glob("*.md")]:
        for path in linked_files(page):
            uri = f"source/{path.relative_to(ROOT).as_posix()}"
            if uri not in files.src_uris:
                files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Rewrite links to the paths of their files in the site."""
    uri = page.file.src_uri
    source = origin(uri)
    return markdown if source is None else LINK.sub(lambda match: relinked(match, source, uri), markdown)


def origin(uri: str) -> Path | None:
    """Return the file of a page; None for a generated page."""
    for name, page in ROOT_PAGES.items():
        if uri == page:
            return ROOT / name
    if uri.startswith("source/"):
        return ROOT / uri.removeprefix("source/")
    return DOCS / uri if (DOCS / uri).exists() else None


def relinked(match: re.Match[str], source: Path, uri: str) -> str:
    path, _, anchor = match["target"].partition("#")
    if not path or "://" in match["target"]:
        return match[0]
    file = (source.parent / path).resolve()
    if file.is_dir():  # a site has no directory listings
        return match["text"]
    if not file.exists():
        return match[0]
    target = posixpath.relpath(place(file), posixpath.dirname(uri) or ".")
    return f"{match['image']}[{match['text']}]({target}{'#' + anchor if anchor else ''})"


def place(file: Path) -> str:
    """Return the path of a project file in the site."""
    if file.is_relative_to(DOCS) and file.suffix != ".py":
        return file.relative_to(DOCS).as_posix()
    path = file.relative_to(ROOT).as_posix()
    return ROOT_PAGES.get(path, f"source/{path}")


def linked_files(page: Path) -> Iterator[Path]:
    """Yield the files outside docs/ that a page links to."""
    for match in LINK.finditer(page.read_text(encoding="utf-8")):
        target = match["target"].partition("#")[0]
        file = (page.parent / target).resolve()
        if "://" not in target and file.is_file() and place(file).startswith("source/"):
            yield file


def reference() -> dict[str, str]:
    """Return the pages of the API reference, in order."""
    missing = {path.parent.name for path in (ROOT / "ragkit").glob("*/__init__.pyi")} - {*PACKAGES, "cli"}
    if missing:
        raise PluginError(f"docs/site_pages.py: PACKAGES does not list {', '.join(sorted(missing))}")
    pages = {f"api/{package}.md": package_page(package) for package in PACKAGES}
    pages["api/space.md"] = module_page("ragkit.space", ["choose", "between"])
    pages["api/widgets.md"] = module_page("ragkit.widgets", ["Live"])
    pages["api/errors.md"] = module_page("ragkit.errors", error_names())
    pages["api/cli.md"] = command_line()
    pages["api/server.md"] = (
        f"# ragkit_server\n\n{docstring(ROOT / 'server_extension/ragkit_server/__init__.py')}\n\n{entries(SERVER)}"
    )
    return {"api/index.md": index_page(pages)} | pages


def index_page(pages: dict[str, str]) -> str:
    rows = []
    for page, text in pages.items():
        title, _, rest = text.removeprefix("# ").partition("\n")
        summary = rest.strip().partition("\n")[0]
        rows.append(f"| [{title}]({page.removeprefix('api/')}) | {summary} |")
    names = ",\n".join(f"[`{name}`][{module}.{name}]" for name, module in sorted(public("ragkit")))
    return (
        "# API reference\n\nWhat is listed here is public; everything else may change in any release.\n\n"
        "| module | contents |\n|---|---|\n" + "\n".join(rows) + "\n\n## Names in `ragkit` itself\n\n"
        "What a notebook usually needs can be imported from `ragkit`, the rest from its package:\n\n" + names + ".\n"
    )


def package_page(package: str) -> str:
    names = [f"{module}.{name}" for name, module in public(f"ragkit/{package}")]
    return f"# ragkit.{package}\n\n{docstring(ROOT / 'ragkit' / package / '__init__.py')}\n\n{entries(names)}"


def module_page(module: str, names: Iterable[str]) -> str:
    text = docstring(ROOT / f"{module.replace('.', '/')}.py")
    return f"# {module}\n\n{text}\n\n{entries(f'{module}.{name}' for name in names)}"


def entries(names: Iterable[str]) -> str:
    return "\n".join(f"::: {name}\n" for name in names)


def error_names() -> list[str]:
    tree = ast.parse((ROOT / "ragkit" / "errors.py").read_text(encoding="utf-8"))
    return [node.name for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]


def command_line() -> str:
    """Return the help of all commands as Markdown, generated by typer."""
    command = [sys.executable, "-m", "typer", "ragkit.cli.main", "utils", "docs", "--name", "ragkit"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    text = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return text.replace("# `ragkit`", "# The command line", 1)


def public(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the names that a package's ``__init__.pyi`` lists, each with the module that defines it."""
    tree = ast.parse((ROOT / folder / "__init__.pyi").read_text(encoding="utf-8"))
    for node in tree.body:
        if (
            isinstance(node, ast.ImportFrom) and node.module
        ):  # a module that is listed is described by a page of its own
            for alias in node.names:
                yield alias.name, f"{folder.replace('/', '.')}.{node.module}"


def docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
