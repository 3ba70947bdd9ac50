"""What a pool decides, driven through any history."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from belljar_server.sandbox.pooling import HOLD_BACK, LAST_PAUSE, Bounds, PoolState, Waiting

BOUNDS = Bounds(minimum=2, maximum=8, max_age=100.0, at_once=2)


class PoolHistory(RuleBasedStateMachine):
    """A pool whose sandboxes come, go, die and fail in any order. The model: every id, and where it is."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.next_id = 0
        self.under_way = 0
        self.waiting: set[str] = set()
        self.asked: list[Waiting] = []
        self.taken: set[str] = set()
        self.gone: set[str] = set()

    @initialize(minimum=st.integers(0, 3), more=st.integers(0, 5))
    def begin(self, minimum: int, more: int) -> None:
        """Any bounds."""
        self.state = PoolState(Bounds(minimum, minimum + more, 100.0, 2))

    @rule(seconds=st.floats(0, 60))
    def time_passes(self, seconds: float) -> None:
        """The clock only goes forward."""
        self.now += seconds

    @rule()
    def plan(self) -> None:
        """Decisions are carried out as they are."""
        plan = self.state.plan(self.now)
        self.under_way += plan.start
        assert set(plan.let_go) <= self.waiting
        self.waiting -= set(plan.let_go)
        self.gone |= set(plan.let_go)

    @precondition(lambda self: self.under_way > 0)
    @rule(seconds=st.floats(0.05, 2))
    def restore_works(self, seconds: float) -> None:
        """One that was under way waits now."""
        self.under_way -= 1
        self.next_id += 1
        self.waiting.add(str(self.next_id))
        self.state.restored(Waiting(str(self.next_id), self.now), seconds)

    @precondition(lambda self: self.under_way > 0)
    @rule()
    def restore_fails(self) -> None:
        """One that was under way is no more."""
        self.under_way -= 1
        self.state.failed(self.now)
        assert self.state.paused_until - self.now <= LAST_PAUSE
        plan = self.state.plan(self.now)
        assert plan.start == 0
        self.waiting -= set(plan.let_go)
        self.gone |= set(plan.let_go)

    @rule(data=st.data())
    def somebody_asks(self, data: st.DataObject) -> None:
        """Nobody gets what another one got, or what is gone; nor a twin of one that runs while another one waits."""
        twins = data.draw(st.sets(st.sampled_from(sorted(self.waiting)))) if self.waiting else set()
        item = self.state.take(self.now, twins)
        assert (item is None) == (not self.waiting)
        if item:
            assert item.id in self.waiting
            assert item.id not in twins or self.waiting == twins
            self.waiting.remove(item.id)
            self.taken.add(item.id)

    @precondition(lambda self: bool(self.waiting))
    @rule(data=st.data())
    def one_dies(self, data: st.DataObject) -> None:
        """It is taken out, once."""
        dead = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.state.lost(dead)
        assert not self.state.lost(dead)
        self.waiting.remove(dead)
        self.gone.add(dead)

    @rule()
    def one_is_asked(self) -> None:
        """Nobody else can have it meanwhile."""
        item = self.state.ask()
        assert (item is None) == (not self.waiting)
        if item:
            self.waiting.remove(item.id)
            self.asked.append(item)

    @precondition(lambda self: bool(self.asked))
    @rule(alive=st.booleans())
    def one_answers(self, *, alive: bool) -> None:
        """Or does not, and is gone."""
        item = self.asked.pop()
        self.state.answered(item, alive=alive)
        (self.waiting if alive else self.gone).add(item.id)

    @rule(short=st.booleans(), room=st.integers(0, 10))
    def memory_changes(self, *, short: bool, room: int) -> None:
        """The host gets short of memory, or has some again."""
        self.state.short_of_memory, self.state.room = short, room

    @invariant()
    def agrees_with_the_model(self) -> None:
        """Who waits is who should; nothing is in two places; the bounds hold."""
        if not hasattr(self, "state"):
            return
        assert {item.id for item in self.state.waiting} == self.waiting
        assert self.state.restoring == self.under_way
        assert self.state.asked == len(self.asked)
        assert not self.waiting & self.taken
        assert not self.waiting & self.gone
        target = self.state.target(self.now)
        assert target <= self.state.bounds.maximum
        assert target <= self.state.room
        assert target == 0 or not self.state.short_of_memory
        assert self.under_way <= self.state.bounds.at_once


PoolHistory.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestPoolHistory = PoolHistory.TestCase


def test_demand_raises_the_target_and_idleness_lowers_it() -> None:
    """Between minimum and maximum the target follows arrivals."""
    state = PoolState(BOUNDS)
    assert state.target(0) == 2
    for tenth in range(100):
        state.take(tenth / 10)
    assert state.target(10) == 8
    assert state.target(500) == 2


def test_old_sandboxes_are_replaced() -> None:
    """None waits longer than its time."""
    state = PoolState(BOUNDS)
    state.plan(0)
    state.restored(Waiting("a", 0), 0.1)
    state.restored(Waiting("b", 90), 0.1)
    plan = state.plan(101)
    assert plan.let_go == ("a",)
    assert plan.start == 1


def test_restores_pause_longer_each_time_they_fail() -> None:
    """A broken snapshot does not keep the host busy."""
    state = PoolState(BOUNDS)
    pauses: list[float] = []
    now = 0.0
    for _ in range(10):
        assert state.plan(now).start == (2 if not pauses else 1)
        state.failed(now)
        if not pauses:
            state.restoring = 0
        pauses.append(state.paused_until - now)
        assert state.plan(now).start == 0
        now = state.paused_until
    assert pauses == sorted(pauses)
    assert pauses[0] < pauses[-1] <= LAST_PAUSE


def test_sandbox_that_is_asked_for_a_sign_of_life_is_not_replaced_meanwhile() -> None:
    """It is one of those that wait."""
    state = PoolState(BOUNDS)
    for number in range(state.plan(0).start):
        state.restored(Waiting(str(number), 0), 0.1)
    item = state.ask()
    assert item is not None
    assert state.plan(1).start == 0
    state.answered(item, alive=False)
    assert state.plan(1).start == 1


def test_pool_that_is_not_nearly_empty_restores_nothing_right_after_somebody_took_one() -> None:
    """The execution that has just begun needs the CPU more; an emptier pool does not wait."""
    state = PoolState(Bounds(minimum=4, maximum=4, max_age=100.0, at_once=4))
    for number in range(state.plan(0).start):
        state.restored(Waiting(str(number), 0), 0.1)
    state.take(10)
    assert state.plan(10).start == 0
    assert 0 < state.next_change(10) <= HOLD_BACK
    for _ in range(3):
        state.take(10)
    assert state.plan(10).start == 4
    for _ in range(4):
        state.restored(Waiting("more", 10), 0.1)
    state.take(20)
    assert state.plan(20).start == 0
    assert state.plan(20 + HOLD_BACK).start == 1
