"""Corpora to index: slices of judged sets, folders of small files, and synthetic texts with a real vocabulary."""

from __future__ import annotations

import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["SHARED", "Words", "claims", "long_file", "rows", "slices", "small_files", "synthetic_files"]

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RAGKIT_SHARED", ROOT.parent / "shared")) / "datasets"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def slices(name: str, *, characters: int | None, into: Path) -> Iterator[Path]:
    """Write disjoint slices of a set as corpus.jsonl files; one file with the whole set if ``characters`` is None.

    The documents are shuffled, so that each slice is representative.
    """
    documents = rows(SHARED / name / "corpus.jsonl")
    random.Random(0).shuffle(documents)
    remaining = iter(documents)
    for number in itertools.count():
        chosen: list[dict[str, Any]] = []
        size = 0
        for document in remaining:
            chosen.append(document)
            size += len(document["text"])
            if characters is not None and size >= characters:
                break
        if not chosen:
            return
        folder = into / f"{name}-{number}"
        folder.mkdir()
        path = folder / "corpus.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
        yield path


def small_files(folder: Path, *, documents: int) -> None:
    """Write ``documents`` abstracts of SciFact as text files."""
    for number, row in enumerate(rows(SHARED / "scifact" / "corpus.jsonl")[:documents]):
        path = folder / f"{number // 100:03}" / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{row['title']}\n\n{row['text']}\n", encoding="utf-8")


def long_file(path: Path) -> None:
    """Write a document with the last twenty abstracts of SciFact as sections."""
    last = rows(SHARED / "scifact" / "corpus.jsonl")[-20:]
    sections = (f"## Section {number}\n\n{row['text']}\n" for number, row in enumerate(last, start=1))
    path.write_text("# Twenty abstracts\n\n" + "\n".join(sections), encoding="utf-8")


def claims() -> list[str]:
    """List SciFact's claims."""
    return [row["text"] for row in rows(SHARED / "scifact" / "queries.jsonl")]


class Words:
    """Random texts with the word frequencies of SciFact, including the Zipfian long tail."""

    def __init__(self, seed: int) -> None:
        counts = Counter(word for row in rows(SHARED / "scifact" / "corpus.jsonl") for word in row["text"].split())
        self._words = np.asarray(list(counts), dtype=object)
        self._shares = np.cumsum(list(counts.values())) / counts.total()
        self._random = np.random.default_rng(seed)

    def text(self, words: int) -> str:
        """Generate a text with sentences of twenty words."""
        chosen = self._words[np.searchsorted(self._shares, self._random.random(words))].tolist()
        sentences = (" ".join(chosen[at : at + 20]) for at in range(0, words, 20))
        return "".join(f"{sentence[0].upper()}{sentence[1:].rstrip('.')}. " for sentence in sentences).rstrip()


def synthetic_files(folder: Path, *, documents: int) -> None:
    """Write files of about a kilobyte in nested folders, identical in every run."""
    words = Words(seed=0)
    for number in range(documents):
        path = folder / f"{number // 10_000:02}" / f"{number // 100 % 100:02}" / f"{number}.txt"
        if number % 100 == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words.text(150), encoding="utf-8")
