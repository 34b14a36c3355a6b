"""The worker process of a sweep: executes one notebook."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback

from ragkit.runs.run import Run


def work(folder: str) -> None:
    """Execute the notebook of the run in ``folder``; a closed stdin stops it, and text read there is the reason."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the parent may have set SIGINT to be ignored
    run = Run(folder)
    received: list[bytes] = []

    def wait_for_stop() -> None:
        # Not sys.stdin: this thread would still hold its lock when the interpreter exits.
        received.append(b"".join(iter(lambda: os.read(0, 1_000), b"")))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait_for_stop, daemon=True).start()
    try:
        _execute(run)
    except KeyboardInterrupt:
        if reason := b"".join(received).decode():
            run.finish("failed", error="TimeoutError", message=reason)
        else:
            run.finish("cancelled", message="The sweep was stopped.")
    else:
        if run.info.state == "running":
            run.finish()


def _execute(run: Run) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError, strip_color

    info = run.info
    # papermill treats paths as format strings, so braces have to be escaped.
    path = str(run.path / "notebook.ipynb").replace("{", "{{").replace("}", "}}")
    try:
        papermill.execute_notebook(
            path,
            path,
            # `ragkit.live.origin` and others recognise papermill, and find the notebook, by this parameter.
            parameters=info.parameters | {"PAPERMILL_INPUT_PATH": info.settings["notebook"]},
            kernel_name=info.settings["kernel_name"],
            cwd=info.settings["cwd"],
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        run.finish("failed", error=error.ename, message=error.evalue, traceback=strip_color("\n".join(error.traceback)))
    except Exception as error:  # a kernel that died or did not start, a full disk: recorded as the run's result
        run.finish("failed", error=type(error).__name__, message=str(error), traceback=traceback.format_exc())


if __name__ == "__main__":
    work(sys.argv[1])
