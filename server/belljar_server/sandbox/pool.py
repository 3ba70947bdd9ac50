"""Sandboxes that wait: restored from a snapshot ahead of the executions that will use them.

`pooling.py` decides, this module carries out. Taking a sandbox is a dictionary look-up and waits for nothing. Each
environment has a task that keeps its pool as the plan wants it, in the background and with little CPU weight. When
nobody waits, a sandbox is restored on demand, once more on another if that fails, and booted cold if that fails too.

Long, for all that changes a pool is here, to be read beside the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import structlog

from belljar_server.config import Pool as PoolSettings
from belljar_server.errors import SandboxFailed
from belljar_server.metrics import Metrics
from belljar_server.sandbox.cgroup import Tree
from belljar_server.sandbox.pooling import Bounds, PoolState, Waiting, pause_after
from belljar_server.sandbox.runsc import Launcher
from belljar_server.sandbox.sandbox import RunscSandbox
from belljar_server.sandbox.snapshot import Snapshot, Snapshots
from belljar_server.sandbox.spec import Environment
from belljar_server.sandbox.start import Start

log = structlog.get_logger()

WAITING_BYTES = 48 << 20
"""What a waiting sandbox takes, for the memory budget (measured: bench/README.md)."""
AT_ONCE = 2
"""Restores of one pool under way at the same time."""
HEARTBEAT_SECONDS = 10.0
"""Seconds between two heartbeats of one pool; each asks the sandbox that was not asked for longest."""
FAILURES_BEFORE_REBUILD = 3
"""So many restores in a row fail before the snapshot itself is doubted."""
LINKED_SHARE = 0.25
"""Of what a pool without network may take of the memory for waiting sandboxes."""
NONCES_KEPT = 4096
NONCE_DIGITS = 64
"""Hex digits of each nonce that a restored worker draws."""


@dataclass(frozen=True, slots=True)
class Starts:
    """How sandboxes of one environment come to be: cold, or as copies of one that was warmed up."""

    cold: Start
    warm: Start
    """What snapshots are made of."""
    linked: Start | None = None
    """How copies are restored that have a network; None for those without, which are as what they were made of."""
    floor: int | None = None
    """How many wait even when nobody came for long, if not as many as the settings say."""


class EnvironmentPool:
    """The pool of one environment.

    Mutable state: the decisions' state, the waiting sandboxes, the snapshots by number, how often each was restored,
    how many sandboxes of each exist and run, and how often in a row each failed.
    """

    def __init__(self, name: str, starts: Starts, bounds: Bounds) -> None:
        self.name = name
        environment = starts.warm.environment
        self.label = f"{environment.runtime.name}-requested" if environment.dependencies else name
        """Its name in metrics, where sets of requested packages are one."""
        self.tasks: set[asyncio.Task[None]] = set()
        self.starts = starts
        preload = starts.warm.environment.preload
        self.waiting_bytes = preload.waiting_bytes if preload else WAITING_BYTES
        self.state = PoolState(bounds)
        self.sandboxes: dict[str, RunscSandbox] = {}
        self.snapshots: dict[int, Snapshot] = {}
        self.doubted: dict[int, Snapshot] = {}
        self.restores: Counter[int] = Counter()
        self.existing: Counter[int] = Counter()
        self.running: Counter[int] = Counter()
        self.failures: Counter[int] = Counter()
        self.origin: dict[str, int] = {}
        self.in_use = 0
        self.changed = asyncio.Event()
        self.lacks_snapshot = asyncio.Event()

    def __repr__(self) -> str:
        """What waits and what is under way."""
        state = self.state
        counts = f"waiting {len(state.waiting)} restoring {state.restoring} failures {state.failures}"
        return f"<EnvironmentPool {self.name} {counts}>"

    @property
    def share(self) -> float:
        """Of the memory for waiting sandboxes, beside other pools: most executions have no network."""
        return LINKED_SHARE if self.starts.linked else 1.0

    def choose(self) -> int | None:
        """The number of the snapshot to restore from, so that as few sandboxes as can be have one in common."""
        return min(self.snapshots, key=lambda n: (self.running[n], self.existing[n], self.restores[n]), default=None)

    def twins(self) -> set[str]:
        """The waiting sandboxes with a snapshot in common with one that runs."""
        return {each for each in self.sandboxes if self.running[self.origin[each]]}

    def drop(self, number: int, *, doubted: bool) -> None:
        """Restores nothing more from a snapshot. A doubted one is built anew even if every byte of it is right."""
        snapshot = self.snapshots.pop(number, None)
        if snapshot and doubted:
            self.doubted[number] = snapshot
        self.lacks_snapshot.set()

    def count_waiting(self) -> int:
        """Sandboxes that wait."""
        return len(self.state.waiting)

    def count_restoring(self) -> int:
        """Restores under way in the background."""
        return self.state.restoring


class PoolSource:
    """Gives out waiting sandboxes. Mutable state: the pools, background tasks, nonces seen, sandboxes in use."""

    def __init__(
        self,
        starts: Mapping[str, Starts],
        snapshots: Snapshots,
        launcher: Launcher,
        tree: Tree,
        settings: PoolSettings,
        metrics: Metrics,
    ) -> None:
        self.pools = {name: EnvironmentPool(name, each, self._bounds(settings, each)) for name, each in starts.items()}
        self._snapshots = snapshots
        self._launcher = launcher
        self._tree = tree
        self._settings = settings
        self._metrics = metrics
        self._tasks: set[asyncio.Task[None]] = set()
        self._nonces: deque[str] = deque(maxlen=NONCES_KEPT)
        self._in_use = 0

    @staticmethod
    def _bounds(settings: PoolSettings, starts: Starts) -> Bounds:
        floor = settings.min if starts.floor is None else min(starts.floor, settings.max)
        return Bounds(floor, settings.max, settings.max_age, AT_ONCE)

    @property
    def live(self) -> int:
        """Sandboxes that exist: those that wait and those that run."""
        return self._in_use + sum(len(pool.sandboxes) for pool in self.pools.values())

    def status(self) -> dict[str, list[dict[str, object]]]:
        """The pools, for people."""
        now = time.monotonic()
        rows: list[dict[str, object]] = [
            {
                "runtime": pool.name,
                "waiting": len(pool.state.waiting),
                "target": pool.state.target(now),
                "restoring": pool.state.restoring,
                "arrivals a second": round(pool.state.demand.current(now), 2),
                "restore seconds": round(pool.state.restore_seconds, 3),
                "failures in a row": pool.state.failures,
                "snapshots": len(pool.snapshots),
            }
            for pool in self.pools.values()
        ]
        return {"pools": rows}

    async def __aenter__(self) -> Self:
        for pool in self.pools.values():
            self._tend(pool)
        self._spawn(self._watch_memory())
        return self

    def _tend(self, pool: EnvironmentPool) -> None:
        for work in (self._keep_snapshots(pool), self._keep(pool), self._beat(pool)):
            self._spawn(work, pool.tasks)

    def add(self, name: str, starts: Starts) -> None:
        """One more environment, for which nothing waits until somebody has asked.

        Who has asked for one with imports done waits elsewhere until it has a snapshot, and then wants one at once.
        """
        bounds = Bounds(0, self._settings.max, self._settings.max_age, AT_ONCE)
        pool = self.pools[name] = EnvironmentPool(name, starts, bounds)
        if starts.warm.environment.imports and not starts.linked:
            pool.state.demand.arrive(time.monotonic())
        self._tend(pool)

    def has_snapshots(self, name: str) -> bool:
        """Whether sandboxes of an environment can be restored, and the last one could."""
        pool = self.pools[name]
        return bool(pool.snapshots) and not pool.state.failures

    def is_used(self, name: str) -> bool:
        """Whether anything of an environment runs now."""
        return self.pools[name].in_use > 0

    async def remove(self, name: str, *keys: str) -> None:
        """Lets go of an environment of which nothing runs, with its pools and its snapshots."""
        for pool in [self.pools.pop(key) for key in keys]:
            for task in pool.tasks:
                task.cancel()
            await asyncio.wait(pool.tasks)
            await self._let_go(pool, tuple(pool.sandboxes))
        await asyncio.to_thread(self._snapshots.forget, name)

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for pool in self.pools.values():
            await self._let_go(pool, tuple(pool.sandboxes))

    @contextlib.asynccontextmanager
    async def acquire(self, environment: Environment) -> AsyncIterator[RunscSandbox]:
        """A fresh sandbox that is destroyed at the end of the scope. Raises SandboxFailed."""
        pool = self.pools[environment.key]
        pool.in_use += 1
        try:
            sandbox = self._take(pool) or await self._make(pool)
        except BaseException:
            pool.in_use -= 1
            raise
        number = pool.origin.get(sandbox.id)
        self._in_use += 1
        if number is not None:
            pool.running[number] += 1
        try:
            yield sandbox
        finally:
            self._in_use -= 1
            pool.in_use -= 1
            if number is not None:
                pool.running[number] -= 1
            await self._destroy(pool, sandbox)

    def _take(self, pool: EnvironmentPool) -> RunscSandbox | None:
        now = time.monotonic()
        item = pool.state.take(now, pool.twins())
        while item and not pool.sandboxes[item.id].is_waiting():
            self._spawn(self._let_go(pool, (item.id,)))
            log.warning("waiting sandbox died", runtime=pool.name, sandbox=item.id)
            item = pool.state.take_another(pool.twins())
        pool.changed.set()
        self._metrics.pool_requests.labels(pool.label, "hit" if item else "miss").inc()
        if item is None:
            return None
        self._metrics.pool_age.labels(pool.label).observe(now - item.since)
        sandbox = pool.sandboxes.pop(item.id)
        sandbox.warm = True
        sandbox.foreground()
        return sandbox

    async def _make(self, pool: EnvironmentPool) -> RunscSandbox:
        """Nobody waits: restore one, or another one, else boot. Raises SandboxFailed."""
        for _ in range(2):
            if not pool.snapshots or pool.state.failures >= FAILURES_BEFORE_REBUILD:
                break
            try:
                return await self._restore(pool, background=False)
            except SandboxFailed as error:
                self._restore_failed(pool, error)
        log.warning("starting cold", runtime=pool.name, snapshots=len(pool.snapshots))
        return await RunscSandbox.start(pool.starts.cold, self._launcher, self._tree)

    async def _restore(self, pool: EnvironmentPool, *, background: bool) -> RunscSandbox:
        """One sandbox from a snapshot, proven unique. Raises SandboxFailed."""
        while (number := pool.choose()) is not None and not pool.snapshots[number].is_unchanged():
            log.error("snapshot or runsc has changed on disk", snapshot=pool.snapshots[number].directory.name)
            pool.drop(number, doubted=False)
        if number is None:
            raise SandboxFailed(f"there is no snapshot of {pool.name}")
        snapshot = pool.snapshots[number]
        began = time.monotonic()
        pool.restores[number] += 1
        pool.existing[number] += 1
        try:
            start = replace(pool.starts.linked or pool.starts.warm, snapshot=snapshot.directory)
            sandbox = await RunscSandbox.start(start, self._launcher, self._tree, background=background)
            nonces = sandbox.nonces
            if not nonces or any(len(nonce) != NONCE_DIGITS or nonce in self._nonces for nonce in nonces):
                await sandbox.destroy()
                raise SandboxFailed("a restored sandbox is not unique: its random state is that of another one")
        except BaseException as error:
            pool.existing[number] -= 1
            pool.failures[number] += isinstance(error, SandboxFailed)
            if pool.failures[number] >= FAILURES_BEFORE_REBUILD:
                pool.drop(number, doubted=True)
            raise
        pool.failures[number] = 0
        pool.origin[sandbox.id] = number
        self._nonces.extend(nonces)
        self._metrics.restore_seconds.labels(pool.label).observe(time.monotonic() - began)
        return sandbox

    async def _destroy(self, pool: EnvironmentPool, sandbox: RunscSandbox) -> None:
        number = pool.origin.pop(sandbox.id, None)
        if number is not None:
            pool.existing[number] -= 1
        await sandbox.destroy()

    def _restore_failed(self, pool: EnvironmentPool, error: SandboxFailed) -> None:
        self._metrics.restore_failures.labels(pool.label).inc()
        log.error("restore failed", runtime=pool.name, error=str(error))

    async def _keep(self, pool: EnvironmentPool) -> None:
        """Has as many sandboxes waiting as the plan wants, until cancelled."""
        while True:
            pool.changed.clear()
            if pool.snapshots:
                plan = pool.state.plan(time.monotonic())
                for _ in range(plan.start):
                    self._spawn(self._add(pool))
                await self._let_go(pool, plan.let_go)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pool.state.next_change(time.monotonic())):
                    await pool.changed.wait()

    async def _keep_snapshots(self, pool: EnvironmentPool) -> None:
        """Has all snapshots of the environment, until cancelled: first what is on disk, then what must be built."""
        imports = pool.starts.warm.environment.imports
        failures = 0
        while True:
            pool.lacks_snapshot.clear()
            lacking = [n for n in range(pool.starts.warm.environment.snapshots) if n not in pool.snapshots]
            try:
                there = {
                    number: await asyncio.to_thread(self._snapshots.find, pool.starts.warm, number)
                    for number in lacking
                    if number not in pool.doubted
                }
                for number, snapshot in there.items():  # together: the first to wait are not all copies of one
                    self._found(pool, number, snapshot)
                for number in lacking:
                    if number not in pool.snapshots:
                        log.warning("building a snapshot", runtime=pool.name, number=number, others=len(pool.snapshots))
                        doubted = pool.doubted.get(number)
                        self._found(pool, number, await self._snapshots.build(pool.starts.warm, number, doubted))
                        failures = 0
            except SandboxFailed as error:
                if imports:
                    log.warning("packages are not preloaded", runtime=pool.name, imports=imports, error=str(error))
                    return
                log.error("snapshot cannot be built", runtime=pool.name, error=str(error))  # noqa: TRY400  expected
                self._metrics.restore_failures.labels(pool.label).inc()
                failures += 1
                await asyncio.sleep(pause_after(failures))
                continue
            if imports:  # packages are none of ours: tried once
                return
            await pool.lacks_snapshot.wait()

    @staticmethod
    def _found(pool: EnvironmentPool, number: int, snapshot: Snapshot | None) -> None:
        if snapshot is None:
            return
        pool.snapshots[number] = snapshot
        if pool.starts.warm.environment.imports:
            pool.waiting_bytes = WAITING_BYTES + sum(size for _, size, *_ in snapshot.stamp)
        pool.doubted.pop(number, None)
        pool.failures[number] = 0
        pool.state.failures = 0
        pool.state.paused_until = 0.0
        pool.changed.set()

    async def _add(self, pool: EnvironmentPool) -> None:
        began = time.monotonic()
        try:
            sandbox = await self._restore(pool, background=True)
        except SandboxFailed as error:
            pool.state.failed(time.monotonic())
            self._restore_failed(pool, error)
        except BaseException:
            pool.state.restoring -= 1
            raise
        else:
            now = time.monotonic()
            pool.sandboxes[sandbox.id] = sandbox
            pool.state.restored(Waiting(sandbox.id, now), now - began)
            self._spawn(self._notice_death(pool, sandbox))
        pool.changed.set()

    async def _notice_death(self, pool: EnvironmentPool, sandbox: RunscSandbox) -> None:
        await sandbox.ended()
        if pool.state.lost(sandbox.id):
            log.warning("waiting sandbox died", runtime=pool.name, sandbox=sandbox.id)
            await self._let_go(pool, (sandbox.id,))
            pool.changed.set()

    async def _let_go(self, pool: EnvironmentPool, ids: tuple[str, ...]) -> None:
        gone = [pool.sandboxes.pop(each) for each in ids if each in pool.sandboxes]
        await asyncio.gather(*(self._destroy(pool, sandbox) for sandbox in gone))

    async def _beat(self, pool: EnvironmentPool) -> None:
        """Asks a waiting sandbox now and then whether it still answers; it cannot be taken while it is asked."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            item = pool.state.ask()
            if item is None:
                continue
            alive = await pool.sandboxes[item.id].is_alive()
            pool.state.answered(item, alive=alive)
            if not alive:
                log.warning("waiting sandbox does not answer", runtime=pool.name, sandbox=item.id)
                await self._let_go(pool, (item.id,))
            pool.changed.set()

    async def _watch_memory(self) -> None:
        """Shares the memory budget out, and empties the pools when the host runs short."""
        while True:
            short = available_memory() < self._settings.min_available_bytes
            shares = sum(pool.share for pool in self.pools.values())
            for pool in list(self.pools.values()):
                room = int(self._settings.memory_bytes * pool.share / shares) // pool.waiting_bytes
                if (short, room) != (pool.state.short_of_memory, pool.state.room):
                    pool.state.short_of_memory, pool.state.room = short, room
                    pool.changed.set()
            if short:
                log.warning("host is short of memory: pools are emptied")
            await asyncio.sleep(1.0)

    def _spawn(self, work: Coroutine[Any, Any, None], *also_in: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        for tasks in (self._tasks, *also_in):
            tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception():
            log.error("pool task broke", exc_info=task.exception())


def available_memory() -> int:
    """Bytes that the host can give without swapping (proc_meminfo(5), MemAvailable)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 1 << 62
