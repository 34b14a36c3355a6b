"""`RAGEngine`: the main object of a notebook.

    engine = RAGEngine("indexes/handbook")
    engine.index("data/handbook")
    engine.ask("How do I choose k1 for BM25?")
    engine.serve()

Long operations run in the caller's thread; their progress is published on the socket and shown as a
progress bar. Background work (follow-up questions, publishing) runs in threads of its own. `index`,
`retrieve` and `ask` are synchronous and work inside a notebook's running event loop; their coroutine
versions (`aindex`, `aretrieve`, `aask`) run them in a thread, for use in any event loop.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from ragkit.cancellation import never
from ragkit.chunking.base import Chunker
from ragkit.chunking.structure import StructureChunker
from ragkit.embedding.base import Embedder
from ragkit.embedding.cache import EmbeddingCache
from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
from ragkit.engine.answer import Answer, cite, passages_of
from ragkit.engine.extractive import ExtractiveLLM
from ragkit.engine.follow_ups import FollowUps, Pipeline, follow_up
from ragkit.errors import EmptyQuestionError, InputError, OperationCancelled, RagkitError, require_count
from ragkit.indexing.index import Index
from ragkit.indexing.integrity import IndexCheck
from ragkit.indexing.report import IndexProgress, IndexReport, ProgressBar
from ragkit.indexing.vector_store import VectorStore
from ragkit.indexing.watcher import IndexWatcher
from ragkit.live import messages
from ragkit.live.publisher import Publisher, default_publisher
from ragkit.live.serving import Reply, Serving
from ragkit.llm.base import LLM
from ragkit.llm.prompt import Prompt
from ragkit.llm.replies import answer_prompt
from ragkit.retrieval.base import Hits, QueryRewriter, Reranker, Retriever
from ragkit.retrieval.corpus import Passages
from ragkit.retrieval.index_passages import IndexPassages
from ragkit.retrieval.query import SearchQuery
from ragkit.retrieval.retrievers import Hybrid
from ragkit.retrieval.search import retrieve
from ragkit.space import has_choices

_log = logging.getLogger("ragkit")
_T = TypeVar("_T")


class SystemSettings(Protocol):
    """The attributes of `ragkit.System` that `RAGEngine.from_system` reads; see there."""

    @property
    def embedder(self) -> Embedder: ...
    @property
    def chunker(self) -> Chunker | None: ...
    @property
    def retriever(self) -> Retriever: ...
    @property
    def rewriter(self) -> QueryRewriter | None: ...
    @property
    def reranker(self) -> Reranker | None: ...
    @property
    def llm(self) -> LLM | None: ...
    @property
    def k(self) -> int: ...
    @property
    def instructions(self) -> str: ...


class RAGEngine:
    """Index documents, answer questions about them, and publish both on the socket.

    Args:
        index: Folder of the index, created by the first `index` call. Listeners see its name.
        embedder: Default: all-MiniLM-L6-v2, which comes with ragkit.
        llm: Generates the answers. Default: `ExtractiveLLM`, which quotes passages and needs no language model.
        chunker: Splits documents into chunks. Default: `StructureChunker` within the embedder's limit.
        retriever: Default: `Hybrid`.
        rewriter: Writes additional queries: `HyDE`, `MultiQuery`. Default: none.
        reranker: Reorders the best passages: `CrossEncoderReranker`, `LLMReranker`. Default: none.
        vector_store: Stores the vectors. Default: an embedded ChromaDB in the index's folder.
        cache: Cache of embeddings. Default: one shared by all indexes of this user; False for none.
        k: Passages per question.
        instructions: Added to the model's prompt, for example ``"Answer in one sentence."``
        follow_ups: Whether to generate follow-up questions after each answer.
        progress: Whether `index` shows a progress bar.
        publisher: Publishes on the socket. Default: one for the whole process.

    Attributes:
        llm_interface: Has the coroutine ``generate_follow_up_questions(query, response) -> list[str]``.

    Raises:
        InputError: ``index`` is a file, or a folder with other files.
        IndexMismatchError: The index was built with another embedder.
    """

    def __init__(
        self,
        index: str | Path,
        *,
        embedder: Embedder | None = None,
        llm: LLM | None = None,
        chunker: Chunker | None = None,
        retriever: Retriever | None = None,
        rewriter: QueryRewriter | None = None,
        reranker: Reranker | None = None,
        vector_store: VectorStore | None = None,
        cache: EmbeddingCache | Literal[False] | None = None,
        k: int = 5,
        instructions: str = "",
        follow_ups: bool = True,
        progress: bool = True,
        publisher: Publisher | None = None,
    ) -> None:
        self.embedder = embedder or SentenceTransformerEmbedder()
        self._serving: Serving | None = None
        self._watchers: weakref.WeakSet[IndexWatcher] = weakref.WeakSet()
        self.llm = llm or ExtractiveLLM(self.embedder)
        self.retriever: Retriever = retriever or Hybrid()
        self.rewriter = rewriter
        self.reranker = reranker
        self.document_index = Index(
            index, embedder=self.embedder, chunker=chunker or StructureChunker(), vector_store=vector_store, cache=cache
        )
        require_count("k", k)
        self.k = k
        self.instructions = instructions
        self.publisher = publisher or default_publisher()
        self._cache = IndexPassages(self.document_index)
        self._progress = progress
        self._wants_follow_ups = follow_ups
        self.llm_interface = FollowUps(lambda: Pipeline(self.passages(), self.retriever, self.llm))

    @classmethod
    def from_system(cls, index: str | Path, system: SystemSettings, **options: Any) -> RAGEngine:
        """Create an engine from a system of an experiment: ``from_system("indexes/best", result.best)``.

        Args:
            index: Folder of the index. Documents still have to be indexed into it.
            system: A `ragkit.System` without choices.
            options: More arguments of `RAGEngine`; they override the system's.

        Raises:
            InputError: The system has choices, or has no chunker.
        """
        if has_choices(system):
            raise InputError(
                "This system contains choices. Give a single system: result.best, or one of result.systems."
            )
        if system.chunker is None:
            raise InputError("This system has no chunker, and an index needs one. Give the system a chunker.")
        names = ("embedder", "llm", "chunker", "retriever", "rewriter", "reranker", "k", "instructions")
        return cls(index, **{name: getattr(system, name) for name in names} | options)

    @property
    def llm(self) -> LLM:
        """The model that generates answers and follow-up questions. Assigning another one changes it for both."""
        return self._llm

    @llm.setter
    def llm(self, llm: LLM) -> None:
        self._llm = llm
        if self._serving is not None:
            self._serving.update(self.describe())

    def close(self) -> None:
        """Stop serving and watching, and close the index. Later calls open the index again.

        The publisher is not closed, because other engines of this process use it.
        """
        if self._serving is not None:
            self._serving.stop()
            self._serving = None
        for watcher in list(self._watchers):
            watcher.stop()
        self.document_index.close()

    def __enter__(self) -> RAGEngine:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        documents, chunks = self.document_index.counts()
        return (
            f"RAGEngine({str(self.document_index.path)!r}: {documents} documents, {chunks} passages; "
            f"{self.embedder.name}; {self.llm.name}; {self.publisher.state})"
        )

    # ------------------------------------------------------------------------------------ index

    def index(
        self,
        path: str | Path,
        *,
        rebuild: bool = False,
        cancelled: Callable[[], bool] = never,
        executor: Executor | None = None,
    ) -> IndexReport:
        """Update the index from a folder, a file or a web page. Only what changed is embedded.

        Progress is shown as a bar and published on the socket. Ctrl-C (or an interrupted kernel) stops the update;
        what was committed is kept, and the next call resumes.

        Args:
            path: A folder, read recursively, a file, or the address of a page (``https://...``).
            rebuild: Delete the index's contents first.
            cancelled: Polled several times a second; True stops the update.
            executor: Where to embed, if not in this process; see `ragkit.indexing.Index.update`.

        Returns:
            What was added, updated, skipped and deleted, and which files failed and why.

        Raises:
            RagkitError: For the same reasons as `ragkit.indexing.Index.update`.
        """
        return self._index(path, rebuild=rebuild, cancelled=cancelled, executor=executor, show=self._progress)

    def _index(
        self, path: str | Path, *, rebuild: bool, cancelled: Callable[[], bool], executor: Executor | None, show: bool
    ) -> IndexReport:
        task_id = uuid.uuid4().hex
        has_reported = False
        with ProgressBar(show, f"Indexing {Path(path).name or path}") as bar:

            def report_progress(progress: IndexProgress) -> None:
                nonlocal has_reported
                has_reported = True
                bar.show(progress)
                self.publisher.publish(progress_event(progress, task_id, self.document_index.name))

            try:
                report = self.document_index.update(
                    path, rebuild=rebuild, on_progress=report_progress, cancelled=cancelled, executor=executor
                )
            except RagkitError as error:
                if not has_reported:  # early failures, such as a missing path or a lock, are published too
                    report_progress(
                        IndexProgress(state="failed", message=str(error), documents_total=0, chunks_total=0)
                    )
                raise
        if self._serving is not None:
            self._serving.update(self.describe())
        return report

    async def aindex(self, path: str | Path, *, rebuild: bool = False) -> IndexReport:
        """Run `index` as a coroutine. Cancelling it stops the indexing."""
        return await _in_thread(lambda cancelled: self.index(path, rebuild=rebuild, cancelled=cancelled))

    def watch(self, path: str | Path, *, on_report: Callable[[IndexReport], None] | None = None) -> IndexWatcher:
        """Index a folder or file now, and again in the background whenever it changes.

        Args:
            path: A folder or a file.
            on_report: Called in another thread with each report that contains changes.

        Returns:
            A handle: call ``.stop()``, or use it in a ``with`` statement. Otherwise it ends with the process.

        Raises:
            InputError: ``path`` is a web address.
            RagkitError: The first run failed, as in `index`. Later failures are stored in the handle's ``error``, and
                published on the socket.
        """
        if str(path).startswith(("http:/", "https:/")):
            raise InputError(
                f"'{path}' cannot be watched, only files and folders can. Call index() when it may have changed."
            )
        report = self.index(path)
        if on_report is not None:
            on_report(report)
        watcher = IndexWatcher(
            lambda cancelled: self._index(path, rebuild=False, cancelled=cancelled, executor=None, show=False),
            Path(path),
            ignored=self.document_index.path,
            on_report=on_report,
        )
        self._watchers.add(watcher)
        return watcher

    def verify(self) -> IndexCheck:
        """Compare records, vectors and files; see `ragkit.indexing.Index.verify`."""
        return self.document_index.verify()

    def repair(self) -> IndexCheck:
        """Make records and vectors agree again; see `ragkit.indexing.Index.repair`."""
        return self.document_index.repair()

    # --------------------------------------------------------------------------------- retrieve

    def passages(self) -> Passages:
        """Return all passages of the index as it is now. Raises `EmptyIndexError` if nothing was indexed yet."""
        return self._cache.get()

    def query(self, text: str) -> SearchQuery:
        """Make a query from a text: its language is detected, its embedding is computed when first needed.

        Raises:
            EmptyQuestionError: The text has no words.
            EmptyIndexError: Nothing was indexed yet.
        """
        if not text.strip():  # takes precedence over EmptyIndexError
            raise EmptyQuestionError
        return self.passages().query(text)

    def retrieve(self, question: str, *, k: int | None = None, cancelled: Callable[[], bool] = never) -> Hits:
        """Find the most relevant passages for a question.

        Args:
            question: A text, or the result of `query`.
            k: How many passages; the engine's ``k`` if None.
            cancelled: Polled while a model rewrites or reranks; True stops it.

        Raises:
            EmptyQuestionError: The question has no words.
            EmptyIndexError: Nothing was indexed yet.
            LLMError, RerankingError: A model that rewrites or reranks failed.
            OperationCancelled: ``cancelled`` returned True.
        """
        return retrieve(
            self.query(question),
            self.passages(),
            retriever=self.retriever,
            rewriter=self.rewriter,
            reranker=self.reranker,
            k=self.k if k is None else k,
            cancelled=cancelled,
        )

    async def aretrieve(self, question: str, *, k: int | None = None) -> Hits:
        """Run `retrieve` as a coroutine. Cancelling it stops the models."""
        return await _in_thread(lambda cancelled: self.retrieve(question, k=k, cancelled=cancelled))

    # -------------------------------------------------------------------------------------- ask

    def ask(
        self,
        question: str,
        *,
        k: int | None = None,
        on_delta: Callable[[str], None] | None = None,
        cancelled: Callable[[], bool] = never,
    ) -> Answer:
        """Answer a question from the index, with citations.

        Follow-up questions are generated in the background after this method returns. They are published on the
        socket and available from ``answer.follow_ups()``.

        Args:
            question: The question.
            k: Passages to answer from; the engine's ``k`` if None.
            on_delta: Called with each piece of the answer as the model writes it.
            cancelled: Polled between pieces, and while a model rewrites or reranks; True stops the work.

        Returns:
            The answer. ``answer.abstained`` is True if the documents do not contain it.

        Raises:
            EmptyQuestionError: The question has no words.
            EmptyIndexError: Nothing was indexed yet.
            LLMError, RerankingError: A model failed; the message says why and what to do.
            OperationCancelled: ``cancelled`` returned True.
        """
        return self._ask(question, k=k, on_delta=on_delta, cancelled=cancelled, request_id=uuid.uuid4().hex)

    async def aask(
        self, question: str, *, k: int | None = None, on_delta: Callable[[str], None] | None = None
    ) -> Answer:
        """Run `ask` as a coroutine. ``on_delta`` is called in another thread; cancelling stops the model."""
        return await _in_thread(lambda cancelled: self.ask(question, k=k, on_delta=on_delta, cancelled=cancelled))

    def _ask(
        self,
        question: str,
        *,
        k: int | None,
        on_delta: Callable[[str], None] | None,
        cancelled: Callable[[], bool],
        request_id: str,
    ) -> Answer:
        started = time.monotonic()
        query = self.query(question)
        hits = self.retrieve(query, k=k, cancelled=cancelled)
        prompt = Prompt(
            question=query, passages=passages_of(hits), language=query.language, instructions=self.instructions
        )
        reply = answer_prompt(self.llm, prompt, on_delta=on_delta, cancelled=cancelled)
        answer = cite(
            query.text,
            reply.text,
            hits,
            language=query.language,
            model=self.llm.name,
            seconds=time.monotonic() - started,
            answer_id=request_id,
        )
        if answer.abstained or not self._wants_follow_ups:
            answer.pending_follow_ups.set_result(())
        else:
            follow_up(answer, query, self.llm_interface, publisher=self.publisher, index=self.document_index.name)
        return answer

    # ------------------------------------------------------------------------------------ serve

    def serve(self) -> Serving:
        """Start to answer questions from the socket with this engine, in the background.

        To replace the engine, change it and run the cell again: the same listeners are answered by the new engine.

        Returns:
            A handle: call ``.stop()``, or use it in a ``with`` statement. Otherwise it ends with the process.
        """
        self._serving = self.publisher.serve(self.describe(), self.answer_query)
        return self._serving

    def describe(self) -> messages.Engine:
        """Return the description of this engine for listeners."""
        # One engine per index and process: serving the same index again replaces the previous engine.
        place = hashlib.blake2b(str(self.document_index.path.resolve()).encode(), digest_size=6).hexdigest()
        return messages.Engine(
            id=f"{self.publisher.origin.run_id[:100]}:{place}",
            index=self.document_index.name,
            llm=self.llm.name,
            embedder=self.embedder.name,
            documents=self.document_index.counts()[0],
            origin=self.publisher.origin,
        )

    def answer_query(self, content: messages.QueryContent, reply: Reply) -> None:
        """Answer a query of the protocol through its reply. Raises as `ask` does; the caller reports the error."""
        k = content.context.get("k")
        try:
            answer = self._ask(
                content.question,
                k=k if isinstance(k, int) and not isinstance(k, bool) and 1 <= k <= 100 else None,
                on_delta=reply.delta,
                cancelled=lambda: reply.cancelled,
                request_id=reply.request_id,
            )
        except EmptyQuestionError as error:
            reply.fail(messages.ErrorCode.EMPTY_QUESTION, str(error))
        except OperationCancelled as error:
            reply.fail(messages.ErrorCode.CANCELLED, str(error))
        else:
            reply.respond(response_content(answer, self.document_index.name))


async def _in_thread(work: Callable[[Callable[[], bool]], _T]) -> _T:
    """Run blocking work in a thread. If the awaiting task is cancelled, so is the work."""
    stop = threading.Event()
    try:
        return await asyncio.to_thread(work, stop.is_set)
    except asyncio.CancelledError:
        stop.set()
        raise


_MAX_FAILURES = 100


def progress_event(progress: IndexProgress, task_id: str, index: str) -> messages.IndexingProgress:
    failures = progress.failures[:_MAX_FAILURES]
    return messages.IndexingProgress(
        task_id=task_id,
        index=index,
        state=progress.state,  # type: ignore[arg-type]
        documents_done=progress.documents_done,
        documents_total=progress.documents_total,
        chunks_done=progress.chunks_done,
        chunks_total=progress.chunks_total,
        current_document=progress.current_document[-1024:] if progress.current_document else None,
        rate=progress.rate,
        eta_seconds=progress.eta_seconds,
        failures=[messages.Failure(source=f.source[-1024:], reason=f.reason[:2000]) for f in failures],
        failures_total=len(progress.failures),
        message=progress.message,
    )


def response_content(answer: Answer, index: str) -> messages.ResponseContent:
    """Return the reply's content, truncated to the limits of the protocol.

    Args:
        answer: The answer.
        index: The index's name.
    """
    return messages.ResponseContent(
        answer=answer.text,
        sources=[
            messages.Source(
                number=c.number,
                document_id=c.document_id[-1024:],
                title=c.title[:1024],
                source=c.source[-1024:],
                text=c.text,
                start=c.start,
                end=c.end,
                quotes=list(c.quotes),
                heading=" › ".join(c.headings)[:1024] or None,
                page=c.page,
                score=c.score,
            )
            for c in answer.citations
        ],
        abstained=answer.abstained,
        index=index,
        model=answer.model,
        seconds=round(answer.seconds, 3),
    )
