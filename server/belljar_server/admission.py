"""Who may run now: a bounded number of executions, and a bounded queue in front of it.

Whoever waits is served in the order of arrival within a tenant, and tenants take turns, so that a thousand requests of
one do not keep another waiting. Deciding is synchronous and never waits; only waiting for one's turn does.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque

from belljar_server.errors import Overloaded

SOLE_TENANT = "default"
"""Whom every request belongs to as long as there are no tenants."""
RETRY_AFTER = 1.0
"""Seconds after which a refused client may try again."""


class Place:
    """A place to run, or one in the queue for it; a scope that gives the place back. Mutable state: its turn."""

    def __init__(self, admission: Admission, turn: asyncio.Future[None] | None) -> None:
        self._admission = admission
        self._turn = turn
        self._asked = time.monotonic()

    async def __aenter__(self) -> float:
        """Waits for the turn; gives the seconds that took."""
        if self._turn is not None:
            try:
                await self._turn
            except asyncio.CancelledError:
                if not self._turn.cancelled():  # the place was handed over, but nobody is there to take it
                    self._admission.release()
                raise
        return time.monotonic() - self._asked

    async def __aexit__(self, *_: object) -> None:
        self._admission.release()


class Admission:
    """Mutable state: how many run, and who waits, by tenant; the tenant whose turn is next comes first."""

    def __init__(self, max_running: int, max_queued: int) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._turns: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self.running = 0

    def __repr__(self) -> str:
        """How full it is."""
        return f"<Admission running {self.running}/{self._max_running} waiting {self.waiting}/{self._max_queued}>"

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return sum(not turn.done() for turns in self._turns.values() for turn in turns)

    def enter(self, tenant: str = SOLE_TENANT) -> Place:
        """A place, or one in the queue. Raises Overloaded at once when neither is free."""
        if self.running < self._max_running:
            self.running += 1
            return Place(self, None)
        if self.waiting >= self._max_queued:
            raise Overloaded(f"{self.running} executions are running and {self.waiting} are waiting", RETRY_AFTER)
        turn = asyncio.get_running_loop().create_future()
        self._turns.setdefault(tenant, deque()).append(turn)
        return Place(self, turn)

    def release(self) -> None:
        """Gives a place to whoever is next; `running` stays as it is when somebody takes it."""
        while self._turns:
            tenant, turns = self._turns.popitem(last=False)
            while turns:
                turn = turns.popleft()
                if turn.done():  # nobody waits for it any more
                    continue
                if turns:
                    self._turns[tenant] = turns  # behind the others
                turn.set_result(None)
                return
        self.running -= 1
