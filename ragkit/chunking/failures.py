"""Errors while one document is split into chunks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ragkit.cancellation import is_fatal
from ragkit.chunking.base import Chunker
from ragkit.chunking.context import embedded_texts
from ragkit.documents.document import Document
from ragkit.embedding.base import Embedder
from ragkit.errors import DocumentError, RagkitError, summary


@contextlib.contextmanager
def document_errors(document: Document, chunker: Chunker, embedder: Embedder) -> Iterator[None]:
    """Convert any exception while one document is split to a `DocumentError`, including panics in native code.

    A ragkit error that every document would raise passes through unchanged: chunks over the embedder's input limit, an
    unreachable server.
    """
    try:
        yield
    except DocumentError:
        raise
    except BaseException as error:
        if is_fatal(error) or (isinstance(error, RagkitError) and _fails_always(chunker, embedder)):
            raise
        detail = str(error) if isinstance(error, RagkitError) else f"it raised {summary(error)}"
        raise DocumentError(document.source, f"cannot be split by the chunker {chunker.name}: {detail}") from error


def _fails_always(chunker: Chunker, embedder: Embedder) -> bool:
    probe = Document(id="plain", text="A plain sentence.", source="plain", title="", language="en")
    try:
        embedded_texts(probe.title, chunker.chunk(probe, embedder=embedder), embedder)
    except RagkitError:
        return True
    except BaseException as error:  # the chunker needs more of a document than the probe has
        if is_fatal(error):
            raise
    return False
