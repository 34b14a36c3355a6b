"""The side panel and the widget in a real JupyterLab: what the user sees."""

from __future__ import annotations

import gzip
import json
import os
import re
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from ragkit.live.discovery import Server as HubAddress
from ragkit.live.messages import ExperimentProgress, ExperimentResult, FollowUpQuestions, IndexingProgress, Origin
from ragkit.live.publisher import Publisher
from tests.server.live_server import DEADLINE_SECONDS, ROOT, TOKEN, Server
from tests.support.browser import FLAGS
from tests.support.corpora import write_pages
from tests.support.lab import BASE_URL, PANEL, SETUP, Lab, http_url, start_lab, until, write_corpus, write_notebook

expect.set_options(timeout=1000 * DEADLINE_SECONDS)

INDEX = 'report = engine.index("docs"); print(report)'
SERVE = "serving = engine.serve()"
QUESTION = "How do I choose k1 and b?"
HOSTILE = """<script>hack("script")</script><img src="x:" onerror="hack('onerror')">
[a link](javascript:hack('link')) <a href="javascript:hack('href')">k1</a> $\\href{javascript:hack('tex')}{x}$"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no browser: neither chromium nor google-chrome is on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_lab(tmp_path_factory.mktemp("lab"))
    yield server
    server.stop()


@pytest.fixture
def root(server: Server) -> Path:
    """The server's root, emptied."""
    root = server.journal_dir.parent / "root"
    for path in root.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return root


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.new_context(viewport={"width": 1500, "height": 950}) as context:
        context.set_default_timeout(2000 * DEADLINE_SECONDS)
        yield context.new_page()


@pytest.fixture
def lab(page: Page, server: Server) -> Iterator[Lab]:
    lab = Lab(page, server)
    yield lab
    for kernel in _kernels(lab.page):  # or the next test's panel would show its tasks
        lab.page.request.delete(http_url(server, f"api/kernels/{kernel}"), headers={"Authorization": f"token {TOKEN}"})


def _kernels(page: Page) -> list[str]:
    ids = page.evaluate("[...(window.jupyterapp?.serviceManager.kernels.running() ?? [])].map(({ id }) => id)")
    return list(ids)


def publisher(server: Server, folder: Path, name: str = "batch.ipynb") -> Publisher:
    """A publisher in this process that acts as a batch run."""
    origin = Origin(kind="papermill", name=name, run_id=secrets.token_hex(4))
    return Publisher(server=HubAddress(http_url(server), TOKEN), origin=origin, journal_folder=folder)


def task(id: str, state: str = "running", **keys: object) -> IndexingProgress:
    return IndexingProgress(task_id=id, index=id, state=state, **keys)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------- live


def test_panel_and_widget_show_indexing_in_a_cell_live(lab: Lab, root: Path) -> None:
    files = write_corpus(root / "docs", 60)
    (root / "hold").touch()
    write_notebook(lab.server, "live.ipynb", SETUP, "live = Live(engine)\nlive", INDEX)
    lab.open("live.ipynb")
    lab.run_cell(0)
    lab.run_cell(1)
    expect(lab.widget).to_contain_text("Live")
    lab.start_cell(2)
    for view in (lab.panel, lab.widget):  # while the kernel is busy
        bar = view.get_by_role("progressbar", name="Indexing index")
        expect(bar).to_have_attribute("aria-valuenow", re.compile("^[1-9][0-9]?$"))
        expect(view).to_contain_text(f"of {files} documents")
    lab.screenshot("live-running")
    (root / "hold").unlink()
    for view in (lab.panel, lab.widget):
        expect(view.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "100")
        expect(view).to_contain_text(f"{files} of {files} documents")
        expect(view.locator(".rk-state")).to_have_text("done")
    report = lab.page.locator(".jp-OutputArea-output").last.inner_text()
    passages = re.search(r"(\d+) passages embedded", report)
    assert passages is not None
    expect(lab.panel).to_contain_text(f"{passages[1]} of {passages[1]} passages")
    lab.screenshot("live-done")
    lab.panel.get_by_role("button", name="live.ipynb").click()
    expect(lab.page.locator(".jp-NotebookPanel")).to_be_visible()
    # It is collapsed after a while, and all its details are kept.
    lab.panel.get_by_text("1 finished task").click(timeout=30_000)
    expect(lab.panel.locator(".rk-compact")).to_contain_text("Indexing index")


def test_files_that_cannot_be_read_are_listed_with_their_reasons(lab: Lab, root: Path) -> None:
    write_corpus(root / "docs", 3)
    (root / "docs" / "broken.pdf").write_bytes(b"%PDF-1.7 and nothing more")
    write_notebook(lab.server, "failures.ipynb", SETUP, INDEX)
    lab.open("failures.ipynb")
    lab.run_cell(0)
    lab.run_cell(1)
    lab.panel.get_by_text("1 file could not be read").click()
    expect(lab.panel.locator(".rk-failures")).to_contain_text("broken.pdf")


# --------------------------------------------------------------------------------------- survives


@pytest.mark.parametrize("dies", [False, True])
def test_a_closed_tab_misses_nothing_and_the_tasks_of_an_ended_kernel_end(lab: Lab, root: Path, dies: bool) -> None:
    write_corpus(root / "docs", 60)
    (root / "hold").touch()
    pid = "import os; _ = Path('pid').write_text(str(os.getpid()))"
    write_notebook(lab.server, "survives.ipynb", SETUP + pid, INDEX)
    lab.open("survives.ipynb")
    lab.run_cell(0)
    lab.start_cell(1)
    bar = lab.panel.get_by_role("progressbar", name="Indexing index")
    expect(bar).to_have_attribute("aria-valuenow", re.compile("^[1-9]"))
    before = bar.get_attribute("aria-valuenow")

    # Another tab shows the same at once.
    context = lab.page.context
    lab.page.close()
    lab.page = context.new_page()
    lab.open()
    expect(lab.panel.get_by_role("progressbar", name="Indexing index")).to_have_attribute("aria-valuenow", before or "")

    # A restart by the user interrupts the kernel first, so it reports the end itself. A dead kernel reports nothing.
    state = lab.panel.locator(".rk-state").first
    if dies:
        os.kill(int((root / "pid").read_text()), signal.SIGKILL)
        expect(state).to_have_text("failed")
    else:
        (kernel,) = until(lambda: _kernels(lab.page))
        headers = {"Authorization": f"token {TOKEN}"}
        lab.page.request.post(http_url(lab.server, f"api/kernels/{kernel}/restart"), headers=headers)
        expect(state).to_have_text(re.compile("cancelled|failed"))
    expect(lab.panel.locator(".rk-message").first).not_to_be_empty()
    lab.screenshot("kernel-died" if dies else "kernel-restarted")


def test_the_panel_reconnects_to_a_restarted_server_and_misses_nothing(
    page: Page, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("restart")
    server = start_lab(folder)
    try:
        lab = Lab(page, server)
        lab.open()
        batch = publisher(server, tmp_path)
        batch.publish(task("before", documents_done=1, documents_total=4))
        expect(lab.panel).to_contain_text("Indexing before")
        server.kill()
        expect(lab.panel).to_contain_text("Not connected")
        expect(lab.panel).to_contain_text("The connection was lost")
        batch.publish(task("before", "done", documents_done=4, documents_total=4))
        batch.publish(task("meanwhile", documents_done=2, documents_total=4, chunks_done=5, chunks_total=10))
        lab.screenshot("server-gone")
        server = start_lab(folder, port=server.port)
        expect(lab.panel.locator('[data-status="open"]')).to_be_visible()
        expect(lab.panel.get_by_role("progressbar", name="Indexing meanwhile")).to_have_attribute("aria-valuenow", "50")
        expect(lab.panel.locator("[data-task=before] .rk-state")).to_have_text("done")
        assert lab.panel.locator("[data-task=before]").count() == 1
        batch.close(5)
    finally:
        server.stop()


def test_the_panel_shows_the_problem_and_the_solution(lab: Lab) -> None:
    lab.open()
    expect(lab.panel).to_contain_text("Live")
    lab.page.context.set_offline(True)
    lab.page.evaluate("dispatchEvent(new Event('offline'))")
    lab.page.context.set_offline(False)
    expect(lab.panel.locator('[data-status="open"]')).to_be_visible()


# -------------------------------------------------------------------------------------------- ask


def test_questions_are_answered_by_the_notebooks_own_engine(lab: Lab, root: Path) -> None:
    write_pages(root / "docs")
    other = 'engine = RAGEngine("index", embedder=embedder, llm=ScriptedLLM(["Quite ", "another one. [1]"]))\n'
    write_notebook(lab.server, "ask.ipynb", SETUP, INDEX, SERVE, other + SERVE)
    lab.open("ask.ipynb")
    for number in range(3):
        lab.run_cell(number)
    # With the cursor in the notebook, as for a real user: the command moves the focus to the question field.
    lab.page.locator(".jp-Cell").first.click()
    lab.page.keyboard.press("Control+Shift+C")
    lab.page.locator(".lm-CommandPalette-input").fill("Ask your documents")
    lab.page.keyboard.press("Enter")
    box = lab.panel.get_by_role("textbox", name="Question")
    expect(box).to_be_focused()
    box.fill(QUESTION)
    box.press("Enter")
    answer = lab.panel.locator(".rk-answer")
    expect(answer).to_contain_text("1.2")

    # A citation opens its passage, and the passage opens its file.
    answer.locator(".rk-marker").first.click()
    expect(answer.locator("mark").first).to_be_visible()
    expect(answer.locator("mark").first).to_contain_text("1.2")
    lab.screenshot("ask")
    answer.get_by_role("button", name="Open bm25.md").first.click()
    expect(lab.page.locator(".jp-FileEditor")).to_be_visible()
    selected = """() => {
        const { editor } = jupyterapp.shell.currentWidget.content, { start, end } = editor.getSelection()
        const at = (position) => editor.getOffsetAt(position)
        return editor.model.sharedModel.getSource().slice(at(start), at(end))
    }"""
    until(lambda: "1.2" in lab.page.evaluate(selected))

    # A follow-up question is one click.
    chip = lab.panel.locator(".rk-exchange .rk-chip").first
    question = chip.inner_text()
    chip.click()
    expect(lab.panel.locator(".rk-exchange")).to_have_count(2)
    expect(lab.panel.locator(".rk-asked").last).to_have_text(question)
    expect(lab.panel.locator(".rk-answer")).to_have_count(2)

    # After the engine is changed in a cell, the new one answers.
    lab.execute("docmanager:open", path="ask.ipynb")
    lab.run_cell(3)
    box.fill(QUESTION)
    lab.panel.get_by_role("button", name="Ask", exact=True).click()
    expect(lab.panel.locator(".rk-answer").last).to_contain_text("Quite another one.")
    expect(lab.panel.locator(".rk-answer").last.locator(".rk-marker")).to_have_text("1")

    # The questions are still there after a reload.
    lab.page.reload()
    lab.page.wait_for_function("window.jupyterapp")
    lab.page.evaluate("() => jupyterapp.restored")
    lab.execute("ragkit:ask")
    expect(lab.panel.locator(".rk-answer")).to_have_count(3)
    expect(lab.panel.locator(".rk-answer").last).to_contain_text("Quite another one.")
    lab.panel.get_by_role("button", name="Clear").click()
    expect(lab.panel.locator(".rk-exchange")).to_have_count(0)


def test_an_answer_streams_and_can_be_stopped(lab: Lab, root: Path) -> None:
    write_pages(root / "docs")
    slow = 'engine.llm = ScriptedLLM(["word "] * 1000, delay_seconds=0.2)\n'
    write_notebook(lab.server, "stop.ipynb", SETUP + slow, INDEX, SERVE)
    lab.open("stop.ipynb")
    for number in range(3):
        lab.run_cell(number)
    lab.execute("ragkit:ask")
    box = lab.panel.get_by_role("textbox", name="Question")
    box.fill(QUESTION)
    box.press("Enter")
    expect(lab.panel.locator(".rk-exchange").last).to_contain_text("word word word")
    lab.panel.get_by_role("button", name="Stop").click()
    expect(lab.panel.locator(".rk-error")).to_contain_text("CANCELLED")
    expect(lab.panel.get_by_role("button", name="Ask", exact=True)).to_be_visible()


def test_an_engine_can_be_selected_by_name(lab: Lab, root: Path) -> None:
    write_pages(root / "docs")
    two = """
for name in ("first", "second"):
    one = RAGEngine(name, embedder=embedder, llm=ScriptedLLM([f"The {name} answers. [1]"]), progress=False)
    one.index("docs")
    one.serve()
"""
    write_notebook(lab.server, "two.ipynb", SETUP, two)
    lab.open("two.ipynb")
    lab.run_cell(0)
    lab.run_cell(1)
    lab.execute("ragkit:ask")
    engines = lab.panel.get_by_role("combobox", name="Engine")
    box = lab.panel.get_by_role("textbox", name="Question")
    expect(engines.locator("option")).to_have_count(3)
    box.fill(QUESTION)
    box.press("Enter")
    expect(lab.panel.locator(".rk-answer").last).to_contain_text("The second answers.")
    engines.select_option(label="first · scripted (two.ipynb)")
    box.fill(QUESTION)
    box.press("Enter")
    expect(lab.panel.locator(".rk-answer").last).to_contain_text("The first answers.")


def test_without_an_engine_it_says_what_to_run(lab: Lab, root: Path) -> None:
    lab.open()
    lab.execute("ragkit:ask")
    expect(lab.panel).to_contain_text("Run engine.serve() in a notebook")
    box = lab.panel.get_by_role("textbox", name="Question")
    box.fill(QUESTION)
    box.press("Enter")
    expect(lab.panel.locator(".rk-error")).to_contain_text("engine.serve()")
    lab.panel.get_by_role("button", name="Clear").click()


# ------------------------------------------------------------------------------------- the widget


@pytest.mark.parametrize("served", [True, False], ids=["socket", "kernel"])
def test_the_widget_asks_and_python_sees_the_answer(lab: Lab, root: Path, served: bool) -> None:
    """Over the socket, or through the kernel where the page cannot reach a server (VS Code, Colab)."""
    write_pages(root / "docs")
    seen = 'print(live.question, "|", live.answer["answer"], "|", live.follow_up)'
    name = f"widget-{served}.ipynb"
    write_notebook(lab.server, name, SETUP, "live = Live(engine)\nlive", INDEX, SERVE if served else "", seen)
    lab.open(name)
    lab.run_cell(0)
    if not served:
        lab.page.evaluate("document.getElementById('jupyter-config-data').remove()")
    for number in (1, 2, 3)[: 3 if served else 2]:
        lab.run_cell(number)
    expect(lab.widget).to_contain_text("Live" if served else "Live from this kernel")
    expect(lab.widget).to_contain_text("4 of 4 documents")
    lab.widget.get_by_role("tab", name="Ask").click()
    box = lab.widget.get_by_role("textbox", name="Question")
    box.fill(QUESTION)
    box.press("Enter")
    expect(lab.widget.locator(".rk-answer")).to_contain_text("1.2")
    lab.widget.locator(".rk-exchange .rk-chip").first.click()
    expect(lab.widget.locator(".rk-answer")).to_have_count(2)
    chip = lab.widget.locator(".rk-asked").last.inner_text()
    answer = lab.widget.locator(".rk-answer").last.locator(".rk-text").inner_text()
    lab.screenshot(f"widget-{'socket' if served else 'kernel'}")
    lab.run_cell(4)
    printed = lab.page.locator(".jp-OutputArea-output").last.inner_text()
    question, text, follow_up = printed.split(" | ")
    assert question == follow_up.strip() == chip
    assert text.split()[:5] == answer.split()[:5]


# ------------------------------------------------------------------------------------ experiments


def test_the_leaderboard_shows_the_rows_of_an_experiment(lab: Lab, tmp_path: Path) -> None:
    batch = publisher(lab.server, tmp_path, "sweep.ipynb")
    lab.open()
    lab.show("Experiments")
    board: list[dict[str, object]] = []
    for cells, (system, score) in enumerate([("bm25", 0.6863), ("dense", 0.64512345), ("hybrid", 0.7171)], 1):
        board.append({"system": system, "nDCG@10": score})
        board.sort(key=lambda row: -float(str(row["nDCG@10"])))
        row = {"system": system, "nDCG@10": score}
        progress = ExperimentProgress(task_id="x", experiment="sweep", state="running", cells_done=cells, cells_total=4)
        batch.publish(progress)
        batch.publish(ExperimentResult(task_id="x", experiment="sweep", row=row, leaderboard=list(board)))
        expect(lab.panel.locator("tbody tr")).to_have_count(cells)
        expect(lab.panel.locator(".rk-new")).to_contain_text(system)
    expect(lab.panel.locator("tbody tr").first).to_have_text("hybrid0.7171")
    expect(lab.panel.locator("tbody")).to_contain_text("0.6451")
    expect(lab.panel).to_contain_text("75 %")
    lab.screenshot("experiments")
    lab.open()  # a page that is opened later shows it, too
    lab.show("Experiments")
    expect(lab.panel.locator("tbody tr")).to_have_count(3)
    batch.publish(ExperimentProgress(task_id="x", experiment="sweep", state="done", cells_done=4, cells_total=4))
    batch.close(5)


# ---------------------------------------------------------------------------------------- hostile


def test_text_of_documents_and_models_is_never_executed(lab: Lab, root: Path, tmp_path: Path) -> None:
    batch = publisher(lab.server, tmp_path, HOSTILE)
    write_pages(root / "docs")
    (root / "docs" / "hostile.md").write_text(f"# {HOSTILE}\n\n## {HOSTILE}\n\nThe usual k1 is {HOSTILE}.\n")
    scripted = f"engine.llm = ScriptedLLM([{HOSTILE + ' [1] [2] [3] [4] [5]'!r}])\n"
    write_notebook(lab.server, "hostile.ipynb", SETUP + scripted, "live = Live()\nlive", INDEX, SERVE)
    lab.page.add_init_script("window.hacked = []; window.hack = (what) => hacked.push(what)")
    lab.page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    lab.open("hostile.ipynb")
    for number in range(4):
        lab.run_cell(number)
    failures = [{"source": HOSTILE, "reason": HOSTILE}]
    batch.publish(task(HOSTILE[:100], failures=failures, failures_total=1, current_document=HOSTILE))
    batch.publish(task("failed", "failed", message=HOSTILE))
    batch.publish(FollowUpQuestions(questions=[HOSTILE]))
    row = {HOSTILE: HOSTILE}
    batch.publish(ExperimentResult(task_id="x", experiment=HOSTILE, row=row, leaderboard=[row]))
    expect(lab.panel).to_contain_text('<script>hack("script")</script>')
    for view in (lab.panel, lab.widget):
        for summary in view.locator("summary:visible").all():
            summary.click()
        view.get_by_role("tab", name="Ask").click()
        box = view.get_by_role("textbox", name="Question")
        box.fill("The usual k1?")
        box.press("Enter")
        expect(view.locator(".rk-answer").last).to_contain_text("hack")
        for marker in view.locator(".rk-marker:visible").all():
            marker.click()
    lab.show("Experiments")
    expect(lab.panel.locator("td").first).to_contain_text("hack")
    lab.page.wait_for_timeout(500)  # for delayed execution
    assert lab.page.evaluate("hacked") == []
    for view in (lab.panel, lab.widget):
        assert view.locator("a, img, script, iframe, mjx-container").count() == 0
    batch.publish(task(HOSTILE[:100], "done"))
    batch.close(5)


# ---------------------------------------------------------------------------------- French, places


def test_the_panel_is_in_french(page: Page, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("french")
    settings = folder / "settings" / "@jupyterlab" / "translation-extension"
    settings.mkdir(parents=True)
    (settings / "plugin.jupyterlab-settings").write_text('{"locale": "fr_FR"}')
    server = start_lab(folder)
    try:
        lab = Lab(page, server)
        write_notebook(server, "live.ipynb", SETUP, "live = Live(engine)\nlive")
        lab.open("live.ipynb")
        batch = publisher(server, tmp_path)
        failures = [{"source": "a.pdf", "reason": "?"}]
        batch.publish(task("t", documents_done=1200, documents_total=4000, failures=failures, failures_total=1))
        lab.run_cell(0)
        lab.run_cell(1)
        for view in (lab.panel, lab.widget):
            expect(view).to_contain_text("En direct")
            expect(view.get_by_role("tab", name="Activité")).to_be_visible()
            expect(view).to_contain_text(re.compile(r"1\s200 documents sur 4\s000"))
            expect(view).to_contain_text("1 fichier n'a pas pu être lu")
        lab.show("Interroger")
        expect(lab.panel.get_by_role("textbox", name="Question")).to_be_visible()
        lab.screenshot("french")
        batch.close(5)
    finally:
        server.stop()


def test_every_text_is_in_french() -> None:
    catalogue = json.loads((ROOT / "frontend" / "src" / "locale" / "fr_FR.json").read_text(encoding="utf-8"))
    shipped = ROOT / "server_extension" / "ragkit_server" / "locale" / "fr_FR" / "LC_MESSAGES" / "ragkit.json"
    assert json.loads(shipped.read_text(encoding="utf-8")) == catalogue
    string = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
    texts: set[str] = set()
    for path in (ROOT / "frontend" / "src").rglob("*.ts"):
        source = path.read_text(encoding="utf-8")
        texts |= {found[1:-1] for found in re.findall(rf"\b(?:__|_n)\(\s*{string}", source)}
        # Texts that are passed as variables and translated later.
        texts |= {found[1:-1] for found in re.findall(string, source) if re.fullmatch(r".%1 (of %2 )?\w+.", found)}
    plurals = {"%1 finished tasks", "%1 tasks"}
    assert texts - plurals - set(catalogue) == set()
    assert set(catalogue) - texts == {""}
    for text, translations in catalogue.items():
        if text:
            marks = [set(re.findall(r"%\d", part)) for part in (text, *translations)]
            assert all(found == marks[0] for found in marks), text


def test_the_panel_can_move_and_has_a_status_bar_item(lab: Lab, tmp_path: Path) -> None:
    lab.open()
    status = lab.page.locator(".rk-status")
    expect(status).to_have_text("ragkit: nothing runs")
    batch = publisher(lab.server, tmp_path)
    batch.publish(task("t", chunks_done=3, chunks_total=10))
    expect(status).to_have_text("ragkit: 1 task, 30 %")
    expect(lab.page.locator("#jp-right-stack .rk-panel")).to_be_visible()
    setting = """async ([key, value]) => {
        const id = 'ragkit-lab:panel', { settings } = jupyterapp.serviceManager
        await settings.save(id, JSON.stringify({ [key]: value }))
    }"""
    lab.page.evaluate(setting, ["side", "left"])
    lab.open()
    expect(lab.page.locator("#jp-left-stack .rk-panel")).to_be_visible()
    lab.page.evaluate(setting, ["statusBar", False])
    lab.open()
    expect(lab.page.locator("#jp-right-stack .rk-panel")).to_be_visible()
    expect(lab.page.locator(".rk-status")).to_be_hidden()
    lab.page.evaluate(setting, ["statusBar", True])
    lab.open()
    expect(lab.page.locator(".rk-status")).to_be_visible()
    batch.publish(task("t", "done"))
    batch.close(5)


def test_notebook_7_has_the_panel(page: Page, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    server = start_lab(tmp_path_factory.mktemp("notebook"), app="notebook")
    try:
        write_notebook(server, "live.ipynb", SETUP, "live = Live(engine)\nlive")
        page.goto(http_url(server, f"notebooks/live.ipynb?token={TOKEN}"))
        page.wait_for_function("window.jupyterapp")
        page.evaluate("() => jupyterapp.restored")
        page.evaluate("() => jupyterapp.commands.execute('ragkit:activity')")
        # A server that is stopped while it starts a kernel would not end.
        page.wait_for_function("jupyterapp.serviceManager.kernels.running().next().value?.execution_state === 'idle'")
        batch = publisher(server, tmp_path)
        batch.publish(task("t", chunks_done=3, chunks_total=10))
        panel = page.locator(".rk-panel")
        expect(panel.get_by_role("progressbar", name="Indexing t")).to_have_attribute("aria-valuenow", "30")
        Lab(page, server).screenshot("notebook-7")
        batch.close(5)
    finally:
        server.stop()


# ------------------------------------------------------------------------------------------- cost


def test_the_bundles_are_small() -> None:
    files = [*PANEL.glob("static/*.js"), *(ROOT / "ragkit" / "static").glob("widget.*")]
    size = sum(len(gzip.compress(path.read_bytes())) for path in files)
    print(f"panel and widget: {size / 1000:.1f} kB gzipped")
    assert len(files) >= 4
    assert size < 150_000
    assert BASE_URL not in "".join(path.read_text(encoding="utf-8") for path in files)
