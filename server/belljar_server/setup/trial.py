"""Running the smallest program of each runtime in a real sandbox, as the service does: can this host?"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path

from belljar_server.config import Settings
from belljar_server.errors import HostNotReady, SandboxFailed
from belljar_server.runtimes import Runtime
from belljar_server.sandbox import instance
from belljar_server.sandbox.cold import ColdSource
from belljar_server.sandbox.probe import probe
from belljar_server.sandbox.runsc import Launcher, Runsc
from belljar_server.sandbox.snapshot import Snapshots
from belljar_server.sandbox.spec import oci_spec
from belljar_server.sandbox.start import Start, write_bundle
from belljar_server.setup import environments


def run_each(settings: Settings, binary: Path, loaded: list[Runtime]) -> dict[str, float]:
    """Runs the smallest program of each runtime, makes its snapshot; gives seconds by name. Raises HostNotReady."""
    try:
        return asyncio.run(_run_each(settings, binary, loaded))
    except SandboxFailed as error:
        raise HostNotReady(f"this host cannot start sandboxes: {error}") from error


async def _run_each(settings: Settings, binary: Path, loaded: list[Runtime]) -> dict[str, float]:
    seconds = {}
    async with contextlib.AsyncExitStack() as stack:
        here = instance.claim(settings.runtime_dir, settings.sandbox.cgroup_parent)
        stack.push_async_callback(here.close)
        launcher = await stack.enter_async_context(Launcher())
        runsc = Runsc(binary, here.runsc_root, settings.sandbox.platform)
        plain = [environments.find(settings.built, runtime) for runtime in loaded]
        for environment in [*plain, *environments.preloaded(plain)]:
            bundle = write_bundle(here.bundle(environment.name), oci_spec(environment))
            limits = settings.limits.default.as_limits()
            start = Start(environment, runsc, bundle, settings.execution.start_timeout, limits.disk_bytes)
            source = ColdSource({environment.name: start}, launcher, here.tree)
            started = time.monotonic()
            await probe(source, environment, limits)
            seconds[environment.name] = time.monotonic() - started
            if settings.pool.max:
                snapshots = Snapshots(settings.data_dir / "snapshots", launcher, here.tree)
                warm = write_bundle(here.bundle(f"{environment.name}-warm"), oci_spec(environment, warm=True))
                copied = replace(start, bundle=warm)
                lacking = [number for number in range(environment.snapshots) if snapshots.find(copied, number) is None]
                for number in lacking:
                    await snapshots.build(copied, number)
                if lacking:
                    seconds[f"{environment.name}, snapshots"] = time.monotonic() - started
                snapshots.close()
    return seconds


def unenforceable(settings: Settings) -> dict[str, str]:
    """Limits that this host's cgroups cannot enforce, with the reason. Raises HostNotReady."""

    async def look() -> dict[str, str]:
        here = instance.claim(settings.runtime_dir, settings.sandbox.cgroup_parent)
        try:
            return dict(here.tree.missing)
        finally:
            await here.close()

    return asyncio.run(look())
