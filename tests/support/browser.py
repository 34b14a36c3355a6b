"""A real browser, and where its pages come from."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.server.live_server import DEADLINE_SECONDS, TOKEN, Server

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--no-first-run"]


@contextlib.contextmanager
def start_browser() -> Iterator[Browser]:
    """Start Chromium, for one module's tests: while it runs, this thread has a running event loop."""
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"no browser: none of {', '.join(names)} is on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def open_page(browser: Browser) -> Iterator[Page]:
    """A page of a browser that is logged in nowhere."""
    with browser.new_context() as context:
        context.set_default_timeout(1000 * DEADLINE_SECONDS)
        yield context.new_page()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a folder from a port of its own, as an application under development is: another origin."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as application:
        thread = threading.Thread(target=application.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{application.server_port}"
        application.shutdown()
        thread.join()


def http_url(server: Server, path: str = "") -> str:
    """The server's address for a browser."""
    return server.url(path).replace("ws://", "http://")


def log_in(page: Page, server: Server) -> None:
    """Visit the server's front page with the token, as a person does; from then on the cookie counts."""
    page.goto(http_url(server, f"?token={TOKEN}"))
    assert any(cookie["name"].startswith("username-") for cookie in page.context.cookies())


def status(page: Page, server: Server) -> dict[str, Any]:
    """What the server says of itself."""
    known = {"Authorization": f"token {TOKEN}"}
    return dict(page.request.get(http_url(server, "api/v1/status"), headers=known).json())
