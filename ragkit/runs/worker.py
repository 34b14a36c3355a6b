"""One notebook of a sweep, in a process of its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback

from ragkit.runs.run import Run


def work(folder: str) -> None:
    """Be the child: execute the run's notebook."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the sweep may have it ignored
    run = Run(folder)
    told: list[bytes] = []

    def listen() -> None:
        # Not sys.stdin, whose lock would be held when the interpreter ends.
        told.append(b"".join(iter(lambda: os.read(0, 1_000), b"")))
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=listen, daemon=True).start()
    try:
        _execute(run)
    except KeyboardInterrupt:
        if reason := b"".join(told).decode():
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
    # papermill takes braces in paths for its own.
    path = str(run.path / "notebook.ipynb").replace("{", "{{").replace("}", "}}")
    try:
        papermill.execute_notebook(
            path,
            path,
            # By this name `ragkit.live.discovery` and others know papermill, and the notebook.
            parameters=info.parameters | {"PAPERMILL_INPUT_PATH": info.settings["notebook"]},
            kernel_name=info.settings["kernel_name"],
            cwd=info.settings["cwd"],
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        run.finish("failed", error=error.ename, message=error.evalue, traceback=strip_color("\n".join(error.traceback)))
    except Exception as error:  # a kernel that died or did not start, a disk that is full: all are the run's result
        run.finish("failed", error=type(error).__name__, message=str(error), traceback=traceback.format_exc())


if __name__ == "__main__":
    work(sys.argv[1])
