"""What the hub counts. Counting is adding to an integer; `ragkit_server.metrics` makes a page of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Counted since the server started.

    Attributes:
        connections: Opened, by kind (listener, publisher).
        dropped: Connections given up because writing to them failed.
        broadcasts: By message type.
        replies: What queries ended in: ``response``, or the code of an error.
        writes: To sockets; one may carry many frames.
        bytes: To sockets.
        repeats: Events that publishers sent again, and nobody got twice.
        adopted: Events that came from journals.
        commits: Transactions of the archive.
        commit_seconds: What they took.
        commit_failures: Those that the disk refused.
    """

    connections: Counter[str] = field(default_factory=Counter)
    dropped: int = 0
    broadcasts: Counter[str] = field(default_factory=Counter)
    replies: Counter[str] = field(default_factory=Counter)
    writes: int = 0
    bytes: int = 0
    repeats: int = 0
    adopted: int = 0
    commits: int = 0
    commit_seconds: float = 0.0
    commit_failures: int = 0
