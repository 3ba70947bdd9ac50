"""What an execution may use and what it gives back: limits, events, result, artifacts. Frozen, free of protobuf.

Times are seconds as float, sizes are bytes, points in time are aware datetimes in UTC. `results.py` makes these.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from belljar_client.errors import ExecutionFailed, ResultTooLarge


class ArtifactId(str):
    """The id of an artifact; a type of its own, because a plain str as input file is text."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one execution: seconds, cores, bytes and counts. None means the server's default."""

    timeout: float | None = None
    """Wall time of the user's code."""
    cpu_time: float | None = None
    cpus: float | None = None
    memory_bytes: int | None = None
    processes: int | None = None
    disk_bytes: int | None = None
    open_files: int | None = None
    output_bytes: int | None = None
    """Bytes of stdout and stderr that are delivered."""
    result_bytes: int | None = None
    """Bytes of the result in the message; a larger one becomes an artifact."""
    artifact_count: int | None = None
    artifact_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """Bounds of one execution's traffic: counts, bytes and seconds. None means the server's default."""

    connections: int | None = None
    """Open at once."""
    connections_per_second: int | None = None
    bytes_in: int | None = None
    """Received by the code."""
    bytes_out: int | None = None
    dns_queries: int | None = None
    idle_timeout: float | None = None
    """Seconds without a byte after which a connection is closed."""


@dataclass(frozen=True, slots=True)
class DeniedConnection:
    """Something that the code tried to reach and was not let."""

    host: str
    port: int
    """0: the name was asked for and not resolved."""
    reason: str
    rule: str
    """The rule that would have allowed it; empty when none can."""
    count: int


class Outcome(enum.StrEnum):
    """How an execution ended, in one word."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Phase(enum.StrEnum):
    """What an execution is busy with."""

    QUEUED = "queued"
    INSTALLING = "installing"
    STARTING = "starting"
    RUNNING = "running"
    COLLECTING = "collecting"


class Stream(enum.StrEnum):
    """Where the code wrote to."""

    STDOUT = "stdout"
    STDERR = "stderr"
    INSTALL = "install"
    """What the package manager prints."""


class ErrorKind(enum.StrEnum):
    """Why an execution did not succeed; the contract documents each."""

    SYNTAX_ERROR = "SYNTAX_ERROR"
    EXCEPTION = "EXCEPTION"
    ENTRY_NOT_FOUND = "ENTRY_NOT_FOUND"
    RESULT_NOT_SERIALIZABLE = "RESULT_NOT_SERIALIZABLE"
    TIMEOUT = "TIMEOUT"
    MEMORY_LIMIT = "MEMORY_LIMIT"
    PROCESS_LIMIT = "PROCESS_LIMIT"
    DISK_LIMIT = "DISK_LIMIT"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    EXITED = "EXITED"
    SIGNALED = "SIGNALED"
    CANCELLED = "CANCELLED"
    SANDBOX_FAILED = "SANDBOX_FAILED"
    NETWORK_DENIED = "NETWORK_DENIED"
    DEPENDENCY_FAILED = "DEPENDENCY_FAILED"
    UNKNOWN = "UNKNOWN"
    """A kind that this client is too old to know."""


class ArtifactState(enum.StrEnum):
    """Whether an artifact can be downloaded already."""

    AVAILABLE = "available"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class ExecutionError:
    """Why an execution did not succeed, and where in the user's own source. 0 and "" mean unknown."""

    kind: ErrorKind
    message: str
    traceback: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that the execution left. Its name comes from untrusted code: `download` knows how to make a path of it."""

    id: ArtifactId
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    download_url: str
    expire_time: dt.datetime
    state: ArtifactState = ArtifactState.AVAILABLE


@dataclass(frozen=True, slots=True)
class Usage:
    """What an execution cost."""

    queue_time: float = 0.0
    install_time: float = 0.0
    start_time: float = 0.0
    run_time: float = 0.0
    collect_time: float = 0.0
    cpu_time: float = 0.0
    peak_memory_bytes: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    input_bytes: int = 0
    artifact_bytes: int = 0
    network_bytes_in: int = 0
    network_bytes_out: int = 0
    network_connections: int = 0


@dataclass(frozen=True, slots=True)
class Truncated:
    """Which logs are not complete, and by how many bytes."""

    stdout: bool = False
    stderr: bool = False
    stdout_dropped_bytes: int = 0
    stderr_dropped_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an execution ended; what its last event and its result have in common."""

    execution_id: str
    outcome: Outcome
    exit_code: int = 0
    """The exit code of the user's process as a shell would tell it."""
    signal: int = 0
    """The signal that ended the user's process, 0 when none did."""
    result_json: str | None = None
    """The result exactly as the code gave it, None when there is none or it is `result_artifact`."""
    error: ExecutionError | None = None
    artifacts: tuple[Artifact, ...] = ()
    result_artifact: Artifact | None = None
    usage: Usage = field(default_factory=Usage)
    warnings: tuple[str, ...] = ()
    truncated: Truncated = field(default_factory=Truncated)
    denied_connections: tuple[DeniedConnection, ...] = ()
    lockfile: str = ""
    """What `dependencies` were resolved to, for `lock`; empty when nothing had to be installed."""

    @property
    def succeeded(self) -> bool:
        """True when the code ran to its end."""
        return self.outcome is Outcome.SUCCEEDED

    @property
    def value(self) -> Any:
        """The result as Python values, integers exact; None when the code did not succeed. Raises ResultTooLarge."""
        if self.result_artifact is not None:
            raise ResultTooLarge(self.result_artifact)
        return None if self.result_json is None else json.loads(self.result_json)


@dataclass(frozen=True, kw_only=True)
class Result(Ending):
    """A finished execution with all that it printed."""

    stdout: bytes = b""
    stderr: bytes = b""
    install_log: bytes = b""
    """What the package manager printed."""

    @property
    def stdout_text(self) -> str:
        """`stdout` as UTF-8; what is not valid is replaced."""
        return self.stdout.decode("utf-8", "replace")

    @property
    def stderr_text(self) -> str:
        """`stderr` as UTF-8; what is not valid is replaced."""
        return self.stderr.decode("utf-8", "replace")

    def check(self) -> Self:
        """This result when the code succeeded. Raises ExecutionFailed, which carries it, when not."""
        if not self.succeeded:
            raise ExecutionFailed(self)
        return self


@dataclass(frozen=True, kw_only=True)
class _Numbered:
    execution_id: str
    sequence: int
    """1 for the first event, then one more each."""
    time: dt.datetime


@dataclass(frozen=True, kw_only=True)
class Started(_Numbered):
    """A sandbox is ready and the code is about to run. `warm`: the sandbox was waiting before the request came."""

    warm: bool
    queue_time: float


@dataclass(frozen=True, kw_only=True)
class PhaseChange(_Numbered):
    """A phase began."""

    phase: Phase


@dataclass(frozen=True, kw_only=True)
class Output(_Numbered):
    """A piece of what the code printed, cut anywhere, also inside a character."""

    stream: Stream
    content: bytes


@dataclass(frozen=True, kw_only=True)
class Finished(Ending, _Numbered):
    """It is over; the last event."""


Event = Started | PhaseChange | Output | Finished


class Transcript:
    """Gathers the events of one execution into its result. Its state is the output so far and the last event."""

    def __init__(self) -> None:
        self._output = {stream: bytearray() for stream in Stream}
        self._finished: Finished | None = None

    def add(self, event: Event) -> None:
        """Takes the next event."""
        if isinstance(event, Output):
            self._output[event.stream] += event.content
        elif isinstance(event, Finished):
            self._finished = event

    def result(self) -> Result:
        """The result. Raises RuntimeError before the last event; a stream without one raises by itself."""
        if self._finished is None:
            raise RuntimeError("the execution is not over")
        ending = {name: getattr(self._finished, name) for name in Ending.__dataclass_fields__}
        stdout, stderr, install_log = (bytes(self._output[stream]) for stream in Stream)
        return Result(**ending, stdout=stdout, stderr=stderr, install_log=install_log)


@dataclass(frozen=True, slots=True)
class Runtime:
    """A language at a version; `name` is what a request says."""

    name: str
    version: str
    main_file: str
    image_digest: str
    packages: dict[str, str] = field(default_factory=dict)
    """The preinstalled packages: version by name."""


@dataclass(frozen=True, slots=True)
class Runtimes:
    """What a server runs, and within which limits. Iterating gives each `Runtime`."""

    runtimes: tuple[Runtime, ...]
    default_limits: Limits
    """What an unset limit means."""
    max_limits: Limits
    """The highest value of each limit."""
    waived_limits: tuple[str, ...] = ()
    """Limits that the server's host cannot enforce."""
    network_modes: tuple[str, ...] = ()
    """What requests may ask for as `network`."""

    def __iter__(self) -> Iterator[Runtime]:
        return iter(self.runtimes)

    def __len__(self) -> int:
        return len(self.runtimes)

    def __getitem__(self, index: int) -> Runtime:
        return self.runtimes[index]
