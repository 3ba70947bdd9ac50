"""Where sandboxes come from without pools: each boots when it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping

from belljar_server.sandbox.cgroup import Tree
from belljar_server.sandbox.runsc import Launcher
from belljar_server.sandbox.sandbox import RunscSandbox
from belljar_server.sandbox.spec import Environment
from belljar_server.sandbox.start import Start


class ColdSource:
    """Boots a sandbox for each job. State: how many exist."""

    def __init__(self, starts: Mapping[str, Start], launcher: Launcher, tree: Tree) -> None:
        self._starts = dict(starts)
        self._launcher = launcher
        self._tree = tree
        self.live = 0

    def add(self, key: str, start: Start) -> None:
        """One more environment."""
        self._starts[key] = start

    @contextlib.asynccontextmanager
    async def acquire(self, environment: Environment) -> AsyncIterator[RunscSandbox]:
        """A fresh sandbox that is destroyed at the end of the scope. Raises SandboxFailed."""
        sandbox = await RunscSandbox.start(self._starts[environment.key], self._launcher, self._tree)
        self.live += 1
        try:
            yield sandbox
        finally:
            self.live -= 1
            await sandbox.destroy()
