"""The engine, alone and on a real Jupyter server's socket."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

from ragkit import RAGEngine
from ragkit.chunking.base import Chunker
from ragkit.chunking.sentence import SentenceChunker
from ragkit.chunking.structure import StructureChunker
from ragkit.embedding.hashed import HashEmbedder
from ragkit.engine.extractive import ExtractiveLLM
from ragkit.errors import (
    EmptyIndexError,
    EmptyQuestionError,
    InputError,
    LLMError,
    OperationCancelled,
    SourceNotFoundError,
)
from ragkit.experiments.system import System
from ragkit.live.discovery import Server as HubServer
from ragkit.live.publisher import Publisher
from ragkit.llm.base import LLM, ScriptedLLM
from ragkit.retrieval.base import Hits, Scores
from ragkit.retrieval.corpus import Passages
from ragkit.retrieval.reranking import LLMReranker
from ragkit.retrieval.retrievers import BM25
from ragkit.retrieval.rewriting import HyDE
from ragkit.space import choose
from tests.server.live_server import TOKEN, Server, start_server
from tests.support.corpora import write_pages
from tests.support.experiments import Counting

DEADLINE_SECONDS = 30.0
QUESTION = "How do I choose k1 and b?"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_pages(tmp_path / "docs")


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[Publisher]:
    """A publisher that finds no server and writes to its own journal."""
    publisher = Publisher(
        server=HubServer("http://127.0.0.1:9/", TOKEN, None, "test"), journal_folder=tmp_path / "journal"
    )
    yield publisher
    publisher.close(1)


def make(tmp_path: Path, publisher: Publisher, *, llm: LLM | None = None, **options: Any) -> RAGEngine:
    embedder = HashEmbedder()
    return RAGEngine(
        tmp_path / "index",
        embedder=embedder,
        llm=llm or ExtractiveLLM(embedder, min_relevance=0.5),
        publisher=publisher,
        progress=False,
        **options,
    )


@pytest.fixture
def engine(tmp_path: Path, folder: Path, publisher: Publisher) -> RAGEngine:
    engine = make(tmp_path, publisher)
    engine.index(folder)
    return engine


def test_index_ask_and_follow_up(engine: RAGEngine) -> None:
    answer = engine.ask(QUESTION)
    assert "1.2" in answer.text
    assert not answer.abstained
    citation = answer.citations[0]
    assert citation.document_id == "bm25.md"
    document = engine.document_index.document(citation.document_id)
    assert document is not None
    assert document.text[citation.start : citation.end] == citation.text
    for start, end in citation.quotes:
        assert document.text[start:end] in citation.text
    assert 1 <= len(answer.follow_ups(timeout_seconds=DEADLINE_SECONDS)) <= 3


def test_synchronous_calls_work_inside_a_running_loop_and_coroutines_do_not_block_it(
    tmp_path: Path, folder: Path, publisher: Publisher
) -> None:
    engine = make(tmp_path, publisher, llm=ScriptedLLM(["Slowly. ", "[1]"], delay_seconds=0.3))
    engine.index(folder)

    async def notebook() -> None:
        assert engine.ask(QUESTION).citations  # as in a cell: the loop is running, and the call blocks it
        ticks = 0

        async def clock() -> None:
            nonlocal ticks
            while True:
                ticks += 1
                await asyncio.sleep(0.001)

        task = asyncio.create_task(clock())
        answer, report, hits = await asyncio.gather(
            engine.aask(QUESTION), engine.aindex(folder), engine.aretrieve(QUESTION, k=2)
        )
        task.cancel()
        assert answer.citations
        assert report.unchanged == 4
        assert len(hits) == 2
        assert ticks > 3  # the loop ran while the model took 0.6 seconds

    asyncio.run(notebook())


def test_cancelling_aask_stops_the_model(tmp_path: Path, folder: Path, publisher: Publisher) -> None:
    llm = ScriptedLLM(["word "] * 1000, delay_seconds=0.05)
    engine = make(tmp_path, publisher, llm=llm)
    engine.index(folder)
    pieces: list[str] = []

    async def ask() -> None:
        task = asyncio.create_task(engine.aask(QUESTION, on_delta=pieces.append))
        while len(pieces) < 2:  # noqa: ASYNC110  (filled by another thread)
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(ask())
    seen = len(pieces)
    time.sleep(0.3)
    assert len(pieces) <= seen + 1


def test_bad_input_is_rejected(engine: RAGEngine, tmp_path: Path, publisher: Publisher) -> None:
    with pytest.raises(EmptyQuestionError):
        engine.ask("   ")
    with pytest.raises(SourceNotFoundError):
        engine.index(tmp_path / "nowhere")
    with pytest.raises(InputError, match="at least 1"):
        make(tmp_path, publisher, k=0)
    (tmp_path / "other").mkdir()
    empty = make(tmp_path / "other", publisher)
    with pytest.raises(EmptyIndexError, match=r"engine\.index"):
        empty.ask(QUESTION)
    assert not (tmp_path / "other" / "index").exists()


def test_a_failing_model_is_an_error_not_an_answer(tmp_path: Path, folder: Path, publisher: Publisher) -> None:
    llm = ScriptedLLM(["Half an ans"], error=LLMError("the stream was cut", model="m", base_url="u"))
    engine = make(tmp_path, publisher, llm=llm)
    engine.index(folder)
    with pytest.raises(LLMError, match="cut"):
        engine.ask(QUESTION)


def test_thoughts_are_in_no_answer_citation_or_follow_up(tmp_path: Path, folder: Path, publisher: Publisher) -> None:
    class Thinker(ScriptedLLM):
        def complete(self, messages: Any, *, max_tokens: int = 1024, cancelled: Any = None) -> str:
            return "<think>\nHow do I choose between BM25 and embeddings?\n</think>\nWhat is reciprocal rank fusion?"

    llm = Thinker(["<think>Passage [3] says something, but [1]", " is better.</think>", "Start with k1 = 1.2. [1]"])
    engine = make(tmp_path, publisher, llm=llm)
    engine.llm_interface.min_drafted_similarity = 0.0
    engine.index(folder)
    deltas: list[str] = []
    answer = engine.ask(QUESTION, on_delta=deltas.append)
    assert answer.text == "".join(deltas) == "Start with k1 = 1.2. [1]"
    assert [citation.number for citation in answer.citations] == [1]
    assert answer.follow_ups(timeout_seconds=DEADLINE_SECONDS) == ("What is reciprocal rank fusion?",)
    engine.llm.pieces = ("<think>Passage [3] says […]",)  # type: ignore[attr-defined]
    with pytest.raises(LLMError, match="max_tokens"):
        engine.ask(QUESTION)


def test_retrieve_and_ask_use_rewriter_and_reranker(tmp_path: Path, folder: Path, publisher: Publisher) -> None:
    imagined = HyDE(ScriptedLLM(["Start with k1 = 1.2 and b = 0.75."]))
    plain = make(tmp_path, publisher)
    plain.index(folder)
    found = plain.retrieve("Which knobs?", k=3)
    engine = make(
        tmp_path, publisher, rewriter=imagined, reranker=LLMReranker(ScriptedLLM(["[2] > [1]"])), follow_ups=False
    )
    hits = engine.retrieve("Which knobs?", k=3)
    assert [hit.chunk for hit in hits] != [hit.chunk for hit in found]
    assert [hit.score for hit in hits] == [1, 1 / 2, 1 / 3]
    assert [hit.chunk for hit in engine.ask("Which knobs?", k=3).hits] == [hit.chunk for hit in hits]


@pytest.mark.parametrize("stage", ["rewriter", "reranker"])
def test_a_failing_or_cancelled_stage_fails_the_answer(
    tmp_path: Path, folder: Path, publisher: Publisher, stage: str
) -> None:
    kind: Any = {"rewriter": HyDE, "reranker": LLMReranker}[stage]
    gone = ScriptedLLM(["[1]"], error=LLMError("the stream was cut", model="m", base_url="u"))
    engine = make(tmp_path, publisher, **{stage: kind(gone)})
    engine.index(folder)
    with pytest.raises(LLMError, match="cut"):
        engine.ask(QUESTION)
    with pytest.raises(LLMError, match="cut"):
        engine.retrieve(QUESTION)
    setattr(engine, stage, kind(ScriptedLLM(["[1]"], delay_seconds=DEADLINE_SECONDS)))
    with pytest.raises(OperationCancelled):
        engine.ask(QUESTION, cancelled=lambda: True)

    async def retrieve() -> None:
        await asyncio.wait_for(engine.aretrieve(QUESTION), timeout=0.1)

    began = threading.active_count()
    with pytest.raises(TimeoutError):
        asyncio.run(retrieve())  # waits until the thread has stopped
    assert threading.active_count() <= began


class Sleeping:
    """A slow follow-up generator."""

    def __init__(self) -> None:
        self.started, self.release = threading.Event(), threading.Event()

    async def generate_follow_up_questions(self, query: str, response: Any) -> list[str]:
        self.started.set()
        self.release.wait(DEADLINE_SECONDS)
        return ["At last?"]


class Raising:
    async def generate_follow_up_questions(self, query: str, response: Any) -> list[str]:
        raise RuntimeError("no questions today")


def test_an_answer_does_not_wait_for_its_follow_ups(engine: RAGEngine) -> None:
    plain = engine.ask(QUESTION)
    sleeping = Sleeping()
    engine.llm_interface = sleeping  # type: ignore[assignment]
    answer = engine.ask(QUESTION)
    assert (answer.text, answer.citations) == (plain.text, plain.citations)
    assert sleeping.started.wait(DEADLINE_SECONDS)
    with pytest.raises(TimeoutError):
        answer.follow_ups(timeout_seconds=0)
    assert engine.ask(QUESTION).text == plain.text  # the next answer does not wait either
    sleeping.release.set()
    assert answer.follow_ups(timeout_seconds=DEADLINE_SECONDS) == ("At last?",)


def test_failing_follow_ups_never_fail_the_answer(engine: RAGEngine, caplog: pytest.LogCaptureFixture) -> None:
    plain = engine.ask(QUESTION)
    engine.llm_interface = Raising()  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING, logger="ragkit"):
        answer = engine.ask(QUESTION)
        with pytest.raises(RuntimeError, match="no questions today"):
            answer.follow_ups(timeout_seconds=DEADLINE_SECONDS)
    assert (answer.text, answer.citations) == (plain.text, plain.citations)
    assert "no questions today" in caplog.text


class Nothing:
    async def generate_follow_up_questions(self, query: str, response: Any) -> Any:
        return None


def test_follow_ups_of_a_wrong_type_raise_an_error(engine: RAGEngine) -> None:
    engine.llm_interface = Nothing()  # type: ignore[assignment]
    answer = engine.ask(QUESTION)
    with pytest.raises(TypeError):
        answer.follow_ups(timeout_seconds=DEADLINE_SECONDS)


SCRIPT = """
import sys, threading, time
from pathlib import Path
from ragkit import RAGEngine
from ragkit.live import messages
from ragkit.live.discovery import Server
from ragkit.embedding import HashEmbedder
from ragkit.engine.extractive import ExtractiveLLM
from ragkit.live.publisher import Publisher
from tests.support.corpora import write_pages

entered = threading.Event()

class Hanging(ExtractiveLLM):
    generative = True

    def complete(self, messages, *, max_tokens=0):
        entered.set()
        time.sleep(600)

class PrintingPublisher(Publisher):
    def publish(self, event):
        if isinstance(event, messages.FollowUpQuestions):
            print(event.questions, flush=True)

where, kind = Path(sys.argv[1]), {"hangs": Hanging, "works": ExtractiveLLM}[sys.argv[2]]
embedder = HashEmbedder()
publisher = PrintingPublisher(server=Server("http://127.0.0.1:9/", "", None, "test"), journal_folder=where / "journal")
llm = kind(embedder, min_relevance=0.5)
engine = RAGEngine(where / "index", embedder=embedder, llm=llm, publisher=publisher, progress=False)
engine.index(write_pages(where / "docs"))
engine.ask("How do I choose k1 and b?")
kind is Hanging and entered.wait(30)
"""


@pytest.mark.parametrize("kind", ["works", "hangs"])
def test_at_exit_follow_ups_are_sent_and_hanging_ones_abandoned(tmp_path: Path, kind: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert ("?" in done.stdout) == (kind == "works"), done.stderr


# ------------------------------------------------------------------------------- on the socket


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = start_server(tmp_path_factory.mktemp("server"), base_url="/user/x/")
    yield server
    server.stop()


def listen(server: Server) -> ClientConnection:
    return connect(server.url("api/v1/ws"), additional_headers={"Authorization": f"token {TOKEN}"}, proxy=None)


def connected(server: Server, tmp_path: Path) -> Publisher:
    url = f"http://127.0.0.1:{server.port}{server.base_url}"
    return Publisher(server=HubServer(url, TOKEN, None, "test"), journal_folder=tmp_path / "journal")


def receive(socket: ClientConnection, *types: str, **fields: Any) -> dict[str, Any]:
    """Return the next message of one of these types with these fields."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while True:
        message: dict[str, Any] = json.loads(socket.recv(timeout=max(0.0, deadline - time.monotonic())))
        if message["type"] in types and all(message.get(key) == value for key, value in fields.items()):
            return message


def ask(socket: ClientConnection, question: str, **fields: Any) -> None:
    socket.send(json.dumps({"type": "query", "content": {"question": question, "context": {}}, **fields}))


def test_the_live_loop(server: Server, tmp_path: Path, folder: Path) -> None:
    publisher = connected(server, tmp_path)
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 no more")
    with listen(server) as socket:
        engine = make(tmp_path, publisher)
        engine.index(folder)
        done = receive(socket, "indexing_progress", state="done")
        assert (done["index"], done["documents_done"], done["documents_total"]) == ("index", 5, 5)
        assert done["failures"][0]["source"].endswith("broken.pdf")
        assert done["origin"]["run_id"] == publisher.origin.run_id

        with pytest.raises(SourceNotFoundError):
            engine.index(tmp_path / "nowhere")
        assert "no file or folder" in receive(socket, "indexing_progress", state="failed")["message"]

        with engine.serve():
            receive(socket, "engines")
            ask(socket, QUESTION, id="mine")
            assert receive(socket, "response_delta", id="mine")["content"]["delta"]
            response = receive(socket, "response", "error", id="mine")
            assert response["type"] == "response", response
            assert "1.2" in response["content"]["answer"]
            source = response["content"]["sources"][0]
            text = (folder / "bm25.md").read_text()
            assert text[source["start"] : source["end"]] == source["text"]
            follow_ups = receive(socket, "follow_up_questions")
            assert (follow_ups["question"], follow_ups["request_id"]) == (QUESTION, "mine")
            assert 1 <= len(follow_ups["questions"]) <= 3

            ask(socket, "Quelle taille de passage choisir ?", id="fr")
            assert receive(socket, "response", id="fr")["content"]["sources"]
            assert all("?" in question for question in receive(socket, "follow_up_questions")["questions"])

            ask(socket, "qwerty asdfgh zxcvbn", id="none")
            abstained = receive(socket, "response", id="none")["content"]
            assert abstained["abstained"] is True
            assert abstained["sources"] == []
    publisher.close(2)


def test_the_engine_that_served_last_answers(server: Server, tmp_path: Path, folder: Path) -> None:
    publisher = connected(server, tmp_path)
    first = make(tmp_path, publisher, llm=ScriptedLLM(["The first engine. [1]"]))
    first.index(folder)
    second = make(tmp_path, publisher, llm=ScriptedLLM(["The second engine. [1]"]))
    with listen(server) as socket:
        first.serve()
        receive(socket, "engines")
        ask(socket, QUESTION, id="a")
        assert "first" in receive(socket, "response", id="a")["content"]["answer"]
        second.serve()  # as when a cell is run again with a changed engine
        receive(socket, "engines")
        ask(socket, QUESTION, id="b")
        assert "second" in receive(socket, "response", id="b")["content"]["answer"]
    publisher.close(2)


def test_errors_and_cancelling_over_the_socket(server: Server, tmp_path: Path, folder: Path) -> None:
    publisher = connected(server, tmp_path)
    failing = ScriptedLLM(["Half"], error=LLMError("the stream was cut", model="m", base_url="u"))
    engine = make(tmp_path, publisher, llm=failing)
    engine.index(folder)
    with listen(server) as socket:
        engine.serve()
        receive(socket, "engines")
        ask(socket, QUESTION, id="broken")
        error = receive(socket, "response", "error", id="broken")
        assert error["content"]["code"] == "ENGINE_FAILED"
        assert "cut" in error["content"]["message"]
        slow = make(tmp_path, publisher, llm=ScriptedLLM(["word "] * 500, delay_seconds=0.05))
        slow.serve()
        receive(socket, "engines")
        ask(socket, QUESTION, id="long")
        receive(socket, "response_delta", id="long")
        socket.send(json.dumps({"type": "cancel", "id": "long"}))
        assert receive(socket, "response", "error", id="long")["content"]["code"] == "CANCELLED"
    publisher.close(2)


@pytest.fixture
def guesses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the texts whose language is guessed."""
    from ragkit.documents import language

    guessed: list[str] = []
    rank = language._identifier().rank

    class Identifier:
        def rank(self, text: str) -> Any:
            guessed.append(text)
            return rank(text)

    monkeypatch.setattr(language, "_identifier", Identifier)
    return guessed


@pytest.mark.parametrize("wanted", [False, True])
def test_one_ask_guesses_one_language_and_embeds_the_question_once(
    tmp_path: Path, folder: Path, publisher: Publisher, guesses: list[str], wanted: bool
) -> None:
    """Each follow-up candidate costs one more of each; the question costs nothing more."""
    embedder = Counting()
    llm = ExtractiveLLM(embedder, min_relevance=0.5)
    engine = RAGEngine(
        tmp_path / "index",
        embedder=embedder,
        llm=llm,
        cache=False,
        follow_ups=wanted,
        publisher=publisher,
        progress=False,
    )
    engine.index(folder)
    guesses.clear()
    embedder.embedded.clear()
    answer = engine.ask(QUESTION)
    assert not answer.abstained
    questions = answer.follow_ups()
    queries = Counter({text: count for (kind, text), count in embedder.embedded.items() if kind == "query"})
    assert guesses[0] == QUESTION
    assert queries[QUESTION] == 1
    assert set(queries.values()) == {1}
    assert sorted(queries) == sorted(guesses)
    assert set(questions) <= set(queries) - {QUESTION}
    assert bool(questions) == (len(queries) > 1) == wanted


def test_a_replaced_model_answers_and_drafts_follow_ups(engine: RAGEngine) -> None:
    engine.ask(QUESTION)
    drafting = ScriptedLLM(["How are documents cut into passages?"])
    drafting.name = "exchanged"
    engine.llm = drafting
    engine.llm_interface.min_drafted_similarity = 0.0
    answer = engine.ask(QUESTION)
    assert (answer.model, answer.follow_ups()) == ("exchanged", ("How are documents cut into passages?",))
    assert "exchanged" in repr(engine)
    assert engine.describe().llm == "exchanged"


def test_a_replaced_retriever_serves_follow_ups_too(engine: RAGEngine) -> None:
    asked: list[str] = []

    class Noting:
        name = "Noting()"

        def scores(self, query: str, passages: Passages) -> Scores:
            asked.append(query)
            return BM25().scores(query, passages)

    engine.retriever = Noting()
    answer = engine.ask(QUESTION)
    answer.follow_ups()
    assert asked.count(QUESTION) == 2, "to answer, and to look for follow-up questions"
    assert len(asked) > 2


def test_an_engine_from_a_system(tmp_path: Path, folder: Path, publisher: Publisher) -> None:
    system = System(
        embedder=HashEmbedder(), retriever=BM25(), chunker=StructureChunker(max_tokens=50), k=2, llm=ScriptedLLM(["a"])
    )
    engine = RAGEngine.from_system(tmp_path / "index", system, publisher=publisher, progress=False)
    engine.index(folder)
    assert (engine.retriever, engine.k, engine.document_index.chunker) == (BM25(), 2, StructureChunker(max_tokens=50))
    assert engine.ask(QUESTION).text == "a"
    for wrong in (System(k=choose(1, 2)), System(chunker=None)):
        with pytest.raises(InputError, match="This system"):
            RAGEngine.from_system(tmp_path / "other", wrong)


def test_a_closed_engine_stops_serving_and_watching_and_can_be_reopened(
    tmp_path: Path, folder: Path, publisher: Publisher
) -> None:
    with make(tmp_path, publisher) as engine:
        watcher = engine.watch(folder)
        engine.serve()
    assert not watcher._thread.is_alive()
    engine.close()
    assert engine.retrieve(QUESTION), "the index is opened again"


def test_hits_are_a_list_a_table_and_a_frame(engine: RAGEngine) -> None:
    hits = engine.retrieve(QUESTION, k=2)
    first = hits[0]
    assert (first.text, first.title, first.page) == (first.chunk.text, first.document.title, None)
    frame = hits.to_frame()
    assert frame["document_id"].tolist() == [hit.document.id for hit in hits]
    assert frame["text"][0] == first.text
    assert str(hits).count("\n") == 3
    html = hits._repr_html_()
    assert html.count("<tr>") == 3
    hostile = dataclasses.replace(first, chunk=dataclasses.replace(first.chunk, text="<script>x</script>"))
    assert "<script>" not in Hits([hostile])._repr_html_()


@pytest.mark.parametrize("chunker", [SentenceChunker(max_tokens=200), StructureChunker(max_tokens=8), None], ids=repr)
def test_a_document_that_makes_the_sentence_splitter_panic(
    tmp_path: Path, publisher: Publisher, chunker: Chunker | None
) -> None:
    """A capital letter, a no-break space and a full stop: sentencex panics there, with a BaseException."""
    folder = tmp_path / "docs"
    folder.mkdir()
    text = "# Vitamins\n\nOranges are rich in vitamin C\u00a0. They also hold potassium and fibre. Eat two a day.\n"
    (folder / "oranges.md").write_text(text, encoding="utf-8")
    (folder / "bananas.md").write_text("# Bananas\n\nBananas are rich in potassium.\n", encoding="utf-8")
    paragraph = (
        "Apples keep well in a cool cellar for months. " * 40 + "Lemons hold vitamin C\u00a0. " + "Pears rot. " * 40
    )
    (folder / "long.md").write_text(f"# Fruit\n\n{paragraph}\n", encoding="utf-8")
    engine = make(tmp_path, publisher, chunker=chunker)
    report = engine.index(folder)
    assert (report.added, report.failed) == (3, ())
    answer = engine.ask("Are oranges rich in vitamin C?")
    assert "Oranges are rich in vitamin C" in answer.text
    (quoted,) = [text[start:end] for c in answer.citations if c.title == "Vitamins" for start, end in c.quotes][:1]
    assert quoted.rstrip("\u00a0.") == "Oranges are rich in vitamin C"
