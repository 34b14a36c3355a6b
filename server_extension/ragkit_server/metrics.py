"""How Prometheus reads what the hub counts, and how it stands; done when somebody asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from ragkit_server.hub.manager import WebSocketManager


def gauges(hub: WebSocketManager) -> dict[str, tuple[float, str]]:
    """Return how a hub stands now: values and their meanings, by name."""
    history = hub.history
    blocked = sum(socket.blocked for socket in hub.listeners)
    return {
        "listeners": (len(hub.listeners), "Open connections of listeners."),
        "listeners_blocked": (blocked, "Listeners that do not read as fast as they are sent to."),
        "publishers": (len(hub.publishers), "Connected publishers."),
        "engines": (len(hub.engines.on_offer()), "Engines on offer."),
        "queries": (hub.engines.under_way, "Queries that are being answered."),
        "tasks": (len(history.state.live_tasks()), "Tasks that have not ended."),
        "history_seq": (history.seq, "The newest event."),
        "history_events": (history.log_events, "Events kept in memory."),
        "history_bytes": (history.log_bytes, "Bytes of events kept in memory."),
        "history_gaps": (history.gaps, "How often a listener had missed more than could be replayed."),
        "history_durable": (history.durable, "Whether the history survives a restart: 1 or 0."),
    }


class Exporter:
    """A collector for `prometheus_client.REGISTRY`, which the Jupyter server shows at ``/metrics``.

    Args:
        hub: Whose counters and gauges are shown.
    """

    def __init__(self, hub: WebSocketManager) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """Yield everything, as Prometheus wants it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def labelled(name: str, help: str, label: str, values: Counter[str]) -> Metric:
            family = CounterMetricFamily(f"ragkit_{name}", help, labels=[label])
            for value, count in sorted(values.items()):
                family.add_metric([value], count)
            return family

        c = self._hub.counters
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
        for name, (value, help) in gauges(self._hub).items():
            yield GaugeMetricFamily(f"ragkit_{name}", help, value)
