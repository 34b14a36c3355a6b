"""The example in docs/react, in a real browser, with a real server; React comes from npm instead of the CDN."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, WebSocket, WebSocketRoute, expect

from ragkit.live.messages import FollowUpQuestions, IndexingProgress
from ragkit.live.publisher import Publisher, broadcast
from ragkit.llm.base import ScriptedLLM
from tests.engine.test_engine import QUESTION, connected, make
from tests.server.live_server import DEADLINE_SECONDS, ROOT, TOKEN, Server, start_server
from tests.support.browser import http_url, open_page, serve_folder, start_browser, status
from tests.support.corpora import write_pages
from tests.support.hub import eventually

expect.set_options(timeout=1000 * DEADLINE_SECONDS)

EXAMPLE = ROOT / "docs" / "react"
REACT = Path(sys.prefix, "share", "react")

# npm has React as CommonJS, for bundlers; the CDN converts it to modules. These are the development builds.
BUILDS = {
    "react": "react/cjs/react.development.js",
    "scheduler": "scheduler/cjs/scheduler.development.js",
    "react-dom": "react-dom/cjs/react-dom.development.js",
    "react-dom/client": "react-dom/cjs/react-dom-client.development.js",
}
HTM = "https://esm.sh/htm@3"
CDN = {
    "https://esm.sh/react@19": "import all from '/all'; export default all['react'];"
    " export const { StrictMode, createElement, useEffect,"
    " useImperativeHandle, useReducer, useRef, useState } = all['react']",
    "https://esm.sh/react-dom@19/client?external=react": "import all from '/all';"
    " export const { createRoot } = all['react-dom/client']",
}


def all_of_react() -> str:
    """Return one module with all CommonJS files."""
    text = "const all = {}, require = (name) => all[name], process = { env: {} }; export default all\n"
    for name, path in BUILDS.items():
        code = (REACT / path).read_text(encoding="utf-8")
        text += f"{{ const module = {{ exports: {{}} }}, exports = module.exports\n{code}\nall['{name}'] = exports }}\n"
    return text


def answer_as_the_cdn(route: Route) -> None:
    url = route.request.url
    if url == HTM:
        body = (REACT / "htm" / "dist" / "htm.module.js").read_text(encoding="utf-8")
    else:
        body = all_of_react() if url == "https://esm.sh/all" else CDN[url]
    route.fulfill(body=body, content_type="text/javascript", headers={"Access-Control-Allow-Origin": "*"})


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not REACT.exists():
        pytest.skip("no React: `make test` fetches it where npm is installed")
    return tmp_path_factory.mktemp("example")


@pytest.fixture(scope="module")
def origin(example: Path) -> Iterator[str]:
    with serve_folder(example) as origin:
        yield origin


@pytest.fixture(scope="module")
def server(example: Path, origin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("server"), f"--ServerApp.allow_origin={origin}", base_url="/user/x/")
    for path in EXAMPLE.iterdir():
        text = path.read_text(encoding="utf-8")
        (example / path.name).write_text(text.replace("http://localhost:8000/", http_url(server)), encoding="utf-8")
    yield server
    server.stop()


@pytest.fixture
def publisher(server: Server, tmp_path: Path) -> Iterator[Publisher]:
    publisher = connected(server, tmp_path)
    yield publisher
    publisher.close(2)


@pytest.fixture
def page(browser: Browser, server: Server, origin: str) -> Iterator[Page]:
    """The example page; fails on any error or warning of React."""
    complaints: list[str] = []
    with open_page(browser) as page:
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
        page.route("https://esm.sh/**", answer_as_the_cdn)
        page.goto(f"{origin}/#token={TOKEN}")
        expect(page.get_by_role("status")).to_have_text("open")
        yield page
    # React's development build mounts every component twice, so the first socket is closed while it opens.
    assert [line for line in complaints if "closed before the connection is established" not in line] == []


def test_it_shows_broadcasts(page: Page, publisher: Publisher) -> None:
    publisher.publish(IndexingProgress(task_id="t", index="handbook", state="running", chunks_done=3))
    publisher.publish(FollowUpQuestions(questions=["What is BM25?", "What is fusion?"]))
    questions = page.get_by_role("list", name="Ask next").get_by_role("button")
    progress = page.get_by_role("list", name="Progress").get_by_role("listitem").filter(has_text="handbook")
    expect(questions).to_have_text(["What is BM25?", "What is fusion?"])
    expect(progress).to_have_text(["handbook: running, 3 of ?"])
    publisher.publish(IndexingProgress(task_id="t", index="handbook", state="done", chunks_done=9, chunks_total=9))
    expect(progress).to_have_text(["handbook: done, 9 of 9"])
    page.reload()  # the snapshot restores the same state
    expect(questions).to_have_text(["What is BM25?", "What is fusion?"])
    expect(progress).to_have_text(["handbook: done, 9 of 9"])


def test_a_gap_replaces_the_state(page: Page) -> None:
    def talk(socket: WebSocketRoute) -> None:
        for text in ("Old?", "New?"):
            followed = {"type": "follow_up_questions", "questions": [text]}
            state = {"type": "snapshot", "epoch": text, "seq": 1, "tasks": [], "engines": [], "follow_ups": [followed]}
            socket.send(json.dumps({"type": "gap", "snapshot": state} if text == "New?" else state))

    page.route_web_socket(re.compile("/api/v1/ws"), talk)
    page.reload()
    expect(page.get_by_role("list", name="Ask next").get_by_role("button")).to_have_text(["New?"])


def test_it_asks(page: Page, server: Server, publisher: Publisher, tmp_path: Path) -> None:
    answer = page.get_by_role("region", name="Answer")
    publisher.publish(FollowUpQuestions(questions=[QUESTION]))
    page.get_by_role("button", name=QUESTION).click()
    expect(answer).to_contain_text("engine.serve()")  # no engine yet, and the message says what to do

    engine = make(tmp_path, publisher, llm=ScriptedLLM(["Start with ", "k1 = 1.2. ", "[1]"], delay_seconds=0.3))
    engine.index(write_pages(tmp_path / "docs"))
    with engine.serve():
        eventually(lambda: status(page, server)["engines"])
        page.get_by_label("Question").fill("What is k1?")
        text = answer.get_by_role("paragraph")
        text.evaluate(
            """element => {
                window.seen = []
                const observer = new MutationObserver(() => seen.push(element.textContent))
                observer.observe(element, { childList: true, characterData: true, subtree: true })
            }"""
        )
        page.get_by_role("button", name="Ask", exact=True).click()
        expect(text).to_have_text("Start with k1 = 1.2. [1]")
        assert "Start with k1 = 1.2. " in page.evaluate("seen")  # while it was generated
        expect(answer.get_by_role("listitem")).to_have_text(["BM25"])
        expect(page.get_by_role("group")).to_be_enabled()


MOUNT = """async ([url, token]) => {
    const { createElement } = await import('react')
    const { createRoot } = await import('react-dom/client')
    const { WebSocketHandler } = await import('./WebSocketHandler.js')
    window.heard = { first: [], second: [] }
    window.root = createRoot(document.body.appendChild(document.createElement('div')))
    window.render = (name) => root.render(createElement(WebSocketHandler, {
        url, token, onMessage: (message) => heard[name].push(message.questions?.[0] ?? message.type),
    }))
    render('first')
}"""


def test_a_new_on_message_keeps_the_connection_and_unmounting_closes_it(
    page: Page, server: Server, publisher: Publisher
) -> None:
    sockets: list[WebSocket] = []
    page.on("websocket", lambda socket: sockets.append(socket))
    page.evaluate(MOUNT, [http_url(server), TOKEN])
    page.wait_for_function("heard.first.length")
    publisher.publish(FollowUpQuestions(questions=["First?"]))
    page.wait_for_function("heard.first.includes('First?')")
    page.evaluate("render('second')")
    page.wait_for_timeout(200)
    publisher.publish(FollowUpQuestions(questions=["Second?"]))
    page.wait_for_function("heard.second.length")
    assert page.evaluate("heard") == {"first": ["snapshot", "First?"], "second": ["Second?"]}
    assert [socket.is_closed() for socket in sockets] == [False]
    page.evaluate("root.unmount()")
    eventually(lambda: page.wait_for_timeout(50) or sockets[0].is_closed())
    page.wait_for_timeout(1_000)  # longer than the first back-off
    assert len(sockets) == 1
    expect(page.get_by_role("status")).to_have_text("open")  # the example's own socket stays open


def test_the_addresses_in_the_example_are_those_that_the_test_serves() -> None:
    assert set(re.findall(r'"(https://[^"]+)"', (EXAMPLE / "index.html").read_text())) == {*CDN, HTM}


# A component as in existing applications: a bare WebSocket, opened on mount and closed on clean-up.
COMPONENT = """
import React, { useEffect } from "react";
export default function WebSocketHandler({ onMessage }) {
  useEffect(() => {
    const ws = new WebSocket(window.WS_URL);
    ws.onmessage = (event) => { const data = JSON.parse(event.data); onMessage(data); };
    ws.onopen = () => { window.ws = ws; window.log.push("open"); };
    ws.onerror = () => window.log.push("error");
    ws.onclose = (e) => window.log.push("close " + e.code + " " + e.reason);
    return () => ws.close();
  }, [onMessage]);
  return null;
}
"""
PAGE = """<!doctype html><div id="root"></div>
<script type="importmap">{"imports": {"react": "https://esm.sh/react@19"}}</script>
<script type="module">
import { createElement } from "react";
import { createRoot } from "https://esm.sh/react-dom@19/client?external=react";
import WebSocketHandler from "./component.js";
Object.assign(window, { WS_URL: "%s", log: [], seen: [] });
const onMessage = (message) => window.seen.push(message);
window.root = createRoot(document.getElementById("root"));
window.root.render(createElement(WebSocketHandler, { onMessage }));
</script>"""


def test_a_component_with_a_bare_websocket_gets_every_broadcast_and_its_answer(
    browser: Browser, example: Path, origin: str, server: Server, publisher: Publisher
) -> None:
    (example / "component.js").write_text(COMPONENT, encoding="utf-8")
    (example / "component.html").write_text(PAGE % server.url(f"api/v1/ws?token={TOKEN}"), encoding="utf-8")
    with open_page(browser) as page:
        page.route("https://esm.sh/**", answer_as_the_cdn)
        page.goto(f"{origin}/component.html")
        page.wait_for_function("window.log?.includes('open')")
        broadcast({"type": "follow_up_questions", "questions": ["Question 1 ?"]}, publisher=publisher)
        page.wait_for_function("window.seen.some((m) => m.questions?.[0] === 'Question 1 ?')")
        page.evaluate('window.ws.send(\'{"type": "query", "content": {"question": "How?", "context": {}}}\')')
        page.wait_for_function("window.seen.some((m) => m.type === 'error' && m.content.code === 'NO_ENGINE')")
        page.evaluate("window.root.unmount()")
        page.wait_for_function("window.log.some((line) => line.startsWith('close 1'))")
        assert page.evaluate("window.log.length") == 2, "opened once, closed once, and no error"
