"""Run the whole loop unattended: server, notebook, listeners. Exit status 1 if anything is missing.

Starts a real Jupyter server with the extension, watches its socket with ``ragkit watch``, and runs the
quickstart with papermill. The quickstart asks a question over the socket, which its own engine answers.
After the notebook has ended, this program asks over the socket, and the server starts an engine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "notebooks" / "01_quickstart.ipynb"
INDEX = ROOT / "indexes" / "handbook"
QUESTION = "Which values of k1 and b should I start with?"
QUESTION_FR = "Faut-il garder les accents dans une recherche en français ?"


def main() -> int:
    started = time.monotonic()
    missing: list[str] = []
    with tempfile.TemporaryDirectory(prefix="ragkit-demo-") as scratch:
        environment = os.environ | {"RAGKIT_TOKEN": secrets.token_hex(16), "PYTHONUNBUFFERED": "1"}
        environment["RAGKIT_JOURNAL_DIR"] = str(Path(scratch) / "journal")  # ignore events of other processes
        with server(environment, Path(scratch)) as url:
            environment["RAGKIT_URL"] = url
            log(f"Jupyter server with ragkit at {url}")
            with watcher(environment) as seen, listener(environment) as socket_:
                log("Running the quickstart with papermill ...")
                run = subprocess.run(
                    [sys.executable, "-m", "papermill", str(NOTEBOOK), str(Path(scratch) / "quickstart.out.ipynb")]
                    + ["--cwd", str(NOTEBOOK.parent), "--no-progress-bar"],
                    env=environment,
                    capture_output=True,
                    text=True,
                    timeout=600,
                    check=False,
                )
                if run.returncode:
                    print(run.stderr[-4000:], file=sys.stderr)
                    missing.append("the notebook ran to its end")
                for question in (QUESTION, QUESTION_FR):
                    log(f"Asking over the socket: {question}")
                    if not ask(socket_, question):
                        missing.append(f"an answer with sources to {question!r}")
                deadline = time.monotonic() + 20
                while time.monotonic() < deadline and not all(seen.values()):
                    time.sleep(0.1)
                missing += [what for what, arrived in seen.items() if not arrived]
    for what in missing:
        log(f"MISSING: {what}")
    log(f"{'Not everything' if missing else 'Everything'} arrived, after {time.monotonic() - started:.0f} s.")
    if not missing:
        log("Next: `make lab`, and run the notebook yourself.")
    return 1 if missing else 0


def log(text: str) -> None:
    print(f"demo: {text}", flush=True)


@contextlib.contextmanager
def server(environment: dict[str, str], scratch: Path) -> Iterator[str]:
    """Start a Jupyter server on a free port, and stop it at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "jupyter", "server", f"--port={port}", "--port-retries=0", "--no-browser"]
    command += ["--ip=127.0.0.1", f"--ServerApp.root_dir={ROOT}", f"--RagkitApp.index={INDEX}"]
    if os.geteuid() == 0:
        command.append("--allow-root")
    log_file = scratch / "server.log"
    with log_file.open("w") as output:
        process = subprocess.Popen(
            command,
            env=environment | {"JUPYTER_TOKEN": environment["RAGKIT_TOKEN"]},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_for(url, environment["RAGKIT_TOKEN"], process)
        yield url
    except BaseException:
        print(log_file.read_text()[-4000:], file=sys.stderr)
        raise
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_for(url: str, token: str, process: subprocess.Popen[bytes], *, timeout_seconds: float = 60) -> None:
    request = urllib.request.Request(f"{url}api/status", headers={"Authorization": f"token {token}"})
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("The Jupyter server did not start; its log is above.") from None
            time.sleep(0.1)


@contextlib.contextmanager
def watcher(environment: dict[str, str]) -> Iterator[dict[str, bool]]:
    """Run ``ragkit watch --json`` and print its messages; yields which of the expected ones have arrived."""
    seen = {"indexing progress on the socket": False, "follow-up questions on the socket": False}
    process = subprocess.Popen(
        [sys.executable, "-m", "ragkit.cli", "watch", "--json"], env=environment, stdout=subprocess.PIPE, text=True
    )

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            message = json.loads(line)
            if message["type"] == "indexing_progress":
                done = message["state"] == "done" and not message["failures"]
                seen["indexing progress on the socket"] |= done
            if message["type"] == "follow_up_questions":
                seen["follow-up questions on the socket"] |= bool(message["questions"])
            print("watch:", format_message(message), flush=True)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield seen
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        reader.join(5)


def format_message(message: dict[str, object]) -> str:
    if message["type"] == "indexing_progress":
        return (
            f"{message['index']} {message['state']}: "
            f"documents {message['documents_done']}/{message['documents_total']}, "
            f"passages {message['chunks_done']}/{message['chunks_total']}"
        )
    if message["type"] == "follow_up_questions":
        return f"follow-up questions: {message['questions']}"
    return str(message["type"])


@contextlib.contextmanager
def listener(environment: dict[str, str]) -> Iterator[ClientConnection]:
    url = environment["RAGKIT_URL"].replace("http", "ws", 1) + "api/v1/ws"
    headers = {"Authorization": f"token {environment['RAGKIT_TOKEN']}"}
    # It does not read while the notebook runs, and with a full queue it could not receive the server's pongs.
    with connect(url, additional_headers=headers, proxy=None, max_queue=None) as socket_:
        yield socket_


def ask(socket_: ClientConnection, question: str, *, timeout_seconds: float = 120) -> bool:
    """Ask a question as any client does; return whether a response with sources arrived."""
    socket_.send(json.dumps({"type": "query", "content": {"question": question, "context": {}}}))
    deadline = time.monotonic() + timeout_seconds
    while (left := deadline - time.monotonic()) > 0:
        try:
            message = json.loads(socket_.recv(timeout=left))
        except TimeoutError:
            break
        if message["type"] == "response":
            content = message["content"]
            print(f"answer: {content['answer']}")
            for source in content["sources"]:
                print(f"source: [{source['number']}] {source['source']}: {source['heading'] or source['title']}")
            return bool(content["sources"])
        if message["type"] == "error":
            log(f"error {message['content']['code']}: {message['content']['message']}")
            return False
    return False


if __name__ == "__main__":
    sys.exit(main())
