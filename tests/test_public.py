"""Public names: the `__init__.pyi` of ragkit and of each package list it, and everything else may change."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt

import ragkit

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    f"ragkit.{path.parent.name}" if path.parent.name != "ragkit" else "ragkit": path
    for path in [ROOT / "ragkit" / "__init__.pyi", *sorted((ROOT / "ragkit").glob("*/__init__.pyi"))]
}
# Single modules that users import from, beside packages; their `__all__` is public.
MODULES = ("ragkit.errors", "ragkit.widgets", "ragkit.live.messages")


class Listed(NamedTuple):
    """A line of an ``__init__.pyi``."""

    name: str
    module: str
    """The module that defines it, in full."""


def listed(package: str) -> list[Listed]:
    found = []
    for node in ast.parse(PACKAGES[package].read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 1, "lazy_loader reads relative imports"
            # `from . import messages` lists a module.
            within = f"{package}.{node.module}" if node.module else package
            found += [Listed(alias.name, within) for alias in node.names]
            assert all(alias.asname == alias.name for alias in node.names), "without `as`, mypy takes it for private"
    return found


def defined_in(module: str) -> set[str]:
    """The names that a module defines itself, at its top level."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names


def test_every_package_lists_its_public_names() -> None:
    packages = {f"ragkit.{path.parent.name}" for path in (ROOT / "ragkit").glob("*/__init__.py")}
    assert packages | {"ragkit"} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_the_list_is_sorted_and_complete(package: str) -> None:
    module = importlib.import_module(package)
    names = sorted({name for name, _ in listed(package)})
    assert list(module.__all__) == names
    assert sorted(dir(module)) == names
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        module.nonsense  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_is_listed_where_it_is_defined(package: str) -> None:
    for name, module in listed(package):
        if module == package:
            assert (ROOT / package.replace(".", "/") / name).with_suffix(".py").exists() or f"ragkit.{name}" in PACKAGES
            continue
        assert name in defined_in(module), f"{module} does not define {name}"
        home = ".".join(module.split(".")[:2])
        if home in PACKAGES and package == "ragkit":
            assert Listed(name, module) in listed(home), f"{home} does not list {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    for name, _ in listed(package):
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            text = value.__doc__ or ""
            assert text, f"{package}.{name} has no docstring"
            assert not text.startswith(f"{name}("), f"{package}.{name} has only what dataclass writes"


@pytest.mark.parametrize(
    "path",
    [*(ROOT / "ragkit").rglob("*.py"), *(ROOT / "server_extension" / "ragkit_server").rglob("*.py")],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_modules_import_from_modules(path: Path) -> None:
    """Not from packages, so that packages can list what is public without circles, and keys depend on one file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module in PACKAGES:
            folder = PACKAGES[node.module].parent
            for alias in node.names:
                is_module = (folder / f"{alias.name}.py").is_file() or (folder / alias.name / "__init__.py").is_file()
                assert is_module or alias.name == "__version__", f"line {node.lineno}: {ast.unparse(node)}"


def code_of(path: Path) -> Iterator[str]:
    """Yield the Python code in a page or a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        for cell in json.loads(text)["cells"]:
            if cell["cell_type"] == "code":
                yield re.sub(r"^[%!].*$", "", "".join(cell["source"]), flags=re.MULTILINE)
    elif path.suffix == ".md":
        yield from (token.content for token in MarkdownIt().parse(text) if token.info == "python")
    else:
        yield text


@pytest.mark.parametrize(
    "path",
    [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "data").rglob("*.md")),
        *sorted((ROOT / "notebooks").glob("*.ipynb")),
        ROOT / "docs" / "site_pages.py",
    ],
    ids=lambda path: path.name,
)
def test_documented_code_uses_public_names(path: Path) -> None:
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    for code in code_of(path):
        for node in ast.walk(compile(code, path.name, "exec", flags)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "ragkit":
                assert node.module in PACKAGES or node.module in MODULES, f"{node.module} is not public"
                public = importlib.import_module(node.module).__all__
                assert {alias.name for alias in node.names} <= {*public}, ast.unparse(node)


MENTION = re.compile(r"`(ragkit(?:_server)?(?:\.\w+)+)`")


@pytest.mark.parametrize(
    "path",
    [
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        *sorted((ROOT / "ragkit").rglob("*.py")),
        *sorted((ROOT / "server_extension").rglob("*.py")),
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_mentioned_names_exist(path: Path) -> None:
    """Names in backticks, such as `ragkit.indexing.Index.update`, exist, also after a rename."""
    if path.name == "CHANGELOG.md":
        return  # it mentions old names
    for name in set(MENTION.findall(path.read_text(encoding="utf-8"))):
        assert exists(name), name


def exists(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            fields = {*getattr(value, "__annotations__", {}), *getattr(value, "__struct_fields__", ())}
            if part in fields:
                return True
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


def test_the_version_is_that_of_the_distribution() -> None:
    pyproject = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{ragkit.__version__}"' in pyproject
