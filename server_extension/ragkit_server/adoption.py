"""Adopts journals: broadcasts, exactly once, the events that publishers wrote to disk while there was no server.

A journal is ``<journal_dir>/<publisher>.jsonl``: a `hello` line, then `publish` lines. The file lock
``<publisher>.jsonl.lock`` is held by its writer while the journal is open, and afterwards by the server that adopts it.
That server claims the journal by renaming it to ``.jsonl.claimed-<history>``, broadcasts its events with their original
time and origin, and deletes it when they are committed to its history. If the server dies in between, only its history
knows how many of the events have been broadcast. The claimed file is therefore reserved for the next server with that
history; after ten minutes any server may adopt it. An invalid journal is kept as ``.jsonl.rejected`` for inspection.

All file operations run in threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import logging
import os
import re
import stat
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import filelock

from ragkit.live.messages import Hello, Publish
from ragkit.terminal import one_line
from ragkit_server.hub.inbound import RejectedError, from_publisher
from ragkit_server.hub.manager import WebSocketManager

BATCH = 200  # events broadcast per turn of the event loop
STOP_SECONDS = 2
MAX_REPORTS = 10  # damaged lines of one journal that are logged
CLAIM_SECONDS = 600  # how long a claim is reserved for a restart of its server


class Journals:
    """Adopts the journals in one folder.

    Args:
        folder: The folder of the journals; it need not exist.
        manager: Broadcasts the events.
        history: The id of the manager's history, which does not change when the server restarts.
        log: Logs problems.
        max_bytes: Size limit; larger journals are rejected.
        max_line_bytes: Size limit of one event; larger events are skipped.
    """

    def __init__(
        self,
        folder: Path,
        *,
        manager: WebSocketManager,
        history: str,
        log: logging.Logger,
        max_bytes: int = 256 * 2**20,
        max_line_bytes: int = 8 * 2**20,
    ) -> None:
        self._folder = folder
        self._manager = manager
        self._claim = f".claimed-{history}"
        self._log = log
        self._max_bytes = max_bytes
        self._max_line_bytes = max_line_bytes
        self._task: asyncio.Task[None] | None = None
        self._reports: dict[Path, str] = {}

    def start(self, every_seconds: float) -> None:
        """Scan the folder now, and then periodically."""
        self._task = asyncio.create_task(self._watch(every_seconds))

    async def stop(self) -> None:
        """Stop scanning; a partly adopted journal is left for the next server."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=STOP_SECONDS)  # a disk may hang
            self._task = None

    async def _watch(self, every_seconds: float) -> None:
        while True:
            try:
                await self.adopt()
            except Exception as problem:
                # The journals remain, and the next scan may succeed.
                self._report(self._folder, problem)
            await asyncio.sleep(every_seconds)

    async def adopt(self) -> int:
        """Adopt every journal that is not locked; return how many events were broadcast."""
        count = 0
        for path in await asyncio.to_thread(self._find):
            try:
                count += await self._adopt(path)
            except OSError as problem:
                self._report(path, problem)
        return count

    async def _adopt(self, path: Path) -> int:
        lock = filelock.FileLock(f"{path}.lock", thread_local=False, timeout=0)
        try:
            await asyncio.to_thread(lock.acquire)
        except filelock.Timeout:
            return 0  # its writer still runs, or another server adopts it
        try:
            claim = path.with_name(path.name + self._claim)
            count = await self._adopt_file(path.stem, claim)  # left by this server before a restart
            for file in [*await asyncio.to_thread(_abandoned, path), path]:
                await asyncio.to_thread(_claim, file, claim)
                count += await self._adopt_file(path.stem, claim)
            return count
        finally:
            await asyncio.to_thread(_release, lock, path)

    def _report(self, path: Path, problem: Exception) -> None:
        if self._reports.get(path) != repr(problem) and len(self._reports) < 1_000:  # log each problem once
            self._reports[path] = repr(problem)
            self._log.warning(
                "ragkit: journal '%s' could not be adopted: %r. The server will try again.",
                one_line(str(path)),
                problem,
            )

    def _find(self) -> list[Path]:
        if not self._folder.is_dir():
            return []
        names = {_journal_name(path) for path in self._folder.iterdir() if _is_journal(path)}
        return [self._folder / name for name in sorted(names)]

    async def _adopt_file(self, publisher: str, path: Path) -> int:
        file = await asyncio.to_thread(self._open, path)
        if file is None:
            return 0
        count = 0
        rejected: list[str] = []
        with file:
            messages = self._read(file, path)
            hello = await asyncio.to_thread(next, messages, None)
            if not isinstance(hello, Hello) or hello.publisher != publisher:
                self._reject(path, "its first line is not the hello of its publisher")
                return 0
            while batch := await asyncio.to_thread(lambda: list(islice(messages, BATCH))):
                for message in batch:
                    try:
                        count += isinstance(message, Publish) and self._manager.adopt(hello, message)
                    except RejectedError as problem:
                        rejected.append(str(problem))
                # Do not read more of the file than the disk can commit.
                await self._manager.commits.wait_for_disk()
        self._manager.counters.adopted += count
        self._manager.expect(publisher)
        await asyncio.to_thread(path.unlink)
        if rejected:
            name = one_line(hello.origin.name)
            self._log.warning("ragkit: %d events of '%s' were rejected: %s", len(rejected), name, rejected[-1])
        self._log.info("ragkit: adopted %d events of %s '%s'", count, hello.origin.kind, one_line(hello.origin.name))
        return count

    def _open(self, path: Path) -> BinaryIO | None:
        try:
            file = open(path, "rb", opener=_open_safely)  # noqa: SIM115 - closed by the caller
        except FileNotFoundError:
            return None
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            file.close()
            self._reject(path, "it is not a regular file")
            return None
        size = status.st_size
        if size == 0:  # its writer ended before it wrote the first line
            file.close()
            path.unlink()
            return None
        if size > self._max_bytes:
            file.close()
            self._reject(path, f"it has more than {self._max_bytes} bytes (--RagkitApp.max_journal_bytes)")
            return None
        return file

    def _read(self, file: BinaryIO, path: Path) -> Iterator[Hello | Publish]:
        number = damaged = 0
        while line := file.readline(self._max_line_bytes):
            number += 1
            if not line.endswith(b"\n"):
                while (rest := file.readline(self._max_line_bytes)) and not rest.endswith(b"\n"):
                    pass
            try:
                message = from_publisher(line.decode())
            except (RejectedError, UnicodeDecodeError) as problem:
                # Incomplete because of a crash or a full disk; only this line is lost.
                damaged += 1
                if damaged <= MAX_REPORTS:
                    name, what = one_line(path.name), one_line(str(problem))
                    self._log.warning("ragkit: line %d of journal '%s' is damaged: %s", number, name, what)
                continue
            if isinstance(message, Hello | Publish):
                yield message
        if damaged > MAX_REPORTS:
            self._log.warning("ragkit: %d lines of journal '%s' are damaged", damaged, one_line(path.name))

    def _reject(self, path: Path, reason: str) -> None:
        rejected = path.with_name(f"{_journal_name(path)}.rejected")
        path.rename(rejected)
        name = one_line(str(rejected))
        self._log.warning("ragkit: journal '%s' was not adopted: %s. Inspect it, then delete it.", name, reason)


def _open_safely(path: str, flags: int) -> int:
    """Open a file, but no symbolic link (it may lead out of the folder), and without blocking on a pipe."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))


def _journal_name(path: Path) -> str:
    return re.sub(r"\.claimed-[^.]*$", "", path.name)


def _is_journal(path: Path) -> bool:
    return _journal_name(path).endswith(".jsonl") and path.is_file() and not path.is_symlink()


def _abandoned(path: Path) -> list[Path]:
    """Return the claimed files of a journal whose servers have not restarted within `CLAIM_SECONDS`."""
    claims = path.parent.glob(f"{glob.escape(path.name)}.claimed-*")
    now = time.time()
    return [claim for claim in sorted(claims) if _is_journal(claim) and now - claim.stat().st_mtime > CLAIM_SECONDS]


def _claim(path: Path, claim: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another server has adopted it
        os.utime(path, follow_symlinks=False)
        path.rename(claim)


def _release(lock: filelock.BaseFileLock, path: Path) -> None:
    if not path.exists():
        Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
