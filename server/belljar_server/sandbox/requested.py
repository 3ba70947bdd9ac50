"""Environments with requested packages: known while they are used and for some time after, so that they can be warm.

Each one that is known holds its layers, so that none is removed that a snapshot or a waiting sandbox needs. A set that
is asked for the second time by the same imports gets an environment of its own that has them done; as long as that has
no snapshot, and for good when it cannot have one, the one without serves.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from belljar_server.errors import SandboxFailed
from belljar_server.sandbox.cold import ColdSource
from belljar_server.sandbox.pool import PoolSource, Starts
from belljar_server.sandbox.spec import Environment

MOST = 16
"""Sets that stay known although nothing of them runs."""
MOST_SEEN = 256
"""Sets with imports that are remembered as asked for once."""


class RequestedEnvironments:
    """State: what keeps each environment's layers, by name, and which names were asked for once; oldest use first."""

    def __init__(
        self, source: PoolSource | ColdSource, make_starts: Callable[[Environment], dict[str, Starts]]
    ) -> None:
        self._source = source
        self._make_starts = make_starts
        self._known: OrderedDict[str, tuple[contextlib.ExitStack, dict[str, Starts]]] = OrderedDict()
        self._seen: OrderedDict[str, None] = OrderedDict()

    async def admit(self, environment: Environment, imports: tuple[str, ...]) -> Environment:
        """Makes an environment known, or the one that has the imports done, and gives it. Raises SandboxFailed."""
        if not imports or not isinstance(self._source, PoolSource):
            await self._know(environment)
            return environment
        text = json.dumps([environment.dependencies, imports])
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        loaded = replace(environment, dependencies=digest, imports=imports)
        if loaded.name in self._known or not self._is_new(loaded.name):
            await self._know(loaded)
            if all(self._source.has_snapshots(key) for key in self._known[loaded.name][1]):
                return loaded
        await self._know(environment)
        return environment

    def _is_new(self, name: str) -> bool:
        is_new = name not in self._seen
        self._seen[name] = None
        self._seen.move_to_end(name)
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)
        return is_new

    async def _know(self, environment: Environment) -> None:
        if environment.name in self._known:
            self._known.move_to_end(environment.name)
            return
        held = contextlib.ExitStack()
        try:
            for layer in environment.layers:
                fcntl.flock(held.enter_context(layer.image.open("rb")), fcntl.LOCK_SH)
            starts = self._make_starts(environment)
        except OSError as error:
            held.close()
            raise SandboxFailed(f"a layer is gone: {error.filename}") from error
        self._known[environment.name] = held, starts
        for key, each in starts.items():
            if isinstance(self._source, PoolSource):
                self._source.add(key, each)
            else:
                self._source.add(key, each.cold)
        await self._forget_old()

    async def _forget_old(self) -> None:
        if not isinstance(self._source, PoolSource):
            return
        for name in list(self._known)[:-1]:
            if len(self._known) <= MOST:
                return
            held, starts = self._known[name]
            if not any(self._source.is_used(key) for key in starts):
                del self._known[name]
                await self._source.remove(name, *starts)
                held.close()
                for start in starts.values():
                    for bundle in (start.cold.bundle, start.warm.bundle):
                        shutil.rmtree(bundle, ignore_errors=True)

    def close(self) -> None:
        """Lets go of all layers."""
        while self._known:
            self._known.popitem()[1][0].close()
