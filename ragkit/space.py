"""Search spaces: `choose` and `between` give several options, or a range, in place of one value, at any depth.

    System(retriever=choose(BM25(), Hybrid()), chunker=TokenChunker(max_tokens=choose(128, 256)))

stands for four systems. `expand` makes all combinations, `resolve` makes one. A dataclass that validates its
fields skips the validation while `has_choices` is true; the values made from it are validated instead.
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
    """The result of `choose`: the options, in the order given."""

    options: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"choose({', '.join(map(repr, self.options))})"


class Range(NamedTuple):
    """The result of `between`."""

    low: float
    high: float
    step: float | None
    log: bool

    def __repr__(self) -> str:
        step = f", step={self.step}" if self.step else ""
        return f"between({self.low}, {self.high}{step}{', log=True' if self.log else ''})"

    @property
    def whole(self) -> bool:
        """Whether the range contains integers only."""
        return all(isinstance(number, int) for number in (self.low, self.high, self.step or 1))

    @property
    def steps(self) -> int | None:
        """The number of steps from the lowest number to the highest; None if the range is continuous."""
        if self.step is None:
            return int(self.high - self.low) if self.whole else None
        return math.floor((self.high - self.low) / self.step + 1e-9)  # rounding: (1 - 0) / 0.1 may be just below ten


def choose(*options: Any) -> Any:
    """Give several options in place of one value.

    Args:
        options: One or more different options. They may contain choices themselves.

    Raises:
        InputError: No option is given.
    """
    if not options:
        raise InputError("choose() needs options, for example choose(128, 256).")
    return Choice(options)


def between(low: _Number, high: _Number, *, step: _Number | None = None, log: bool = False) -> _Number:
    """Give a range of numbers in place of one, from which `ragkit.experiments.tune` draws.

    The numbers are integers if the bounds and the step are, unless the dataclass field is declared ``float``.

    Args:
        low: The lowest number.
        high: The highest number. With a step, the last number that the steps reach.
        step: The distance between two numbers; None for a continuous range.
        log: Whether to draw uniformly from the logarithm: as many from 1 to 10 as from 10 to 100.

    Raises:
        InputError: The range is empty or infinite, or has both a step and a logarithm.
    """
    result = Range(low, high, step, log)
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise InputError(f"{result!r} has nothing to draw from. Give the lower bound first, for example between(0, 1).")
    if step is not None and not 0 < step <= high - low:
        raise InputError(f"{result!r} has an invalid step. Give one above 0 that fits between the bounds.")
    if log and (step is not None or low <= 0):
        raise InputError(f"{result!r} cannot be logarithmic. Give a lower bound above 0, and no step.")
    return cast(_Number, result)


def has_choices(value: Any) -> bool:
    """Return whether a value contains a choice or range: in a dataclass's fields, in a list, tuple or dict."""
    if isinstance(value, Choice | Range):
        return True
    return any(has_choices(part) for part in _parts(value)[1])


def expand(value: _T) -> list[_T]:
    """Return one value for each combination of its choices. The last choice varies fastest.

    Raises:
        InputError: A combination is not valid (the value's own validation says why), or the value contains a range.
    """
    return list(_expand(value))


def count(value: Any) -> float:
    """Return the number of combinations; infinite if a range is continuous."""
    if isinstance(value, Choice):
        return sum(count(option) for option in value.options)
    if isinstance(value, Range):
        return math.inf if value.steps is None else value.steps + 1
    return math.prod(count(part) for part in _parts(value)[1])


def resolve(value: _T, decide: _Decide) -> _T:
    """Replace every choice and range in a value by one decision, outermost first.

    Choices inside an option are decided only if that option was chosen.

    Args:
        value: A value with choices and ranges.
        decide: Called with the path of a choice or range, and with the choice or range itself. The path consists of
            field names and, after a choice, the index of the option: ``("retriever", 1, "dense_weight")``. Returns
            the index of an option, from 0, or a number in the range.

    Raises:
        InputError: The combination is not valid; the value's own validation says why.
    """
    return cast(_T, _resolve(value, decide, ()))


def _resolve(value: Any, decide: _Decide, path: tuple[str | int, ...]) -> Any:
    if isinstance(value, Choice):
        number = decide(path, value)
        return _resolve(value.options[number], decide, (*path, number))
    if isinstance(value, Range):
        return decide(path, value)
    if not has_choices(value):
        return value
    names, parts, rebuild = _parts(value)
    return rebuild([_resolve(part, decide, (*path, str(name))) for name, part in zip(names, parts, strict=True)])


def _expand(value: Any) -> Iterator[Any]:
    if isinstance(value, Choice):
        for option in value.options:
            yield from _expand(option)
    elif isinstance(value, Range):
        raise InputError(
            f"{value!r} has too many numbers to try all of them. Draw from it with ragkit.tune(), or use "
            "choose() with the numbers that you want."
        )
    elif not has_choices(value):
        yield value
    else:
        _, parts, rebuild = _parts(value)
        for chosen in itertools.product(*(list(_expand(part)) for part in parts)):
            yield rebuild(chosen)


def _parts(value: Any) -> tuple[Sequence[Any], Sequence[Any], Any]:
    """Return the names of a value's parts, the parts, and a function that rebuilds the value from other parts."""
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
    """Convert the bounds of ranges to float: between(0, 1) for a weight includes 0.5."""
    if isinstance(value, Choice):
        return Choice(tuple(map(_real, value.options)))
    return value._replace(low=float(value.low), high=float(value.high)) if isinstance(value, Range) else value
