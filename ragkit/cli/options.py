"""What commands share: their options, and which engine, model or server is meant by them."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ragkit.engine.engine import RAGEngine
    from ragkit.live.discovery import Server
    from ragkit.llm.prompt import GenerativeLLM

__all__ = [
    "BaseURLOption", "IndexOption", "KeyOption", "LLMOption", "TokenOption", "URLOption", "find_model", "named_server",
    "open_engine",
]  # fmt: skip

IndexOption = Annotated[
    Path | None,
    typer.Option("--index", help="Folder of the index. Default: RAGKIT_INDEX, else the only one in ./indexes."),
]
LLMOption = Annotated[
    str | None, typer.Option("--llm", metavar="MODEL", help="A model on an OpenAI-compatible server. Default: quotes.")
]
BaseURLOption = Annotated[
    str | None, typer.Option(metavar="URL", help="That server, such as http://localhost:11434/v1 for Ollama.")
]
KeyOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The environment variable that holds the server's API key.")
]
URLOption = Annotated[str | None, typer.Option(metavar="URL", help="The Jupyter server. Default: found.")]
TokenOption = Annotated[str | None, typer.Option(metavar="TOKEN", help="Its token. Default: RAGKIT_TOKEN, or found.")]


def find_model(model: str | None, base_url: str | None, api_key_env: str | None) -> Callable[[], GenerativeLLM] | None:
    """Check the options about a model, and give what makes it."""
    if model is None:
        if base_url or api_key_env:
            raise typer.BadParameter("--base-url and --api-key-env need --llm MODEL: which model is meant?")
        return None
    key = None
    if api_key_env is not None and not (key := os.environ.get(api_key_env)):
        raise typer.BadParameter(f"--api-key-env: the environment variable '{api_key_env}' is not set.")
    from ragkit.llm.prompt import OpenAILLM

    return functools.partial(OpenAILLM, model, base_url=base_url, api_key=key)


def open_engine(
    folder: Path,
    name: str,
    *,
    make_model: Callable[[], GenerativeLLM] | None = None,
    k: int = 5,
    follow_ups: bool = True,
) -> RAGEngine:
    from ragkit.engine.engine import RAGEngine
    from ragkit.live.discovery import find_origin
    from ragkit.live.publisher import Publisher

    publisher = Publisher(origin=find_origin(kind="cli", name=name))
    llm = make_model() if make_model is not None else None
    return RAGEngine(folder, llm=llm, k=k, follow_ups=follow_ups, publisher=publisher)


def named_server(url: str | None, token: str | None) -> Server:
    from ragkit.live.discovery import find_server

    env = dict(os.environ)
    if url is not None:
        if env.get("RAGKIT_URL", url) != url:
            env.pop("RAGKIT_TOKEN", None)  # it is another server's
        env["RAGKIT_URL"] = url
    server = find_server(env=env)
    return dataclasses.replace(server, token=token) if token is not None else server
