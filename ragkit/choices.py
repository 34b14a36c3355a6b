"""`choose`: several options where one value is expected, at any depth.

    System(retriever=choose(BM25(), Hybrid()), chunker=TokenChunker(max_tokens=choose(128, 256)))

stands for four systems. A dataclass that checks its fields leaves that to the values that `expand` makes of it
(`is_open`).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, cast

from ragkit.errors import InputError

__all__ = ["Choice", "choose", "expand", "is_open"]

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """What `choose` returns: the options, in the order given."""

    options: tuple[Any, ...]


def choose(*options: _T) -> _T:
    """Stand for each of several options.

    Args:
        options: One or more, each once. They may hold choices themselves.

    Raises:
        InputError: There is none.
    """
    if not options:
        raise InputError("choose() needs options, for example choose(128, 256).")
    return cast(_T, Choice(options))


def is_open(value: Any) -> bool:
    """Tell whether there is a choice in a value: in a dataclass's fields, in a list, tuple or dict."""
    if isinstance(value, Choice):
        return True
    return any(is_open(part) for part in _parts(value)[0])


def expand(value: _T) -> list[_T]:
    """Return a value for every combination of the choices in it; the last choice varies fastest.

    Raises:
        InputError: A combination is not valid; the value's own check says why.
    """
    return list(_expand(value))


def _expand(value: Any) -> Iterator[Any]:
    if isinstance(value, Choice):
        for option in value.options:
            yield from _expand(option)
    elif not is_open(value):
        yield value
    else:
        parts, made_of = _parts(value)
        for chosen in itertools.product(*(list(_expand(part)) for part in parts)):
            yield made_of(chosen)


def _parts(value: Any) -> tuple[Sequence[Any], Any]:
    """What a value is made of, and how to make one like it of other parts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.init]
        return [getattr(value, name) for name in names], lambda parts: dataclasses.replace(
            value, **dict(zip(names, parts, strict=True))
        )
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return value, type(value)
    if isinstance(value, dict):
        return list(value.values()), lambda parts: dict(zip(value, parts, strict=True))
    return (), None
