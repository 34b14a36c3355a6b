"""The socket client, frontend/src/client/socket.ts, in a real browser, under all kinds of failures."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from ragkit.live.messages import FollowUpQuestions, IndexingProgress
from ragkit.live.publisher import Publisher
from ragkit.llm.base import ScriptedLLM
from tests.engine.test_engine import QUESTION, connected, make
from tests.server.live_server import ROOT, TOKEN, Server, StartServer, free_port, start_server
from tests.support.browser import http_url, log_in, open_page, serve_folder, start_browser, status
from tests.support.corpora import write_pages
from tests.support.hub import eventually

# The client, and what the tests observe of it. Without a url, `begin` connects to the server of the page.
CLIENT = """<!doctype html><meta charset="utf-8"><title>client</title><script>
var messages = [], states = [], asked = {}, stop = new AbortController(), socket
</script><script type="module">
import { connect } from "SERVERapi/v1/socket.js"

window.begin = (options) => {
  socket = connect({
    signal: stop.signal,
    onMessage: (message) => messages.push(message),
    onState: (state) => states.push({ ...state, at: Date.now() }),
    ...options,
  })
}

window.ask = (name, question, options) => {
  const its = (asked[name] = { pieces: [], stop: new AbortController() })
  socket.ask(question, { onDelta: (piece) => its.pieces.push(piece), signal: its.stop.signal, ...options }).then(
    (answer) => { its.answer = answer },
    (error) => { its.error = { name: error.name, code: error.code, message: error.message } },
  )
}

// Fail until the pauses are long, without waiting for them.
window.failUntilPausesAreLong = (options) =>
  begin({
    ...options,
    onState: (state) => {
      states.push({ ...state, at: Date.now() })
      if (state.status === 'waiting' && pauses().length < 12) setTimeout(() => socket.wake())
    },
  })

// The state is reported again when the cause has been found.
window.pauses = () => {
  const waits = states.filter(({ status }) => status === 'waiting')
  return waits.filter(({ retryAt }, n) => retryAt !== waits[n - 1]?.retryAt).map(({ retryAt, at }) => retryAt - at)
}
</script>"""


@dataclass
class Client:
    """A page with the client."""

    page: Page

    def begin(self, url: str | None = None, **options: Any) -> None:
        self.page.evaluate("options => begin(options)", options | ({} if url is None else {"url": url}))

    def wait(self, condition: str, arg: Any = None) -> Any:
        """Wait until an expression is true in the page; return its value."""
        return self.page.wait_for_function(condition, arg=arg).json_value()

    def get(self, expression: str) -> Any:
        return self.page.evaluate(expression)

    def wait_open(self) -> None:
        """Wait for a connection and for the first snapshot."""
        self.wait("socket.state.status === 'open' && socket.since")

    def wait_problem(self, problem: str) -> None:
        self.wait("problem => states.some(state => state.problem === problem)", problem)

    def ask(self, name: str, question: str = QUESTION, **options: Any) -> None:
        self.page.evaluate("arguments => ask(...arguments)", [name, question, options])

    def outcome(self, name: str) -> dict[str, Any]:
        """Return the outcome of a question: `answer` or `error`, and the `pieces` before it."""
        return dict(self.wait("name => (asked[name].answer || asked[name].error) && asked[name]", name))

    def questions(self) -> list[str]:
        """Return the first question of each follow-up event received."""
        return list(self.get("messages.filter(({ type }) => type === 'follow_up_questions').map(m => m.questions[0])"))

    def wait_question(self, question: str) -> dict[str, Any]:
        return dict(self.wait("text => messages.find(message => message.questions?.includes(text))", question))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with start_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page that must not have uncaught errors."""
    errors: list[Any] = []
    with open_page(browser) as page:
        page.on(
            "pageerror", lambda error: errors.append(error)
        )  # a lambda, because playwright sets attributes on the callback
        yield page
    assert errors == []


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("static")


@pytest.fixture(scope="module")
def server(static: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(
        tmp_path_factory.mktemp("server"), f"--ServerApp.extra_static_paths={static}", base_url="/user/x/"
    )
    (static / "client.html").write_text(CLIENT.replace("SERVER", http_url(server)))
    yield server
    server.stop()


@pytest.fixture(scope="module")
def other_origin(static: Path) -> Iterator[str]:
    with serve_folder(static) as origin:
        yield origin


@pytest.fixture
def client(page: Page, server: Server) -> Client:
    """A page of the server that is not logged in."""
    page.goto(http_url(server, "static/client.html"))
    return Client(page)


@pytest.fixture
def publisher(server: Server, tmp_path: Path) -> Iterator[Publisher]:
    publisher = connected(server, tmp_path)
    yield publisher
    publisher.close(2)


@pytest.fixture
def start(server: Server, tmp_path: Path) -> Iterator[StartServer]:
    """Start a server that allows pages of the other origin; a second call restarts the same server."""
    port = free_port()
    started: list[Server] = []

    def start(origin: str = f"http://127.0.0.1:{server.port}") -> Server:
        allowed = f"--ServerApp.allow_origin={origin}"
        started.append(start_server(tmp_path / "again", allowed, base_url="/user/x/", port=port))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@contextlib.contextmanager
def misbehaving(talk: Callable[[ServerConnection], None], port: int = 0) -> Iterator[str]:
    """A server that calls ``talk`` with each connection; yields its address."""

    def handle(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            talk(connection)

    with serve(handle, "127.0.0.1", port) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}/"
        server.shutdown()
        thread.join()


def say(connection: ServerConnection, **message: Any) -> None:
    connection.send(json.dumps(message))


def snapshot(seq: int, epoch: str = "e") -> dict[str, Any]:
    state = {"tasks": [], "engines": [], "follow_ups": [], "results": []}
    return {"type": "snapshot", "epoch": epoch, "seq": seq, **state}


def listen(connection: ServerConnection) -> None:
    """Act as a correct server without events."""
    for frame in connection:
        match json.loads(frame):
            case {"type": "subscribe"}:
                say(connection, **snapshot(5))
            case {"type": "ping"}:
                say(connection, type="pong")


# ------------------------------------------------------------------------------------ connecting


def test_the_snapshot_comes_first_and_then_the_events(client: Client, server: Server, publisher: Publisher) -> None:
    before, after = f"Before {secrets.token_hex(4)}?", f"After {secrets.token_hex(4)}?"
    publisher.publish(FollowUpQuestions(questions=[before]))
    assert publisher.flush()
    log_in(client.page, server)
    client.page.goto(http_url(server, "static/client.html"))  # the cookie is enough
    client.begin(http_url(server))
    client.wait_open()
    snapshot = client.get("messages[0]")
    assert snapshot["type"] == "snapshot"
    assert snapshot["follow_ups"][-1]["questions"] == [before]
    assert client.get("socket.since") == {"epoch": snapshot["epoch"], "seq": snapshot["seq"]}
    publisher.publish(FollowUpQuestions(questions=[after]))
    event = client.wait_question(after)
    assert client.get("socket.since") == {"epoch": event["epoch"], "seq": event["seq"]}
    assert client.questions() == [after]
    assert client.get("states.map(({ status, problem }) => [status, problem])") == [
        ["connecting", None],
        ["open", None],
    ]


@pytest.mark.parametrize("address", ["http{}", "http{}/", "ws{}", "ws{}api/v1/ws"])
def test_an_address_can_be_written_in_many_ways(client: Client, server: Server, address: str) -> None:
    rest = server.url("").removeprefix("ws")
    client.begin(address.format(rest), token=TOKEN)
    client.wait_open()


@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_restart_of_the_server_neither_loses_nor_duplicates_events(
    client: Client, start: StartServer, tmp_path: Path, how: str
) -> None:
    server = start()
    publisher = connected(server, tmp_path)
    numbers = iter(range(1000))

    def publish(count: int) -> str:
        for _ in range(count):
            last = f"{next(numbers)}?"
            publisher.publish(FollowUpQuestions(questions=[last]))
        return last

    client.begin(http_url(server), token=TOKEN)
    client.wait_open()
    client.wait_question(publish(20))
    publish(20)  # some of them arrive before the restart, some after
    getattr(server, how)()
    publish(20)
    client.wait_problem("unreachable")
    first = client.get("states.find(({ status }) => status === 'waiting')")
    assert first["problem"] == {"kill": "lost", "stop": "stopping"}[how]
    assert client.get("states.filter(({ status }) => status === 'open').length") == 1
    start()
    client.wait("socket.state.status === 'open'")
    assert client.get("socket.state.problem") is None
    client.wait_question(publish(20))
    publisher.close(2)
    assert client.questions() == [f"{number}?" for number in range(80)]
    assert not client.get("messages.some(({ type }) => type === 'gap')")


def test_only_chosen_topics_arrive_also_after_a_reconnection(
    client: Client, start: StartServer, tmp_path: Path
) -> None:
    server = start()
    publisher = connected(server, tmp_path)

    def publish(text: str) -> None:
        publisher.publish(IndexingProgress(task_id=text, index="i", state="done"))
        publisher.publish(FollowUpQuestions(questions=[text]))

    client.begin(http_url(server), token=TOKEN, topics=["follow_up_questions"])
    client.wait_open()
    publish("Before?")
    client.wait_question("Before?")
    server.kill()
    client.wait("socket.state.status === 'waiting'")
    client.page.context.set_offline(True)
    publish("Meanwhile?")
    server = start()
    assert publisher.flush(20)  # so that it is published before the page opens, and sent before the topics are known
    client.page.context.set_offline(False)
    client.wait_question("Meanwhile?")
    publish("After?")
    client.wait_question("After?")
    publisher.close(2)
    assert client.questions() == ["Before?", "Meanwhile?", "After?"]
    assert set(client.get("messages.map(({ type }) => type)")) == {"snapshot", "follow_up_questions"}


def test_a_repeated_event_is_delivered_once_and_a_gap_resets_the_state(client: Client) -> None:
    paths: list[str] = []

    def talk(connection: ServerConnection) -> None:
        def send_event(seq: int, epoch: str = "e") -> None:
            say(connection, type="follow_up_questions", epoch=epoch, seq=seq, questions=[f"{epoch}{seq}"])

        paths.append(connection.request.path if connection.request else "")
        if len(paths) == 1:
            say(connection, **snapshot(5))
            send_event(6)
        elif len(paths) == 2:
            send_event(6)
            send_event(7)
        else:
            say(connection, type="gap", snapshot=snapshot(2, "f"))
            send_event(2, "f")
            send_event(3, "f")
            listen(connection)

    with misbehaving(talk) as url:
        client.begin(url)
        client.wait_question("f3")
        assert client.questions() == ["e6", "e7", "f3"]
        assert client.get("socket.since") == {"epoch": "f", "seq": 3}
    assert paths == ["/api/v1/ws", "/api/v1/ws?epoch=e&seq=6", "/api/v1/ws?epoch=e&seq=7"]


def test_back_off_grows_with_jitter(client: Client) -> None:
    client.page.evaluate("url => failUntilPausesAreLong({ url })", f"http://127.0.0.1:{free_port()}/")
    client.wait("pauses().length === 12")
    parts = [pause / min(30_000, 500 * 2**n) for n, pause in enumerate(client.get("pauses()"))]
    assert all(0.45 <= part <= 1.01 for part in parts), parts
    assert max(parts) - min(parts) > 0.05, parts


@pytest.mark.parametrize(
    "event",
    [
        "window.dispatchEvent(new Event('online'))",
        "window.dispatchEvent(new Event('pageshow'))",
        "document.dispatchEvent(new Event('visibilitychange'))",
        "socket.wake()",
    ],
)
def test_a_wake_up_event_ends_the_back_off(client: Client, event: str) -> None:
    port = free_port()
    client.page.evaluate("url => failUntilPausesAreLong({ url })", f"ws://127.0.0.1:{port}/")
    client.wait("pauses().length === 12")
    with misbehaving(listen, port):
        hide = "hidden => Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })"
        client.page.evaluate(hide, True)
        client.get("void document.dispatchEvent(new Event('visibilitychange'))")
        assert client.get("socket.state.status") == "waiting"  # a hidden page does not reconnect at once
        client.page.evaluate(hide, False)
        client.get(f"void {event}")
        client.wait_open()
        assert client.get("states.at(-1).at < states.findLast(({ retryAt }) => retryAt).retryAt")


@pytest.mark.parametrize("found_by", ["heartbeat", "wake"])
def test_a_dead_connection_is_detected(client: Client, found_by: str) -> None:
    paths: list[str] = []

    def talk(connection: ServerConnection) -> None:
        paths.append(connection.request.path if connection.request else "")
        if len(paths) > 1:
            listen(connection)
        say(connection, **snapshot(7))
        for _ in connection:
            pass  # no pong

    # The reply may take longer than the interval between two pings.
    heartbeat = {"heartbeat": {"heartbeatSeconds": 0.5}, "wake": {}}[found_by]
    with misbehaving(talk) as url:
        client.begin(url, timeoutSeconds=2, **heartbeat)
        client.wait_open()
        if found_by == "wake":
            client.page.wait_for_timeout(1_100)  # a recent message makes a ping unnecessary
            client.get("void window.dispatchEvent(new Event('online'))")
        client.wait_problem("silent")
        client.wait("states.filter(({ status }) => status === 'open').length === 2")
        client.page.wait_for_timeout(4_500)  # a connection that responds is kept
        assert client.get("socket.state.status") == "open"
    assert paths == ["/api/v1/ws", "/api/v1/ws?epoch=e&seq=7"]


def test_an_unfinished_handshake_times_out(client: Client) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as deaf:
        client.begin(f"ws://127.0.0.1:{deaf.getsockname()[1]}/", timeoutSeconds=0.5)
        client.wait_problem("unreachable")
        client.wait("states.filter(({ status }) => status === 'connecting').length > 1")


# ---------------------------------------------------------------------------------------- asking


def test_ask_streams_and_answers(client: Client, server: Server, publisher: Publisher, tmp_path: Path) -> None:
    client.begin(http_url(server), token=TOKEN)
    client.wait_open()
    client.ask("too early")
    error = client.outcome("too early")["error"]
    assert (error["name"], error["code"]) == ("AskError", "NO_ENGINE")
    assert "engine.serve()" in error["message"]

    engine = make(tmp_path, publisher, llm=ScriptedLLM(["Start with ", "1.2. ", "[1]"], delay_seconds=0.02))
    engine.index(write_pages(tmp_path / "docs"))
    with engine.serve():
        client.wait("messages.some(({ type, engines }) => type === 'engines' && engines.length)")
        client.ask("question", context={"k": 2}, id="mine")
        outcome = client.outcome("question")
    assert "".join(outcome["pieces"]) == outcome["answer"]["answer"] == "Start with 1.2. [1]"
    assert len(outcome["pieces"]) > 1
    assert outcome["answer"]["sources"][0]["document_id"] == "bm25.md"
    ids = client.get("messages.filter(({ type }) => type.startsWith('response')).map(({ id }) => id)")
    assert set(ids) == {"mine"}  # onMessage receives them, too


def test_ask_can_be_stopped(client: Client, server: Server, publisher: Publisher, tmp_path: Path) -> None:
    client.begin(http_url(server), token=TOKEN)
    client.wait_open()
    llm = ScriptedLLM(["word "] * 2000, delay_seconds=0.05)
    engine = make(tmp_path, publisher, llm=llm)
    engine.index(write_pages(tmp_path / "docs"))
    with engine.serve():
        client.wait("messages.some(({ type, engines }) => type === 'engines' && engines.length)")
        client.ask("question", id="twice")
        client.wait("asked.question.pieces.length > 1")
        client.ask("the same", id="twice")
        assert client.outcome("the same")["error"]["code"] == "DUPLICATE_ID"
        client.get("asked.question.stop.abort()")
        assert client.outcome("question")["error"]["code"] == "CANCELLED"
        # The engine has stopped as well; otherwise it would continue for a minute and a half.
        assert client.get("messages.some(({ type, id }) => type === 'error' && id === 'twice')")
        client.page.evaluate("signal => ask('never', 'Why?', { signal: AbortSignal.abort() })")
        assert client.outcome("never")["error"]["code"] == "CANCELLED"


def test_a_question_waits_for_a_connection_and_fails_when_it_ends(
    client: Client, start: StartServer, tmp_path: Path
) -> None:
    server = start()
    publisher = connected(server, tmp_path)
    client.begin(http_url(server), token=TOKEN)
    client.wait_open()
    engine = make(tmp_path, publisher, llm=ScriptedLLM(["word "] * 2000, delay_seconds=0.05))
    engine.index(write_pages(tmp_path / "docs"))
    with engine.serve():
        client.wait("messages.some(({ type, engines }) => type === 'engines' && engines.length)")
        client.ask("under way")
        client.wait("asked['under way'].pieces.length")
        server.kill()
        error = client.outcome("under way")["error"]
        assert (error["name"], error["code"]) == ("AskError", "CONNECTION_LOST")
    publisher.close(2)
    client.ask("waits")
    client.ask("stopped")
    client.get("asked.stopped.stop.abort()")
    assert client.outcome("stopped")["error"]["code"] == "CANCELLED"
    client.wait_problem("unreachable")
    assert client.get("asked.waits.error") is None
    start()
    assert client.outcome("waits")["error"]["code"] == "NO_ENGINE"  # so it was sent


# ---------------------------------------------------------------------------------------- ending


EVENTS = {"abort", "online", "pageshow", "visibilitychange"}


def listeners(page: Page, expression: str) -> list[str]:
    """Return the event types for which an object of the page has listeners, without those of Playwright."""
    session = page.context.new_cdp_session(page)
    found = session.send("Runtime.evaluate", {"expression": expression})
    answer = session.send("DOMDebugger.getEventListeners", {"objectId": found["result"]["objectId"]})
    session.detach()
    return sorted(listener["type"] for listener in answer["listeners"] if listener["type"] in EVENTS)


def test_a_signal_closes_the_socket(client: Client) -> None:
    opened = 0
    gone = threading.Event()

    def talk(connection: ServerConnection) -> None:
        nonlocal opened
        opened += 1
        listen(connection)
        gone.set()

    with misbehaving(talk) as url:
        client.begin(url)
        client.wait_open()
        client.ask("under way")
        objects = {
            "window": ["online", "pageshow"],
            "document": ["visibilitychange"],
            "stop.signal": ["abort"],
            "asked['under way'].stop.signal": ["abort"],
        }
        assert {name: listeners(client.page, name) for name in objects} == objects
        client.get("stop.abort()")
        assert client.get("socket.state") == {"status": "closed"}
        assert gone.wait(20)
        assert client.outcome("under way")["error"]["code"] == "CONNECTION_LOST"
        assert {name: listeners(client.page, name) for name in objects} == {name: [] for name in objects}
        client.ask("too late")
        assert client.outcome("too late")["error"]["code"] == "CONNECTION_LOST"
        client.get("socket.wake(), socket.start(), socket.close()")
        client.page.wait_for_timeout(1_500)  # longer than the first back-off
        assert opened == 1
        assert client.get("states.map(({ status }) => status)") == ["connecting", "open", "closed"]


@pytest.mark.parametrize("when", ["connecting", "open", "waiting"])
def test_a_signal_closes_the_socket_at_any_time(client: Client, when: str) -> None:
    opened = 0

    def talk(connection: ServerConnection) -> None:
        nonlocal opened
        opened += 1
        connection.close()

    with misbehaving(talk) as url:
        client.page.evaluate(
            """([url, when]) => begin({ url, onState: (state) => {
                states.push(state)
                if (state.status === when) stop.abort()
            } })""",
            [url, when],
        )
        client.wait("states.some(({ status }) => status === 'closed')")
        client.page.wait_for_timeout(1_500)
        assert client.get("states.map(({ status }) => status)") == [
            *["connecting", "open", "waiting"][: ["connecting", "open", "waiting"].index(when) + 1],
            "closed",
        ]
        assert client.get("socket.state.status") == "closed"
        assert opened <= 1


# ------------------------------------------------------------------------------------- diagnosis


def test_diagnosis_of_an_unreachable_server(client: Client) -> None:
    client.begin(f"http://127.0.0.1:{free_port()}/")
    client.wait_problem("unreachable")
    assert client.get("[...new Set(states.map(({ problem }) => problem))]") == [None, "unreachable"]


def test_diagnosis_of_a_server_without_ragkit(page: Page, server: Server, other_origin: str) -> None:
    page.goto(f"{other_origin}/client.html")  # the code comes from one server, the socket is on another
    client = Client(page)
    client.begin()
    client.wait_problem("no_ragkit")


def test_diagnosis_of_a_wrong_token(client: Client, server: Server) -> None:
    client.begin(http_url(server), token="a-wrong-one")
    client.wait_problem("not_authorized")
    assert client.get("socket.state.status") != "open"


def test_diagnosis_of_a_page_that_is_not_allowed(page: Page, server: Server, other_origin: str) -> None:
    page.goto(f"{other_origin}/client.html")
    client = Client(page)
    client.begin(http_url(server), token=TOKEN)
    client.wait_problem("blocked")


@pytest.mark.parametrize("token", [None, "a-wrong-one"])
@pytest.mark.parametrize("allowed", [False, True])
def test_diagnosis_of_a_page_of_another_origin_without_the_token(
    page: Page, server: Server, other_origin: str, start: StartServer, allowed: bool, token: str | None
) -> None:
    page.goto(f"{other_origin}/client.html" if not allowed else http_url(server, "static/client.html"))
    client = Client(page)
    client.begin(http_url(start() if allowed else server), token=token)
    client.wait_problem("not_authorized")


def test_diagnosis_without_a_network(client: Client) -> None:
    client.page.context.set_offline(True)
    client.begin("http://ragkit.invalid/", token=TOKEN)
    client.wait_problem("offline")


def test_a_server_on_this_machine_needs_no_network(client: Client, server: Server) -> None:
    client.page.context.set_offline(True)
    client.begin(http_url(server), token=TOKEN)
    client.wait_problem("unreachable")
    client.page.context.set_offline(False)
    client.wait_open()


# ------------------------------------------------------------------------------ docs/browser.md

PAGE = (ROOT / "docs" / "browser.md").read_text(encoding="utf-8")


def open_example(page: Page, server: Server, static: Path, origin: str) -> list[str]:
    """Open the example of docs/browser.md; return the list of its log messages."""
    (code,) = re.findall(r"^```js\n(import .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 8
    assert code.count("http://localhost:8000/") == 2
    code = code.replace("http://localhost:8000/", http_url(server))
    (static / "example.html").write_text(f'<!doctype html><title>example</title><script type="module">{code}</script>')
    lines: list[str] = []
    page.on("console", lambda line: lines.append(line.text) if line.type == "log" else None)
    page.goto(f"{origin}/example.html#token={TOKEN}")
    return lines


def test_an_application_that_is_not_allowed_gets_nothing(
    page: Page, server: Server, publisher: Publisher, static: Path, other_origin: str
) -> None:
    refused = "Blocking Cross Origin WebSocket Attempt"
    before = server.log().count(refused)
    lines = open_example(page, server, static, other_origin)
    eventually(lambda: page.wait_for_timeout(50) or server.log().count(refused) > before)
    publisher.publish(FollowUpQuestions(questions=["Secret?"]))
    assert publisher.flush()
    page.wait_for_timeout(500)
    assert lines == []


def test_an_application_that_is_allowed_needs_eight_lines(
    page: Page, start: StartServer, static: Path, other_origin: str, tmp_path: Path
) -> None:
    server = start(other_origin)
    publisher = connected(server, tmp_path)
    engine = make(tmp_path, publisher)
    engine.index(write_pages(tmp_path / "docs"))
    with engine.serve():
        eventually(lambda: status(page, server)["engines"])
        lines = open_example(page, server, static, other_origin)
        eventually(lambda: page.wait_for_timeout(50) or any("BM25 ranks documents" in line for line in lines))
        publisher.publish(FollowUpQuestions(questions=["What is fusion?"]))
        eventually(lambda: page.wait_for_timeout(50) or any("What is fusion?" in line for line in lines))
    publisher.close(2)


def test_every_problem_is_explained() -> None:
    source = (ROOT / "frontend" / "src" / "client" / "addresses.ts").read_text(encoding="utf-8")
    problems = re.findall(r"^  \| '(\w+)'", source, re.MULTILINE)
    assert len(problems) > 5
    table = PAGE.partition("| `problem` |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == problems


# ------------------------------------------------------------------------------------- robustness


def test_neither_invalid_messages_nor_exceptions_close_the_socket(client: Client) -> None:
    def talk(connection: ServerConnection) -> None:
        for frame in ["", "no JSON", "{", "null", "5", '"text"', "[]", "{}", '{"type": 5}', '{"type": "new"}', b"\x00"]:
            connection.send(frame)
        listen(connection)

    complaints: list[str] = []
    client.page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    with misbehaving(talk) as url:
        client.page.evaluate(
            """url => begin({ url, onMessage: (message) => { messages.push(message); throw new Error('mine') },
                                   onState: (state) => { states.push(state); throw new Error('mine') } })""",
            url,
        )
        client.wait_open()
        client.ask("question")
        eventually(lambda: any("mine" in line for line in complaints))
        assert client.get("states.map(({ status }) => status)") == ["connecting", "open"]
        assert client.get("messages.map(({ type }) => type)") == ["new", "snapshot"]
