"""Between the contract's messages and the server's own types: requests to drafts, events and errors to messages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2, error_details_pb2, status_pb2

from belljar.v1 import sandbox_pb2 as pb
from belljar_server import models, policy
from belljar_server.errors import BelljarError, InvalidRequest, NotFound, Overloaded, Unavailable, Violation

DOMAIN = "belljar"
"""The domain of google.rpc.ErrorInfo."""
MOST_STATUS_BYTES = 3000
"""Bytes of a status: it travels in the trailers, and clients take 8 KiB of them, base64 and all (gRPC's default)."""
LARGEST_DURATION = 315_576_000_000
"""Seconds that google.protobuf.Duration may hold."""

ENTRIES = {
    pb.ENTRY_UNSPECIFIED: models.Entry.DETECT,
    pb.ENTRY_MAIN_ARGS: models.Entry.MAIN_ARGS,
    pb.ENTRY_MAIN_NAMED: models.Entry.MAIN_NAMED,
    pb.ENTRY_SCRIPT: models.Entry.SCRIPT,
}
DISCONNECT_POLICIES = {
    pb.DISCONNECT_POLICY_UNSPECIFIED: models.DisconnectPolicy.CANCEL,
    pb.DISCONNECT_POLICY_CANCEL: models.DisconnectPolicy.CANCEL,
    pb.DISCONNECT_POLICY_CONTINUE: models.DisconnectPolicy.CONTINUE,
}
DURATIONS = ("timeout", "cpu_time", "idle_timeout")
LIMIT_FIELDS = tuple(field.name for field in pb.Limits.DESCRIPTOR.fields)
NETWORK_MODES = {
    pb.NETWORK_MODE_UNSPECIFIED: models.NetworkMode.NONE,
    pb.NETWORK_MODE_NONE: models.NetworkMode.NONE,
    pb.NETWORK_MODE_ALLOWLIST: models.NetworkMode.ALLOWLIST,
    pb.NETWORK_MODE_FULL: models.NetworkMode.FULL,
}


@dataclass(frozen=True, slots=True)
class Undecodable:
    """What came in instead of a request: bytes that are not the message, text in it that is not UTF-8."""

    problem: str


def decode(data: bytes) -> pb.ExecuteRequest | Undecodable:
    """The request in these bytes. Never raises: gRPC would answer UNKNOWN, as if the server were at fault."""
    try:
        return pb.ExecuteRequest.FromString(data)
    except DecodeError as error:
        return Undecodable(f"{error}; it is cut short, or a text in it is not UTF-8")


def to_draft(request: pb.ExecuteRequest) -> policy.Draft:
    """What was asked, in the server's own types; nothing is judged yet."""
    wrong: list[Violation] = []
    limits = take_limits("limits", request.limits, wrong)
    network_limits = take_limits("network.limits", request.network.limits, wrong)
    return policy.Draft(
        runtime=request.runtime,
        code=request.code,
        files=tuple(models.SourceFile(file.path, file.content) for file in request.files),
        inputs_json=request.inputs_json,
        entry=ENTRIES.get(request.entry),
        input_files=tuple(
            models.InputFile(
                file.path,
                file.content if file.WhichOneof("source") == "content" else None,
                file.artifact_id if file.WhichOneof("source") == "artifact_id" else None,
            )
            for file in request.input_files
        ),
        env=tuple(sorted(request.env.items())),
        dependencies=tuple(request.dependencies),
        lock=request.lock,
        labels=tuple(sorted(request.labels.items())),
        limits=limits,
        wrong=tuple(wrong),
        request_id=request.request_id,
        fingerprint=hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        if request.request_id
        else b"",
        disconnect_policy=DISCONNECT_POLICIES.get(request.disconnect_policy),
        network_mode=NETWORK_MODES.get(request.network.mode),
        allow=tuple(request.network.allow),
        network_limits=network_limits,
    )


def take_limits(where: str, message: pb.Limits | pb.NetworkLimits, wrong: list[Violation]) -> dict[str, float | int]:
    """The limits that are set in a message; what cannot be a limit goes to `wrong`."""
    limits: dict[str, float | int] = {}
    for field, value in message.ListFields():
        if field.name not in DURATIONS:
            limits[field.name] = value
        elif is_valid(value):
            limits[field.name] = value.seconds + value.nanos / 1e9
        else:
            problem = f"is {value.seconds} s and {value.nanos} ns, which is no valid google.protobuf.Duration"
            wrong.append(Violation(f"{where}.{field.name}", problem))
    return limits


def is_valid(duration: Duration) -> bool:
    """Whether seconds and nanoseconds are in range and have the same sign, as duration.proto wants it."""
    in_range = abs(duration.seconds) <= LARGEST_DURATION and abs(duration.nanos) <= 999_999_999
    return in_range and duration.seconds * duration.nanos >= 0


def to_response(event: models.Event) -> pb.ExecuteResponse:
    """An event as the contract has it."""
    response = pb.ExecuteResponse(
        execution_id=event.execution_id, sequence=event.sequence, time=to_timestamp(event.time)
    )
    match event.happening:
        case models.Output(stream, content):
            response.output.CopyFrom(pb.Output(stream=f"OUTPUT_STREAM_{stream.name}", content=content))
        case models.PhaseChange(phase):
            response.phase.CopyFrom(pb.PhaseChange(phase=f"PHASE_{phase.name}"))
        case models.Started(warm, queue_time):
            response.started.CopyFrom(pb.Started(warm=warm, queue_time=to_duration(queue_time)))
        case models.Finished() as finished:
            response.finished.CopyFrom(to_finished(finished))
    return response


def to_finished(finished: models.Finished) -> pb.Finished:
    """The terminal event as the contract has it."""
    error = finished.error
    usage = finished.usage
    return pb.Finished(
        outcome=f"OUTCOME_{finished.outcome.name}",
        exit_code=finished.exit_code,
        signal=finished.signal,
        result_json=finished.result_json,
        error=pb.Error(
            kind=f"ERROR_KIND_{error.kind.name}",
            message=error.message,
            traceback=error.traceback,
            file=error.file,
            line=error.line,
            column=error.column,
            hint=error.hint,
        )
        if error
        else None,
        artifacts=[to_artifact(artifact) for artifact in finished.artifacts],
        result_artifact=to_artifact(finished.result_artifact) if finished.result_artifact else None,
        usage=pb.Usage(
            queue_time=to_duration(usage.queue_time),
            start_time=to_duration(usage.start_time),
            run_time=to_duration(usage.run_time),
            collect_time=to_duration(usage.collect_time),
            cpu_time=to_duration(usage.cpu_time),
            peak_memory_bytes=usage.peak_memory_bytes,
            stdout_bytes=usage.stdout_bytes,
            stderr_bytes=usage.stderr_bytes,
            input_bytes=usage.input_bytes,
            artifact_bytes=usage.artifact_bytes,
            network_bytes_in=usage.network_bytes_in,
            network_bytes_out=usage.network_bytes_out,
            network_connections=usage.network_connections,
            install_time=to_duration(usage.install_time),
        ),
        warnings=finished.warnings,
        lockfile=finished.lockfile,
        truncated=pb.Truncated(
            stdout=finished.stdout_dropped_bytes > 0,
            stderr=finished.stderr_dropped_bytes > 0,
            stdout_dropped_bytes=finished.stdout_dropped_bytes,
            stderr_dropped_bytes=finished.stderr_dropped_bytes,
        ),
        denied_connections=[
            pb.DeniedConnection(host=d.host, port=d.port, reason=d.reason, rule=d.rule, count=d.count)
            for d in finished.denied_connections
        ],
    )


def to_artifact(artifact: models.Artifact) -> pb.Artifact:
    """An artifact as the contract has it."""
    message = pb.Artifact(
        id=artifact.id,
        name=artifact.name,
        content_type=artifact.content_type,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        download_url=artifact.download_url,
        state=f"ARTIFACT_STATE_{artifact.state.name}",
    )
    message.expire_time.FromDatetime(artifact.expire_time.astimezone(UTC).replace(tzinfo=None))
    return message


def to_limits(limits: models.Limits) -> pb.Limits:
    """Limits as the contract has them."""
    message = pb.Limits()
    for name in LIMIT_FIELDS:
        value = getattr(limits, name)
        if name in DURATIONS:
            getattr(message, name).CopyFrom(to_duration(value))
        else:
            setattr(message, name, value)
    return message


def to_network_limits(limits: models.NetworkLimits) -> pb.NetworkLimits:
    """Limits of traffic as the contract has them."""
    return pb.NetworkLimits(
        connections=limits.connections,
        connections_per_second=limits.connections_per_second,
        bytes_in=limits.bytes_in,
        bytes_out=limits.bytes_out,
        dns_queries=limits.dns_queries,
        idle_timeout=to_duration(limits.idle_timeout),
    )


def to_duration(seconds: float) -> Duration:
    """Seconds as a protobuf duration."""
    nanos = round(seconds * 1e9)
    return Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def to_timestamp(seconds: float) -> Timestamp:
    """Seconds since the epoch as a protobuf timestamp."""
    nanos = round(seconds * 1e9)
    return Timestamp(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def to_status(error: BelljarError) -> status_pb2.Status:
    """The one table from errors to statuses."""
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=_reason(error), domain=DOMAIN)]
    match error:
        case InvalidRequest():
            code = code_pb2.INVALID_ARGUMENT
            details.append(to_bad_request(error.violations))
        case NotFound():
            code = code_pb2.NOT_FOUND
            details.append(error_details_pb2.ResourceInfo(resource_type=error.what, resource_name=short(error.name)))
        case Overloaded():
            code = code_pb2.RESOURCE_EXHAUSTED
            details.append(error_details_pb2.RetryInfo(retry_delay=to_duration(error.retry_after)))
        case Unavailable():
            code = code_pb2.UNAVAILABLE
            details.append(error_details_pb2.RetryInfo(retry_delay=to_duration(error.retry_after)))
        case _:
            code = code_pb2.INTERNAL
    status = status_pb2.Status(code=code, message=short(str(error)))
    for detail in details:
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def to_bad_request(violations: Sequence[Violation]) -> error_details_pb2.BadRequest:
    """As many of the violations as a status may hold, at least the first."""
    told = error_details_pb2.BadRequest()
    for number, violation in enumerate(violations):
        one = error_details_pb2.BadRequest.FieldViolation(
            field=short(violation.field), description=short(violation.description)
        )
        if told.ByteSize() + one.ByteSize() > MOST_STATUS_BYTES:
            left = f"{len(violations) - number} more fields are wrong"
            told.field_violations.add(field=short(violation.field), description=left)
            break
        told.field_violations.append(one)
    return told


def short(text: str) -> str:
    """Text for a status, cut where it is too long."""
    most = MOST_STATUS_BYTES // 4
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} characters)"


def _reason(error: BelljarError) -> str:
    """UPPER_SNAKE_CASE of the class, as AIP-193 wants it."""
    name = type(error).__name__
    return "".join(f"_{letter}" if letter.isupper() and at else letter for at, letter in enumerate(name)).upper()
