"""What can go wrong in a call, one class for each way in which the caller should react.

How user code ended is no exception but a `Result`; only `Result.check()` makes one of it, for who asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped, unused-ignore]

M = TypeVar("M", bound=Message)

if TYPE_CHECKING:
    from belljar_client.models import Artifact, Result


class BelljarClientError(Exception):
    """Base of all errors of this package. `execution_id` is empty unless the server had named the execution already."""

    execution_id: str = ""


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field of a request: its path, and in words what was given and what is allowed."""

    field: str
    description: str


class InvalidRequest(BelljarClientError):
    """The request is wrong and nothing was started. Change it; a retry gives the same answer."""

    def __init__(self, message: str, violations: Iterable[Violation] = ()) -> None:
        self.violations = tuple(violations)
        super().__init__("; ".join(f"{v.field}: {v.description}" for v in self.violations) or message)


class NotFound(BelljarClientError):
    """What the request names, such as an artifact, does not exist or not any more. Nothing was started."""


class Overloaded(BelljarClientError):
    """The server has no room now and nothing was started. `retry_after` is in seconds, None when it did not say."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(BelljarClientError):
    """No server there, or one that takes no work. Nothing was started; try later or elsewhere.

    `retry_after` is in seconds, None when there was no server to say.
    """

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ConnectionLost(BelljarClientError):
    """The connection broke when the server had the request: the code may have run, or be running still.

    With a `request_id` the same call can be made again and sees the first execution instead of starting another one.
    """


class DeadlineExceeded(BelljarClientError):
    """The caller's own `deadline` passed. The execution is cancelled, unless its disconnect policy is to continue."""


class Cancelled(BelljarClientError):
    """The call was cancelled, for example because its client was closed."""


class ServerFault(BelljarClientError):
    """The server answered with what its contract does not have: a bug, or a server of another version. Report it."""


class ExecutionFailed(BelljarClientError):
    """The code did not succeed; `result` says everything. Raised by `Result.check()` only."""

    def __init__(self, result: Result) -> None:
        error = result.error
        super().__init__(f"{error.kind}: {error.message}" if error else f"the execution {result.outcome}")
        self.result = result
        self.execution_id = result.execution_id


class ResultTooLarge(BelljarClientError):
    """The result is too large for the message; it is in `artifact`. Download that, or raise `limits.result_bytes`."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(f"the result has {artifact.size_bytes} bytes and is the artifact {artifact.id}")
        self.artifact = artifact


class DownloadFailed(BelljarClientError):
    """An artifact could not be fetched or was not what it should be. No file of it is left."""


@dataclass(frozen=True, slots=True)
class _Details:
    """What google.rpc details said. `present` tells a server's own answer from one made up by the transport."""

    present: bool = False
    violations: tuple[Violation, ...] = ()
    retry_after: float | None = None


_STATUS: dict[grpc.StatusCode, type[BelljarClientError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.CANCELLED: Cancelled,
}

_NEVER_CONNECTED = ("failed to connect to all addresses", "errors resolving", "DNS resolution failed")
"""How gRPC begins the message when it never reached a server. It has no other sign of that, so a text that we do not
know counts as a lost connection, which is not retried: the mistake to make is the one that runs nothing twice."""


def from_rpc(error: grpc.RpcError, *, accepted: bool = False, started: bool = False) -> BelljarClientError:
    """What a gRPC error means, given what the stream had shown: any event at all, the start of the user's code."""
    code, message, trailers = _status_of(error)
    details = _decode(trailers)
    found = _STATUS.get(code, ServerFault)
    if found is DeadlineExceeded:
        return DeadlineExceeded("the deadline passed")
    if found is Cancelled:
        return Cancelled(message)
    said_by_server = details.present and not started
    if accepted and not said_by_server:
        return ConnectionLost(message)
    if found is InvalidRequest or "larger than max" in message:
        return InvalidRequest(message, details.violations)
    if found is Overloaded:
        return Overloaded(message, details.retry_after)
    if found is Unavailable:
        if said_by_server or message.startswith(_NEVER_CONNECTED):
            return Unavailable(message, details.retry_after)
        return ConnectionLost(message)
    return found(message if found is not ServerFault else f"{code.name}: {message}")


def _status_of(error: grpc.RpcError) -> tuple[grpc.StatusCode, str, Iterable[tuple[str, str | bytes]]]:
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return grpc.StatusCode.UNKNOWN, str(error), ()
    trailers = ((str(key), value) for key, value in error.trailing_metadata() or ())
    return error.code(), error.details() or "no reason given", trailers


def _decode(trailers: Iterable[tuple[str, str | bytes]]) -> _Details:
    raw = next((value for key, value in trailers if key == "grpc-status-details-bin"), None)
    if not isinstance(raw, bytes):
        return _Details()
    try:
        status = status_pb2.Status.FromString(raw)
        bad_request = _unpack(status, error_details_pb2.BadRequest())
        retry_info = _unpack(status, error_details_pb2.RetryInfo())
    except DecodeError:
        return _Details()
    violations = tuple(Violation(v.field, v.description) for v in bad_request.field_violations) if bad_request else ()
    delay = retry_info.retry_delay.ToNanoseconds() / 1e9 if retry_info and retry_info.HasField("retry_delay") else None
    return _Details(True, violations, delay)


def _unpack(status: status_pb2.Status, kind: M) -> M | None:
    return next((kind for detail in status.details if detail.Unpack(kind)), None)
