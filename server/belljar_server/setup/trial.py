"""Starting real sandboxes to see whether this host can: exactly as the service does, one of each runtime."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

from belljar_server.config import Settings
from belljar_server.errors import HostNotReady, SandboxFailed
from belljar_server.runtimes import Runtime
from belljar_server.sandbox import instance
from belljar_server.sandbox.runsc import Launcher, Runsc
from belljar_server.sandbox.sandbox import ColdSource, write_bundle
from belljar_server.sandbox.spec import Environment, oci_spec
from belljar_server.setup import images


def start_each(settings: Settings, binary: Path, loaded: list[Runtime]) -> dict[str, float]:
    """Seconds that a sandbox of each runtime takes to start and be ready for a request. Raises HostNotReady."""
    try:
        return asyncio.run(_start_each(settings, binary, loaded))
    except SandboxFailed as error:
        raise HostNotReady(f"this host cannot start sandboxes: {error}") from error


async def _start_each(settings: Settings, binary: Path, loaded: list[Runtime]) -> dict[str, float]:
    seconds = {}
    async with contextlib.AsyncExitStack() as stack:
        here = instance.claim(settings.runtime_dir, settings.sandbox.cgroup_parent)
        stack.push_async_callback(here.close)
        launcher = await stack.enter_async_context(Launcher())
        environments = [_environment(settings, runtime) for runtime in loaded]
        bundles = {e.runtime.name: write_bundle(here.bundle(e.runtime.name), oci_spec(e)) for e in environments}
        runsc = Runsc(binary, here.runsc_root, settings.sandbox.platform)
        source = ColdSource(runsc, launcher, here.tree, bundles, start_timeout=settings.execution.start_timeout)
        for environment in environments:
            started = time.monotonic()
            async with source.acquire(environment):
                seconds[environment.runtime.name] = time.monotonic() - started
    return seconds


def _environment(settings: Settings, runtime: Runtime) -> Environment:
    image = images.find(settings.data_dir, runtime)
    return Environment(runtime, image.path, image.digest, image.version)


def unenforceable(settings: Settings) -> dict[str, str]:
    """Limits that this host's cgroups cannot enforce, with the reason. Raises HostNotReady."""

    async def look() -> dict[str, str]:
        here = instance.claim(settings.runtime_dir, settings.sandbox.cgroup_parent)
        try:
            return dict(here.tree.missing)
        finally:
            await here.close()

    return asyncio.run(look())
