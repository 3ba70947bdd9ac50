r"""Belljar's client: run untrusted code on a Belljar server, watch its logs, get its result and artifacts.

from belljar_client import Client

with Client("127.0.0.1:50051") as client:
    result = client.execute("def main(a, b):\n    return a + b", inputs={"a": 1, "b": 2}).check()
    print(result.value)  # 3
"""

from belljar_client.aio import AsyncClient
from belljar_client.client import Client
from belljar_client.downloads import download, local_paths
from belljar_client.errors import (
    BelljarClientError,
    Cancelled,
    ConnectionLost,
    DeadlineExceeded,
    DownloadFailed,
    ExecutionFailed,
    InvalidRequest,
    NotFound,
    Overloaded,
    ResultTooLarge,
    ServerFault,
    Unavailable,
    Violation,
)
from belljar_client.models import (
    Artifact,
    ArtifactId,
    ArtifactState,
    DeniedConnection,
    ErrorKind,
    Event,
    ExecutionError,
    Finished,
    Limits,
    NetworkLimits,
    Outcome,
    Output,
    Phase,
    PhaseChange,
    Result,
    Runtime,
    Runtimes,
    Started,
    Stream,
    Truncated,
    Usage,
)
from belljar_client.requests import Options

__all__ = [
    "Artifact",
    "ArtifactId",
    "ArtifactState",
    "AsyncClient",
    "BelljarClientError",
    "Cancelled",
    "Client",
    "ConnectionLost",
    "DeadlineExceeded",
    "DeniedConnection",
    "DownloadFailed",
    "ErrorKind",
    "Event",
    "ExecutionError",
    "ExecutionFailed",
    "Finished",
    "InvalidRequest",
    "Limits",
    "NetworkLimits",
    "NotFound",
    "Options",
    "Outcome",
    "Output",
    "Overloaded",
    "Phase",
    "PhaseChange",
    "Result",
    "ResultTooLarge",
    "Runtime",
    "Runtimes",
    "ServerFault",
    "Started",
    "Stream",
    "Truncated",
    "Unavailable",
    "Usage",
    "Violation",
    "download",
    "local_paths",
]
