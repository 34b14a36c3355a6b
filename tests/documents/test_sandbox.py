"""A file that crashes, hangs or exhausts its parser does not affect other files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ragkit.documents.document import Document
from ragkit.documents.sandbox import Reader
from ragkit.documents.sources import find_sources
from ragkit.errors import DocumentError, OperationCancelled

Parser = Callable[[str], None]


@pytest.fixture
def parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parser:
    """Replace the PDF parser in the child process by a given program."""

    def install(program: str) -> None:
        (tmp_path / "fake").mkdir()
        (tmp_path / "fake" / "pypdf.py").write_text(textwrap.dedent(program))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "fake"))

    return install


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "a.md").write_text("# A\n\nThe first.\n")
    (folder / "b.pdf").write_bytes(b"%PDF-1.4")
    (folder / "c.md").write_text("# C\n\nL'été dernier.\n")
    return folder


def read_all(reader: Reader, folder: Path) -> list[Document | DocumentError]:
    items: list[Document | DocumentError] = []
    for source in find_sources(folder).sources:
        try:
            items += reader.read(source)
        except DocumentError as error:
            items.append(error)
    return items


def test_documents_and_failures_pass_through_unchanged(folder: Path) -> None:
    (folder / "b.pdf").unlink()
    (folder / "rows.jsonl").write_text('{"_id": "1", "text": "one"}\n{"broken\n{"_id": "2", "text": "two"}\n')
    with Reader() as reader:
        a, c, *rows = read_all(reader, folder)
    assert isinstance(a, Document)
    assert isinstance(c, Document)
    assert (a.id, a.title, a.text, a.marks[0].label) == ("a.md", "A", "# A\n\nThe first.\n", "A")
    assert c.text == "# C\n\nL'été dernier.\n"
    assert [row.id for row in rows if isinstance(row, Document)] == ["rows.jsonl#1", "rows.jsonl#2"]
    assert [row.source for row in rows if isinstance(row, DocumentError)] == [f"{folder / 'rows.jsonl'}, line 2"]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import os; os.abort()", r"crashed its parser \(SIGABRT\)"),
        ("import os; os._exit(3)", r"crashed its parser \(exit code 3\)"),
        ("import time; time.sleep(1e6)", "not read in 2 s"),
        ("while True: pass", "not read in 2 s"),
        ("x = [b'x' * 10**6 for _ in range(10**5)]", "memory"),
        ("import ctypes; ctypes.string_at(0)", r"crashed its parser \(SIGSEGV\)"),
    ],
    ids=["abort", "exit", "sleep", "spin", "memory", "segfault"],
)
def test_a_bad_file_does_not_affect_other_files(parser: Parser, folder: Path, program: str, reason: str) -> None:
    parser(program)
    with Reader(timeout_seconds=2, memory_bytes=700 * 2**20) as reader:
        a, b, c = read_all(reader, folder)
    assert isinstance(a, Document)
    assert isinstance(c, Document)
    with pytest.raises(DocumentError, match=reason):
        raise b  # type: ignore[misc]


def test_the_output_of_a_parser_is_not_a_message(parser: Parser, folder: Path) -> None:
    parser("import os; print('\\x00' * 1000, flush=True); os.write(1, b'noise'); raise ValueError('not a PDF')")
    with Reader() as reader:
        _, b, _ = read_all(reader, folder)
    assert isinstance(b, DocumentError)
    assert "not a PDF" in b.reason


def test_close_ends_a_read_in_progress(parser: Parser, folder: Path) -> None:
    parser("import time; time.sleep(1e6)")
    reader = Reader()
    threading.Timer(0.5, reader.close).start()
    began = time.monotonic()
    with pytest.raises(OperationCancelled):
        list(reader.read(find_sources(folder / "b.pdf").sources[0]))
    assert time.monotonic() - began < 20
    with pytest.raises(OperationCancelled):
        list(reader.read(find_sources(folder / "a.md").sources[0]))


def test_an_abandoned_read_does_not_affect_the_next(folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(f'{{"_id": "{n}", "text": "row {n}"}}\n' for n in range(50_000)))
    (source,) = find_sources(folder / "rows.jsonl").sources
    with Reader() as reader:
        items = reader.read(source)
        next(items)
        items.close()  # type: ignore[attr-defined]
        assert len(list(reader.read(find_sources(folder / "a.md").sources[0]))) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("program", ["import time; time.sleep(1e6)", "while True: pass"], ids=["sleep", "spin"])
def test_the_child_ends_with_its_parent(parser: Parser, folder: Path, program: str) -> None:
    parser(program)
    code = textwrap.dedent(
        f"""
        from pathlib import Path
        from ragkit.documents.sources import find_sources
        from ragkit.documents.sandbox import Reader
        list(Reader().read(find_sources({str(folder / "b.pdf")!r}).sources[0]))
        """
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
    deadline = time.monotonic() + 30
    while not (children := psutil.Process(parent.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
