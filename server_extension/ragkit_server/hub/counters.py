"""The hub's counters, which are plain integers; `ragkit_server.metrics` exports them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """Counters since the start of the server.

    Attributes:
        connections: Opened connections, by kind (listener, publisher).
        dropped: Connections closed because writing to them failed.
        broadcasts: Broadcasts, by message type.
        replies: Results of queries: ``response``, or the code of an error.
        writes: Writes to sockets; one write may contain many frames.
        bytes: Bytes written to sockets.
        repeats: Duplicate events from publishers, which were discarded.
        adopted: Events adopted from journals.
        commits: Transactions of the archive.
        commit_seconds: Time spent in these transactions.
        commit_failures: Failed transactions.
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
