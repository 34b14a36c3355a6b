"""Every code block of README, CONTRIBUTING and docs/ is run or checked, by its language:

=========  ====================================================================================================
python     run, all blocks of a page in order in one namespace, with a few documents of data/
text       after Python: its output. Otherwise commands of ragkit (checked like bash), or the files of a run
bash       commands of ragkit and of this Python are run; for others, targets, options, paths and extras must exist
sql        run with DuckDB
json       parsed; test_protocol_docs.py decodes the examples of protocol.md
js         syntax check by Node.js; tests/frontend runs the clients
(none)     a drawing
=========  ====================================================================================================

A block that cannot be run has a comment before it with the reason: ``<!-- not run: ... -->``.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import typer
import yaml
from jupyterlab.labapp import LabApp
from packaging.requirements import Requirement
from traitlets.config import Config
from traitlets.config.loader import PyFileConfigLoader

from ragkit.cli.main import app
from ragkit_server.app import RagkitApp
from tests.server.live_server import TOKEN, Server, start_server
from tests.support.commands import environment
from tests.support.llm_servers import Connection, RawServer
from tests.support.pages import PAGES, ROOT, Block, blocks_of, commands_of, runs_in_a_shell

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
CHECKED = ("python", "text", "bash", "sql", "json", "js", "")
FAKE_ENGINE = Path(__file__).parent / "server" / "fake_engine.py"


def of(*languages: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language in languages and not block.not_run]
    return pytest.mark.parametrize("block", chosen, ids=str)


def test_every_block_is_checked_or_has_a_reason() -> None:
    assert [str(block) for block in BLOCKS if block.language not in CHECKED and not block.not_run] == []
    assert [(str(block), block.not_run) for block in BLOCKS if block.not_run and len(block.not_run) < 20] == []
    assert sum(bool(block.not_run) for block in BLOCKS) <= 3, "few blocks cannot be run"


# ------------------------------------------------------------------------------- execution


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The Jupyter server for the pages, with an engine that answers at once."""
    command = [f"--RagkitApp.engine_command={word}" for word in (sys.executable, str(FAKE_ENGINE))]
    server = start_server(
        tmp_path_factory.mktemp("server"), *command, "--RagkitApp.index=indexes/handbook",
        "--ServerApp.allow_origin=http://localhost:5173",
    )  # fmt: skip
    yield server
    server.stop()


@pytest.fixture(scope="module")
def llm() -> Iterator[RawServer]:
    """The OpenAI-compatible server for the pages."""

    def answer(connection: Connection) -> None:
        connection.start_stream()
        connection.say("It is normalised discounted cumulative gain. [1]")
        connection.say(None, finish="stop")
        connection.end_stream()

    with RawServer(answer) as server:
        yield server


def write_notebook(folder: Path) -> None:
    """Write the notebook that docs/runs.md sweeps."""
    parameters = nbformat.v4.new_code_cell("chunk_size, retriever = 128, 'bm25'", metadata={"tags": ["parameters"]})
    record = nbformat.v4.new_code_cell(
        "import pandas as pd, ragkit\nragkit.record(ndcg=chunk_size / 1000, ranks=pd.DataFrame({'rank': [1, 2, 1]}))"
    )
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[parameters, record], metadata=kernel), folder / "notebook.ipynb")


def copy_data(folder: Path) -> None:
    """Copy a few pages of the handbook and the questions that they answer, which are embedded in seconds."""
    shutil.copytree(ROOT / "data", folder / "data")
    kept = ("bm25.md", "reranking.md", "fr/bm25-en-pratique.md", "fr/recherche-en-francais.md")
    for path in (folder / "data" / "handbook").rglob("*.md"):
        if path.relative_to(folder / "data" / "handbook").as_posix() not in kept:
            path.unlink()
    questions = folder / "data" / "questions"
    head, *rows = (questions / "qrels.tsv").read_text(encoding="utf-8").splitlines()
    elsewhere = {row.split("\t")[0] for row in rows if row.split("\t")[1] not in kept}
    rows = [row for row in rows if row.split("\t")[0] not in elsewhere]
    (questions / "qrels.tsv").write_text("\n".join([head, *rows, ""]), encoding="utf-8")
    ids = {row.split("\t")[0] for row in rows}
    for name in ("queries.jsonl", "spans.jsonl"):
        lines = (questions / name).read_text(encoding="utf-8").splitlines()
        chosen = [line for line in lines if json.loads(line)["_id"] in ids]
        (questions / name).write_text("\n".join([*chosen, ""]), encoding="utf-8")


RUN = ("python", "sql", "text", "bash")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "page", [page for page in PAGES if any(b.language == "python" for b in blocks_of(page))], ids=lambda page: page.name
)
def test_a_page_runs(page: Path, tmp_path: Path, server: Server, llm: RawServer) -> None:
    copy_data(tmp_path)
    if page.name == "runs.md":
        write_notebook(tmp_path)
    blocks = [block for block in blocks_of(page) if block.language in RUN and not block.not_run]
    blocks = [block for block in blocks if "get_config()" not in block.code]  # test_a_configuration_file_is_read
    here = {
        "localhost:8000": f"127.0.0.1:{server.port}",
        '"TOKEN"': f'"{TOKEN}"',
        "http://localhost:11434/v1": llm.url,
    }
    code = json.dumps(blocks)
    for shown, real in here.items():
        code = code.replace(json.dumps(shown)[1:-1], json.dumps(real)[1:-1])
    (tmp_path / "blocks.json").write_text(code, encoding="utf-8")
    done = subprocess.run(
        # The output in README needs the default model; the other pages use the hash embedder.
        [sys.executable, "-m", "tests.support.pages", "blocks.json", *["--hash-embedder"][page.name == "README.md" :]],
        cwd=tmp_path,
        env=environment(tmp_path, server, HF_HUB_OFFLINE="1"),
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for block in blocks:
        if lists_a_run(block):
            for name in re.findall(r"^ {4}(\S+)", block.code, re.MULTILINE):
                assert [*tmp_path.glob(f"runs/*/{name}")], f"{block}: no run has {name}"


def lists_a_run(block: Block) -> bool:
    return block.language == "text" and block.code.startswith("runs/")


@pytest.mark.parametrize("block", [b for b in BLOCKS if "get_config()" in b.code and b.language == "python"], ids=str)
def test_a_configuration_file_is_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "config.py").write_text(block.code, encoding="utf-8")
    check_config(PyFileConfigLoader("config.py", str(tmp_path)).load_config())


# ------------------------------------------------------------------------------- shell


@of("bash")
def test_a_shell_block_is_valid(block: Block) -> None:
    code = re.sub(r"<(this repository|your fork|ce dépôt)>", "URL", block.code)  # for the reader to fill in
    subprocess.run(["bash", "-n"], input=code, text=True, check=True)
    if not runs_in_a_shell(block):
        for words in commands_of(code):
            check_command(words)


@of("text")
def test_a_list_of_commands_is_valid(block: Block) -> None:
    if not block.is_output and not lists_a_run(block):
        commands = [text for line in block.code.splitlines() for text in re.split(r"\s{2,}", line) if text]
        named = [text for text in commands if text.startswith("ragkit ")]
        assert named, "a block of text is a program's output, a list of commands, or a list of files"
        for text in named:
            check_command(text.split())


def test_inline_commands_are_valid() -> None:
    """Check commands in single backticks, in all pages."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        for command in re.findall(r"`((?:ragkit|make|pip|conda|jupyter) [^`]+)`", text):
            if page.name != "CHANGELOG.md" and "\n" not in command:
                for words in commands_of(command.replace("...", "VALUE")):
                    check_command(words)


OTHERS = {"git", "cd", "export", "echo", "curl", "head"}


def check_command(words: list[str]) -> None:
    match words:
        case ["make", *rest]:
            check_make(rest)
        case ["ragkit", *rest]:
            check_ragkit(rest)
        case ["jupyter", *rest]:
            check_jupyter(rest)
        case ["pip", "install", *rest]:
            check_pip(rest)
        case ["conda", "env", "create", "-f", path]:
            assert (ROOT / path).is_file()
        case ["conda", "activate", name]:
            assert name == yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["name"]
        case [name, *_]:
            assert name in OTHERS or (name == "pip" and words[1] in ("download", "uninstall")), words


def check_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, value = word.partition("=")
        if not is_variable:
            assert re.search(rf"^{re.escape(name)}:", makefile, re.MULTILINE), f"make has no target {name!r}"
            continue
        assert name == "PYTHON" or f"$({name})" in makefile, f"make reads no variable {name!r}"
        if name == "ARGS" and value.startswith("tests"):
            path, *options = value.split()
            assert (ROOT / path).exists(), word
            for chosen in options[1:] if options[:1] == ["-k"] else []:
                assert re.search(rf"def test_\w*{chosen}", (ROOT / path).read_text(encoding="utf-8")), word


def check_ragkit(words: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    context = command.make_context("ragkit", [], resilient_parsing=True)
    while words and hasattr(command, "get_command"):
        found = command.get_command(context, words[0])
        assert found is not None or words[0].startswith("-") or not command.list_commands(context) or context.parent, (
            f"ragkit has no command {words[0]!r}"
        )
        if found is None:
            break
        command, words = found, words[1:]
        context = command.make_context(command.name, [], parent=context, resilient_parsing=True)
    options = {option for parameter in command.get_params(context) for option in parameter.opts}
    for word in words:
        if re.fullmatch(r"\[?--?[a-zA-Z][\w-]*.*", word):
            assert word.strip("[]").partition("=")[0] in options, f"{context.command_path} has no option {word}"


def check_jupyter(words: list[str]) -> None:
    kind, *options = words
    assert kind in ("lab", "server", "labextension", "ragkit"), words
    config = Config()
    for option in options:
        name, _, value = option.removeprefix("--").partition("=")
        if "." in name:
            section, trait = name.split(".")
            config[section][trait] = value
        elif option.startswith("--"):
            assert name in {**LabApp.aliases, **LabApp.flags}, option
    check_config(config)


def check_config(config: Config) -> None:
    classes = {
        each.__name__: each for each in [*LabApp().classes, *LabApp.mro(), RagkitApp] if hasattr(each, "class_traits")
    }
    assert {
        f"{name}.{trait}" for name in config for trait in config[name] if not classes[name].class_traits().get(trait)
    } == set()


@functools.cache
def pip_options() -> str:
    command = [sys.executable, "-m", "pip", "install", "--help"]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {*project["optional-dependencies"]}
    for word in words:
        if word.startswith("-"):
            assert re.search(rf"(?<!\S){re.escape(word.partition('=')[0])}\b", pip_options()), (
                f"pip has no option {word}"
            )
            continue
        name, _, named = word.strip("'").rstrip("]").partition("[")
        if name in (".", "./") or re.match(r"(\./|\S*/)?ragkit_lab-", name):
            assert {*filter(None, named.split(","))} <= extras, word
        elif "://" not in word and Path(word).suffix != ".txt":
            requirement = Requirement(word.strip("'"))
            assert requirement.name != project["name"] or requirement.extras <= extras, word


# ------------------------------------------------------------------------------- JSON and JavaScript


@of("json")
def test_json_is_json(block: Block) -> None:
    json.loads(block.code)


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js")
def test_javascript_is_javascript(tmp_path: Path) -> None:
    files = []
    for number, block in enumerate(block for block in BLOCKS if block.language == "js" and not block.not_run):
        files.append(tmp_path / f"{number}.mjs")
        files[-1].write_text(block.code, encoding="utf-8")
        done = subprocess.run(
            ["node", "--check", files[-1]], capture_output=True, text=True, env=os.environ, timeout=60
        )
        assert done.returncode == 0, f"{block}: {done.stderr}"
    assert files
