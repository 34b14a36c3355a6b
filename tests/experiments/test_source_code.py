"""Static dependencies: everything that a definition refers to, and nothing else."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ragkit.experiments import source_code
from ragkit.experiments.source_code import ALL, Dependencies, dependencies

Tree = Callable[..., None]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tree]:
    """Write modules of a fake ragkit: ``tree(a="...", b__c="...")`` creates ragkit.a and ragkit.b.c."""
    monkeypatch.setattr(source_code, "_ROOT", tmp_path / "ragkit")

    def forget() -> None:
        for cached in (source_code.dependencies, source_code._source, source_code._read):
            cached.cache_clear()

    def write(**modules: str) -> None:
        forget()
        for name, text in modules.items():
            path = (tmp_path / "ragkit").joinpath(*name.split("__")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text), encoding="utf-8")

    yield write
    forget()


def of(name: str = "f", module: str = "a") -> Dependencies:
    return dependencies(f"ragkit.{module}", name)


BEFORE = """
    from __future__ import annotations
    import functools
    import numpy as np
    import yaml
    from typing import TYPE_CHECKING
    from ragkit.b import Base, helper
    from ragkit.c import d as part
    from ragkit import errors
    if TYPE_CHECKING:
        from ragkit.e import Given
        import torch

    LIMIT = 10
    TABLE = {}
    TABLE["x"] = 1
    UNUSED = 1
    try:
        import lxml
    except ImportError:
        lxml = None

    def decorator(function):
        return function

    @decorator
    def f(given: Given, other: torch.Tensor, n: int = LIMIT) -> int:
        "Do it."
        if n > len(TABLE):
            raise errors.InputError("no")
        return helper(given.read()) + part.g() + np.sum(given.size) + K().used()

    class K(Base):
        flag = True
        def used(self):
            return self.inner()
        def inner(self):
            return 1
        def unused(self):
            return lxml
        def _repr_html_(self):
            return yaml.dump(1)

    def lazy():
        import bm25s
        from ragkit.b import helper as h
        return h(bm25s)

    def unrelated():
        import requests
        return requests

    def dynamic(name):
        return globals()[name]

    def by_attribute(given: Given, name):
        return getattr(given, name)()

    def by_name(given: Given):
        return getattr(given, "hidden")()

    def whole(x):
        return x(part)

    def loaded():
        import importlib
        return importlib.import_module("ragkit.c.d").g

    def calls_itself(n):
        return n and calls_itself(n - 1)

    @functools.singledispatch
    def dispatched(x):
        return 0

    @dispatched.register
    def _(x: int):
        return 7

    for number in range(3):
        TABLE_TOO = {number: 8}

    def tabled():
        return TABLE_TOO
"""
OTHERS = {
    "b": """
        SHIFT = 1
        def helper(x):
            return x + SHIFT
        class Base:
            def inherited(self):
                return SHIFT
        def beside():
            return 1
    """,
    "c__d": """
        def g():
            return 1
        def h():
            return 2
    """,
    "e": """
        class Given:
            size = 3
            def read(self):
                return 1
            def hidden(self):
                return 2
    """,
    "errors": """
        class InputError(Exception):
            def __init__(self, text):
                self.text = text
    """,
}


@pytest.mark.parametrize(
    ("name", "module", "old", "new"),
    [
        ("f", "a", "return helper(given", "return 2 * helper(given"),
        ("f", "a", "LIMIT = 10", "LIMIT = 11"),
        ("f", "a", 'TABLE["x"] = 1', 'TABLE["x"] = 2'),
        ("f", "a", "return function", "return lambda *a: 1"),  # a decorator
        ("f", "b", "x + SHIFT", "x - SHIFT"),
        ("f", "b", "SHIFT = 1", "SHIFT = 2"),  # indirectly
        ("f", "c__d", "return 1", "return 3"),  # by attribute of a module
        ("f", "e", "return 1", "return 4"),  # through the annotation of an argument
        ("f", "e", "size = 3", "size = 4"),
        ("f", "a", "return self.inner()", "return -self.inner()"),  # a method
        ("f", "a", "return 1", "return 5"),  # which another method calls
        ("f", "a", "flag = True", "flag = False"),
        ("K", "b", "return SHIFT", "return -SHIFT"),  # a base class
        ("K", "a", "return lxml", "return not lxml"),  # all methods of the requested class count
        ("K", "a", "lxml = None", "lxml = False"),
        ("lazy", "b", "x + SHIFT", "x - SHIFT"),  # imported in the function
        ("dynamic", "a", "UNUSED = 1", "UNUSED = 2"),  # globals() may mean anything
        ("dynamic", "b", "x + SHIFT", "x - SHIFT"),
        ("by_attribute", "e", "return 2", "return 3"),  # so may a computed attribute name
        ("by_name", "e", "return 2", "return 3"),
        ("whole", "c__d", "return 2", "return 3"),
        ("loaded", "c__d", "return 2", "return 3"),
        ("dispatched", "a", "return 7", "return 8"),
        ("dispatched", "a", "x: int", "x: str"),
        ("tabled", "a", "number: 8", "number: 9"),
        ("tabled", "a", "range(3)", "range(4)"),
        ("calls_itself", "a", "calls_itself(n - 1)", "calls_itself(n - 2)"),
    ],
)
def test_changes_of_referenced_code_count(tree: Tree, name: str, module: str, old: str, new: str) -> None:
    modules = {"a": BEFORE, **OTHERS}
    tree(**modules)
    before = of(name)
    assert old in modules[module]
    tree(**(modules | {module: modules[module].replace(old, new)}))
    assert of(name).digest != before.digest


@pytest.mark.parametrize(
    ("module", "old", "new"),
    [
        ("a", "Do it.", "Do it well."),
        ("a", "    def decorator", "\n    # a comment\n    def decorator"),
        ("a", "UNUSED = 1", "UNUSED = 2"),
        ("a", "return requests", "return 1"),
        ("a", "return lxml", "return not lxml"),  # an unused method
        ("a", "yaml.dump(1)", "yaml.dump(2)"),  # a display method
        ("a", "import bm25s", "import bs4 as bm25s"),
        ("b", "def beside():\n            return 1", "def beside():\n            return 2"),
        ("b", "return SHIFT", "return -SHIFT"),  # an unused method of a base class
        ("c__d", "return 2", "return 3"),
        ("e", "return 2", "return 3"),
        ("errors", "self.text = text", "self.text = text.upper()"),
    ],
)
def test_other_changes_do_not_count(tree: Tree, module: str, old: str, new: str) -> None:
    modules = {"a": BEFORE, **OTHERS}
    tree(**modules)
    before = of()
    assert old in modules[module]
    tree(**(modules | {module: modules[module].replace(old, new)}))
    assert of() == before


def test_packages_are_those_that_the_source_uses(tree: Tree) -> None:
    tree(a=BEFORE, **OTHERS)
    assert of("f").packages == {"numpy"}  # not torch, which only an annotation names
    assert of("K").packages == {"lxml"}
    assert of("lazy").packages == {"bm25s"}
    assert of("unrelated").packages == {"requests"}
    assert of(ALL).packages == {"numpy", "lxml", "bm25s", "requests", "yaml"}


def test_public_names_of_a_package_resolve_to_their_modules(tree: Tree, tmp_path: Path) -> None:
    tree(a="from ragkit.b import helper\ndef f():\n    return helper(1)", b__c="def helper(x):\n    return x")
    (tmp_path / "ragkit" / "b" / "__init__.pyi").write_text("from .c import helper as helper\n", encoding="utf-8")
    before = of()
    tree(b__c="def helper(x):\n    return -x")
    assert of() != before


def test_the_source_of_ragkit(tree: Tree, tmp_path: Path) -> None:
    """Two copies have the same digests; BM25 depends on the tokenizer, and Dense does not."""
    real = Path(source_code.__file__).parents[1]
    places = [("ragkit.retrieval.retrievers", name) for name in ("BM25", "Dense")]
    shutil.copytree(real, tmp_path / "ragkit", dirs_exist_ok=True)
    tree()
    bm25, dense = (dependencies(*place) for place in places)
    lexical = tmp_path / "ragkit" / "retrieval" / "lexical.py"
    text = lexical.read_text(encoding="utf-8")
    documented = re.sub(r'"""(?=\w)', '"""Another docstring. ', text)
    assert documented != text
    lexical.write_text(documented + "# a comment\n")
    tree()
    assert [dependencies(*place) for place in places] == [bm25, dense]
    lexical.write_text(text.replace("k1: float = 1.2", "k1: float = 1.3"))
    tree()
    assert dependencies(*places[0]) != bm25
    assert dependencies(*places[1]) == dense
