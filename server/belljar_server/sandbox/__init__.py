"""The central seam: a `Sandbox` runs one job and is destroyed; a `SandboxSource` gives sandboxes out.

Everything above this package sees these types only. `sandbox.RunscSandbox` is the real one.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from belljar_server.models import Limits, Network, SourceFile, Stream, Traffic
from belljar_server.sandbox.spec import Environment


class Stop(enum.Enum):
    """Why the server ended user code before its time."""

    TIMEOUT = "wall time"
    CPU_TIME = "CPU time"
    OUTPUT = "output"
    MEMORY = "memory"
    CANCELLED = "cancelled"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True)
class JobFile:
    """A file to place in HOME before the code starts. `open` gives its `size` bytes, again each time it is called."""

    path: str
    size: int
    open: Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Job:
    """What a sandbox runs: code and all that goes in with it."""

    code: str
    inputs_json: str
    entry: str
    env: tuple[tuple[str, str], ...]
    sources: tuple[SourceFile, ...]
    files: tuple[JobFile, ...]
    limits: Limits
    network: Network | None = None
    """What it may reach; None for a sandbox without network."""
    execution_id: str = ""
    """For the log of its connections."""


class Listener(Protocol):
    """Who hears what happens in a sandbox while it runs a job."""

    def on_prepared(self) -> None:
        """The sandbox is ready and everything is in it."""

    def on_running(self) -> None:
        """User code is about to run."""

    def on_output(self, stream: Stream, data: bytes) -> None:
        """User code printed; `data` is at most 256 KiB."""

    async def on_result(self, data: bytes) -> None:
        """A piece of the result's JSON text."""

    def on_collecting(self) -> None:
        """User code is over; artifacts follow."""

    async def on_artifact(self, name: bytes, size: int) -> None:
        """An artifact begins; `name` is the raw path below HOME, `size` what the sandbox claims."""

    async def on_artifact_data(self, data: bytes) -> None:
        """The next bytes of it."""

    async def on_artifact_end(self, *, complete: bool) -> None:
        """Its last byte was sent, or it could not be read to the end."""


@dataclass(frozen=True, slots=True)
class Ending:
    """The evidence of how a job ended. What it means for the user is decided elsewhere, from this alone."""

    wait_status: int | None
    """Raw wait status of the worker as the agent saw it; None when the sandbox ended without telling."""
    report: bytes | None = None
    """The worker's report, as untrusted bytes."""
    stop: Stop | None = None
    """Why the server ended it; None when it did not."""
    oom_kills: int = 0
    """The kernel's counter."""
    tasks: int = 0
    """Processes and threads when the worker reported that it could not start another."""
    leaving: bool = False
    """Whether exit handlers and destructors were still running when the sandbox was ended."""
    fault: str = ""
    """What went wrong with the sandbox itself, for the log."""
    fault_errno: str = ""
    """Name of the error when the agent could not prepare the job."""
    started: bool = False
    """Whether user code was started."""
    cut_short: bool = False
    """Whether the sandbox failed or was ended after user code, before all artifacts were out."""
    skipped: tuple[tuple[bytes, str], ...] = ()
    """Files that were left out, and why; an empty name is a remark on all."""
    left_out: int = 0
    """How many files were left out."""
    run_time: float = 0.0
    collect_time: float = 0.0
    cpu_time: float = 0.0
    peak_memory_bytes: int = 0
    traffic: Traffic = field(default_factory=Traffic)


class Link(Protocol):
    """The network of one sandbox, seen from its side."""

    @property
    def namespace(self) -> int:
        """The network namespace that the sandbox lives in, as an open file."""

    def open(self, network: Network, execution_id: str) -> None:
        """Lets through what one execution may reach."""

    def shut(self) -> Traffic:
        """Lets nothing through any more, and tells what did. Safe to call twice, and before `open`."""

    def close(self) -> None:
        """Leaves nothing of it. Safe to call twice."""


MakeLink = Callable[[], Awaitable[Link]]
"""Makes a fresh link. Raises SandboxFailed."""


class Sandbox(Protocol):
    """One gVisor sandbox, used for one job."""

    id: str
    warm: bool

    async def run(self, job: Job, listener: Listener) -> Ending:
        """Runs the job to its end, whatever that is. Never raises for what the sandbox or the code did."""

    def stop(self, reason: Stop) -> None:
        """Ends user code now; `run` returns soon after. The first reason counts."""

    async def destroy(self) -> None:
        """Leaves nothing of it on the host. Safe to call twice."""


class SandboxSource(Protocol):
    """Where sandboxes come from: booted when asked for, or (later) out of a pool."""

    def acquire(self, environment: Environment) -> AbstractAsyncContextManager[Sandbox]:
        """A fresh sandbox that is destroyed at the end of the scope. Raises SandboxFailed."""
