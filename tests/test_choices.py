from __future__ import annotations

import dataclasses

import pytest

from ragkit.choices import choose, expand, is_open
from ragkit.chunkers import TokenChunker
from ragkit.chunking import StructureChunker
from ragkit.errors import InputError
from ragkit.retrieval import BM25, Dense, Hybrid
from ragkit.systems import System, named


def test_choices_anywhere_make_a_sweep() -> None:
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
    assert not any(map(is_open, found))


def test_what_is_chosen_is_checked_when_it_is_made() -> None:
    wrong = Hybrid(dense_weight=choose(0.5, 1.5))
    with pytest.raises(InputError, match="between 0 and 1"):
        expand(wrong)
    with pytest.raises(InputError, match="choose\\(\\) needs options"):
        choose()


def test_lists_and_dicts_hold_choices_too() -> None:
    @dataclasses.dataclass(frozen=True)
    class Holds:
        several: tuple[int, ...]
        by_name: dict[str, int]

    found = expand(Holds((1, choose(2, 3)), {"a": choose(4, 5)}))
    assert [(h.several, h.by_name["a"]) for h in found] == [((1, 2), 4), ((1, 2), 5), ((1, 3), 4), ((1, 3), 5)]


def test_names_say_what_differs_from_the_defaults() -> None:
    assert System().name == "Hybrid()"
    assert System(retriever=BM25("documents"), chunker=None).name == "BM25(over='documents'), whole documents"
    assert System(chunker=StructureChunker(max_tokens=100)).name == "Hybrid(), StructureChunker(max_tokens=100)"
    systems = named([System(retriever=choose(BM25(), Dense())), System(label="mine")])
    assert [s.name for s in systems] == ["BM25()", "Dense()", "mine"]
    assert [s.name for s in named({"a": System(), "b": System(retriever=BM25())})] == ["a", "b"]
    assert [s.name for s in named(System(label="x", retriever=choose(BM25(), Dense())))] == ["x: BM25()", "x: Dense()"]


@pytest.mark.parametrize("wrong", [[System(), System()], [], ["BM25"]], ids=["twice", "none", "no system"])
def test_what_cannot_be_named_is_refused(wrong: list[System]) -> None:
    with pytest.raises(InputError):
        named(wrong)
