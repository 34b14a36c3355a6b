"""Runs the ``ragkit`` command in processes that do not use this machine's Jupyter settings."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT
from tests.server.live_server import TOKEN, Server

DEADLINE_SECONDS = 120.0


def environment(folder: Path, server: Server | None = None, **more: str) -> dict[str, str]:
    """Return the environment variables for a command that finds only ``server``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAGKIT_", "JUPYTER", "JPY_"))}
    if "RAGKIT_CACHE_DIR" in os.environ:  # set by conftest.py
        kept["RAGKIT_CACHE_DIR"] = os.environ["RAGKIT_CACHE_DIR"]
    kept |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "server_extension")]),
        "PYTHONWARNINGS": "default",
        "JUPYTER_RUNTIME_DIR": str(folder / "no-runtime"),
        "JUPYTER_DATA_DIR": str(folder / "no-data"),
        "RAGKIT_JOURNAL_DIR": str(folder / "no-journal"),
    }
    if server is not None:
        kept |= {"RAGKIT_URL": f"http://127.0.0.1:{server.port}{server.base_url}", "RAGKIT_TOKEN": TOKEN}
    return kept | more


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ragkit.cli", *arguments]


def ragkit(*arguments: str, cwd: Path, server: Server | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; fail if it prints a traceback or the token."""
    done = subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(cwd, server, **env),
        capture_output=True,
        text=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        timeout=DEADLINE_SECONDS,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done


class Running:
    """A running command; ``lines`` has its output so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(stream,), daemon=True)
            for stream in (process.stdout, process.stderr)
            if stream is not None
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: Iterator[str]) -> None:
        for line in stream:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()

    def wait_for(self, text: str) -> str:
        """Wait for a line of output that contains ``text``, and return it."""

        def found() -> str | None:
            return next((line for line in self.lines if text in line), None)

        with self._more:
            assert self._more.wait_for(found, DEADLINE_SECONDS), f"{text!r} is not in the output: {self.lines}"
            line = found()
        assert line is not None
        return line

    def end(self, signal_number: int) -> int:
        """Send a signal and return the exit status."""
        self.process.send_signal(signal_number)
        status = self.process.wait(DEADLINE_SECONDS)
        for reader in self._readers:
            reader.join(DEADLINE_SECONDS)
        assert "Traceback" not in "\n".join(self.lines), self.lines
        return status


@contextlib.contextmanager
def running(*arguments: str, cwd: Path, server: Server | None = None, **env: str) -> Iterator[Running]:
    """Start a command; kill it at the end of the block if it still runs."""
    process = subprocess.Popen(
        command(*arguments),
        cwd=cwd,
        env=environment(cwd, server, **env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        # Background processes, for example in a CI, ignore SIGINT, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        try:
            yield Running(process)
        finally:
            if process.poll() is None:
                process.kill()
