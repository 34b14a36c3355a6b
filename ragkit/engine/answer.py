"""Answers with citations.

An answer's text contains ``[n]`` markers. Each refers to a `Citation`: a passage with its exact offsets in
a document, and the quotes in it that the answer repeats word for word. Markers that refer to no passage
are invented by the model and are removed.

Documents and models are untrusted: everything is escaped before it becomes HTML.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import html
import re
import textwrap
import uuid
from collections.abc import Sequence
from typing import Any

from ragkit.llm.prompt import Passage, is_abstention
from ragkit.llm.replies import CITATION, without_citations
from ragkit.retrieval.base import Hit, place_of
from ragkit.terminal import one_line, printable

_SHORTEST_QUOTE = 12  # characters; anything shorter matches by chance
_LONGEST_CLAIM = 4_000  # characters before a marker that are searched: a model's text may be very long


@dataclasses.dataclass(frozen=True, slots=True)
class Citation:
    """A passage that supports an answer.

    Attributes:
        number: The ``n`` of its ``[n]`` markers.
        document_id: The document's id in the index.
        title: The document's title.
        source: The file's path or address, as a user would open it.
        start: Where the passage begins in the document's text, in characters.
        end: Where it ends.
        text: The passage: the document's ``text[start:end]``.
        quotes: Parts of the passage that the answer repeats word for word, as (start, end) in the document.
        headings: The headings above the passage, outermost first.
        page: The page in a paged document, from 1.
        score: The retriever's score.
        similarity: Cosine similarity of question and passage.
    """

    number: int
    document_id: str
    title: str
    source: str
    start: int
    end: int
    text: str
    quotes: tuple[tuple[int, int], ...] = ()
    headings: tuple[str, ...] = ()
    page: int | None = None
    score: float | None = None
    similarity: float | None = None

    @property
    def place(self) -> str:
        """The passage's location, for display: title, headings, page."""
        return place_of(self.title, self.headings, self.page, default=self.document_id)


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The result of `RAGEngine.ask`. It is displayed as HTML in a notebook and as text in a terminal.

    Attributes:
        id: Identifies this answer in later events.
        question: The question as asked.
        text: The answer with ``[n]`` markers.
        citations: The cited passages, by number. If the model cited nothing, all passages that it was given.
        cited: Whether the model cited anything.
        hits: All retrieved passages, best first.
        abstained: True if the documents do not contain the answer.
        language: ISO 639-1 code of the question.
        model: Name of the model that answered.
        seconds: How long it took.
    """

    id: str
    question: str
    text: str
    citations: tuple[Citation, ...]
    cited: bool
    hits: tuple[Hit, ...] = dataclasses.field(repr=False)
    abstained: bool
    language: str
    model: str
    seconds: float
    pending_follow_ups: concurrent.futures.Future[tuple[str, ...]] = dataclasses.field(
        default_factory=concurrent.futures.Future, repr=False, compare=False
    )

    def follow_ups(self, *, timeout_seconds: float = 30.0) -> tuple[str, ...]:
        """Wait for the follow-up questions, which are generated in the background after the answer.

        Args:
            timeout_seconds: How long to wait.

        Returns:
            Up to three questions; none if the documents suggest none.

        Raises:
            TimeoutError: The questions are not ready yet. Call again.
            Exception: Generating the questions failed. The answer is not affected.
        """
        return self.pending_follow_ups.result(timeout_seconds)

    def __str__(self) -> str:
        lines = [self.text, ""]
        if self.citations and not self.cited:
            lines.append(_words(self.language)["uncited"])
        for citation in self.citations:
            lines.append(f"[{citation.number}] {citation.place}  ({one_line(citation.source)})")
            lines.append(textwrap.indent(textwrap.shorten(_shown(citation), 300, placeholder=" …"), "    "))
        return printable("\n".join(lines).rstrip())

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self))

    def _repr_html_(self) -> str:
        return _html(self)

    def _ipython_display_(self) -> None:
        """Display the answer now, and add the follow-up questions when they are ready."""
        from IPython.display import display

        handle = display(self._bundle(), raw=True, display_id=self.id)  # type: ignore[no-untyped-call]

        def show_follow_ups(future: concurrent.futures.Future[tuple[str, ...]]) -> None:
            if handle is not None and _ready(future):
                handle.update(self._bundle(), raw=True)

        self.pending_follow_ups.add_done_callback(show_follow_ups)

    def _bundle(self) -> dict[str, str]:
        return {"text/plain": str(self), "text/html": self._repr_html_()}


def passages_of(hits: Sequence[Hit]) -> tuple[Passage, ...]:
    """Return hits as the numbered passages of a prompt, from 1."""
    return tuple(
        Passage(
            number=number,
            title=hit.document.title,
            text=hit.chunk.text,
            headings=hit.chunk.headings,
            similarity=hit.similarity,
        )
        for number, hit in enumerate(hits, start=1)
    )


def cite(
    question: str, text: str, hits: Sequence[Hit], *, language: str, model: str, seconds: float, answer_id: str = ""
) -> Answer:
    """Make an `Answer` from a model's text that cites hits numbered from 1.

    Args:
        question: The question as asked.
        text: The model's text with ``[n]`` markers.
        hits: The passages that the model was given, in the order of their numbers.
        language: ISO 639-1 code of the question.
        model: Name of the model that answered.
        seconds: How long it took.
        answer_id: The answer's id; generated if empty.
    """
    abstained = is_abstention(without_citations(text))  # models add citations even to an abstention
    quotes: dict[int, list[tuple[int, int]]] = {}  # hit's number -> quotes, in the order of the first markers

    def keep(marker: re.Match[str]) -> str:
        if marker.group(1) is None:
            return marker.group()
        numbers = [int(n) for n in re.findall(r"\d+", marker.group(1))]
        valid = [n for n in dict.fromkeys(numbers) if 1 <= n <= len(hits)]
        for number in valid:
            found = quotes.setdefault(number, [])
            claim = text[max(0, marker.start() - _LONGEST_CLAIM) : marker.start()]
            if (span := _quoted(claim, hits[number - 1])) and span not in found:
                found.append(span)
        space = marker.group()[0] if marker.group()[0] in " \t" and valid else ""
        # Renumbered in reading order: a lone [4] would look as if [1] to [3] were missing.
        return space + "".join(f"[{list(quotes).index(n) + 1}]" for n in valid)

    kept = CITATION.sub(keep, text).strip()
    cited = bool(quotes)
    shown = () if abstained else tuple(quotes) if cited else range(1, len(hits) + 1)
    return Answer(
        id=answer_id or uuid.uuid4().hex,
        question=question,
        text=kept,
        citations=tuple(
            _citation(number, hits[n - 1], tuple(sorted(quotes.get(n, ())))) for number, n in enumerate(shown, start=1)
        ),
        cited=cited,
        hits=tuple(hits),
        abstained=abstained,
        language=language,
        model=model,
        seconds=seconds,
    )


def _citation(number: int, hit: Hit, quotes: tuple[tuple[int, int], ...]) -> Citation:
    return Citation(
        number=number,
        document_id=hit.document.id,
        title=hit.document.title,
        source=hit.document.source,
        start=hit.chunk.start,
        end=hit.chunk.end,
        text=hit.chunk.text,
        quotes=quotes,
        headings=hit.chunk.headings,
        page=hit.chunk.page,
        score=hit.score,
        similarity=hit.similarity,
    )


def _quoted(before: str, hit: Hit) -> tuple[int, int] | None:
    """Find the text before a marker in the passage, ignoring white space; the longest matching tail."""
    claim = before[max((marker.end() for marker in CITATION.finditer(before) if marker.group(1)), default=0) :]
    block = re.split(r"\n\s*\n", claim.strip())[-1].strip(' \t\n>"«»“”')
    starts = [0, *(m.end() for m in re.finditer(r"[.!?:»]\s+|\n\s*", block))]
    passage, offsets = _collapse_spaces(hit.chunk.text)
    for start in starts:
        words = " ".join(block[start:].split())
        if len(words) < _SHORTEST_QUOTE:
            return None
        if (at := passage.find(words)) >= 0:
            return hit.chunk.start + offsets[at], hit.chunk.start + offsets[at + len(words) - 1] + 1
    return None


@functools.lru_cache(maxsize=64)
def _collapse_spaces(text: str) -> tuple[str, list[int]]:
    """Collapse runs of white space to single spaces; return the text and each character's original offset."""
    words: list[str] = []
    offsets: list[int] = []
    for word in re.finditer(r"\S+", text):
        if words:
            offsets.append(word.start() - 1)
        words.append(word.group())
        offsets.extend(range(*word.span()))
    return " ".join(words), offsets


def _shown(citation: Citation) -> str:
    """Return the passage from its first quote on."""
    first = citation.quotes[0][0] - citation.start if citation.quotes else 0
    return ("… " if first else "") + citation.text[first:]


# ----------------------------------------------------------------------------------------- HTML

_WORDS = {
    "en": {
        "sources": "Sources",
        "uncited": "The model cited no passage. It was given these:",
        "next": "You might ask next",
    },
    "fr": {
        "sources": "Sources",
        "uncited": "Le modèle n'a cité aucun passage. Voici ceux qu'il a reçus :",
        "next": "Pour continuer",
    },
}

# Colours come from JupyterLab's theme, or from the page where there is none, light or dark.
_STYLE = """<style>
.ragkit-answer{max-width:52em;line-height:1.5}
.ragkit-answer>div{margin:.5em 0;white-space:pre-wrap;overflow-wrap:anywhere}
.ragkit-answer>div details{display:inline-block;vertical-align:top;max-width:100%}
.ragkit-answer summary{cursor:pointer;color:var(--jp-content-link-color,LinkText)}
.ragkit-answer>div details[open],.ragkit-answer>div details[open]>summary{display:inline}
.ragkit-answer>div blockquote{margin-bottom:-.8em}
.ragkit-answer>div summary{list-style:none}
.ragkit-answer>div summary::-webkit-details-marker{display:none}
.ragkit-answer blockquote{margin:.4em 0 .6em;padding:.3em .8em;white-space:pre-wrap;overflow-wrap:anywhere;
border-left:3px solid var(--jp-border-color1,GrayText);font-size:.93em}
.ragkit-answer pre{margin:.2em 0;white-space:pre-wrap}
.ragkit-answer mark{background:#ffe58f;color:#1a1a1a;padding:0 .1em}
.ragkit-answer small{opacity:.75}
.ragkit-answer ol,.ragkit-answer ul{margin:.3em 0;padding-left:1.8em}
</style>"""


def _words(language: str) -> dict[str, str]:
    return _WORDS.get(language, _WORDS["en"])


def _html(answer: Answer) -> str:
    words = _words(answer.language)
    by_number = {citation.number: citation for citation in answer.citations}

    def marker(match: re.Match[str]) -> str:
        if match.group(1) is None:
            return _code_html(match.group())
        citation = by_number.get(int(match.group(1))) if match.group(1).isdigit() else None
        if citation is None:
            return match.group()
        space = match.group().partition("[")[0]
        title = html.escape(citation.place, quote=True)
        shown = f'<summary title="{title}">[{citation.number}]</summary>{_passage_html(citation)}'
        return f"{space}<details>{shown}</details>"

    escaped = CITATION.sub(marker, html.escape(answer.text))
    # MathJax must not treat a document's dollar signs as formulas, nor execute macros between them.
    parts = [_STYLE, f'<div class="ragkit-answer tex2jax_ignore mathjax_ignore" lang="{html.escape(answer.language)}">']
    parts.append(f"<div>{escaped}</div>")  # a <p> would end at each <details>
    if answer.citations:
        heading = words["sources"] if answer.cited else words["uncited"]
        items = "".join(
            f'<li value="{c.number}"><details><summary title="{html.escape(c.source, quote=True)}">'
            f"{html.escape(c.place)} <small>{html.escape(c.document_id)}</small></summary>"
            f"{_passage_html(c)}</details></li>"
            for c in answer.citations
        )
        parts.append(f"<small>{html.escape(heading)}</small><ol>{items}</ol>")
    if follow_ups := _ready(answer.pending_follow_ups):
        items = "".join(f"<li>{html.escape(question)}</li>" for question in follow_ups)
        parts.append(f"<small>{html.escape(words['next'])}</small><ul>{items}</ul>")
    return "\n".join([*parts, "</div>"])


def _code_html(escaped: str) -> str:
    """Return HTML for code in the answer, which is already escaped."""
    if escaped.startswith("`") and not escaped.startswith("```"):
        return f"<code>{escaped[1:-1]}</code>"
    return f"<pre>{escaped.strip('`~').partition(chr(10))[2]}</pre>"


def _ready(follow_ups: concurrent.futures.Future[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the follow-up questions if they are ready, else none."""
    return follow_ups.result() if follow_ups.done() and follow_ups.exception() is None else ()


def _passage_html(citation: Citation) -> str:
    pieces, at = [], 0
    for start, end in citation.quotes:
        start, end = max(start - citation.start, at), end - citation.start
        if end > start:
            pieces += [html.escape(citation.text[at:start]), f"<mark>{html.escape(citation.text[start:end])}</mark>"]
            at = end
    return f"<blockquote>{''.join(pieces)}{html.escape(citation.text[at:])}</blockquote>"
