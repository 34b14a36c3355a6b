"""Connections to model servers: kept alive, and shared by all objects of a process."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from ragkit.embedding.openai import OpenAIEmbedder
from ragkit.errors import EmbeddingError, InputError, LLMConnectionError, OperationCancelled
from ragkit.llm.openai import OpenAILLM
from tests.support.llm_servers import Connection, RawServer, RealServer, real_llm_server

__all__ = ["real_llm_server"]  # a fixture

MESSAGES = [{"role": "user", "content": "What is BM25?"}]


def behave(connection: Connection) -> None:
    """Serve streamed chats and embeddings."""
    if "input" in connection.request:
        data = [{"index": n, "embedding": [3.0, 4.0]} for n in range(len(connection.request["input"]))]
        connection.answer(json.dumps({"data": data}).encode())
        return
    connection.start_stream()
    connection.say("It ranks.", finish="stop")
    connection.end_stream()


def chat(url: str, **options: float | str) -> str:
    return OpenAILLM("tiny", base_url=url, **options).complete(MESSAGES)  # type: ignore[arg-type]


def embed(url: str, **options: float | str) -> list[float]:
    return OpenAIEmbedder("tiny", base_url=url, **options).embed(["text"])[0].tolist()  # type: ignore[arg-type,no-any-return]


def test_twenty_calls_open_one_connection() -> None:
    """Of any number of objects, whatever their keys and time-outs."""
    with RawServer(behave, keep_alive=True) as server:
        for number in range(5):
            assert chat(server.url) == "It ranks."
            assert embed(server.url) == pytest.approx([0.6, 0.8])
            assert chat(server.url, api_key=f"sk-{number}", timeout_seconds=10 + number) == "It ranks."
            assert embed(server.url, api_key=f"sk-{number}", timeout_seconds=10 + number) == pytest.approx([0.6, 0.8])
        assert (len(server.connections), server.opened) == (20, 1)
        assert not server.errors


def test_a_real_server_that_closes_its_connections(real_llm_server: RealServer) -> None:
    """llama.cpp promises to keep a connection, and closes it after each stream."""
    llm = OpenAILLM(
        real_llm_server.model, base_url=real_llm_server.url, api_key=real_llm_server.api_key, timeout_seconds=200,
        max_retries=0,
    )  # fmt: skip
    assert all(llm.complete(MESSAGES, max_tokens=1) for _ in range(20))


@pytest.mark.parametrize(("after_seconds", "works"), [(0.0, True), (1.0, False)])
def test_a_request_on_a_connection_that_is_being_closed(after_seconds: float, works: bool) -> None:
    """It is retried, unless it took so long that the server may have processed it."""

    def close_on_the_second(connection: Connection) -> None:
        if connection.number == 2:
            time.sleep(after_seconds)
            connection.socket.close()
        else:
            behave(connection)

    with RawServer(close_on_the_second, keep_alive=True) as server:
        assert chat(server.url, max_retries=0) == "It ranks."
        if works:
            assert chat(server.url, max_retries=0) == "It ranks."
            assert (len(server.connections), server.opened) == (3, 2)
        else:
            with pytest.raises(LLMConnectionError) as caught:
                chat(server.url)
            assert caught.value.billable
            assert (len(server.connections), server.opened) == (2, 1)


def test_concurrent_calls_have_a_connection_each_which_later_calls_reuse() -> None:
    together = threading.Barrier(4)

    def wait_for_all(connection: Connection) -> None:
        if connection.number <= 4:
            together.wait(20)
        behave(connection)

    with RawServer(wait_for_all, keep_alive=True) as server:
        threads = [threading.Thread(target=chat, args=(server.url,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for _ in range(4):
            chat(server.url)
        assert (len(server.connections), server.opened) == (8, 4)


def test_a_connection_that_the_server_has_closed_is_not_used_again() -> None:
    def hang_up(connection: Connection) -> None:
        behave(connection)
        connection.socket.close()

    with RawServer(hang_up, keep_alive=True) as server:
        for _ in range(3):
            assert chat(server.url) == "It ranks."
            time.sleep(0.2)
        assert server.opened == 3


def test_the_connection_of_a_cancelled_call_is_not_reused() -> None:
    def begin(connection: Connection) -> None:
        if connection.number > 1:
            return behave(connection)
        connection.start_stream()
        connection.say("It")
        assert connection.wait_for_close(20)
        return None

    with RawServer(begin, keep_alive=True) as server:
        llm = OpenAILLM("tiny", base_url=server.url)
        pieces = llm.reply(MESSAGES, cancelled=lambda: bool(server.connections))
        with pytest.raises(OperationCancelled):
            list(pieces)
        assert chat(server.url) == "It ranks."
        assert server.opened == 2
        assert not server.errors


def test_cookies_are_not_kept() -> None:
    """Two accounts on one server would share a session."""
    with RawServer(
        lambda c: c.answer(b'{"choices": [{"message": {"content": "Hi."}}]}', extra="Set-Cookie: session=mine\r\n")
    ) as server:
        chat(server.url, api_key="sk-one")
        chat(server.url, api_key="sk-two")
        assert "session" not in server.connections[1].headers


def test_a_proxy_of_the_environment_counts_from_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(behave) as one, RawServer(behave) as other:
        for proxy in (one, other):
            monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
            assert chat("http://models.invalid/v1") == "It ranks."
            assert embed("http://models.invalid/v1") == pytest.approx([0.6, 0.8])
        assert [len(one.connections), len(other.connections)] == [2, 2]
        assert one.connections[0].headers.startswith("POST http://models.invalid/v1/chat/completions ")


# ------------------------------------------------------------------------------------- processes


def _ask(url: str, replies: multiprocessing.SimpleQueue[str]) -> None:
    replies.put(chat(url))
    replies.put(chat(url))


def test_a_forked_child_opens_its_own_connection() -> None:
    context = multiprocessing.get_context("fork")
    with RawServer(behave, keep_alive=True) as server:
        chat(server.url)
        replies = context.SimpleQueue()
        child = context.Process(target=_ask, args=(server.url, replies))
        child.start()
        assert [replies.get(), replies.get()] == ["It ranks.", "It ranks."]
        child.join(20)
        assert child.exitcode == 0
        assert server.opened == 2
        assert chat(server.url) == "It ranks."
        assert server.opened == 2, "the parent keeps its own connection"


def test_a_process_closes_its_connections_and_ends() -> None:
    closed: list[bool] = []

    def watch(connection: Connection) -> None:
        behave(connection)
        closed.append(connection.wait_for_close(60))

    program = (
        "import sys; from ragkit.llm.openai import OpenAILLM\n"
        "print(OpenAILLM('tiny', base_url=sys.argv[1]).complete([{'role': 'user', 'content': 'Hi'}]))"
    )
    with RawServer(watch, keep_alive=True) as server:
        # -W error: an unclosed socket or loop causes a warning on standard error.
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", program, server.url],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        server.wait()
    assert (done.returncode, done.stdout, done.stderr) == (0, "It ranks.\n", "")
    assert closed == [True]


def test_running_calls_are_finished_at_exit() -> None:
    """Follow-up questions are waited for when a process ends."""
    program = """if True:
        import atexit, sys, threading, time

        begun = threading.Event()

        def run():
            for piece in OpenAILLM("tiny", base_url=sys.argv[1]).reply([{"role": "user", "content": "Hi"}]):
                print(piece)
                begun.set()

        thread = threading.Thread(target=run, daemon=True)
        atexit.register(thread.join)  # before the import, so that it runs after what the import registers
        from ragkit.llm.openai import OpenAILLM

        thread.start()
        begun.wait()
    """

    def slowly(connection: Connection) -> None:
        connection.start_stream()
        connection.say("It")
        time.sleep(1)
        connection.say("ranks.", finish="stop")
        connection.end_stream()

    with RawServer(slowly, keep_alive=True) as server:
        done = subprocess.run([sys.executable, "-c", program, server.url], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "It\nranks.\n", "")


# ------------------------------------------------------------------------------------- embeddings


def failure(behaviour: Callable[[Connection], None], **options: float | str) -> EmbeddingError:
    with RawServer(behaviour) as server, pytest.raises(EmbeddingError) as caught:
        embed(server.url, **options)
    return caught.value


def test_an_embedders_errors_say_what_to_do() -> None:
    body = b'{"error": {"message": "Incorrect API key provided: sk-hunter2"}}'
    wrong = failure(lambda c: c.answer(body, status="401 Unauthorized"), api_key="sk-hunter2")
    assert "api_key=" in str(wrong)
    assert "hunter2" not in str(wrong)
    assert wrong.__cause__ is not None
    body = b'{"error": {"message": "the input is longer than the context"}}'
    assert "max_tokens=" in str(failure(lambda c: c.answer(body, status="400 Bad Request")))
    late = failure(lambda c: c.wait_for_close(30) and None, timeout_seconds=0.2)
    assert "batch_size=" in str(late)


def test_an_embedder_retries_after_a_lost_answer() -> None:
    def lose(connection: Connection) -> None:
        if connection.number > 2:
            behave(connection)

    with RawServer(lose) as server:
        assert embed(server.url) == pytest.approx([0.6, 0.8])
    assert len(server.connections) == 3


def test_an_embedder_sends_the_environments_key_to_openai_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-real-one-from-openai")
    with RawServer(behave) as server:
        embed(server.url)
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        OpenAIEmbedder("tiny").embed(["text"])
    assert ["sk-the-real-one" in each.headers for each in server.connections] == [False, True]


def test_an_embedder_needs_an_address_and_openai_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(InputError, match="http://"):
        OpenAIEmbedder("tiny", base_url="localhost:11434/v1")
    with pytest.raises(EmbeddingError, match="OPENAI_API_KEY"):
        OpenAIEmbedder("tiny").embed(["text"])
    assert "hunter2" not in repr(OpenAIEmbedder("tiny", base_url="http://me:hunter2@localhost:1/v1"))


def test_a_refused_connection_is_explained() -> None:
    with RawServer(behave) as server:
        pass
    with pytest.raises(EmbeddingError, match="Start the server, or check base_url") as caught:
        embed(server.url)
    assert isinstance(caught.value.__cause__, LLMConnectionError)
