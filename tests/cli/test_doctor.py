"""`ragkit doctor` on a working server, and on each way in which a server can fail."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from ragkit.cli.doctor import Doctor, Finding
from ragkit.embedding.hashed import HashEmbedder
from ragkit.engine.engine import RAGEngine
from ragkit.errors import InputError, ServerNotFoundError
from ragkit.live.discovery import Server as Found
from ragkit.live.publisher import Publisher
from ragkit.llm.base import GenerativeLLM, ScriptedLLM
from ragkit.llm.openai import OpenAILLM
from tests.server.live_server import TOKEN, Server, receive_type, say, start_server
from tests.support.commands import ragkit
from tests.support.corpora import write_pages
from tests.support.lab import start_lab


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("doctor-server"), base_url="/user/x/")
    yield server
    server.stop()


def found(server: Server, token: str | None = TOKEN) -> Found:
    return Found(f"http://127.0.0.1:{server.port}{server.base_url}", token, None, "test")


def nowhere() -> Found:
    raise ServerNotFoundError("this is a test")


def no_index() -> Path:
    raise InputError("Which index?")


def examine(
    *,
    find: Callable[[], Found] = nowhere,
    index: Callable[[], Path] = no_index,
    llm: Callable[[], GenerativeLLM] | None = None,
    only: tuple[str, ...] = (),
) -> dict[str, Finding]:
    """Return the findings by layer; stop after the layers in ``only``, so that most tests load no model."""
    findings = {}
    for finding in Doctor(find=find, index=index, llm=llm, timeout_seconds=30).examine():
        findings[finding.layer] = finding
        if only and set(only) <= set(findings):
            break
    return findings


NETWORK = ("server", "http", "socket", "round trip", "origin", "publishing", "engine")


def test_a_server_that_works(server: Server, tmp_path: Path) -> None:
    done = ragkit("doctor", "--json", cwd=tmp_path, server=server)
    report = json.loads(done.stdout)
    findings = {finding["layer"]: finding for finding in report["findings"]}
    status = {layer: finding["status"] for layer, finding in findings.items()}
    assert status == dict.fromkeys(("python", *NETWORK, "embedder"), "ok") | {
        "engine": "warning",
        "panel": "ok",
        "index": "skipped",
        "llm": "skipped",
    }
    assert "RAGKIT_URL" in findings["server"]["message"]
    assert "ragkit serve INDEX" in findings["engine"]["advice"]
    assert "384 dimensions" in findings["embedder"]["message"]
    assert "torch" in findings["python"]["message"]
    assert (done.returncode, report["ok"], report["first_failure"]) == (0, True, None)


@pytest.mark.parametrize("status", ["ok", "warning"])
def test_the_panel(tmp_path: Path, status: str) -> None:
    """On a JupyterLab with the panel, and on one that searches for extensions in another folder."""
    elsewhere = f"--LabServerApp.labextensions_path={tmp_path / 'nowhere'}"
    lab = start_lab(tmp_path) if status == "ok" else start_server(tmp_path, elsewhere, app="lab", base_url="/user/x/")
    try:
        finding = examine(find=lambda: found(lab), only=("panel",))["panel"]
    finally:
        lab.stop()
    assert finding.status == status
    assert ("jupyter labextension list" in finding.advice) == (status == "warning")


def test_the_doctor_publishes_nothing(server: Server) -> None:
    first = examine(find=lambda: found(server), only=NETWORK)
    second = examine(find=lambda: found(server), only=NETWORK)
    assert first["publishing"].status == "ok"
    assert first["socket"].message == second["socket"].message  # it ends in the number of events so far


def test_a_wrong_token_is_the_first_failure_and_is_not_shown(server: Server, tmp_path: Path) -> None:
    done = ragkit("doctor", "--token", "wrong-token-1234", cwd=tmp_path, server=server)
    assert done.returncode == 1
    assert "does not accept the token (HTTP 403)" in done.stdout
    assert "The first layer that fails is 'http'" in done.stdout
    assert "skipped  socket      not tested, because it depends on 'http'" in done.stdout
    assert "wrong-token-1234" not in done.stdout


def test_an_engine_on_offer(server: Server) -> None:
    async def work() -> Finding:
        async with server.publisher() as socket, server.open() as listener:
            await say(
                socket, type="offer", engine={"id": "e", "index": "handbook", "documents": 30, "llm": "extractive"}
            )
            await receive_type(listener, "engines")
            return (await asyncio.to_thread(examine, find=lambda: found(server), only=NETWORK))["engine"]

    finding = asyncio.run(work())
    assert (finding.status, finding.message) == ("ok", "on offer: 'handbook' (30 documents, extractive)")


@pytest.mark.parametrize(
    ("setting", "status", "words"),
    [
        ("--ServerApp.allow_origin=http://localhost:3000", "ok", "and of http://localhost:3000"),
        ("--ServerApp.allow_origin=*", "warning", "allow_origin is '*'"),
        ("--RagkitApp.allow_any_origin_with_token=True", "warning", "allow_any_origin_with_token is set"),
    ],
)
def test_which_origins_are_allowed(tmp_path: Path, setting: str, status: str, words: str) -> None:
    server = start_server(tmp_path, setting)
    try:
        finding = examine(find=lambda: found(server), only=NETWORK)["origin"]
    finally:
        server.stop()
    assert finding.status == status
    assert words in finding.message


def test_other_origins_are_refused_by_default(server: Server) -> None:
    finding = examine(find=lambda: found(server), only=NETWORK)["origin"]
    assert finding.status == "ok"
    assert f"allowed: pages of {found(server).url}, and" in finding.message


def test_no_server() -> None:
    findings = examine(only=NETWORK)
    assert findings["server"].status == "failed"
    assert "jupyter lab" in findings["server"].message
    assert {findings[layer].status for layer in NETWORK[1:]} == {"skipped"}


def test_a_server_that_is_gone() -> None:
    finding = examine(find=lambda: Found("http://127.0.0.1:9/"), only=NETWORK)["http"]
    assert finding.status == "failed"
    assert "Is it running?" in finding.message


@pytest.mark.parametrize(
    ("status", "body", "layer", "words"),
    [
        (200, b"<html>welcome</html>", "http", "not a Jupyter server"),
        (200, b'{"started": "2026", "kernels": 0}', "socket", "runs without ragkit"),
        (302, b"", "http", "does not accept the token"),
        (500, b"", "http", "HTTP 500"),
    ],
)
def test_other_servers(status: int, body: bytes, layer: str, words: str) -> None:
    def answer(_: ServerConnection, request: Request) -> Response:
        code = HTTPStatus(404 if "ws" in request.path else status)
        headers = Headers({"Content-Length": str(len(body)), "Location": "/login", "Connection": "close"})
        return Response(code, code.phrase, headers, body)

    with serve(lambda _: None, "127.0.0.1", 0, process_request=answer) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{other.socket.getsockname()[1]}/"
        finding = examine(find=lambda: Found(url, "secret-token"), only=NETWORK)[layer]
        other.shutdown()
        thread.join(30)
    assert finding.status == "failed"
    assert words in finding.message


# --------------------------------------------------------------------------------- on this machine


@pytest.fixture
def index(tmp_path: Path) -> Path:
    publisher = Publisher(server=Found("http://127.0.0.1:9/"), journal_folder=tmp_path / "journal")
    engine = RAGEngine(tmp_path / "index", embedder=HashEmbedder(), publisher=publisher, progress=False)
    engine.index(write_pages(tmp_path / "docs"))
    publisher.close(1)
    return tmp_path / "index"


def test_an_index_of_another_embedder(index: Path) -> None:
    finding = examine(index=lambda: index, only=("index",))["index"]
    assert finding.status == "warning"
    assert "was made with the embedder ragkit/hash-256" in finding.message


def test_a_missing_index(tmp_path: Path) -> None:
    finding = examine(index=lambda: tmp_path / "typo", only=("index",))["index"]
    assert finding.status == "failed"
    assert finding.advice == f"Create one: ragkit index FOLDER --index {tmp_path / 'typo'}"
    assert not (tmp_path / "typo").exists()


def test_missing_vectors(index: Path) -> None:
    shutil.rmtree(index / "vectors")
    finding = examine(index=lambda: index, only=("index",))["index"]
    assert finding.status == "failed"
    assert "but only 0 vectors" in finding.message
    assert "--rebuild" in finding.advice
    assert not (index / "vectors").exists()


def test_a_damaged_index(index: Path) -> None:
    (index / "index.db").write_bytes(b"not a database " * 100)
    finding = examine(index=lambda: index, only=("index",))["index"]
    assert finding.status == "failed"
    assert "is damaged" in finding.message


def test_a_model_that_answers() -> None:
    finding = examine(llm=lambda: ScriptedLLM(["rea", "dy"]))["llm"]
    assert finding.status == "ok"
    assert "scripted answered 'ready'" in finding.message


def test_a_model_whose_server_is_gone() -> None:
    finding = examine(llm=lambda: OpenAILLM("m", base_url="http://127.0.0.1:9/v1", max_retries=0))["llm"]
    assert finding.status == "failed"
    assert "127.0.0.1:9" in finding.message


def test_an_unexpected_error_is_reported_and_the_other_layers_are_tested() -> None:
    def broken() -> Path:
        raise ZeroDivisionError("of all things")

    findings = examine(index=broken, only=("embedder",))
    assert (findings["index"].status, findings["index"].message) == ("failed", "ZeroDivisionError: of all things")
    assert findings["embedder"].status == "ok"
