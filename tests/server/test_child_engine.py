"""The child engine, with real processes."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from pathlib import Path

import pytest

from ragkit_server import child_engine as child_module
from ragkit_server.child_engine import ChildEngine, ChildState, child_environment

pytestmark = pytest.mark.anyio

LOG = logging.getLogger("test")


class Watched(ChildEngine):
    """A child whose failures are kept."""

    def __init__(self, code: str, **options: object) -> None:
        self.reasons: asyncio.Queue[str] = asyncio.Queue()
        super().__init__(
            "an-index",
            command=(sys.executable, "-c", code),
            environment=lambda: dict(os.environ, RAGKIT_TOKEN="s3cret"),
            failed=self.reasons.put_nowait,
            log=LOG,
            **options,
        )


async def next_reason(child: Watched) -> str:
    return await asyncio.wait_for(child.reasons.get(), 30)


async def wait_for_file(path: Path) -> None:
    for _ in range(1_500):
        if await asyncio.to_thread(lambda: path.exists() and path.stat().st_size):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the child did not start")


async def test_a_child_that_cannot_start_gives_the_reason_without_the_token() -> None:
    child = Watched("import os, sys; sys.exit(f'bad {sys.argv[1]}, token ' + os.environ['RAGKIT_TOKEN'])")
    assert child.start() is None
    assert child.start() is None, "it is being started already"
    reason = await next_reason(child)
    assert "bad an-index, token [secret]" in reason
    assert "exit code 1" in reason
    await asyncio.sleep(0)
    refusal = child.start()
    assert refusal is not None, "not at once again"
    assert "bad an-index" in refusal
    await child.stop()


async def test_it_restarts_on_a_query_after_the_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "FIRST_DELAY_SECONDS", 0.05)
    child = Watched("raise SystemExit(1)")
    child.start()
    await next_reason(child)
    await asyncio.sleep(0.1)
    assert child.reasons.empty(), "nobody asked"
    assert child.start() is None
    await next_reason(child)
    await child.stop()


async def test_a_child_that_has_served_restarts_automatically(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "FIRST_DELAY_SECONDS", 0.05)
    child = Watched("import time; time.sleep(0.3)")
    child.start()
    child.offered()
    assert child.state is ChildState.SERVING
    assert "exit code 0" in await next_reason(child), "the second, which has not served"
    await child.stop()


async def test_a_missing_program_is_reported() -> None:
    child = Watched("")
    child._command = ("/no/such/program",)
    child.start()
    assert "could not be started" in await next_reason(child)
    await child.stop()


async def test_stop_ends_the_child_permanently(tmp_path: Path) -> None:
    child = Watched(f"import os, time; open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)")
    child.start()
    await wait_for_file(tmp_path / "pid")
    await child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert child.start() is not None
    assert child.reasons.empty(), "to be ended is not to fail"


async def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    child = Watched(
        "import os, signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        f"open(r'{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)",
        stop_timeout_seconds=0.2,
    )
    child.start()
    await wait_for_file(tmp_path / "pid")
    await child.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_much_output_on_stderr_does_not_block_or_fill_memory() -> None:
    child = Watched("import sys; sys.stderr.write('x' * 5_000_000 + 'the end'); sys.exit(1)")
    child.start()
    reason = await next_reason(child)
    assert "the end" in reason
    assert len(reason) < 10_000
    await child.stop()


def test_the_environment_has_the_servers_address() -> None:
    environment = child_environment(url="http://127.0.0.1:1/x/", token="t")
    assert environment["RAGKIT_URL"] == "http://127.0.0.1:1/x/"
    assert environment["RAGKIT_TOKEN"] == "t"
    assert environment["RAGKIT_PARENT_PID"] == str(os.getpid())
