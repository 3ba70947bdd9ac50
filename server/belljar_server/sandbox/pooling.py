"""What a pool decides, as pure functions and one plain state: how many should wait, what to start, whom to let go.

Nothing here does I/O or waits, so a property test can drive it through any history. `pool.py` carries the decisions
out.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Container
from dataclasses import dataclass, field

HEADROOM = 2.0
"""How much more than the expected arrivals during one restore should wait."""
RATE_SECONDS = 20.0
"""Time over which arrivals are averaged."""
HOLD_BACK = 0.1
"""Seconds after somebody took a sandbox in which a pool that is not nearly empty restores nothing: restoring would take
CPU from the execution that has just begun."""
FIRST_PAUSE = 0.5
LAST_PAUSE = 30.0
"""Seconds that a pool waits after restores failed; they double from the first to the last."""


def pause_after(failures: int) -> float:
    """Seconds to wait after so many failures in a row, at least one."""
    return float(min(FIRST_PAUSE * 2 ** min(failures - 1, 10), LAST_PAUSE))


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the settings allow one pool."""

    minimum: int
    maximum: int
    max_age: float
    at_once: int
    """Restores under way at the same time."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sandbox that waits, by id."""

    id: str
    since: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done now."""

    start: int = 0
    let_go: tuple[str, ...] = ()


@dataclass(slots=True)
class Demand:
    """How often sandboxes are asked for: an exponentially weighted rate. State: the rate, and when it was true."""

    rate: float = 0.0
    at: float = 0.0

    def arrive(self, now: float) -> None:
        """Somebody asked."""
        self.rate = self.current(now) + 1 / RATE_SECONDS
        self.at = now

    def current(self, now: float) -> float:
        """Arrivals a second, as of now."""
        return self.rate * math.exp(-max(0.0, now - self.at) / RATE_SECONDS)


@dataclass(slots=True)
class PoolState:
    """One pool. State: who waits (oldest first), how many restores are under way, how often they failed in a row."""

    bounds: Bounds
    waiting: deque[Waiting] = field(default_factory=deque)
    restoring: int = 0
    asked: int = 0
    """Sandboxes that are being asked whether they still answer: they can be neither taken nor let go."""
    failures: int = 0
    paused_until: float = 0.0
    taken_at: float = -HOLD_BACK
    restore_seconds: float = 0.3
    demand: Demand = field(default_factory=Demand)
    short_of_memory: bool = False
    room: int = 1 << 30
    """Sandboxes that the memory budget leaves to this pool."""

    def target(self, now: float) -> int:
        """How many should wait now."""
        if self.short_of_memory:
            return 0
        wanted = math.ceil(self.demand.current(now) * self.restore_seconds * HEADROOM)
        burst = min(self.bounds.maximum, math.ceil(self.demand.current(now) * RATE_SECONDS / 4))
        return min(max(wanted, burst, self.bounds.minimum), self.bounds.maximum, max(0, self.room))

    def take(self, now: float, avoid: Container[str] = ()) -> Waiting | None:
        """Somebody asks: the sandbox that waited the shortest, or None. One of `avoid` only when there is no other."""
        self.demand.arrive(now)
        self.taken_at = now
        return self.take_another(avoid)

    def take_another(self, avoid: Container[str] = ()) -> Waiting | None:
        """The same for somebody whose sandbox turned out to be dead: that is not more demand."""
        if not self.waiting:
            return None
        item = next((item for item in reversed(self.waiting) if item.id not in avoid), self.waiting[-1])
        self.waiting.remove(item)
        return item

    def plan(self, now: float) -> Plan:
        """What to start and whom to let go; the caller does it and reports back. Starts count as under way at once."""
        old = [item.id for item in self.waiting if now - item.since > self.bounds.max_age]
        surplus = len(self.waiting) - len(old) - self.target(now)
        young = [item.id for item in self.waiting if item.id not in old]
        let_go = (*old, *young[: max(0, surplus)])
        if let_go:
            self.waiting = deque(item for item in self.waiting if item.id not in let_go)
        start = 0
        missing = self.target(now) - len(self.waiting) - self.restoring - self.asked
        held_back = now < self.taken_at + HOLD_BACK and 4 * missing <= 3 * self.target(now)
        if now >= self.paused_until and not held_back:
            at_once = 1 if self.failures else self.bounds.at_once
            start = max(0, min(missing, at_once - self.restoring))
            self.restoring += start
        return Plan(start, let_go)

    def restored(self, item: Waiting, seconds: float) -> None:
        """A restore worked."""
        self.restoring -= 1
        self.failures = 0
        self.restore_seconds += (seconds - self.restore_seconds) * 0.2
        self.waiting.append(item)

    def failed(self, now: float) -> None:
        """A restore failed: the next one waits, longer each time."""
        self.restoring -= 1
        self.failures += 1
        self.paused_until = now + pause_after(self.failures)

    def ask(self) -> Waiting | None:
        """Whom to ask for a sign of life: who was not asked for longest. The caller reports the answer."""
        if not self.waiting:
            return None
        self.asked += 1
        return self.waiting.popleft()

    def answered(self, item: Waiting, *, alive: bool) -> None:
        """It did, or did not."""
        self.asked -= 1
        if alive:
            self.waiting.append(item)

    def lost(self, sandbox_id: str) -> bool:
        """A waiting sandbox died; tells whether it was one."""
        before = len(self.waiting)
        self.waiting = deque(item for item in self.waiting if item.id != sandbox_id)
        return len(self.waiting) < before

    def next_change(self, now: float) -> float:
        """Seconds until time alone may change the plan."""
        soon = [5.0]
        soon += [when - now for when in (self.paused_until, self.taken_at + HOLD_BACK) if when > now]
        if self.waiting:
            soon.append(self.waiting[0].since + self.bounds.max_age - now)
        return max(0.02, min(soon))
