"""The notebooks run from top to bottom, and the figures in their text match the figures that they print."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nbformat
import pytest

from ragkit.runs.store import RunStore
from tests.conftest import ROOT

NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").glob("0[2-5]*.ipynb") if path.name != "05_one_setting.ipynb")
SMALLER: Mapping[str, Any] = {
    "04_answers_and_citations.ipynb": {"sample": 12},
    "05_papermill_sweep.ipynb": {"grid": {"retriever": ["bm25", "hybrid"], "k": [10]}},
}
FIGURE = re.compile(r"\d+\.\d{2,}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the notebooks and the data, as in the project, in which they may write indexes and runs."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "data", root / "data")
    shutil.copytree(ROOT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".*"))
    return root


def execute(notebook: Path) -> Any:
    """Run a notebook under papermill, without a server, and return it with its outputs."""
    root = notebook.parent.parent
    left_out = ("RAGKIT_LLM_URL", "RAGKIT_URL", "RAGKIT_TOKEN", "RAGKIT_RUNS", "JUPYTER_SERVER_URL", "JPY_PARENT_PID")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    environment |= {"JUPYTER_RUNTIME_DIR": str(root / "runtime"), "RAGKIT_JOURNAL_DIR": str(root / "journal")}
    command = [sys.executable, "-m", "papermill", notebook.name, f"{notebook.stem}.out.ipynb", "--no-progress-bar"]
    done = subprocess.run(
        [*command, "--parameters_yaml", json.dumps(SMALLER.get(notebook.name, {}))],
        cwd=notebook.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return nbformat.read(notebook.with_name(f"{notebook.stem}.out.ipynb"), as_version=4)


def printed(book: Any) -> str:
    """Return the text of all cell outputs."""
    texts = []
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            texts.append(output.get("text") or data.get("text/html") or data.get("text/plain", ""))
    return re.sub(r"<style.*?</style>|<[^>]+>", " ", "\n".join(texts), flags=re.DOTALL)


def compare_retrievers(root: Path, text: str) -> None:
    assert "handbook: 100 questions, baseline BM25" in text
    assert "computed: {}" in text, "another measure must reuse the rankings"
    assert "computed: {'retrieve': 100, 'latency': 1}" in text, "only the new system must be ranked"
    report = (root / "runs" / "retrievers" / "report.html").read_text(encoding="utf-8")
    assert "BM25 over pages" in report
    runs = sorted((root / "runs" / "retrievers").glob("*.run"))
    assert [path.stem for path in runs] == [
        "01-BM25", "02-Dense", "03-Hybrid-weighted", "04-Hybrid-RRF", "05-BM25-over-pages"
    ]  # fmt: skip
    assert {line.split()[0] for line in runs[0].read_text().splitlines()} >= {"a01", "c18"}


def chunking(root: Path, text: str) -> None:
    for system in ("TokenChunker()", "StructureChunker(max_tokens=100)", "TokenChunker(max_tokens=100)"):
        assert f"Hybrid(), {system}" in text
    assert "tokens, 10 of 100" in text


def answers(root: Path, text: str) -> None:
    assert "12 questions, baseline three quotes" in text
    assert "computed: {'follow-ups': " in text, "another measure must reuse the answers"
    assert re.search(r"calls, likely 0\.\d+ and at most 0\.\d+", text)
    assert "No model was asked" in text


def papermill_sweep(root: Path, text: str) -> None:
    sweep = RunStore(root / "runs").to_frame()
    sweep = sweep[sweep["name"] == "05_one_setting"].set_index("state")
    assert sorted(sweep.index) == ["done", "done", "failed"]
    assert sweep.loc["done", "recall"].gt(0.7).all()
    assert "reads 254 tokens" in sweep.loc["failed", "message"]


CHECKS: Mapping[str, Callable[[Path, str], None]] = {
    "02_compare_retrievers": compare_retrievers,
    "03_chunking": chunking,
    "04_answers_and_citations": answers,
    "05_papermill_sweep": papermill_sweep,
}
STATES_FIGURES = {"02_compare_retrievers", "03_chunking"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_notebook(folder: Path, name: str) -> None:
    book = execute(folder / "notebooks" / f"{name}.ipynb")
    text = printed(book)
    if name in CHECKS:
        CHECKS[name](folder, text)
    if name in STATES_FIGURES:
        prose = " ".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
        stated = set(FIGURE.findall(prose))
        shown = [float(number) for number in FIGURE.findall(text)]
        assert len(stated) > 5
        assert {f for f in stated if all(f"{x:.{len(f.partition('.')[2])}f}" != f for x in shown)} == set()


def test_notebooks_are_committed_without_outputs() -> None:
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        book = nbformat.read(path, as_version=4)
        assert [cell.id for cell in book.cells if cell.get("outputs") or cell.get("execution_count")] == [], path.name
