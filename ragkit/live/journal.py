"""A publisher's journal: what it could not tell a server yet, in a file.

``<journal_dir>/<publisher id>.jsonl``: the `Hello`, then `Publish` messages, one JSON object a line.
The writer holds the lock ``<file>.lock`` as long as it lives, so whoever gets the lock (the hub's
extension looks every few seconds) knows that nobody writes any more, and may adopt the file. The
numbers in it are those that the events have on the socket, so an event that came both ways counts once.

A line is in the operating system's hands when `Journal.append` returns: it survives the end of the
process, however that comes, but not a power failure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from ragkit.live.messages import Hello, encode


class Journal:
    """An open journal: appended to at its end, read from its beginning.

    Args:
        folder: Where journals are; made if need be, for this user alone (questions are private).
        hello: Its first line; it names the file.

    Raises:
        OSError: The file cannot be made, or another process holds its lock.
    """

    def __init__(self, folder: Path, hello: Hello) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / f"{hello.publisher}.jsonl"
        from filelock import FileLock  # costs as much as the rest of the publisher, and is seldom needed

        self._lock = FileLock(f"{self.path}.lock", timeout=0, thread_local=False)
        self._lock.acquire()  # filelock.Timeout is an OSError
        try:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
            self._reader = self.path.open("rb")
        except OSError:
            self._lock.release()
            raise
        self._end = 0
        try:
            self.append([encode(hello)])
        except OSError:
            self.remove()
            raise
        self._reader.readline()

    def append(self, messages: Iterable[bytes]) -> None:
        """Write messages, each on its own line: all of them or none.

        Raises:
            OSError: The disk refused; the file is as it was before.
        """
        data = memoryview(b"".join(message + b"\n" for message in messages))
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            with contextlib.suppress(OSError):  # a torn line is skipped by the reader, and said by its log
                os.ftruncate(self._fd, self._end)
            os.lseek(self._fd, self._end, os.SEEK_SET)
            raise
        self._end += written

    def skip_to_end(self) -> None:
        """Let `read` begin after what is written now."""
        self._reader.seek(self._end)

    def read(self, limit: int) -> list[bytes]:
        """Read the next messages that have been appended, ``limit`` at most."""
        lines: list[bytes] = []
        while len(lines) < limit and self._reader.tell() < self._end:
            lines.append(self._reader.readline().rstrip(b"\n"))
        return lines

    @property
    def is_read(self) -> bool:
        """True when everything that was appended has been read."""
        return self._reader.tell() >= self._end

    def remove(self) -> None:
        """Close and delete it: all that it holds is the hub's now."""
        with contextlib.suppress(OSError):  # it will be adopted, and its numbers are known: harmless
            self.path.unlink()
        self._close()

    def close(self) -> None:
        """Close it and leave it to whoever adopts it."""
        self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._reader.close()
        if not self.path.exists():
            with contextlib.suppress(OSError):  # an empty lock file does no harm
                os.unlink(self._lock.lock_file)
        self._lock.release()
