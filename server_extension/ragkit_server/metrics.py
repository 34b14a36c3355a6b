"""What the hub counts, and how Prometheus reads it.

Counting is adding to an integer; what it takes to make a page of it is done when somebody asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

__all__ = ["Counters", "Exporter"]


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


class Exporter:
    """A collector for `prometheus_client.REGISTRY`, which the Jupyter server shows at ``/metrics``.

    Args:
        counters: What has been counted.
        gauges: Says how it stands now: a value, and what it means, by name.
    """

    def __init__(self, counters: Counters, gauges: Callable[[], dict[str, tuple[float, str]]]) -> None:
        self._counters = counters
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """Yield everything, as Prometheus wants it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def labelled(name: str, help: str, label: str, values: Counter[str]) -> Metric:
            family = CounterMetricFamily(f"ragkit_{name}", help, labels=[label])
            for value, count in sorted(values.items()):
                family.add_metric([value], count)
            return family

        c = self._counters
        yield labelled("connections", "Connections opened.", "kind", c.connections)
        yield labelled("broadcasts", "Messages broadcast.", "type", c.broadcasts)
        yield labelled("replies", "What queries ended in.", "result", c.replies)
        for name, value, help in (
            ("connections_dropped", c.dropped, "Connections given up because writing to them failed."),
            ("socket_writes", c.writes, "Writes to sockets; one may carry many messages."),
            ("socket_bytes", c.bytes, "Bytes written to sockets."),
            ("events_repeated", c.repeats, "Events that publishers sent again, and nobody got twice."),
            ("journal_events", c.adopted, "Events adopted from journals."),
            ("commits", c.commits, "Transactions of the history."),
            ("commit_seconds", c.commit_seconds, "Seconds that they took."),
            ("commit_failures", c.commit_failures, "Transactions that the disk refused."),
        ):
            yield CounterMetricFamily(f"ragkit_{name}", help, value)
        for name, (value, help) in self._gauges().items():
            yield GaugeMetricFamily(f"ragkit_{name}", help, value)
