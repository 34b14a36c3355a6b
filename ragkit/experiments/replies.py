"""What language models reply during an experiment: each thing is asked once, and the raw text is kept.

A reply is kept under what the model was given and nothing else: the messages, the model and its settings, the longest
reply that was allowed, and the number of the repeat where the same thing is asked several times on purpose. What is
made of a reply (a score, an order, other wordings) is no part of that key and is computed from the text, so that
neither another version of a package nor a corrected parser asks a model again.

A reply that cannot be read is kept too, because it is paid for, but it does not stand in the way: when work on the kept
replies fails, the next attempt passes them over and asks for another one. Work that sends the same messages twice wants
two replies, and gets them.
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
    """What a model replied, once.

    Attributes:
        key: What it is kept under.
        text: As the model gave it, encodable as UTF-8.
        usage: Tokens, if the model says.
        seconds: How long it took when it was asked.
    """

    key: str
    text: str
    usage: Usage | None
    seconds: float


class Replies:
    """The replies that one piece of work is given: those that are kept first, and then new ones.

    Args:
        results: Where they are kept.
        stage: What they are for, for people who look into the file.
        repeat: The same messages in another repeat are another reply.
        models: By ``id``, models and their identities that are known; shared by pieces of work that ask the same ones.
    """

    def __init__(
        self, results: ResultCache, stage: str, *, repeat: int = 1, models: dict[int, tuple[LLM, Any]] | None = None
    ) -> None:
        self._results = results
        self._stage = stage
        self._repeat = repeat
        self._models = models if models is not None else {}
        self._unreadable: Counter[str] = Counter()  # by what was asked: how many of its replies could not be read
        self._used: Counter[str] = Counter()  # by what was asked: how many of its replies this attempt was given
        self._lock = threading.Lock()  # work may have threads of its own
        self._is_new = False  # whether a model was asked in this attempt
        self._is_refused = False  # and failed to reply

    def recorded(self, value: _T) -> _T:
        """Return a model, or a value with models in it, whose replies are looked up here first."""
        return replace_models(value, lambda llm: RecordedLLM(llm, self))

    def read(self, work: Callable[[], _T]) -> _T:
        """Do work that asks recorded models, and do it again on other replies while it fails on those that were kept.

        Raises:
            Exception: What the work raised on a new reply, or what asking for one raised.
        """
        while True:
            self._used, self._is_new, self._is_refused = Counter(), False, False
            try:
                return work()
            except Exception as error:
                # Of ragkit's own errors one says that a reply cannot be read; others say nothing of it.
                says_nothing = isinstance(error, RagkitError) and not isinstance(error, LLMResponseError)
                if says_nothing or self._is_refused or not self._used:
                    raise
                self._unreadable.update(self._used)
                if self._is_new:
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
        """Return a kept reply, or ask and keep it before anything is made of it.

        Args:
            llm: The model.
            given: What it is given, as plain values.
            ask: Asks it.
            max_tokens: The longest reply.
            cancelled: Asked while another thread asks for the same.
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
        self._is_new = True
        began = time.monotonic()
        try:
            text, usage = ask()
        except BaseException:
            self._is_refused = True
            raise
        kept: dict[str, Any] = {"text": encodable(text), "seconds": time.monotonic() - began}
        return kept | (dataclasses.asdict(usage) if usage is not None else {})


class RecordedLLM:
    """A model whose replies are kept. It stands in the model's place: whoever asks it need not know.

    Attributes:
        inner: The model.
        last: The last reply that was given.
    """

    last: Reply
    is_transparent = True  # see ragkit.experiments.fingerprint

    def __init__(self, llm: LLM, replies: Replies) -> None:
        self.inner = llm
        self._replies = replies

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "last", "_replies"):  # not there yet: it is being copied
            raise AttributeError(name)
        return getattr(self.inner, name)

    def __repr__(self) -> str:
        return repr(self.inner)

    @property
    def name(self) -> str:
        """The model's."""
        return self.inner.name

    @property
    def generative(self) -> bool:
        """The model's."""
        return self.inner.generative

    def answer(self, prompt: Prompt, *, cancelled: Callable[[], bool] = never) -> Reply:
        """Answer a prompt; see `LLM.stream`."""
        messages = prompt.messages()
        # What is made to be sent messages sees nothing else of a prompt; other models may.
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
        """See `LLM.stream`; the whole answer is there before its first piece."""
        reply = self.last = self.answer(prompt, cancelled=cancelled)
        yield reply.text
        return reply.usage

    def reply(
        self, messages: Sequence[Message], *, max_tokens: int = 1024, cancelled: Callable[[], bool] = never
    ) -> Generator[str, None, Usage | None]:
        """Reply to chat messages; returns the usage, if the model says."""
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
                return drained(pieces)  # which is the same, with the usage
            return llm.complete(messages, max_tokens=max_tokens, cancelled=cancelled), None

        given = [dict(message) for message in messages]
        return self._replies.get(llm, given, ask, max_tokens=max_tokens, cancelled=cancelled)


def encodable(text: str) -> str:
    """Replace what cannot be encoded as UTF-8: a server may send half of a character."""
    return text.encode("utf-8", "replace").decode()


def _innermost(llm: Any) -> Any:
    while getattr(llm, "is_transparent", False) is True:
        llm = llm.inner
    return llm


def _defining(llm: Any, method: str) -> type | None:
    return next((kind for kind in type(llm).__mro__ if method in vars(kind)), None)


def _sampling(llm: Any) -> Any:
    """The model and its settings. The longest reply is not one of them: each call has its own."""
    llm = _innermost(llm)
    said = llm.identity() if callable(getattr(llm, "identity", None)) else None
    if not isinstance(said, Mapping):
        return identity(llm)
    settings = {name: value for name, value in said.items() if name != "max_tokens"}
    # Of a client of ragkit's the settings are all: another version of it, or of its libraries, sends the same.
    code = None if is_own(llm) else code_version(type(llm))
    return [f"{type(llm).__module__}.{type(llm).__qualname__}", code, identity(settings)]


# What is being asked -> its lock, and how many hold it or wait for it.
_asking: dict[tuple[Path, str], tuple[threading.Lock, int]] = {}
_asking_lock = threading.Lock()


@contextlib.contextmanager
def _one_at_a_time(path: Path, key: str, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Let one thread of this process look for a reply, and others that want the same find it."""
    at = path.absolute(), key
    with _asking_lock:
        lock, waiting = _asking.get(at, (threading.Lock(), 0))
        _asking[at] = lock, waiting + 1
    try:
        while not lock.acquire(timeout=_POLL_SECONDS):
            wait(0, cancelled)
        try:
            yield
        finally:
            lock.release()
    finally:
        with _asking_lock:
            lock, waiting = _asking[at]
            if waiting > 1:
                _asking[at] = lock, waiting - 1
            else:
                del _asking[at]


# ------------------------------------------------------------------------------------- models in values


def is_model(value: Any) -> bool:
    """Tell whether a value is a generative language model."""
    return isinstance(value, LLM) and not isinstance(value, type) and bool(value.generative)


def replace_models(
    value: _T, new: Callable[[Any], Any], *, otherwise: Callable[[Any], Any] = lambda value: value
) -> _T:
    """Return a value with each language model in it replaced; the value itself if there is none.

    Models are looked for in fields of dataclasses and in lists, tuples and dicts, at any depth.

    Args:
        value: Any value.
        new: Makes what takes a model's place.
        otherwise: Called with anything else that is no such container, and returns it.
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
    """Tell whether `replace_models` would replace anything."""
    return replace_models(value, lambda llm: None) is not value
