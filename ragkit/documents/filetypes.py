"""The kinds of files that ragkit reads, by file name extension, by file name, or by media type."""

from __future__ import annotations

from collections.abc import Mapping

_DOCUMENT_SUFFIXES = (
    ".md", ".markdown", ".txt", ".text", ".rst", ".html", ".htm", ".xhtml", ".pdf", ".docx", ".pptx", ".xlsx", ".csv",
    ".tsv", ".epub", ".ipynb", ".jsonl",
)  # fmt: skip

CODE_SUFFIXES = (
    ".py", ".pyi", ".pyx", ".js", ".mjs", ".cjs", ".jsx", ".ts", ".tsx", ".vue", ".svelte", ".java", ".kt", ".kts",
    ".scala", ".groovy", ".c", ".h", ".cc", ".cpp", ".cxx", ".hh", ".hpp", ".cu", ".m", ".mm", ".cs", ".fs", ".go",
    ".rs", ".rb", ".php", ".pl", ".pm", ".lua", ".swift", ".dart", ".ex", ".exs", ".erl", ".clj", ".hs", ".ml", ".r",
    ".jl", ".f90", ".sql", ".sh", ".bash", ".zsh", ".ps1", ".bat", ".tex", ".bib", ".org", ".adoc", ".css", ".scss",
    ".json", ".yaml", ".yml", ".toml", ".xml", ".ini", ".cfg", ".proto", ".graphql", ".tf", ".cmake",
)  # fmt: skip
"""Extensions of source code, configuration and data files."""

SUFFIXES = _DOCUMENT_SUFFIXES + CODE_SUFFIXES
"""The file name extensions that ragkit reads."""

FILE_NAMES = frozenset(
    {"authors", "changelog", "changes", "code_of_conduct", "contributing", "contributors", "copying", "credits"}
    | {"dockerfile", "gemfile", "history", "install", "jenkinsfile", "justfile", "licence", "license", "maintainers"}
    | {"makefile", "news", "notice", "rakefile", "readme", "security", "thanks", "todo", "vagrantfile"}
)
"""Names of text files without an extension, in lower case."""

_SUFFIXES = frozenset(SUFFIXES)

_MEDIA_TYPES: Mapping[str, str] = {
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/markdown": ".md",
    "text/csv": ".csv",
    "text/tab-separated-values": ".tsv",
    "application/pdf": ".pdf",
    "application/epub+zip": ".epub",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/x-ipynb+json": ".ipynb",
    "application/jsonl": ".jsonl",
    "application/x-ndjson": ".jsonl",
}


def kind_of(name: str) -> str | None:
    """Return the kind of a file by its name, as one of `SUFFIXES`; None if ragkit does not read it."""
    stem, dot, ending = name.rpartition(".")
    if not dot or not stem:
        return ".txt" if name.lower() in FILE_NAMES else None
    suffix = "." + ending.lower()
    return suffix if suffix in _SUFFIXES else None


def kind_of_media_type(media_type: str, name: str) -> str | None:
    """Return the kind of a server's response, as one of `SUFFIXES`; None if ragkit does not read it.

    Args:
        media_type: The ``Content-Type`` without its parameters; empty if the server sent none.
        name: The last part of the address. It decides if the media type is generic, as servers often send plain text
            or plain bytes for other kinds.
    """
    if kind := _MEDIA_TYPES.get(media_type):
        return kind
    if media_type in ("", "application/octet-stream", "binary/octet-stream", "application/zip"):
        return kind_of(name)
    is_text = media_type.startswith("text/") or media_type.endswith(("json", "xml", "yaml", "javascript", "x-sh"))
    if not is_text:
        return None
    named = kind_of(name)
    return named if named is not None and named not in {".pdf", ".docx", ".pptx", ".xlsx", ".epub"} else ".txt"
