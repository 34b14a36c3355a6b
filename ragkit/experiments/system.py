"""A system: the configuration of a RAG pipeline, as plain values that an experiment compares."""

from __future__ import annotations

import dataclasses
import functools
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from ragkit.chunking.base import Chunker
from ragkit.chunking.structure import StructureChunker
from ragkit.embedding.base import Embedder
from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
from ragkit.errors import InputError, require_count
from ragkit.llm.base import LLM
from ragkit.retrieval.base import QueryRewriter, Reranker, Retriever
from ragkit.retrieval.retrievers import Hybrid
from ragkit.space import expand, has_choices


@functools.cache
def _default_embedder() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder()  # shared by all systems, so that the model is loaded once


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A configuration of the pipeline. Any field, at any depth, may be a `ragkit.choose`.

    Attributes:
        retriever: Ranks passages. In an experiment its search is exact (no approximate nearest neighbours).
        chunker: Splits documents into passages; None keeps documents whole, and the embedder truncates each.
        embedder: Embeds passages and questions.
        rewriter: Rewrites a question into one or more search queries; None searches for the question itself.
        reranker: Reranks the best passages; None keeps the retriever's order.
        k: The number of passages that an answer is generated from.
        instructions: Text added to the model's prompt, for example ``"Answer in one sentence."``
        llm: Generates the answers, if a measure needs them; None quotes passages (`ragkit.engine.ExtractiveLLM`).
        label: The name of the system; if empty, a name made of the settings that differ from the defaults.
    """

    retriever: Retriever = dataclasses.field(default_factory=Hybrid)
    chunker: Chunker | None = dataclasses.field(default_factory=StructureChunker)
    embedder: Embedder = dataclasses.field(default_factory=_default_embedder)
    rewriter: QueryRewriter | None = None
    reranker: Reranker | None = None
    k: int = 5
    instructions: str = ""
    llm: LLM | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if not has_choices(self):
            require_count("k", self.k)

    @property
    def name(self) -> str:
        """The label, or else the retriever and every setting that differs from its default."""
        if self.label:
            return self.label
        parts = [described(self.retriever)]
        if self.chunker is None:
            parts.append("whole documents")
        elif self.chunker != StructureChunker():
            parts.append(described(self.chunker))
        if self.embedder.name != _default_embedder().name:
            parts.append(self.embedder.name)
        for stage in (self.rewriter, self.reranker, self.llm):
            if stage is not None:
                parts.append(described(stage))
        if self.k != 5:
            parts.append(f"k={self.k}")
        if self.instructions:
            parts.append(repr(textwrap.shorten(self.instructions, 60, placeholder="…")))
        return ", ".join(parts)


def described(value: Any) -> str:
    """Return a short description of a value: of a dataclass, the constructor call without default values."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return str(getattr(value, "name", None) or repr(value))
    arguments = []
    for field in dataclasses.fields(value):
        current = getattr(value, field.name)
        if field.init and field.repr and current != field.default:
            arguments.append(
                f"{field.name}={described(current) if dataclasses.is_dataclass(current) else repr(current)}"
            )
    return f"{type(value).__name__}({', '.join(arguments)})"


def expand_systems(
    systems: System | Iterable[System] | Mapping[str, System], *, taken: Iterable[str] = ()
) -> list[System]:
    """Expand the choices in systems and give each resulting system a unique name.

    Args:
        systems: One system, several, or a dict of systems by name.
        taken: Names that are already in use.

    Returns:
        Systems without choices, each with a ``label``.

    Raises:
        InputError: Two systems have the same name, there is no system, or a value is not a `System`.
    """
    if isinstance(systems, System):
        given = [systems]
    elif isinstance(systems, Mapping):
        given = [_labelled(system, name) for name, system in systems.items()]
    else:
        given = list(systems)
    found: dict[str, System] = {}
    for system in given:
        if not isinstance(system, System):
            raise InputError(f"{system!r} is not a System. Write System(retriever=...), and choose(...) for several.")
        several = has_choices(dataclasses.replace(system, label=""))
        for one in expand(system):
            name = one.name
            if several and one.label:  # a shared label does not identify one system of the sweep
                name = f"{one.label}: {dataclasses.replace(one, label='').name}"
            if name in found or name in taken:
                raise InputError(
                    f"Two systems are named '{name}'. Give one of them another label: System(label='...', ...)."
                )
            found[name] = dataclasses.replace(one, label=name)
    if not found:
        raise InputError(
            "There is no system to run. Pass one: System(), or System(retriever=choose(BM25(), Hybrid()))."
        )
    return list(found.values())


def _labelled(system: Any, name: str) -> Any:
    return dataclasses.replace(system, label=name) if isinstance(system, System) else system
