"""Add the JupyterLab panel to the distribution, building the front end first if it is missing.

The built files are committed, so installing ragkit does not need Node.js.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PANEL = "server_extension/ragkit_server/labextension"
BUILT = (f"{PANEL}/package.json", "ragkit/static/widget.js")


class FrontEndHook(BuildHookInterface):
    """Hatch calls this hook for wheels and for editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the panel to the files that are installed outside the packages."""
        root = Path(self.root)
        if not all((root / path).is_file() for path in BUILT):
            npm = shutil.which("npm")
            if npm and (root / "frontend").is_dir():
                for command in (["ci"], ["run", "build"]):
                    subprocess.run([npm, *command], cwd=root / "frontend", check=True)
            else:
                self.app.display_warning(
                    "ragkit is packaged without its JupyterLab panel, which needs npm to build. Install npm."
                )
        if (root / PANEL).is_dir():  # hatch fails if a path in shared-data does not exist
            there = "share/jupyter/labextensions/ragkit-lab"
            install = "server_extension/jupyter-config/install.json"
            build_data["shared_data"] |= {PANEL: there, install: f"{there}/install.json"}
