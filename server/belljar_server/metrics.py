"""Prometheus metrics of one server, in a registry of its own so that two servers in one process do not collide."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from belljar_server.models import Finished

PHASE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)


class Metrics:
    """What the server counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.executions = Counter(
            "belljar_executions",
            "Executions that ended, by runtime, outcome and error kind (empty on success).",
            ["runtime", "outcome", "kind"],
            registry=self.registry,
        )
        self.phases = Histogram(
            "belljar_phase_seconds",
            "Time of executions in each phase.",
            ["runtime", "phase"],
            buckets=PHASE_BUCKETS,
            registry=self.registry,
        )
        self.refused = Counter(
            "belljar_refused", "Requests that were refused, by gRPC status.", ["code"], registry=self.registry
        )
        self.artifact_bytes = Counter(
            "belljar_artifact_bytes", "Bytes of artifacts and results that were stored.", registry=self.registry
        )
        self.output_bytes = Counter(
            "belljar_output_bytes", "Bytes that user code printed, by stream.", ["stream"], registry=self.registry
        )
        self.sandbox_failures = Counter(
            "belljar_sandbox_failures", "Sandboxes that did not start or died by themselves.", registry=self.registry
        )

        self.network_bytes = Counter(
            "belljar_network_bytes",
            "Bytes that user code received (in) and sent (out).",
            ["direction"],
            registry=self.registry,
        )
        self.network_connections = Counter(
            "belljar_network_connections", "Connections that user code made.", registry=self.registry
        )
        self.network_denied = Counter(
            "belljar_network_denied",
            "Connections, names and packets that user code was denied.",
            registry=self.registry,
        )

        self.pool_requests = Counter(
            "belljar_pool_requests",
            "Sandboxes asked for, by whether one was waiting (hit, miss).",
            ["runtime", "found"],
            registry=self.registry,
        )
        self.pool_age = Histogram(
            "belljar_pool_wait_seconds",
            "How long sandboxes had waited when they were taken.",
            ["runtime"],
            buckets=(0.1, 1, 5, 30, 120, 600, 1800),
            registry=self.registry,
        )
        self.restore_seconds = Histogram(
            "belljar_restore_seconds",
            "Time from the start of a restore until the sandbox is primed.",
            ["runtime"],
            buckets=(0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5),
            registry=self.registry,
        )
        self.restore_failures = Counter(
            "belljar_restore_failures", "Restores and snapshots that failed.", ["runtime"], registry=self.registry
        )

        self._pool_waiting = Gauge("belljar_pool_waiting", "Sandboxes that wait.", ["runtime"], registry=self.registry)
        self._pool_restoring = Gauge(
            "belljar_pool_restoring", "Sandboxes that are being restored.", ["runtime"], registry=self.registry
        )

    def account_network(self, finished: Finished) -> None:
        """What one execution did over the network."""
        self.network_bytes.labels("in").inc(finished.usage.network_bytes_in)
        self.network_bytes.labels("out").inc(finished.usage.network_bytes_out)
        self.network_connections.inc(finished.usage.network_connections)
        self.network_denied.inc(sum(denied.count for denied in finished.denied_connections))

    def watch_pool(self, name: str, waiting: Callable[[], float], restoring: Callable[[], float]) -> None:
        """The gauges of one pool, read when somebody asks."""
        self._pool_waiting.labels(name).set_function(waiting)
        self._pool_restoring.labels(name).set_function(restoring)

    def watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """A gauge that is read when somebody asks."""
        Gauge(name, documentation, registry=self.registry).set_function(value)
