"""The embedding cache: content-addressed, bounded, shared by processes; its errors never stop the caller."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from ragkit.embedding.base import Kind, Vectors
from ragkit.embedding.cache import CachedEmbedder, EmbeddingCache, default_cache
from ragkit.embedding.hashed import HashEmbedder
from ragkit.embedding.openai import OpenAIEmbedder
from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
from ragkit.errors import EmbeddingError, InputError


class Fingerprinted(HashEmbedder):
    """A `HashEmbedder` with a fingerprint that records the texts it embeds."""

    def __init__(self, fingerprint: str = "test", *, dimension: int = 16) -> None:
        super().__init__(dimension=dimension)
        self.embedded: list[str] = []
        self._fingerprint = fingerprint

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        self.embedded += texts
        return super().embed(texts, kind=kind)

    def fingerprint(self, kind: Kind) -> str | None:
        return f"{self._fingerprint} {kind}"


@pytest.fixture
def cache(tmp_path: Path) -> EmbeddingCache:
    return EmbeddingCache(tmp_path / "cache" / "embeddings.db")


def test_cached_texts_are_not_embedded_again(cache: EmbeddingCache) -> None:
    first, second = Fingerprinted(), Fingerprinted()
    computed = CachedEmbedder(first, cache).embed(["un été", "two", "un été"])
    found = CachedEmbedder(second, EmbeddingCache(cache.path)).embed(["two", "three", "un été", "three"])
    assert second.embedded == ["three"]
    assert found.dtype == np.float32
    assert np.array_equal(found[[2, 0]], computed[[0, 1]])
    assert np.array_equal(found[1], found[3])
    assert (cache.hits, cache.misses, cache.size()[0]) == (0, 3, 3)


def test_the_key_depends_on_fingerprint_and_kind(cache: EmbeddingCache) -> None:
    CachedEmbedder(Fingerprinted("a"), cache).embed(["text"])
    for other in (Fingerprinted("b"), Fingerprinted("a")):
        kind: Kind = "query" if other._fingerprint == "a" else "passage"
        CachedEmbedder(other, cache).embed(["text"], kind=kind)
        assert other.embedded == ["text"]
    a, b = (OpenAIEmbedder("m", base_url=f"http://{host}/v1") for host in ("one", "two"))
    assert a.fingerprint("passage") != b.fingerprint("passage")


def test_a_models_fingerprint_includes_its_weights_and_precision() -> None:
    minilm = SentenceTransformerEmbedder()
    original = minilm.fingerprint("passage")
    assert original is not None
    assert original == SentenceTransformerEmbedder().fingerprint("passage")
    assert "float32" in original
    assert minilm.name in original
    model = minilm._model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "prompts", {"query": "query: ", "document": ""})
        fresh = SentenceTransformerEmbedder()
        fresh._loaded = model
        assert fresh.fingerprint("query") != fresh.fingerprint("passage")
    changed = SentenceTransformerEmbedder()
    weights = changed._model()[0].auto_model.embeddings.LayerNorm.weight
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "data", weights.data + 0.01)
        assert changed.fingerprint("passage") != original


def test_an_embedder_without_a_fingerprint_is_not_cached(cache: EmbeddingCache) -> None:
    plain = CachedEmbedder(HashEmbedder(dimension=8), cache)
    assert plain.embed(["a", "b"]).shape == (2, 8)
    assert plain.embed([]).shape == (0, 8)
    off = CachedEmbedder(Fingerprinted(), False)
    assert off.embed(["a", "a"]).shape == (2, 16)
    assert cache.size() == (0, 0)
    assert off.name == Fingerprinted().name
    assert off.count_tokens(["two words"]) == [2]


def test_eviction_removes_the_least_recently_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    day = [1_000 * 86_400.0]
    monkeypatch.setattr("ragkit.embedding.cache.time.time", lambda: day[0])
    cache = EmbeddingCache(tmp_path / "c.db", max_bytes=20_000)
    embedder = CachedEmbedder(Fingerprinted(), cache)
    embedder.embed([f"old {n}" for n in range(50)])
    for later in range(1, 8):
        day[0] += 86_400
        assert embedder.known(["old 0"])  # used each day
        embedder.embed([f"day {later}, {n}" for n in range(50)])
        assert cache.size()[1] <= 20_000
    assert embedder.known(["old 0"])
    assert not embedder.known(["old 1"])
    assert embedder.known(["day 7, 49"])
    assert 100 < cache.size()[0] < 200
    with pytest.raises(InputError, match="max_bytes"):
        EmbeddingCache(tmp_path / "d.db", max_bytes=0)


def test_the_size_is_exact_under_concurrent_writes(cache: EmbeddingCache) -> None:
    """Threads of this process and other processes store overlapping texts at the same time."""
    program = (
        "from tests.embedding.test_cache import *; import sys\n"
        "CachedEmbedder(Fingerprinted(), EmbeddingCache(sys.argv[1])).embed([f'text {n}' for n in range(300)])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    others = [subprocess.Popen([sys.executable, "-c", program, str(cache.path)], env=environment) for _ in range(2)]

    def put(start: int) -> None:
        for at in range(start, start + 300, 10):
            CachedEmbedder(Fingerprinted(), cache).embed([f"text {n}" for n in range(at, at + 10)])

    threads = [threading.Thread(target=put, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(60) for other in others] == [0, 0]
    assert cache.size() == (500, 500 * (16 * 4 + 48))
    assert cache.path.stat().st_mode & 0o077 == 0
    cache.clear()
    assert cache.size() == (0, 0)


def test_a_damaged_file_warns_once_and_is_replaced(cache: EmbeddingCache) -> None:
    cache.path.parent.mkdir()
    cache.path.write_bytes(b"this is no database" * 100)
    embedder = CachedEmbedder(Fingerprinted(), cache)
    with pytest.warns(RuntimeWarning, match="ragkit creates a new one"):
        assert embedder.embed(["a"]).shape == (1, 16)
    embedder.embed(["a"])
    assert cache.size()[0] == 1


def test_an_unwritable_file_warns_once_and_disables_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    embedder = CachedEmbedder(Fingerprinted(), EmbeddingCache(tmp_path / "file" / "c.db"))
    with pytest.warns(RuntimeWarning, match="embeds texts without it"):
        assert embedder.embed(["a", "b"]).shape == (2, 16)
    assert embedder.embed(["a", "c"]).shape == (2, 16)  # a second warning would be an error


def test_the_environment_sets_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGKIT_CACHE_DIR", str(tmp_path / "here"))
    assert default_cache().path == tmp_path / "here" / "embeddings.db"
    assert default_cache() is default_cache()


class Panic(BaseException):
    """Like a panic in native code: neither an `Exception` nor a request to stop."""


class Raising(HashEmbedder):
    error: BaseException = Panic("at the disco")

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        raise self.error

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        raise self.error

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        raise self.error


@pytest.mark.parametrize("call", ["embed", "count_tokens", "token_spans"])
def test_any_exception_of_an_embedder_becomes_an_embedding_error(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder = CachedEmbedder(Raising(dimension=8), False)
    with pytest.raises(EmbeddingError, match="'ragkit/hash-8' raised Panic: at the disco") as raised:
        getattr(embedder, call)(["text"])
    assert raised.value.__cause__ is Raising.error
    monkeypatch.setattr(Raising, "error", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        getattr(embedder, call)(["text"])
