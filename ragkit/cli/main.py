"""The command line: ``ragkit index``, ``check``, ``ask``, ``serve``, ``watch``, ``doctor``, ``sweep`` and ``runs``.

Exit status: 0 when it went well, 1 when it did not (the reason is on stderr), 2 for a command that
makes no sense, 130 after Ctrl-C. Heavy libraries are imported by the commands that need them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ragkit.cli import options
from ragkit.cli.runs import add_commands
from ragkit.errors import (
    EmptyIndexError,
    EmptyQuestionError,
    IndexCorruptError,
    IndexMismatchError,
    InputError,
    RagkitError,
    ServerError,
)
from ragkit.terminal import one_line, printable

if TYPE_CHECKING:
    from ragkit.engine.answer import Answer
    from ragkit.engine.engine import RAGEngine

POLL_SECONDS = 0.5

_LABELS = {
    "en": ("Sources", "Next", "Looking for follow-up questions …"),
    "fr": ("Sources", "Pour continuer", "Recherche de questions pour continuer …"),
}


class _Commands(TyperGroup):
    """Turns expected errors into a message and an exit status, in one place."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RagkitError as error:
            _say(f"Error: {error}{_in_the_terminal(error)}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            kept = " What was indexed is kept; the same command goes on." if ctx.invoked_subcommand == "index" else ""
            _say(f"\nStopped.{kept}")
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Index a folder of documents, ask it questions with cited answers, and watch every run live.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import ragkit

        typer.echo(f"ragkit {ragkit.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


@app.command(no_args_is_help=True)
def index(
    path: Annotated[str, typer.Argument(help="A folder, read recursively, a file, or the address of a page.")],
    index: Annotated[
        Path | None,
        typer.Option(help="Folder of the index. Default: RAGKIT_INDEX, else indexes/<the documents' folder>."),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Throw away what the index holds first.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on: index again as files change, until Ctrl-C.")] = False,
) -> None:
    """Make an index of a folder, or bring it up to date."""
    from ragkit.documents.sources import find_sources
    from ragkit.indexing.index import remove_index

    if not path.startswith(("http://", "https://")):
        find_sources(path)  # a wrong path must cost neither seconds nor, with --rebuild, an index
    folder = index or options.index_from_environment() or options.default_index(path)
    try:
        engine = options.open_engine(folder, "ragkit index")
    except (IndexMismatchError, IndexCorruptError):
        if not rebuild:
            raise
        remove_index(folder)
        engine = options.open_engine(folder, "ragkit index")
    typer.echo(f"Indexing '{path}' into '{folder}'")
    report = engine.index(path, rebuild=rebuild)
    typer.echo(printable(str(report)))
    if report.failed and not (report.added or report.updated or report.unchanged):
        raise InputError(f"No document could be read from '{path}'. The reasons are above.")
    option = f" --index {shlex.quote(str(folder))}" if options.index_from_environment() != folder else ""
    typer.echo(f"The index is in '{folder}'. Next: ragkit ask{option} 'a question'")
    if watch:
        typer.echo(f"Watching '{path}'. Ctrl-C ends it.")
        with engine.watch(path, on_report=lambda news: typer.echo(printable(str(news)))):
            while True:
                time.sleep(POLL_SECONDS)


@app.command()
def check(
    index: options.IndexArgument = None,
    repair: Annotated[bool, typer.Option("--repair", help="Make records and vectors agree again.")] = False,
) -> None:
    """Compare an index's records, vectors and files."""
    engine = options.open_engine(options.existing_index(index), "ragkit check")
    found = engine.repair() if repair else engine.verify()
    typer.echo(printable(str(found)))
    if not found.is_sound:
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def ask(
    question: Annotated[str, typer.Argument(help="In any words.")],
    index: options.IndexOption = None,
    k: options.PassagesOption = 5,
    llm: options.LLMOption = None,
    base_url: options.BaseURLOption = None,
    api_key_env: options.KeyOption = None,
    follow_ups: Annotated[bool, typer.Option(help="Whether to look for questions to ask next.")] = True,
    wait: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="How long to wait for them.")] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Answer a question from an index, with citations."""
    if not question.strip():
        raise EmptyQuestionError
    make_model = options.find_model(llm, base_url, api_key_env)
    engine = options.open_engine(
        options.existing_index(index), "ragkit ask", make_model=make_model, k=k, follow_ups=follow_ups
    )
    shown: list[str] = []

    def stream(piece: str) -> None:
        shown.append(piece)
        typer.echo(printable(piece), nl=False)

    live = make_model is not None and not as_json and sys.stdout.isatty()
    answer = engine.ask(question, on_delta=stream if live else None)
    if as_json:
        questions = answer.follow_ups(timeout_seconds=wait) if follow_ups else ()
        typer.echo(json.dumps(_as_json(answer, engine, questions)))
        return
    sources, following, looking = _LABELS.get(answer.language, _LABELS["en"])
    if live:
        typer.echo("")
    if "".join(shown).strip() != answer.text:  # nothing was streamed, or markers that name no passage were taken out
        typer.echo(("\n" if shown else "") + printable(answer.text))
    if answer.citations:
        typer.echo(f"\n{sources}")
        typer.echo(str(answer).removeprefix(printable(answer.text)).strip())
    if follow_ups and not answer.abstained:
        if sys.stderr.isatty():
            typer.echo(looking, err=True)
        if questions := answer.follow_ups(timeout_seconds=wait):
            typer.echo("\n".join(["", following, *(f"  • {one_line(q)}" for q in questions)]))


@app.command()
def serve(
    index: options.IndexArgument = None,
    k: options.PassagesOption = 5,
    llm: options.LLMOption = None,
    base_url: options.BaseURLOption = None,
    api_key_env: options.KeyOption = None,
) -> None:
    """Answer what is asked on the socket, until Ctrl-C."""
    parent = os.environ.get("RAGKIT_PARENT_PID", "")
    make_model = options.find_model(llm, base_url, api_key_env)
    folder = options.existing_index(index)
    engine = options.open_engine(folder, "ragkit serve", make_model=make_model, k=k)
    engine.retrieve("Is everything there?")  # what cannot work says so now, and the first question does not wait
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    documents, passages = engine.document_index.counts()
    typer.echo(f"Serving '{folder}': {documents} documents, {passages} passages, {engine.llm.name}. Ctrl-C ends it.")
    serving = engine.serve()
    told, was_connected = "", False
    with contextlib.suppress(KeyboardInterrupt):
        # The hub's own child: its terminal is gone when its parent is, and nobody else would end it.
        while not parent.isdigit() or os.getppid() == int(parent):
            state = engine.publisher.state
            if state != told:
                typer.echo(printable(state))
                sys.stdout.flush()
                told = state
            was_connected |= state.startswith("connected")
            if state.startswith("refused: ") and not was_connected:
                raise ServerError(state.removeprefix("refused: "))
            time.sleep(POLL_SECONDS)
    serving.stop()
    engine.publisher.close()
    typer.echo("Stopped.")


@app.command()
def watch(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    url: options.URLOption = None,
    token: options.TokenOption = None,
    until: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPE[,TYPE]", help="End well when each of these messages has come. May be repeated."),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="End after this time.")] = None,
    ask: Annotated[
        str | None, typer.Option("--ask", metavar="QUESTION", help="Ask this on the socket, and show the reply.")
    ] = None,
) -> None:
    """Show live what notebooks and batch runs publish."""
    import asyncio

    from rich.console import Console

    from ragkit.cli.watch import TYPES, JsonLines, Screen, show_messages
    from ragkit.live.listener import Subscription

    wanted = {name.strip() for names in until or () for name in names.split(",")}
    if unknown := wanted - TYPES:
        raise typer.BadParameter(f"no message type '{min(unknown)}'. There are: {', '.join(sorted(TYPES))}.")
    if ask is not None and not ask.strip():
        raise EmptyQuestionError
    view = JsonLines() if as_json else Screen(Console())
    subscription = Subscription(
        url=url, token=token, timeout_seconds=timeout, report=lambda _level, text: _say(one_line(text))
    )
    try:
        with view:
            missing = asyncio.run(show_messages(subscription, view, until=wanted, question=ask))
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # Whoever read has had enough, as `head` does. What is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if missing:
        _say(f"Not seen within {timeout:g} seconds: {', '.join(sorted(missing))}.")
        raise typer.Exit(1)


@app.command()
def doctor(
    index: options.IndexOption = None,
    llm: options.LLMOption = None,
    base_url: options.BaseURLOption = None,
    api_key_env: options.KeyOption = None,
    url: options.URLOption = None,
    token: options.TokenOption = None,
    timeout: Annotated[float, typer.Option(metavar="SECONDS", min=0.1, help="For each step over the network.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Find the layer that does not work, and what to do."""
    from ragkit.cli.doctor import Doctor
    from ragkit.live.discovery import find_server

    examination = Doctor(
        find=lambda: find_server(url=url, token=token),
        index=lambda: options.find_index(index),
        llm=options.find_model(llm, base_url, api_key_env),
        timeout_seconds=timeout,
    ).examine()
    findings = []
    for finding in examination:
        findings.append(finding)
        if not as_json:
            typer.echo(printable(str(finding)))
    failed = [finding.layer for finding in findings if finding.status == "failed"]
    if as_json:
        told = {
            "ok": not failed,
            "first_failure": failed[0] if failed else None,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        typer.echo(json.dumps(told))
    elif failed:
        typer.echo(f"\nThe first layer that fails is '{failed[0]}': mend it and run 'ragkit doctor' again.")
    else:
        typer.echo("\nNothing fails.")
    if failed:
        raise typer.Exit(1)


add_commands(app)


# ---------------------------------------------------------------------------------- small things


def _as_json(answer: Answer, engine: RAGEngine, questions: tuple[str, ...]) -> dict[str, Any]:
    return {
        "question": answer.question,
        "answer": answer.text,
        "abstained": answer.abstained,
        "sources": [dataclasses.asdict(citation) for citation in answer.citations],
        "follow_up_questions": list(questions),
        "index": str(engine.document_index.path),
        "model": answer.model,
        "language": answer.language,
        "seconds": round(answer.seconds, 3),
    }


def _in_the_terminal(error: RagkitError) -> str:
    """What a notebook would do about it, as a command."""
    if isinstance(error, EmptyIndexError):
        return f"\nHere: ragkit index FOLDER --index {error.path}"
    if isinstance(error, IndexMismatchError | IndexCorruptError):
        return f"\nHere: ragkit index FOLDER --index {error.path} --rebuild"
    return ""


def _say(text: str) -> None:
    typer.echo(printable(text), err=True)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook's own streams cannot be told, and need not be
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="ragkit")
