"""`belljar cache`: what is kept of requested packages, making room, and installing sets ahead of requests."""

from __future__ import annotations

import contextlib
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from belljar_server import app, runtimes
from belljar_server.config import Settings
from belljar_server.dependencies import specs
from belljar_server.dependencies.cache import LayerCache
from belljar_server.dependencies.installing import InstallFailed
from belljar_server.errors import HostNotReady, SandboxFailed
from belljar_server.models import ExecutionRequest
from belljar_server.sandbox import instance
from belljar_server.sandbox.runsc import Launcher, Runsc
from belljar_server.sandbox.spec import Environment
from belljar_server.setup import environments
from belljar_server.setup import runsc as runsc_setup

Say = Callable[[str], None]
SHOWN = 6
"""Packages of a layer that a list names."""


@dataclass(frozen=True, slots=True)
class Row:
    """A layer that is kept."""

    key: str
    size_bytes: int
    used_at: float
    """Seconds since the epoch."""
    packages: str


def everything(settings: Settings) -> list[Row]:
    """All layers, the latest used first."""
    return [Row(key, size, used, _packages(lock)) for key, size, used, lock in _cache(settings).everything()]


def prune(settings: Settings, budget: int) -> int:
    """Removes the least recently used layers that no server holds until the rest fits; returns how many."""
    return _cache(settings).make_room(budget)


def read_sets(file: Path) -> list[ExecutionRequest]:
    """The sets that a file asks for: `[[set]]` tables with `runtime` and `dependencies`. Raises HostNotReady."""
    limits = Settings().limits.default.as_limits()
    loaded = runtimes.load()
    try:
        wanted = []
        for number, each in enumerate(tomllib.loads(file.read_text())["set"]):
            recipe = loaded[each["runtime"]].layer
            if recipe is None:
                raise HostNotReady(f"{file}: set {number}: {each['runtime']} has no packages")
            names = tuple(specs.canonical(recipe.ecosystem, name) for name in each["dependencies"])
            wanted.append(ExecutionRequest(each["runtime"], "", limits, dependencies=names))
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, specs.Refused) as error:
        raise HostNotReady(
            f"{file}: {error}; expected [[set]] tables with runtime and dependencies, a list of names with versions"
        ) from error
    return wanted


async def warm(settings: Settings, wanted: list[ExecutionRequest], say: Say) -> bool:
    """Installs the sets that are not kept yet; tells whether all could be. Raises HostNotReady."""

    async def admit(_: ExecutionRequest, environment: Environment) -> Environment:
        """Nothing is run here."""
        return environment

    complete = True
    async with contextlib.AsyncExitStack() as stack:
        here = instance.claim(settings.runtime_dir, settings.sandbox.cgroup_parent)
        stack.push_async_callback(here.close)
        launcher = await stack.enter_async_context(Launcher())
        runsc = Runsc(runsc_setup.find(settings), here.runsc_root, settings.sandbox.platform)
        dependencies = await stack.enter_async_context(app.open_dependencies(settings, runsc, here, launcher, admit))
        for request in wanted:
            plain = environments.find(settings.data_dir, runtimes.load()[request.runtime])
            names = f"{request.runtime}: {', '.join(request.dependencies)}"
            try:
                if not dependencies.needs_layer(request, plain):
                    say(f"{names}: preinstalled")
                    continue
                async with dependencies.provide(request, plain, lambda _: None) as provided:
                    say(f"{names}: {_packages(provided.lockfile)}")
            except (InstallFailed, SandboxFailed) as error:
                say(f"{names}: failed: {error}")
                complete = False
    return complete


def _cache(settings: Settings) -> LayerCache:
    return LayerCache(settings.data_dir / "dependencies", settings.dependencies.cache_bytes)


def _packages(lock: str) -> str:
    ecosystem = runtimes.Ecosystem.NPM if lock.startswith("{") else runtimes.Ecosystem.PYTHON
    packages = [f"{name} {version}" for name, version in specs.locked_packages(ecosystem, lock).items()]
    more = f" and {len(packages) - SHOWN} more" if len(packages) > SHOWN else ""
    return ", ".join(packages[:SHOWN]) + more
