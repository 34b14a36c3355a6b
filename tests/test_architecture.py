"""The rooms and the arrows between them."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import yaml

import ragkit

ROOT = Path(__file__).resolve().parent.parent

# Imports run one way: a module may import those before it.
ORDER = [
    "errors", "terminal", "choices", "identity", "documents", "kinds", "ignoring", "downloads", "sources",
    "decoding", "markup", "outlines", "faults", "drafts", "notebooks", "pdf", "tables", "archives", "word",
    "slides", "workbooks", "epub", "loaders", "reading", "analysis", "embedding", "hosted", "sentences", "spans",
    "chunking", "chunkers", "passages", "cache", "executors", "store", "records", "corpus", "report", "belt",
    "pipeline", "update", "integrity", "index", "retrieval", "quotes", "chat_errors", "chat", "budgets", "rates", "llm",
    "metering", "replies", "rewriting", "reranking", "answer", "follow_ups",
    "events", "responses", "discovery", "journal", "outbox", "handshake", "serving", "link", "publisher", "progress",
    "refresh", "background", "engine", "folders", "durable", "provenance", "parameters", "run", "runs", "sweep", "trec",
    "judged", "answer_measures", "judging", "datasets", "beir", "questions", "measures",
    "statistics", "plots", "systems", "cells", "stages", "calls", "live", "estimate", "evaluation",
    "result_page", "results", "experiment",
    "draws", "searches",
    "watch", "doctor", "widgets", "options", "runs_cli", "cli",
]  # fmt: skip
SERVER_MAY_IMPORT = {"events", "errors", "discovery", "terminal"}
HEAVY = {"torch", "chromadb", "sentence_transformers", "transformers", "pandas", "openai", "numpy"}


def imported(path: Path) -> set[str]:
    """Names of the ragkit modules that a file imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "ragkit":
                found |= {f"ragkit.{alias.name}" for alias in node.names}
    return {name.split(".")[1] if "." in name else "ragkit" for name in found if name.split(".")[0] == "ragkit"}


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in (ROOT / "ragkit").glob("*.py")} == {*ORDER, "__init__"}


@pytest.mark.parametrize("module", ORDER)
def test_imports_run_one_way(module: str) -> None:
    before = set(ORDER[: ORDER.index(module)])
    # `from ragkit import events` is the module, not the package's root.
    others = imported(ROOT / "ragkit" / f"{module}.py") - {"ragkit"}
    assert others <= before


def test_the_server_keeps_out_of_the_kernels_rooms() -> None:
    for path in (ROOT / "server_extension" / "ragkit_server").glob("*.py"):
        assert imported(path) - {"ragkit"} <= SERVER_MAY_IMPORT, path.name


def test_modules_have_one_subject() -> None:
    long = {
        path.name: len(path.read_text(encoding="utf-8").splitlines())
        for folder in ("ragkit", "server_extension/ragkit_server")
        for path in (ROOT / folder).glob("*.py")
    }
    assert {name: lines for name, lines in long.items() if lines > 400} == {}


def loaded_by(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "statement", ["import ragkit", "import ragkit_server.app, ragkit_server.handlers", "import ragkit.publisher"]
)
def test_imports_are_light(statement: str) -> None:
    assert loaded_by(statement) & HEAVY == set()


def test_import_ragkit_takes_a_moment() -> None:
    """A generous deadline, best of five: the figure itself is printed by `python -X importtime -c 'import ragkit'`."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import ragkit"], check=True, timeout=60)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3


def test_public_names_exist() -> None:
    for name in ragkit.__all__:
        assert getattr(ragkit, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        ragkit.nonsense  # noqa: B018
    assert set(dir(ragkit)) == set(ragkit.__all__)


def test_environment_yml_and_pyproject_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = [line for line in environment["dependencies"] if isinstance(line, str)]
    (pip,) = [line["pip"] for line in environment["dependencies"] if isinstance(line, dict)]
    assert f"python {project['requires-python']}" in conda
    assert "-c constraints.txt" in pip
    (editable,) = [line for line in pip if line.startswith("-e ")]
    extras = editable.partition("[")[2].rstrip("]")
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    # `make lab` and conda users get the same: all that the notebooks need.
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "'.[$(or $(EXTRAS),$*)]'" in makefile
    assert f"$(VENV)/.lab: EXTRAS = {extras}\n" in makefile
    assert extras == "lab,eval"
    assert project["name"] == environment["name"]
