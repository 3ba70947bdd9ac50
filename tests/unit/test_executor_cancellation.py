"""An execution that is ended at every single await: one terminal event, and everything as it was before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace

import pytest

from belljar_server.config import Execution as ExecutionSettings
from belljar_server.config import LimitSettings
from belljar_server.errors import SandboxFailed
from belljar_server.execution import Execution
from belljar_server.executor import Executor
from belljar_server.metrics import Metrics
from belljar_server.models import ExecutionRequest, Finished, InputFile, Outcome, Stream
from belljar_server.sandbox import Ending, Job, Listener
from belljar_server.sandbox.spec import Environment
from tests.unit.fakes import ENVIRONMENT, FakeSandbox, MemoryJournal, MemoryStore, MemoryUpload

REQUEST = ExecutionRequest("python", "1", replace(LimitSettings().default.as_limits(), result_bytes=1))
MOST_TURNS = 400
"""Turns of the loop that an execution takes at most here; reaching it means that it hangs."""


class Uploads(MemoryStore):
    """A store that counts what was begun and neither committed nor aborted. Mutable state: that number."""

    def __init__(self) -> None:
        super().__init__()
        self.open_uploads: set[MemoryUpload] = set()

    async def begin(self, name: str, content_type: str) -> MemoryUpload:
        """As the protocol says."""
        await asyncio.sleep(0)
        upload = MemoryUpload(self, name, content_type)
        self.open_uploads.add(upload)
        commit, abort = upload.commit, upload.abort

        async def committed() -> object:
            await asyncio.sleep(0)
            self.open_uploads.discard(upload)
            return await commit()

        async def aborted() -> None:
            self.open_uploads.discard(upload)
            await asyncio.sleep(0)
            await abort()

        upload.commit, upload.abort = committed, aborted  # type: ignore[method-assign, assignment]
        return upload

    async def check(self) -> None:
        """Takes a turn."""
        await asyncio.sleep(0)


class SlowSource:
    """Gives out sandboxes that take turns of the loop for everything. Mutable state: those given, those being made."""

    def __init__(self) -> None:
        self.given: list[FakeSandbox] = []
        self.booting = 0

    @asynccontextmanager
    async def acquire(self, environment: Environment) -> AsyncIterator[FakeSandbox]:
        """A sandbox for the scope, after some turns."""
        self.booting += 1
        try:
            for _ in range(3):
                await asyncio.sleep(0)
        finally:
            self.booting -= 1
        sandbox = FakeSandbox(behave)
        self.given.append(sandbox)
        try:
            yield sandbox
        finally:
            await asyncio.shield(sandbox.destroy())


async def behave(sandbox: FakeSandbox, job: Job, listener: Listener) -> Ending:
    """Prints, gives a large result and two artifacts, with awaits between all of it; ends when it is stopped."""
    wait_status: int | None = None

    async def turn() -> None:
        await asyncio.sleep(0)
        if sandbox.stopped:
            raise SandboxFailed("killed")

    try:
        for file in job.files:
            async for _ in file.open():
                await turn()
        listener.on_prepared()
        listener.on_running()
        await turn()
        listener.on_output(Stream.STDOUT, b"hello")
        for _ in range(2):
            await listener.on_result(b'"12345678"'[:5] if _ == 0 else b'"12345678"'[5:])
            await turn()
        wait_status = 0
        listener.on_collecting()
        for name in (b"small", b"large"):
            await listener.on_artifact(name, 4)
            for _ in range(1 if name == b"small" else 3):
                await listener.on_artifact_data(b"data")
                await turn()
            await listener.on_artifact_end(complete=True)
        await turn()
    except SandboxFailed as error:
        return Ending(
            wait_status,
            b'{"ok": true}',
            stop=sandbox.stopped,
            started=True,
            cut_short=wait_status is not None,
            fault=str(error),
        )
    return Ending(0, b'{"ok": true}', started=True)


class Bench:
    """An executor on fakes."""

    def __init__(self, **settings: int) -> None:
        self.source, self.store, self.journal = SlowSource(), Uploads(), MemoryJournal()
        self.executor = Executor(
            settings=ExecutionSettings(**settings),
            environments={"python": ENVIRONMENT},
            preloaded={},
            sandboxes=self.source,
            store=self.store,
            metrics=Metrics(),
            waived=frozenset(),
            flood_bytes=1 << 20,
            journal=self.journal,
            on_sandbox_failed=lambda: None,
        )

    async def assert_nothing_is_left(self) -> None:
        """Everything as before the first request."""
        if self.executor._tasks:
            await asyncio.wait(tuple(self.executor._tasks), timeout=5)
        assert repr(self.executor).startswith("<Executor 0 under way, <Admission running 0/")
        assert "waiting 0/" in repr(self.executor)
        assert self.journal.open == set()
        assert self.source.booting == 0
        assert all(sandbox.destroyed for sandbox in self.source.given)
        assert self.store.open_uploads == set()


async def turns(number: int) -> None:
    """Lets the loop run so often."""
    for _ in range(number):
        await asyncio.sleep(0)


def terminal(execution: Execution) -> list[Finished]:
    """The terminal events of an execution."""
    return [each.happening for each in execution._events if isinstance(each.happening, Finished)]


async def leave(bench: Bench, execution: Execution) -> None:
    """The client goes away."""
    async with aclosing(execution.follow()) as events:
        await anext(events)


async def stop(bench: Bench, execution: Execution) -> None:
    """The server is told to stop, without any grace."""
    await bench.executor.drain(0)


async def cancel_task(bench: Bench, execution: Execution) -> None:
    """Somebody cancels the task itself."""
    del execution
    for task in tuple(bench.executor._tasks):
        task.cancel()
        await asyncio.wait([task])


Act = Callable[[Bench, Execution], Awaitable[None]]


@pytest.mark.parametrize("act", [leave, stop, cancel_task])
async def test_end_at_every_await_leaves_nothing_and_tells_it_once(act: Act) -> None:
    """From the first turn of the loop to the one after the last."""
    outcomes = set()
    for moment in range(1, MOST_TURNS):  # a task that never ran a step has nothing to clean up with
        bench = Bench()
        stored = await bench.store.begin("in", "text/plain")
        artifact = await stored.commit()
        request = replace(REQUEST, input_files=(InputFile("a", artifact_id=artifact.id),))
        execution = await bench.executor.submit(request)
        await turns(moment)
        over = execution.finished is not None
        await act(bench, execution)
        finished = await asyncio.wait_for(execution.wait(), 10)
        await bench.assert_nothing_is_left()
        assert len(terminal(execution)) == 1
        outcomes.add(finished.outcome)
        if finished.outcome is Outcome.SUCCEEDED:
            assert len(finished.artifacts) == 2, moment
            assert finished.result_artifact is not None
        if over:
            break
    else:
        pytest.fail("it never ended by itself")
    assert Outcome.SUCCEEDED in outcomes
    assert len(outcomes) > 1


async def test_end_at_every_await_in_the_queue_frees_its_place_at_once() -> None:
    """Also at the very moment when its turn comes."""
    for moment in range(60):
        bench = Bench(max_running=1, max_queued=1)
        first = await bench.executor.submit(REQUEST)
        second = await bench.executor.submit(REQUEST)
        await turns(moment)
        await leave(bench, second)
        third = await bench.executor.submit(REQUEST)
        for execution in (first, second, third):
            await asyncio.wait_for(execution.wait(), 10)
            assert len(terminal(execution)) == 1
        assert terminal(first)[0].outcome is terminal(third)[0].outcome is Outcome.SUCCEEDED
        await bench.assert_nothing_is_left()


async def test_client_that_leaves_at_every_await_of_submit_leaves_nothing() -> None:
    """Before the execution is accepted there is nothing; after that there is an execution."""
    for moment in range(20):
        bench = Bench()
        submitting = asyncio.create_task(bench.executor.submit(REQUEST))
        await turns(moment)
        if submitting.done():
            await leave(bench, submitting.result())
            await bench.assert_nothing_is_left()
            return
        submitting.cancel()
        await asyncio.wait([submitting])
        assert bench.journal.all == []
        await bench.assert_nothing_is_left()
    pytest.fail("it was never accepted")


async def test_stop_while_the_store_hangs_ends_the_execution_and_tells_what_is_missing() -> None:
    """A server that is told to stop does not wait for a store; the outcome is not a success."""

    class Hanging(Uploads):
        async def begin(self, name: str, content_type: str) -> MemoryUpload:
            upload = await super().begin(name, content_type)
            upload.commit = asyncio.Event().wait  # type: ignore[method-assign, assignment]
            return upload

    bench = Bench()
    bench.executor._store = bench.store = Hanging()
    execution = await bench.executor.submit(replace(REQUEST, limits=replace(REQUEST.limits, result_bytes=100)))
    await turns(MOST_TURNS)
    assert execution.finished is None
    await bench.executor.drain(0)
    finished = await execution.wait()
    assert finished.outcome is Outcome.CANCELLED
    assert any("missing" in warning for warning in finished.warnings)
    await bench.assert_nothing_is_left()


async def test_request_that_comes_in_while_the_server_stops_is_refused_or_ended() -> None:
    """At every await of submit."""
    for moment in range(8):
        bench = Bench()
        submitting = asyncio.create_task(bench.executor.submit(REQUEST))
        await turns(moment)
        await bench.executor.drain(0)
        await asyncio.wait([submitting])
        if submitting.exception() is None:
            assert submitting.result().finished is not None
        await bench.assert_nothing_is_left()
