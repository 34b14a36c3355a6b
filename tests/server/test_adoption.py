"""Adoption of journals in any state, each event once."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from typing import Any

import filelock
import pytest

from ragkit_server.adoption import Journals
from ragkit_server.history.log import History
from ragkit_server.hub.manager import WebSocketManager
from tests.server.hub_fakes import Clock, Wire

pytestmark = pytest.mark.anyio

TIME = "2026-01-02T03:04:05+00:00"


def lines(publisher: str, *texts: str, start: int = 1) -> list[str]:
    origin = {"kind": "papermill", "name": "batch.ipynb", "run_id": publisher}
    return [
        json.dumps({"type": "hello", "publisher": publisher, "origin": origin}),
        *(
            json.dumps(
                {"type": "publish", "n": n, "event": {"type": "follow_up_questions", "questions": [text], "time": TIME}}
            )
            for n, text in enumerate(texts, start)
        ),
    ]


def write(folder: Path, publisher: str, *texts: str, end: str = "") -> Path:
    path = folder / f"{publisher}.jsonl"
    path.write_text("\n".join(lines(publisher, *texts)) + "\n" + end)
    return path


class Adopter:
    def __init__(self, folder: Path, clock: Clock, **options: Any) -> None:
        self.clock = clock
        self.manager = WebSocketManager(history=History(), timers=clock, log=logging.getLogger("test"))
        self.wire = Wire()
        self.manager.connect(self.wire)
        self.journals = Journals(folder, manager=self.manager, history="h", log=logging.getLogger("test"), **options)

    async def adopt(self) -> list[Any]:
        await self.journals.adopt()
        self.clock.advance()
        return self.wire.read()


@pytest.fixture
def adopter(tmp_path: Path, clock: Clock) -> Adopter:
    return Adopter(tmp_path, clock)


async def test_events_keep_order_time_and_origin_and_the_file_is_deleted(adopter: Adopter, tmp_path: Path) -> None:
    write(tmp_path, "p", "1", "2", "3")
    messages = await adopter.adopt()
    assert [m["questions"] for m in messages] == [["1"], ["2"], ["3"]]
    assert {m["time"] for m in messages} == {TIME}
    assert messages[0]["origin"] == {"kind": "papermill", "name": "batch.ipynb", "run_id": "p"}
    assert os.listdir(tmp_path) == []
    assert await adopter.adopt() == []


async def test_a_missing_folder_has_no_journals(tmp_path: Path, clock: Clock) -> None:
    assert await Adopter(tmp_path / "none", clock).adopt() == []


async def test_a_journal_locked_by_its_writer_is_not_adopted(adopter: Adopter, tmp_path: Path) -> None:
    path = write(tmp_path, "p", "1")
    with filelock.FileLock(f"{path}.lock"):
        assert await adopter.adopt() == []
        assert path.exists()
    assert len(await adopter.adopt()) == 1


async def test_two_adopters_adopt_once(tmp_path: Path) -> None:
    adopters = [Adopter(tmp_path, Clock()) for _ in range(2)]
    for number in range(20):
        write(tmp_path, f"p{number}", *(f"{number}.{n}" for n in range(50)))
    both = await asyncio.gather(*(adopter.adopt() for adopter in adopters))
    both += await asyncio.gather(*(adopter.adopt() for adopter in adopters))
    texts = [message["questions"][0] for messages in both for message in messages]
    assert sorted(texts) == sorted(f"{number}.{n}" for number in range(20) for n in range(50))


async def test_a_damaged_line_is_skipped_and_logged(
    adopter: Adopter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, "p", "1", "2")
    good = path.read_text().splitlines()
    path.write_bytes(
        "\n".join([good[0], good[1], "{nonsense", "", '{"type":"ping"}', good[2]]).encode() + b'\n{"type":"publ\xff'
    )
    assert [m["questions"] for m in await adopter.adopt()] == [["1"], ["2"]]
    assert "line 3" in caplog.text
    assert "line 7" in caplog.text


async def test_a_journal_with_many_damaged_lines_does_not_flood_the_log(
    adopter: Adopter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "p", "1", end="{nonsense\x1b[2J\n" * 10_000)
    assert [m["questions"] for m in await adopter.adopt()] == [["1"]]
    assert len([r for r in caplog.records if r.levelname == "WARNING"]) == 11
    assert "10000 lines" in caplog.text
    assert "\x1b" not in caplog.text


async def test_invalid_events_are_rejected_and_logged(
    adopter: Adopter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deep = {"type": "experiment_result", "task_id": "t", "experiment": "e", "row": {"deep": eval("[" * 60 + "]" * 60)}}
    refused = [
        {"type": "publish", "n": n, "event": e} for n, e in enumerate([{"type": "engines", "engines": []}, deep], 5)
    ]
    write(tmp_path, "p", "1", end="\n".join(map(json.dumps, refused)) + "\n")
    assert [m["questions"] for m in await adopter.adopt()] == [["1"]]
    assert "2 events of 'batch.ipynb' were rejected: The message is nested" in caplog.text
    assert os.listdir(tmp_path) == []


async def test_a_complete_last_line_without_a_newline_is_adopted(adopter: Adopter, tmp_path: Path) -> None:
    path = write(tmp_path, "p", "1", "2")
    path.write_text(path.read_text().rstrip("\n"))
    assert len(await adopter.adopt()) == 2


@pytest.mark.parametrize(
    "content",
    ["\n", "nonsense\n", "\n".join(lines("other", "1")), "\n".join(lines("p", "1")[1:]), "\0" * 1_000],
)
async def test_an_invalid_journal_is_renamed_and_logged(
    adopter: Adopter, tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    assert await adopter.adopt() == []
    assert (tmp_path / "p.jsonl.rejected").read_text() == content
    assert "not adopted" in caplog.text
    assert await adopter.adopt() == []


async def test_an_empty_journal_is_deleted(adopter: Adopter, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").touch()
    assert await adopter.adopt() == []
    assert os.listdir(tmp_path) == []


async def test_sizes_are_limited(tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    adopter = Adopter(tmp_path, clock, max_bytes=50_000, max_line_bytes=1_000)
    write(tmp_path, "long-line", "1", "x" * 5_000, "3")
    write(tmp_path, "long-file", *("x" * 500 for _ in range(200)))
    assert [m["questions"] for m in await adopter.adopt()] == [["1"], ["3"]]
    assert (tmp_path / "long-file.jsonl.rejected").exists()
    assert "max_journal_bytes" in caplog.text


async def test_a_claim_of_a_dead_server_is_adopted_before_the_new_journal(adopter: Adopter, tmp_path: Path) -> None:
    write(tmp_path, "p", "old").rename(tmp_path / "p.jsonl.claimed-h")
    (tmp_path / "p.jsonl").write_text("\n".join(lines("p", "new", start=2)))
    assert [m["questions"] for m in await adopter.adopt()] == [["old"], ["new"]]


async def test_events_that_came_over_the_socket_are_not_repeated(adopter: Adopter, tmp_path: Path) -> None:
    session = adopter.manager.attach(Wire())
    for line in lines("p", "1", "2"):
        adopter.manager.receive(session, line)
    write(tmp_path, "p", "1", "2", "3")
    assert [m["questions"] for m in await adopter.adopt()] == [["1"], ["2"], ["3"]]


async def test_a_link_out_of_the_folder_is_not_followed(
    adopter: Adopter, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = write(tmp_path_factory.mktemp("elsewhere"), "p", "1")
    (tmp_path / "p.jsonl").symlink_to(target)
    assert await adopter.adopt() == []
    assert target.exists()


async def test_links_and_pipes_are_not_adopted(
    adopter: Adopter, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    target = write(tmp_path_factory.mktemp("elsewhere"), "a", "1")
    for name in "abc":
        write(tmp_path, name, f"of {name}")
    (tmp_path / "a.jsonl.claimed-h").symlink_to(target)
    os.mkfifo(tmp_path / "b.jsonl.claimed-h")  # opening it would block, and the server could not exit
    adopting = asyncio.create_task(adopter.adopt())
    done, _ = await asyncio.wait([adopting], timeout=5)
    if not done:  # let the thread go, so that the test ends
        (tmp_path / "b.jsonl.claimed-h").open("wb", buffering=0).close()
    assert done
    assert [m["questions"] for m in await adopting] == [["of b"], ["of c"]]
    assert target.exists()
    assert (tmp_path / "b.jsonl.rejected").is_fifo()


async def test_a_line_that_is_not_utf8_is_skipped(adopter: Adopter, tmp_path: Path) -> None:
    path = write(tmp_path, "p", "1", "BAD", "3")
    path.write_bytes(path.read_bytes().replace(b"BAD", b"\xff"))
    write(tmp_path, "q", "4")
    assert [m["questions"] for m in await adopter.adopt()] == [["1"], ["3"], ["4"]]


async def test_text_of_a_journal_cannot_control_a_terminal(
    adopter: Adopter, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    origin = {"kind": "cli", "name": "demo\n[W] all is lost\x1b[2J", "run_id": "r"}
    (tmp_path / "p.jsonl").write_text(json.dumps({"type": "hello", "publisher": "p", "origin": origin}) + "\n")
    (tmp_path / "x\n\x1b[2J.jsonl").write_text("junk\n")
    await adopter.adopt()
    assert "demo [W] all is lost" in caplog.text
    assert not {message for message in caplog.messages if "\x1b" in message or "\n" in message}


async def test_an_unfinished_task_of_a_dead_process_fails(adopter: Adopter, tmp_path: Path) -> None:
    path = write(tmp_path, "p")
    event = {"type": "indexing_progress", "task_id": "t", "index": "i", "state": "running"}
    path.write_text(path.read_text() + json.dumps({"type": "publish", "n": 1, "event": event}))
    assert [m["state"] for m in await adopter.adopt()] == ["running"]
    adopter.clock.advance(11)
    assert [m["state"] for m in adopter.wire.read()] == ["failed"]


async def test_the_folder_is_scanned_periodically(adopter: Adopter, tmp_path: Path) -> None:
    adopter.journals.start(0.02)
    async with asyncio.timeout(30):
        for text in ("1", "2"):
            write(tmp_path, f"p{text}", text)
            while not adopter.wire.data:
                await asyncio.sleep(0.02)
                adopter.clock.advance()
            assert [m["questions"] for m in adopter.wire.read()] == [[text]]
    await adopter.journals.stop()
