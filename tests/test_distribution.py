"""The distribution: it is `ragkit-lab`, because `ragkit` on PyPI belongs to somebody else."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from ragkit.errors import MissingExtraError

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")])


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> importlib.metadata.Distribution:
    """The wheel, built and installed into a folder of its own, without what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], check=True, timeout=240)
    (wheel,) = folder.glob("*.whl")
    assert wheel.name.startswith("ragkit_lab-")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", folder, wheel], check=True, timeout=240)
    (distribution,) = importlib.metadata.distributions(path=[str(folder)])
    return distribution


@pytest.mark.timeout(500)
def test_the_wheel_installs_ragkit_as_ragkit_lab(installed: importlib.metadata.Distribution) -> None:
    assert installed.name == "ragkit-lab"
    files = {str(path) for path in installed.files or ()}
    assert {"ragkit/__init__.py", "ragkit_server/__init__.py"} <= files
    assert {script.name for script in installed.entry_points.select(group="console_scripts")} == {
        "ragkit", "jupyter-ragkit"
    }  # fmt: skip
    # JupyterLab uses this file to tell users how to remove the panel.
    panel = installed.locate_file("share/jupyter/labextensions/ragkit-lab/install.json")
    assert json.loads(Path(str(panel)).read_text(encoding="utf-8"))["packageName"] == installed.name


@pytest.mark.timeout(500)
def test_every_extra_that_is_named_exists(installed: importlib.metadata.Distribution) -> None:
    named: set[str] = set()
    for path in (ROOT / "ragkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "needs":
                named |= {str(ast.literal_eval(k.value)) for k in node.keywords if k.arg == "extra"}
    assert named >= {"eval", "lab", "tune"}
    for page in PAGES:
        for extras in re.findall(r"ragkit[-_]lab\S*?\[([\w,]+)\]", page.read_text(encoding="utf-8")):
            named |= set(extras.split(","))
    assert named <= set(installed.metadata.get_all("Provides-Extra") or ())


def test_a_missing_extra_names_the_distribution() -> None:
    assert "pip install 'ragkit-lab[eval]'" in str(MissingExtraError("pandas", extra="eval"))


@pytest.mark.parametrize("path", [*PAGES, ROOT / "pyproject.toml", ROOT / "environment.yml"], ids=lambda p: p.name)
def test_no_text_tells_users_to_install_the_wrong_package(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"(?<![\w-])ragkit\[", text) == []
    # `pip install ragkit` may appear only as a warning.
    for line in re.findall(r"^.*pip install '?ragkit(?![\w-]).*$", text, re.MULTILINE):
        assert "somebody else" in line or "quelqu'un d'autre" in line or "installed an unrelated package" in line, line


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
