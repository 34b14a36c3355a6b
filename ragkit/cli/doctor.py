"""``ragkit doctor``: tests an installation layer by layer, from Python to the language model.

`Doctor.examine` tests the layers in the order of their dependencies. A layer that depends on a broken one is skipped,
so the first layer that fails is the one to fix. Nothing is published or written, and no finding contains a token.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.metadata
import platform
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
from websockets.asyncio.client import ClientConnection

import ragkit
from ragkit.errors import InputError, RagkitError, ServerConnectionError
from ragkit.live import messages
from ragkit.live.discovery import Server
from ragkit.live.handshake import RefusedError, dial, open_socket
from ragkit.live.origin import find_origin
from ragkit.llm.base import GenerativeLLM
from ragkit.llm.replies import ask

Status = Literal["ok", "warning", "failed", "skipped"]

PACKAGES = (
    "jupyter-server", "websockets", "msgspec", "chromadb", "bm25s", "sentence-transformers", "torch", "openai",
)  # fmt: skip
FOREIGN_ORIGIN = "https://ragkit-doctor.invalid"  # a reserved name that cannot be registered (RFC 2606)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """The result of testing one layer.

    Attributes:
        layer: The layer.
        status: ``"ok"``, ``"warning"`` (it works, with restrictions), ``"failed"`` or ``"skipped"``.
        message: What was found.
        advice: What to do next; empty if there is nothing to do.
    """

    layer: str
    status: Status
    message: str
    advice: str = ""

    def __str__(self) -> str:
        lines = f"{self.status:<8} {self.layer:<11} {self.message}" + (f"\n→ {self.advice}" if self.advice else "")
        return lines.replace("\n", f"\n{'':21}")


_Result = tuple[Status, str] | tuple[Status, str, str]


class Doctor:
    """Tests the layers of an installation.

    Args:
        find: Finds the Jupyter server.
        index: Returns the index's folder; an `InputError` means that no index was named.
        llm: Creates the language model to test; None to test none.
        timeout_seconds: Time limit for each network step.
    """

    def __init__(
        self,
        *,
        find: Callable[[], Server],
        index: Callable[[], Path],
        llm: Callable[[], GenerativeLLM] | None = None,
        timeout_seconds: float = 10.0,
    ) -> None:
        self._find = find
        self._find_index = index
        self._make_llm = llm
        self._timeout_seconds = timeout_seconds
        self._server = Server("")
        self._snapshot: messages.Snapshot | None = None
        self._settings: dict[str, str] = {}

    def examine(self) -> Iterator[Finding]:
        """Test each layer in turn and yield its finding."""
        layers: tuple[tuple[str, tuple[str, ...], Callable[[], _Result]], ...] = (
            ("python", (), self._python),
            ("server", (), self._find_the_server),
            ("http", ("server",), self._http),
            ("socket", ("http",), self._socket),
            ("round trip", ("socket",), self._round_trip),
            ("origin", ("socket",), self._origin),
            ("publishing", ("http",), self._publishing),
            ("engine", ("socket",), self._engine),
            ("panel", ("http",), self._panel),
            ("index", ("python",), self._index),
            ("embedder", ("python",), self._embedder),
            ("llm", ("python",), self._llm),
        )
        unusable: set[str] = set()
        for layer, requirements, test in layers:
            if broken := [name for name in requirements if name in unusable]:
                finding = Finding(layer, "skipped", f"not tested, because it depends on '{broken[0]}'")
            else:
                finding = self._redact(Finding(layer, *self._run(test)))
            if finding.status in ("failed", "skipped"):
                unusable.add(layer)
            yield finding

    def _run(self, test: Callable[[], _Result]) -> _Result:
        try:
            return test()
        except RagkitError as error:
            return "failed", str(error)
        except TimeoutError:
            return "failed", f"no answer within {self._timeout_seconds:g} seconds", "Try again with a longer --timeout."
        except Exception as error:  # an unexpected error is a finding too; the other layers are still tested
            return "failed", f"{type(error).__name__}: {error}"

    def _redact(self, finding: Finding) -> Finding:
        token = self._server.token
        if not token:
            return finding
        hide = {name: getattr(finding, name).replace(token, "[token]") for name in ("message", "advice")}
        return dataclasses.replace(finding, **hide)

    # ---------------------------------------------------------------------------------- layers

    def _python(self) -> _Result:
        versions, missing = [], []
        for package in PACKAGES:
            try:
                versions.append(f"{package} {importlib.metadata.version(package)}")
            except importlib.metadata.PackageNotFoundError:
                missing.append(package)
        if missing:
            return "failed", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}"
        return "ok", f"Python {platform.python_version()}, ragkit {ragkit.__version__}, {', '.join(versions)}"

    def _find_the_server(self) -> _Result:
        self._server = self._find()
        token = "with a token" if self._server.token else "without a token"
        return "ok", f"{self._server.url} (found by {self._server.source}, {token})"

    def _http(self) -> _Result:
        answer = self._get("api/status", headers=self._server.headers)
        if answer.status_code in (401, 403) or answer.is_redirect:
            return (
                "failed",
                f"{self._server.url} does not accept {'the token' if self._server.token else 'us without a token'} "
                f"(HTTP {answer.status_code})",
                "Set RAGKIT_URL and RAGKIT_TOKEN; 'jupyter server list' shows running servers and their tokens.",
            )
        try:
            status = msgspec.json.decode(answer.content, type=dict[str, Any])
        except msgspec.MsgspecError:
            status = {}
        if answer.status_code != 200 or "started" not in status:
            return (
                "failed",
                f"the program at {self._server.url} is not a Jupyter server (HTTP {answer.status_code})",
                "Check the address. It must include the base_url, as in http://localhost:8888/user/me/.",
            )
        return "ok", f"the server accepts requests; {status.get('kernels', '?')} kernels run on it"

    def _panel(self) -> _Result:
        # JupyterLab serves the settings of the extensions that it has found.
        if self._get("lab/api/settings/ragkit-lab:panel", headers=self._server.headers).status_code == 200:
            return "ok", "JupyterLab and Notebook on this server have the side panel"
        if self._get("lab", headers=self._server.headers).status_code == 404:
            return "skipped", "this server has no JupyterLab"
        return (
            "warning",
            "this server's JupyterLab has no ragkit panel",
            "Install ragkit where the server runs and restart it ('jupyter labextension list' should name ragkit-lab).",
        )

    def _get(self, path: str, *, headers: dict[str, str]) -> Any:
        import httpx2

        url = self._server.url
        try:
            # Do not send the token along a redirect, or through a proxy to a server on this machine.
            return httpx2.get(
                url + path, headers=headers, timeout=self._timeout_seconds, trust_env=not self._server.is_loopback
            )
        except httpx2.HTTPError as error:
            raise ServerConnectionError(
                url, f"{str(error) or type(error).__name__}. Is it running? See 'jupyter server list'."
            ) from error

    def _socket(self) -> _Result:
        async def subscribe(socket: ClientConnection) -> messages.Snapshot:
            reply = await _ask(socket, messages.Subscribe(id="doctor"), messages.Snapshot)
            assert isinstance(reply, messages.Snapshot)
            return reply

        self._snapshot = self._on_socket(subscribe)
        return "ok", f"{self._server.ws_url('api/v1/ws')} accepts listeners; {self._snapshot.seq} events so far"

    def _round_trip(self) -> _Result:
        async def ping(socket: ClientConnection) -> float:
            started = time.perf_counter()
            await _ask(socket, messages.Ping(id="doctor"), messages.Pong)
            return time.perf_counter() - started

        return "ok", f"ping and pong took {1000 * self._on_socket(ping):.1f} ms"

    def _origin(self) -> _Result:
        # Only a request without a token, like one from the server's own page, gets the setting in a header.
        allowed = self._get("api", headers={}).headers.get("Access-Control-Allow-Origin")
        own = f"pages of {self._server.url}"

        async def nothing(socket: ClientConnection) -> None:
            pass

        try:
            self._on_socket(nothing, origin=FOREIGN_ORIGIN)
        except RefusedError:
            others = f" and of {allowed} (ServerApp.allow_origin)" if allowed else ""
            return (
                "ok",
                f"allowed: {own}{others}, and origins that match ServerApp.allow_origin_pat; others are refused",
            )
        why = (
            "ServerApp.allow_origin is '*'"
            if allowed == "*"
            else "RagkitApp.allow_any_origin_with_token is set, or ServerApp.allow_origin_pat matches too much"
        )
        return (
            "warning",
            f"pages of any origin may connect with a token: {why}",
            "To allow only your application, set its origin: ServerApp.allow_origin='http://localhost:3000'.",
        )

    def _publishing(self) -> _Result:
        async def hello() -> None:
            origin = find_origin(kind="cli", name="ragkit doctor")
            socket, _ = await open_socket(
                self._server,
                messages.Hello(publisher=uuid.uuid4().hex, origin=origin),
                timeout_seconds=self._timeout_seconds,
            )
            await socket.close()

        asyncio.run(hello())
        return "ok", "the hub accepts publishers; nothing was published"

    def _engine(self) -> _Result:
        engines = self._snapshot.engines if self._snapshot is not None else []
        if engines:
            return "ok", "on offer: " + ", ".join(f"'{e.index}' ({e.documents} documents, {e.llm})" for e in engines)
        return (
            "warning",
            "no engine is on offer now",
            "Run engine.serve() in a notebook, or 'ragkit serve INDEX'. A server that was started with "
            "--RagkitApp.index=INDEX starts one at the first question.",
        )

    def _index(self) -> _Result:
        from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
        from ragkit.indexing.records import FORMAT, Records
        from ragkit.indexing.vector_store import ChromaStore

        try:
            path = self._find_index()
        except InputError as error:
            return "skipped", str(error)
        if not (path / "index.db").exists():
            return "failed", f"there is no index at '{path}'", f"Create one: ragkit index FOLDER --index {path}"
        rebuild = f"Rebuild it: ragkit index FOLDER --index {path} --rebuild"
        records = Records(path)
        self._settings = records.settings()
        documents, chunks = records.counts()
        if self._settings.get("format", FORMAT) != FORMAT:
            return (
                "failed",
                f"'{path}' has the format {self._settings['format']}; this version of ragkit reads {FORMAT}",
                rebuild,
            )
        if not documents:
            return "warning", f"'{path}' holds no documents", f"ragkit index FOLDER --index {path}"
        # Opening a store would create its folder, and the doctor writes nothing.
        vectors = ChromaStore(path / "vectors").count() if (path / "vectors").is_dir() else 0
        if vectors < chunks:
            return "failed", f"'{path}' has {chunks} passages, but only {vectors} vectors", rebuild
        made_with, ours = self._settings.get("embedder"), SentenceTransformerEmbedder().name
        if made_with != ours:
            return (
                "warning",
                f"'{path}' was made with the embedder {made_with}, but the command line uses {ours}",
                "Open it in a notebook: RAGEngine(index, embedder=...).",
            )
        return "ok", f"'{path}': {documents} documents, {chunks} passages, {made_with}"

    def _embedder(self) -> _Result:
        from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder

        started = time.perf_counter()
        embedder = SentenceTransformerEmbedder()
        dimension = embedder.embed(["Does it embed?"], kind="query").shape[1]
        stored = self._settings.get("dimension")
        if self._settings.get("embedder") == embedder.name and stored != str(dimension):
            return "failed", f"{embedder.name} has {dimension} dimensions, but the index was made with {stored}"
        seconds = time.perf_counter() - started
        return "ok", f"{embedder.name} works: {dimension} dimensions, loaded in {seconds:.1f} s"

    def _llm(self) -> _Result:
        if self._make_llm is None:
            return "skipped", "no model was named (--llm MODEL --base-url URL): answers are quotes, which need no model"
        llm = self._make_llm()
        started = time.perf_counter()
        # A thinking model needs tokens for its thoughts; other models stop early.
        reply = ask(llm, [{"role": "user", "content": "Say: ready."}], asker="ragkit doctor", max_tokens=256)
        return "ok", f"{llm.name} answered {reply.text.strip()[:60]!r} in {time.perf_counter() - started:.1f} s"

    # ------------------------------------------------------------------------------ the socket

    def _on_socket(self, talk: Callable[[ClientConnection], Any], *, origin: str | None = None) -> Any:
        async def run() -> Any:
            socket = await dial(
                self._server, "api/v1/ws", right="read", origin=origin, timeout_seconds=self._timeout_seconds
            )
            async with socket, asyncio.timeout(self._timeout_seconds):
                return await talk(socket)

        return asyncio.run(run())


async def _ask(socket: ClientConnection, message: msgspec.Struct, wanted: type[msgspec.Struct]) -> msgspec.Struct:
    """Send a message and wait for a reply of one type; ignore broadcasts in between."""
    await socket.send(messages.encode(message), text=True)
    while True:
        reply = messages.decode_listener_message(await socket.recv())
        if isinstance(reply, wanted):
            return reply
        if isinstance(reply, messages.Error):
            raise ServerConnectionError("the hub", f"{reply.content.message} ({reply.content.code})")
