"""JupyterLab with notebooks, in a real browser."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Locator, Page

from tests.server.live_server import DEADLINE_SECONDS, ROOT, TOKEN, Server, start_server

PANEL = ROOT / "server_extension" / "ragkit_server" / "labextension"
SCREENSHOTS = ROOT / "screenshots"
BASE_URL = "/user/x/"  # not "/": a forgotten prefix fails

# The first cell of the notebooks. After its first batch, the embedder waits as long as a file named "hold" exists, so
# that tests can observe an unfinished task on slow and fast machines.
SETUP = """
import time
from pathlib import Path
from ragkit import ExtractiveLLM, HashEmbedder, RAGEngine, ScriptedLLM
from ragkit.widgets import Live

class Held(HashEmbedder):
    batches = 0
    def embed(self, texts, *, kind="passage"):
        self.batches += kind == "passage"
        while kind == "passage" and self.batches > 1 and Path("hold").exists():
            time.sleep(0.05)
        return super().embed(texts, kind=kind)

embedder = Held()
engine = RAGEngine("index", embedder=embedder, llm=ExtractiveLLM(embedder, min_relevance=0.5), progress=False)
"""


def start_lab(folder: Path, *arguments: str, app: str = "lab", port: int = 0) -> Server:
    """Start JupyterLab with the committed build of the panel, without Node.js and without announcement dialogs."""
    extensions = folder / "labextensions"
    extensions.mkdir(exist_ok=True)
    if not (extensions / "ragkit-lab").exists():
        (extensions / "ragkit-lab").symlink_to(PANEL)
    config = folder / "config" / "labconfig"
    config.mkdir(parents=True, exist_ok=True)
    announcements = "@jupyterlab/apputils-extension:announcements"
    (config / "page_config.json").write_text(json.dumps({"disabledExtensions": {announcements: True}}))
    return start_server(
        folder,
        f"--LabServerApp.extra_labextensions_path={extensions}",
        f"--LabApp.user_settings_dir={folder / 'settings'}",
        f"--LabApp.workspaces_dir={folder / 'workspaces'}",
        f"--{'JupyterNotebookApp' if app == 'notebook' else 'LabApp'}.expose_app_in_browser=True",
        *arguments,
        app=app,
        base_url=BASE_URL,
        port=port,
        PATH=str(Path(sys.executable).parent),
    )


def http_url(server: Server, path: str = "") -> str:
    """Return the server's HTTP address."""
    return server.url(path).replace("ws://", "http://")


def write_notebook(server: Server, name: str, *cells: str) -> None:
    """Write a notebook into the server's root folder."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, server.journal_dir.parent / "root" / name)


@dataclass
class Lab:
    """JupyterLab in a page."""

    page: Page
    server: Server

    def open(self, notebook: str = "") -> None:
        """Open JupyterLab and ragkit's panel, and optionally a notebook; wait until its kernel is ready."""
        path = f"lab/tree/{notebook}" if notebook else "lab"
        self.page.goto(http_url(self.server, f"{path}?token={TOKEN}&reset"))
        self.page.wait_for_function("window.jupyterapp")
        self.page.evaluate("() => jupyterapp.restored")
        self.execute("ragkit:activity")
        if notebook:
            self.page.wait_for_function("jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel")
            self.page.evaluate(
                """async () => {
                    const { context, sessionContext } = jupyterapp.shell.currentWidget
                    await context.ready
                    await sessionContext.ready
                    await sessionContext.session.kernel.info
                }"""
            )

    def execute(self, command: str, **options: Any) -> None:
        """Run a JupyterLab command and wait for its result."""
        self.page.evaluate("async ([command, options]) => { await jupyterapp.commands.execute(command, options) }",
                           [command, options])  # fmt: skip

    def start_cell(self, number: int) -> None:
        """Start a cell without waiting for it."""
        self.page.evaluate(
            """number => {
                const { content } = jupyterapp.shell.currentWidget
                content.activeCellIndex = number
                content.deselectAll()
                void jupyterapp.commands.execute('notebook:run-cell')
            }""",
            number,
        )

    def run_cell(self, number: int) -> None:
        """Run a cell to its end; fail if it raises an error."""
        self.start_cell(number)
        self.page.wait_for_function(
            """number => {
                const { model } = jupyterapp.shell.currentWidget.content.widgets[number]
                return model.executionCount !== null && model.executionState !== 'running'
                    && jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'
            }""",
            arg=number,
        )
        outputs = self.page.evaluate(
            "number => jupyterapp.shell.currentWidget.content.widgets[number].model.outputs.toJSON()", number
        )
        for output in outputs:
            assert output["output_type"] != "error", "\n".join(output["traceback"])

    @property
    def panel(self) -> Locator:
        return self.page.locator(".rk-panel")

    @property
    def widget(self) -> Locator:
        return self.page.locator(".rk-widget")

    def show(self, view: str) -> None:
        """Select a tab of the panel."""
        self.panel.get_by_role("tab", name=view).click()

    def screenshot(self, name: str) -> None:
        """Save a screenshot for manual review."""
        SCREENSHOTS.mkdir(exist_ok=True)
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png")


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Return the condition's first true value; fail after the deadline."""
    ends = time.monotonic() + 2 * DEADLINE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < ends, what or "it did not happen in time"
        time.sleep(0.05)
    return value


def write_corpus(folder: Path, pages: int) -> int:
    """Write pages about different topics; return the number of files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for number in range(pages):
        text = f"Page {number} is about topic {number}. " + f"It says that value {number} is {number * 7}. " * 20
        (folder / f"page-{number:03}.md").write_text(f"# Topic {number}\n\n{text}\n")
    return pages
