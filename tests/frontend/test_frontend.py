"""The front end's sources and built files, without a browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from frontend import messages
from tests.conftest import ROOT

SOURCES = ROOT / "frontend" / "src"


def test_the_typescript_messages_are_up_to_date() -> None:
    assert messages.TARGET.read_text(encoding="utf-8") == messages.generate(), "run `make frontend`"


def test_every_dependency_has_a_reason() -> None:
    package = json.loads((ROOT / "frontend" / "package.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    for name in {**package["dependencies"], **package["devDependencies"]}:
        assert f"`{name}`" in page or f"`{name.split('/')[0]}/*`" in page, name


def test_nothing_is_set_as_html() -> None:
    for path in SOURCES.rglob("*.ts"):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", source)


def test_a_package_is_built_without_node_and_contains_the_panel(tmp_path: Path) -> None:
    environment = os.environ | {"PATH": str(Path(sys.executable).parent)}  # without npm
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)],
        env=environment, check=True, timeout=240, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    panel = ".data/data/share/jupyter/labextensions/ragkit-lab/"
    assert any(panel + "package.json" in name for name in names)
    assert any(panel + "static/remoteEntry" in name for name in names)
    assert any(panel + "schemas/ragkit-lab/panel.json" in name for name in names)
    assert "ragkit/static/widget.js" in names
    assert "ragkit/static/widget.css" in names
    assert "ragkit_server/static/socket.js" in names
    assert "ragkit_server/locale/fr_FR/LC_MESSAGES/ragkit.json" in names
    assert not any("node_modules" in name or name.endswith(".ts") for name in names)
