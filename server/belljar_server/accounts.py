"""What is written down of an execution that has ended: its canonical log line, metrics, and the last few for people."""

from __future__ import annotations

import time
from collections import deque

import structlog

from belljar_server.execution import Execution
from belljar_server.metrics import Metrics
from belljar_server.models import Finished

log = structlog.get_logger()

RECENT = 50
"""Executions that /statusz shows after their end."""


class Accounts:
    """Mutable state: the executions that ended lately."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self.recent: deque[dict[str, object]] = deque(maxlen=RECENT)

    def finished(self, execution: Execution, finished: Finished, *, warm: bool) -> None:
        """The canonical log line and the metrics of one execution."""
        kind = finished.error.kind.value if finished.error else ""
        usage = finished.usage
        self._metrics.executions.labels(execution.request.runtime, finished.outcome.value, kind).inc()
        self._metrics.artifact_bytes.inc(usage.artifact_bytes)
        self._metrics.account_network(finished)
        for stream, size in execution.written.items():
            self._metrics.output_bytes.labels(stream.value).inc(size)
        phases = {
            "queue": usage.queue_time,
            "install": usage.install_time,
            "start": usage.start_time,
            "run": usage.run_time,
            "collect": usage.collect_time,
        }
        for phase, seconds in phases.items():
            self._metrics.phases.labels(execution.request.runtime, phase).observe(seconds)
        self.recent.append(
            {
                "execution": execution.id,
                "runtime": execution.request.runtime,
                "outcome": finished.outcome.value,
                "kind": kind,
                "warm": warm,
                "milliseconds": round((time.monotonic() - execution.began) * 1000, 1),
            }
        )
        log.info(
            "execution",
            execution_id=execution.id,
            request_id=execution.request.request_id or None,
            runtime=execution.request.runtime,
            outcome=finished.outcome.value,
            kind=kind or None,
            exit_code=finished.exit_code,
            warm=warm,
            **{f"{phase}_ms": round(seconds * 1000, 1) for phase, seconds in phases.items()},
            cpu_ms=round(usage.cpu_time * 1000, 1),
            peak_memory_bytes=usage.peak_memory_bytes,
            stdout_bytes=usage.stdout_bytes,
            stderr_bytes=usage.stderr_bytes,
            artifacts=len(finished.artifacts),
            artifact_bytes=usage.artifact_bytes,
            **_network_account(finished, execution),
            total_ms=round((time.monotonic() - execution.began) * 1000, 1),
            labels=dict(execution.request.labels) or None,
        )


def _network_account(finished: Finished, execution: Execution) -> dict[str, object]:
    """What the log says of an execution's network; nothing of one that had none."""
    if execution.request.network is None:
        return {}
    return {
        "network": execution.request.network.mode.value,
        "network_connections": finished.usage.network_connections,
        "network_bytes_in": finished.usage.network_bytes_in,
        "network_bytes_out": finished.usage.network_bytes_out,
        "denied": sum(denied.count for denied in finished.denied_connections),
    }
