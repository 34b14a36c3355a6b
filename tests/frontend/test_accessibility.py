"""Accessibility of panel and widget: axe-core finds no violation in any view and theme, and the keyboard is enough."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from ragkit.live.messages import ExperimentProgress, ExperimentResult
from ragkit.live.publisher import Publisher
from tests.frontend.test_panel import INDEX, QUESTION, SERVE, publisher, task
from tests.frontend.test_panel import browser as browser
from tests.frontend.test_panel import server as server
from tests.server.live_server import DEADLINE_SECONDS, Server
from tests.support.corpora import write_pages
from tests.support.lab import SETUP, Lab, write_notebook

AXE = Path(sys.prefix, "share", "axe-core", "4.14.1.js")
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
THEMES = ["JupyterLab Light", "JupyterLab Dark", "JupyterLab Dark High Contrast"]
PLACES = [".rk-panel", ".rk-widget"]
VIEWS = ["Activity", "Ask", "Experiments"]
ALL_VIEWS = 'live = Live(engine, views=("activity", "ask", "experiments"))\nlive'
ASK = {"rk-log", "rk-marker", "summary", "rk-link", "rk-chip", "rk-question", "rk-select", "rk-button rk-primary"}

# Acts as a proxy that blocks our WebSockets while `cut` is true.
PROXY = """
const sockets = []
let isCut = false
window.WebSocket = class extends WebSocket {
  constructor(url, ...rest) {
    super(isCut ? String(url).replace('api/v1/ws', 'nowhere') : url, ...rest)
    if (/api.v1.ws/.test(url)) sockets.push(this)
  }
}
window.cut = (isIt) => { isCut = isIt; sockets.forEach((socket) => isIt && socket.close()) }
"""


@pytest.fixture(scope="module")
def batch(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    batch = publisher(server, tmp_path_factory.mktemp("batch"))
    yield batch
    batch.close(5)


@pytest.fixture(scope="module")
def lab(browser: Browser, server: Server, batch: Publisher) -> Iterator[Lab]:
    """JupyterLab with all kinds of content in the views, in the panel and in a widget under a cell."""
    with browser.new_context(viewport={"width": 1500, "height": 2000}) as context:  # everything is visible
        context.set_default_timeout(2000 * DEADLINE_SECONDS)
        context.add_init_script(PROXY)
        lab = Lab(context.new_page(), server)
        root = server.journal_dir.parent / "root"
        write_pages(root / "docs")
        write_notebook(server, "all.ipynb", SETUP, INDEX, SERVE, ALL_VIEWS, "serving.stop()")
        lab.open("all.ipynb")
        for number in range(4):
            lab.run_cell(number)
        show_tasks(lab, batch)
        show_board(lab, batch)
        for view in (lab.panel, lab.widget):
            ask(view)
            expect(view.locator(".rk-answer")).to_be_visible()
            expect(view.locator(".rk-exchange .rk-chip").first).to_be_visible()
            view.locator(".rk-marker").first.click()
        lab.run_cell(4)
        for view in (lab.panel, lab.widget):
            ask(view)
            expect(view.locator(".rk-error")).to_be_visible()
        yield lab


def show_tasks(lab: Lab, batch: Publisher) -> None:
    """Publish tasks that are running, failed (with unreadable files), and done."""
    failures = [{"source": f"scan-{i}.pdf", "reason": "There is no text in it."} for i in range(3)]
    batch.publish(task("unknown", documents_done=3))
    batch.publish(task("queued", "queued"))
    batch.publish(
        task(
            "running", documents_done=3, documents_total=9, chunks_done=30, chunks_total=90, rate=12.5, eta_seconds=5.0,
            current_document="a.md", failures=failures, failures_total=9,
        )
    )  # fmt: skip
    batch.publish(task("failed", "failed", message="The disk is full."))
    batch.publish(task("done", "done", documents_done=3, documents_total=3))
    batch.publish(task("cancelled", "cancelled", message="Interrupted."))
    for view in (lab.panel, lab.widget):
        expect(view).to_contain_text("Indexing running")
        view.locator(".rk-failures:visible > summary").click()
        view.locator(".rk-fold > summary").click()
        expect(view.locator("[data-task=failed]")).to_contain_text("The disk is full.")


def show_board(lab: Lab, batch: Publisher) -> None:
    board = [{"system": "hybrid", "nDCG@10": 0.7171, "note": "default"}, {"system": "bm25", "nDCG@10": 0.6863}]
    batch.publish(ExperimentProgress(task_id="x", experiment="sweep", state="running", cells_done=2, cells_total=4))
    batch.publish(ExperimentResult(task_id="x", experiment="sweep", row=board[0], leaderboard=board))


def ask(view: Locator, question: str = QUESTION) -> None:
    view.get_by_role("tab", name="Ask").click()
    box = view.get_by_role("textbox", name="Question")
    box.fill(question)
    box.press("Enter")


# ------------------------------------------------------------------------------------------- axe


@pytest.fixture(scope="module")
def axe(lab: Lab) -> Page:
    """The page with axe-core loaded."""
    if not AXE.exists():
        pytest.skip("no axe-core: `make test` fetches it where npm is installed")
    lab.page.add_script_tag(path=AXE)
    # JupyterLab's body has no height and hides overflow, so axe would treat all content as hidden.
    lab.page.add_style_tag(content="body { height: 100vh }")
    return lab.page


@pytest.fixture(params=THEMES)
def theme(lab: Lab, axe: Page, request: pytest.FixtureRequest) -> str:
    lab.execute("apputils:change-theme", theme=request.param)
    axe.wait_for_function("name => document.body.dataset.jpThemeName === name", arg=request.param)
    return str(request.param)


def violations(page: Page) -> list[str]:
    """Return axe's violations in panel and widget, without the rest of JupyterLab."""
    found = page.evaluate(
        "([include, values]) => axe.run({ include }, { runOnly: { type: 'tag', values } })", [PLACES, RULES]
    )
    judged = {each["id"]: len(each["nodes"]) for each in found["passes"]}
    assert judged["color-contrast"] > 20  # it did check the texts
    assert found["incomplete"] == []  # and had no undecided cases
    return [
        f"{each['id']}: {node['html']} {node['failureSummary']}"
        for each in found["violations"]
        for node in each["nodes"]
    ]


@pytest.mark.parametrize(("view", "last"), [("Activity", ".rk-compact"), ("Ask", ".rk-error"), ("Experiments", "td")])
def test_axe_finds_nothing_in_a_view(lab: Lab, theme: str, view: str, last: str) -> None:
    for place in (lab.panel, lab.widget):
        place.get_by_role("tab", name=view).click()
        expect(place.locator(last).last).to_be_visible()
    assert violations(lab.page) == []
    lab.screenshot(f"accessibility-{theme}-{view}")


def test_axe_finds_nothing_when_the_connection_is_lost(lab: Lab, theme: str) -> None:
    for place in (lab.panel, lab.widget):
        place.get_by_role("tab", name="Activity").click()
    lab.page.evaluate("cut(true)")
    for place in (lab.panel, lab.widget):
        expect(place.get_by_role("button", name="Try again")).to_be_visible()
        expect(place.locator("[data-problem] p")).to_contain_text("The server answers, but its WebSocket does not")
    found = violations(lab.page)
    lab.screenshot(f"accessibility-{theme}-lost")
    lab.page.evaluate("cut(false)")
    lab.page.evaluate("dispatchEvent(new Event('online'))")
    for place in (lab.panel, lab.widget):
        expect(place.locator('[data-status="open"]')).to_be_visible()
    assert found == []


# ------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize("place", PLACES)
def test_tabs_are_selected_with_arrows_home_and_end(lab: Lab, place: str) -> None:
    live = lab.page.locator(place)
    live.get_by_role("tab", name="Activity").click()
    keys = [("ArrowRight", "Ask"), ("End", "Experiments"), ("ArrowRight", "Activity"), ("ArrowLeft", "Experiments")]
    for key, view in [*keys, ("Home", "Activity")]:
        lab.page.keyboard.press(key)
        tab = live.get_by_role("tab", name=view)
        expect(tab).to_be_focused()
        expect(tab).to_have_attribute("aria-selected", "true")
        expect(live.get_by_role("tabpanel")).to_have_count(1)
        expect(live.get_by_role("tabpanel", name=view)).to_be_visible()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("place", PLACES)
def test_the_tab_key_reaches_every_control_with_a_visible_focus(lab: Lab, place: str, view: str) -> None:
    live = lab.page.locator(place)
    live.get_by_role("tab", name=view).click()
    stops = []
    while len(stops) < 100:
        lab.page.keyboard.press("Tab")
        stop = lab.page.evaluate(
            """place => {
                const element = document.activeElement, { outlineStyle, outlineWidth } = getComputedStyle(element)
                element.dataset.reached = place
                return element.closest(place) && [element.className || element.localName, outlineStyle, outlineWidth]
            }""",
            place,
        )
        if stop is None:
            break
        stops.append(stop)
    assert all(style == "solid" and width == "2px" for _, style, width in stops)
    usable = ":is(button, select, textarea, summary):visible:not([role=tab])"
    assert live.locator(f"{usable}:not([data-reached='{place}'])").count() == 0
    expected = {"Activity": {"summary"}, "Experiments": {"rk-scroll"}, "Ask": ASK}[view]
    assert expected <= {name for name, _, _ in stops}


@pytest.mark.parametrize("place", PLACES)
def test_asking_and_following_up_work_without_a_mouse(lab: Lab, place: str) -> None:
    lab.run_cell(2)  # an engine is available again
    live, keyboard = lab.page.locator(place), lab.page.keyboard
    cells = lab.page.locator(".jp-Cell").count()
    live.get_by_role("tab", name="Ask").click()
    box, asked = live.get_by_role("textbox", name="Question"), live.locator(".rk-asked")
    before = asked.count()
    box.focus()
    keyboard.type("How do I choose k1")
    keyboard.press("Shift+Enter")
    keyboard.type("and b?")  # a and b are also notebook shortcuts
    expect(box).to_have_value("How do I choose k1\nand b?")
    expect(asked).to_have_count(before)
    keyboard.press("Enter")
    expect(box).to_have_value("")
    expect(asked.last).to_have_text("How do I choose k1\nand b?")
    exchange = live.locator(".rk-exchange").nth(before)
    exchange.locator(".rk-marker").first.focus()
    keyboard.press("Enter")
    expect(exchange.locator("summary").first).to_be_focused()
    expect(exchange.locator("blockquote").first).to_be_visible()
    keyboard.press("Enter")
    expect(exchange.locator("blockquote").first).to_be_hidden()
    exchange.locator(".rk-chip").first.focus()
    keyboard.press("Enter")
    expect(asked).to_have_count(before + 2)
    expect(live.locator(".rk-answer")).to_have_count(before + 2 - live.locator(".rk-error").count())
    assert lab.page.locator(".jp-Cell").count() == cells
