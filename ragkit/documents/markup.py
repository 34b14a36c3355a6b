"""Parsing of Markdown and HTML."""

from __future__ import annotations

import functools
import itertools
import logging
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ragkit.documents.document import Mark
from ragkit.documents.encoding import clean

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

# These log every small repair of a file. Without a logging configuration, keep that off the console.
for _library in ("htmldate", "trafilatura"):
    logging.getLogger(_library).addHandler(logging.NullHandler())


# ------------------------------------------------------------------------------------- Markdown

# Three dashes, a first line "key: value", three dashes or dots. Without the key, it is a rule and a setext heading.
_FRONT_MATTER = re.compile(r"---[ \t]*\n\s*[\w-]+[ \t]*:.*?\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_FRONT_TITLE = re.compile(r"^title[ \t]*:[ \t]*(\S.*)$", re.MULTILINE | re.IGNORECASE)
_WORDS = frozenset({"text", "code_inline", "softbreak", "hardbreak", "image"})


def front_matter_title(text: str) -> str:
    """Return the ``title:`` of YAML front matter; empty if there is none."""
    front = _FRONT_MATTER.match(text)
    found = _FRONT_TITLE.search(front[0]) if front else None
    return found[1].rstrip(" \t").strip("\"'") if found else ""


def markdown_headings(text: str, *, offset: int = 0) -> tuple[Mark, ...]:
    """Find the headings of a Markdown text with a real parser, so that a ``#`` in a code block does not count.

    Args:
        text: Markdown, with ``\\n`` line ends; YAML front matter is skipped.
        offset: An offset to add to the start of each mark.
    """
    front = _FRONT_MATTER.match(text)
    body = front.end() if front else 0
    starts = [body, *(body + match.end() for match in re.finditer("\n", text[body:]))]
    blocks, inlines = _markdown()
    marks = []
    for token, inline in itertools.pairwise(blocks.parse(text[body:])):
        if token.type != "heading_open" or token.map is None:
            continue
        # Inline parsing takes quadratic time on hostile text: parse only headings, and only their beginning.
        children = inlines.parseInline(inline.content[:1_000])[0].children or ()
        words = "".join(" " if c.type.endswith("break") else c.content for c in children if c.type in _WORDS)
        if label := " ".join(words.split())[:300]:
            marks.append(Mark(offset + starts[token.map[0]], "heading", label, int(token.tag[1])))
    return tuple(marks)


@functools.cache
def _markdown() -> tuple[MarkdownIt, MarkdownIt]:
    from markdown_it import MarkdownIt

    blocks = MarkdownIt("commonmark")
    blocks.core.ruler.enableOnly(["normalize", "block"])
    return blocks, MarkdownIt("commonmark")


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Format rows as a Markdown table whose header is the first row; empty if all cells are blank."""
    if not rows or not any(cell.strip() for row in rows for cell in row):
        return ""
    width = max(len(row) for row in rows)
    lines = [
        [" ".join(cell.split()).replace("|", "\\|") for cell in [*row, *[""] * (width - len(row))]] for row in rows
    ]
    lines.insert(1, ["---"] * width)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# ----------------------------------------------------------------------------------------- HTML

_HIDDEN = frozenset({"script", "style", "template", "noscript", "title", "svg"})
_INLINE = frozenset(
    {"a", "abbr", "b", "bdi", "bdo", "cite", "code", "data", "dfn", "em", "font", "i", "img", "kbd", "mark", "q"}
    | {"s", "samp", "small", "span", "strong", "sub", "sup", "time", "u", "var", "wbr"}
)


def html_to_markdown(html: str) -> tuple[str, str]:
    """Extract the main text of a page as Markdown, with headings, lists, tables and code.

    Returns:
        The main text, or all visible text if the page has no main text (an index, a form, a fragment), and the page's
        title. Either may be empty.

    Raises:
        RecursionError: The page is nested too deeply.
    """
    import trafilatura
    from lxml import html as lxml_html

    # Not trafilatura's own parser, which silently drops elements nested deeper than 256. This one has a limit of 2,048
    # and reports when it is reached.
    parser = lxml_html.HTMLParser(huge_tree=True, encoding="utf-8")
    try:
        tree = lxml_html.document_fromstring(html.encode(), parser=parser)
    except lxml_html.etree.ParserError:  # nothing but comments
        return "", ""
    if any(entry.type_name == "ERR_RESOURCE_LIMIT" for entry in parser.error_log):
        raise RecursionError(parser.error_log.last_error.message)
    visible = _visible_text(tree)
    metadata = trafilatura.extract_metadata(tree)
    title = metadata.title if metadata is not None else None
    try:
        text = trafilatura.extract(tree, output_format="markdown", include_comments=False, favor_recall=True)
    except RecursionError:
        text = None  # trafilatura recurses; `_visible_text` does not
    return clean(text or visible), title or ""


def _visible_text(tree: Any) -> str:
    """Return all visible text of a page, block by block."""
    parts: list[str] = []
    stack = [(tree, False)]
    while stack:
        element, is_end = stack.pop()
        tag = element.tag if isinstance(element.tag, str) else ""  # comments have no string as their tag
        block = "" if tag in _INLINE or not tag else "\n\n"
        if is_end:
            parts += (block, element.tail or "")
            continue
        stack.append((element, True))
        if tag and tag not in _HIDDEN:
            parts += (block, "#" * int(tag[1]) + " " if re.fullmatch("h[1-6]", tag) else "", element.text or "")
            stack += [(child, False) for child in reversed(element)]
    lines = (" ".join(line.split()) for line in re.split(r"\n\s*\n", "".join(parts)))
    return "\n\n".join(line for line in lines if line.strip("# "))


_MAX_DEPTH = 200  # markdownify recurses, with several calls per level
_PROCESSING = re.compile(r"<\?[^>]*>")


def html_in_full(html: str) -> str:
    """Convert a whole page to Markdown. For pages without menus and banners, such as the chapter of a book.

    Raises:
        RecursionError: The page is nested too deeply.
    """
    import warnings

    import bs4

    with warnings.catch_warnings(action="ignore"):  # it warns about XHTML, which is often not even well-formed
        # Python's parser: lxml's silently drops elements nested deeper than 256.
        page = bs4.BeautifulSoup(_PROCESSING.sub("", html), "html.parser")
    level: list[Any] = [page]
    for _ in range(_MAX_DEPTH):
        level = [child for element in level for child in element.contents if isinstance(child, bs4.Tag)]
        if not level:
            return clean(_converter().convert_soup(page)).strip("\n")
    raise RecursionError


@functools.cache
def _converter() -> Any:
    import markdownify

    class Converter(markdownify.MarkdownConverter):
        """Drop hidden elements, links within the document, and images except their alternative text."""

        def convert_a(self, element: Any, text: str, parent_tags: Any) -> str:
            target = str(element.get("href") or "")
            if target.startswith(("#footnote-ref-", "#endnote-ref-", "#comment-ref-")):
                return ""  # mammoth's link from a note back to its reference
            if target.startswith(("http:", "https:", "mailto:")):
                words = text.strip()
                return f"[{words}]({target})" if words and words != target else target
            return text

        def convert_img(self, element: Any, text: str, parent_tags: Any) -> str:
            return str(element.get("alt") or "")

        def convert_head(self, element: Any, text: str, parent_tags: Any) -> str:
            return ""

        convert_script = convert_style = convert_template = convert_svg = convert_title = convert_head

    # No escapes: a search for "snake_case" would not find "snake\_case".
    return Converter(
        heading_style="ATX",
        bullets="-",
        strip=["b", "strong", "em", "i", "u"],
        escape_asterisks=False,
        escape_underscores=False,
        escape_misc=False,
        table_infer_header=True,
    )
