"""What becomes of a failure to cut one document."""

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
    """Raise a `DocumentError` for whatever is raised while one document is cut, native code's panics included.

    Errors of ragkit's that any document would raise stay as they are: chunks that are longer than what the embedder
    reads, a server that cannot be reached.
    """
    try:
        yield
    except DocumentError:
        raise
    except BaseException as error:
        if is_fatal(error) or (isinstance(error, RagkitError) and _fails_always(chunker, embedder)):
            raise
        detail = str(error) if isinstance(error, RagkitError) else f"it raised {summary(error)}"
        raise DocumentError(document.source, f"cannot be cut by the chunker {chunker.name}: {detail}") from error


def _fails_always(chunker: Chunker, embedder: Embedder) -> bool:
    plain = Document(id="plain", text="A plain sentence.", source="plain", title="", language="en")
    try:
        embedded_texts(plain.title, chunker.chunk(plain, embedder=embedder), embedder)
    except RagkitError:
        return True
    except BaseException as error:  # a chunker that asks more of a document than this one has
        if is_fatal(error):
            raise
    return False
