"""PDF files: the text of each page."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator

from ragkit.documents.builder import ENCRYPTED, MAX_CHARACTERS, NO_TEXT, DocumentBuilder, reason_of
from ragkit.documents.document import Document, SourceFile
from ragkit.errors import DocumentError

# It logs every small repair of a file. Without a logging configuration, keep that off the console.
logging.getLogger("pypdf").addHandler(logging.NullHandler())


def read_pdf(source: SourceFile, deadline: float) -> Iterator[Document | DocumentError]:
    """See `ragkit.documents.read`. Pages before the deadline are kept, the rest is reported (a page is a program)."""
    import pypdf
    from pypdf.errors import DependencyError, FileNotDecryptedError

    def check_deadline(*_: object) -> None:
        if time.monotonic() > deadline:
            raise TimeoutError

    data = source.path.read_bytes()
    if not data.strip():
        raise DocumentError(source.where, NO_TEXT)
    try:
        reader = pypdf.PdfReader(io.BytesIO(data), strict=False)
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError(source.where, ENCRYPTED)
        pages = list(reader.pages)
    except (DependencyError, FileNotDecryptedError) as error:
        raise DocumentError(
            source.where, "encrypted in a way that cannot be read here; save a copy without a password"
        ) from error
    builder = DocumentBuilder(source)
    first_reason = ""
    for number, page in enumerate(pages, start=1):
        failure = None
        try:
            check_deadline()
            text = page.extract_text(visitor_operand_before=check_deadline) or ""
        except TimeoutError as error:
            failure = DocumentError(f"{source.where}, from page {number}", reason_of(error))
        except Exception as error:  # any error, as in `parse`: a bad page must not affect the others
            first_reason = first_reason or reason_of(error)
            yield DocumentError(f"{source.where}, page {number}", reason_of(error))
            continue
        else:
            if builder.size + len(text) <= MAX_CHARACTERS:
                builder.page(number)
                builder.add(text)
                continue
            failure = DocumentError(f"{source.where}, from page {number}", "too much text; split the file")
        first_reason = first_reason or failure.reason
        yield failure
        break
    if not builder.size:
        if first_reason:
            raise DocumentError(source.where, f"none of its pages can be read; the first: {first_reason}")
        raise DocumentError(source.where, f"no text on its pages ({len(pages)}): scanned or drawn; run OCR on it first")
    try:
        title = str((reader.metadata.title if reader.metadata is not None else None) or "")
    except Exception:
        title = ""  # harmless: the file name becomes the title
    yield builder.finish(title=title, pages=len(pages))
