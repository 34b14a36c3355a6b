"""Dry runs: count the calls of an experiment to language models without making them.

Documents are chunked, embedded and searched as usual and the results are cached, because this costs only time. Models
are replaced by a stand-in that counts its input and returns a fixed paragraph, which is never cached. The input of
later stages is estimated from that reply: judges read the paragraph, and a rewritten query is the question itself.
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
_MAX_SEARCHED = 5_000  # objects searched for a hidden model
_PLAIN = (str, bytes, int, float, type, types.ModuleType, types.NoneType)
_MAX_TOKENS = 1_024  # for a model without max_tokens


@dataclasses.dataclass(slots=True)
class _Tally:
    calls: int = 0
    likely: Usage = Usage(0, 0)  # noqa: RUF009 - immutable
    maximum: Usage = Usage(0, 0)  # noqa: RUF009
    price: Price | None = None


class Estimate:
    """The estimated calls to models, by system and model; displayed as a table.

    Attributes:
        calls: The total number of calls.
        cost: The likely cost, in the currency of the models' prices.
        max_cost: The maximum cost, without retries.
    """

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._lock = threading.Lock()
        self.system = ""

    def add(self, model: str, messages: Sequence[Message], max_tokens: int, price: Price | None) -> None:
        """Count a call."""
        with self._lock:
            tally = self._tallies.setdefault((self.system, model), _Tally(price=price))
            tally.calls += 1
            tally.likely += likely_usage(messages, max_tokens)
            tally.maximum += most_usage(messages, max_tokens)

    @property
    def frame(self) -> pd.DataFrame:
        """One row per system and model: ``system``, ``model``, ``calls``, the likely ``input_tokens`` and
        ``output_tokens``, the likely ``cost`` and ``max_cost``; costs are NaN for a model without a price.
        """
        import pandas as pd

        rows = [
            (system, model, a.calls, a.likely.input_tokens, a.likely.output_tokens)
            + ((a.price.of(a.likely), a.price.of(a.maximum)) if a.price else (None, None))
            for (system, model), a in self._tallies.items()
        ]
        columns = ["system", "model", "calls", "input_tokens", "output_tokens", "cost", "max_cost"]
        frame = pd.DataFrame(rows, columns=columns)
        return frame.astype({"cost": float, "max_cost": float})

    @property
    def calls(self) -> int:
        return sum(tally.calls for tally in self._tallies.values())

    @property
    def cost(self) -> float:
        return sum(tally.price.of(tally.likely) for tally in self._tallies.values() if tally.price)

    @property
    def max_cost(self) -> float:
        return sum(tally.price.of(tally.maximum) for tally in self._tallies.values() if tally.price)

    def __repr__(self) -> str:
        head = f"{self.calls:,} calls, likely {self.cost:.4g} and at most {self.max_cost:.4g}"
        return f"{head}\n{self.frame.to_string(index=False)}" if self._tallies else "no calls to language models"

    def _repr_html_(self) -> str:
        import html

        return f"<p>{html.escape(repr(self).splitlines()[0])}</p>{self.frame.to_html(index=False, escape=True)}"


class _CountingLLM:
    """A stand-in that counts the input of a model, with the model's identity; its replies are not cached."""

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
    """Return a value with every language model in it replaced by a stand-in that only counts.

    Models are found in fields of dataclasses and in lists, tuples and dicts, at any depth.

    Raises:
        InputError: Another object holds a model, which cannot be replaced there.
    """
    return replace_models(value, lambda llm: _CountingLLM(llm, estimate), otherwise=_checked)


def _checked(value: Any) -> Any:
    if _hides_model(value):
        raise InputError(
            f"{value!r:.100} uses a language model that a dry run cannot replace. Make {type(value).__name__} a "
            "dataclass with the model as a field."
        )
    return value


def _hides_model(value: Any) -> bool:
    """Return whether a model is found in attributes or closures; the number of objects searched is limited."""
    seen: set[int] = set()
    waiting = [value]
    while waiting and len(seen) < _MAX_SEARCHED:
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
                with contextlib.suppress(ValueError):  # the cell is still empty
                    waiting.append(cell.cell_contents)
    return False


class DryResults(ResultCache):
    """The result cache of a dry run; values computed from the reply of a stand-in are not stored.

    Args:
        results: The result cache of the experiment.
        estimate: Counts the calls to models.
    """

    def __init__(self, results: ResultCache, estimate: Estimate) -> None:
        super().__init__(results.path)
        self.computed = results.computed
        self._estimate = estimate
        self._calls_before = 0

    def get(self, keys: Sequence[str]) -> dict[str, Any]:
        """See `ResultCache.get`; missing values are computed next."""
        self._calls_before = self._estimate.calls
        return super().get(keys)

    def put(self, stage: str, values: Mapping[str, Any]) -> None:
        """See `ResultCache.put`."""
        if self._estimate.calls == self._calls_before:
            super().put(stage, values)


class DryCalls(Calls):
    """Makes each call once, with stand-ins. Results that needed no model are cached, as in a run.

    Args:
        results: The result cache of the dry run.
        estimate: Counts the calls to models.
        cancelled: Returns True to stop.
    """

    def __init__(self, results: ResultCache, estimate: Estimate, *, cancelled: Callable[[], bool] = never) -> None:
        super().__init__(results, cancelled=cancelled)
        self._estimate = estimate

    def compute(
        self, stage: str, work: Mapping[str, Call], *, repeat: int = 1, keep: bool = True, alone: bool = False
    ) -> tuple[dict[str, Any], dict[str, FailedCall]]:
        """See `Calls.compute`; a call that cannot read the reply of a stand-in is a failure."""
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
