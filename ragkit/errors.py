"""Every error that ragkit raises on purpose, as one tree.

    RagkitError
    ├── InputError (ValueError)             an argument that cannot be used
    │   ├── EmptyQuestionError
    │   ├── SourceNotFoundError             the path to index does not exist
    │   └── NoDocumentsError                the path holds nothing that can be indexed
    ├── DocumentError                       one file that could not be indexed (collected, not raised, by indexing)
    ├── IndexingError
    │   ├── IndexLockedError                another process is writing this index
    │   ├── IndexMismatchError              made with another embedder, chunker or format
    │   ├── IndexCorruptError               its files are damaged
    │   ├── EmptyIndexError                 a question was put to an index without documents
    │   └── IndexWriteError                 the disk refused (full, read-only)
    ├── OperationCancelled                      somebody stopped the work
    ├── EmbeddingError
    │   └── EmbedderNotFoundError           no such model here, and none could be fetched
    ├── RerankingError                      a reranker's model cannot be loaded, or failed
    ├── LLMError
    │   ├── LLMConnectionError              refused, unreachable, or the stream was cut
    │   ├── LLMTimeoutError
    │   ├── LLMAuthenticationError
    │   ├── LLMRateLimitError
    │   └── LLMResponseError                it answered, but not as an OpenAI-compatible server does
    ├── BudgetError                         the next call could cost more than is left
    ├── ResultCacheError                          what experiments keep cannot be read or written
    ├── ServerError
    │   ├── ServerNotFoundError             no running Jupyter server could be found
    │   ├── AmbiguousServerError            more than one could be meant
    │   └── ServerConnectionError           found, but it does not let us in
    └── MissingExtraError (ImportError)     an optional dependency is not installed

Exceptions carry what they know as attributes and build their own message from it; the message
says what happened and what to do next. The cause is always chained.
"""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = [
    "AmbiguousServerError",
    "BudgetError",
    "DocumentError",
    "EmbedderNotFoundError",
    "EmbeddingError",
    "EmptyIndexError",
    "EmptyQuestionError",
    "IndexCorruptError",
    "IndexLockedError",
    "IndexMismatchError",
    "IndexWriteError",
    "IndexingError",
    "InputError",
    "LLMAuthenticationError",
    "LLMConnectionError",
    "LLMError",
    "LLMRateLimitError",
    "LLMResponseError",
    "LLMTimeoutError",
    "MissingExtraError",
    "NoDocumentsError",
    "OperationCancelled",
    "RagkitError",
    "RerankingError",
    "ResultCacheError",
    "ServerConnectionError",
    "ServerError",
    "ServerNotFoundError",
    "SourceNotFoundError",
    "needs",
    "require_count",
    "summary",
]


@contextlib.contextmanager
def needs(package: str, *, extra: str) -> Iterator[None]:
    """Raise `MissingExtraError` if what is imported here is not installed."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(package, extra=extra) from error


def require_count(name: str, value: object, *, least: int = 1, most: int | None = None) -> None:
    """Check that an argument is a whole number in a range, NumPy's included; True and 3.0 are none.

    Raises:
        InputError: It is not.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not least <= int(value) <= (most or math.inf):  # type: ignore[call-overload]
        wanted = f"of at least {least:,}" if most is None else f"from {least:,} to {most:,}"
        raise InputError(f"{name} must be a whole number {wanted}, not {value!r}.")


class RagkitError(Exception):
    """Base of every error that ragkit raises on purpose. It can be sent to another process."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (type(self), self.args), self.__dict__


def _restored(kind: type[RagkitError], arguments: tuple[Any, ...]) -> RagkitError:
    return kind.__new__(kind, *arguments)  # without __init__, which builds the message from other arguments


def summary(error: BaseException) -> str:
    """Say in one line what was raised."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


class InputError(RagkitError, ValueError):
    """An argument cannot be used as it is."""


class EmptyQuestionError(InputError):
    """The question has no words in it."""

    def __init__(self) -> None:
        super().__init__("The question is empty. Ask something, for example: 'What is BM25?'")


class SourceNotFoundError(InputError):
    """The path to index does not exist.

    Attributes:
        path: The path as it was given.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        super().__init__(
            f"There is no file or folder at '{self.path}' (looked from '{Path.cwd()}'). "
            "Check the spelling, or give an absolute path."
        )


class NoDocumentsError(InputError):
    """The path exists and holds nothing that can be indexed.

    Attributes:
        path: The folder or file.
        suffixes: The file endings that would have been read.
        skipped: What is there instead, and why it is passed over: ``"3 hidden: ..."``.
    """

    def __init__(self, path: str | Path, suffixes: Sequence[str], skipped: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self.suffixes = tuple(suffixes)
        self.skipped = tuple(skipped)
        there = f" Passed over: {'; '.join(self.skipped[:5])}." if self.skipped else ""
        more = f" ({len(self.suffixes)} kinds in all)" if len(self.suffixes) > 17 else ""
        super().__init__(
            f"'{self.path}' holds no document that ragkit reads.{there} "
            f"Put files ending in {', '.join(self.suffixes[:17])}{more} there, or give another path."
        )


class DocumentError(RagkitError):
    """One document could not be read, cut or embedded; the others are not affected.

    Indexing collects these in its report instead of raising them.

    Attributes:
        source: The file's path, with a line or page where that is known.
        reason: What is wrong with it, in one sentence.
    """

    def __init__(self, source: str, reason: str) -> None:
        self.source = source
        self.reason = reason
        super().__init__(f"{source}: {reason}")


class IndexingError(RagkitError):
    """An index cannot be read or written.

    Attributes:
        path: The index's folder.
    """

    def __init__(self, path: str | Path, message: str) -> None:
        self.path = Path(path)
        super().__init__(message)


class IndexLockedError(IndexingError):
    """Another process is writing this index."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(
            path,
            f"Another process is writing the index at '{path}'. Wait until it has finished, "
            "stop it, or index into another folder.",
        )


class IndexMismatchError(IndexingError):
    """The index was made with another embedder, chunker or format.

    Attributes:
        what: What differs, for example ``"embedder"``.
        expected: The value that the index was made with.
        found: The value that it was opened with.
    """

    def __init__(self, path: str | Path, *, what: str, expected: object, found: object) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        super().__init__(
            path,
            f"The index at '{path}' was made with {what} {expected}, but was opened with {found}. "
            f"Open it with {expected}, or index into another folder; "
            "engine.index(path, rebuild=True) throws the old index away and makes it anew.",
        )


class IndexCorruptError(IndexingError):
    """The index's own files are damaged."""

    def __init__(self, path: str | Path, detail: str) -> None:
        super().__init__(
            path,
            f"The index at '{path}' is damaged: {detail}. If it is the vectors, engine.repair() makes them anew; else "
            "engine.index(path, rebuild=True) does. Your documents are not touched.",
        )


class EmptyIndexError(IndexingError):
    """A question was put to an index that holds no documents yet."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(
            path,
            f"The index at '{path}' holds no documents yet. Index some first: engine.index('my/documents'). "
            "If that is being done now, ask again in a moment.",
        )


class IndexWriteError(IndexingError):
    """The disk refused a write: it is full, or read-only.

    What had been committed before stays usable, and the next run goes on from there.
    """

    def __init__(self, path: str | Path, detail: str) -> None:
        super().__init__(
            path,
            f"The index at '{path}' could not be written: {detail}. What was indexed before is safe. "
            "Free some space (or mend the permissions) and run the same call again: it goes on from there.",
        )


class OperationCancelled(RagkitError):
    """The work was stopped on request; what it had committed is kept."""


class EmbeddingError(RagkitError):
    """An embedder could not embed.

    Attributes:
        model: The embedder's name.
    """

    def __init__(self, model: str, message: str) -> None:
        self.model = model
        super().__init__(message)


class EmbedderNotFoundError(EmbeddingError):
    """The named model is neither installed nor cached, and could not be fetched."""

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(
            model,
            f"The embedding model '{model}' could not be loaded: {detail}. Check the name; a model that is "
            "not installed is fetched from a hub, so the hub must be reachable. "
            "The default, 'all-MiniLM-L6-v2', comes with ragkit and needs no network.",
        )


class RerankingError(RagkitError):
    """A reranker's model cannot be loaded, or failed.

    Attributes:
        model: The model's name.
    """

    def __init__(self, model: str, message: str) -> None:
        self.model = model
        super().__init__(message)


class LLMError(RagkitError):
    """A language model did not give a usable answer.

    Attributes:
        model: The model's name.
        base_url: The server's address, without credentials.
        status: What HTTP status the server refused the request with; None if it did not.
        billable: Whether the server may have worked on the request, and may bill it.
    """

    def __init__(
        self, message: str, *, model: str, base_url: str, status: int | None = None, billable: bool = True
    ) -> None:
        self.model = model
        self.base_url = base_url
        self.status = status
        self.billable = billable
        super().__init__(message)


class LLMConnectionError(LLMError):
    """The server refused, was unreachable, or cut the stream."""


class LLMTimeoutError(LLMError):
    """The server did not answer in time."""


class LLMAuthenticationError(LLMError):
    """The server wants another API key."""


class LLMRateLimitError(LLMError):
    """The server asks to slow down."""


class LLMResponseError(LLMError):
    """The server answered, but not as an OpenAI-compatible server does."""


class BudgetError(RagkitError):
    """The next call could cost more than the budget has left; it was not made.

    Attributes:
        name: The budget's name.
        spent: What is spent, and what calls under way or cut off could have cost.
        cap: What may be spent.
        most: What the call could have cost.
    """

    def __init__(self, name: str, *, spent: float, cap: float, most: float) -> None:
        self.name = name
        self.spent = spent
        self.cap = cap
        self.most = most
        super().__init__(
            f"The budget '{name}' pauses: {spent:.6g} of {cap:.6g} are spent, and the next call can cost {most:.6g}. "
            "Give it more with budget.raise_to(...), and run again."
        )


class ResultCacheError(RagkitError):
    """The file that keeps what experiments have computed cannot be read or written."""

    def __init__(self, path: str | Path, detail: str) -> None:
        self.path = path
        super().__init__(
            f"'{path}' keeps what experiments have computed, and cannot be used: {detail}. If the disk is full, make "
            "room and run the experiment again: it goes on. If the file is damaged, delete it: what it held is "
            "computed again."
        )


class ServerError(RagkitError):
    """The Jupyter server's side of things is not as it should be."""


class ServerNotFoundError(ServerError):
    """No running Jupyter server with ragkit could be found."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(
            "No running Jupyter server was found"
            + (f" ({detail})" if detail else "")
            + ". Start one with 'jupyter lab' or 'jupyter ragkit', or set RAGKIT_URL and RAGKIT_TOKEN."
        )


class AmbiguousServerError(ServerError):
    """More than one running server could be meant; ragkit does not guess.

    Attributes:
        urls: The candidates, without tokens.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(urls)
        super().__init__(
            f"More than one running Jupyter server could be meant: {', '.join(self.urls)}. "
            "Set RAGKIT_URL (and RAGKIT_TOKEN) to the one that you want."
        )


class ServerConnectionError(ServerError):
    """A server was found, but the connection did not come about.

    Attributes:
        url: The server's address, without a token.
    """

    def __init__(self, url: str, detail: str) -> None:
        self.url = url
        super().__init__(f"Could not connect to {url}: {detail}")


class MissingExtraError(RagkitError, ImportError):
    """An optional dependency is not installed.

    Attributes:
        package: The package that is missing.
        extra: The extra of the distribution `ragkit-lab` that installs it.
    """

    def __init__(self, package: str, *, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"This needs {package}. Install it with: pip install 'ragkit-lab[{extra}]'")
