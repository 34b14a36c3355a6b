"""Finds the Jupyter server to publish to.

`find_server` tries these rules in order and uses the first that matches:

1. ``RAGKIT_URL`` and ``RAGKIT_TOKEN``, set by the user. The URL may be copied from the browser
   (``http://host:8888/lab?token=...``).
2. JupyterHub's environment: ``JUPYTERHUB_SERVICE_URL`` (a bind address), ``JUPYTERHUB_SERVICE_PREFIX``
   and ``JUPYTERHUB_API_TOKEN``.
3. The server that started this process: ``JPY_PARENT_PID`` (set in kernels), then the process's ancestors (for a
   script in a Lab terminal, or papermill inside a notebook); each is looked up as ``jpserver-PID.json``.
4. ``JUPYTER_SERVER_URL`` (set in Lab terminals), with ``JUPYTER_TOKEN`` or the token in that server's runtime file.
5. The running server whose ``root_dir`` contains the notebook or the working directory; with several, the deepest
   ``root_dir``. If two servers match equally, an error is raised.

A runtime file must belong to this user, root or the folder's owner; others are ignored. Runtime files are only read.
``jupyter_server.serverapp.list_running_servers`` is not used, because it deletes the files of processes that it cannot
see, and a server in another container may still be running.

`ragkit.live.origin.find_origin` relies on the behaviour of jupyter_server 2, ipykernel 7 and papermill 2.7:

- jupyter_server sets ``JPY_SESSION_NAME`` to the notebook's path; a kernel's children inherit it.
- jupyter_client sets ``JPY_PARENT_PID`` to the process that started the kernel.
- papermill sets nothing in the kernel's environment. ``--inject-paths`` adds ``PAPERMILL_INPUT_PATH`` to the
  notebook's namespace. Without it, the command line of the parent process names the notebook. A run started by
  ``papermill.execute_notebook()`` can only be recognised by its injected cell (``# Parameters``).
- VS Code sets ``__vsc_ipynb_file__`` in the notebook's namespace.
"""

from __future__ import annotations

import dataclasses
import importlib
import ipaddress
import os
import re
import stat
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlsplit

import msgspec

from ragkit.errors import AmbiguousServerError, ServerNotFoundError
from ragkit.live.origin import ancestors, find_notebook

_WILDCARDS = {"", "0.0.0.0", "::", "*"}


@dataclass(frozen=True, slots=True)
class Server:
    """A Jupyter server.

    Attributes:
        url: The base URL, ending with ``/``, without a token.
        token: The token for the Authorization header, or None. Not shown in the repr.
        pid: The server's process id, if known.
        source: The rule that found the server, for messages.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    pid: int | None = None
    source: str = "given"

    def ws_url(self, path: str = "api/v1/engine") -> str:
        """Return the WebSocket URL of ``path`` under this server's base URL."""
        return "ws" + self.url.removeprefix("http") + path.lstrip("/")

    @property
    def headers(self) -> dict[str, str]:
        """The headers that authenticate a request; the token is never part of a URL."""
        return {"Authorization": f"token {self.token}"} if self.token else {}

    @property
    def is_loopback(self) -> bool:
        """True if the server is on this machine, so that no proxy may be used."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


class _Info(msgspec.Struct, frozen=True):
    """The fields of a runtime file that ragkit reads; see ``ServerApp.server_info``."""

    url: str
    pid: int
    root_dir: str
    port: int
    base_url: str = "/"
    hostname: str = ""
    token: str = ""
    secure: bool = False
    sock: str = ""


def find_server(
    *,
    env: Mapping[str, str] = os.environ,
    cwd: str | os.PathLike[str] | None = None,
    notebook: str | os.PathLike[str] | None = None,
    url: str | None = None,
    token: str | None = None,
) -> Server:
    """Find the Jupyter server that this process belongs to.

    Reads a few small files and opens no connection, so the server may still refuse one.

    Args:
        url: The server's address, if known. ``RAGKIT_TOKEN`` is only used for the server that ``RAGKIT_URL`` names.
        token: The server's token, if known.
        env: The environment variables.
        cwd: The folder that a server's ``root_dir`` must contain; the working directory by default.
        notebook: The notebook's path, used instead of ``cwd``; by default the result of `find_notebook`.

    Raises:
        ServerNotFoundError: No rule matches.
        AmbiguousServerError: Several servers match.
    """
    if token is not None:
        return dataclasses.replace(find_server(env=env, cwd=cwd, notebook=notebook, url=url), token=token)
    if address := url or env.get("RAGKIT_URL"):
        is_another = env.get("RAGKIT_URL", address) != address
        return _given(address, None if is_another else env.get("RAGKIT_TOKEN"), "RAGKIT_URL" if url is None else "url")
    infos = _running(env)
    found = _from_hub(env) or _from_ancestors(env, infos) or _from_terminal(env, infos)
    if found:
        return found
    place = notebook or (cwd and Path(cwd)) or find_notebook(env=env) or Path.cwd()
    return _from_root_dir(env, infos, Path(place))


def _given(address: str, token: str | None, source: str) -> Server:
    try:
        parts = urlsplit(address.strip())
        _ = parts.port
        (parts.hostname or "").encode("idna")
    except ValueError as problem:
        raise ServerNotFoundError(f"{source} is not an address: {problem}") from problem
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.netloc:
        raise ServerNotFoundError(f"{source} is not an address such as http://localhost:8000/")
    token = token or parse_qs(parts.query).get("token", [None])[0]
    # An address copied from the browser often ends in the path of a page.
    path = re.sub(r"/(lab|tree)(/.*)?$", "/", parts.path)
    netloc = parts.netloc.rpartition("@")[2]
    return Server(_base(scheme, netloc, path), token, None, source)


def _base(scheme: str, netloc: str, path: str) -> str:
    parts = urlsplit(f"//{netloc}")
    # "http://:8888", "http://*:8888" and "http://[::]:8888" are bind addresses; connect to the loopback address.
    if (parts.hostname or "") in _WILDCARDS:
        host = "[::1]" if parts.hostname == "::" else "127.0.0.1"
        netloc = f"{host}:{parts.port}" if parts.port else host
    return f"{scheme}://{netloc}/{path.strip('/')}/" if path.strip("/") else f"{scheme}://{netloc}/"


def _from_hub(env: Mapping[str, str]) -> Server | None:
    parts = urlsplit(env.get("JUPYTERHUB_SERVICE_URL", ""))
    # With port 0 the single-user server chooses a port, which is only in its runtime file.
    if not parts.scheme or not parts.port:
        return None
    path = env.get("JUPYTERHUB_SERVICE_PREFIX") or parts.path
    return Server(
        _base(parts.scheme, parts.netloc, path), env.get("JUPYTERHUB_API_TOKEN"), None, "JUPYTERHUB_SERVICE_URL"
    )


def _from_ancestors(env: Mapping[str, str], infos: Sequence[_Info]) -> Server | None:
    if not infos:
        return None
    by_pid = {info.pid: info for info in infos}
    parent = env.get("JPY_PARENT_PID", "")
    if parent.isdigit() and (info := by_pid.get(int(parent))):
        return _from_info(info, env, "JPY_PARENT_PID")
    for pid, _ in ancestors():
        if info := by_pid.get(pid):
            return _from_info(info, env, "parent process")
    return None


def _from_terminal(env: Mapping[str, str], infos: Sequence[_Info]) -> Server | None:
    url = env.get("JUPYTER_SERVER_URL")
    if not url:
        return None
    parts = urlsplit(url)
    for info in infos:
        # Compare without the host: a server that listens on all interfaces may use the machine's host name here.
        if info.port == parts.port and info.base_url.strip("/") == parts.path.strip("/"):
            return _from_info(info, env, "JUPYTER_SERVER_URL")
    return _given(url, env.get("JUPYTER_TOKEN"), "JUPYTER_SERVER_URL")


def _from_root_dir(env: Mapping[str, str], infos: Sequence[_Info], place: Path) -> Server:
    place = place.expanduser().resolve()
    around: dict[Path, list[_Info]] = {}
    for info in infos:
        root = Path(info.root_dir).resolve()
        if place.is_relative_to(root):
            around.setdefault(root, []).append(info)
    if not around:
        others = ", ".join(f"{_from_info(info, env, '').url} in '{info.root_dir}'" for info in infos)
        raise ServerNotFoundError(f"none serves '{place}'; running: {others}" if others else "")
    nearest = around[max(around, key=lambda root: len(root.parts))]
    if len(nearest) > 1:
        raise AmbiguousServerError([_from_info(info, env, "").url for info in nearest])
    return _from_info(nearest[0], env, "root_dir")


def _from_info(info: _Info, env: Mapping[str, str], source: str) -> Server:
    token = info.token or env.get("JUPYTER_TOKEN")
    if not token and env.get("JUPYTERHUB_SERVICE_PREFIX", "").strip("/") == info.base_url.strip("/"):
        token = env.get("JUPYTERHUB_API_TOKEN")  # a single-user server has no token of its own
    parts = urlsplit(info.url)
    netloc = parts.netloc
    # A server that listens on all interfaces gives its host name, which containers often cannot resolve. With https
    # the host name is kept, because the certificate is for it.
    if info.hostname in _WILDCARDS and not info.secure:
        netloc = f"[{info.hostname}]:{info.port}" if ":" in info.hostname else f"{info.hostname}:{info.port}"
    return Server(_base(parts.scheme, netloc, info.base_url), token or None, info.pid, source)


def _running(env: Mapping[str, str]) -> list[_Info]:
    folder = _jupyter_dir(env, "runtime")
    infos = []
    for path in sorted(folder.glob("jpserver-*.json")):
        try:
            if not _is_trusted(path):
                continue
            info = msgspec.json.decode(path.read_bytes(), type=_Info)
        except (OSError, ValueError):  # ValueError: not JSON, or not UTF-8
            continue  # deleted meanwhile, being written, or not readable
        # The publisher cannot connect to a server on a Unix socket.
        if not info.sock and _is_alive(info.pid):
            infos.append(info)
    return infos


def _is_trusted(path: Path) -> bool:
    """Return whether a runtime file has a trusted owner; another user's file could lead our token to their server."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return False  # opening a pipe would block
    if sys.platform == "win32":
        return True  # stat has no owner on Windows, and runtime folders are private
    # This user, root, or the folder's owner (root may read the runtime folder of another user).
    return status.st_uid in (os.geteuid(), 0, path.parent.stat().st_uid)


def _is_alive(pid: int) -> bool:
    if sys.platform == "win32":  # on Windows os.kill(pid, 0) would end the process
        return bool(importlib.import_module("psutil").pid_exists(pid))
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _jupyter_dir(env: Mapping[str, str], what: Literal["runtime", "data"]) -> Path:
    if override := env.get(f"JUPYTER_{what.upper()}_DIR"):
        return Path(override)
    from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir  # slow to import

    return Path(jupyter_runtime_dir() if what == "runtime" else jupyter_data_dir())


def journal_dir(*, env: Mapping[str, str] = os.environ) -> Path:
    """Return the folder for the journals of publishers without a server.

    ``RAGKIT_JOURNAL_DIR`` if it is set, else ``ragkit/journal`` in Jupyter's data folder. It may not exist yet.
    """
    if override := env.get("RAGKIT_JOURNAL_DIR"):
        return Path(override)
    return _jupyter_dir(env, "data") / "ragkit" / "journal"
