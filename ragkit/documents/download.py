"""Downloads: one page or file from the web, to index like a local file."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import weakref
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ragkit.documents.document import Found, SourceFile
from ragkit.documents.filetypes import kind_of_media_type
from ragkit.errors import DocumentError

DOWNLOAD_SECONDS = 120.0
_SILENCE_SECONDS = 20.0
_MAX_REDIRECTS = 10
_REQUIREMENTS = {401: "a login", 403: "permission", 407: "a proxy login"}


class _Folder:
    """A temporary folder, removed when this object is garbage-collected or the process ends."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="ragkit-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def download(url: str, *, max_bytes: int, timeout_seconds: float = DOWNLOAD_SECONDS) -> Found:
    """Download one address to a temporary file.

    Args:
        url: An address that begins with ``http://`` or ``https://``. Its fragment (``#...``) is ignored. A user name
            and password in it are sent to the server and never shown.
        max_bytes: The size limit, after decompression.
        timeout_seconds: The time-out of the whole download.

    Returns:
        One source, whose file is removed when the result is garbage-collected; or one failure, which says what to do.
    """
    try:
        address = urlsplit(url)
    except ValueError as error:
        failure = DocumentError(url, f"not an address ({error}); check its spelling")
        return Found(Path(url), (), (failure,), alone=True)
    shown = address._replace(netloc=address.netloc.rpartition("@")[2], fragment="").geturl()
    root = Path(f"{address.scheme}:/{address.netloc.rpartition('@')[2]}")
    folder = _Folder()
    try:
        name, size_bytes = _fetch(url, folder.path, max_bytes, time.monotonic() + timeout_seconds)
    except _DownloadFailed as failure:
        return Found(root, (), (DocumentError(shown, str(failure)),), alone=True)
    source = SourceFile(root=folder.path, name=name, size_bytes=size_bytes, url=shown)
    return Found(root, (source,), alone=True, keeps=folder)


class _DownloadFailed(Exception):
    """The reason why a download failed, to show to the user."""


def _fetch(url: str, folder: Path, max_bytes: int, deadline: float) -> tuple[str, int]:
    import httpx2

    limits = httpx2.Timeout(_SILENCE_SECONDS, connect=10.0)
    headers = {"User-Agent": "ragkit", "Accept": "text/html, text/*;q=0.9, */*;q=0.8"}
    try:
        with (
            httpx2.Client(follow_redirects=True, max_redirects=_MAX_REDIRECTS, timeout=limits) as client,
            client.stream("GET", url, headers=headers) as response,
        ):
            if response.status_code != 200:
                raise _DownloadFailed(_status(response.status_code, response.reason_phrase))
            media_type, _, parameters = response.headers.get("content-type", "").partition(";")
            last = unquote(response.url.path).rstrip("/").rpartition("/")[2]
            kind = kind_of_media_type(media_type.strip().lower(), last)
            if kind is None:
                raise _DownloadFailed(f"ragkit does not read what the server sends ({media_type.strip() or 'no type'})")
            size = int(declared) if (declared := response.headers.get("content-length", "")).isdecimal() else 0
            if size > max_bytes:
                raise _DownloadFailed(_too_large(max_bytes))
            file = folder / f"download{kind}"
            with file.open("wb") as out:
                for block in response.iter_bytes(65_536):
                    out.write(block)
                    if out.tell() > max_bytes:
                        raise _DownloadFailed(_too_large(max_bytes))
                    if time.monotonic() > deadline:
                        raise _DownloadFailed(
                            "the download did not end in time; download it yourself, and index the file"
                        )
                size = out.tell()
            return file.name, _in_utf8(file, parameters, kind) or size
    except httpx2.TimeoutException as error:
        raise _DownloadFailed("the server does not answer in time; try again later") from error
    except httpx2.TooManyRedirects as error:
        raise _DownloadFailed("the server redirects without end; open the address in a browser") from error
    except httpx2.UnsupportedProtocol as error:
        raise _DownloadFailed("it redirects to an address that is not http:// or https://") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _DownloadFailed(f"cannot be downloaded: {reason}; check the address and the network") from error
    except OSError as error:
        raise _DownloadFailed(f"the download cannot be stored: {os.strerror(error.errno or 0)}") from error


def _status(code: int, phrase: str) -> str:
    answer = f"the server answers {code} {phrase}".rstrip()
    if code in _REQUIREMENTS:
        return f"{answer}: it requires {_REQUIREMENTS[code]}; download it yourself, and index the file"
    if code in (404, 410):
        return f"{answer}: there is nothing at this address; check its spelling"
    return f"{answer}; try again later"


def _too_large(max_bytes: int) -> str:
    return f"too large: the limit is {max_bytes / 2**20:.1f} MiB"


def _in_utf8(file: Path, parameters: str, kind: str) -> int:
    """Rewrite a text file as UTF-8 if only the ``Content-Type`` has its encoding; return the new size, or 0."""
    value = parameters.partition("charset=")[2]
    charset = value.partition(";")[0].strip().strip("\"'")
    if not charset or kind in (".pdf", ".docx", ".pptx", ".xlsx", ".epub"):
        return 0
    data = file.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        try:
            text = data.decode("cp1252" if charset.lower() in ("iso-8859-1", "latin-1") else charset)
        except (LookupError, ValueError):
            return 0  # the declared charset is wrong; leave detection to the reader
        return file.write_bytes(text.encode("utf-8", "replace"))
    return 0
