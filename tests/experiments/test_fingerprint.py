"""An identity changes whenever a result could, and only then."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest

from ragkit.chunking.token import TokenChunker
from ragkit.embedding.hashed import HashEmbedder
from ragkit.errors import InputError
from ragkit.experiments import fingerprint as module
from ragkit.experiments.fingerprint import code_version, identity
from ragkit.hashing import hash_values
from ragkit.retrieval.retrievers import BM25, Dense, Hybrid


def defined(source: str, name: str) -> Any:
    """What a cell of a notebook defines."""
    scope: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(textwrap.dedent(source), "<cell>", "exec"), scope)
    return scope[name]


def same(a: Any, b: Any) -> bool:
    return hash_values(identity(a)) == hash_values(identity(b))


def test_values_are_what_they_are() -> None:
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


def test_it_is_the_same_in_another_process() -> None:
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


def test_a_function_of_a_notebook_counts_with_what_it_refers_to() -> None:
    def written(**changes: Any) -> FunctionType:
        values = {"weight": 2, "plus": 1, "docstring": "Score."} | changes
        return defined(FUNCTION.format(**values), "score")

    assert same(written(), written())
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


def test_a_class_of_a_notebook_counts_with_its_methods_and_state() -> None:
    def made(k: int = 3, **changes: Any) -> Any:
        return defined(CLASS.format(**({"factor": 1, "double": 2, "twice": 2} | changes)), "Mine")(k)

    assert same(made(), made())
    assert not same(made(), made(k=4))
    for change in ("factor", "double", "twice"):
        assert not same(made(), made(**{change: 7})), change


def test_a_function_that_calls_itself_is_told() -> None:
    source = "def down(n):\n    return n and down(n - {step})"
    assert same(defined(source.format(step=1), "down"), defined(source.format(step=1), "down"))
    assert not same(defined(source.format(step=1), "down"), defined(source.format(step=2), "down"))


def test_what_cannot_be_told_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Holds:
        what: object

    with pytest.raises(InputError, match=r"frozen dataclass, or give it a method identity"):
        identity(Holds(object()))
    with pytest.raises(InputError, match="does not tell"):
        identity(float("nan"))


def test_an_object_may_tell_itself() -> None:
    class Remote:
        def __init__(self, address: str, secret: str) -> None:
            self.address, self.secret = address, secret

        def identity(self) -> object:
            return self.address

    assert same(Remote("a", "one"), Remote("a", "two"))
    assert not same(Remote("a", "one"), Remote("b", "one"))


def test_ragkits_own_code_counts_by_its_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Comments and docstrings do not count; code does, also in a module that is only imported."""
    shutil.copytree(module._ROOT, tmp_path, dirs_exist_ok=True)

    def version() -> str:
        module._parsed.cache_clear()
        module._module_version.cache_clear()
        return code_version(BM25)

    before = version()
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    assert version() == before
    corpus = tmp_path / "retrieval" / "lexical.py"
    text = corpus.read_text(encoding="utf-8")
    corpus.write_text(text.replace('"""bm25s over token lists', '"""Another docstring') + "# a comment\n")
    assert version() == before
    corpus.write_text(text.replace("k1: float = 1.2", "k1: float = 1.3"))
    assert version() != before
    monkeypatch.undo()
    version()


def test_packages_count_by_their_version(monkeypatch: pytest.MonkeyPatch) -> None:
    module._module_version.cache_clear()
    before = code_version(BM25)
    module._module_version.cache_clear()
    real = module.importlib.metadata.version
    monkeypatch.setattr(module.importlib.metadata, "version", lambda n: "0" if n == "bm25s" else real(n))
    after = code_version(BM25)
    module._module_version.cache_clear()
    assert before != after
