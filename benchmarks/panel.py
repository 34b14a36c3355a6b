"""Measure the side panel's cost in a real JupyterLab and a real Chromium; every figure has a required limit.

Run it from the repository root: ``python -m benchmarks.panel [ROW ...]``. It prints a table and fails if a
limit is missed.

frames   The longest time between two frames of the page while 1,000 tasks publish 10,000 events, as fast as the
         hub accepts them and over ten seconds; then both again with the finished tasks expanded. All of them must
         arrive. For comparison, the same page while nothing is published, because other load delays frames, too.
memory   The page's memory after a garbage collection: before, after 10,000 events, after 50,000 more.
start    From the navigation until JupyterLab is restored, with and without the panel, with an empty cache. They
         alternate; the figure is the median difference of consecutive pairs, with its confidence interval. The panel
         must not delay the start, or by less than 2 %.
size     The bundles of panel and widget, gzipped.
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from websockets.sync.client import ClientConnection, connect

from benchmarks.hub import Figure
from benchmarks.servers import TOKEN, end_children, prepare
from ragkit.live.discovery import Server as Address
from ragkit.live.messages import Broadcast, ExperimentResult, FollowUpQuestions, IndexingProgress, Origin
from ragkit.live.publisher import Publisher
from tests.server.live_server import DEADLINE_SECONDS, ROOT, Server, start_server
from tests.support.browser import FLAGS
from tests.support.lab import PANEL, http_url, start_lab, until

MAX_FRAME_MS = 100.0
MAX_MORE_MB = 20.0
MAX_TIMES_LATER = 1.1
MAX_LATER_SHARE = 0.02
MAX_KB = 150.0

TASKS, STEPS, OTHERS = 1_000, 8, 500
EVENTS = TASKS * (STEPS + 1) + 2 * OTHERS
SECONDS = 10.0  # duration of publishing when not as fast as possible
STARTS = 20  # pairs, after a warm-up pair
MB = 1e6
PANEL_NAME = "ragkit-lab"

# Recorded in the page: the newest broadcast, the delays of frames, and when JupyterLab was ready.
NOTES = """
const notes = window.notes = { heard: 0, seq: () => Number(/"seq":(\\d+)/.exec(notes.last)[1]) }
window.WebSocket = class extends WebSocket {
  constructor(url, ...rest) {
    super(url, ...rest)
    if (/api.v1.ws/.test(url)) this.addEventListener('message', ({ data }) => {
      if (data.includes('"seq"')) notes.last = data, notes.heard++
    })
  }
}
notes.watch = () => {
  let last = performance.now(), longest = 0, task = 0, isOver = false
  const observer = new PerformanceObserver((list) => {
    for (const { duration } of list.getEntries()) task = Math.max(task, duration)
  })
  observer.observe({ type: 'longtask' })
  requestAnimationFrame(function frame() {
    const now = performance.now()
    longest = Math.max(longest, now - last)
    last = now
    isOver || requestAnimationFrame(frame)
  })
  notes.end = () => {
    isOver = true
    observer.disconnect()
    return [Math.max(longest, performance.now() - last), task]
  }
}
Object.defineProperty(window, 'jupyterapp', {
  configurable: true,
  set(app) {
    Object.defineProperty(window, 'jupyterapp', { value: app })
    app.restored.then(() => { notes.restored = performance.now() })
  }
})
"""


# ---------------------------------------------------------------------------------------------- frames, memory


def events(name: str, steps: range) -> Iterator[Broadcast]:
    """Yield these steps of all tasks, with follow-up questions and results in between; the last step ends them."""
    for number in range(steps.start * TASKS, steps.stop * TASKS):
        step, i = divmod(number, TASKS)
        done = {"documents_done": 50 * step, "documents_total": 400, "chunks_done": 500 * step, "chunks_total": 4_000}
        task = IndexingProgress(task_id=f"{name}-{i}", index=f"index {i}", state="running", **done)
        if step < STEPS:
            doing = {"rate": 90.0 + i % 20, "eta_seconds": 60.0 - step, "current_document": f"handbook/page-{i}.md"}
            yield replace(task, **doing)
        elif i % 10:
            yield replace(task, state="done")
        else:
            yield replace(task, state="failed", message="The disk is full.")
        if number % (TASKS * (STEPS + 1) // OTHERS) == 0:
            yield FollowUpQuestions(questions=[f"What is {number}?", "And what is next to it?"])
            sweep, row = f"sweep {number % 7}", {"system": f"system {number}", "nDCG@10": 1 / (1 + number)}
            yield ExperimentResult(task_id=sweep, experiment=sweep, row=row, leaderboard=[row] * 20)


class Chromium:
    """A separate Chromium, controlled over the DevTools protocol.

    Playwright makes it report every frame of every WebSocket from the page's thread, which takes half of the page's
    time while thousands arrive.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.asked = 0

    def send(self, method: str, session: str | None = None, **params: Any) -> Any:
        """Send a command and return its result."""
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": session} if session else {})))
        while (answer := json.loads(self.socket.recv(DEADLINE_SECONDS))).get("id") != self.asked:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]


class Page:
    """A page with JupyterLab in a new browser context with an empty cache."""

    def __init__(self, chromium: Chromium, server: Server) -> None:
        self.chromium = chromium
        self.context = chromium.send("Target.createBrowserContext")["browserContextId"]
        where = {"browserContextId": self.context, "width": 1500, "height": 950}
        target = chromium.send("Target.createTarget", url="about:blank", **where)["targetId"]
        self.session = chromium.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.send("Page.enable")
        self.send("Page.addScriptToEvaluateOnNewDocument", source=NOTES)
        self.send("Page.navigate", url=http_url(server, f"lab?token={TOKEN}"))
        until(lambda: self.evaluate("window.notes?.restored"), "JupyterLab did not start")

    def send(self, method: str, **params: Any) -> Any:
        return self.chromium.send(method, self.session, **params)

    def evaluate(self, expression: str) -> Any:
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def close(self) -> None:
        self.chromium.send("Target.disposeBrowserContext", browserContextId=self.context)


class Bench:
    """JupyterLab with the panel open, and a publisher."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self.server, self.rounds = page, server, 0
        page.evaluate("jupyterapp.commands.execute('ragkit:activity').then(() => 0)")
        until(lambda: page.evaluate("Boolean(notes.last)"), "the panel does not listen")
        origin = Origin(kind="script", name="bench", run_id="bench")
        # With room for everything, so that it does not drop superseded progress.
        self.kernel = Publisher(server=Address(http_url(server), TOKEN), origin=origin, max_queue=20 * EVENTS)

    def publish(self, seconds: float) -> None:
        """Publish 10,000 events within this time and wait until the page shows them; fail if any is missing."""
        self.rounds += 1
        before, heard = self.seq(), self.page.evaluate("notes.heard")
        for steps, shown in ((range(STEPS), f"{TASKS} tasks"), (range(STEPS, STEPS + 1), "nothing runs")):
            began = time.monotonic()
            for n, event in enumerate(events(f"round-{self.rounds}", steps)):
                time.sleep(max(0.0, began + seconds * n / EVENTS - time.monotonic()))
                self.kernel.publish(event)
            self.kernel.flush(DEADLINE_SECONDS)
            until(lambda: self.page.evaluate("notes.seq()") == self.seq(), "not everything has arrived")
            time.sleep(1.0)  # wait for deferred updates
            if (status := self.page.evaluate("document.querySelector('.rk-status').textContent")) != f"ragkit: {shown}":
                raise RuntimeError(f"the panel says {status!r}, not {shown!r}")
        published, heard = self.seq() - before, self.page.evaluate("notes.heard") - heard
        if not published == heard == EVENTS:
            raise RuntimeError(f"of {EVENTS:,} events the hub got {published:,} and the page {heard:,}")

    def seq(self) -> int:
        """Return the number of the hub's newest event."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=DEADLINE_SECONDS)
        with contextlib.closing(connection):
            headers = {"Authorization": f"token {TOKEN}"}
            connection.request("GET", f"{self.server.base_url}api/v1/status", headers=headers)
            return int(json.load(connection.getresponse())["seq"])

    def holds(self) -> tuple[float, int]:
        """Return the bytes of the page's JavaScript heap and the number of DOM nodes, after a garbage collection."""
        self.page.send("HeapProfiler.collectGarbage")
        heap = self.page.send("Runtime.getHeapUsage")["usedSize"]
        return float(heap), int(self.page.send("Memory.getDOMCounters")["nodes"])


@contextlib.contextmanager
def chromium() -> Iterator[Chromium]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "chromium")
    with tempfile.TemporaryDirectory(prefix="ragkit-bench-", ignore_cleanup_errors=True) as folder:
        command = [found, "--headless", *FLAGS, "--remote-debugging-port=0", f"--user-data-dir={folder}"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            where = Path(folder) / "DevToolsActivePort"
            port, path = until(lambda: where.exists() and len(lines := where.read_text().split()) == 2 and lines)
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as socket:
                yield Chromium(socket)
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    with tempfile.TemporaryDirectory(prefix="ragkit-bench-", ignore_cleanup_errors=True) as folder:
        server = start_lab(Path(folder))
        try:
            with chromium() as browser:
                each = Bench(Page(browser, server), server)
                yield each
                each.kernel.close()
        finally:
            server.stop()


def frames() -> Iterator[Figure]:
    with bench() as each:

        def watched(row: str, seconds: float | None, bar: float = MAX_FRAME_MS) -> Figure:
            each.page.evaluate("notes.watch()")
            time.sleep(SECONDS) if seconds is None else each.publish(seconds)
            frame, task = each.page.evaluate("notes.end()")
            figure = f"{frame:.0f} ms at most; the longest task {task:.0f} ms"
            return Figure(f"frames, {row}", figure, f"<= {bar:g} ms" if bar < np.inf else "not judged", frame <= bar)

        yield watched("nothing is published", None, np.inf)
        for unfolded in ("", ", unfolded"):
            if unfolded:
                each.page.evaluate("document.querySelector('.rk-fold > summary').click()")
            yield watched(f"{EVENTS:,} events at once{unfolded}", 0.0)
            yield watched(f"{EVENTS:,} in {SECONDS:g} s{unfolded}", SECONDS)
        yield watched("nothing is published", None, np.inf)


def memory() -> Iterator[Figure]:
    with bench() as each:
        held = [each.holds()]
        for rounds in (1, 5):
            for _ in range(rounds):
                each.publish(0)
            held.append(each.holds())
    (heap, at_first), (after, nodes), (later, nodes_later) = held
    yield Figure(
        f"memory, after {EVENTS:,} events",
        f"{(after - heap) / MB:+.1f} MB (from {heap / MB:.1f}); {nodes - at_first:+,} nodes (from {at_first:,})",
        f"< {MAX_MORE_MB:g} MB",
        after - heap < MAX_MORE_MB * MB,
    )
    yield Figure(
        f"memory, after {5 * EVENTS:,} more",
        f"{later / after:.3f} x ({(later - heap) / MB:+.1f} MB in all); {nodes_later / nodes:.3f} x the nodes",
        f"<= {MAX_TIMES_LATER:g} x",
        max(later / after, nodes_later / nodes) <= MAX_TIMES_LATER and later - heap < MAX_MORE_MB * MB,
    )


# -------------------------------------------------------------------------------------------------- start, size


@contextlib.contextmanager
def labs() -> Iterator[dict[bool, Server]]:
    """Start two JupyterLabs that differ only in the panel."""
    installed = Path(sys.prefix) / "share" / "jupyter" / "labextensions"
    with contextlib.ExitStack() as stack:
        servers = {}
        for with_panel in (True, False):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ragkit-bench-")))
            extensions = folder / "labextensions"
            extensions.mkdir()
            others = (path for path in installed.iterdir() if path.name != PANEL_NAME)
            for path in [*others, PANEL] if with_panel else others:
                (extensions / (PANEL_NAME if path == PANEL else path.name)).symlink_to(path)
            servers[with_panel] = start_server(
                folder,
                f"--LabServerApp.labextensions_path={extensions}",
                f"--LabApp.user_settings_dir={folder / 'settings'}",
                f"--LabApp.workspaces_dir={folder / 'workspaces'}",
                "--LabApp.expose_app_in_browser=True",
                app="lab",
            )
            stack.callback(servers[with_panel].stop)
        yield servers


def start() -> Iterator[Figure]:
    took: dict[bool, list[float]] = {True: [], False: []}
    with chromium() as browser, labs() as servers:
        for i in range(STARTS + 1):
            for with_panel in (True, False) if i % 2 else (False, True):
                with contextlib.closing(Page(browser, servers[with_panel])) as page:
                    if page.evaluate("'ragkit-lab' in _JUPYTERLAB") != with_panel:
                        raise RuntimeError("the panel is installed in the wrong JupyterLab")
                    took[with_panel].append(page.evaluate("notes.restored"))
    with_it, without = (np.array(took[which][1:]) for which in (True, False))
    later = with_it - without  # consecutive pairs, so that other load affects both
    median, base = float(np.median(later)), float(np.median(without))
    low, high = np.quantile(np.median(np.random.default_rng(0).choice(later, (10_000, STARTS)), axis=1), [0.025, 0.975])
    yield Figure(
        f"start, {STARTS} pairs",
        f"{median:+.0f} ms, 95 % from {low:+.0f} to {high:+.0f}; {np.median(with_it):,.0f} ms, without {base:,.0f}",
        f"0 or < {MAX_LATER_SHARE:.0%}",
        bool(low <= 0 or median < MAX_LATER_SHARE * base),
    )


def size() -> Iterator[Figure]:
    files = [*PANEL.glob("static/*.js"), *(ROOT / "ragkit" / "static").glob("widget.*")]
    total = sum(len(gzip.compress(path.read_bytes())) for path in files) / 1_000
    yield Figure("size, panel and widget, gzipped", f"{total:.1f} kB", f"<= {MAX_KB:g} kB", 0 < total <= MAX_KB)


ROWS: dict[str, Callable[[], Iterator[Figure]]] = {"frames": frames, "memory": memory, "start": start, "size": size}


def main() -> int:
    chosen = sys.argv[1:] or list(ROWS)
    if unknown := set(chosen) - set(ROWS):
        print(f"There is no row '{min(unknown)}'. The rows are: {', '.join(ROWS)}.", file=sys.stderr)
        return 2
    prepare()
    figures: list[Figure] = []
    try:
        for name in chosen:
            for figure in ROWS[name]():
                verdict = "ok" if figure.ok else "MISSED"
                print(f"{figure.row:40} | {figure.figure:66} | {figure.bar:10} | {verdict}", flush=True)
                figures.append(figure)
    except KeyboardInterrupt:
        return 130
    finally:
        end_children()
    return int(not all(figure.ok for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
