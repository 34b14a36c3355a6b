"""The child engine: a process that the server starts when no other engine is on offer.

States::

    IDLE --start()--> STARTING --offered()--> SERVING
      ^                  |                      |
      |                  v exits                v exits
      +--- start() --- BACKOFF <----------------+   (restarted automatically after SERVING)
    any --stop()--> STOPPED

The child runs ``python -m ragkit.cli serve INDEX``, the same code as in a notebook. RAGKIT_URL and RAGKIT_TOKEN tell it
where to connect, and RAGKIT_PARENT_PID which process it belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from ragkit.terminal import printable

TAIL_BYTES = 4_000
FIRST_DELAY_SECONDS = 1.0
MAX_DELAY_SECONDS = 60.0


class ChildState(enum.Enum):
    """The state of the child process."""

    IDLE = enum.auto()
    STARTING = enum.auto()
    SERVING = enum.auto()
    BACKOFF = enum.auto()
    STOPPED = enum.auto()


class ChildEngine:
    """A supervised ``ragkit serve`` process, started on demand.

    Args:
        index: The index to serve; "" if none is configured.
        environment: Returns the child's environment variables; called at each start.
        failed: Called with a readable reason when the child cannot start.
        log: Logs starts and exits, without tokens.
        command: The command to run; the index is appended.
        stop_timeout_seconds: How long to wait for the child to end before it is killed.
    """

    def __init__(
        self,
        index: str,
        *,
        environment: Callable[[], Mapping[str, str]],
        failed: Callable[[str], None],
        log: logging.Logger,
        command: Sequence[str] = (sys.executable, "-m", "ragkit.cli", "serve"),
        stop_timeout_seconds: float = 5,
    ) -> None:
        self.index = index
        self.state = ChildState.IDLE
        self._environment = environment
        self._failed = failed
        self._log = log
        self._command = tuple(command)
        self._stop_timeout_seconds = stop_timeout_seconds
        self._task: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._failures = 0
        self._next_start = 0.0  # by the event loop's clock
        self._last_reason = ""

    def start(self) -> str | None:
        """Start the child unless it runs; return the reason if it cannot be started now."""
        if self.state is ChildState.STOPPED:
            return "The server is stopping. Ask again after it has restarted."
        wait = self._next_start - asyncio.get_running_loop().time()
        if self.state is ChildState.BACKOFF and self._task is None and wait > 0:
            return f"{self._last_reason} It can be restarted in {wait:.0f} seconds."
        if self._task is None:
            self.state = ChildState.STARTING
            self._task = asyncio.create_task(self._run())
        return None

    def offered(self) -> None:
        """Note that an engine was offered; while the child is starting, assume that it is the child's."""
        if self.state is ChildState.STARTING:
            self.state = ChildState.SERVING

    async def _run(self) -> None:
        try:
            while True:
                started = asyncio.get_running_loop().time()
                reason = await self._run_once()
                served = self.state is ChildState.SERVING
                self.state = ChildState.BACKOFF
                if asyncio.get_running_loop().time() - started > MAX_DELAY_SECONDS:
                    self._failures = 0
                delay = min(FIRST_DELAY_SECONDS * 2**self._failures, MAX_DELAY_SECONDS)
                self._failures += 1
                self._next_start = asyncio.get_running_loop().time() + delay
                self._last_reason = reason
                self._log.warning("ragkit: %s", reason)
                if not served:
                    self._failed(reason)
                    return  # it cannot start: try again only at the next query
                # The listeners it was answering have got an error; newer queries wait for the restart.
                await asyncio.sleep(delay)
                self.state = ChildState.STARTING
        finally:
            self._task = None

    async def _run_once(self) -> str:
        """Run the child until it exits; return a description of how it ended."""
        environment = dict(self._environment())
        name = f"The engine for '{self.index}' (ragkit serve)"
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                self.index,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C in the terminal must only reach the server, which ends the child
            )
        except OSError as problem:
            return f"{name} could not be started: {problem}."
        self._log.info("ragkit: started an engine for '%s' (pid %d)", self.index, self._process.pid)
        tail = bytearray()
        reading = asyncio.create_task(_read_tail(self._process, tail))
        try:
            code = await self._process.wait()
            await asyncio.wait([reading], timeout=1)  # children of the child may keep the pipe open
        finally:
            reading.cancel()
            await self._end()
        output = tail.decode(errors="replace").strip()
        if token := environment.get("RAGKIT_TOKEN"):
            output = output.replace(token, "[secret]")
        output = printable(output[-TAIL_BYTES:])
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return f"{name} {how}. The end of its error output:\n{output or '(none)'}\n"

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), self._stop_timeout_seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    async def stop(self) -> None:
        """End the child permanently."""
        self.state = ChildState.STOPPED
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])


async def _read_tail(process: asyncio.subprocess.Process, tail: bytearray) -> None:
    """Read the child's stderr, so that the child never blocks, and keep the end of it."""
    if process.stderr is not None:
        while data := await process.stderr.read(65_536):
            tail += data
            del tail[
                : -2 * TAIL_BYTES
            ]  # twice what is shown, so that a token at the cut is complete and can be replaced


def child_environment(*, url: str, token: str) -> dict[str, str]:
    """Return the environment variables for a child that connects to ``url``."""
    environment = dict(os.environ)
    environment.update(RAGKIT_URL=url, RAGKIT_TOKEN=token, RAGKIT_PARENT_PID=str(os.getpid()))
    return environment
