"""Whether sandboxes can really be started: found out by starting one of each runtime, not by looking at the host.

Mutable state: whether the last try worked, and why not. After a sandbox failed for an execution, it is tried again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import structlog

from belljar_server.errors import SandboxFailed
from belljar_server.models import Limits
from belljar_server.sandbox import SandboxSource
from belljar_server.sandbox.probe import probe
from belljar_server.sandbox.spec import Environment

log = structlog.get_logger()

FIRST_RETRY = 1.0
LAST_RETRY = 30.0
"""Seconds between tries while none works; they double from the first to the last."""


class Readiness:
    """Tries, and tells `on_change` when the answer changes."""

    def __init__(
        self,
        environments: Mapping[str, Environment],
        sandboxes: SandboxSource,
        limits: Limits,
        on_change: Callable[[bool], None],
    ) -> None:
        self._environments = environments
        self._sandboxes = sandboxes
        self._limits = limits
        self._on_change = on_change
        self._doubt = asyncio.Event()
        self.ready = False
        self.reason = "the first sandbox has not started yet"

    def doubt(self) -> None:
        """A sandbox failed: find out whether that was the last."""
        self._doubt.set()

    async def watch(self) -> None:
        """Runs until cancelled."""
        while True:
            retry = FIRST_RETRY
            while not await self._try_all():
                await asyncio.sleep(retry)
                retry = min(retry * 2, LAST_RETRY)
            await self._doubt.wait()

    async def _try_all(self) -> bool:
        self._doubt.clear()
        try:
            for environment in self._environments.values():
                await probe(self._sandboxes, environment, self._limits)
        except SandboxFailed as error:
            self._set(ready=False, reason=str(error))
        else:
            self._set(ready=True, reason="")
        return self.ready

    def _set(self, *, ready: bool, reason: str) -> None:
        if reason and reason != self.reason:
            log.error("not ready", reason=reason)
        changed = ready != self.ready
        self.ready, self.reason = ready, reason
        if changed:
            self._on_change(ready)
