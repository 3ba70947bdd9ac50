import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Entry(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENTRY_UNSPECIFIED: _ClassVar[Entry]
    ENTRY_MAIN_ARGS: _ClassVar[Entry]
    ENTRY_MAIN_NAMED: _ClassVar[Entry]
    ENTRY_SCRIPT: _ClassVar[Entry]

class DisconnectPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DISCONNECT_POLICY_UNSPECIFIED: _ClassVar[DisconnectPolicy]
    DISCONNECT_POLICY_CANCEL: _ClassVar[DisconnectPolicy]
    DISCONNECT_POLICY_CONTINUE: _ClassVar[DisconnectPolicy]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_SUCCEEDED: _ClassVar[Outcome]
    OUTCOME_FAILED: _ClassVar[Outcome]
    OUTCOME_CANCELLED: _ClassVar[Outcome]

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_QUEUED: _ClassVar[Phase]
    PHASE_STARTING: _ClassVar[Phase]
    PHASE_RUNNING: _ClassVar[Phase]
    PHASE_COLLECTING: _ClassVar[Phase]
    PHASE_INSTALLING: _ClassVar[Phase]

class OutputStream(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTPUT_STREAM_UNSPECIFIED: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDOUT: _ClassVar[OutputStream]
    OUTPUT_STREAM_STDERR: _ClassVar[OutputStream]
    OUTPUT_STREAM_INSTALL: _ClassVar[OutputStream]

class ErrorKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ERROR_KIND_UNSPECIFIED: _ClassVar[ErrorKind]
    ERROR_KIND_SYNTAX_ERROR: _ClassVar[ErrorKind]
    ERROR_KIND_EXCEPTION: _ClassVar[ErrorKind]
    ERROR_KIND_ENTRY_NOT_FOUND: _ClassVar[ErrorKind]
    ERROR_KIND_RESULT_NOT_SERIALIZABLE: _ClassVar[ErrorKind]
    ERROR_KIND_TIMEOUT: _ClassVar[ErrorKind]
    ERROR_KIND_MEMORY_LIMIT: _ClassVar[ErrorKind]
    ERROR_KIND_PROCESS_LIMIT: _ClassVar[ErrorKind]
    ERROR_KIND_DISK_LIMIT: _ClassVar[ErrorKind]
    ERROR_KIND_OUTPUT_LIMIT: _ClassVar[ErrorKind]
    ERROR_KIND_EXITED: _ClassVar[ErrorKind]
    ERROR_KIND_SIGNALED: _ClassVar[ErrorKind]
    ERROR_KIND_CANCELLED: _ClassVar[ErrorKind]
    ERROR_KIND_SANDBOX_FAILED: _ClassVar[ErrorKind]
    ERROR_KIND_DEPENDENCY_FAILED: _ClassVar[ErrorKind]
    ERROR_KIND_NETWORK_DENIED: _ClassVar[ErrorKind]

class NetworkMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NETWORK_MODE_UNSPECIFIED: _ClassVar[NetworkMode]
    NETWORK_MODE_NONE: _ClassVar[NetworkMode]
    NETWORK_MODE_ALLOWLIST: _ClassVar[NetworkMode]
    NETWORK_MODE_FULL: _ClassVar[NetworkMode]

class ArtifactState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ARTIFACT_STATE_UNSPECIFIED: _ClassVar[ArtifactState]
    ARTIFACT_STATE_AVAILABLE: _ClassVar[ArtifactState]
    ARTIFACT_STATE_PENDING: _ClassVar[ArtifactState]
ENTRY_UNSPECIFIED: Entry
ENTRY_MAIN_ARGS: Entry
ENTRY_MAIN_NAMED: Entry
ENTRY_SCRIPT: Entry
DISCONNECT_POLICY_UNSPECIFIED: DisconnectPolicy
DISCONNECT_POLICY_CANCEL: DisconnectPolicy
DISCONNECT_POLICY_CONTINUE: DisconnectPolicy
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_SUCCEEDED: Outcome
OUTCOME_FAILED: Outcome
OUTCOME_CANCELLED: Outcome
PHASE_UNSPECIFIED: Phase
PHASE_QUEUED: Phase
PHASE_STARTING: Phase
PHASE_RUNNING: Phase
PHASE_COLLECTING: Phase
PHASE_INSTALLING: Phase
OUTPUT_STREAM_UNSPECIFIED: OutputStream
OUTPUT_STREAM_STDOUT: OutputStream
OUTPUT_STREAM_STDERR: OutputStream
OUTPUT_STREAM_INSTALL: OutputStream
ERROR_KIND_UNSPECIFIED: ErrorKind
ERROR_KIND_SYNTAX_ERROR: ErrorKind
ERROR_KIND_EXCEPTION: ErrorKind
ERROR_KIND_ENTRY_NOT_FOUND: ErrorKind
ERROR_KIND_RESULT_NOT_SERIALIZABLE: ErrorKind
ERROR_KIND_TIMEOUT: ErrorKind
ERROR_KIND_MEMORY_LIMIT: ErrorKind
ERROR_KIND_PROCESS_LIMIT: ErrorKind
ERROR_KIND_DISK_LIMIT: ErrorKind
ERROR_KIND_OUTPUT_LIMIT: ErrorKind
ERROR_KIND_EXITED: ErrorKind
ERROR_KIND_SIGNALED: ErrorKind
ERROR_KIND_CANCELLED: ErrorKind
ERROR_KIND_SANDBOX_FAILED: ErrorKind
ERROR_KIND_DEPENDENCY_FAILED: ErrorKind
ERROR_KIND_NETWORK_DENIED: ErrorKind
NETWORK_MODE_UNSPECIFIED: NetworkMode
NETWORK_MODE_NONE: NetworkMode
NETWORK_MODE_ALLOWLIST: NetworkMode
NETWORK_MODE_FULL: NetworkMode
ARTIFACT_STATE_UNSPECIFIED: ArtifactState
ARTIFACT_STATE_AVAILABLE: ArtifactState
ARTIFACT_STATE_PENDING: ArtifactState

class ExecuteRequest(_message.Message):
    __slots__ = ("request_id", "runtime", "code", "files", "inputs_json", "entry", "input_files", "env", "limits", "dependencies", "lock", "labels", "disconnect_policy", "network")
    class EnvEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    FILES_FIELD_NUMBER: _ClassVar[int]
    INPUTS_JSON_FIELD_NUMBER: _ClassVar[int]
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    INPUT_FILES_FIELD_NUMBER: _ClassVar[int]
    ENV_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    DEPENDENCIES_FIELD_NUMBER: _ClassVar[int]
    LOCK_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    DISCONNECT_POLICY_FIELD_NUMBER: _ClassVar[int]
    NETWORK_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    runtime: str
    code: str
    files: _containers.RepeatedCompositeFieldContainer[SourceFile]
    inputs_json: str
    entry: Entry
    input_files: _containers.RepeatedCompositeFieldContainer[InputFile]
    env: _containers.ScalarMap[str, str]
    limits: Limits
    dependencies: _containers.RepeatedScalarFieldContainer[str]
    lock: str
    labels: _containers.ScalarMap[str, str]
    disconnect_policy: DisconnectPolicy
    network: Network
    def __init__(self, request_id: _Optional[str] = ..., runtime: _Optional[str] = ..., code: _Optional[str] = ..., files: _Optional[_Iterable[_Union[SourceFile, _Mapping]]] = ..., inputs_json: _Optional[str] = ..., entry: _Optional[_Union[Entry, str]] = ..., input_files: _Optional[_Iterable[_Union[InputFile, _Mapping]]] = ..., env: _Optional[_Mapping[str, str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., dependencies: _Optional[_Iterable[str]] = ..., lock: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., disconnect_policy: _Optional[_Union[DisconnectPolicy, str]] = ..., network: _Optional[_Union[Network, _Mapping]] = ...) -> None: ...

class Network(_message.Message):
    __slots__ = ("mode", "allow", "limits")
    MODE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    mode: NetworkMode
    allow: _containers.RepeatedScalarFieldContainer[str]
    limits: NetworkLimits
    def __init__(self, mode: _Optional[_Union[NetworkMode, str]] = ..., allow: _Optional[_Iterable[str]] = ..., limits: _Optional[_Union[NetworkLimits, _Mapping]] = ...) -> None: ...

class NetworkLimits(_message.Message):
    __slots__ = ("connections", "connections_per_second", "bytes_in", "bytes_out", "dns_queries", "idle_timeout")
    CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    CONNECTIONS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    DNS_QUERIES_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    connections: int
    connections_per_second: int
    bytes_in: int
    bytes_out: int
    dns_queries: int
    idle_timeout: _duration_pb2.Duration
    def __init__(self, connections: _Optional[int] = ..., connections_per_second: _Optional[int] = ..., bytes_in: _Optional[int] = ..., bytes_out: _Optional[int] = ..., dns_queries: _Optional[int] = ..., idle_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SourceFile(_message.Message):
    __slots__ = ("path", "content")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    path: str
    content: bytes
    def __init__(self, path: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class InputFile(_message.Message):
    __slots__ = ("path", "content", "artifact_id")
    PATH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_ID_FIELD_NUMBER: _ClassVar[int]
    path: str
    content: bytes
    artifact_id: str
    def __init__(self, path: _Optional[str] = ..., content: _Optional[bytes] = ..., artifact_id: _Optional[str] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("timeout", "cpu_time", "cpus", "memory_bytes", "processes", "disk_bytes", "open_files", "output_bytes", "result_bytes", "artifact_count", "artifact_bytes")
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    CPU_TIME_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROCESSES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    OPEN_FILES_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESULT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_COUNT_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    timeout: _duration_pb2.Duration
    cpu_time: _duration_pb2.Duration
    cpus: float
    memory_bytes: int
    processes: int
    disk_bytes: int
    open_files: int
    output_bytes: int
    result_bytes: int
    artifact_count: int
    artifact_bytes: int
    def __init__(self, timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cpu_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cpus: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., processes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., open_files: _Optional[int] = ..., output_bytes: _Optional[int] = ..., result_bytes: _Optional[int] = ..., artifact_count: _Optional[int] = ..., artifact_bytes: _Optional[int] = ...) -> None: ...

class ExecuteResponse(_message.Message):
    __slots__ = ("execution_id", "sequence", "time", "started", "phase", "output", "finished")
    EXECUTION_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    execution_id: str
    sequence: int
    time: _timestamp_pb2.Timestamp
    started: Started
    phase: PhaseChange
    output: Output
    finished: Finished
    def __init__(self, execution_id: _Optional[str] = ..., sequence: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started: _Optional[_Union[Started, _Mapping]] = ..., phase: _Optional[_Union[PhaseChange, _Mapping]] = ..., output: _Optional[_Union[Output, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("warm", "queue_time")
    WARM_FIELD_NUMBER: _ClassVar[int]
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    warm: bool
    queue_time: _duration_pb2.Duration
    def __init__(self, warm: bool = ..., queue_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class PhaseChange(_message.Message):
    __slots__ = ("phase",)
    PHASE_FIELD_NUMBER: _ClassVar[int]
    phase: Phase
    def __init__(self, phase: _Optional[_Union[Phase, str]] = ...) -> None: ...

class Output(_message.Message):
    __slots__ = ("stream", "content")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    stream: OutputStream
    content: bytes
    def __init__(self, stream: _Optional[_Union[OutputStream, str]] = ..., content: _Optional[bytes] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("outcome", "exit_code", "signal", "result_json", "error", "artifacts", "result_artifact", "usage", "warnings", "truncated", "lockfile", "denied_connections")
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    SIGNAL_FIELD_NUMBER: _ClassVar[int]
    RESULT_JSON_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ARTIFACTS_FIELD_NUMBER: _ClassVar[int]
    RESULT_ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    LOCKFILE_FIELD_NUMBER: _ClassVar[int]
    DENIED_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    outcome: Outcome
    exit_code: int
    signal: int
    result_json: str
    error: Error
    artifacts: _containers.RepeatedCompositeFieldContainer[Artifact]
    result_artifact: Artifact
    usage: Usage
    warnings: _containers.RepeatedScalarFieldContainer[str]
    truncated: Truncated
    lockfile: str
    denied_connections: _containers.RepeatedCompositeFieldContainer[DeniedConnection]
    def __init__(self, outcome: _Optional[_Union[Outcome, str]] = ..., exit_code: _Optional[int] = ..., signal: _Optional[int] = ..., result_json: _Optional[str] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., artifacts: _Optional[_Iterable[_Union[Artifact, _Mapping]]] = ..., result_artifact: _Optional[_Union[Artifact, _Mapping]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., truncated: _Optional[_Union[Truncated, _Mapping]] = ..., lockfile: _Optional[str] = ..., denied_connections: _Optional[_Iterable[_Union[DeniedConnection, _Mapping]]] = ...) -> None: ...

class DeniedConnection(_message.Message):
    __slots__ = ("host", "port", "reason", "rule", "count")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RULE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    reason: str
    rule: str
    count: int
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ..., reason: _Optional[str] = ..., rule: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("kind", "message", "traceback", "file", "line", "column", "hint")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    LINE_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    kind: ErrorKind
    message: str
    traceback: str
    file: str
    line: int
    column: int
    hint: str
    def __init__(self, kind: _Optional[_Union[ErrorKind, str]] = ..., message: _Optional[str] = ..., traceback: _Optional[str] = ..., file: _Optional[str] = ..., line: _Optional[int] = ..., column: _Optional[int] = ..., hint: _Optional[str] = ...) -> None: ...

class Artifact(_message.Message):
    __slots__ = ("id", "name", "content_type", "size_bytes", "sha256", "download_url", "expire_time", "state")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DOWNLOAD_URL_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    download_url: str
    expire_time: _timestamp_pb2.Timestamp
    state: ArtifactState
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., content_type: _Optional[str] = ..., size_bytes: _Optional[int] = ..., sha256: _Optional[str] = ..., download_url: _Optional[str] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[ArtifactState, str]] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("queue_time", "start_time", "run_time", "collect_time", "cpu_time", "peak_memory_bytes", "stdout_bytes", "stderr_bytes", "input_bytes", "artifact_bytes", "network_bytes_in", "network_bytes_out", "network_connections", "install_time")
    QUEUE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    RUN_TIME_FIELD_NUMBER: _ClassVar[int]
    COLLECT_TIME_FIELD_NUMBER: _ClassVar[int]
    CPU_TIME_FIELD_NUMBER: _ClassVar[int]
    PEAK_MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    STDOUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    STDERR_BYTES_FIELD_NUMBER: _ClassVar[int]
    INPUT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    NETWORK_BYTES_IN_FIELD_NUMBER: _ClassVar[int]
    NETWORK_BYTES_OUT_FIELD_NUMBER: _ClassVar[int]
    NETWORK_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    INSTALL_TIME_FIELD_NUMBER: _ClassVar[int]
    queue_time: _duration_pb2.Duration
    start_time: _duration_pb2.Duration
    run_time: _duration_pb2.Duration
    collect_time: _duration_pb2.Duration
    cpu_time: _duration_pb2.Duration
    peak_memory_bytes: int
    stdout_bytes: int
    stderr_bytes: int
    input_bytes: int
    artifact_bytes: int
    network_bytes_in: int
    network_bytes_out: int
    network_connections: int
    install_time: _duration_pb2.Duration
    def __init__(self, queue_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., start_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., run_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., collect_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., cpu_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., peak_memory_bytes: _Optional[int] = ..., stdout_bytes: _Optional[int] = ..., stderr_bytes: _Optional[int] = ..., input_bytes: _Optional[int] = ..., artifact_bytes: _Optional[int] = ..., network_bytes_in: _Optional[int] = ..., network_bytes_out: _Optional[int] = ..., network_connections: _Optional[int] = ..., install_time: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Truncated(_message.Message):
    __slots__ = ("stdout", "stderr", "stdout_dropped_bytes", "stderr_dropped_bytes")
    STDOUT_FIELD_NUMBER: _ClassVar[int]
    STDERR_FIELD_NUMBER: _ClassVar[int]
    STDOUT_DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STDERR_DROPPED_BYTES_FIELD_NUMBER: _ClassVar[int]
    stdout: bool
    stderr: bool
    stdout_dropped_bytes: int
    stderr_dropped_bytes: int
    def __init__(self, stdout: bool = ..., stderr: bool = ..., stdout_dropped_bytes: _Optional[int] = ..., stderr_dropped_bytes: _Optional[int] = ...) -> None: ...

class ListRuntimesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListRuntimesResponse(_message.Message):
    __slots__ = ("runtimes", "default_limits", "max_limits", "waived_limits", "network_modes", "default_network_limits", "max_network_limits")
    RUNTIMES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_LIMITS_FIELD_NUMBER: _ClassVar[int]
    MAX_LIMITS_FIELD_NUMBER: _ClassVar[int]
    WAIVED_LIMITS_FIELD_NUMBER: _ClassVar[int]
    NETWORK_MODES_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_NETWORK_LIMITS_FIELD_NUMBER: _ClassVar[int]
    MAX_NETWORK_LIMITS_FIELD_NUMBER: _ClassVar[int]
    runtimes: _containers.RepeatedCompositeFieldContainer[Runtime]
    default_limits: Limits
    max_limits: Limits
    waived_limits: _containers.RepeatedScalarFieldContainer[str]
    network_modes: _containers.RepeatedScalarFieldContainer[NetworkMode]
    default_network_limits: NetworkLimits
    max_network_limits: NetworkLimits
    def __init__(self, runtimes: _Optional[_Iterable[_Union[Runtime, _Mapping]]] = ..., default_limits: _Optional[_Union[Limits, _Mapping]] = ..., max_limits: _Optional[_Union[Limits, _Mapping]] = ..., waived_limits: _Optional[_Iterable[str]] = ..., network_modes: _Optional[_Iterable[_Union[NetworkMode, str]]] = ..., default_network_limits: _Optional[_Union[NetworkLimits, _Mapping]] = ..., max_network_limits: _Optional[_Union[NetworkLimits, _Mapping]] = ...) -> None: ...

class Runtime(_message.Message):
    __slots__ = ("name", "version", "main_file", "image_digest", "packages")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MAIN_FILE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    PACKAGES_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    main_file: str
    image_digest: str
    packages: _containers.RepeatedCompositeFieldContainer[Package]
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ..., main_file: _Optional[str] = ..., image_digest: _Optional[str] = ..., packages: _Optional[_Iterable[_Union[Package, _Mapping]]] = ...) -> None: ...

class Package(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...
