"""Discovery with runtime files as jupyter_server writes them, and origins of kernels started by jupyter_client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from msgspec import UNSET

from ragkit.errors import AmbiguousServerError, ServerNotFoundError
from ragkit.live.discovery import Server, find_server, journal_dir
from ragkit.live.messages import Hello, encode
from ragkit.live.origin import find_notebook, find_origin

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def sleeper() -> Any:
    """The id of a running process that is not an ancestor of this one."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate()


class Runtime:
    def __init__(self, folder: Path) -> None:
        self.folder = folder / "runtime"
        self.folder.mkdir()
        self.env = {"JUPYTER_RUNTIME_DIR": str(self.folder)}

    def write(self, pid: int, root_dir: Path, *, name: str = "", **changes: Any) -> Path:
        info = {
            "base_url": "/", "hostname": "localhost", "password": False, "pid": pid, "port": 8888,
            "root_dir": str(root_dir), "secure": False, "sock": "",
            "token": "secret", "url": "http://localhost:8888/", "version": "2.21.1",
        } | changes  # fmt: skip
        path = self.folder / (name or f"jpserver-{pid}.json")
        path.write_text(json.dumps(info))
        return path


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(tmp_path)


# ------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("address", "url", "token"),
    [
        ("http://localhost:8888", "http://localhost:8888/", None),
        ("https://hub.example.org/user/ada/", "https://hub.example.org/user/ada/", None),
        ("http://localhost:8000/x/lab?token=abc", "http://localhost:8000/x/", "abc"),
        ("http://127.0.0.1:8000/tree", "http://127.0.0.1:8000/", None),
        ("http://0.0.0.0:8000/base", "http://127.0.0.1:8000/base/", None),
        ("http://*:8000/", "http://127.0.0.1:8000/", None),
        ("http://:8000/", "http://127.0.0.1:8000/", None),
        ("http://[::]:8000/", "http://[::1]:8000/", None),
        ("ws://localhost:8000/", "http://localhost:8000/", None),
    ],
)
def test_a_given_address(address: str, url: str, token: str | None) -> None:
    server = find_server(env={"RAGKIT_URL": address})
    assert (server.url, server.token, server.source) == (url, token, "RAGKIT_URL")


def test_a_given_token_wins_over_one_in_the_address() -> None:
    server = find_server(env={"RAGKIT_URL": "http://localhost:1/?token=old", "RAGKIT_TOKEN": "new"})
    assert server.headers == {"Authorization": "token new"}
    assert "new" not in server.ws_url()
    assert "new" not in repr(server)


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8888",
        "8888",
        "ftp://x/",
        "http://",
        "http://x:y/",
        "http://[x/",
        "http://a..b/",
        f"http://{'a' * 64}/",
    ],
)
def test_an_invalid_address_is_an_error(address: str) -> None:
    with pytest.raises(ServerNotFoundError, match="RAGKIT_URL is not an address"):
        find_server(env={"RAGKIT_URL": address})


def test_addresses_of_sockets() -> None:
    assert Server("https://h/b/").ws_url("/api/v1/ws") == "wss://h/b/api/v1/ws"
    assert Server("http://localhost:1/").ws_url() == "ws://localhost:1/api/v1/engine"
    assert Server("http://h/").headers == {}
    assert Server("http://[::1]:1/").is_loopback
    assert not Server("https://hub.example.org/").is_loopback


# ------------------------------------------------------------------------------------- the rules


def test_jupyterhub(runtime: Runtime, tmp_path: Path) -> None:
    env = runtime.env | {
        "JUPYTERHUB_SERVICE_URL": "http://0.0.0.0:8888/user/ada/",
        "JUPYTERHUB_SERVICE_PREFIX": "/user/ada/",
        "JUPYTERHUB_API_TOKEN": "hub-token",
    }
    server = find_server(env=env, cwd=tmp_path)
    assert (server.url, server.token) == ("http://127.0.0.1:8888/user/ada/", "hub-token")


def test_jupyterhub_with_a_port_that_the_server_chose(runtime: Runtime, tmp_path: Path, sleeper: int) -> None:
    """Its runtime file has the port, but no token."""
    runtime.write(sleeper, tmp_path, base_url="/user/ada/", port=40_000, token="", url="http://x:40000/user/ada/",
                  hostname="0.0.0.0")  # fmt: skip
    env = runtime.env | {
        "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:0/user/ada/",
        "JUPYTERHUB_SERVICE_PREFIX": "/user/ada/",
        "JUPYTERHUB_API_TOKEN": "hub-token",
    }
    server = find_server(env=env, cwd=tmp_path)
    assert (server.url, server.token) == ("http://127.0.0.1:40000/user/ada/", "hub-token")


def test_a_kernels_parent(runtime: Runtime, tmp_path: Path, sleeper: int) -> None:
    runtime.write(
        sleeper, tmp_path / "elsewhere", url="http://myhost:9999/b/", base_url="/b/", port=9999, hostname="::"
    )
    server = find_server(env=runtime.env | {"JPY_PARENT_PID": str(sleeper)}, cwd=tmp_path)
    assert server == Server("http://[::1]:9999/b/", "secret", sleeper, "JPY_PARENT_PID")


def test_an_ancestor(runtime: Runtime, tmp_path: Path) -> None:
    """A script started in a terminal of the server."""
    runtime.write(os.getpid(), tmp_path / "elsewhere")
    code = "from ragkit.live.discovery import find_server; s = find_server(); print(s.pid, s.source)"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("JPY_", "JUPYTER", "RAGKIT"))}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env | runtime.env | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.split() == [str(os.getpid()), "parent", "process"]


def test_a_lab_terminal(runtime: Runtime, tmp_path: Path, sleeper: int) -> None:
    env = runtime.env | {"JUPYTER_SERVER_URL": "http://myhost:9999/b/"}
    with_token = find_server(env=env | {"JUPYTER_TOKEN": "t"}, cwd=tmp_path)
    assert (with_token.url, with_token.token) == ("http://myhost:9999/b/", "t")
    runtime.write(sleeper, tmp_path / "elsewhere", url="http://myhost:9999/b/", base_url="/b/", port=9999,
                  hostname="0.0.0.0", token="from the file")  # fmt: skip
    server = find_server(env=env, cwd=tmp_path)
    assert (server.url, server.token) == ("http://127.0.0.1:9999/b/", "from the file")


def test_the_deepest_root_dir_around_the_notebook(runtime: Runtime, tmp_path: Path, sleeper: int) -> None:
    deep = tmp_path / "work" / "project"
    deep.mkdir(parents=True)
    runtime.write(sleeper, tmp_path, name="jpserver-1.json", port=1, url="http://localhost:1/")
    runtime.write(sleeper, deep.parent, name="jpserver-2.json", port=2, url="http://localhost:2/")
    runtime.write(sleeper, deep / "deeper", name="jpserver-3.json", port=3, url="http://localhost:3/")
    assert find_server(env=runtime.env, cwd=deep).url == "http://localhost:2/"
    assert find_server(env=runtime.env, cwd=tmp_path, notebook=deep / "a.ipynb").url == "http://localhost:2/"
    assert find_server(env=runtime.env, cwd=tmp_path).url == "http://localhost:1/"
    # A folder whose name has the same prefix does not match.
    (tmp_path / "worker").mkdir()
    assert find_server(env=runtime.env, cwd=tmp_path / "worker").url == "http://localhost:1/"


def test_two_equal_matches_are_an_error(runtime: Runtime, tmp_path: Path, sleeper: int) -> None:
    runtime.write(sleeper, tmp_path, name="jpserver-1.json", port=1, url="http://localhost:1/")
    runtime.write(sleeper, tmp_path, name="jpserver-2.json", port=2, url="http://localhost:2/")
    with pytest.raises(AmbiguousServerError) as caught:
        find_server(env=runtime.env, cwd=tmp_path)
    assert caught.value.urls == ("http://localhost:1/", "http://localhost:2/")
    assert "secret" not in str(caught.value)


def test_unusable_runtime_files_are_ignored_and_not_deleted(
    runtime: Runtime, tmp_path: Path, sleeper: int, dead_pid: int
) -> None:
    runtime.write(dead_pid, tmp_path)
    runtime.write(sleeper, tmp_path, name="jpserver-8.json", sock="/run/jupyter.sock")
    (runtime.folder / "jpserver-9.json").write_text('{"pid": ')
    (runtime.folder / "jpserver-10.json").write_bytes(b'{"url": "\xff"}')
    before = sorted(runtime.folder.iterdir())
    with pytest.raises(ServerNotFoundError):
        find_server(env=runtime.env, cwd=tmp_path)
    assert sorted(runtime.folder.iterdir()) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can change a file's owner")
def test_a_runtime_file_of_another_user_is_ignored(runtime: Runtime, tmp_path: Path) -> None:
    planted = runtime.write(
        1, tmp_path, token="", url="http://localhost:6666/"
    )  # process 1 is an ancestor of every process
    os.chown(planted, 12_345, 12_345)
    with pytest.raises(ServerNotFoundError):
        find_server(env=runtime.env | {"JUPYTER_TOKEN": "secret"}, cwd=tmp_path)
    os.chown(runtime.folder, 12_345, 12_345)  # now the file belongs to the folder's owner
    assert find_server(env=runtime.env, cwd=tmp_path).url == "http://localhost:6666/"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_pipe_among_the_runtime_files_does_not_block(runtime: Runtime, tmp_path: Path, sleeper: int) -> None:
    os.mkfifo(runtime.folder / "jpserver-1.json")
    runtime.write(sleeper, tmp_path)
    script = "from ragkit.live.discovery import find_server; print(find_server().url)"
    environ = {name: value for name, value in os.environ.items() if name not in ("RAGKIT_URL", "JPY_PARENT_PID")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ | runtime.env | {"PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert done.stdout == "http://localhost:8888/\n", done.stderr


def test_servers_elsewhere_are_named(runtime: Runtime, tmp_path: Path, sleeper: int) -> None:
    (tmp_path / "a").mkdir()
    runtime.write(sleeper, tmp_path / "a")
    with pytest.raises(ServerNotFoundError, match="http://localhost:8888/ in "):
        find_server(env=runtime.env, cwd=tmp_path)


def test_no_runtime_folder(tmp_path: Path) -> None:
    with pytest.raises(ServerNotFoundError, match="Start one with"):
        find_server(env={"JUPYTER_RUNTIME_DIR": str(tmp_path / "none")}, cwd=tmp_path)


def test_where_journals_are(tmp_path: Path) -> None:
    assert journal_dir(env={"RAGKIT_JOURNAL_DIR": "/x"}) == Path("/x")
    assert journal_dir(env={"JUPYTER_DATA_DIR": str(tmp_path)}) == tmp_path / "ragkit" / "journal"


# ------------------------------------------------------------------------------------- origin


def test_a_script() -> None:
    origin = find_origin(env={})
    assert (origin.kind, origin.run_id) == ("script", find_origin(env={}).run_id)
    assert find_notebook(env={}) is None
    assert find_origin(kind="cli", name="ragkit index", env={}).name == "ragkit index"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that this process appears to run, because sys.argv names it."""
    path = tmp_path / "batch.py"
    path.touch()
    monkeypatch.setattr(sys, "argv", [str(path)])
    return path


def test_the_origin_of_a_script_has_its_path(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_origin(env={}).path == str(script)
    (script.parent / "sub").mkdir()
    monkeypatch.chdir(script.parent / "sub")
    monkeypatch.setattr(sys, "argv", ["../batch.py"])
    assert find_origin(env={}).path == str(script)
    package = script.with_name("__main__.py")
    package.touch()
    monkeypatch.setattr(sys, "argv", [str(package)])  # python -m package
    origin = find_origin(env={})
    assert (origin.name, origin.path) == (script.parent.name, str(package))
    assert find_notebook(env={}) is None, "a server is searched by the working directory, not by the script's folder"


def test_an_overridden_kind_or_name_has_no_path(script: Path) -> None:
    assert find_origin(kind="script", name="batch.py", env={}).path == str(script)
    assert find_origin(name="another", env={}).path is UNSET
    assert find_origin(kind="cli", env={}).path is UNSET


def test_a_path_that_cannot_be_sent_is_absent(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script.unlink()
    assert find_origin(env={}).path is UNSET, "the file does not exist"
    deep = script.parent / "/".join(["x" * 200] * 6)
    deep.mkdir(parents=True)
    (deep / "batch.py").touch()
    monkeypatch.setattr(sys, "argv", [str(deep / "batch.py")])
    assert find_origin(env={}).path is UNSET, "the path is too long for a message"
    gone = script.parent / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    monkeypatch.setattr(sys, "argv", ["batch.py"])
    assert find_origin(env={}).path is UNSET, "the working directory is unknown"


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are always Unicode on this platform")
def test_a_name_that_is_not_utf_8_can_still_be_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.py")
    Path(path).touch()
    monkeypatch.setattr(sys, "argv", [path])
    origin = find_origin(env={})
    assert (origin.name, origin.path) == ("caf?.py", UNSET)
    assert encode(Hello(publisher="p", origin=origin))


def run_python(code: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True, timeout=60,
    ).stdout  # fmt: skip


def test_each_process_has_a_run_id() -> None:
    code = "from ragkit.live.origin import find_origin; o = find_origin(); print(o.name, o.run_id)"
    first, second = run_python(code).split(), run_python(code).split()
    assert first[0] == second[0] == "python"
    assert first[1] != second[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_has_another_run_id() -> None:
    code = """
import os
from ragkit.live.origin import find_origin
print(find_origin().run_id, flush=True)
if os.fork() == 0:
    print(find_origin().run_id, flush=True)
    os._exit(0)
os.wait()
"""
    first, second = run_python(code).split()
    assert first != second


CELL = """
import json
from ragkit.live.origin import find_notebook, find_origin
origin = find_origin()
path = origin.path or None
print(json.dumps([origin.kind, origin.name, origin.run_id, find_origin().run_id, str(find_notebook()), path]))
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    cell = nbformat.v4.new_code_cell(CELL, id="cell")
    note = nbformat.v4.new_notebook(cells=[cell])
    note.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "nightly.ipynb"
    nbformat.write(note, path)
    return path


@pytest.fixture
def kernel_env(tmp_path: Path) -> dict[str, str]:
    """An environment in which kernels use this interpreter and only files below ``tmp_path``."""
    spec = tmp_path / "data" / "kernels" / "python3"
    spec.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("JPY_", "JUPYTER", "RAGKIT"))}
    return env | {
        "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "JUPYTER_DATA_DIR": str(tmp_path / "data"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "run"), "JUPYTER_CONFIG_DIR": str(tmp_path / "config"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }  # fmt: skip


def printed(path: Path) -> list[str]:
    cells = nbformat.read(path, as_version=4).cells
    return next(
        json.loads(out.text) for cell in cells for out in cell.get("outputs", ()) if out.output_type == "stream"
    )


@pytest.mark.parametrize("more", [[], ["-p", "k", "3"], ["--inject-paths"]])
def test_papermill_from_a_terminal(notebook: Path, kernel_env: dict[str, str], more: list[str]) -> None:
    output = notebook.with_name("out.ipynb")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", *more, str(notebook), str(output)]
    subprocess.run(command, env=kernel_env, cwd=notebook.parent, check=True, capture_output=True, timeout=120)
    kind, name, run_id, again, path, file = printed(output)
    assert (kind, name, path, file) == ("papermill", "nightly.ipynb", str(notebook), str(notebook))
    assert run_id == again


def test_papermill_called_by_a_script(notebook: Path, kernel_env: dict[str, str]) -> None:
    """Nothing in the kernel names the notebook, so the origin has no path."""
    output = notebook.with_name("out.ipynb")
    script = notebook.with_name("batch.py")
    script.write_text(
        "import papermill\n"
        f"papermill.execute_notebook({str(notebook)!r}, {str(output)!r}, parameters={{'k': 3}}, progress_bar=False)\n"
    )
    command = [sys.executable, str(script)]
    subprocess.run(command, env=kernel_env, cwd=notebook.parent, check=True, capture_output=True, timeout=120)
    kind, name, *_, path, file = printed(output)
    assert (kind, name, path, file) == ("papermill", "a notebook run by batch.py", "None", None)


def test_papermill_called_by_a_notebook(notebook: Path, kernel_env: dict[str, str]) -> None:
    """The inner kernel inherits JPY_SESSION_NAME, but must not use the outer notebook's name."""
    output = notebook.with_name("out.ipynb")
    outer = f"""
import nbformat, os
from nbclient import NotebookClient
os.environ["JPY_SESSION_NAME"] = "/somewhere/outer.ipynb"
code = "import papermill; papermill.execute_notebook({str(notebook)!r}, {str(output)!r}, {{'k': 3}})"
note = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
NotebookClient(note, kernel_name="python3").execute()
"""
    command = [sys.executable, "-c", outer]
    subprocess.run(command, env=kernel_env, cwd=notebook.parent, check=True, capture_output=True, timeout=120)
    assert printed(output)[:2] == ["papermill", "a notebook run by outer.ipynb"]


def test_a_notebook_of_a_server(notebook: Path, kernel_env: dict[str, str]) -> None:
    """The test sets JPY_SESSION_NAME as the server does, and runs the notebook with nbclient."""
    script = f"""
import nbformat, os
from nbclient import NotebookClient
os.environ["JPY_SESSION_NAME"] = {str(notebook)!r}
note = nbformat.read({str(notebook)!r}, as_version=4)
NotebookClient(note, kernel_name="python3").execute()
nbformat.write(note, "out.ipynb")
"""
    subprocess.run(
        [sys.executable, "-c", script],
        env=kernel_env,
        cwd=notebook.parent,
        check=True,
        capture_output=True,
        timeout=120,
    )
    kind, name, _, _, path, file = printed(notebook.with_name("out.ipynb"))
    assert (kind, name, path, file) == ("notebook", "nightly.ipynb", str(notebook), str(notebook))
