"""`choose` and `between`: several options, or a range of numbers, where one value is expected, at any depth.

    System(retriever=choose(BM25(), Hybrid()), chunker=TokenChunker(max_tokens=choose(128, 256)))

stands for four systems. A dataclass that checks its fields leaves that to the values that are made of it
(`has_choices`), by `expand`, which makes all of them, or by `resolve`, which makes one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from ragkit.errors import InputError

_T = TypeVar("_T")
_Number = TypeVar("_Number", int, float)
_Decide = Callable[[tuple[str | int, ...], "Choice | Range"], Any]


class Choice(NamedTuple):
    """What `choose` returns: the options, in the order given."""

    options: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"choose({', '.join(map(repr, self.options))})"


class Range(NamedTuple):
    """What `between` returns."""

    low: float
    high: float
    step: float | None
    log: bool

    def __repr__(self) -> str:
        step = f", step={self.step}" if self.step else ""
        return f"between({self.low}, {self.high}{step}{', log=True' if self.log else ''})"

    @property
    def whole(self) -> bool:
        """Whether all numbers in it are whole."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def steps(self) -> int | None:
        """How many steps lead from the lowest number to the highest; None if any number between them will do."""
        if self.step is None:
            return int(self.high - self.low) if self.whole else None
        return math.floor((self.high - self.low) / self.step + 1e-9)  # (1 - 0) / 0.1 may lack a little of ten


def choose(*options: Any) -> Any:
    """Stand for each of several options.

    Args:
        options: One or more, each once. They may hold choices themselves.

    Raises:
        InputError: There is none.
    """
    if not options:
        raise InputError("choose() needs options, for example choose(128, 256).")
    return Choice(options)


def between(low: _Number, high: _Number, *, step: _Number | None = None, log: bool = False) -> _Number:
    """Stand for the numbers of a range, from which `ragkit.experiments.tune` draws.

    They are whole if the ends and the step are, unless they are for a field of a dataclass that is declared ``float``.

    Args:
        low: The lowest.
        high: The highest; with a step, the last one that it reaches is.
        step: From one number to the next; None for all of them.
        log: Whether to draw from the range's logarithm: as many from 1 to 10 as from 10 to 100.

    Raises:
        InputError: The range is empty or endless, or has both a step and a logarithm.
    """
    found = Range(low, high, step, log)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{found!r} holds nothing to draw from. Give the lower end first, for example between(0, 1).")
    if step is not None and not 0 < step <= high - low:
        raise InputError(f"{found!r} cannot take its step. Give one above 0 that fits between the ends.")
    if log and (step is not None or low <= 0):
        raise InputError(f"{found!r} has no logarithm to draw from. Give a lower end above 0, and no step.")
    return cast(_Number, found)


def has_choices(value: Any) -> bool:
    """Tell whether there is a choice or range in a value: in a dataclass's fields, in a list, tuple or dict."""
    if isinstance(value, Choice | Range):
        return True
    return any(has_choices(part) for part in _parts(value)[1])


def expand(value: _T) -> list[_T]:
    """Return a value for every combination of the choices in it; the last choice varies fastest.

    Raises:
        InputError: A combination is not valid, and the value's own check says why; or there is a range in it.
    """
    return list(_expand(value))


def count(value: Any) -> float:
    """Return how many combinations there are; infinite if a range has numbers without a step."""
    if isinstance(value, Choice):
        return sum(count(option) for option in value.options)
    if isinstance(value, Range):
        return math.inf if value.steps is None else value.steps + 1
    return math.prod(count(part) for part in _parts(value)[1])


def resolve(value: _T, decide: _Decide) -> _T:
    """Return a value with everything in it decided, from the outside in: what an option holds, once it is chosen.

    Args:
        value: With choices and ranges.
        decide: Called with where a choice or range stands, and with the choice or range: names of fields, and after a
            choice the number of its option, such as ``("retriever", 1, "dense_weight")``. Returns the number of an
            option, from 0, or a number in the range.

    Raises:
        InputError: The combination is not valid; the value's own check says why.
    """
    return cast(_T, _settle(value, decide, ()))


def _settle(value: Any, decide: _Decide, at: tuple[str | int, ...]) -> Any:
    if isinstance(value, Choice):
        number = decide(at, value)
        return _settle(value.options[number], decide, (*at, number))
    if isinstance(value, Range):
        return decide(at, value)
    if not has_choices(value):
        return value
    names, parts, made_of = _parts(value)
    return made_of([_settle(part, decide, (*at, str(name))) for name, part in zip(names, parts, strict=True)])


def _expand(value: Any) -> Iterator[Any]:
    if isinstance(value, Choice):
        for option in value.options:
            yield from _expand(option)
    elif isinstance(value, Range):
        raise InputError(
            f"{value!r} stands for more numbers than can all be tried. Draw from it with ragkit.tune(), or write "
            "choose() with the numbers that you want."
        )
    elif not has_choices(value):
        yield value
    else:
        _, parts, made_of = _parts(value)
        for chosen in itertools.product(*(list(_expand(part)) for part in parts)):
            yield made_of(chosen)


def _parts(value: Any) -> tuple[Sequence[Any], Sequence[Any], Any]:
    """What the parts of a value are called, what they are, and how to make one like it of other parts."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field for field in dataclasses.fields(value) if field.init]
        names = [field.name for field in fields]
        parts = [
            _real(getattr(value, field.name)) if "float" in str(field.type) else getattr(value, field.name)
            for field in fields
        ]
        return names, parts, lambda parts: dataclasses.replace(value, **dict(zip(names, parts, strict=True)))
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return range(len(value)), value, type(value)
    if isinstance(value, dict):
        return list(value), list(value.values()), lambda parts: dict(zip(value, parts, strict=True))
    return (), (), None


def _real(value: Any) -> Any:
    """Ranges with ends that need not be whole: who writes between(0, 1) for a weight means 0.5, too."""
    if isinstance(value, Choice):
        return Choice(tuple(map(_real, value.options)))
    return value._replace(low=float(value.low), high=float(value.high)) if isinstance(value, Range) else value
