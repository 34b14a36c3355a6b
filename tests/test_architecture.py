"""Import rules, and the cost of imports."""

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
SERVER_MAY_IMPORT = {"live.messages", "live.discovery", "live.snapshot", "errors", "sqlite", "terminal"}
HEAVY = {"torch", "chromadb", "sentence_transformers", "transformers", "pandas", "openai", "numpy"}


def test_imports_follow_the_layers() -> None:
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


# Private names of libraries that have no public way; the place says why. Each has a test that sees the library change.
PRIVATE_OF_LIBRARIES = {
    ("indexing/vector_store.py", "_identifier_to_system"),
    ("transport/socket.py", "_compressor"),
    ("transport/socket.py", "_write_futures"),
}
# Of os, named tuples, enumerations and IPython.
PUBLIC_IN_SPITE_OF_THEIR_NAMES = {"_exit", "_fields", "_replace", "_repr_mimebundle_", "_value_"}


def test_private_names_stay_in_their_module() -> None:
    found = set()
    for path in [*(ROOT / "ragkit").rglob("*.py"), *(ROOT / "server_extension" / "ragkit_server").rglob("*.py")]:
        source = path.read_text(encoding="utf-8")
        nodes = list(ast.walk(ast.parse(source)))
        own = {node.attr for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"}
        own |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
        own |= {ast.unparse(node.target) for node in nodes if isinstance(node, ast.AnnAssign)}
        used = {node.attr for node in nodes if isinstance(node, ast.Attribute)} - own
        used |= {a.name for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}
        used |= set(re.findall(r"""getattr\(\w+, ['"](\w+)""", source)) - own
        place = "/".join(path.parts[-2:])
        found |= {(place, name) for name in used if re.match(r"_[^_]", name)}
    assert {each for each in found if each[1] not in PUBLIC_IN_SPITE_OF_THEIR_NAMES} == PRIVATE_OF_LIBRARIES


def test_the_private_names_in_use_exist(tmp_path: Path) -> None:
    """And means what it is taken for; tests/server/test_protocol.py says it of Tornado's."""
    import chromadb
    from chromadb.api.shared_system_client import SharedSystemClient
    from chromadb.config import System

    with chromadb.PersistentClient(path=str(tmp_path)):
        assert isinstance(SharedSystemClient._identifier_to_system[str(tmp_path)], System)
    assert str(tmp_path) not in SharedSystemClient._identifier_to_system


def test_frontend_modules_have_no_import_cycles() -> None:
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


def test_importing_ragkit_is_fast() -> None:
    """A generous deadline, best of five: the figure itself is printed by `python -X importtime -c 'import ragkit'`."""
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import ragkit"], check=True, timeout=60)
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.3
