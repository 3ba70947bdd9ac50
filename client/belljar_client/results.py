"""From the messages of the contract to the types of `models.py`; the only place that knows both.

A newer server may send what this client does not know: an unknown event is None, an unknown error kind UNKNOWN.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import fields
from typing import Any

from google.protobuf import duration_pb2, timestamp_pb2

from belljar.v1 import sandbox_pb2
from belljar_client import models

_OUTCOMES = {
    sandbox_pb2.OUTCOME_SUCCEEDED: models.Outcome.SUCCEEDED,
    sandbox_pb2.OUTCOME_CANCELLED: models.Outcome.CANCELLED,
}
_PHASES = {
    sandbox_pb2.PHASE_QUEUED: models.Phase.QUEUED,
    sandbox_pb2.PHASE_INSTALLING: models.Phase.INSTALLING,
    sandbox_pb2.PHASE_STARTING: models.Phase.STARTING,
    sandbox_pb2.PHASE_RUNNING: models.Phase.RUNNING,
    sandbox_pb2.PHASE_COLLECTING: models.Phase.COLLECTING,
}
_STREAMS = {
    sandbox_pb2.OUTPUT_STREAM_STDOUT: models.Stream.STDOUT,
    sandbox_pb2.OUTPUT_STREAM_STDERR: models.Stream.STDERR,
    sandbox_pb2.OUTPUT_STREAM_INSTALL: models.Stream.INSTALL,
}
_NETWORK_MODES = {
    sandbox_pb2.NETWORK_MODE_NONE: "none",
    sandbox_pb2.NETWORK_MODE_ALLOWLIST: "allowlist",
    sandbox_pb2.NETWORK_MODE_FULL: "full",
}
_ERROR_KINDS = {
    number: models.ErrorKind(name.removeprefix("ERROR_KIND_"))
    for name, number in sandbox_pb2.ErrorKind.items()
    if name.removeprefix("ERROR_KIND_") in models.ErrorKind.__members__
}


def event_of(message: sandbox_pb2.ExecuteResponse) -> models.Event | None:
    """The event in a message, None for one that this client does not know."""
    numbered: dict[str, Any] = {
        "execution_id": message.execution_id,
        "sequence": message.sequence,
        "time": _time(message.time),
    }
    match message.WhichOneof("event"):
        case "started":
            return models.Started(
                **numbered, warm=message.started.warm, queue_time=_seconds(message.started.queue_time)
            )
        case "phase" if message.phase.phase in _PHASES:
            return models.PhaseChange(**numbered, phase=_PHASES[message.phase.phase])
        case "output" if message.output.stream in _STREAMS:
            return models.Output(**numbered, stream=_STREAMS[message.output.stream], content=message.output.content)
        case "finished":
            return models.Finished(**numbered, **_ending(message.finished))
    return None


def runtimes_of(message: sandbox_pb2.ListRuntimesResponse) -> models.Runtimes:
    """What a server runs."""
    return models.Runtimes(
        runtimes=tuple(
            models.Runtime(r.name, r.version, r.main_file, r.image_digest, {p.name: p.version for p in r.packages})
            for r in message.runtimes
        ),
        default_limits=_limits(message.default_limits),
        max_limits=_limits(message.max_limits),
        waived_limits=tuple(message.waived_limits),
        network_modes=tuple(_NETWORK_MODES[mode] for mode in message.network_modes if mode in _NETWORK_MODES),
    )


def _ending(message: sandbox_pb2.Finished) -> dict[str, Any]:
    truncated = message.truncated
    return {
        "outcome": _OUTCOMES.get(message.outcome, models.Outcome.FAILED),
        "exit_code": message.exit_code,
        "signal": message.signal,
        "result_json": message.result_json if message.HasField("result_json") else None,
        "error": _error(message.error) if message.HasField("error") else None,
        "artifacts": tuple(_artifact(artifact) for artifact in message.artifacts),
        "result_artifact": _artifact(message.result_artifact) if message.HasField("result_artifact") else None,
        "usage": _usage(message.usage),
        "warnings": tuple(message.warnings),
        "lockfile": message.lockfile,
        "truncated": models.Truncated(
            truncated.stdout, truncated.stderr, truncated.stdout_dropped_bytes, truncated.stderr_dropped_bytes
        ),
        "denied_connections": tuple(
            models.DeniedConnection(denied.host, denied.port, denied.reason, denied.rule, denied.count)
            for denied in message.denied_connections
        ),
    }


def _error(message: sandbox_pb2.Error) -> models.ExecutionError:
    return models.ExecutionError(
        kind=_ERROR_KINDS.get(message.kind, models.ErrorKind.UNKNOWN),
        message=message.message,
        traceback=message.traceback,
        file=message.file,
        line=message.line,
        column=message.column,
        hint=message.hint,
    )


def _artifact(message: sandbox_pb2.Artifact) -> models.Artifact:
    pending = message.state == sandbox_pb2.ARTIFACT_STATE_PENDING
    return models.Artifact(
        id=models.ArtifactId(message.id),
        name=message.name,
        content_type=message.content_type,
        size_bytes=message.size_bytes,
        sha256=message.sha256,
        download_url=message.download_url,
        expire_time=_time(message.expire_time),
        state=models.ArtifactState.PENDING if pending else models.ArtifactState.AVAILABLE,
    )


def _usage(message: sandbox_pb2.Usage) -> models.Usage:
    values = {field.name: getattr(message, field.name) for field in fields(models.Usage)}
    return models.Usage(**{name: _plain(value) for name, value in values.items()})


def _limits(message: sandbox_pb2.Limits) -> models.Limits:
    names = [field.name for field in fields(models.Limits) if message.HasField(field.name)]
    return models.Limits(**{name: _plain(getattr(message, name)) for name in names})


def _plain(value: Any) -> Any:
    return _seconds(value) if isinstance(value, duration_pb2.Duration) else value


def _seconds(duration: duration_pb2.Duration) -> float:
    return float(duration.seconds + duration.nanos / 1e9)


def _time(timestamp: timestamp_pb2.Timestamp) -> dt.datetime:
    """In UTC. A time that Python cannot hold, which only a broken server sends, is the epoch."""
    try:
        return timestamp.ToDatetime(tzinfo=dt.UTC)
    except (ValueError, OverflowError):
        return dt.datetime.fromtimestamp(0, dt.UTC)
