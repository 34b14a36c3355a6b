"""Exports the hub's counters and gauges to Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from ragkit_server.hub.manager import WebSocketManager


def gauges(hub: WebSocketManager) -> dict[str, tuple[float, str]]:
    """Return the current values of a hub's gauges, with their descriptions, by name."""
    history = hub.history
    blocked = sum(socket.blocked for socket in hub.listeners)
    return {
        "listeners": (len(hub.listeners), "Open connections of listeners."),
        "listeners_blocked": (blocked, "Listeners whose socket buffer is full."),
        "publishers": (len(hub.publishers), "Connected publishers."),
        "engines": (len(hub.engines.on_offer()), "Engines on offer."),
        "queries": (hub.engines.under_way, "Queries that are being answered."),
        "tasks": (len(history.state.live_tasks()), "Unfinished tasks."),
        "history_seq": (history.seq, "The sequence number of the newest event."),
        "history_events": (history.log_events, "Events kept in memory."),
        "history_bytes": (history.log_bytes, "Bytes of events kept in memory."),
        "history_gaps": (history.gaps, "How often missed events could not be replayed to a listener."),
        "history_durable": (history.durable, "Whether the history survives a restart: 1 or 0."),
    }


class Exporter:
    """A collector for `prometheus_client.REGISTRY`, which the Jupyter server exposes at ``/metrics``.

    Args:
        hub: The hub whose counters and gauges are exported.
    """

    def __init__(self, hub: WebSocketManager) -> None:
        self._hub = hub

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        def labelled(name: str, help: str, label: str, values: Counter[str]) -> Metric:
            family = CounterMetricFamily(f"ragkit_{name}", help, labels=[label])
            for value, count in sorted(values.items()):
                family.add_metric([value], count)
            return family

        c = self._hub.counters
        yield labelled("connections", "Connections opened.", "kind", c.connections)
        yield labelled("broadcasts", "Messages broadcast.", "type", c.broadcasts)
        yield labelled("replies", "Results of queries.", "result", c.replies)
        for name, value, help in (
            ("connections_dropped", c.dropped, "Connections closed because writing to them failed."),
            ("socket_writes", c.writes, "Writes to sockets; one may carry many messages."),
            ("socket_bytes", c.bytes, "Bytes written to sockets."),
            ("events_repeated", c.repeats, "Duplicate events from publishers, which were discarded."),
            ("journal_events", c.adopted, "Events adopted from journals."),
            ("commits", c.commits, "Transactions of the history."),
            ("commit_seconds", c.commit_seconds, "Time spent in transactions of the history."),
            ("commit_failures", c.commit_failures, "Failed transactions of the history."),
        ):
            yield CounterMetricFamily(f"ragkit_{name}", help, value)
        for name, (value, help) in gauges(self._hub).items():
            yield GaugeMetricFamily(f"ragkit_{name}", help, value)
