"""The journal: a file with the events that a publisher could not send to a server yet.

``<journal_dir>/<publisher id>.jsonl`` contains the `Hello` and then `Publish` messages, one JSON object per line. The
writer holds the file lock ``<file>.lock`` as long as its process lives. The server extension tries every few seconds to
acquire the lock; if it succeeds, the writer has ended and the extension adopts the file. Events have the same numbers
in the journal and on the socket, so the hub discards duplicates.

When `Journal.append` returns, the lines are written to the operating system: they survive a crash of the process, but
not a power failure.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from ragkit.live.messages import Hello, encode


class Journal:
    """An open journal; messages are appended at its end and read from its beginning.

    Args:
        folder: The folder of the journals. It is created if needed, readable only by this user, because questions are
            private.
        hello: The first line; its publisher id is the file's name.

    Raises:
        OSError: The file cannot be created, or another process holds its lock.
    """

    def __init__(self, folder: Path, hello: Hello) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / f"{hello.publisher}.jsonl"
        from filelock import FileLock  # slow to import, and rarely needed

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
        """Append messages, one per line; either all of them or none.

        Raises:
            OSError: Writing failed; the file is unchanged.
        """
        data = memoryview(b"".join(message + b"\n" for message in messages))
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:])
        except OSError:
            with contextlib.suppress(OSError):  # a reader skips an incomplete line and logs it
                os.ftruncate(self._fd, self._end)
            os.lseek(self._fd, self._end, os.SEEK_SET)
            raise
        self._end += written

    def skip_to_end(self) -> None:
        """Make `read` start after the current end of the file."""
        self._reader.seek(self._end)

    def read(self, limit: int) -> list[bytes]:
        """Read the next messages, at most ``limit``."""
        lines: list[bytes] = []
        while len(lines) < limit and self._reader.tell() < self._end:
            lines.append(self._reader.readline().rstrip(b"\n"))
        return lines

    @property
    def is_read(self) -> bool:
        """True if all appended messages have been read."""
        return self._reader.tell() >= self._end

    def remove(self) -> None:
        """Close and delete the journal, after the hub has acknowledged all its events."""
        with contextlib.suppress(OSError):  # it will be adopted, and the hub discards the duplicates
            self.path.unlink()
        self._close()

    def close(self) -> None:
        """Close the journal and leave the file for the server extension to adopt."""
        self._close()

    def _close(self) -> None:
        os.close(self._fd)
        self._reader.close()
        if not self.path.exists():
            with contextlib.suppress(OSError):  # an empty lock file does no harm
                os.unlink(self._lock.lock_file)
        self._lock.release()
