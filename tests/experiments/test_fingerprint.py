"""An identity changes whenever a result could, and only then."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from ragkit.chunking.structure import StructureChunker
from ragkit.chunking.token import TokenChunker
from ragkit.embedding.hashed import HashEmbedder
from ragkit.engine.extractive import ExtractiveLLM
from ragkit.errors import InputError
from ragkit.evaluation.judges import Faithfulness
from ragkit.experiments import fingerprint as module
from ragkit.experiments.fingerprint import identity
from ragkit.hashing import hash_values
from ragkit.llm.openai import OpenAILLM
from ragkit.retrieval.retrievers import BM25, Dense, Hybrid
from ragkit.retrieval.rewriting import HyDE


def defined(source: str, name: str) -> Any:
    """Return what a notebook cell defines."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), scope)
    return scope[name]


def same(a: Any, b: Any) -> bool:
    return hash_values(identity(a)) == hash_values(identity(b))


def test_equal_values_have_equal_identities() -> None:
    assert same(BM25(), BM25())
    assert not same(BM25(), BM25(depth=50))
    assert not same(BM25(), Dense())
    assert not same(Hybrid(dense_weight=0.5), Hybrid(dense_weight=0.25))
    assert same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert same({3, 1, 2}, {2, 3, 1})
    assert not same([1, 2], [2, 1])
    assert not same(1, 1.5)
    assert not same("1", 1)
    assert not same(HashEmbedder(), HashEmbedder(dimension=64))
    assert not same(TokenChunker(), TokenChunker(max_tokens=100))


def test_an_identity_is_the_same_in_another_process() -> None:
    program = "from ragkit.experiments.fingerprint import hash_values, identity; from ragkit.retrieval import Hybrid; "
    program += "print(hash_values(identity([Hybrid(), {'x', 'y'}])))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == hash_values(identity([Hybrid(), {"x", "y"}]))


FUNCTION = """
    WEIGHT = {weight}
    def helper(x):
        return x + {plus}
    def score(question, passages):
        "{docstring}"
        return helper(len(question)) * WEIGHT
"""


def test_a_notebook_function_includes_what_it_refers_to() -> None:
    def written(**changes: Any) -> FunctionType:
        values = {"weight": 2, "plus": 1, "docstring": "Score."} | changes
        return defined(FUNCTION.format(**values), "score")

    assert same(written(), written())
    assert same(written(), written(docstring="Score them."))
    assert not same(written(), written(weight=3))
    assert not same(written(), written(plus=2))


CLASS = """
    class Mine:
        name = "mine"
        factor = {factor}
        def __init__(self, k=3):
            self.k = k
        @property
        def double(self):
            return {double} * self.k
        @staticmethod
        def twice(x):
            return x * {twice}
        def scores(self, question, passages):
            return {{0: self.double * self.factor}}
"""


def test_a_notebook_class_includes_its_methods_and_state() -> None:
    def made(k: int = 3, **changes: Any) -> Any:
        return defined(CLASS.format(**({"factor": 1, "double": 2, "twice": 2} | changes)), "Mine")(k)

    assert same(made(), made())
    assert not same(made(), made(k=4))
    for change in ("factor", "double", "twice"):
        assert not same(made(), made(**{change: 7})), change


def test_a_class_may_inherit_from_a_ragkit_protocol() -> None:
    source = """
        from ragkit.retrieval import Retriever
        class Mine(Retriever):
            def scores(self, question, passages):
                return {{0: {n}}}
    """
    assert same(defined(source.format(n=1), "Mine")(), defined(source.format(n=1), "Mine")())
    assert not same(defined(source.format(n=1), "Mine")(), defined(source.format(n=2), "Mine")())


def test_a_recursive_function() -> None:
    source = "def down(n):\n    return n and down(n - {step})"
    assert same(defined(source.format(step=1), "down"), defined(source.format(step=1), "down"))
    assert not same(defined(source.format(step=1), "down"), defined(source.format(step=2), "down"))


def test_a_value_without_an_identity_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Holds:
        what: object

    with pytest.raises(InputError, match=r"frozen dataclass, or give it a method identity"):
        identity(Holds(object()))
    with pytest.raises(InputError, match="has no identity"):
        identity(float("nan"))


def test_an_object_may_define_its_identity() -> None:
    class Remote:
        def __init__(self, address: str, secret: str) -> None:
            self.address, self.secret = address, secret

        def identity(self) -> object:
            return self.address

    assert same(Remote("a", "one"), Remote("a", "two"))
    assert not same(Remote("a", "one"), Remote("b", "one"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for user-defined modules, which are removed from sys.modules after the test."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a source that changes within a second would come from it
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.mark.parametrize(
    "source",
    [
        "import mine\ndef score(x):\n    return mine.weigh(x)",
        "import mine as m\ndef score(x):\n    return [m.weigh(y) for y in x]",
        "from mine import weigh\ndef score(x):\n    return weigh(x)",
        "def score(x):\n    import mine\n    return mine.weigh(x)",
        "def score(x):\n    from mine import weigh\n    return weigh(x)",
        "def score(x):\n    def inner():\n        from mine import weigh as w\n        return w(x)\n    return inner()",
        "import mine\ndef score(x, name='weigh'):\n    return getattr(mine, name)(x)",
        "from mine import Base\nclass score(Base):\n    pass",
        "from mine import decorated\n@decorated\ndef score(x):\n    return x",
        "from mine import weigh\ndef score(x):\n    return globals()['weigh'](x)",
        "from mine import weigh\ndef score(x, name='weigh'):\n    return globals()[name](x)",
        "from mine import weigh\ndef score(x):\n    return eval('weigh(x)')",
        "import package.part\ndef score(x):\n    return package.part.weigh(x)",
    ],
)
def test_user_modules_count_however_they_are_imported(source: str, folder: Path) -> None:
    """The used part of a module counts, with everything that it refers to; the rest of the module does not."""
    text = """
        import functools
        from mine_too import SCALE
        FACTOR = {factor}
        def times(x):
            return x * FACTOR * SCALE
        def weigh(x):
            "{docstring}"
            return times(x)
        class Base:
            def scores(self, x):
                return weigh(x)
        def decorated(function):
            @functools.wraps(function)
            def wrapped(x):
                return function(weigh(x))
            return wrapped
    """
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").touch()

    def written(*, factor: int = 2, scale: int = 1, docstring: str = "Weigh.") -> Any:
        for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "mine_too", "package")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        (folder / "mine_too.py").write_text(f"SCALE = {scale}\n", encoding="utf-8")
        own = textwrap.dedent(text.format(factor=factor, docstring=docstring))
        (folder / "mine.py").write_text(own, encoding="utf-8")
        (folder / "package" / "part.py").write_text(own, encoding="utf-8")
        return hash_values(identity(defined(source, "score")))

    before = written()
    assert written() == before
    assert written(factor=3) != before
    assert written(scale=5) != before
    assert written(docstring="Weigh again.") == before


def test_unused_parts_of_a_user_module_do_not_count(folder: Path) -> None:
    def written(other: int) -> Any:
        sys.modules.pop("mine", None)
        importlib.invalidate_caches()
        own = f"def weigh(x):\n    return x\ndef other(x):\n    return {other}\n"
        (folder / "mine.py").write_text(own, encoding="utf-8")
        return hash_values(identity(defined("import mine\ndef score(x):\n    return mine.weigh(x)", "score")))

    assert written(1) == written(2)


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("import numpy as np\ndef score(x):\n    return np.sum(x)", "numpy"),
        ("def score(x):\n    import bm25s\n    return bm25s.BM25()", "bm25s"),
        ("def score(x):\n    from Stemmer import Stemmer\n    return Stemmer('french')", "PyStemmer"),
        ("from ragkit import BM25\ndef score(x):\n    return BM25().scores(x, None)", "PyStemmer"),
        ("import ragkit\ndef score(x):\n    return ragkit.BM25().scores(x, None)", "PyStemmer"),
        ("def score(x):\n    from ragkit import BM25\n    return BM25().scores(x, None)", "PyStemmer"),
    ],
)
def test_packages_of_a_notebooks_function_count(source: str, package: str, upgrade: Callable[[str], None]) -> None:
    function = defined(source, "score")
    before = hash_values(identity(function))
    upgrade("pandas")
    assert hash_values(identity(function)) == before
    upgrade(package)
    assert hash_values(identity(function)) != before


def test_docstrings_names_of_variables_and_places_do_not_count() -> None:
    one = "def f(x):\n    'One.'\n    y = x + 1\n    return y"
    other = "\n\n# moved\ndef f(x):\n    'Another.'\n    z = x + 1\n    return z"
    assert same(defined(one, "f"), defined(other, "f"))
    assert not same(defined(one, "f"), defined(one.replace("'One.'", "'One.'; x = 'One.'"), "f"))
    assert not same(defined("def f(x):\n    return 'a'", "f"), defined("def f(x):\n    return 'b'", "f"))


def test_an_editable_package_counts_by_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """The version of an editable package stays the same while its code changes."""

    class Editable:
        def read_text(self, name: str) -> str | None:
            return '{"dir_info": {"editable": true}}' if name == "direct_url.json" else None

    assert module._installed("sentencex")
    monkeypatch.setattr(module, "_distributions", lambda: {"own_package": ("own-package",)})
    monkeypatch.setattr(module.importlib.metadata, "distribution", lambda name: Editable())
    assert module._installed("own_package") is None


@pytest.fixture
def upgrade(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Change the version of a distribution."""
    real = importlib.metadata.version
    versions: dict[str, str] = {}

    def version(name: str) -> str:
        return versions.get(name) or real(name)

    def upgraded(name: str) -> None:
        versions[name] = "999"
        module._installed.cache_clear()

    monkeypatch.setattr(module.importlib.metadata, "version", version)
    module._installed.cache_clear()
    yield upgraded
    module._installed.cache_clear()


THINGS = {
    "BM25": BM25(),
    "Hybrid": Hybrid(),
    "Dense": Dense(),
    "chunker": StructureChunker(),
    "answers": ExtractiveLLM(HashEmbedder()),
    "judge": Faithfulness(OpenAILLM("m", base_url="http://localhost:1/v1")),
    "rewriter": HyDE(OpenAILLM("m", base_url="http://localhost:1/v1")),
    "model": OpenAILLM("m", base_url="http://localhost:1/v1"),
}
"""Values by their role in an experiment."""

UPGRADES = {
    "bm25s": {"BM25", "Hybrid", "answers"},
    "PyStemmer": {"BM25", "Hybrid", "answers"},
    "py3langid": {"BM25", "Hybrid", "Dense"},  # of a text that is no query yet the language is guessed
    "sentencex": {"chunker", "answers"},
    "markdown-it-py": {"answers"},
    "numpy": {"BM25", "Hybrid", "Dense", "answers"},
    "msgspec": {"judge"},
    **dict.fromkeys(
        [
            "chromadb",
            "ipython",
            "beautifulsoup4",
            "pandas",
            "requests",
            "torch",
            "openai",
            "httpx2",
            "lxml",
            "tenacity",
        ],
        frozenset[str](),
    ),
}
"""Package -> the values above whose identity an upgrade of it may change."""


@pytest.mark.parametrize("package", UPGRADES)
def test_an_upgrade_changes_what_uses_the_package_and_nothing_else(
    package: str, upgrade: Callable[[str], None]
) -> None:
    before = {name: hash_values(identity(value)) for name, value in THINGS.items()}
    upgrade(package)
    changed = {name for name, value in THINGS.items() if hash_values(identity(value)) != before[name]}
    assert changed == UPGRADES[package]
