"""Query rewriters: a language model writes additional texts to search with.

`HyDE` adds hypothetical answers, `MultiQuery` adds paraphrases of the question. The rankings of all texts are fused by
rank (`ragkit.retrieval.fusion.fused`). Gao et al. (2022) average the vectors of HyDE's passages and the question
instead; rank fusion also works for lexical and hybrid retrievers.

The model's texts are used for search only. They are never shown as content of the documents.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable

from ragkit.cancellation import never
from ragkit.errors import require_count
from ragkit.llm.base import LLM
from ragkit.llm.replies import ask, generative, read, unreadable
from ragkit.space import has_choices

_MOST = 10  # texts to search with besides the question
_LONGEST_PASSAGE = 1_000  # characters
_LONGEST_QUERY = 300
_TOKENS = 1_024  # of a reply with one text; most of them are for a reasoning model's thoughts
_TOKENS_MORE = 256  # for each additional text

_RULE = re.compile(r"^[ \t]*-{3,}[ \t]*$", re.MULTILINE)
_LABEL = re.compile(r"^\s*(?:[-*•–—#]+|\(?\d{1,2}[.):]|passage(?:\s+\d+)?\s*:)\s+", re.IGNORECASE)
_MARKS = " \t\"'`*«»“”‘"

_HYDE = {
    "en": "Write a passage of about 80 words that answers the question, in the language of the question, as it could "
    "stand in a manual or an article. It is only used to search with: if you do not know the answer, write what such a "
    "passage would most likely say. Reply with the passage alone, without a heading.",
    "fr": "Écris un passage d'environ 80 mots qui réponde à la question, dans la langue de la question, tel qu'il "
    "pourrait figurer dans un manuel ou un article. Il ne sert qu'à faire une recherche : si tu ne connais pas la "
    "réponse, écris ce qu'un tel passage dirait le plus probablement. Réponds par ce passage seul, sans titre.",
}
_SEVERAL = {
    "en": "\nWrite {n} such passages, as different as possible, with a line that holds only --- between them.",
    "fr": "\nÉcris {n} passages de ce genre, aussi différents que possible, séparés par une ligne qui ne contient que "
    "---.",
}
_MULTI_QUERY = {
    "en": "Say the question in {n} other ways, in the language of the question, as somebody who looks for the same "
    "thing could put it: with other words, and those that documents about it are likely to use. Keep names, numbers "
    "and codes as they are. Do not answer it. One a line, without numbers, and nothing else.",
    "fr": "Reformule la question de {n} autres façons, dans la langue de la question, comme pourrait le faire une "
    "personne qui cherche la même chose : avec d'autres mots, et ceux que des documents sur le sujet emploient sans "
    "doute. Garde les noms, les nombres et les codes tels quels. N'y réponds pas. Une reformulation par ligne, sans "
    "numéro, et rien d'autre.",
}


@dataclasses.dataclass(frozen=True, slots=True)
class HyDE:
    """Search with the question and with hypothetical passages that answer it (Gao et al. 2022).

    Attributes:
        llm: Writes the passages.
        passages: Number of passages, at most 10, all written in one reply.

    Raises:
        InputError: The model is not generative, or ``passages`` is out of range.
    """

    llm: LLM
    passages: int = 1

    def __post_init__(self) -> None:
        if not has_choices(self):
            generative(self.llm, "HyDE")
            require_count("passages", self.passages, most=_MOST)

    def messages(self, question: str, *, language: str) -> list[dict[str, str]]:
        """Return the chat messages for the model."""
        request = _in(_HYDE, language) + (_in(_SEVERAL, language).format(n=self.passages) if self.passages > 1 else "")
        return _messages(request, question)

    def rewrite(self, question: str, *, language: str, cancelled: Callable[[], bool] = never) -> list[str]:
        """Return the question and the passages; see `ragkit.retrieval.QueryRewriter`.

        Raises:
            LLMResponseError: The reply contains no passage.
            LLMError: There is no reply.
            OperationCancelled: ``cancelled`` returned True.
        """
        reply = _reply(self.llm, "HyDE", self.messages(question, language=language), self.passages, cancelled)
        passages = _RULE.split(reply) if self.passages > 1 else [reply]
        found = _distinct(question, passages, _LONGEST_PASSAGE, self.passages)
        if not found:
            raise unreadable(self.llm, reply, "a passage to search with")
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class MultiQuery:
    """Search with the question and with paraphrases of it.

    Attributes:
        llm: Writes the paraphrases.
        queries: Number of paraphrases, at most 10.

    Raises:
        InputError: The model is not generative, or ``queries`` is out of range.
    """

    llm: LLM
    queries: int = 3

    def __post_init__(self) -> None:
        if not has_choices(self):
            generative(self.llm, "MultiQuery")
            require_count("queries", self.queries, most=_MOST)

    def messages(self, question: str, *, language: str) -> list[dict[str, str]]:
        """Return the chat messages for the model."""
        return _messages(_in(_MULTI_QUERY, language).format(n=self.queries), question)

    def rewrite(self, question: str, *, language: str, cancelled: Callable[[], bool] = never) -> list[str]:
        """Return the question and its paraphrases; see `ragkit.retrieval.QueryRewriter`.

        Raises:
            LLMResponseError: The reply contains no paraphrase.
            LLMError: There is no reply.
            OperationCancelled: ``cancelled`` returned True.
        """
        reply = _reply(self.llm, "MultiQuery", self.messages(question, language=language), self.queries, cancelled)
        lines = (line for line in reply.splitlines() if not line.rstrip(_MARKS).endswith(":"))  # "Here are three:"
        found = _distinct(question, lines, _LONGEST_QUERY, self.queries)
        if not found:
            raise unreadable(self.llm, reply, "a list of other wordings")
        return found


def _in(texts: dict[str, str], language: str) -> str:
    return texts.get(language, texts["en"])


def _messages(request: str, question: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": request}, {"role": "user", "content": question}]


def _reply(llm: LLM, asker: str, messages: list[dict[str, str]], texts: int, cancelled: Callable[[], bool]) -> str:
    most = _TOKENS + _TOKENS_MORE * (texts - 1)
    return read(ask(llm, messages, asker=asker, max_tokens=most, cancelled=cancelled).text)


def _distinct(question: str, written: Iterable[str], longest: int, most: int) -> list[str]:
    """Return the question, then texts that differ from it and from each other; empty if there is no usable text."""
    found = {_key(question): question}
    texts = [text for text in (_cleaned(text, longest) for text in written) if any(map(str.isalnum, text))]
    for text in texts:
        found.setdefault(_key(text), text)
    return list(found.values())[: 1 + most] if texts else []


def _cleaned(text: str, longest: int) -> str:
    text = " ".join(_LABEL.sub("", text).split()).strip(_MARKS)
    return text if len(text) <= longest else text[:longest].rpartition(" ")[0] or text[:longest]


def _key(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(" ?!.")
