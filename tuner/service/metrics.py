"""What the service measures of itself, for Prometheus."""

from __future__ import annotations

import time
from collections import Counter as Counts
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from .hub import Hub
from .limits import App, Message, Receive, Scope, Send

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 30)


class Metrics:
    """Counters of calls, and gauges of the studies that are read when somebody asks."""

    def __init__(self, hub: Hub) -> None:
        """Measure this hub."""
        self._hub = hub
        self._registry = CollectorRegistry()
        self.calls = Counter("bstune_calls", "Calls by route and status.", ["route", "status"], registry=self._registry)
        self.seconds = Histogram(
            "bstune_call_seconds", "Seconds of a call, by route.", ["route"], registry=self._registry, buckets=BUCKETS
        )
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield what can be read off the studies now."""
        states, expired, clients, leases = Counts[str](), 0, 0, 0
        for served in self._hub.studies:
            states[served.state] += 1
            expired += served.pool.book.n_expired
            clients += len(served.pool.seen)
            leases += sum(seen.number is not None for seen in served.pool.seen)
        studies = GaugeMetricFamily("bstune_studies", "Studies by state.", labels=["state"])
        for state in ("waiting", "running", "ended", "failed"):
            studies.add_metric([state], states[state])
        yield studies
        yield GaugeMetricFamily("bstune_clients", "Clients that were heard of lately.", value=clients)
        yield GaugeMetricFamily("bstune_trials_running", "Trials that a client has.", value=leases)
        yield GaugeMetricFamily("bstune_leases_expired", "Leases that ran out since the start.", value=expired)

    def text(self) -> bytes:
        """Return all of it in Prometheus's format."""
        return generate_latest(self._registry)


class MeasuredCalls:
    """Counts the calls of an application, and their seconds, by route."""

    def __init__(self, app: App, metrics: Metrics) -> None:
        """Stand before an application."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start_s, status = time.perf_counter(), 500

        async def send_counted(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, send_counted)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.calls.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - start_s)
