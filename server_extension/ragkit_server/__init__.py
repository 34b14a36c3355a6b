"""ragkit's Jupyter server extension: the hub between publishers and listeners.

The hub only routes messages. Retrieval runs in notebooks, papermill runs and the command line; this package neither
imports their heavy libraries nor blocks the server's event loop.
"""

from __future__ import annotations

from typing import Any

__all__ = ["_jupyter_server_extension_points"]


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from ragkit_server.app import RagkitApp

    return [{"module": "ragkit_server.app", "app": RagkitApp}]
