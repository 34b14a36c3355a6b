"""What an experiment would ask of language models, before it asks: a dry run.

Documents are cut and searched as always, and kept: that costs nothing but time. Models are replaced by one that counts
what it is given and says nothing worth keeping. What follows from a reply is guessed from such a reply: an answer of a
paragraph where a judge is to read one, the question itself where it is to be rewritten.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ragkit.cancellation import never
from ragkit.errors import InputError, LLMError
from ragkit.experiments.calls import Call, Calls, FailedCall
from ragkit.experiments.replies import Replies, is_model, replace_models
from ragkit.experiments.result_cache import ResultCache
from ragkit.llm.base import LLM, Message, Usage
from ragkit.llm.metering import Price, likely_usage, most_usage
from ragkit.llm.prompt import Prompt

if TYPE_CHECKING:
    import pandas as pd

_T = TypeVar("_T")
_ANSWER = ("An answer of a paragraph says in a few sentences what the passages say, and where. [1] " * 9).strip()
_MOST_LOOKED_AT = 5_000  # objects in which a model may hide
_PLAIN = (str, bytes, int, float, type, types.ModuleType, types.NoneType)
_MAX_TOKENS = 1_024  # of a model that does not say


@dataclasses.dataclass(slots=True)
class _Asked:
    calls: int = 0
    likely: Usage = Usage(0, 0)  # noqa: RUF009 - a value, never changed
    most: Usage = Usage(0, 0)  # noqa: RUF009
    price: Price | None = None


class Estimate:
    """What calls are to be made, by system and model; shows itself as a table.

    Attributes:
        calls: How many in all.
        cost: What they are likely to cost, in the currency of the models' prices.
        max_cost: The most that they can cost, unless they have to be made again.
    """

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], _Asked] = {}
        self._lock = threading.Lock()
        self.system = ""

    def add(self, model: str, messages: Sequence[Message], max_tokens: int, price: Price | None) -> None:
        """Count a call."""
        with self._lock:
            asked = self._asked.setdefault((self.system, model), _Asked(price=price))
            asked.calls += 1
            asked.likely += likely_usage(messages, max_tokens)
            asked.most += most_usage(messages, max_tokens)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a system and model: ``system``, ``model``, ``calls``, the likely ``input_tokens`` and
        ``output_tokens``, the likely ``cost`` and ``max_cost``; costs are NaN for a model without a price.
        """
        import pandas as pd

        rows = [
            (system, model, a.calls, a.likely.input_tokens, a.likely.output_tokens)
            + ((a.price.of(a.likely), a.price.of(a.most)) if a.price else (None, None))
            for (system, model), a in self._asked.items()
        ]
        columns = ["system", "model", "calls", "input_tokens", "output_tokens", "cost", "max_cost"]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype({"cost": float, "max_cost": float})

    @property
    def calls(self) -> int:
        return sum(asked.calls for asked in self._asked.values())

    @property
    def cost(self) -> float:
        return sum(asked.price.of(asked.likely) for asked in self._asked.values() if asked.price)

    @property
    def max_cost(self) -> float:
        return sum(asked.price.of(asked.most) for asked in self._asked.values() if asked.price)

    def __repr__(self) -> str:
        head = f"{self.calls:,} calls, likely {self.cost:.4g} and at most {self.max_cost:.4g}"
        return f"{head}\n{self.frame.to_string(index=False)}" if self._asked else "no calls to language models"

    def _repr_html_(self) -> str:
        import html

        return f"<p>{html.escape(repr(self).splitlines()[0])}</p>{self.frame.to_html(index=False, escape=True)}"


class _Counted:
    """A model that notes what it is given, under the identity of the one that it stands for; no reply is kept."""

    is_stand_in = is_transparent = True

    def __init__(self, llm: Any, estimate: Estimate) -> None:
        self._llm = llm
        self._estimate = estimate
        self.name: str = llm.name
        self.generative = True
        self.max_tokens = int(getattr(llm, "max_tokens", _MAX_TOKENS))
        self.price: Price | None = getattr(llm, "price", None)
        self.inner = llm

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Iterator[str]:
        self._estimate.add(self.name, prompt.messages(), self.max_tokens, self.price)
        yield _ANSWER

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> str:
        self._estimate.add(self.name, messages, max_tokens, self.price)
        return _ANSWER


def dry(value: _T, estimate: Estimate) -> _T:
    """Return a value with every language model in it replaced by one that only counts.

    Models are looked for in fields of dataclasses and in lists, tuples and dicts, at any depth.

    Raises:
        InputError: There is a model in something else, where it cannot be replaced.
    """
    return replace_models(value, lambda llm: _Counted(llm, estimate), otherwise=_without_model)


def _without_model(value: Any) -> Any:
    if _hides_model(value):
        raise InputError(
            f"{value!r:.100} asks a language model, and cannot be tried without it. Make {type(value).__name__} a "
            "dataclass with the model as a field."
        )
    return value


def _hides_model(value: Any) -> bool:
    """Look for a model in attributes and closures, as far as there are not too many of them."""
    seen: set[int] = set()
    waiting = [value]
    while waiting and len(seen) < _MOST_LOOKED_AT:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _PLAIN):
            continue
        seen.add(id(each))
        if is_model(each):
            return True
        if isinstance(each, Mapping):
            waiting += each.values()
        elif isinstance(each, list | tuple | set | frozenset):
            waiting += each
        else:
            waiting += getattr(each, "__dict__", {}).values()
            slots = itertools.chain.from_iterable(getattr(kind, "__slots__", ()) for kind in type(each).__mro__)
            waiting += [getattr(each, name, None) for name in slots]
            for cell in getattr(each, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # not filled yet
                    waiting.append(cell.cell_contents)
    return False


class DryResults(ResultCache):
    """Results of a dry run: what was computed while a model was asked is not kept, for that model said nothing.

    Args:
        results: What was computed before.
        estimate: Counts what models are asked.
    """

    def __init__(self, results: ResultCache, estimate: Estimate) -> None:
        super().__init__(results.path)
        self.computed = results.computed
        self._estimate = estimate
        self._asked = 0

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """See `ResultCache.get`; what is missing is computed next."""
        self._asked = self._estimate.calls
        return super().get(keys)

    def put(self, stage: str, values: Mapping[str, Any]) -> None:
        """See `ResultCache.put`."""
        if self._estimate.calls == self._asked:
            super().put(stage, values)


class DryCalls(Calls):
    """Makes each call once. What asked no model is kept, as it is in a run.

    Args:
        results: What was computed before.
        estimate: Counts what models are asked.
        cancelled: True stops.
    """

    def __init__(self, results: ResultCache, estimate: Estimate, *, cancelled: Callable[[], bool] = never) -> None:
        super().__init__(results, cancelled=cancelled)
        self._estimate = estimate

    def compute(
        self, stage: str, work: Mapping[str, Call], *, repeat: int = 1, keep: bool = True, alone: bool = False
    ) -> tuple[dict[str, Any], dict[str, FailedCall]]:
        """See `Calls.compute`; what a reply that says nothing makes fail is a failure."""
        found = self._results.get(list(work)) if keep else {}
        failures: dict[str, FailedCall] = {}
        models: dict[int, tuple[LLM, Any]] = {}
        for key, call in work.items():
            if key in found:
                continue
            before = self._estimate.calls
            replies = Replies(self._results, stage, repeat=repeat, models=models)
            try:
                found[key] = replies.read(functools.partial(call, replies, self._cancelled))
            except LLMError as error:
                failures[key] = FailedCall(stage, type(error).__name__, str(error))
            else:
                if keep and self._estimate.calls == before:
                    self._results.put(stage, {key: found[key]})
        return found, failures
