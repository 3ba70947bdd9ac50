"""What one execution gathers while its sandbox runs, and the terminal event that is made of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from belljar_server.artifacts import ArtifactStore
from belljar_server.artifacts.collect import Collector, ResultSink
from belljar_server.errors import SandboxFailed
from belljar_server.execution import Execution
from belljar_server.models import (
    ErrorKind,
    Failure,
    Finished,
    Outcome,
    Phase,
    PhaseChange,
    Started,
    Stream,
    Usage,
)
from belljar_server.sandbox import Ending, Job, JobFile, Sandbox, Stop
from belljar_server.verdict import LEFT_EARLY, Verdict, judge

T = TypeVar("T")


class Stopped(Exception):
    """The execution was stopped while it waited for something."""


RETRIES = 2
"""Other sandboxes for an execution whose own died before user code: a host that kills one often kills its neighbour."""


class Run:
    """One execution while it runs: the `Listener` of its sandbox. Mutable state: what it got so far."""

    def __init__(
        self,
        execution: Execution,
        files: tuple[JobFile, ...],
        store: ArtifactStore,
        flood_bytes: int,
        collect_timeout: float,
    ) -> None:
        self.execution = execution
        self.stopped: Stop | None = None
        self.queue_time = 0.0
        self.install_time = 0.0
        self.start_time = 0.0
        self.running_at = 0.0
        self.lockfile = ""
        self.warm = False
        self._retries = 0
        self.warnings: list[str] = []
        self.gave_up = False
        """Whether storing the artifacts was ended by this side."""
        self._files = files
        self._sandbox: Sandbox | None = None
        self._patience: asyncio.Timeout | None = None
        self._flood_bytes = flood_bytes
        self._collect_timeout = collect_timeout
        self._collect_until: float | None = None
        self._collector = Collector(store, execution.request.limits)
        self._result = ResultSink(store, execution.request.limits)
        self._ending: Ending | None = None

    @property
    def phase(self) -> str:
        """What it is busy with, in a word."""
        if self._collect_until is not None:
            return Phase.COLLECTING.value
        if self.running_at:
            return Phase.RUNNING.value
        return Phase.STARTING.value if self._sandbox else Phase.QUEUED.value

    def hold(self, sandbox: Sandbox) -> None:
        """The execution has its sandbox; a stop that came before is passed on."""
        self._sandbox = sandbox
        self.warm = sandbox.warm
        if self.stopped:
            sandbox.stop(self.stopped)

    def release(self) -> None:
        """The sandbox is done with."""
        self._sandbox = None

    def may_retry(self, ending: Ending) -> bool:
        """Whether the sandbox died by itself before user code began, and it is not the third."""
        if ending.started or ending.stop or ending.fault_errno or self.stopped:
            return False
        self._retries += 1
        return self._retries <= RETRIES

    def stop(self, reason: Stop) -> None:
        """Ends the execution, whatever it is doing: waiting for its turn or a sandbox, running, storing."""
        if self.stopped:
            return
        self.stopped = reason
        now = asyncio.get_running_loop().time()
        if self._collect_until is not None:
            self._collect_until = min(self._collect_until, now)
        if self._patience:
            self._patience.reschedule(now)
        if self._sandbox:
            self._sandbox.stop(reason)

    @contextlib.asynccontextmanager
    async def stoppable(self, until: float | None = None) -> AsyncIterator[None]:
        """A scope whose waiting ends when the execution is stopped. Raises Stopped, and TimeoutError after `until`."""
        try:
            async with asyncio.timeout_at(
                asyncio.get_running_loop().time() if self.stopped else until
            ) as self._patience:
                yield
        except TimeoutError:
            if self.stopped:
                raise Stopped from None
            raise
        finally:
            self._patience = None

    def job(self) -> Job:
        """What the sandbox is to run."""
        request = self.execution.request
        return Job(
            code=request.code,
            inputs_json=request.inputs_json,
            entry=request.entry.value,
            env=request.env,
            sources=request.files,
            files=self._files,
            limits=request.limits,
            network=request.network,
            execution_id=self.execution.id,
        )

    def on_install_output(self, data: bytes) -> None:
        """A package manager was started for this execution, or printed something."""
        if not data:
            self.execution.tell(PhaseChange(Phase.INSTALLING))
        else:
            self.execution.tell_output(Stream.INSTALL, data)

    def on_prepared(self) -> None:
        """Tells the client."""
        self.execution.tell(Started(self.warm, self.queue_time))

    def on_running(self) -> None:
        """Tells the client."""
        self.running_at = time.monotonic()
        self.execution.tell(PhaseChange(Phase.RUNNING))

    def on_output(self, stream: Stream, data: bytes) -> None:
        """Passes output on; ends code that floods."""
        if self.execution.tell_output(stream, data) > self._flood_bytes and self._sandbox:
            self._sandbox.stop(Stop.OUTPUT)

    async def on_result(self, data: bytes) -> None:
        """Keeps a piece of the result."""
        await self._in_time(self._result.write(data))

    def on_collecting(self) -> None:
        """Tells the client, and bounds the time that storing may take."""
        self.execution.tell(PhaseChange(Phase.COLLECTING))
        self._collect_until = asyncio.get_running_loop().time() + self._collect_timeout

    async def on_artifact(self, name: bytes, size: int) -> None:
        """An artifact begins; the size it claims decides nothing."""
        del size
        await self._collector.begin(name)

    async def on_artifact_data(self, data: bytes) -> None:
        """The next bytes of it. Raises SandboxFailed when storing takes too long."""
        await self._in_time(self._collector.write(data))

    async def on_artifact_end(self, *, complete: bool) -> None:
        """It is through. Raises SandboxFailed when storing takes too long."""
        await self._in_time(self._collector.end(complete=complete))

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        try:
            async with self.stoppable(self._collect_until):
                return await work
        except (Stopped, TimeoutError):
            too_long = f"storing the artifacts took longer than {self._collect_timeout:g} s"
            problem = "the execution was stopped while its artifacts were stored" if self.stopped else too_long
            if not self.gave_up:
                self.warnings.append(f"{problem}: some are missing")
            self.gave_up = True
            raise SandboxFailed(problem) from None

    async def deliver(  # noqa: C901  one early exit after the other
        self, verdict: Verdict, ending: Ending
    ) -> Finished:
        """The terminal event, with the result if there is one."""
        self._ending = ending
        try:
            await self._in_time(self._collector.finish())
        except SandboxFailed:
            if self.stopped:  # the client must not take what is there for all there is
                limits = self.execution.request.limits
                verdict = judge(replace(ending, stop=self.stopped, cut_short=True), limits, "")
        if verdict.outcome is not Outcome.SUCCEEDED:
            return self.finish(verdict, None)
        if self._result.lost:
            limits = self.execution.request.limits
            message = (
                f"the result has {self._result.size} bytes, more than limits.result_bytes ({limits.result_bytes})"
                f" and limits.artifact_bytes ({limits.artifact_bytes})"
            )
            failure = Failure(ErrorKind.OUTPUT_LIMIT, message, hint="Raise one of them, or return less.")
            return self.finish(Verdict(Outcome.FAILED, verdict.exit_code or 1, failure=failure), None)
        text = self._result.text
        if text is not None:
            problem = json_problem(text)
            if problem:
                failure = Failure(ErrorKind.RESULT_NOT_SERIALIZABLE, f"the result is not JSON: {problem}")
                return self.finish(Verdict(Outcome.FAILED, verdict.exit_code or 1, failure=failure), None)
        try:
            artifact, remarks = await self._in_time(self._result.artifact())
        except SandboxFailed:
            artifact, remarks = None, []
        self.warnings += remarks
        if self._result.too_large and artifact is None:
            message = f"the result has {self._result.size} bytes, too many to send, and could not be stored"
            failure = Failure(ErrorKind.SANDBOX_FAILED, message, hint="This is not the code's fault; try again.")
            return self.finish(Verdict(Outcome.FAILED, 1, failure=failure), None)
        if self._result.size == 0:  # code that runs to its end without a result gives null
            self.warnings.append(LEFT_EARLY)
        finished = self.finish(verdict, text.decode() if text is not None else None)
        if artifact:
            usage = replace(finished.usage, artifact_bytes=finished.usage.artifact_bytes + artifact.size_bytes)
            finished = replace(finished, result_artifact=artifact, usage=usage)
        return finished

    async def close(self) -> None:
        """Lets go of every artifact that is not stored: half of one, when the sandbox died while it came."""
        await self._collector.abort()
        await self._result.abort()

    def finish(self, verdict: Verdict, result_json: str | None) -> Finished:
        """The terminal event out of a verdict and all that was gathered."""
        return Finished(
            outcome=verdict.outcome,
            exit_code=verdict.exit_code,
            signal=verdict.signal,
            result_json=result_json,
            error=verdict.failure,
            artifacts=self._collector.artifacts,
            usage=self.usage(),
            warnings=(*self.warnings, *verdict.warnings, *self._collector.warnings),
            stdout_dropped_bytes=self.execution.dropped[Stream.STDOUT],
            stderr_dropped_bytes=self.execution.dropped[Stream.STDERR],
            denied_connections=self._ending.traffic.told if self._ending else (),
            lockfile=self.lockfile,
        )

    def usage(self) -> Usage:
        """What it cost so far."""
        request = self.execution.request
        ending = self._ending or Ending(None)
        sources = sum(len(file.content) for file in request.files) + sum(file.size for file in self._files)
        return Usage(
            queue_time=self.queue_time,
            install_time=self.install_time,
            start_time=self.start_time,
            run_time=ending.run_time,
            collect_time=ending.collect_time,
            cpu_time=ending.cpu_time,
            peak_memory_bytes=ending.peak_memory_bytes,
            stdout_bytes=self.execution.written[Stream.STDOUT],
            stderr_bytes=self.execution.written[Stream.STDERR],
            input_bytes=len(request.code.encode()) + len(request.inputs_json.encode()) + sources,
            artifact_bytes=sum(artifact.size_bytes for artifact in self._collector.artifacts),
            network_bytes_in=ending.traffic.bytes_in,
            network_bytes_out=ending.traffic.bytes_out,
            network_connections=ending.traffic.connections,
        )


def json_problem(text: bytes) -> str:
    """Why bytes that a sandbox sent are not a JSON document, or an empty string when they are one."""
    try:
        json.loads(text.decode(), parse_constant=_refuse_constant, parse_int=_any_integer)
    except (ValueError, RecursionError) as error:
        return str(error)
    return ""


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _any_integer(digits: str) -> object:
    return digits
