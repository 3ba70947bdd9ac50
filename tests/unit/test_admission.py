"""Who may run, and who waits."""

from __future__ import annotations

import asyncio

import pytest

from belljar_server.admission import Admission
from belljar_server.errors import Overloaded


async def test_places_are_given_in_the_order_of_coming() -> None:
    """First come, first served; nobody overtakes."""
    admission = Admission(1, 10)
    order: list[int] = []

    async def work(number: int) -> None:
        async with admission.enter():
            order.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(work(number) for number in range(5)))
    assert order == [0, 1, 2, 3, 4]
    assert repr(admission) == "<Admission running 0/1 waiting 0/10>"


async def test_tenants_take_turns_whatever_the_length_of_their_queues() -> None:
    """One that has much to do does not keep the others waiting; who has given up costs no turn."""
    admission = Admission(1, 20)
    order: list[str] = []

    async def work(tenant: str) -> None:
        async with admission.enter(tenant):
            order.append(tenant)
            await asyncio.sleep(0)

    async with admission.enter("a"):
        tasks = [asyncio.create_task(work(tenant)) for tenant in "aaaabbc"]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.wait([tasks[0]])
    await asyncio.gather(*tasks[1:])
    assert order == ["a", "b", "c", "a", "b", "a"]
    assert repr(admission) == "<Admission running 0/1 waiting 0/20>"


async def test_full_queue_refuses_at_once_with_when_to_retry() -> None:
    """Nobody waits to be told that there is no room."""
    admission = Admission(1, 1)
    first, second = admission.enter(), admission.enter()
    with pytest.raises(Overloaded) as refused:
        admission.enter()
    assert refused.value.retry_after > 0
    async with first:
        pass
    async with second:
        assert admission.running == 1
    assert admission.running == 0


@pytest.mark.parametrize("moment", ["before its turn", "as its turn comes"])
async def test_cancelled_waiter_loses_no_place(moment: str) -> None:
    """Whether it was still waiting or had just been handed the place."""
    admission = Admission(1, 5)

    async def wait() -> None:
        async with admission.enter():
            pass

    holder = admission.enter()
    async with holder:
        waiter = asyncio.create_task(wait())
        after = asyncio.create_task(wait())
        await asyncio.sleep(0)
        if moment == "before its turn":
            waiter.cancel()
            await asyncio.wait([waiter])
    waiter.cancel()
    await asyncio.wait([waiter, after])
    assert after.exception() is None
    assert (admission.running, admission.waiting) == (0, 0)
