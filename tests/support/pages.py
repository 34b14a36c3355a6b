"""The code blocks of README.md, CONTRIBUTING.md and docs/, and a runner for those of one page.

    python -m tests.support.pages BLOCKS.json [--hash-embedder]

runs blocks in order: Python in one namespace, where `await` works as in a notebook; commands of ragkit in a shell; SQL
in DuckDB. It is a process of its own, so that a page's engines, threads and settings end with it. With
``--hash-embedder`` the default embedder is one that needs no model.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from markdown_it import MarkdownIt

from ragkit.embedding.hashed import HashEmbedder

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+?) -->", re.DOTALL)
_SAME = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    """As the page says; empty for a drawing."""
    code: str
    not_run: str
    """Why it cannot be run: the comment ``<!-- not run: ... -->`` before it; empty for all others."""
    is_output: bool
    """Whether it stands right below a Python block: what that prints."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    blocks: list[Block] = []
    reason, previous = "", ""
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            assert token.map is not None
            is_output = token.info == "text" and previous == "python"
            name = page.relative_to(ROOT).as_posix()
            blocks.append(Block(name, token.map[0] + 1, token.info, token.content, reason, is_output))
            reason, previous = "", token.info
        else:
            assert not reason, f"{page.name}: no block follows the comment 'not run: {reason}'"
            match = NOT_RUN.search(token.content) if token.type == "html_block" else None
            reason, previous = match["reason"].strip() if match else "", ""
    return blocks


def commands_of(code: str) -> Iterator[list[str]]:
    """Yield the simple commands of a shell script, each as its words."""
    code = re.sub(r"(?m)(?<=\s)#.*$", "", code.replace("\\\n", " "))
    lexer = shlex.shlex(code, posix=True, punctuation_chars="&|;<>()\n")
    lexer.commenters = ""
    lexer.whitespace = " \t"
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, "\n"]:
        if word and set(word) <= set("&|;\n"):
            if words:
                yield words
            words = []
        else:
            words.append(word)


def runs_in_a_shell(block: Block) -> bool:
    """Whether a block of shell is run and not only looked at: it calls nothing but ragkit and this Python."""
    return block.language == "bash" and all(
        words[0] in ("ragkit", ".venv/bin/python") for words in commands_of(block.code)
    )


def run(blocks: list[Block]) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    output = ""
    for block in blocks:
        if block.language == "python":
            output = run_python(block, namespace)
        elif block.is_output:
            if not doctest.OutputChecker().check_output(block.code, output, _SAME):
                raise AssertionError(f"{block}: the page says\n{block.code}\nand the code prints\n{output}")
        elif block.language == "sql":
            import duckdb

            for statement in block.code.split(";"):
                if statement.strip():
                    rows = duckdb.sql(statement).fetchall()
                    assert rows, f"{block}: nothing is selected"
        elif runs_in_a_shell(block):
            code = re.sub(r"(?m)^\.venv/bin/python\b", shlex.quote(sys.executable), block.code)
            code = re.sub(r"(?m)^ragkit\b", f"{shlex.quote(sys.executable)} -m ragkit.cli", code)
            subprocess.run(["bash", "-euc", code], check=True, stdout=subprocess.DEVNULL)


def run_python(block: Block, namespace: dict[str, Any]) -> str:
    """Run a block as a notebook runs a cell; return what it printed."""
    code = "\n" * block.line + block.code  # so that tracebacks name the page's lines
    compiled = compile(code, block.page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(compiled, namespace)
        if inspect.iscoroutine(result):
            asyncio.run(result)
    return printed.getvalue()


def use_hash_embedder() -> None:
    import ragkit.engine.engine
    import ragkit.experiments.system

    for module in (ragkit.engine.engine, ragkit.experiments.system):
        module.SentenceTransformerEmbedder = HashEmbedder


if __name__ == "__main__":
    if "--hash-embedder" in sys.argv:
        use_hash_embedder()
    run([Block(*values) for values in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))])
