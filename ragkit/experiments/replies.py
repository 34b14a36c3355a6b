"""The cache for replies of language models in experiments: each request is sent once, and the raw text is stored.

The key of a reply is the input of the model and nothing else: the messages, the model and its settings, the maximum
length, and the number of the repeat where the same request is sent several times on purpose. What is parsed from a
reply (a score, an order, a rewritten query) is not part of the key and is computed from the text, so that a new version
of a package or a corrected parser does not send requests again.

A reply that cannot be parsed is cached too, because it is paid for. When work on cached replies fails, the next attempt
skips them and requests new ones. Work that sends the same messages twice gets two different replies.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from ragkit.cancellation import never, wait
from ragkit.errors import LLMResponseError, RagkitError
from ragkit.experiments.fingerprint import code_version, identity, is_own
from ragkit.experiments.result_cache import ResultCache
from ragkit.hashing import hash_values
from ragkit.llm.base import LLM, GenerativeLLM, Message, Usage, drained
from ragkit.llm.prompt import Prompt

_T = TypeVar("_T")
_POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """One reply of a model.

    Attributes:
        key: The cache key.
        text: The raw text, encodable as UTF-8.
        usage: The tokens used, if the model reports them.
        seconds: The duration of the original request.
    """

    key: str
    text: str
    usage: Usage | None
    seconds: float


class Replies:
    """The replies for one piece of work: cached ones first, then new ones.

    Args:
        results: The cache.
        stage: The stage of the experiment, for people who inspect the file.
        repeat: The number of the repeat; each repeat of the same messages has its own reply.
        models: ``id`` of a model -> the model and its identity; shared between pieces of work, so that each identity
            is computed once.
    """

    def __init__(
        self, results: ResultCache, stage: str, *, repeat: int = 1, models: dict[int, tuple[LLM, Any]] | None = None
    ) -> None:
        self._results = results
        self._stage = stage
        self._repeat = repeat
        self._models = models if models is not None else {}
        self._unreadable: Counter[str] = Counter()  # request -> the number of its replies that could not be parsed
        self._used: Counter[str] = Counter()  # request -> the number of its replies that this attempt used
        self._lock = threading.Lock()  # the work may use several threads
        self._has_requested = False  # whether this attempt sent a request
        self._has_failed = False  # whether such a request failed

    def recorded(self, value: _T) -> _T:
        """Return a value with its language models wrapped, so that their replies are looked up in the cache first."""
        return replace_models(value, lambda llm: RecordedLLM(llm, self))

    def read(self, work: Callable[[], _T]) -> _T:
        """Do work that calls recorded models; while it fails on cached replies, repeat it with other replies.

        Raises:
            Exception: Whatever the work raised on a new reply, or the request for one raised.
        """
        while True:
            self._used, self._has_requested, self._has_failed = Counter(), False, False
            try:
                return work()
            except Exception as error:
                # Of ragkit's errors, only LLMResponseError means that a reply cannot be parsed.
                is_unrelated = isinstance(error, RagkitError) and not isinstance(error, LLMResponseError)
                if is_unrelated or self._has_failed or not self._used:
                    raise
                self._unreadable.update(self._used)
                if self._has_requested:
                    raise

    def get(
        self,
        llm: LLM,
        given: Any,
        ask: Callable[[], tuple[str, Usage | None]],
        *,
        max_tokens: int | None,
        cancelled: Callable[[], bool],
    ) -> Reply:
        """Return the cached reply, or request a new one and cache it before it is parsed.

        Args:
            llm: The model.
            given: The input of the model, as plain values.
            ask: Sends the request.
            max_tokens: The maximum length of the reply.
            cancelled: Polled while another thread sends the same request.
        """
        if id(llm) not in self._models:
            self._models[id(llm)] = llm, _sampling(llm)
        asked = hash_values("reply", self._models[id(llm)][1], given, max_tokens, self._repeat)
        with self._lock:
            key = hash_values(asked, self._unreadable[asked] + self._used[asked])
            self._used[asked] += 1
        with _one_at_a_time(self._results.path, key, cancelled):
            kept = self._results.get([key]).get(key)
            if kept is None:
                kept = self._ask(ask)
                if not getattr(llm, "is_stand_in", False):
                    self._results.put(self._stage, {key: kept})
        usage = Usage(kept["input_tokens"], kept["output_tokens"]) if "input_tokens" in kept else None
        return Reply(key, kept["text"], usage, kept["seconds"])

    def _ask(self, ask: Callable[[], tuple[str, Usage | None]]) -> dict[str, Any]:
        self._has_requested = True
        began = time.monotonic()
        try:
            text, usage = ask()
        except BaseException:
            self._has_failed = True
            raise
        kept: dict[str, Any] = {"text": encodable(text), "seconds": time.monotonic() - began}
        return kept | (dataclasses.asdict(usage) if usage is not None else {})


class RecordedLLM:
    """A wrapper with the interface of a model, which caches the replies.

    Attributes:
        inner: The model.
        last: The last reply.
    """

    last: Reply
    is_transparent = True  # see ragkit.experiments.fingerprint

    def __init__(self, llm: LLM, replies: Replies) -> None:
        self.inner = llm
        self._replies = replies

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "last", "_replies"):  # not set yet while the object is being copied
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def name(self) -> str:
        """The name of the model."""
        return self.inner.name

    @property
    def generative(self) -> bool:
        """Whether the model is generative."""
        return self.inner.generative

    def answer(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Reply:
        """Answer a prompt; see `LLM.stream`."""
        messages = prompt.messages()
        # A chat model receives only the messages; other models may read any field of the prompt.
        is_chat = hasattr(_innermost(self.inner), "reply")
        given = (
            messages
            if is_chat
            else [messages, identity(dataclasses.asdict(prompt) | {"question": f"{prompt.question}"})]
        )
        return self._replies.get(
            self.inner,
            given,
            lambda: drained(self.inner.stream(prompt, cancelled=cancelled)),
            max_tokens=getattr(_innermost(self.inner), "max_tokens", None),
            cancelled=cancelled,
        )

    def stream(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Generator[str, None, Usage | None]:
        """See `LLM.stream`; yields the complete answer at once."""
        reply = self.last = self.answer(prompt, cancelled=cancelled)
        yield reply.text
        return reply.usage

    def reply(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> Generator[str, None, Usage | None]:
        """Reply to chat messages; the generator returns the usage, if the model reports it."""
        reply = self._complete(messages, max_tokens, cancelled)
        yield reply.text
        return reply.usage

    def complete(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> str:
        """See `GenerativeLLM.complete`."""
        return self._complete(messages, max_tokens, cancelled).text

    def _complete(self, messages: Sequence[Message], max_tokens: int, cancelled: Callable[[], bool]) -> Reply:
        llm = cast("GenerativeLLM", self.inner)

        def ask() -> tuple[str, Usage | None]:
            if _defining(llm, "reply") is not None and _defining(llm, "reply") is _defining(llm, "complete"):
                pieces = cast("Any", llm).reply(messages, max_tokens=max_tokens, cancelled=cancelled)
                return drained(pieces)  # the same text, with the usage
            return llm.complete(messages, max_tokens=max_tokens, cancelled=cancelled), None

        given = [dict(message) for message in messages]
        return self._replies.get(llm, given, ask, max_tokens=max_tokens, cancelled=cancelled)


def encodable(text: str) -> str:
    """Replace what cannot be encoded as UTF-8; a server may send an unpaired surrogate."""
    return text.encode("utf-8", "replace").decode()


def _innermost(llm: Any) -> Any:
    while getattr(llm, "is_transparent", False) is True:
        llm = llm.inner
    return llm


def _defining(llm: Any, method: str) -> type | None:
    return next((kind for kind in type(llm).__mro__ if method in vars(kind)), None)


def _sampling(llm: Any) -> Any:
    """Return the model and its settings, without max_tokens, which each call sets itself."""
    llm = _innermost(llm)
    own = llm.identity() if callable(getattr(llm, "identity", None)) else None
    if not isinstance(own, Mapping):
        return identity(llm)
    settings = {name: value for name, value in own.items() if name != "max_tokens"}
    # For ragkit's own clients only the settings count: other versions of the code send the same request.
    code = None if is_own(llm) else code_version(type(llm))
    return [f"{type(llm).__module__}.{type(llm).__qualname__}", code, identity(settings)]


# Cache file and key of a request in flight -> its lock, and the number of threads that hold or await it.
_in_flight: dict[tuple[Path, str], tuple[threading.Lock, int]] = {}
_in_flight_lock = threading.Lock()


@contextlib.contextmanager
def _one_at_a_time(path: Path, key: str, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Coalesce equal requests of threads in this process: the first one sends it, the others read its reply."""
    at = path.absolute(), key
    with _in_flight_lock:
        lock, waiting = _in_flight.get(at, (threading.Lock(), 0))
        _in_flight[at] = lock, waiting + 1
    try:
        while not lock.acquire(timeout=_POLL_SECONDS):
            wait(0, cancelled)
        try:
            yield
        finally:
            lock.release()
    finally:
        with _in_flight_lock:
            lock, waiting = _in_flight[at]
            if waiting > 1:
                _in_flight[at] = lock, waiting - 1
            else:
                del _in_flight[at]


# ------------------------------------------------------------------------------------- models in values


def is_model(value: Any) -> bool:
    """Return whether a value is a generative language model."""
    return isinstance(value, LLM) and not isinstance(value, type) and bool(value.generative)


def replace_models(
    value: _T, new: Callable[[Any], Any], *, otherwise: Callable[[Any], Any] = lambda value: value
) -> _T:
    """Return a value with each language model in it replaced; the same object if it holds none.

    Models are found in fields of dataclasses and in lists, tuples and dicts, at any depth.

    Args:
        value: Any value.
        new: Returns the replacement for a model.
        otherwise: Called with every other value that is not such a container; returns it or a replacement.
    """
    replaced: Any = value
    if is_model(value):
        replaced = new(value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value) if f.init}
        fresh = {name: replace_models(each, new, otherwise=otherwise) for name, each in fields.items()}
        changed = {name: each for name, each in fresh.items() if each is not fields[name]}
        if changed:
            replaced = copy.copy(value)
            for name, each in changed.items():
                object.__setattr__(replaced, name, each)
    elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        each_new = [replace_models(each, new, otherwise=otherwise) for each in value]
        if any(a is not b for a, b in zip(each_new, value, strict=True)):
            replaced = type(value)(each_new)
    elif isinstance(value, dict):
        fresh = {key: replace_models(each, new, otherwise=otherwise) for key, each in value.items()}
        if any(fresh[key] is not each for key, each in value.items()):
            replaced = fresh
    else:
        replaced = otherwise(value)
    return cast(_T, replaced)


def holds_model(value: Any) -> bool:
    """Return whether a value holds a language model that `replace_models` would replace."""
    return replace_models(value, lambda llm: None) is not value
