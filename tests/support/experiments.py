"""A small dataset, a counting embedder, and experiments that publish only to a recorder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ragkit.documents.document import Document
from ragkit.embedding.base import Vectors
from ragkit.embedding.cache import EmbeddingCache
from ragkit.embedding.hashed import HashEmbedder
from ragkit.evaluation.dataset import Dataset, GoldSpan, Query
from ragkit.experiments.experiment import Experiment
from ragkit.live import messages
from tests.support.corpora import PAGES

__all__ = ["Counting", "RecordingPublisher", "Told", "experiment", "pages"]


class Counting(HashEmbedder):
    """An embedder that counts the texts and has a fingerprint, so that its vectors are cached."""

    def __init__(self, dimension: int = 64) -> None:
        super().__init__(dimension=dimension)
        self.embedded: Counter[tuple[str, str]] = Counter()
        self.calls = 0

    def embed(self, texts: Sequence[str], *, kind: Any = "passage") -> Vectors:
        self.embedded.update((kind, text) for text in texts)
        self.calls += 1
        return super().embed(texts, kind=kind)

    def fingerprint(self, kind: Any) -> str | None:
        return f"counting {self.dimension} {kind}"


class RecordingPublisher:
    """A publisher that records the events."""

    def __init__(self) -> None:
        self.events: list[messages.Broadcast] = []

    def publish(self, event: messages.Broadcast) -> None:
        messages.encode(event)  # raises if it cannot be sent
        self.events.append(event)


Told = RecordingPublisher


def pages() -> Dataset:
    """Return a dataset of four pages, two of them French, with one question and gold span for each."""
    documents = [
        Document(id=name, text=text, source=name, title=text.splitlines()[0].strip("# "), language=language)
        for name, text in PAGES.items()
        for language in ["fr" if "fr/" in name else "en"]
    ]
    answers = {
        "k1": ("How do I choose k1 and b for BM25?", "bm25.md", "Start with k1 = 1.2 and b = 0.75."),
        "rrf": ("What does reciprocal rank fusion add?", "fusion.md", "adds one divided by sixty plus the rank"),
        "taille": ("Quelle taille de passage choisir ?", "fr/decoupage.md", "des passages de deux cents mots environ"),
        "accents": ("Faut-il retirer les accents ?", "fr/accents.md", "Retirez les accents des documents"),
    }  # fmt: skip
    spans = {}
    for query_id, (_, document_id, words) in answers.items():
        start = PAGES[document_id].index(words)
        spans[query_id] = [GoldSpan(document_id, start, start + len(words))]
    return Dataset("pages", documents, [Query(q, text) for q, (text, _, _) in answers.items()], spans=spans)


def experiment(dataset: Dataset, systems: Any, folder: Path, **options: Any) -> Experiment:
    return Experiment(
        dataset,
        systems,
        **{
            "measures": ["nDCG@10", "SpanRecall@3"],
            "store": folder / "runs",
            "cache": EmbeddingCache(folder / "embeddings.db"),
            "publisher": RecordingPublisher(),
            "progress": False,
            **options,
        },
    )
