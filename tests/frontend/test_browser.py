"""A real browser: a plain client as in existing applications, origin checks, and the HTML of an answer."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page

from ragkit.live.messages import FollowUpQuestions
from tests.engine.test_answer import answered, hit
from tests.engine.test_engine import QUESTION, connected, make
from tests.server.live_server import TOKEN, Server, start_server
from tests.support.browser import http_url, log_in, open_page, serve_folder, start_browser
from tests.support.corpora import write_pages

# A minimal client.
PLAIN_CLIENT = """<!doctype html><meta charset="utf-8"><title>plain client</title><script>
var state = "connecting", messages = []
var ws = new WebSocket(new URLSearchParams(location.search).get("ws"))
ws.onopen = () => { state = "open" }
ws.onclose = () => { state = state === "open" ? "lost" : "refused" }
ws.onmessage = (event) => { messages.push(JSON.parse(event.data)) }
</script>"""

CROSS_ORIGIN = "Blocking Cross Origin WebSocket Attempt"  # docs/browser.md refers to these two log messages
NO_CREDENTIALS = "Couldn't authenticate WebSocket connection"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with open_page(browser) as page:
        yield page


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("static")
    (folder / "client.html").write_text(PLAIN_CLIENT)
    return folder


@pytest.fixture(scope="module")
def other_origin(static: Path) -> Iterator[str]:
    """Serve the same page on another port, like an application under development."""
    with serve_folder(static) as origin:
        yield origin


@pytest.fixture(scope="module")
def server(static: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(
        tmp_path_factory.mktemp("server"), f"--ServerApp.extra_static_paths={static}", base_url="/user/x/"
    )
    yield server
    server.stop()


@pytest.fixture(scope="module")
def open_server(other_origin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that allows the origin of the application."""
    server = start_server(
        tmp_path_factory.mktemp("open"), f"--ServerApp.allow_origin={other_origin}", base_url="/user/x/"
    )
    yield server
    server.stop()


def connect(page: Page, server: Server, *, origin: str = "", token: str = "") -> str:
    """Open the plain client, by default from the server's own origin; return the state of its socket."""
    socket = server.url("api/v1/ws") + (f"?token={token}" if token else "")
    client = f"{origin}/client.html" if origin else http_url(server, "static/client.html")
    page.goto(f"{client}?ws={quote(socket, safe='')}")
    page.wait_for_function("state !== 'connecting'")
    return str(page.evaluate("state"))


def message(page: Page, *types: str) -> dict[str, Any]:
    """Return the first message of one of these types."""
    found = page.wait_for_function("types => messages.find(message => types.includes(message.type))", arg=list(types))
    return dict(found.json_value())


def is_live(page: Page, server: Server, folder: Path) -> bool:
    """Return whether a published event reaches the page."""
    publisher = connected(server, folder)
    questions = [f"Is this {secrets.token_hex(4)}?", "Where is the corpus?", "Et en français ?"]
    publisher.publish(FollowUpQuestions(questions=questions))
    received = message(page, "follow_up_questions")
    publisher.close(2)
    return bool(received["questions"] == questions)


def test_a_plain_client_gets_follow_up_questions(page: Page, server: Server, tmp_path: Path) -> None:
    log_in(page, server)
    assert connect(page, server) == "open"
    assert is_live(page, server, tmp_path)


def test_a_plain_client_asks(page: Page, server: Server, tmp_path: Path) -> None:
    log_in(page, server)
    assert connect(page, server) == "open"
    ask = "question => ws.send(JSON.stringify({type: 'query', content: {question, context: {}}}))"
    page.evaluate(ask, QUESTION)
    error = message(page, "response", "error")
    assert error["type"] == "error"
    assert error["content"]["code"] == "NO_ENGINE"
    assert "engine.serve()" in error["content"]["message"]

    publisher = connected(server, tmp_path)
    engine = make(tmp_path, publisher)
    engine.index(write_pages(tmp_path / "docs"))
    with engine.serve():
        page.wait_for_function("messages.some(message => message.type === 'engines' && message.engines.length)")
        page.evaluate("messages = []")
        page.evaluate(ask, QUESTION)
        response = message(page, "response", "error")
    publisher.close(2)
    assert response["type"] == "response", response
    assert "1.2" in response["content"]["answer"]
    assert response["content"]["sources"][0]["text"]


@pytest.mark.parametrize("logged_in", [False, True], ids=["token", "cookie"])
def test_another_origin_is_refused(page: Page, server: Server, other_origin: str, logged_in: bool) -> None:
    if logged_in:  # a page could abuse this: browsers send a host's cookies to all its ports
        log_in(page, server)
    before = server.log().count(CROSS_ORIGIN)
    assert connect(page, server, origin=other_origin, token="" if logged_in else TOKEN) == "refused"
    assert server.log().count(CROSS_ORIGIN) == before + 1


def test_an_allowed_origin_needs_a_token(page: Page, open_server: Server, other_origin: str, tmp_path: Path) -> None:
    assert connect(page, open_server, origin=other_origin) == "refused"
    assert connect(page, open_server, origin=other_origin, token="a-wrong-one") == "refused"
    assert CROSS_ORIGIN not in open_server.log()
    assert connect(page, open_server, origin=other_origin, token=TOKEN) == "open"
    assert is_live(page, open_server, tmp_path)


def test_a_client_without_credentials_is_refused(page: Page, server: Server) -> None:
    before = server.log().count(NO_CREDENTIALS)
    assert connect(page, server) == "refused"
    assert server.log().count(NO_CREDENTIALS) == before + 1


# ---------------------------------------------------------------------------------- an answer in a page

HOSTILE = """<script>hack("script")</script><img src="x:" onerror="hack('onerror')">
</blockquote></details><a href="javascript:void hack('link')">the usual k1</a> is 1.2"""


def show(page: Page, html: str) -> list[str]:
    """Show HTML in a page, click everything, and return which scripts ran."""
    setup = "var hacked = new Set(), hack = what => hacked.add(what)"
    page.set_content(f"<!doctype html><title>answer</title><script>{setup}</script>{html}")
    for link in page.locator("a").all():
        link.click()
    page.wait_for_timeout(200)  # for delayed execution
    return sorted(page.evaluate("[...hacked]"))


def test_hostile_documents_execute_nothing(page: Page) -> None:
    assert show(page, HOSTILE) == ["link", "onerror", "script"]  # proves that the test detects execution
    answer = answered(f"{HOSTILE} [1]", hit(HOSTILE, title=HOSTILE, source=HOSTILE))
    answer.pending_follow_ups.set_result((HOSTILE,))
    assert show(page, answer._repr_html_()) == []
    assert HOSTILE.splitlines()[0] in page.locator(".ragkit-answer").inner_text()


def test_a_click_on_a_marker_opens_the_quoted_passage(page: Page) -> None:
    show(page, answered("The usual k1 is 1.2. [1]")._repr_html_())
    marker = page.locator("summary", has_text="[1]")
    passage = page.locator("details", has=marker).locator("blockquote")
    assert not passage.is_visible()
    marker.click()
    assert passage.is_visible()
    assert passage.locator("mark").inner_text() == "The usual k1 is 1.2."
    marker.click()
    assert not passage.is_visible()
