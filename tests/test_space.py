from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from ragkit.chunking.structure import StructureChunker
from ragkit.chunking.token import TokenChunker
from ragkit.errors import InputError
from ragkit.experiments.system import System, expand_systems
from ragkit.retrieval.retrievers import BM25, Dense, Hybrid
from ragkit.space import Choice, between, choose, count, expand, has_choices, resolve


def test_choices_at_any_depth_are_expanded() -> None:
    system = System(
        retriever=choose(BM25(), Hybrid(dense_weight=choose(0.3, 0.5))),
        chunker=TokenChunker(max_tokens=choose(64, 128)),
    )
    found = expand(system)
    assert [(s.retriever, s.chunker) for s in found] == [
        (retriever, TokenChunker(max_tokens=size))
        for retriever in (BM25(), Hybrid(dense_weight=0.3), Hybrid(dense_weight=0.5))
        for size in (64, 128)
    ]
    assert not any(map(has_choices, found))


def test_values_are_validated_when_they_are_made() -> None:
    wrong = Hybrid(dense_weight=choose(0.5, 1.5))
    with pytest.raises(InputError, match="between 0 and 1"):
        expand(wrong)
    with pytest.raises(InputError, match="choose\\(\\) needs options"):
        choose()


def test_lists_and_dicts_may_contain_choices() -> None:
    @dataclasses.dataclass(frozen=True)
    class Holds:
        several: tuple[int, ...]
        by_name: dict[str, int]

    found = expand(Holds((1, choose(2, 3)), {"a": choose(4, 5)}))
    assert [(h.several, h.by_name["a"]) for h in found] == [((1, 2), 4), ((1, 2), 5), ((1, 3), 4), ((1, 3), 5)]


def test_a_range_is_drawn_from_and_not_expanded() -> None:
    system = System(retriever=Hybrid(dense_weight=between(0, 1)))
    assert has_choices(system)
    for of_many in (expand, expand_systems):
        with pytest.raises(InputError, match=r"between\(0\.0, 1\.0\) has too many numbers.*ragkit\.tune\(\)"):
            of_many(system)
    assert System(chunker=TokenChunker(max_tokens=between(64, 128, step=32))).name == (
        "Hybrid(), TokenChunker(max_tokens=between(64, 128, step=32))"
    )


@pytest.mark.parametrize(
    ("low", "high", "options", "message"),
    [
        (1, 1, {}, "nothing to draw from"),
        (2, 1, {}, "nothing to draw from"),
        (0, float("inf"), {}, "nothing to draw from"),
        (float("nan"), 1, {}, "nothing to draw from"),
        (0, 1, {"step": 0}, "step"),
        (0, 1, {"step": 2}, "step"),
        (0, 1, {"step": float("nan")}, "step"),
        (0, 1, {"log": True}, "logarithm"),
        (1, 5, {"log": True, "step": 1}, "logarithm"),
    ],
)
def test_invalid_ranges_are_rejected(low: float, high: float, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        between(low, high, **options)


def test_choices_in_an_option_are_decided_only_if_it_is_chosen() -> None:
    system = System(
        retriever=choose(BM25(), Hybrid(dense_weight=between(0, 1), depth=choose(50, between(60, 90)))),
        chunker=choose(choose(TokenChunker(max_tokens=64), None), StructureChunker()),
    )
    asked: dict[tuple[str | int, ...], str] = {}

    def last(at: tuple[str | int, ...], part: Any) -> Any:
        asked[at] = repr(part)
        return len(part.options) - 1 if isinstance(part, Choice) else part.high

    assert resolve(system, last) == System(retriever=Hybrid(dense_weight=1.0, depth=90))
    asked.pop(("retriever",))
    asked.pop(("chunker",))
    assert asked == {
        ("retriever", 1, "dense_weight"): "between(0.0, 1.0)",  # a float field: the bounds become floats
        ("retriever", 1, "depth"): "choose(50, between(60, 90))",
        ("retriever", 1, "depth", 1): "between(60, 90)",
    }
    first = resolve(system, lambda at, part: 0)
    assert (first.retriever, first.chunker) == (BM25(), TokenChunker(max_tokens=64))


@pytest.mark.parametrize(
    ("value", "combinations"),
    [
        (System(), 1),
        (System(retriever=choose(BM25(), Hybrid(depth=choose(1, 2))), chunker=choose(None, StructureChunker())), 6),
        (TokenChunker(max_tokens=between(1, 10)), 10),
        (TokenChunker(max_tokens=between(1, 10, step=4)), 3),
        (Hybrid(dense_weight=between(0, 1, step=0.1)), 11),
        (Hybrid(dense_weight=choose(2.0, between(0, 1))), math.inf),
        ([between(1, 2), {"a": between(1, 3)}], 6),
    ],
)
def test_combinations_are_counted(value: Any, combinations: float) -> None:
    assert count(value) == combinations


def test_names_say_what_differs_from_the_defaults() -> None:
    assert System().name == "Hybrid()"
    assert System(retriever=BM25("documents"), chunker=None).name == "BM25(over='documents'), whole documents"
    assert System(chunker=StructureChunker(max_tokens=100)).name == "Hybrid(), StructureChunker(max_tokens=100)"
    systems = expand_systems([System(retriever=choose(BM25(), Dense())), System(label="mine")])
    assert [s.name for s in systems] == ["BM25()", "Dense()", "mine"]
    assert [s.name for s in expand_systems({"a": System(), "b": System(retriever=BM25())})] == ["a", "b"]
    assert [s.name for s in expand_systems(System(label="x", retriever=choose(BM25(), Dense())))] == [
        "x: BM25()",
        "x: Dense()",
    ]


@pytest.mark.parametrize("wrong", [[System(), System()], [], ["BM25"]], ids=["twice", "none", "no system"])
def test_invalid_names_are_rejected(wrong: list[System]) -> None:
    with pytest.raises(InputError):
        expand_systems(wrong)
