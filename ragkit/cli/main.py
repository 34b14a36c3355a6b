"""The command line: ``ragkit index``, ``check``, ``ask``, ``serve``, ``watch``, ``doctor``, ``sweep`` and ``runs``.

Exit status: 0 for success, 1 for failure (the reason is on stderr), 2 for invalid arguments, 130 after Ctrl-C.
Heavy libraries are imported by the commands that need them.
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
    """Turns expected errors into a message and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except RagkitError as error:
            _print_error(f"Error: {error}{_command_hint(error)}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt as error:
            kept = " What was indexed is kept; the same command goes on." if ctx.invoked_subcommand == "index" else ""
            _print_error(f"\nStopped.{kept}")
            raise typer.Exit(130) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Index a folder of documents, ask questions, get answers with citations, and watch runs live.",
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
    path: Annotated[str, typer.Argument(help="A folder (read recursively), a file, or the URL of a web page.")],
    index: Annotated[
        Path | None,
        typer.Option(help="Folder of the index. Default: RAGKIT_INDEX, else indexes/<name of the documents' folder>."),
    ] = None,
    rebuild: Annotated[bool, typer.Option("--rebuild", help="Delete the index's contents first.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Keep running and index changed files, until Ctrl-C.")] = False,
) -> None:
    """Create an index of a folder, or update it."""
    from ragkit.documents.sources import find_sources
    from ragkit.indexing.index import remove_index

    if not path.startswith(("http://", "https://")):
        find_sources(path)  # fail on a wrong path before loading models and, with --rebuild, before deleting the index
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
        typer.echo(f"Watching '{path}'. Press Ctrl-C to stop.")
        with engine.watch(path, on_report=lambda update: typer.echo(printable(str(update)))):
            while True:
                time.sleep(POLL_SECONDS)


@app.command()
def check(
    index: options.IndexArgument = None,
    repair: Annotated[bool, typer.Option("--repair", help="Repair differences between records and vectors.")] = False,
) -> None:
    """Check that an index's records, vectors and files are consistent."""
    engine = options.open_engine(options.existing_index(index), "ragkit check")
    found = engine.repair() if repair else engine.verify()
    typer.echo(printable(str(found)))
    if not found.is_sound:
        raise typer.Exit(1)


@app.command(no_args_is_help=True)
def ask(
    question: Annotated[str, typer.Argument(help="A question in natural language.")],
    index: options.IndexOption = None,
    k: options.PassagesOption = 5,
    llm: options.LLMOption = None,
    base_url: options.BaseURLOption = None,
    api_key_env: options.KeyOption = None,
    follow_ups: Annotated[bool, typer.Option(help="Suggest follow-up questions.")] = True,
    wait: Annotated[float, typer.Option(metavar="SECONDS", min=0, help="Time limit for follow-up questions.")] = 20.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
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

    streams = make_model is not None and not as_json and sys.stdout.isatty()
    answer = engine.ask(question, on_delta=stream if streams else None)
    if as_json:
        questions = answer.follow_ups(timeout_seconds=wait) if follow_ups else ()
        typer.echo(json.dumps(_as_json(answer, engine, questions)))
        return
    sources, following, looking = _LABELS.get(answer.language, _LABELS["en"])
    if streams:
        typer.echo("")
    if "".join(shown).strip() != answer.text:  # nothing was streamed, or invalid citation markers were removed
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
    """Answer queries that arrive on the socket, until Ctrl-C."""
    parent = os.environ.get("RAGKIT_PARENT_PID", "")
    make_model = options.find_model(llm, base_url, api_key_env)
    folder = options.existing_index(index)
    engine = options.open_engine(folder, "ragkit serve", make_model=make_model, k=k)
    engine.retrieve("Is everything there?")  # fail now if something is broken, and warm up for the first query
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    documents, passages = engine.document_index.counts()
    typer.echo(
        f"Serving '{folder}': {documents} documents, {passages} passages, {engine.llm.name}. Press Ctrl-C to stop."
    )
    serving = engine.serve()
    shown, was_connected = "", False
    with contextlib.suppress(KeyboardInterrupt):
        # As a child process of the hub it has no terminal, so it ends itself when its parent is gone.
        while not parent.isdigit() or os.getppid() == int(parent):
            state = engine.publisher.state
            if state != shown:
                typer.echo(printable(state))
                sys.stdout.flush()
                shown = state
            was_connected |= state.startswith("connected")
            if state.startswith("refused: ") and not was_connected:
                raise ServerError(state.removeprefix("refused: "))
            time.sleep(POLL_SECONDS)
    serving.stop()
    engine.publisher.close()
    typer.echo("Stopped.")


@app.command()
def watch(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
    url: options.URLOption = None,
    token: options.TokenOption = None,
    until: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE[,TYPE]", help="Exit with status 0 when all these message types have arrived. Repeatable."
        ),
    ] = None,
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="Exit after this time.")] = None,
    ask: Annotated[
        str | None, typer.Option("--ask", metavar="QUESTION", help="Ask a question on the socket and show the reply.")
    ] = None,
) -> None:
    """Show the events that notebooks and batch runs publish, as they happen."""
    import asyncio

    from rich.console import Console

    from ragkit.cli.watch import TYPES, JsonLines, Screen, show_messages
    from ragkit.live.listener import Subscription

    wanted = {name.strip() for names in until or () for name in names.split(",")}
    if unknown := wanted - TYPES:
        raise typer.BadParameter(f"no message type '{min(unknown)}'. The types are: {', '.join(sorted(TYPES))}.")
    if ask is not None and not ask.strip():
        raise EmptyQuestionError
    view = JsonLines() if as_json else Screen(Console())
    subscription = Subscription(
        url=url, token=token, timeout_seconds=timeout, report=lambda _level, text: _print_error(one_line(text))
    )
    try:
        with view:
            missing = asyncio.run(show_messages(subscription, view, until=wanted, question=ask))
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # The reader, for example `head`, has closed the pipe. Discard what is still buffered.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    if missing:
        _print_error(f"Not seen within {timeout:g} seconds: {', '.join(sorted(missing))}.")
        raise typer.Exit(1)


@app.command()
def doctor(
    index: options.IndexOption = None,
    llm: options.LLMOption = None,
    base_url: options.BaseURLOption = None,
    api_key_env: options.KeyOption = None,
    url: options.URLOption = None,
    token: options.TokenOption = None,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Time limit for each network step.")
    ] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> None:
    """Find the first layer that does not work, and how to fix it."""
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
        report = {
            "ok": not failed,
            "first_failure": failed[0] if failed else None,
            "findings": [dataclasses.asdict(finding) for finding in findings],
        }
        typer.echo(json.dumps(report))
    elif failed:
        typer.echo(f"\nThe first layer that fails is '{failed[0]}'. Fix it and run 'ragkit doctor' again.")
    else:
        typer.echo("\nNo layer fails.")
    if failed:
        raise typer.Exit(1)


add_commands(app)


# -------------------------------------------------------------------------------------- output


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


def _command_hint(error: RagkitError) -> str:
    """Return the command that fixes an error whose message advises Python code."""
    if isinstance(error, EmptyIndexError):
        return f"\nHere: ragkit index FOLDER --index {error.path}"
    if isinstance(error, IndexMismatchError | IndexCorruptError):
        return f"\nHere: ragkit index FOLDER --index {error.path} --rebuild"
    return ""


def _print_error(text: str) -> None:
    typer.echo(printable(text), err=True)


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook's streams have no reconfigure(), and need none
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    app(prog_name="ragkit")
