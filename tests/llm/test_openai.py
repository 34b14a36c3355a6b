"""`ragkit.llm.openai` against sockets that misbehave, and against a real server."""

from __future__ import annotations

import json
import socket
import threading
import time
import traceback
from collections.abc import Callable

import pytest

from ragkit.cancellation import wait
from ragkit.errors import (
    InputError,
    LLMAuthenticationError,
    LLMConnectionError,
    LLMError,
    LLMRateLimitError,
    LLMResponseError,
    LLMTimeoutError,
    OperationCancelled,
)
from ragkit.llm.base import Usage, drained
from ragkit.llm.metering import most_usage
from ragkit.llm.openai import ChatClient
from tests.support.llm_servers import API_KEY, BillingServer, Connection, RawServer, RealServer, real_llm_server

__all__ = ["real_llm_server"]  # a fixture

MESSAGES = [{"role": "user", "content": "What is BM25?"}]


@pytest.fixture
def free_port() -> int:
    """A port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def client(
    url: str, *, api_key: str | None = API_KEY, timeout_seconds: float = 20.0, max_retries: int = 0
) -> ChatClient:
    return ChatClient(
        "tiny", base_url=url, api_key=api_key, timeout_seconds=timeout_seconds, max_retries=max_retries, temperature=0.0
    )


def ask(chat: ChatClient) -> str:
    return "".join(chat.stream(MESSAGES, max_tokens=50))


def failure(behave: Callable[[Connection], None], **options: float) -> LLMError:
    """Return the error for a server's behaviour; nothing that is shown of it may contain the key."""
    with RawServer(behave) as server, pytest.raises(LLMError) as caught:
        ask(client(server.url, **options))  # type: ignore[arg-type]
    assert not server.errors
    shown = "".join(traceback.format_exception(caught.value))
    assert API_KEY not in shown
    assert (caught.value.model, caught.value.base_url) == ("tiny", server.url)
    return caught.value


# ------------------------------------------------------------------------------------- what works


def test_a_reply_streams_piece_by_piece() -> None:
    first_piece_read = threading.Event()

    def behave(connection: Connection) -> None:
        connection.start_stream()
        connection.say("BM25 is ")
        assert first_piece_read.wait(10)
        connection.say("a ranking function.")
        connection.say(None, finish="stop")
        connection.end_stream()

    with RawServer(behave) as server:
        stream = client(server.url).stream(MESSAGES, max_tokens=50)
        assert next(stream) == "BM25 is "
        first_piece_read.set()
        assert list(stream) == ["a ranking function."]
    (request,) = [connection.request for connection in server.connections]
    assert request["model"] == "tiny"
    assert request["messages"] == MESSAGES
    assert (request["stream"], request["max_tokens"], request["temperature"]) == (True, 50, 0.0)
    assert f"Bearer {API_KEY}" in server.connections[0].headers
    assert not server.errors


def test_a_reply_that_reaches_max_tokens_says_so() -> None:
    def behave(connection: Connection) -> None:
        connection.start_stream()
        connection.say("BM25 is")
        connection.say(None, finish="length")
        connection.end_stream()

    with RawServer(behave) as server:
        assert ask(client(server.url)) == "BM25 is […]"


def test_a_server_that_cannot_stream_is_understood() -> None:
    with RawServer(lambda c: c.answer(b'{"choices": [{"message": {"content": "It ranks."}}]}')) as server:
        assert ask(client(server.url)) == "It ranks."


def test_429_is_retried() -> None:
    def behave(connection: Connection) -> None:
        if connection.number == 1:
            connection.answer(b'{"error": {"message": "slow down"}}', status="429 Too Many Requests")
            return
        connection.start_stream()
        connection.say("At last.", finish="stop")
        connection.end_stream()

    with RawServer(behave) as server:
        assert ask(client(server.url, max_retries=1)) == "At last."
    assert len(server.connections) == 2


def test_threads_share_a_client() -> None:
    def behave(connection: Connection) -> None:
        connection.start_stream()
        connection.say(connection.request["messages"][0]["content"], finish="stop")
        connection.end_stream()

    replies: dict[int, str] = {}
    with RawServer(behave) as server:
        chat = client(server.url)

        def run(n: int) -> None:
            replies[n] = "".join(chat.stream([{"role": "user", "content": str(n)}], max_tokens=5))

        threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert replies == {n: str(n) for n in range(8)}


# ------------------------------------------------------------------------------------- usage


def test_usages_add_up() -> None:
    assert Usage(1, 20) + Usage(300, 4000) == Usage(301, 4020)


@pytest.mark.parametrize("tells_usage", [True, False])
def test_usage_is_what_the_stream_returns(tells_usage: bool) -> None:
    with BillingServer(tells_usage=tells_usage) as server:
        text, usage = drained(client(server.url).stream(MESSAGES, max_tokens=50))
        assert text.split() == [str(n) for n in range(server.total.output_tokens)]
        assert usage == (server.total if tells_usage else None)


def test_usage_of_a_server_that_cannot_stream() -> None:
    usage = {"prompt_tokens": 7, "completion_tokens": 3}
    reply = {"choices": [{"message": {"content": "It ranks."}}], "usage": usage}
    with RawServer(lambda c: c.answer(json.dumps(reply).encode())) as server:
        assert drained(client(server.url).stream(MESSAGES, max_tokens=50)) == ("It ranks.", Usage(7, 3))


@pytest.mark.parametrize(
    "usage",
    [None, {}, [7, 3], "7", {"prompt_tokens": 7}, {"prompt_tokens": -7, "completion_tokens": 3},
     {"prompt_tokens": 7.5, "completion_tokens": 3}, {"prompt_tokens": "7", "completion_tokens": 3},
     {"prompt_tokens": 10**300, "completion_tokens": 3}],
)  # fmt: skip
def test_invalid_usage_is_ignored(usage: object) -> None:
    def behave(connection: Connection) -> None:
        connection.start_stream()
        connection.say("Hello.", finish="stop")
        connection.event({"choices": [], "usage": usage})
        connection.end_stream()

    with RawServer(behave) as server:
        assert drained(client(server.url).stream(MESSAGES, max_tokens=50)) == ("Hello.", None)
    assert not server.errors


@pytest.mark.parametrize("status", ["400 Bad Request", "422 Unprocessable Entity"])
def test_a_server_that_rejects_the_usage_option_is_asked_once(status: str) -> None:
    def behave(connection: Connection) -> None:
        if "stream_options" in connection.request:
            connection.answer(b'{"error": {"message": "extra inputs are not permitted"}}', status=status)
            return
        connection.start_stream()
        connection.say("ok", finish="stop")
        connection.end_stream()

    with RawServer(behave) as server:
        chat = client(server.url)
        assert [ask(chat), ask(chat)] == ["ok", "ok"]
    assert ["stream_options" in connection.request for connection in server.connections] == [True, False, False]


def test_other_rejections_are_raised() -> None:
    def behave(connection: Connection) -> None:
        if connection.number > 1:
            connection.answer(b'{"error": {"message": "the context is too long"}}', status="400 Bad Request")
            return
        connection.start_stream()
        connection.say("ok", finish="stop")
        connection.end_stream()

    with RawServer(behave) as server:
        chat = client(server.url)
        ask(chat)
        with pytest.raises(LLMResponseError, match="too long") as caught:
            ask(chat)
        assert len(server.connections) == 2
        assert caught.value.status == 400
        with pytest.raises(LLMResponseError, match="too long"):
            ask(client(server.url))
    assert len(server.connections) == 4, "a new server could be rejecting the usage option"


# ------------------------------------------------------------------------------------- what may be billed


@pytest.mark.parametrize(
    ("failing", "billable"),
    [("400", False), ("401", False), ("429", False), ("500", False), ("503", False), ("html", False),
     ("504", True), ("524", True), ("cut", True), ("dropped", True)],
)  # fmt: skip
def test_an_error_says_whether_it_may_be_billed(failing: str, billable: bool) -> None:
    with BillingServer(failures=[failing], every=1) as server, pytest.raises(LLMError) as caught:
        ask(client(server.url))
    assert caught.value.billable is billable
    assert bool(server.billed) <= billable
    assert caught.value.status == (int(failing) if failing.isdigit() else None)


def test_a_refused_connection_and_an_error_instead_of_a_reply_are_not_billed(free_port: int) -> None:
    with pytest.raises(LLMConnectionError) as caught:
        ask(client(f"http://127.0.0.1:{free_port}/v1"))
    assert not caught.value.billable
    assert not failure(lambda c: c.answer(b'{"error": "model is on fire"}')).billable
    assert failure(lambda c: c.answer(b'{"choices": [{"message": {"content": ""}}]}')).billable


def test_a_time_out_may_be_billed() -> None:
    def behave(connection: Connection) -> None:
        connection.wait_for_close(30)

    assert failure(behave, timeout_seconds=0.3).billable


@pytest.mark.parametrize(("failing", "requests"), [("503", 3), ("dropped", 1), ("504", 1), ("cut", 1)])
def test_only_unbillable_requests_are_retried(failing: str, requests: int) -> None:
    def behave(connection: Connection) -> None:
        match failing:
            case "cut":
                connection.start_stream()
            case "503" | "504":
                connection.answer(b"{}", status=f"{failing} No", extra="Retry-After-Ms: 1\r\n")

    with RawServer(behave) as server, pytest.raises(LLMError):
        ask(client(server.url, max_retries=2))
    assert len(server.connections) == requests


# ------------------------------------------------------------------------------------- what does not


def test_refused_connection(free_port: int) -> None:
    with pytest.raises(LLMConnectionError, match=rf"127\.0\.0\.1:{free_port}/v1.*Start the server, or check base_url"):
        ask(client(f"http://127.0.0.1:{free_port}/v1"))


def test_a_server_that_never_answers_times_out() -> None:
    def behave(connection: Connection) -> None:
        connection.wait_for_close(30)

    started = time.monotonic()
    error = failure(behave, timeout_seconds=0.5)
    assert isinstance(error, LLMTimeoutError)
    assert "0.5 seconds" in str(error)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("headers_first", [True, False])
def test_a_slow_stream_ends_at_the_deadline(headers_first: bool) -> None:
    # No read takes longer than 0.2 s, so a time-out for each read would never end this.
    def behave(connection: Connection) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        connection.send(head + b"\r\n" if headers_first else head)
        for _ in range(150):
            connection.send(b": keep-alive\n\n" if headers_first else b"X-Still: here\r\n")
            time.sleep(0.2)

    started = time.monotonic()
    assert isinstance(failure(behave, timeout_seconds=1.5), LLMTimeoutError)
    assert time.monotonic() - started < 15


def test_retry_after_ends_at_the_deadline() -> None:
    def behave(connection: Connection) -> None:
        connection.answer(b"{}", status="429 Too Many Requests", extra="Retry-After: 60\r\n")

    started = time.monotonic()
    error = failure(behave, timeout_seconds=1.0, max_retries=3)
    assert isinstance(error, LLMRateLimitError), "the reason is the rate, not the time that ran out"
    assert time.monotonic() - started < 15


def test_429_after_all_retries() -> None:
    error = failure(
        lambda c: c.answer(b'{"error": {"message": "quota exceeded"}}', status="429 Too Many Requests"), max_retries=1
    )
    assert isinstance(error, LLMRateLimitError)
    assert "quota exceeded" in str(error)


@pytest.mark.parametrize("chunked", [True, False])
def test_cut_stream(chunked: bool) -> None:
    def behave(connection: Connection) -> None:
        if chunked:
            connection.start_stream()
            connection.say("BM25 is a ran")
        else:  # a body that ends with the connection differs from a complete one only by its last event
            connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
            connection.send(b'data: {"choices": [{"index": 0, "delta": {"content": "BM25 is a ran"}}]}\n\n')

    with RawServer(behave) as server:
        received: list[str] = []
        with pytest.raises(LLMConnectionError, match="middle of the answer"):
            received.extend(client(server.url).stream(MESSAGES, max_tokens=50))
    assert "".join(received) == "BM25 is a ran", "the pieces before the cut are not lost"


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
def test_html_instead_of_json(status: str) -> None:
    page = b"<!doctype html><html><body>Welcome to nginx!</body></html>"
    error = failure(lambda c: c.answer(page, kind="text/html; charset=utf-8", status=status))
    assert isinstance(error, LLMResponseError)
    assert "usually ends in /v1" in str(error)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"message": "model is on fire"}}', "model is on fire"),
        (b'{"error": "model is on fire"}', "model is on fire"),
        (b'{"object": "error", "message": "model is on fire", "choices": null}', "model is on fire"),
        (b'{"choices": []}', "did not answer"),
        (b"[1, 2]", "OpenAI-compatible"),
        (b"not json", "OpenAI-compatible"),
        (b"", "OpenAI-compatible"),
    ],
)
def test_error_with_status_200(body: bytes, expected: str) -> None:
    error = failure(lambda c: c.answer(body))
    assert isinstance(error, LLMResponseError)
    assert expected in str(error)


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        ({"error": {"message": "out of memory", "code": 500}}, "out of memory"),
        ({"object": "error", "message": "out of memory"}, "not a reply"),
        ({"choices": None}, "not a reply"),
        ({"choices": [{"index": 0, "delta": None}]}, "OpenAI-compatible"),
        ("{not json", "OpenAI-compatible"),
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, "returned an empty reply"),
        ({"choices": [{"index": 0, "delta": {"reasoning": "hm"}, "finish_reason": "length"}]}, "raise max_tokens"),
        ({"choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}, "content filter"),
    ],
)
def test_error_inside_the_stream(event: object, expected: str) -> None:
    def behave(connection: Connection) -> None:
        connection.start_stream()
        connection.event(event)
        connection.end_stream()

    error = failure(behave)
    assert isinstance(error, LLMResponseError)
    assert expected in str(error)


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
def test_wrong_key(status: str) -> None:
    # Some servers repeat the key in their messages.
    body = f'{{"error": {{"message": "Incorrect API key provided: {API_KEY}"}}}}'.encode()
    error = failure(lambda c: c.answer(body, status=status))
    assert isinstance(error, LLMAuthenticationError)
    assert "api_key=" in str(error)
    assert "***" in str(error)


def test_unknown_model() -> None:
    body = b'{"error": {"message": "model \'tiny\' not found", "code": "model_not_found"}}'
    error = failure(lambda c: c.answer(body, status="404 Not Found"))
    assert isinstance(error, LLMResponseError)
    assert "has no model 'tiny'" in str(error)
    assert "/v1/models" in str(error)


def test_a_prompt_that_is_too_long_and_a_broken_server() -> None:
    body = b'{"error": {"message": "the request exceeds the available context size"}}'
    assert "smaller k" in str(failure(lambda c: c.answer(body, status="400 Bad Request")))
    error = failure(lambda c: c.answer(b"oops", status="500 Internal Server Error", kind="text/plain"))
    assert isinstance(error, LLMResponseError)
    assert "HTTP 500" in str(error)


# ------------------------------------------------------------------------------------- cancelling


@pytest.mark.parametrize("pieces", [0, 1])
def test_cancelling_closes_the_connection_immediately(pieces: int) -> None:
    """Even before the first piece: a server processes a long prompt until the connection is closed."""
    hung_up: list[bool] = []
    got_request = threading.Event()

    def behave(connection: Connection) -> None:
        if pieces:
            connection.start_stream()
            connection.say("BM25")
        got_request.set()
        hung_up.append(connection.wait_for_close(20))

    received: list[str] = []
    with RawServer(behave) as server:
        chat = client(server.url, timeout_seconds=60)
        with pytest.raises(OperationCancelled):
            received.extend(chat.stream(MESSAGES, max_tokens=5, cancelled=got_request.is_set))
        server.wait()
        assert hung_up == [True]


def test_closing_a_stream_closes_the_connection() -> None:
    hung_up: list[bool] = []

    def behave(connection: Connection) -> None:
        connection.start_stream()
        connection.say("BM25")
        hung_up.append(connection.wait_for_close(20))

    with RawServer(behave) as server:
        stream = client(server.url).stream(MESSAGES, max_tokens=5)
        assert next(stream) == "BM25"
        stream.close()
        server.wait()
    assert hung_up == [True]
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "ragkit-model-servers"]
    assert thread.is_alive(), "one thread for all exchanges, and it keeps running"


def test_waiting_is_cancelled() -> None:
    asked: list[float] = []

    def cancelled() -> bool:
        asked.append(time.monotonic())
        return len(asked) == 3

    with pytest.raises(OperationCancelled):
        wait(3600, cancelled)
    wait(0)


# ------------------------------------------------------------------------------------- keys and addresses


def test_the_environments_key_is_not_sent_to_another_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-the-real-one-from-openai")

    def behave(connection: Connection) -> None:
        connection.start_stream()
        connection.say("ok", finish="stop")
        connection.end_stream()

    with RawServer(behave) as server:
        ask(client(server.url, api_key=None))
        assert "sk-the-real-one" not in server.connections[0].headers
        assert "Bearer " in server.connections[0].headers
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        ask(ChatClient("m", base_url=None, api_key=None, timeout_seconds=20, max_retries=0, temperature=None))
        assert "sk-the-real-one" in server.connections[1].headers
        assert "temperature" not in server.connections[1].request


def test_local_servers_bypass_the_proxy(monkeypatch: pytest.MonkeyPatch, free_port: int) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port}")

    def behave(connection: Connection) -> None:
        connection.start_stream()
        connection.say("ok", finish="stop")
        connection.end_stream()

    with RawServer(behave) as server:
        assert ask(client(server.url)) == "ok"


def test_openai_itself_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(LLMAuthenticationError, match="OPENAI_API_KEY"):
        ChatClient("gpt", base_url=None, api_key=None, timeout_seconds=1, max_retries=0, temperature=None)


@pytest.mark.parametrize("url", ["localhost:11434/v1", "ftp://localhost/v1", "http:///v1", "nonsense"])
def test_invalid_addresses_are_rejected(url: str) -> None:
    with pytest.raises(InputError, match="http://"):
        client(url)


@pytest.mark.parametrize("key", ["sk-abc\ndef", "sk-clé"])
def test_an_invalid_key_is_rejected_without_showing_it(key: str) -> None:
    with pytest.raises(InputError) as caught:
        client("http://localhost/v1", api_key=key)
    assert key not in str(caught.value)


def test_credentials_in_the_address_are_not_shown(free_port: int) -> None:
    chat = client(f"http://user:hunter2@127.0.0.1:{free_port}/v1?token=hunter3", api_key="sk-hunter4-0000")
    with pytest.raises(LLMConnectionError) as caught:
        ask(chat)
    assert "hunter" not in repr(chat) + "".join(traceback.format_exception(caught.value))
    assert chat.base_url == f"http://127.0.0.1:{free_port}/v1"


# ------------------------------------------------------------------------------------- a real server


def test_real_server_streams(real_llm_server: RealServer) -> None:
    chat = client(real_llm_server.url, timeout_seconds=120)
    pieces = list(chat.stream(MESSAGES, max_tokens=12))
    assert len(pieces) > 3
    assert pieces[-1] == " […]"
    assert "".join(pieces).strip()


def test_real_server_reports_usage(real_llm_server: RealServer) -> None:
    import httpx2

    asked = [{"role": "user", "content": "Qu'est-ce que BM25 ? Réponds en une phrase, s'il te plaît."}]
    _, usage = drained(client(real_llm_server.url, timeout_seconds=120).stream(asked, max_tokens=6))
    answer = httpx2.post(
        f"{real_llm_server.url}/chat/completions",
        json={"messages": asked, "max_tokens": 6, "temperature": 0},
        headers={"Authorization": f"Bearer {API_KEY}"},
        timeout=120,
    ).json()["usage"]
    assert usage == Usage(answer["prompt_tokens"], answer["completion_tokens"])
    most = most_usage(asked, 6)
    assert usage.input_tokens <= most.input_tokens, "its template's paragraph included"
    assert usage.output_tokens <= most.output_tokens


def test_real_server_rejects_another_key(real_llm_server: RealServer) -> None:
    with pytest.raises(LLMAuthenticationError):
        ask(client(real_llm_server.url, api_key="sk-wrong-wrong-wrong"))


def test_real_server_serves_again_after_a_cancellation(real_llm_server: RealServer) -> None:
    chat = client(real_llm_server.url, timeout_seconds=120)
    received: list[str] = []
    with pytest.raises(OperationCancelled):
        received.extend(chat.stream(MESSAGES, max_tokens=1000, cancelled=lambda: len(received) >= 2))
    assert len(received) == 2
    assert ask(chat), "its only slot is free again"


def test_real_server_says_that_a_prompt_is_too_long(real_llm_server: RealServer) -> None:
    chat = client(real_llm_server.url, timeout_seconds=120)
    with pytest.raises(LLMResponseError, match="smaller k"):
        list(chat.stream([{"role": "user", "content": "word " * 5000}], max_tokens=5))
