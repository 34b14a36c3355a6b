"""The commands as users run them: real processes, a real Jupyter server, the default embedding model."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

import ragkit as package
from ragkit.cli.options import default_index, existing_index, find_index
from ragkit.embedding.hashed import HashEmbedder
from ragkit.engine.engine import RAGEngine
from ragkit.errors import InputError
from ragkit.live.discovery import Server as Found
from ragkit.live.publisher import Publisher
from ragkit.terminal import one_line, printable
from tests.server.live_server import Server, receive_type, say, start_server
from tests.support.commands import DEADLINE_SECONDS, command, environment, ragkit, running
from tests.support.corpora import write_pages
from tests.support.llm_servers import Connection, RawServer

QUESTION = "How do I choose k1 and b?"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("cli-server"), base_url="/user/x/")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents in ``docs`` and their index in ``indexes/docs``, created by the command."""
    desk = tmp_path_factory.mktemp("desk")
    write_pages(desk / "docs")
    (desk / "docs" / "empty.md").write_text("")
    done = ragkit("index", "docs", cwd=desk)
    assert done.returncode == 0, done.stderr
    assert "4 added, 0 updated, 0 unchanged, 0 deleted, 1 failed" in done.stdout
    assert "empty.md" in done.stdout
    assert "The index is in 'indexes/docs'. Next: ragkit ask --index indexes/docs 'a question'" in done.stdout
    return desk


def foreign_index(folder: Path) -> None:
    """Create an index that the command line cannot open, because of its different embedder."""
    publisher = Publisher(server=Found("http://127.0.0.1:9/"), journal_folder=folder.parent / "journal")
    engine = RAGEngine(folder, embedder=HashEmbedder(), publisher=publisher, progress=False)
    engine.index(write_pages(folder.parent / "pages"))
    publisher.close(1)


# -------------------------------------------------------------------------------- start and usage


def test_help_and_version_load_nothing_heavy() -> None:
    program = (
        "import sys\nfrom ragkit.cli import main\nsys.argv = ['ragkit', {!r}]\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\nprint(*sys.modules)"
    )
    for option in ("--help", "--version"):
        done = subprocess.run(
            [sys.executable, "-c", program.format(option)], capture_output=True, text=True, timeout=60, check=True
        )
        text, _, modules = done.stdout.rstrip("\n").rpartition("\n")
        assert not {name.split(".")[0] for name in modules.split()} & {
            "torch", "chromadb", "sentence_transformers", "transformers", "openai", "numpy", "websockets",
        }  # fmt: skip
        if option == "--version":
            assert text == f"ragkit {package.__version__}"
        else:
            assert all(name in text for name in ("index", "ask", "serve", "watch", "doctor"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("ask", "q", "--nonsense"),
        ("ask", "q", "-k", "0"),
        ("ask", "q", "--base-url", "http://localhost:1/v1"),
        ("ask", "q", "--llm", "m", "--api-key-env", "NO_SUCH_VARIABLE"),
        ("doctor", "--api-key-env", "NO_SUCH_VARIABLE"),
    ],
)
def test_invalid_commands(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = ragkit(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Error: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("index", "nope"), "There is no file or folder at 'nope'"),
        (("index", "."), "holds no document that ragkit reads"),
        (("ask", "   "), "The question is empty"),
        (("ask", "What?"), "Create one with 'ragkit index FOLDER'"),
        (("ask", "What?", "--index", "nope"), "There is no index at 'nope'. Make it: ragkit index FOLDER --index nope"),
        (("serve", "nope"), "There is no index at 'nope'"),
    ],
)
def test_input_errors_are_reported_on_stderr(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = ragkit(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.glob("*index*"))


def test_all_documents_failed(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "empty.md").write_text("")
    (tmp_path / "docs" / "broken.pdf").write_bytes(b"%PDF-1.4 and no more")
    done = ragkit("index", "docs", cwd=tmp_path)
    assert done.returncode == 1
    assert "2 failed" in done.stdout
    assert "broken.pdf" in done.stdout
    assert "No document could be read from 'docs'" in done.stderr


def test_an_index_of_another_embedder_can_be_rebuilt(tmp_path: Path) -> None:
    foreign_index(tmp_path / "index")
    done = ragkit("ask", "What?", "--index", "index", cwd=tmp_path)
    assert done.returncode == 1
    assert "Here: ragkit index FOLDER --index index --rebuild" in done.stderr
    # A typo in the path must not delete the index.
    assert ragkit("index", "nope", "--index", "index", "--rebuild", cwd=tmp_path).returncode == 1
    assert (tmp_path / "index" / "index.db").exists()
    done = ragkit("index", "pages", "--index", "index", "--rebuild", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 added" in done.stdout


# ---------------------------------------------------------------------------- index selection


def make_index(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "index.db").touch()
    return folder


def test_index_selection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAGKIT_INDEX", raising=False)
    with pytest.raises(InputError, match="There is none"):
        find_index(None)
    first = make_index(Path("indexes/first"))
    assert find_index(None) == first
    make_index(Path("indexes/second"))
    with pytest.raises(InputError, match=r"There are several: indexes.first, indexes.second"):
        find_index(None)
    monkeypatch.setenv("RAGKIT_INDEX", "elsewhere")
    assert find_index(None) == Path("elsewhere")
    assert find_index(Path("given")) == Path("given")
    with pytest.raises(InputError, match=r"There is no index at 'elsewhere'.* There are: indexes.first"):
        existing_index(None)


def test_the_folder_of_a_new_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = write_pages(tmp_path / "docs")
    assert default_index(docs) == default_index(docs / "bm25.md") == Path("indexes/docs")
    monkeypatch.chdir(docs)
    assert default_index(Path()) == Path("indexes/docs")
    assert default_index(Path("/")) == Path("indexes/documents")


# -------------------------------------------------------------------------------------------- ask


def test_ask_answers_with_sources_and_questions(desk: Path) -> None:
    done = ragkit("ask", QUESTION, cwd=desk)
    assert done.returncode == 0, done.stderr
    answer, _, rest = done.stdout.partition("\n\nSources\n")
    assert "k1 = 1.2 and b = 0.75. [1]" in answer
    assert rest.startswith("[1] BM25")
    assert "bm25.md)" in rest
    assert "\nNext\n  • " in rest


def test_ask_in_french_as_json(desk: Path) -> None:
    done = ragkit("ask", "Quelle taille de passage choisir ?", "--json", "--no-follow-ups", cwd=desk)
    reply = json.loads(done.stdout)
    assert "deux cents mots" in reply["answer"]
    assert reply["sources"][0]["document_id"] == "fr/decoupage.md"
    assert (reply["language"], reply["abstained"], reply["follow_up_questions"]) == ("fr", False, [])


def test_ask_streams_what_a_model_writes_to_a_terminal(desk: Path) -> None:
    """Text is shown before the model has finished; control characters in it do not reach the terminal."""
    seen = bytearray()
    first_is_there: list[bool] = []

    def answer(connection: Connection) -> None:
        if not connection.request.get("stream") or first_is_there:
            connection.answer(b'{"error": {"message": "no follow-ups from me"}}', status="400 Bad Request")
            return
        connection.start_stream()
        connection.say("Start \x1b[2Jwith k1 = 1.2 [1]")
        ends = time.monotonic() + DEADLINE_SECONDS
        while b"1.2 [1]" not in seen and time.monotonic() < ends:
            time.sleep(0.02)
        first_is_there.append(b"1.2 [1]" in seen)
        connection.say(" and no more [9].", finish="stop")
        connection.end_stream()

    leader, follower = pty.openpty()
    with RawServer(answer) as llm:
        process = subprocess.Popen(
            command("ask", QUESTION, "--llm", "m", "--base-url", llm.url, "--api-key-env", "KEY", "--no-follow-ups"),
            cwd=desk,
            env=environment(desk, KEY="sk-secret"),
            stdin=subprocess.DEVNULL,
            stdout=follower,
            stderr=follower,
        )
        os.close(follower)
        with process:
            while True:
                try:
                    seen += os.read(leader, 4096)
                except OSError:  # on Linux: no process has the terminal open any more
                    break
        os.close(leader)
    assert process.returncode == 0, seen
    assert first_is_there == [True]
    text = seen.decode().replace("\r\n", "\n")
    assert "\x1b[2J" not in text
    assert r"Start \x1b[2Jwith k1 = 1.2 [1] and no more [9]." in text
    # [9] matches no passage, so the final answer has no such marker.
    assert r"Start \x1b[2Jwith k1 = 1.2 [1] and no more." in text
    assert "Sources\n[1] BM25" in text
    assert "Authorization: Bearer sk-secret" in llm.connections[0].headers.replace("authorization", "Authorization")


def test_ask_reports_problems_of_the_model(desk: Path) -> None:
    done = ragkit("ask", QUESTION, "--llm", "m", "--base-url", "http://127.0.0.1:9/v1", cwd=desk)
    assert done.returncode == 1
    assert "Error: " in done.stderr
    assert "127.0.0.1:9" in done.stderr


# -------------------------------------------------------------------------------- on the server


def test_index_publishes_progress_and_ctrl_c_keeps_finished_work(server: Server, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for n in range(400):
        words = " ".join(f"word{n * i % 97}" for i in range(25))
        (tmp_path / "docs" / f"{n:03}.md").write_text(f"# Page {n}\n\n{words}.\n")

    async def work() -> Any:
        async with server.open() as listener:
            with running("index", "docs", cwd=tmp_path, server=server) as indexing:
                while not (await receive_type(listener, "indexing_progress")).get("documents_done", 0):
                    pass
                status = await asyncio.to_thread(indexing.end, signal.SIGINT)
                assert status == 130, indexing.lines
                assert "Stopped. What was indexed is kept; the same command goes on." in indexing.lines
            while (event := await receive_type(listener, "indexing_progress"))["state"] == "running":
                pass
            return event

    event = asyncio.run(work())
    assert event["state"] == "cancelled"
    assert 0 < event["documents_done"] < 400
    assert event["origin"] | {"run_id": ""} == {"kind": "cli", "name": "ragkit index", "run_id": ""}
    for n in range(300):  # fewer files are enough: this tests only the resumption
        (tmp_path / "docs" / f"{399 - n:03}.md").unlink()
    done = ragkit("index", "docs", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"[1-9]\d* unchanged", done.stdout)


def test_serve_answers_on_the_socket_until_it_is_stopped(server: Server, desk: Path) -> None:
    async def work() -> None:
        async with server.open() as listener:
            with running("serve", cwd=desk, server=server) as serving:
                (engine,) = (await receive_type(listener, "engines"))["engines"]
                assert (engine["index"], engine["documents"], engine["origin"]["name"]) == ("docs", 4, "ragkit serve")
                await say(listener, type="query", id="1", content={"question": QUESTION, "context": {}})
                content = (await receive_type(listener, "response", "error"))["content"]
                assert "k1 = 1.2" in content["answer"]
                assert content["sources"][0]["document_id"] == "bm25.md"
                assert (await receive_type(listener, "follow_up_questions"))["question"] == QUESTION
                assert "connected to http://127.0.0.1" in "\n".join(serving.lines)
                assert await asyncio.to_thread(serving.end, signal.SIGTERM) == 0
                assert serving.lines[-1] == "Stopped."
            assert (await receive_type(listener, "engines"))["engines"] == []

    asyncio.run(work())


def test_serve_fails_when_it_is_not_authorized(server: Server, desk: Path) -> None:
    url = f"http://127.0.0.1:{server.port}{server.base_url}"
    done = ragkit("serve", cwd=desk, RAGKIT_URL=url, RAGKIT_TOKEN="wrong-token-1234")
    assert done.returncode == 1
    assert "HTTP 403" in done.stderr
    assert "wrong-token-1234" not in done.stdout + done.stderr


def test_the_servers_own_engine_answers_and_ends_with_it(desk: Path, tmp_path: Path) -> None:
    server = start_server(tmp_path, f"--RagkitApp.index={desk / 'indexes' / 'docs'}", "--log-level=INFO")

    async def ask() -> Any:
        async with server.open() as listener:
            await say(listener, type="query", content={"question": QUESTION, "context": {}})
            return await asyncio.wait_for(receive_type(listener, "response", "error"), DEADLINE_SECONDS)

    try:
        reply = asyncio.run(ask())
        assert reply["type"] == "response", reply
        assert reply["content"]["sources"]
        (child,) = psutil.Process(server.process.pid).children()
        assert "serve" in child.cmdline()
        server.process.kill()  # without a chance to stop its children
        child.wait(30)
    finally:
        server.stop()


# ------------------------------------------------------------------------------------- the terminal


def test_printable() -> None:
    assert printable("a\x1b[31mb\x9b2J\x7f\r\nc\td\ud800 été") == "a\\x1b[31mb\\x9b2J\\x7f\nc\td\\ud800 été"
    assert one_line("a\n\tb\x1b \u202ec") == "a b\\x1b \\u202ec"
