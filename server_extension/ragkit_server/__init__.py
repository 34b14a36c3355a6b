"""ragkit's extension of the Jupyter server: the hub between notebooks and whoever listens.

It only routes messages. All retrieval work happens in notebooks, papermill runs and the command
line; nothing here imports their heavy libraries, or blocks the server's event loop.
"""

from __future__ import annotations

from typing import Any

__all__ = ["_jupyter_server_extension_points"]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from ragkit_server.app import RagkitApp

    return [{"module": "ragkit_server.app", "app": RagkitApp}]
