from __future__ import annotations

import contextlib
import gc
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ragkit.documents import download as module
from ragkit.documents.download import download
from ragkit.documents.loading import load
from ragkit.documents.sources import find_sources

PAGE = "<html><head><title>Les vagues</title></head><body><h1>Été</h1><p>L'été à la plage.</p></body></html>"
LATIN = "<html><body><p>Déjà vu : l'été, les élèves étonnés.</p></body></html>".encode("cp1252")


class Server(BaseHTTPRequestHandler):
    """Serves good responses and every kind of bad one."""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        with contextlib.suppress(OSError):
            match path:
                case "/" | "/page" | "/dir/":
                    self.answer(PAGE.encode(), "text/html; charset=utf-8")
                case "/latin":
                    self.answer(LATIN, "text/html; charset=iso-8859-1")
                case "/notes.md":
                    self.answer(b"# Notes\n\ntext", "text/plain")
                case "/data":
                    self.answer(b'{"_id": "1", "text": "a row"}', "application/x-ndjson")
                case "/table.csv":
                    self.answer(b"name,age\nAda,36\n", "application/octet-stream")
                case "/no-media-type.txt":
                    self.answer(b"plain", "")
                case "/picture":
                    self.answer(b"\x89PNG", "image/png")
                case "/moved":
                    self.redirect("/page")
                case "/round":
                    self.redirect("/round")
                case "/elsewhere":
                    self.redirect("ftp://127.0.0.1/x")
                case "/hangs":
                    time.sleep(3)
                case "/endless":
                    self.head(200, "text/plain")
                    while True:
                        self.wfile.write(b"x" * 65_536)
                case "/drips":
                    self.head(200, "text/plain")
                    for _ in range(100):
                        self.wfile.write(b"x")
                        time.sleep(0.05)
                case "/cut":
                    self.answer(b"half", "text/plain", length=1_000)
                case "/large":
                    self.answer(b"x", "text/plain", length=10**12)
                case "/login":
                    self.send_error(401)
                case _:
                    self.send_error(404)

    def head(self, code: int, media_type: str, length: int | None = None) -> None:
        self.send_response(code)
        if media_type:
            self.send_header("Content-Type", media_type)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def answer(self, body: bytes, media_type: str, length: int | None = None) -> None:
        self.head(200, media_type, len(body) if length is None else length)
        self.wfile.write(body)

    def redirect(self, to: str) -> None:
        self.send_response(302)
        self.send_header("Location", to)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def refused(url: str, **options: float) -> str:
    found = download(url, **{"max_bytes": 10**6, **options})  # type: ignore[arg-type]
    assert found.sources == ()
    assert found.alone
    (failure,) = found.failures
    assert failure.source == url
    return failure.reason


def test_a_page(address: str) -> None:
    found = find_sources(f"{address}/page?lang=fr#part")
    (source,) = found.sources
    assert found.alone
    assert found.root == Path(f"http:/{address.removeprefix('http://')}")
    assert source.id == "page?lang=fr"
    assert source.where == f"{address}/page?lang=fr"
    (document,) = load(source).documents
    assert document.id == "page?lang=fr"
    assert document.source == f"{address}/page?lang=fr"
    assert document.title in ("Les vagues", "Été")
    assert "L'été à la plage." in document.text


def test_the_file_is_removed_with_the_result(address: str) -> None:
    found = find_sources(f"{address}/page")
    path = found.sources[0].path
    assert path.is_file()
    del found
    gc.collect()
    assert not path.parent.exists()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/notes.md", "# Notes\n\ntext"),
        ("/data", "a row"),
        ("/table.csv", "name: Ada; age: 36"),
        ("/no-media-type.txt", "plain"),
        ("/moved", "L'été"),
        ("/latin", "Déjà vu"),
        ("/", "L'été"),
    ],
)
def test_kinds(address: str, path: str, text: str) -> None:
    found = find_sources(address + path)
    (document,) = load(found.sources[0]).documents
    assert text in document.text
    assert document.id


def test_a_path_object_of_an_address(address: str) -> None:
    found = find_sources(Path(f"{address}/notes.md"))
    assert found.sources[0].url == f"{address}/notes.md"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/missing", "404"),
        ("/login", "requires a login"),
        ("/picture", "does not read what the server sends (image/png)"),
        ("/round", "without end"),
        ("/elsewhere", "not http"),
        ("/endless", "too large"),
        ("/large", "too large"),
        ("/cut", "cannot be downloaded"),
    ],
)
def test_refusals(address: str, path: str, reason: str) -> None:
    started = time.monotonic()
    assert reason in refused(address + path)
    assert time.monotonic() - started < 20


def test_time_outs(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SILENCE_SECONDS", 0.5)
    assert "does not answer in time" in refused(address + "/hangs")
    assert "did not end in time" in refused(address + "/drips", timeout_seconds=0.5)


def test_unreachable_and_malformed_addresses() -> None:
    assert "check the address" in refused("http://127.0.0.1:9/x")
    assert "not an address" in refused("http://[::1/x")
    assert find_sources("http://user:secret@127.0.0.1:9/x").failures[0].source == "http://127.0.0.1:9/x"
