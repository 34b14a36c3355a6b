from __future__ import annotations

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ragkit.embedding.hashed import HashEmbedder
from ragkit.errors import IndexingError
from ragkit.indexing.vector_store import ChromaStore

VECTORS = HashEmbedder(dimension=64).embed([f"word{i} and number {i}" for i in range(50)])
IDS = [f"v{i}" for i in range(50)]


def test_search_returns_the_nearest_first_with_cosines(tmp_path: Path) -> None:
    store = ChromaStore(tmp_path)
    assert store.search(VECTORS[0], k=3) == []
    store.add(IDS, VECTORS)
    found = store.search(VECTORS[7], k=5)
    assert found[0][0] == "v7"
    exact = VECTORS @ VECTORS[7]
    for id_, similarity in found:
        assert similarity == pytest.approx(float(exact[int(id_[1:])]), abs=1e-5)
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)


def test_overwrites_deletes_and_ignores_missing_ids(tmp_path: Path) -> None:
    store = ChromaStore(tmp_path)
    store.add(IDS, VECTORS)
    store.add(["v1"], VECTORS[2:3])
    store.delete(["v3", "never was"])
    assert store.count() == 49
    got = store.get(["v1", "v3", "never was"])
    assert set(got) == {"v1"}
    np.testing.assert_allclose(got["v1"], VECTORS[2], atol=1e-6)
    assert store.get([]) == {}


def test_persists_on_disk_and_refreshes_after_another_process(tmp_path: Path) -> None:
    store = ChromaStore(tmp_path)
    store.add(IDS[:10], VECTORS[:10])
    program = (
        "import sys; from ragkit.indexing.vector_store import ChromaStore; from ragkit.embedding import HashEmbedder\n"
        "v = HashEmbedder(dimension=64).embed(['something else entirely'])\n"
        f"ChromaStore({str(tmp_path)!r}).add(['other'], v)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    store.refresh()
    query = HashEmbedder(dimension=64).embed(["something else entirely"])[0]
    assert store.search(query, k=1)[0][0] == "other"
    assert store.count() == 11


def test_a_chroma_server_does_the_same(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from chromadb.cli.cli import app; app()"]
    command += ["run", "--path", str(tmp_path), "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=tmp_path)
    try:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        one, other = (ChromaStore(host="127.0.0.1", port=port, collection=name) for name in ("one", "other"))
        one.add(IDS, VECTORS)
        other.add(IDS[:1], VECTORS[:1])
        one.refresh()
        assert one.search(VECTORS[7], k=1)[0][0] == "v7"
        assert (one.count(), other.count()) == (50, 1)
        one.delete(["v7"])
        assert one.search(VECTORS[7], k=1)[0][0] != "v7"
        one.clear()
        assert one.count() == 0
    finally:
        process.terminate()
        process.wait(30)
    with pytest.raises(IndexingError, match="does not answer"):
        one.search(VECTORS[7], k=1)
    with pytest.raises(IndexingError, match="could not be used"):
        ChromaStore(host="127.0.0.1", port=port, collection="new").count()


def test_another_dimension_is_rejected_until_clear(tmp_path: Path) -> None:
    store = ChromaStore(tmp_path)
    store.add(IDS[:2], VECTORS[:2])
    with pytest.raises(IndexingError, match="dimension"):
        store.add(["x"], np.ones((1, 3), dtype=np.float32))
    store.clear()
    store.add(["x"], np.ones((1, 3), dtype=np.float32))
    assert store.count() == 1
