"""Options that several commands share, and the functions that turn them into an engine, a model or an index."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from ragkit.errors import InputError

if TYPE_CHECKING:
    from ragkit.engine.engine import RAGEngine
    from ragkit.llm.base import GenerativeLLM

IndexOption = Annotated[
    Path | None,
    typer.Option("--index", help="Folder of the index. Default: RAGKIT_INDEX, else the only one in ./indexes."),
]
IndexArgument = Annotated[
    Path | None, typer.Argument(help="Folder of the index. Default: RAGKIT_INDEX, else the only one in ./indexes.")
]
PassagesOption = Annotated[int, typer.Option("-k", "--k", min=1, max=100, help="How many passages to retrieve.")]
LLMOption = Annotated[
    str | None,
    typer.Option(
        "--llm", metavar="MODEL", help="A model on an OpenAI-compatible server. Default: none; answers are quotes."
    ),
]
BaseURLOption = Annotated[
    str | None, typer.Option(metavar="URL", help="The model's server, such as http://localhost:11434/v1 for Ollama.")
]
KeyOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The environment variable with the API key of the model's server.")
]
URLOption = Annotated[str | None, typer.Option(metavar="URL", help="The Jupyter server. Default: detected.")]
TokenOption = Annotated[
    str | None, typer.Option(metavar="TOKEN", help="The Jupyter server's token. Default: RAGKIT_TOKEN, else detected.")
]


def find_model(model: str | None, base_url: str | None, api_key_env: str | None) -> Callable[[], GenerativeLLM] | None:
    """Validate the options about a model and return a function that creates it; None if no model is named."""
    if model is None:
        if base_url or api_key_env:
            raise typer.BadParameter("--base-url and --api-key-env also need --llm MODEL.")
        return None
    key = None
    if api_key_env is not None and not (key := os.environ.get(api_key_env)):
        raise typer.BadParameter(f"--api-key-env: the environment variable '{api_key_env}' is not set.")
    from ragkit.llm.openai import OpenAILLM

    return functools.partial(OpenAILLM, model, base_url=base_url, api_key=key)


def open_engine(
    folder: Path,
    name: str,
    *,
    make_model: Callable[[], GenerativeLLM] | None = None,
    k: int = 5,
    follow_ups: bool = True,
) -> RAGEngine:
    """Open an engine that publishes as the command ``name``."""
    from ragkit.engine.engine import RAGEngine
    from ragkit.live.origin import find_origin
    from ragkit.live.publisher import Publisher

    publisher = Publisher(origin=find_origin(kind="cli", name=name))
    llm = make_model() if make_model is not None else None
    return RAGEngine(folder, llm=llm, k=k, follow_ups=follow_ups, publisher=publisher)


INDEXES = Path("indexes")


def find_index(given: Path | None) -> Path:
    """Return the index to use: the one given, else RAGKIT_INDEX, else the only one in ./indexes.

    Raises:
        InputError: There is no index to choose, or more than one; the message lists them.
    """
    if found := given or index_from_environment():
        return found
    here = _indexes()
    if len(here) == 1:
        return here[0]
    what = f"There are several: {', '.join(map(str, here))}" if here else f"There is none in '{INDEXES.absolute()}'"
    how = "Name one" if here else "Create one with 'ragkit index FOLDER', or name one"
    raise InputError(f"Which index? {what}. {how} (--index FOLDER or RAGKIT_INDEX).")


def existing_index(given: Path | None) -> Path:
    """Return the index to use, as `find_index` does, if it exists.

    Raises:
        InputError: No index could be chosen, or it does not exist.
    """
    folder = find_index(given)
    if not (folder / "index.db").exists():
        others = f" There are: {', '.join(map(str, _indexes()))}." if _indexes() else ""
        raise InputError(f"There is no index at '{folder}'. Make it: ragkit index FOLDER --index {folder}.{others}")
    return folder


def default_index(documents: str | Path) -> Path:
    """Return the default index folder for documents: ``indexes/NAME``, named after their folder or the page's host."""
    if str(documents).startswith(("http://", "https://")):
        return INDEXES / (urlsplit(str(documents)).hostname or "pages")
    place = Path(documents).resolve()
    return INDEXES / ((place if place.is_dir() else place.parent).name or "documents")


def index_from_environment() -> Path | None:
    """Return the index that RAGKIT_INDEX names."""
    named = os.environ.get("RAGKIT_INDEX")
    return Path(named) if named else None


def _indexes() -> list[Path]:
    return sorted(path.parent for path in INDEXES.glob("*/index.db"))
