"""The words of Belljar as frozen types: everything behind the edge speaks these, never protobuf or loose dicts.

Units are in the names or here: times are seconds as float, sizes are bytes as int.
"""

from __future__ import annotations

import datetime as dt
import enum
import ipaddress
from dataclasses import dataclass, field, replace

HOME = "/home/user"
"""The working directory of user code; what is left there are its artifacts."""


class Entry(enum.Enum):
    """How code takes its inputs; the values are what workers understand."""

    DETECT = "detect"
    MAIN_ARGS = "main_args"
    MAIN_NAMED = "main_named"
    SCRIPT = "script"


class DisconnectPolicy(enum.Enum):
    """What happens to an execution whose client goes away."""

    CANCEL = "cancel"
    CONTINUE = "continue"


class Outcome(enum.Enum):
    """How an execution ended, in one word."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Phase(enum.Enum):
    """What an execution is busy with."""

    QUEUED = "queued"
    INSTALLING = "installing"
    STARTING = "starting"
    RUNNING = "running"
    COLLECTING = "collecting"


class Stream(enum.Enum):
    """Where user code wrote to."""

    STDOUT = "stdout"
    STDERR = "stderr"
    INSTALL = "install"
    """What the package manager prints."""


class ErrorKind(enum.Enum):
    """Why an execution did not succeed; the proto documents each."""

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


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one execution, all of them set."""

    timeout: float
    cpu_time: float
    cpus: float
    memory_bytes: int
    processes: int
    disk_bytes: int
    open_files: int
    output_bytes: int
    result_bytes: int
    artifact_count: int
    artifact_bytes: int


class NetworkMode(enum.Enum):
    """What an execution may reach."""

    NONE = "none"
    """Nothing: there is no network."""
    ALLOWLIST = "allowlist"
    """What its rules name."""
    FULL = "full"
    """The public internet."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One place that may be reached, or must not be. Made by `egress.rules.parse`; a name or a network, never both."""

    text: str
    """As it was written, for people."""
    ports: frozenset[int] | None
    """None: every port."""
    name: str = ""
    """Lower case, in ASCII, without the dot at the end."""
    below: bool = False
    """Whether it means what is below the name (`*.example.com`), and not the name itself."""
    network: ipaddress.IPv4Network | None = None


@dataclass(frozen=True, slots=True)
class NetworkLimits:
    """Bounds of one execution's traffic, all of them set."""

    connections: int
    """Open at once."""
    connections_per_second: int
    bytes_in: int
    """Received by the code."""
    bytes_out: int
    dns_queries: int
    idle_timeout: float
    """Seconds without a byte after which a connection is closed."""


@dataclass(frozen=True, slots=True)
class Network:
    """What one execution may reach, and how much of it."""

    mode: NetworkMode
    limits: NetworkLimits
    allow: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True)
class DeniedConnection:
    """Something that the code tried to reach and was not let."""

    host: str
    port: int
    """0: the name was asked for and not resolved."""
    reason: str
    rule: str
    """The rule that would have allowed it; empty when none can."""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Traffic:
    """What went over the network in one execution."""

    connections: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    dns_queries: int = 0
    denied: tuple[DeniedConnection, ...] = ()
    refused_packets: int = 0
    """UDP and ICMP. They are not in `denied`: what an exception says cannot be traced to them."""

    @property
    def told(self) -> tuple[DeniedConnection, ...]:
        """What the client hears of: each denial, and once that packets were refused."""
        if not self.refused_packets:
            return self.denied
        reason = "UDP (but for DNS) and ICMP are refused; use TCP"
        return (*self.denied, DeniedConnection("", 0, reason, "", self.refused_packets))


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One more source file beside the main one."""

    path: str
    content: bytes


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file for HOME: its bytes, or the artifact that holds them."""

    path: str
    content: bytes | None = None
    artifact_id: str | None = None


@dataclass(frozen=True, slots=True)
class ExecutionRequest:
    """A validated request: every field is in bounds and every limit is effective."""

    runtime: str
    code: str
    limits: Limits
    inputs_json: str = "{}"
    entry: Entry = Entry.DETECT
    files: tuple[SourceFile, ...] = ()
    input_files: tuple[InputFile, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    dependencies: tuple[str, ...] = ()
    """Canonical: what the package manager of the runtime takes."""
    lock: str = ""
    """Canonical."""
    labels: tuple[tuple[str, str], ...] = ()
    request_id: str = ""
    fingerprint: bytes = b""
    disconnect_policy: DisconnectPolicy = DisconnectPolicy.CANCEL
    network: Network | None = None
    """None: no network."""

    def without_contents(self) -> ExecutionRequest:
        """What is worth keeping of it once it has run: nothing that may be large."""
        return replace(self, code="", inputs_json="", files=(), input_files=(), env=(), lock="")


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the next server has to know of an execution when this one is killed."""

    execution_id: str
    request_id: str = ""
    fingerprint: bytes = b""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an execution did not succeed, and where."""

    kind: ErrorKind
    message: str
    traceback: str = ""
    file: str = ""
    line: int = 0
    column: int = 0
    hint: str = ""


class ArtifactState(enum.Enum):
    """Whether an artifact's URL works already."""

    AVAILABLE = "available"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file stored outside the sandbox. `name` is the path below HOME, always valid text."""

    id: str
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
class Started:
    """A sandbox is ready and user code is about to run."""

    warm: bool
    queue_time: float


@dataclass(frozen=True, slots=True)
class PhaseChange:
    """A phase began."""

    phase: Phase


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of a log, cut anywhere."""

    stream: Stream
    content: bytes


@dataclass(frozen=True, slots=True)
class Finished:
    """How an execution ended; always its last event."""

    outcome: Outcome
    exit_code: int = 0
    signal: int = 0
    result_json: str | None = None
    error: Failure | None = None
    artifacts: tuple[Artifact, ...] = ()
    result_artifact: Artifact | None = None
    usage: Usage = field(default_factory=Usage)
    warnings: tuple[str, ...] = ()
    stdout_dropped_bytes: int = 0
    stderr_dropped_bytes: int = 0
    denied_connections: tuple[DeniedConnection, ...] = ()
    lockfile: str = ""


Happening = Started | PhaseChange | Output | Finished


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in an execution, numbered from 1."""

    execution_id: str
    sequence: int
    time: float
    """Seconds since the epoch."""
    happening: Happening
