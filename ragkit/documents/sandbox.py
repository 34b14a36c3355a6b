"""Reading files in a child process, so that a file which hangs or crashes its parser takes down only its own attempt.

::

    Reader  --- a source --->  child (low priority, memory limit): ragkit.documents.loading.parse
            <-- documents and failures as they come, then the end ---

The child sees hostile files, so what it says is decoded as data (msgpack, of these types only) and never run.
Its silence is bounded and not its work: a large file may take long while it goes on.
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

GRACE_SECONDS = 30.0  # beyond `TIMEOUT_SECONDS`, at which loaders that can give up by themselves do
MEMORY_BYTES = 4 * 2**30
_LOOK_SECONDS = 0.5


class _Job(msgspec.Struct, array_like=True):
    root: bytes  # as the file system has it: names need not be UTF-8
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
_decode_said = msgspec.msgpack.Decoder(_Read | _Failed | _End).decode
_decode_job = msgspec.msgpack.Decoder(_Job).decode


class Reader:
    """A child process that reads one file at a time; started when it is needed, and again when a file took it down.

    For one thread, but for `close`. Closing it, or ending this process, ends the child.

    Args:
        timeout_seconds: How long a file's parser may say nothing before the file is given up.
        memory_bytes: The child's address space, where the system limits it (Linux).
    """

    def __init__(
        self, *, timeout_seconds: float = TIMEOUT_SECONDS + GRACE_SECONDS, memory_bytes: int = MEMORY_BYTES
    ) -> None:
        self._timeout_seconds = timeout_seconds
        self._memory_bytes = memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._ends: float | None = None  # when its silence has lasted too long
        self._closed = threading.Event()
        self._watchdog: threading.Thread | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self, source: SourceFile) -> Iterator[Document | DocumentError]:
        """See `ragkit.documents.read`.

        Raises:
            DocumentError: The file as a whole cannot be used; it may have taken the child down.
            OperationCancelled: The reader was closed meanwhile.
        """
        process = self._started()
        is_idle = False
        try:
            _send(_pipe(process.stdin), _job(source))
            while True:
                match self._heard(process):
                    case _Read(document=document):
                        yield with_language(document)  # here: its model takes half a second to load
                    case _Failed(source=where, reason=reason, whole=False):
                        yield DocumentError(where, reason)
                    case _Failed(source=where, reason=reason):
                        is_idle = True
                        raise DocumentError(where, reason)
                    case _End():
                        is_idle = True
                        return
        except (EOFError, OSError, ValueError, msgspec.MsgspecError) as error:  # ValueError: closed by `close`
            raise self._loss(process, source) from error
        finally:
            if not is_idle:  # dead, or in the middle of a file that nobody waits for any longer
                self._end(process)

    def close(self) -> None:
        """End the child, from any thread; a `read` that waits for it raises `OperationCancelled`."""
        self._closed.set()
        with self._lock:
            process = self._process
        if process is not None:
            self._end(process)

    def _started(self) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._closed.is_set():
                raise OperationCancelled("Reading was stopped.")
            if self._process is None:
                package = str(Path(__file__).resolve().parents[2])
                paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
                self._process = subprocess.Popen(
                    # -P: the current folder may hold anybody's json.py.
                    [sys.executable, "-P", "-m", "ragkit.documents.sandbox", str(self._memory_bytes)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                )  # fmt: skip
            if self._watchdog is None:
                self._watchdog = threading.Thread(target=self._watch, name="ragkit-reader", daemon=True)
                self._watchdog.start()
            return self._process

    def _heard(self, process: subprocess.Popen[bytes]) -> _Read | _Failed | _End:
        self._ends = time.monotonic() + self._timeout_seconds
        try:
            said: _Read | _Failed | _End = _decode_said(_received(_pipe(process.stdout)))
            return said
        finally:
            self._ends = None

    def _watch(self) -> None:
        while not self._closed.wait(min(_LOOK_SECONDS, self._timeout_seconds / 2)):
            ends = self._ends
            if ends is not None and time.monotonic() > ends and self._process is not None:
                self._process.kill()

    def _loss(self, process: subprocess.Popen[bytes], source: SourceFile) -> DocumentError | OperationCancelled:
        """Say why the child is gone."""
        if self._closed.is_set():
            return OperationCancelled("Reading was stopped.")
        process.kill()
        code = process.wait()
        if code == -signal.SIGKILL:
            # The watchdog, or the system, which was short of memory; the one has waited, the other has not.
            reason = f"not read in {self._timeout_seconds:.0f} s, or with more memory than there is; it was given up"
        else:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"exit code {code}"
            reason = f"it crashed its parser ({name}): damaged, or made to do harm"
        return DocumentError(source.where, reason)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        with self._lock:
            if self._process is process:
                self._process = None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(OSError):  # what was to be written to a dead child
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
    said = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a parser prints is no message
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    _limit(int(sys.argv[1]))
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
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
                        _send(said, _Read(item))
                    case DocumentError():
                        _send(said, _Failed(item.source, item.reason, whole=False))
            _send(said, _End())
        except DocumentError as error:
            _send(said, _Failed(error.source, error.reason, whole=True))


def _limit(memory_bytes: int) -> None:
    if hasattr(os, "nice"):
        os.nice(5)  # embedding is what everybody waits for
    with contextlib.suppress(ImportError, ValueError, OSError):  # Windows; macOS knows the limit and refuses it
        resource = importlib.import_module("resource")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _end_with(parent: int) -> None:
    """End when the parent has: a parser that hangs does not notice a closed pipe."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


if __name__ == "__main__":
    main()
