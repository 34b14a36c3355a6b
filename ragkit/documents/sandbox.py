"""Reading of files in a child process, so that a file that hangs or crashes its parser does not affect other files.

::

    Reader  --- source file --->  child process (low priority, memory limit): ragkit.documents.loading.parse
            <-- documents and failures one by one, then the end ---

The child parses hostile files, so its messages are decoded as plain data (msgpack, only the types below) and never
executed. The time-out limits the time between two messages, not the total: a large file may take long as long as it
makes progress.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from ragkit.documents.document import Document, SourceFile
from ragkit.documents.language import with_language
from ragkit.documents.loading import TIMEOUT_SECONDS, parse
from ragkit.errors import DocumentError, OperationCancelled

GRACE_SECONDS = 30.0  # added to `TIMEOUT_SECONDS`, at which readers that check the time stop on their own
MEMORY_BYTES = 4 * 2**30
_POLL_SECONDS = 0.5


class _Job(msgspec.Struct, array_like=True):
    root: bytes  # paths are bytes because names need not be UTF-8
    name: bytes
    size_bytes: int
    url: str


class _Read(msgspec.Struct, tag="read"):
    document: Document


class _Failed(msgspec.Struct, tag="failed"):
    source: str
    reason: str
    whole: bool


class _End(msgspec.Struct, tag="end"):
    pass


_encode = msgspec.msgpack.Encoder().encode
_decode_message = msgspec.msgpack.Decoder(_Read | _Failed | _End).decode
_decode_job = msgspec.msgpack.Decoder(_Job).decode


class Reader:
    """Read files one at a time in a child process, which starts on demand and restarts after a crash.

    Only `close` is thread-safe. The child ends when the reader is closed or this process ends.

    Args:
        timeout_seconds: The longest time without a message from the child before it is killed and the file fails.
        memory_bytes: The limit of the child's address space, on systems that enforce it (Linux).
    """

    def __init__(
        self, *, timeout_seconds: float = TIMEOUT_SECONDS + GRACE_SECONDS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._deadline: float | None = None  # for the next message
        self._closed = threading.Event()
        self._watchdog: threading.Thread | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self, source: SourceFile) -> Iterator[Document | DocumentError]:
        """See `ragkit.documents.read`.

        Raises:
            DocumentError: The file as a whole is unusable, or its parser crashed or hung.
            OperationCancelled: The reader was closed in the meantime.
        """
        process = self._start()
        is_idle = False
        try:
            _send(_pipe(process.stdin), _job(source))
            while True:
                match self._receive(process):
                    case _Read(document=document):
                        yield with_language(document)  # here, because loading the model takes half a second
                    case _Failed(source=where, reason=reason, whole=False):
                        yield DocumentError(where, reason)
                    case _Failed(source=where, reason=reason):
                        is_idle = True
                        raise DocumentError(where, reason)
                    case _End():
                        is_idle = True
                        return
        except (EOFError, OSError, ValueError, msgspec.MsgspecError) as error:  # ValueError: closed by `close`
            raise self._exit_error(process, source) from error
        finally:
            if not is_idle:  # the child is dead, or busy with a file that the caller abandoned
                self._end(process)

    def close(self) -> None:
        """End the child. Any thread may call this; a `read` in progress raises `OperationCancelled`."""
        self._closed.set()
        with self._lock:
            process = self._process
        if process is not None:
            self._end(process)

    def _start(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed.is_set():
                raise OperationCancelled("Reading was stopped.")
            if self._process is None:
                package = str(Path(__file__).resolve().parents[2])
                paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
                self._process = subprocess.Popen(
                    # -P: do not import from the current folder, which may contain a json.py.
                    [sys.executable, "-P", "-m", "ragkit.documents.sandbox", str(self._memory_bytes)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                )  # fmt: skip
            if self._watchdog is None:
                self._watchdog = threading.Thread(target=self._watch, name="ragkit-reader", daemon=True)
                self._watchdog.start()
            return self._process

    def _receive(self, process: subprocess.Popen[bytes]) -> _Read | _Failed | _End:
        self._deadline = time.monotonic() + self._timeout_seconds
        try:
            message: _Read | _Failed | _End = _decode_message(_received(_pipe(process.stdout)))
            return message
        finally:
            self._deadline = None

    def _watch(self) -> None:
        while not self._closed.wait(min(_POLL_SECONDS, self._timeout_seconds / 2)):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline and self._process is not None:
                self._process.kill()

    def _exit_error(self, process: subprocess.Popen[bytes], source: SourceFile) -> DocumentError | OperationCancelled:
        """Return the error that describes why the child ended."""
        if self._closed.is_set():
            return OperationCancelled("Reading was stopped.")
        process.kill()
        code = process.wait()
        if code == -signal.SIGKILL:
            # The watchdog killed it, or the system, which was out of memory; the signal does not say which.
            reason = f"not read in {self._timeout_seconds:.0f} s, or needs more memory than available; split the file"
        else:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
            reason = f"it crashed its parser ({name}): it is damaged or malicious"
        return DocumentError(source.where, reason)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            if self._process is process:
                self._process = None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # flushing buffered data to a dead child fails
                _pipe(pipe).close()


def _pipe(pipe: Any) -> BinaryIO:
    return pipe  # type: ignore[no-any-return]


def _send(pipe: BinaryIO, message: Any) -> None:
    data = _encode(message)
    pipe.write(len(data).to_bytes(4, "big") + data)
    pipe.flush()


def _received(pipe: BinaryIO) -> bytes:
    head = pipe.read(4)
    data = pipe.read(int.from_bytes(head, "big"))
    if len(head) < 4 or len(data) < int.from_bytes(head, "big"):
        raise EOFError
    return data


# ------------------------------------------------------------------------------------------- the child


def _job(source: SourceFile) -> _Job:
    return _Job(os.fsencode(source.root), os.fsencode(source.name), source.size_bytes, source.url)


def _source(job: _Job) -> SourceFile:
    root, name = Path(os.fsdecode(job.root)), os.fsdecode(job.name)
    return SourceFile(root=root, name=name, size_bytes=job.size_bytes, url=job.url)


def main() -> None:
    messages = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a parser's output must not mix with messages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and ends this process
    _limit(int(sys.argv[1]))
    threading.Thread(target=_exit_with, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            job = _decode_job(_received(sys.stdin.buffer))
        except EOFError:
            return
        source = _source(job)
        try:
            for item in parse(source):
                match item:
                    case Document():
                        _send(messages, _Read(item))
                    case DocumentError():
                        _send(messages, _Failed(item.source, item.reason, whole=False))
            _send(messages, _End())
        except DocumentError as error:
            _send(messages, _Failed(error.source, error.reason, whole=True))


def _limit(memory_bytes: int) -> None:
    if hasattr(os, "nice"):
        os.nice(5)  # embedding is the bottleneck
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows lacks it; macOS rejects the limit
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _exit_with(parent: int) -> None:
    """Exit when the parent has ended: a parser that hangs does not notice a closed pipe."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
