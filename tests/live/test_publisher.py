"""The publisher against a small hub on a real socket, against a Jupyter server, and without a server."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ragkit.errors import LLMError, OperationCancelled, RagkitError
from ragkit.live import connection
from ragkit.live.discovery import Server
from ragkit.live.messages import (
    Cancel,
    Engine,
    EngineQuery,
    Error,
    ErrorCode,
    ExperimentResult,
    FollowUpQuestions,
    IndexingProgress,
    Offer,
    Ping,
    Pong,
    QueryContent,
    Response,
    ResponseContent,
    ResponseDelta,
    Withdraw,
)
from ragkit.live.publisher import Publisher
from ragkit.live.serving import Reply
from tests.support.hub import DEADLINE_SECONDS, Hub, eventually, running

ROOT = Path(__file__).resolve().parents[2]
ENGINE = Engine(id="e", index="handbook")


def follow_up(text: str) -> FollowUpQuestions:
    return FollowUpQuestions(questions=[text])


def texts(hub: Hub) -> list[str]:
    return [event.questions[0] for _, _, event in hub.events if isinstance(event, FollowUpQuestions)]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as hub:
        yield hub


@pytest.fixture
def journals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAGKIT_JOURNAL_DIR", str(tmp_path / "journal"))
    return tmp_path / "journal"


@pytest.fixture
def make(journals: Path) -> Iterator[Callable[..., Publisher]]:
    made: list[Publisher] = []

    def make(**options: Any) -> Publisher:
        made.append(Publisher(**options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()
        assert publisher._thread is None or not publisher._thread.is_alive()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which no server is found."""
    for name in [name for name in os.environ if name.startswith(("RAGKIT_URL", "RAGKIT_TOKEN", "JUPYTER", "JPY_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ------------------------------------------------------------------------------------- publishing


def test_events_arrive_in_order_with_time_and_origin(hub: Hub, make: Callable[..., Publisher]) -> None:
    publisher = make(server=hub.server)
    for i in range(2_000):
        publisher.publish(follow_up(str(i)))
    assert publisher.flush(DEADLINE_SECONDS)
    assert texts(hub) == [str(i) for i in range(2_000)]
    assert hub.numbers() == list(range(1, 2_001))
    assert {event.origin.run_id for _, _, event in hub.events} == {publisher.origin.run_id}
    times = [event.time for _, _, event in hub.events]
    assert times == sorted(times)
    assert times[0].endswith("Z")
    assert publisher.counts.acknowledged == 2_000
    assert publisher.state == f"connected to {hub.server.url}"


def test_a_hub_with_a_smaller_message_limit_does_not_stop_the_publisher(make: Callable[..., Publisher]) -> None:
    with running(max_message_bytes=2**20) as hub:
        publisher = make(server=hub.server)
        publisher.publish(ExperimentResult(task_id="t", experiment="e", row={"x": "y" * 7 * 2**20}))
        eventually(lambda: len(hub.hellos) >= 3)
        assert publisher.state != "closed"


def test_the_token_is_in_the_header_and_nowhere_else(hub: Hub, make: Callable[..., Publisher]) -> None:
    publisher = make(server=hub.server)
    eventually(lambda: hub.hellos)
    assert hub.requests[0].path == "/base/api/v1/engine"
    assert hub.requests[0].headers["Authorization"] == "token t0ken"
    assert "t0ken" not in publisher.state + repr(publisher)


def test_from_a_running_event_loop(hub: Hub, make: Callable[..., Publisher]) -> None:
    """As in a kernel's cell: the running event loop is not used."""

    async def cell() -> bool:
        publisher = make(server=hub.server)
        publisher.publish(follow_up("from a cell"))
        return publisher.flush(DEADLINE_SECONDS)

    assert asyncio.run(cell())
    assert texts(hub) == ["from a cell"]


def test_many_threads(hub: Hub, make: Callable[..., Publisher]) -> None:
    publisher = make(server=hub.server)

    def work(name: int) -> None:
        for i in range(200):
            publisher.publish(follow_up(f"{name}:{i}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert publisher.flush(DEADLINE_SECONDS)
    for name in range(5):
        assert [text for text in texts(hub) if text.startswith(f"{name}:")] == [f"{name}:{i}" for i in range(200)]


def test_a_lost_connection(hub: Hub, make: Callable[..., Publisher]) -> None:
    publisher = make(server=hub.server)
    for round in range(4):
        eventually(functools.partial(lambda count: len(hub.hellos) > count, round))
        for i in range(50):
            publisher.publish(follow_up(f"{round}:{i}"))
            if i == 25:
                hub.stop()
        hub.start()
    assert publisher.flush(DEADLINE_SECONDS)
    assert texts(hub) == [f"{round}:{i}" for round in range(4) for i in range(50)]
    assert len({hello.publisher for hello in hub.hellos}) == 1
    assert len(hub.hellos) == 5


def test_unacknowledged_events_are_sent_again(make: Callable[..., Publisher]) -> None:
    """A hub that has lost its state (its Welcome has n=0) gets all events that it had not acknowledged."""
    with running(acknowledge=False) as hub:
        publisher = make(server=hub.server)
        for i in range(10):
            publisher.publish(follow_up(str(i)))
        eventually(lambda: len(hub.events) == 10)
        assert not publisher.flush(0.3)
        hub.stop()
        hub.events.clear()
        hub._last.clear()
        hub.acknowledge = True
        hub.start()
        assert publisher.flush(DEADLINE_SECONDS)
        assert hub.numbers() == list(range(1, 11))


def test_the_server_starts_later(make: Callable[..., Publisher], journals: Path) -> None:
    port = free_port()
    publisher = make(server=Server(f"http://127.0.0.1:{port}/base/", "t0ken"))
    publisher.publish(follow_up("early"))
    eventually(lambda: "no connection" in publisher.state)
    with running() as hub:
        hub.stop()
        hub.port = port
        hub.start()
        assert publisher.flush(DEADLINE_SECONDS)
        assert texts(hub) == ["early"]
        publisher.close()
    assert not journals.exists()


def test_memory_is_bounded_if_the_hub_never_reads(make: Callable[..., Publisher]) -> None:
    with running(reads=False) as hub:
        publisher = make(server=hub.server, max_queue=500)
        eventually(lambda: hub.hellos)
        for i in range(20_000):
            publisher.publish(IndexingProgress(task_id="t", index="i", state="running", documents_done=i))
            if i % 100 == 0:
                time.sleep(0.001)
        counts = eventually(lambda: not publisher._mailbox.items and publisher.counts)
        assert counts.waiting + counts.unacknowledged <= 500 + 512
        assert counts.coalesced > 10_000


def test_events_that_are_not_acknowledged_in_time_are_written_to_the_journal(
    make: Callable[..., Publisher], journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash after that loses nothing, and the hub gets each event once."""
    monkeypatch.setattr(connection, "SPILL_SECONDS", 0.2)
    with running(acknowledge=False) as hub:
        publisher = make(server=hub.server)
        for i in range(20):
            publisher.publish(follow_up(str(i)))
        file = journals / f"{publisher.id}.jsonl"
        eventually(lambda: file.exists() and len(lines(file)) == 21)
        assert publisher.flush(DEADLINE_SECONDS)
        publisher.publish(follow_up("20"))
        eventually(lambda: len(lines(file)) == 22)
        hub.stop()
        hub.acknowledge = True
        hub.start()
        eventually(lambda: not file.exists())
        assert texts(hub) == [str(i) for i in range(21)]
        publisher.publish(follow_up("21"))
        assert publisher.flush(DEADLINE_SECONDS)
        assert hub.numbers() == list(range(1, 23))


@pytest.mark.parametrize("status", [403, 302, 404])
def test_a_refusal_is_logged_once_and_not_retried_soon(
    status: int, make: Callable[..., Publisher], journals: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with running(status=status) as hub:
        publisher = make(server=hub.server)
        publisher.publish(follow_up("kept"))
        eventually(lambda: publisher.state.startswith("refused"))
        time.sleep(1)
        assert len(hub.requests) == 1
        assert str(status) in publisher.state
        assert ("RAGKIT_TOKEN" in publisher.state) == (status != 404)
        assert len([record for record in caplog.records if "HTTP" in record.message]) == 1
        assert "t0ken" not in caplog.text
        publisher.close()
    assert lines(journals / f"{publisher.id}.jsonl")[1]["event"]["questions"] == ["kept"]


def test_invalid_events_are_rejected(
    hub: Hub, make: Callable[..., Publisher], caplog: pytest.LogCaptureFixture
) -> None:
    publisher = make(server=hub.server)
    publisher.publish("nonsense")  # type: ignore[arg-type]
    publisher.publish(IndexingProgress(task_id=["x"], index="i", state=["y"]))  # type: ignore[arg-type]
    publisher.publish(follow_up("fine"))
    assert publisher.flush(DEADLINE_SECONDS)
    assert texts(hub) == ["fine"]
    assert publisher.counts.rejected == 2
    assert "not a valid message" in caplog.text
    publisher.close()
    publisher.publish(follow_up("late"))
    assert publisher.counts.dropped == 1
    assert publisher.state == "closed"


# ------------------------------------------------------------------------------- without a server


@pytest.mark.usefixtures("nowhere")
def test_no_server_then_one(make: Callable[..., Publisher], journals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "SEARCH_SECONDS", 0.2)
    publisher = make()
    publisher.publish(follow_up("a"))
    assert publisher.flush(DEADLINE_SECONDS)
    file = journals / f"{publisher.id}.jsonl"
    assert [line["type"] for line in lines(file)] == ["hello", "publish"]
    assert publisher.state.startswith(f"journal {file}")
    with running() as hub:
        monkeypatch.setenv("RAGKIT_URL", hub.server.url)
        monkeypatch.setenv("RAGKIT_TOKEN", hub.token)
        publisher.publish(follow_up("b"))
        eventually(lambda: not file.exists())
        publisher.publish(follow_up("c"))
        assert publisher.flush(DEADLINE_SECONDS)
        assert texts(hub) == ["a", "b", "c"]
        assert hub.numbers() == [1, 2, 3]
        publisher.close()
    assert list(journals.iterdir()) == []


@pytest.mark.usefixtures("nowhere")
def test_without_events_there_is_no_journal(make: Callable[..., Publisher], journals: Path) -> None:
    publisher = make()
    eventually(lambda: "No running Jupyter server" in publisher.state)
    publisher.close()
    assert not journals.exists()


@pytest.mark.usefixtures("nowhere")
def test_a_journal_that_cannot_be_written(
    make: Callable[..., Publisher], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("RAGKIT_JOURNAL_DIR", str(tmp_path / "file" / "journal"))
    publisher = make(max_queue=10)
    for i in range(30):
        publisher.publish(follow_up(str(i)))
    counts = eventually(lambda: publisher.counts.dropped and publisher.counts)
    assert counts.waiting == 10
    assert "cannot be written" in caplog.text
    publisher.close()
    assert publisher.counts.dropped == 30
    assert "10 events were lost at exit" in caplog.text


# ------------------------------------------------------------------------------------- processes


def script(code: str, **environ: str) -> subprocess.Popen[str]:
    head = "from ragkit.live.messages import *\nfrom ragkit.live.publisher import *\nimport os, sys, time\n"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", head + textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environ, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert err == ""
    return out


def at(hub: Hub) -> dict[str, str]:
    return {"RAGKIT_URL": hub.server.url, "RAGKIT_TOKEN": hub.token}


def test_a_script_that_publishes_and_ends(hub: Hub) -> None:
    finish(script("for i in range(500): default_publisher().publish(FollowUpQuestions(questions=[str(i)]))", **at(hub)))
    assert texts(hub) == [str(i) for i in range(500)]


@pytest.mark.usefixtures("nowhere")
def test_a_script_without_a_server(journals: Path) -> None:
    started = time.monotonic()
    finish(script("for i in range(500): default_publisher().publish(FollowUpQuestions(questions=[str(i)]))"))
    assert time.monotonic() - started < 15
    (file,) = journals.glob("*.jsonl")
    assert [line["n"] for line in lines(file)[1:]] == list(range(1, 501))


def test_a_script_whose_server_hangs_exits_in_time(journals: Path) -> None:
    """It connects but gets no reply: it exits within the deadline, and the events are in the journal."""
    with running(reads=False) as hub:
        process = script(
            """
            publisher = Publisher(exit_timeout_seconds=0.5)
            while not publisher.state.startswith("connected"): time.sleep(0.01)
            for i in range(500): publisher.publish(FollowUpQuestions(questions=[str(i)]))
            """,
            **at(hub),
        )
        started = time.monotonic()
        finish(process)
        assert time.monotonic() - started < 20
    (file,) = journals.glob("*.jsonl")
    assert [line["n"] for line in lines(file)[1:]] == list(range(1, 501))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_publisher_of_its_own(hub: Hub) -> None:
    out = finish(
        script(
            """
            import multiprocessing
            publisher = default_publisher()
            publisher.publish(FollowUpQuestions(questions=["parent 1"]))
            publisher.flush(20)
            def work(): default_publisher().publish(FollowUpQuestions(questions=["worker"]))
            worker = multiprocessing.get_context("fork").Process(target=work)
            worker.start(); worker.join()
            if os.fork() == 0:
                publisher.publish(FollowUpQuestions(questions=["child"]))
                print(publisher.flush(20), publisher.id, flush=True)
                import gc; gc.collect()
                os._exit(0)
            os.wait()
            publisher.publish(FollowUpQuestions(questions=["parent 2"]))
            print(publisher.flush(20), publisher.id, publisher.state)
            """,
            **at(hub),
        )
    ).split()
    assert texts(hub) == ["parent 1", "worker", "child", "parent 2"]
    ids = [publisher for publisher, _, _ in hub.events]
    assert ids[0] == ids[3] == out[3]
    assert ids[2] == out[1]
    assert len(set(ids)) == 3
    assert [n for _, n, _ in hub.events] == [1, 1, 1, 2]
    assert len(hub.hellos) == 3, "the parent's connection was closed"


@pytest.mark.usefixtures("nowhere")
@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_killed_script_leaves_its_journal_unlocked(journals: Path) -> None:
    process = script(
        """
        for i in range(5): default_publisher().publish(FollowUpQuestions(questions=[str(i)]))
        print(default_publisher().flush(20), flush=True)
        time.sleep(60)
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (file,) = journals.glob("*.jsonl")
    assert len(lines(file)) == 6


def test_importing_is_cheap() -> None:
    code = "import sys; before = set(sys.modules); import ragkit.live.publisher; print(*(set(sys.modules) - before))"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            check=True, timeout=60,
        ).stdout.split()
    )  # fmt: skip
    assert not {name for name in loaded if name.split(".")[0] in ("websockets", "filelock", "psutil", "jupyter_core")}


# ------------------------------------------------------------------------------------- serving


def ask(hub: Hub, id: str, question: str = "q", engine: str = "e") -> None:
    hub.say(EngineQuery(id=id, engine_id=engine, content=QueryContent(question=question)))


def replies(hub: Hub, id: str) -> list[Any]:
    return [m for m in hub.others if isinstance(m, Response | ResponseDelta | Error) and m.id == id]


def the_end(hub: Hub, id: str) -> Any:
    return eventually(lambda: next((m for m in replies(hub, id) if not isinstance(m, ResponseDelta)), None))


def answered(text: str) -> ResponseContent:
    return ResponseContent(answer=text, sources=[])


def test_an_answer_is_streamed_in_order(hub: Hub, make: Callable[..., Publisher]) -> None:
    def answer(content: QueryContent, reply: Reply) -> None:
        for i in range(200):
            reply.delta(f"{content.question}{i} ")
        reply.respond(answered(reply.id))
        reply.respond(answered("too late"))
        reply.fail(ErrorCode.ENGINE_FAILED, "too late")
        reply.delta("too late")

    with make(server=hub.server).serve(ENGINE, answer):
        eventually(lambda: hub.received(Offer))
        for id in ("1", "2"):
            ask(hub, id, id)
        for id in ("1", "2"):
            assert the_end(hub, id).content.answer == id
            assert [m.content.delta for m in replies(hub, id)[:-1]] == [f"{id}{i} " for i in range(200)]
    eventually(lambda: hub.received(Withdraw))
    assert not [m for m in hub.others if "too late" in str(m)]


def test_four_answers_run_at_once_and_further_queries_wait(hub: Hub, make: Callable[..., Publisher]) -> None:
    together, running_now, most = threading.Barrier(4), [0], [0]

    def answer(content: QueryContent, reply: Reply) -> None:
        running_now[0] += 1
        most[0] = max(most[0], running_now[0])
        together.wait(DEADLINE_SECONDS)
        running_now[0] -= 1
        reply.respond(answered(content.question))

    make(server=hub.server).serve(ENGINE, answer)
    eventually(lambda: hub.received(Offer))
    for i in range(8):
        ask(hub, str(i), str(i))
    for i in range(8):
        assert the_end(hub, str(i)).content.answer == str(i)
    assert most[0] == 4


class Odd(RagkitError):
    pass


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (LLMError("Start the model.", model="m", base_url="u"), ErrorCode.ENGINE_FAILED, "Start the model."),
        (KeyError("k"), ErrorCode.ENGINE_FAILED, "KeyError: 'k'"),
        (SystemExit(3), ErrorCode.ENGINE_FAILED, "SystemExit: 3"),
        (OperationCancelled("stopped"), ErrorCode.CANCELLED, "stopped"),
        (None, ErrorCode.ENGINE_FAILED, "The engine ended without an answer. Ask again, or check its notebook."),
    ],
)
def test_every_error_reaches_the_listener(
    hub: Hub, make: Callable[..., Publisher], raised: BaseException | None, code: ErrorCode, message: str
) -> None:
    def answer(content: QueryContent, reply: Reply) -> None:
        if raised:
            raise raised

    make(server=hub.server).serve(ENGINE, answer)
    eventually(lambda: hub.received(Offer))
    ask(hub, "1")
    error = the_end(hub, "1")
    assert (error.content.code, error.content.message) == (code, message)


def test_cancel(hub: Hub, make: Callable[..., Publisher]) -> None:
    begun = threading.Event()

    def answer(content: QueryContent, reply: Reply) -> None:
        begun.set()
        eventually(lambda: reply.cancelled)
        raise OperationCancelled("stopped")

    make(server=hub.server).serve(ENGINE, answer)
    eventually(lambda: hub.received(Offer))
    ask(hub, "1")
    assert begun.wait(DEADLINE_SECONDS)
    hub.say(Cancel(id="unknown"), Cancel(id="1"))
    assert the_end(hub, "1").content.code is ErrorCode.CANCELLED


def test_a_lost_connection_cancels_answers_and_engines_are_offered_again(
    hub: Hub, make: Callable[..., Publisher]
) -> None:
    begun, ended = threading.Event(), threading.Event()

    def answer(content: QueryContent, reply: Reply) -> None:
        if content.question == "again":
            reply.respond(answered("yes"))
            return
        begun.set()
        eventually(lambda: reply.cancelled)
        reply.respond(answered("to nobody"))
        ended.set()

    make(server=hub.server).serve(ENGINE, answer)
    eventually(lambda: hub.received(Offer))
    ask(hub, "1")
    assert begun.wait(DEADLINE_SECONDS)
    hub.stop()
    assert ended.wait(DEADLINE_SECONDS)
    hub.others.clear()
    hub.start()
    eventually(lambda: hub.received(Offer))
    ask(hub, "1", "again")
    assert the_end(hub, "1").content.answer == "yes"


def test_replacing_updating_and_withdrawing_an_engine(hub: Hub, make: Callable[..., Publisher]) -> None:
    publisher = make(server=hub.server)
    first = publisher.serve(ENGINE, lambda content, reply: reply.respond(answered("first")))
    second = publisher.serve(ENGINE, lambda content, reply: reply.respond(answered("second")))
    eventually(lambda: hub.received(Offer))
    first.stop()  # no effect, because the second engine has replaced the first
    ask(hub, "1")
    assert the_end(hub, "1").content.answer == "second"
    second.update(Engine(id="another", index="handbook", documents=7))
    eventually(lambda: hub.received(Offer)[-1].engine == Engine(id="e", index="handbook", documents=7))
    assert hub.received(Withdraw) == []
    second.stop()
    eventually(lambda: hub.received(Withdraw) == [Withdraw(engine_id="e")])
    second.update(ENGINE)
    ask(hub, "2")
    assert the_end(hub, "2").content.code is ErrorCode.NO_ENGINE
    assert hub.received(Offer)[-1].engine.documents == 7


def test_unknown_messages_of_the_hub_are_ignored(
    hub: Hub, make: Callable[..., Publisher], caplog: pytest.LogCaptureFixture
) -> None:
    make(server=hub.server)
    eventually(lambda: hub.hellos)
    hub.do(hub._sockets[-1].send('{"type": "from the future"}'))
    hub.do(hub._sockets[-1].send("no JSON"))
    hub.say(Ping(id="p"))
    eventually(lambda: hub.received(Pong) == [Pong(id="p")])
    assert len(hub.hellos) == 1


# ------------------------------------------------------------------------------ a real server


def test_a_real_jupyter_server(tmp_path: Path, make: Callable[..., Publisher], monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener receives events from the socket and from an adopted journal, each once."""
    from tests.server.live_server import TOKEN, receive_type, start_server

    live = start_server(tmp_path, "--RagkitApp.journal_scan_seconds=0.2", base_url="/user/x/")
    try:
        server = Server(live.url("").replace("ws", "http", 1), TOKEN)
        # The folder in which a script without a server leaves its journal.
        monkeypatch.setenv("RAGKIT_JOURNAL_DIR", str(live.journal_dir))
        monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "none"))

        async def listen() -> list[str]:
            async with live.open() as socket:
                publisher = make(server=server)
                publisher.serve(ENGINE, lambda content, reply: reply.respond(answered(content.question.upper())))
                assert (await receive_type(socket, "engines"))["engines"][0]["id"] == "e"
                publisher.publish(follow_up("live"))
                messages = [await receive_type(socket, "follow_up_questions")]
                assert messages[0]["origin"]["run_id"] == publisher.origin.run_id
                await socket.send(json.dumps({"type": "query", "id": "1", "content": {"question": "hello?"}}))
                assert (await receive_type(socket, "response", "error"))["content"]["answer"] == "HELLO?"
                code = """
                for i in range(3): default_publisher().publish(FollowUpQuestions(questions=[f"journal {i}"]))
                """
                await asyncio.to_thread(
                    lambda: finish(script(code, JPY_PARENT_PID="", RAGKIT_URL=f"http://127.0.0.1:{free_port()}/"))
                )
                messages += [await receive_type(socket, "follow_up_questions") for _ in range(3)]
                publisher.publish(follow_up("end"))
                messages.append(await receive_type(socket, "follow_up_questions"))
                return [message["questions"][0] for message in messages]

        assert asyncio.run(listen()) == ["live", "journal 0", "journal 1", "journal 2", "end"]
        eventually(lambda: list(live.journal_dir.glob("*.jsonl*")) == [])

        wrong = make(server=Server(server.url, "wrong"))
        eventually(lambda: wrong.state.startswith("refused"))
        assert "wrong" not in live.log()
    finally:
        live.stop()


def test_nothing_is_logged_without_problems(
    hub: Hub, make: Callable[..., Publisher], caplog: pytest.LogCaptureFixture
) -> None:
    publisher = make(server=hub.server)
    publisher.publish(follow_up("x"))
    assert publisher.flush(DEADLINE_SECONDS)
    publisher.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
