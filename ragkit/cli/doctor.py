"""Which layer is broken: from Python to the language model, one check after the other.

`Doctor.examine` goes through the layers in the order in which they rest on each other. A layer that
rests on a broken one is skipped, so that the first failure is the one to mend. Nothing is published,
nothing is written, and no finding holds a token.
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
FOREIGN_ORIGIN = "https://ragkit-doctor.invalid"  # a name that nobody can own (RFC 2606)


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        layer: What was looked at.
        status: ``"ok"``, ``"warning"`` (it works, with less), ``"failed"`` or ``"skipped"``.
        message: What was found.
        advice: What to do next; empty if nothing.
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
    """Examines an installation.

    Args:
        find: Finds the server.
        index: Finds the index's folder; an `InputError` means that none was named.
        llm: Makes the language model to try; None if there is none to try.
        timeout_seconds: For each step over the network.
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
        """Check layer after layer, and give each finding as soon as it is there."""
        checks: tuple[tuple[str, tuple[str, ...], Callable[[], _Result]], ...] = (
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
        unsound: set[str] = set()
        for layer, foundations, check in checks:
            if broken := [name for name in foundations if name in unsound]:
                finding = Finding(layer, "skipped", f"not tried, because '{broken[0]}' comes first")
            else:
                finding = self._clean(Finding(layer, *self._try(check)))
            if finding.status in ("failed", "skipped"):
                unsound.add(layer)
            yield finding

    def _try(self, check: Callable[[], _Result]) -> _Result:
        try:
            return check()
        except RagkitError as error:
            return "failed", str(error)
        except TimeoutError:
            return "failed", f"no answer within {self._timeout_seconds:g} seconds", "Ask again with a longer --timeout."
        except Exception as error:  # whatever it is, it is what the patient has: it is reported, and the rest examined
            return "failed", f"{type(error).__name__}: {error}"

    def _clean(self, finding: Finding) -> Finding:
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
                f"what answers at {self._server.url} is no Jupyter server (HTTP {answer.status_code})",
                "Check the address: a base_url belongs to it, as in http://localhost:8888/user/me/.",
            )
        return "ok", f"the server lets us in; {status.get('kernels', '?')} kernels run on it"

    def _panel(self) -> _Result:
        # JupyterLab gives the settings of the extensions that it has found.
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
            # The token must not follow a redirect, nor go through a proxy to a server on this machine.
            return httpx2.get(
                url + path, headers=headers, timeout=self._timeout_seconds, trust_env=not self._server.is_loopback
            )
        except httpx2.HTTPError as error:
            raise ServerConnectionError(
                url, f"{str(error) or type(error).__name__}. Is it running? 'jupyter server list' tells."
            ) from error

    def _socket(self) -> _Result:
        async def subscribe(socket: ClientConnection) -> messages.Snapshot:
            reply = await _ask(socket, messages.Subscribe(id="doctor"), messages.Snapshot)
            assert isinstance(reply, messages.Snapshot)
            return reply

        self._snapshot = self._on_socket(subscribe)
        return "ok", f"{self._server.ws_url('api/v1/ws')} lets us listen; {self._snapshot.seq} events so far"

    def _round_trip(self) -> _Result:
        async def ping(socket: ClientConnection) -> float:
            started = time.perf_counter()
            await _ask(socket, messages.Ping(id="doctor"), messages.Pong)
            return time.perf_counter() - started

        return "ok", f"ping, pong: {1000 * self._on_socket(ping):.1f} ms"

    def _origin(self) -> _Result:
        # Only a request without a token, as if from the server's own page, is told the setting itself.
        allowed = self._get("api", headers={}).headers.get("Access-Control-Allow-Origin")
        own = f"pages of {self._server.url}"

        async def nothing(socket: ClientConnection) -> None:
            pass

        try:
            self._on_socket(nothing, origin=FOREIGN_ORIGIN)
        except RefusedError:
            others = f" and of {allowed} (ServerApp.allow_origin)" if allowed else ""
            return "ok", f"allowed are {own}{others}, and what ServerApp.allow_origin_pat may name; others are refused"
        why = (
            "ServerApp.allow_origin is '*'"
            if allowed == "*"
            else "RagkitApp.allow_any_origin_with_token is set, or ServerApp.allow_origin_pat is wide"
        )
        return (
            "warning",
            f"pages of any origin may connect with a token: {why}",
            "If that is not meant, name your application alone: ServerApp.allow_origin='http://localhost:3000'.",
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
        return "ok", "the hub welcomes publishers; nothing was published"

    def _engine(self) -> _Result:
        engines = self._snapshot.engines if self._snapshot is not None else []
        if engines:
            return "ok", "on offer: " + ", ".join(f"'{e.index}' ({e.documents} documents, {e.llm})" for e in engines)
        return (
            "warning",
            "no engine is on offer now",
            "Run engine.serve() in a notebook, or 'ragkit serve INDEX'. A server that was started with "
            "--RagkitApp.index=INDEX starts one by itself at the first question.",
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
            return "failed", f"there is no index at '{path}'", f"Make one: ragkit index FOLDER --index {path}"
        again = f"Make it anew: ragkit index FOLDER --index {path} --rebuild"
        records = Records(path)
        self._settings = records.settings()
        documents, chunks = records.counts()
        if self._settings.get("format", FORMAT) != FORMAT:
            return "failed", f"'{path}' has the format {self._settings['format']}; this ragkit reads {FORMAT}", again
        if not documents:
            return "warning", f"'{path}' holds no documents", f"ragkit index FOLDER --index {path}"
        # Opening a store makes its folder, and nothing is written here.
        vectors = ChromaStore(path / "vectors").count() if (path / "vectors").is_dir() else 0
        if vectors < chunks:
            return "failed", f"'{path}' has {chunks} passages, but only {vectors} vectors", again
        made_with, ours = self._settings.get("embedder"), SentenceTransformerEmbedder().name
        if made_with != ours:
            return (
                "warning",
                f"'{path}' was made with the embedder {made_with}; the command line opens indexes with {ours}",
                "Ask it from a notebook: RAGEngine(index, embedder=...).",
            )
        return "ok", f"'{path}': {documents} documents, {chunks} passages, {made_with}"

    def _embedder(self) -> _Result:
        from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder

        started = time.perf_counter()
        embedder = SentenceTransformerEmbedder()
        dimension = embedder.embed(["Does it embed?"], kind="query").shape[1]
        stored = self._settings.get("dimension")
        if self._settings.get("embedder") == embedder.name and stored != str(dimension):
            return "failed", f"{embedder.name} gives {dimension} numbers a text, but the index was made with {stored}"
        seconds = time.perf_counter() - started
        return "ok", f"{embedder.name} embeds: {dimension} numbers a text, loaded in {seconds:.1f} s"

    def _llm(self) -> _Result:
        if self._make_llm is None:
            return "skipped", "no model was named: answers are quotes, which need none (--llm MODEL --base-url URL)"
        llm = self._make_llm()
        started = time.perf_counter()
        # A model that thinks first needs room for that; others stop by themselves.
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
    """Send a message and wait for a reply of one type; broadcasts in between are for others."""
    await socket.send(messages.encode(message), text=True)
    while True:
        reply = messages.decode_listener_message(await socket.recv())
        if isinstance(reply, wanted):
            return reply
        if isinstance(reply, messages.Error):
            raise ServerConnectionError("the hub", f"{reply.content.message} ({reply.content.code})")
