"""What may import what, and how heavy an import is."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What kernels and the server share.
SERVER_MAY_IMPORT = {"live.messages", "live.discovery", "live.snapshot", "errors", "terminal"}
HEAVY = {"torch", "chromadb", "sentence_transformers", "transformers", "pandas", "openai", "numpy"}


def test_imports_run_one_way() -> None:
    """The layers are declared in pyproject.toml."""
    done = subprocess.run([Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_server_imports_only_what_both_sides_share() -> None:
    found = {
        node.module.removeprefix("ragkit.")
        for path in (ROOT / "server_extension" / "ragkit_server").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ragkit.")
    }
    found = {"live.messages" if module == "live" else module for module in found}  # from ragkit.live import messages
    assert found <= SERVER_MAY_IMPORT


def test_modules_of_the_front_end_form_no_circle() -> None:
    source = ROOT / "frontend" / "src"
    graph = {}
    for path in source.rglob("*.ts"):
        targets = re.findall(r"""(?:from|import)\s*\(?\s*['"](\.[^'"]+)\.js['"]""", path.read_text(encoding="utf-8"))
        graph[path] = [(path.parent / f"{target}.ts").resolve() for target in targets]
    assert all(target.is_file() for targets in graph.values() for target in targets)
    list(graphlib.TopologicalSorter(graph).static_order())


def loaded_by(statement: str) -> set[str]:
    program = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "statement",
    ["import ragkit", "import ragkit_server.app, ragkit_server.handlers.sockets", "import ragkit.live.publisher"],
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
