"""An execution from request to terminal event, with a fake sandbox."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from belljar_server.config import Execution as ExecutionSettings
from belljar_server.config import LimitSettings
from belljar_server.errors import InvalidRequest, NotFound, Overloaded, Unavailable
from belljar_server.execution import Execution
from belljar_server.executor import Executor
from belljar_server.metrics import Metrics
from belljar_server.models import (
    DisconnectPolicy,
    ErrorKind,
    ExecutionRequest,
    Finished,
    InputFile,
    Outcome,
    Phase,
    PhaseChange,
    Started,
)
from belljar_server.sandbox import Ending, Job, Listener
from tests.unit.fakes import ENVIRONMENT, FakeSandbox, FakeSource, MemoryJournal, MemoryStore, hang, succeed

LIMITS = LimitSettings().default.as_limits()
REQUEST = ExecutionRequest("python", "hello", LIMITS)


class Bench:
    """An executor with all its fakes."""

    def __init__(self, source: FakeSource | None = None, **settings: Any) -> None:
        self.source = source or FakeSource()
        self.store = MemoryStore()
        self.journal = MemoryJournal()
        self.doubts = 0
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
            on_sandbox_failed=self.doubt,
        )

    def doubt(self) -> None:
        """Counts."""
        self.doubts += 1

    async def assert_idle(self) -> None:
        """Nothing is left of what ran, a moment after its end was told."""
        if self.executor._tasks:
            await asyncio.wait(tuple(self.executor._tasks), timeout=5)
        assert repr(self.executor).startswith("<Executor 0 under way, <Admission running 0/")
        assert self.journal.open == set()
        assert all(sandbox.destroyed for sandbox in self.source.given)


async def test_one_run_tells_its_phases_in_order_and_ends_once() -> None:
    """The stream that a client sees."""
    bench = Bench()
    execution = await bench.executor.submit(REQUEST)
    events = [event async for event in execution.follow()]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    kinds = [type(event.happening).__name__ for event in events]
    assert kinds == ["PhaseChange", "Started", "PhaseChange", "Output", "PhaseChange", "Finished"]
    assert [e.happening.phase for e in events if isinstance(e.happening, PhaseChange)] == [
        Phase.STARTING,
        Phase.RUNNING,
        Phase.COLLECTING,
    ]
    assert isinstance(events[1].happening, Started)
    finished = await execution.wait()
    assert (finished.outcome, finished.result_json, finished.usage.stdout_bytes) == (Outcome.SUCCEEDED, "1", 5)
    await bench.assert_idle()


async def test_sandbox_that_does_not_start_is_a_terminal_event_not_an_exception() -> None:
    """The execution was accepted, so it ends on the stream."""
    bench = Bench(FakeSource(failures=3))
    finished = await (await bench.executor.submit(REQUEST)).wait()
    assert finished.error is not None
    assert finished.error.kind is ErrorKind.SANDBOX_FAILED
    assert bench.doubts == 3
    await bench.assert_idle()


@pytest.mark.parametrize("failures", [1, 2])
async def test_sandbox_that_does_not_start_is_tried_again_twice(failures: int) -> None:
    """Before user code began, another sandbox is as good."""
    bench = Bench(FakeSource(failures=failures))
    finished = await (await bench.executor.submit(REQUEST)).wait()
    assert finished.outcome is Outcome.SUCCEEDED
    assert bench.doubts == failures
    await bench.assert_idle()


async def test_bug_of_ours_still_gives_exactly_one_terminal_event() -> None:
    """Whatever breaks inside, the client is not left waiting."""

    async def explode(sandbox: FakeSandbox, job: Job, listener: Listener) -> Ending:
        raise ZeroDivisionError

    bench = Bench(FakeSource(explode))
    execution = await bench.executor.submit(REQUEST)
    events = [event.happening async for event in execution.follow()]
    assert sum(isinstance(happening, Finished) for happening in events) == 1
    assert isinstance(events[-1], Finished)
    await bench.assert_idle()


async def test_client_that_leaves_cancels() -> None:
    """The default policy."""
    bench = Bench(FakeSource(hang))
    execution = await bench.executor.submit(REQUEST)
    async with aclosing(execution.follow()) as events:
        await anext(events)
    finished = await execution.wait()
    assert finished.outcome is Outcome.CANCELLED
    await bench.assert_idle()


async def test_client_that_leaves_lets_continue_when_it_said_so() -> None:
    """CONTINUE runs to the end."""
    release = asyncio.Event()

    async def wait(sandbox: FakeSandbox, job: Job, listener: Listener) -> Ending:
        await release.wait()
        return await succeed(sandbox, job, listener)

    bench = Bench(FakeSource(wait))
    execution = await bench.executor.submit(replace(REQUEST, disconnect_policy=DisconnectPolicy.CONTINUE))
    async with aclosing(execution.follow()) as events:
        await anext(events)
    release.set()
    assert (await execution.wait()).outcome is Outcome.SUCCEEDED


async def test_cancel_while_queued_starts_no_sandbox() -> None:
    """What nobody waits for any more takes no place."""
    bench = Bench(FakeSource(hang), max_running=1)
    first = await bench.executor.submit(REQUEST)
    second = await bench.executor.submit(REQUEST)
    async with aclosing(second.follow()) as events:
        assert isinstance((await anext(events)).happening, PhaseChange)
    async with aclosing(first.follow()) as events:
        await anext(events)
    assert (await second.wait()).outcome is Outcome.CANCELLED
    assert len(bench.source.given) == 1
    await bench.assert_idle()


async def test_full_server_refuses_before_anything_is_noted() -> None:
    """Nothing accepted is lost, and nothing refused is accepted."""
    bench = Bench(FakeSource(hang), max_running=1, max_queued=0)
    execution = await bench.executor.submit(REQUEST)
    with pytest.raises(Overloaded):
        await bench.executor.submit(REQUEST)
    assert bench.journal.all == [execution.id]
    await bench.executor.drain(0)
    await bench.assert_idle()


async def test_same_request_id_runs_once_and_both_clients_see_all() -> None:
    """At once, and again after the end."""
    bench = Bench()
    request = replace(REQUEST, request_id="a", fingerprint=b"1")
    one, two = await asyncio.gather(bench.executor.submit(request), bench.executor.submit(request))
    assert one is two
    await one.wait()
    assert await bench.executor.submit(request) is one
    assert len(bench.source.given) == 1


async def test_same_request_id_with_another_request_is_refused() -> None:
    """By the name of the field."""
    bench = Bench()
    await bench.executor.submit(replace(REQUEST, request_id="a", fingerprint=b"1"))
    with pytest.raises(InvalidRequest, match="request_id"):
        await bench.executor.submit(replace(REQUEST, request_id="a", fingerprint=b"2"))


@pytest.mark.parametrize("settings", [{"replay_ttl": 0}, {"replay_bytes": 0}])
async def test_finished_executions_are_forgotten_in_time(settings: dict[str, Any]) -> None:
    """The memory for replays is bounded in time and in size."""
    bench = Bench(**settings)
    request = replace(REQUEST, request_id="a", fingerprint=b"1")
    first = await bench.executor.submit(request)
    await first.wait()
    assert await bench.executor.submit(request) is not first


async def test_kept_execution_holds_nothing_of_its_request_that_may_be_large() -> None:
    """The memory for replays is that of answers; requests have files."""
    bench = Bench()
    request = replace(REQUEST, request_id="a", fingerprint=b"1", code="1" * 100_000)
    first = await bench.executor.submit(request)
    await first.wait()
    await bench.executor.drain(1)
    assert first.request.code == ""
    assert first.request.fingerprint == b"1"


async def test_unknown_artifact_is_refused_before_anything_starts() -> None:
    """By the name of the field."""
    bench = Bench()
    with pytest.raises(NotFound, match=r"input_files\[0\].artifact_id"):
        await bench.executor.submit(replace(REQUEST, input_files=(InputFile("a", artifact_id="nope"),)))
    assert bench.journal.all == []


async def test_result_over_its_limit_becomes_an_artifact_with_a_warning() -> None:
    """It is not an error."""
    bench = Bench()
    request = replace(REQUEST, limits=replace(LIMITS, result_bytes=0))
    finished = await (await bench.executor.submit(request)).wait()
    assert finished.outcome is Outcome.SUCCEEDED
    assert finished.result_json is None
    assert finished.result_artifact is not None
    assert bench.store.kept[finished.result_artifact.id][1] == b"1"
    assert any("result_bytes" in warning for warning in finished.warnings)


@pytest.mark.parametrize("report", [None, b'{"ok": true}'])
async def test_success_without_a_result_is_told_in_a_warning(report: bytes | None) -> None:
    """The process exited with 0 before it gave one, whether its worker could still say so or not."""

    async def leave(sandbox: FakeSandbox, job: Job, listener: Listener) -> Ending:
        return Ending(0, report=report, started=True)

    finished = await (await Bench(FakeSource(leave)).executor.submit(REQUEST)).wait()
    assert (finished.outcome, finished.result_json) == (Outcome.SUCCEEDED, None)
    assert ["exit code 0" in warning for warning in finished.warnings] == [True]


async def test_drain_lets_work_finish_and_then_ends_it() -> None:
    """New work is refused from the start."""
    bench = Bench(FakeSource(hang))
    execution = await bench.executor.submit(REQUEST)
    await bench.executor.drain(0.01)
    finished = await execution.wait()
    assert finished.error is not None
    assert finished.error.kind is ErrorKind.CANCELLED
    with pytest.raises(Unavailable):
        await bench.executor.submit(REQUEST)
    await bench.assert_idle()


async def follow_and_leave(execution: Execution, after: int) -> None:
    """A client that leaves after some turns of the loop."""
    async with aclosing(execution.follow()) as events:
        reader = asyncio.ensure_future(anext(events))
        for _ in range(after):
            await asyncio.sleep(0)
        reader.cancel()
        await asyncio.wait([reader])


@pytest.mark.parametrize("after", range(12))
async def test_cancellation_at_any_moment_leaves_nothing_behind(after: int) -> None:
    """However far the execution is when its client goes."""
    bench = Bench()
    execution = await bench.executor.submit(REQUEST)
    await follow_and_leave(execution, after)
    assert (await execution.wait()).outcome in (Outcome.SUCCEEDED, Outcome.CANCELLED)
    while bench.executor.under_way:
        await asyncio.sleep(0)
    await bench.assert_idle()
