"""What an experiment compares: a pipeline as plain values."""

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
    return SentenceTransformerEmbedder()  # one for all systems: a model is loaded once


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A set-up of the pipeline. Any field, and any field of a field, may be a `ragkit.choose`.

    Attributes:
        retriever: Ranks passages. In an experiment its search is exact.
        chunker: Cuts documents into passages; None leaves them whole, and the embedder reads what it can of each.
        embedder: Embeds passages and questions.
        rewriter: Makes of a question the texts that are searched for; None searches for the question.
        reranker: Puts the best passages into a better order; None leaves them in the retriever's.
        k: How many passages an answer is made from.
        instructions: Added to the model's prompt, for example ``"Answer in one sentence."``
        llm: Words the answers, if a measure looks at them; None quotes (`ragkit.engine.ExtractiveLLM`).
        label: What the system is called; made of what is not a default if empty.
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
        """The label, or else the retriever and everything that differs from the defaults."""
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
    """Write a value as it could have been written: a dataclass with the fields that are not defaults."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return str(getattr(value, "name", None) or repr(value))
    told = []
    for field in dataclasses.fields(value):
        mine = getattr(value, field.name)
        if field.init and field.repr and mine != field.default:
            told.append(f"{field.name}={described(mine) if dataclasses.is_dataclass(mine) else repr(mine)}")
    return f"{type(value).__name__}({', '.join(told)})"


def expand_systems(
    systems: System | Iterable[System] | Mapping[str, System], *, taken: Iterable[str] = ()
) -> list[System]:
    """Expand the choices in systems, and give each a name of its own.

    Args:
        systems: One, several, or several by name.
        taken: Names that are used already.

    Returns:
        Systems without choices, each with a ``label``.

    Raises:
        InputError: Two have the same name, or what was given is no system.
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
            raise InputError(f"{system!r} is no System. Write System(retriever=...), and choose(...) for several.")
        several = has_choices(dataclasses.replace(system, label=""))
        for one in expand(system):
            name = one.name
            if several and one.label:  # a label for all of a sweep: say which is which
                name = f"{one.label}: {dataclasses.replace(one, label='').name}"
            if name in found or name in taken:
                raise InputError(
                    f"Two systems are called '{name}'. Give one of them another label: System(label='...', ...)."
                )
            found[name] = dataclasses.replace(one, label=name)
    if not found:
        raise InputError(
            "There is no system to run. Give one: System(), or System(retriever=choose(BM25(), Hybrid()))."
        )
    return list(found.values())


def _labelled(system: Any, name: str) -> Any:
    return dataclasses.replace(system, label=name) if isinstance(system, System) else system
