"""The log of events that clients follow."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from belljar_server.config import LimitSettings
from belljar_server.execution import LARGEST_OUTPUT, Execution
from belljar_server.models import ExecutionRequest, Finished, Outcome, Output, Phase, PhaseChange, Stream


def make(output_bytes: int = 1000) -> tuple[Execution, list[Execution]]:
    """An execution and the list of times it was abandoned."""
    limits = LimitSettings.model_validate({"default": {"output_bytes": output_bytes}}).default.as_limits()
    abandoned: list[Execution] = []
    return Execution(ExecutionRequest("python", "1", limits), abandoned.append), abandoned


async def test_every_follower_gets_every_event_from_the_first() -> None:
    """Also one that comes late, and one that comes after the end."""
    execution, abandoned = make()
    execution.tell(PhaseChange(Phase.STARTING))

    async def read() -> list[int]:
        return [event.sequence async for event in execution.follow()]

    early = asyncio.create_task(read())
    await asyncio.sleep(0)
    execution.tell(PhaseChange(Phase.RUNNING))
    execution.tell(Finished(Outcome.SUCCEEDED))
    assert await early == await read() == [1, 2, 3]
    assert abandoned == []


async def test_output_beyond_the_limit_is_counted_not_kept() -> None:
    """The client gets exactly the bytes that it is allowed, and the number of the others."""
    execution, _ = make(output_bytes=10)
    execution.tell_output(Stream.STDOUT, b"12345678")
    assert execution.tell_output(Stream.STDERR, b"abcdef") == 14
    assert execution.tell_output(Stream.STDOUT, b"xyz") == 17
    execution.tell(Finished(Outcome.SUCCEEDED))
    pieces = [
        (e.happening.stream, e.happening.content) async for e in execution.follow() if isinstance(e.happening, Output)
    ]
    assert pieces == [(Stream.STDOUT, b"12345678"), (Stream.STDERR, b"ab")]
    assert (execution.dropped[Stream.STDOUT], execution.dropped[Stream.STDERR]) == (3, 4)


async def test_flood_of_small_writes_becomes_few_events_for_a_slow_reader() -> None:
    """What nobody has read yet is joined, up to the largest piece."""
    execution, _ = make(output_bytes=2 * LARGEST_OUTPUT)
    for _ in range(10_000):
        execution.tell_output(Stream.STDOUT, b"x")
    execution.tell_output(Stream.STDOUT, b"y" * LARGEST_OUTPUT)
    execution.tell(Finished(Outcome.SUCCEEDED))
    sizes = [len(e.happening.content) async for e in execution.follow() if isinstance(e.happening, Output)]
    assert sizes == [10_000, LARGEST_OUTPUT]


async def test_events_that_were_read_do_not_change() -> None:
    """Output that comes after a read is a new event with the next number."""
    execution, _ = make()
    async with aclosing(execution.follow()) as events:
        execution.tell_output(Stream.STDOUT, b"a")
        first = await anext(events)
        execution.tell_output(Stream.STDOUT, b"b")
        second = await anext(events)
        execution.tell(Finished(Outcome.SUCCEEDED))
    assert [first.sequence, second.sequence] == [1, 2]
    assert isinstance(second.happening, Output)
    assert second.happening.content == b"b"


async def test_last_follower_leaving_abandons_the_execution() -> None:
    """As long as one client reads, it goes on."""
    execution, abandoned = make()
    execution.tell(PhaseChange(Phase.RUNNING))
    async with aclosing(execution.follow()) as one:
        await anext(one)
        async with aclosing(execution.follow()) as two:
            await anext(two)
        assert abandoned == []
    assert abandoned == [execution]
