"""The tree of exceptions that ragkit raises.

    RagkitError
    ├── InputError (ValueError)             an argument is invalid
    │   ├── EmptyQuestionError
    │   ├── SourceNotFoundError             the path to index does not exist
    │   └── NoDocumentsError                the path contains nothing that can be indexed
    ├── DocumentError                       one file could not be indexed (indexing collects these in its report)
    ├── IndexingError
    │   ├── IndexLockedError                another process is writing this index
    │   ├── IndexMismatchError              built with another embedder, chunker or format
    │   ├── IndexCorruptError               its files are damaged
    │   ├── EmptyIndexError                 the index contains no documents
    │   └── IndexWriteError                 the disk is full or read-only
    ├── OperationCancelled                  the operation was cancelled
    ├── EmbeddingError
    │   └── EmbedderNotFoundError           the model is not installed and could not be downloaded
    ├── RerankingError                      a reranker's model cannot be loaded, or failed
    ├── LLMError
    │   ├── LLMConnectionError              refused, unreachable, or the stream was cut off
    │   ├── LLMTimeoutError
    │   ├── LLMAuthenticationError
    │   ├── LLMRateLimitError
    │   └── LLMResponseError                the reply is not that of an OpenAI-compatible server
    ├── BudgetError                         the next call could exceed the budget
    ├── ResultCacheError                    the cache of experiment results cannot be read or written
    ├── ServerError
    │   ├── ServerNotFoundError             no running Jupyter server was found
    │   ├── AmbiguousServerError            several running servers match
    │   └── ServerConnectionError           the server was found, but the connection failed
    └── MissingExtraError (ImportError)     an optional dependency is not installed

Exceptions carry their facts as attributes and build the message from them. The message says what
happened and what to do next. The cause is always chained.
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
    """Raise `MissingExtraError` if an import in this block fails."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(package, extra=extra) from error


def require_count(name: str, value: object, *, least: int = 1, most: int | None = None) -> None:
    """Check that an argument is an integer in a range. NumPy integers are accepted; True and 3.0 are not.

    Raises:
        InputError: The check fails.
    """
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not is_whole or not least <= int(value) <= (most or math.inf):  # type: ignore[call-overload]
        wanted = f"of at least {least:,}" if most is None else f"from {least:,} to {most:,}"
        raise InputError(f"{name} must be a whole number {wanted}, not {value!r}.")


class RagkitError(Exception):
    """Base of ragkit's exceptions. It can be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (type(self), self.args), self.__dict__


def _unpickle(kind: type[RagkitError], arguments: tuple[Any, ...]) -> RagkitError:
    return kind.__new__(kind, *arguments)  # without __init__, whose arguments differ from `args`


def summary(error: BaseException) -> str:
    """Return an exception's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".removesuffix(": ")


class InputError(RagkitError, ValueError):
    """An argument is invalid."""


class EmptyQuestionError(InputError):
    """The question contains no words."""

    def __init__(self) -> None:
        super().__init__("The question is empty. Ask something, for example: 'What is BM25?'")


class SourceNotFoundError(InputError):
    """The path to index does not exist.

    Attributes:
        path: The path as given.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        super().__init__(
            f"There is no file or folder at '{self.path}' (current folder: '{Path.cwd()}'). "
            "Check the spelling, or give an absolute path."
        )


class NoDocumentsError(InputError):
    """The path exists, but contains nothing that can be indexed.

    Attributes:
        path: The folder or file.
        suffixes: The supported file extensions.
        skipped: The files that were skipped, with reasons: ``"3 hidden: ..."``.
    """

    def __init__(self, path: str | Path, suffixes: Sequence[str], skipped: Sequence[str] = ()) -> None:
        self.path = Path(path)
        self.suffixes = tuple(suffixes)
        self.skipped = tuple(skipped)
        skipped_text = f" Skipped: {'; '.join(self.skipped[:5])}." if self.skipped else ""
        more = f" ({len(self.suffixes)} kinds in all)" if len(self.suffixes) > 17 else ""
        super().__init__(
            f"'{self.path}' holds no document that ragkit reads.{skipped_text} "
            f"Put files ending in {', '.join(self.suffixes[:17])}{more} there, or give another path."
        )


class DocumentError(RagkitError):
    """One document could not be read, split into chunks or embedded. The others are not affected.

    Indexing collects these in its report instead of raising them.

    Attributes:
        source: The file's path, with the line or page if known.
        reason: What is wrong with the document, in one sentence.
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
    """The index was built with another embedder, chunker or format.

    Attributes:
        what: What differs, for example ``"embedder"``.
        expected: The value that the index was built with.
        found: The value that it was opened with.
    """

    def __init__(self, path: str | Path, *, what: str, expected: object, found: object) -> None:
        self.what = what
        self.expected = expected
        self.found = found
        super().__init__(
            path,
            f"The index at '{path}' was built with {what} {expected}, but was opened with {found}. "
            f"Open it with {expected}, or index into another folder, "
            "or delete the old index and rebuild it with engine.index(path, rebuild=True).",
        )


class IndexCorruptError(IndexingError):
    """The index's own files are damaged."""

    def __init__(self, path: str | Path, detail: str) -> None:
        super().__init__(
            path,
            f"The index at '{path}' is damaged: {detail}. If only the vectors are damaged, engine.repair() restores "
            "them. Otherwise, rebuild the index with engine.index(path, rebuild=True). Your documents are not touched.",
        )


class EmptyIndexError(IndexingError):
    """The index that was queried contains no documents yet."""

    def __init__(self, path: str | Path) -> None:
        super().__init__(
            path,
            f"The index at '{path}' contains no documents yet. Index some first: engine.index('my/documents'). "
            "If indexing is running now, ask again in a moment.",
        )


class IndexWriteError(IndexingError):
    """A write failed because the disk is full or read-only.

    Everything committed before stays usable, and the next run resumes from there.
    """

    def __init__(self, path: str | Path, detail: str) -> None:
        super().__init__(
            path,
            f"The index at '{path}' could not be written: {detail}. What was indexed before is safe. "
            "Free some disk space (or fix the permissions) and run the same call again: it resumes from there.",
        )


class OperationCancelled(RagkitError):
    """The operation was cancelled. What it had committed is kept."""


class EmbeddingError(RagkitError):
    """An embedder failed.

    Attributes:
        model: The embedder's name.
    """

    def __init__(self, model: str, message: str) -> None:
        self.model = model
        super().__init__(message)


class EmbedderNotFoundError(EmbeddingError):
    """The model is neither installed nor cached, and could not be downloaded."""

    def __init__(self, model: str, detail: str) -> None:
        super().__init__(
            model,
            f"The embedding model '{model}' could not be loaded: {detail}. Check the name; a model that is "
            "not installed is downloaded from a hub, so the hub must be reachable. "
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
        status: The HTTP status with which the server rejected the request; None if it did not reject it.
        billable: Whether the server may have processed the request, and may bill it.
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
    """The server refused the connection, was unreachable, or cut off the stream."""


class LLMTimeoutError(LLMError):
    """The server did not answer in time."""


class LLMAuthenticationError(LLMError):
    """The server rejects the API key, or requires one."""


class LLMRateLimitError(LLMError):
    """The server limits the rate of requests."""


class LLMResponseError(LLMError):
    """The server answered, but not like an OpenAI-compatible server."""


class BudgetError(RagkitError):
    """The next call could exceed the budget, so it was not made.

    Attributes:
        name: The budget's name.
        spent: The amount spent, plus the maximum cost of calls that are running or were cut off.
        cap: The budget's limit.
        most: The maximum cost of the call.
    """

    def __init__(self, name: str, *, spent: float, cap: float, most: float) -> None:
        self.name = name
        self.spent = spent
        self.cap = cap
        self.most = most
        super().__init__(
            f"The budget '{name}' is exhausted: {spent:.6g} of {cap:.6g} is spent, and the next call could cost "
            f"{most:.6g}. Raise the limit with budget.raise_to(...), and run again."
        )


class ResultCacheError(RagkitError):
    """The cache file of experiment results cannot be read or written."""

    def __init__(self, path: str | Path, detail: str) -> None:
        self.path = path
        super().__init__(
            f"The cache of experiment results, '{path}', cannot be used: {detail}. If the disk is full, free some "
            "space and run the experiment again: it resumes. If the file is damaged, delete it: its results are "
            "computed again."
        )


class ServerError(RagkitError):
    """The Jupyter server cannot be used."""


class ServerNotFoundError(ServerError):
    """No running Jupyter server with ragkit was found."""

    def __init__(self, detail: str = "") -> None:
        super().__init__(
            "No running Jupyter server was found"
            + (f" ({detail})" if detail else "")
            + ". Start one with 'jupyter lab' or 'jupyter ragkit', or set RAGKIT_URL and RAGKIT_TOKEN."
        )


class AmbiguousServerError(ServerError):
    """Several running servers match, and ragkit does not guess.

    Attributes:
        urls: The candidates, without tokens.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = tuple(urls)
        super().__init__(
            f"More than one running Jupyter server could be meant: {', '.join(self.urls)}. "
            "Set RAGKIT_URL (and RAGKIT_TOKEN) to choose one."
        )


class ServerConnectionError(ServerError):
    """A server was found, but the connection failed.

    Attributes:
        url: The server's address, without a token.
    """

    def __init__(self, url: str, detail: str) -> None:
        self.url = url
        super().__init__(f"Could not connect to {url}: {detail}")


class MissingExtraError(RagkitError, ImportError):
    """An optional dependency is not installed.

    Attributes:
        package: The missing package.
        extra: The extra of the distribution `ragkit-lab` that installs it.
    """

    def __init__(self, package: str, *, extra: str) -> None:
        self.package = package
        self.extra = extra
        super().__init__(f"This needs {package}. Install it with: pip install 'ragkit-lab[{extra}]'")
