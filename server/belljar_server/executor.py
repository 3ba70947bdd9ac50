"""Runs executions: admit, acquire a sandbox, run, collect, decide, tell. Reads like the list of what happens.

Each accepted execution is a task of its own that no client's fate touches; whatever happens inside, it ends with
exactly one `finished`. Mutable state of the executor: the executions under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog

from belljar_server.accounts import Accounts
from belljar_server.admission import Admission, Place
from belljar_server.artifacts import ArtifactStore
from belljar_server.artifacts.collect import show_name
from belljar_server.config import Execution as ExecutionSettings
from belljar_server.dependencies.installing import InstallFailed
from belljar_server.dependencies.provider import Dependencies
from belljar_server.environments import choose
from belljar_server.errors import InvalidRequest, NotFound, SandboxFailed, StoreFailed, Unavailable, Violation
from belljar_server.execution import Execution
from belljar_server.guest.framing import MAX_PAYLOAD
from belljar_server.metrics import Metrics
from belljar_server.models import (
    Accepted,
    DisconnectPolicy,
    ErrorKind,
    ExecutionRequest,
    Failure,
    Finished,
    Outcome,
    Phase,
    PhaseChange,
)
from belljar_server.replays import Replays
from belljar_server.run import Run, Stopped
from belljar_server.sandbox import Ending, JobFile, SandboxSource, Stop
from belljar_server.sandbox.spec import Environment
from belljar_server.verdict import Verdict, judge

log = structlog.get_logger()

STOP_SECONDS = 10.0
"""Seconds that an execution may take to end once it was told to, before a stopping server gives it up."""

ANSWER_SECONDS = 0.01
"""Seconds that the answer has to go out before the sandbox is destroyed, which keeps the kernel busy for a while."""


class Journal(Protocol):
    """Where accepted executions are noted, so that none is lost without a word when the server is killed."""

    def accepted(self, accepted: Accepted) -> None:
        """The execution is under way."""

    def ended(self, execution_id: str) -> None:
        """It has its terminal event."""


class Executor:
    """Takes validated requests and runs them."""

    def __init__(  # noqa: PLR0913  all that it works with, by name
        self,
        *,
        settings: ExecutionSettings,
        environments: Mapping[str, Environment],
        preloaded: Mapping[str, Environment],
        dependencies: Dependencies | None = None,
        sandboxes: SandboxSource,
        store: ArtifactStore,
        metrics: Metrics,
        waived: frozenset[str],
        flood_bytes: int,
        journal: Journal,
        lost: Iterable[Accepted] = (),
        on_sandbox_failed: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._environments = environments
        self._preloaded = preloaded
        self._dependencies = dependencies
        self._sandboxes = sandboxes
        self._store = store
        self._metrics = metrics
        self._waived = waived
        self._flood_bytes = flood_bytes
        self._journal = journal
        self._on_sandbox_failed = on_sandbox_failed
        self.admission = Admission(settings.max_running, settings.max_queued)
        self._running: dict[Execution, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._replays = Replays(settings.replay_ttl, settings.replay_bytes)
        for each in lost:
            self._replays.lost(each)
        self._draining = False
        self._accounts = Accounts(metrics)

    def __repr__(self) -> str:
        """How much it has to do."""
        return f"<Executor {len(self._running)} under way, {self.admission!r}>"

    def status(self) -> dict[str, list[dict[str, object]]]:
        """What runs and what ended lately, for people."""
        now = time.monotonic()
        under_way = [
            {
                "execution": execution.id,
                "runtime": execution.request.runtime,
                "phase": run.phase,
                "seconds": round(now - execution.began, 2),
            }
            for execution, run in self._running.items()
        ]
        admission: dict[str, object] = {"running": self.admission.running, "waiting": self.admission.waiting}
        return {"admission": [admission], "under way": under_way, "ended lately": list(reversed(self._accounts.recent))}

    async def submit(self, request: ExecutionRequest) -> Execution:
        """Accepts a request, or finds the execution that it repeats. From here on it ends with exactly one `finished`.

        Raises InvalidRequest, NotFound, Overloaded, Unavailable; then nothing was started.
        """
        known = self._repeated(request)
        if known:
            return known
        if self._draining:
            raise Unavailable("the server is stopping")
        await self._store.check()
        files = await self._open_files(request)
        known = self._repeated(request)  # the same request may have come in while this one waited
        if known:
            return known
        if self._draining:  # and the server may have been told to stop
            raise Unavailable("the server is stopping")
        place = self.admission.enter()
        execution = Execution(request, self._abandoned)
        if request.request_id:
            self._replays.add(execution)
        run = Run(execution, files, self._store, self._flood_bytes, self._settings.collect_timeout)
        self._running[execution] = run
        self._journal.accepted(Accepted(execution.id, request.request_id, request.fingerprint))
        task = asyncio.create_task(self._execute(run, place))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return execution

    async def drain(self, grace: float) -> None:
        """Takes no more work, lets what runs finish within `grace` seconds, then ends it."""
        self._draining = True
        tasks = set(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=grace)
        for run in list(self._running.values()):
            run.stop(Stop.SHUTDOWN)
        if tasks:
            _, stuck = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in stuck:
                task.cancel()
            if stuck:
                await asyncio.wait(stuck, timeout=STOP_SECONDS)

    @property
    def under_way(self) -> int:
        """How many executions are accepted and not finished."""
        return len(self._running)

    def _repeated(self, request: ExecutionRequest) -> Execution | None:
        known = self._replays.find(request.request_id) if request.request_id else None
        if known and known.request.fingerprint != request.fingerprint:
            problem = f"{request.request_id!r} was used for another request; take a new one for each request"
            raise InvalidRequest(Violation("request_id", problem))
        return known

    def _abandoned(self, execution: Execution) -> None:
        run = self._running.get(execution)
        if run and execution.request.disconnect_policy is DisconnectPolicy.CANCEL:
            run.stop(Stop.CANCELLED)

    async def _open_files(self, request: ExecutionRequest) -> tuple[JobFile, ...]:
        """Looks every input file up before anything is started. Raises InvalidRequest, NotFound."""
        files = []
        size = sum(len(file.content) for file in request.files)
        for index, file in enumerate(request.input_files):
            if file.content is not None:
                files.append(JobFile(file.path, len(file.content), partial(_pieces, file.content)))
                size += len(file.content)
                continue
            artifact_id = file.artifact_id or ""
            try:
                stored, _ = await self._store.open(artifact_id)
            except NotFound as error:
                raise NotFound(f"input_files[{index}].artifact_id", error.name) from error
            except StoreFailed as error:
                raise Unavailable(f"input_files[{index}].artifact_id: {error}") from error
            files.append(JobFile(file.path, stored.size_bytes, partial(_artifact, self._store, artifact_id)))
            size += stored.size_bytes
        if size > request.limits.disk_bytes:
            problem = f"is {request.limits.disk_bytes}, but files and input_files alone have {size} bytes"
            raise InvalidRequest(Violation("limits.disk_bytes", problem))
        return tuple(files)

    async def _execute(self, run: Run, place: Place) -> None:
        execution = run.execution
        async with contextlib.AsyncExitStack() as after:  # what the client need not wait for
            after.push_async_callback(_close, run)
            try:
                finished = await self._attempt(run, place, after)
            except BaseException as error:  # one terminal event, whatever happened
                log.exception("execution broke", execution_id=execution.id)
                failure = Failure(ErrorKind.SANDBOX_FAILED, "the server failed while it ran this execution")
                finished = Finished(Outcome.FAILED, 1, error=failure, usage=run.usage())
                if not isinstance(error, Exception):
                    raise
            finally:
                del self._running[execution]
                execution.tell(finished)
                self._accounts.finished(execution, finished, warm=run.warm)
                self._replays.ended(execution)
                after.callback(self._journal.ended, execution.id)  # first of all that is left to do
            await asyncio.sleep(ANSWER_SECONDS)

    async def _attempt(self, run: Run, place: Place, after: contextlib.AsyncExitStack) -> Finished:
        """Runs it to its end. Its sandbox is destroyed with `after`."""
        execution = run.execution
        request = execution.request
        if self.admission.waiting:
            execution.tell(PhaseChange(Phase.QUEUED))
        async with contextlib.AsyncExitStack() as held:
            try:
                async with run.stoppable():
                    run.queue_time = await held.enter_async_context(place)
                environment = await self._prepare(run, held)
                execution.tell(PhaseChange(Phase.STARTING))
                environment = replace(environment, network=request.network is not None)
                started = time.monotonic()
                while True:
                    try:
                        scope = await after.enter_async_context(contextlib.AsyncExitStack())
                        async with run.stoppable():
                            sandbox = await scope.enter_async_context(self._sandboxes.acquire(environment))
                        run.hold(sandbox)
                        ending = await sandbox.run(run.job(), run)
                        run.start_time = (run.running_at or time.monotonic()) - started
                        run.release()
                        if not run.may_retry(ending):
                            return await self._conclude(run, ending, environment)
                        await scope.aclose()
                    except SandboxFailed as error:
                        ending = Ending(None, stop=run.stopped, fault=str(error), started=run.running_at > 0)
                        if not run.may_retry(ending):
                            self._sandbox_failed(execution, ending.fault)
                            return run.finish(judge(ending, request.limits, ""), None)
                    self._sandbox_failed(execution, f"before user code, tried again on another: {ending.fault}")
            except Stopped:
                return run.finish(judge(Ending(None, stop=run.stopped), request.limits, ""), None)
            except InstallFailed as error:
                words = Failure(ErrorKind.DEPENDENCY_FAILED, str(error), traceback=error.last_lines, hint=error.hint)
                return run.finish(Verdict(Outcome.FAILED, 1, failure=words), None)
            except SandboxFailed as error:  # the one that installs; others are dealt with above
                self._sandbox_failed(execution, str(error))
                return run.finish(judge(Ending(None, fault=str(error)), request.limits, ""), None)

    async def _prepare(self, run: Run, held: contextlib.AsyncExitStack) -> Environment:
        """The environment to run in, with what the request asks for. Raises Stopped, InstallFailed, SandboxFailed."""
        request = run.execution.request
        plain = self._environments[request.runtime]
        if self._dependencies is None or not self._dependencies.needs_layer(request, plain):
            return choose(request, plain, self._preloaded.get(request.runtime))
        began = time.monotonic()
        try:
            async with run.stoppable():
                provided = await held.enter_async_context(
                    self._dependencies.provide(request, plain, run.on_install_output)
                )
        finally:
            run.install_time = time.monotonic() - began
        run.lockfile = provided.lockfile
        return provided.environment

    async def _conclude(self, run: Run, ending: Ending, environment: Environment) -> Finished:
        verdict = judge(ending, run.execution.request.limits, environment.runtime.main_file)
        if verdict.failure and verdict.failure.kind is ErrorKind.SANDBOX_FAILED:
            self._sandbox_failed(run.execution, ending.fault)
        if ending.fault and ending.wait_status is not None:
            log.error("artifacts were not collected", execution_id=run.execution.id, error=ending.fault)
            if not run.warnings:  # else it was the store, and is told already
                run.warnings.append("some artifacts are missing: the sandbox ended while they were collected")
        run.warnings += [f"limits.{name} is not enforced on this host" for name in sorted(self._waived)]
        for name, reason in ending.skipped:
            run.warnings.append(f"{show_name(name)!r} was left out: {reason}" if name else reason)
        if ending.cut_short and not run.gave_up and not run.stopped:
            run.warnings.append("the sandbox failed before all artifacts were out: some are missing")
            self._sandbox_failed(run.execution, f"while artifacts were collected: {ending.fault}")
        if ending.left_out > len(ending.skipped):
            run.warnings.append(f"{ending.left_out} files were left out in all")
        return await run.deliver(verdict, ending)

    def _sandbox_failed(self, execution: Execution, why: str) -> None:
        self._metrics.sandbox_failures.inc()
        self._on_sandbox_failed()
        log.error("sandbox failed", execution_id=execution.id, error=why)


async def _close(run: Run) -> None:
    """Nobody waits for it but a server that stops, and that not for ever: the store may be down."""
    await asyncio.wait([asyncio.create_task(run.close())], timeout=STOP_SECONDS)


async def _artifact(store: ArtifactStore, artifact_id: str) -> AsyncIterator[bytes]:
    """The bytes of an artifact of an earlier execution. Raises SandboxFailed when it went away meanwhile."""
    try:
        _, chunks = await store.open(artifact_id)
        async for chunk in chunks:
            yield chunk
    except (NotFound, StoreFailed) as error:
        raise SandboxFailed(f"artifact {artifact_id}: {error}") from error


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(content), MAX_PAYLOAD):
        yield content[start : start + MAX_PAYLOAD]
