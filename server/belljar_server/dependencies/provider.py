"""Finds or makes the layer that a request needs: what is preinstalled, what is kept, what is being made, else new.

One installation serves everybody who waits for the same set, and goes on as long as anybody does. The same text is
resolved again after a time to live; meanwhile, and while that happens, the layer of before serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from belljar_server.dependencies import specs
from belljar_server.dependencies.cache import Kept, LayerCache, fingerprint
from belljar_server.dependencies.installing import Installation, Installed, InstallFailed, Kit, Wanted
from belljar_server.dependencies.near import existing
from belljar_server.dependencies.reasons import explain, near_here
from belljar_server.dependencies.registry import Registries, Visit
from belljar_server.dependencies.shared import SharedLayers
from belljar_server.errors import SandboxFailed
from belljar_server.models import ExecutionRequest
from belljar_server.runtimes import Ecosystem
from belljar_server.sandbox.spec import Environment, Layer

log = structlog.get_logger()

FORMAT = 1
"""Changes when an installation makes something else of the same lock."""
TARGET = "/deps"
"""Where the layer is mounted; workers look there."""
MOST_TRIES = 5
MOST_OUTPUT = 256 * 1024
"""Bytes of an installer's output that are passed on."""


@dataclass(frozen=True, slots=True)
class Provided:
    """What to run a request in."""

    environment: Environment
    lockfile: str = ""


@dataclass
class _Making:
    """One installation under way. State: its task, who listens, and what was said so far."""

    task: asyncio.Task[Kept] | None = None
    waiters: int = 0
    listeners: list[Callable[[bytes], None]] = field(default_factory=list)
    said: bytearray = field(default_factory=bytearray)

    def say(self, data: bytes) -> None:
        """Passes output on, as far as it is not too much."""
        data = data[: MOST_OUTPUT - len(self.said)]
        if data:
            self.said += data
            for listener in self.listeners:
                listener(data)

    def say_unreachable(self, problem: str) -> None:
        """Tells that a registry is being waited for."""
        self.say(f"belljar: the registry cannot be reached ({problem}), trying again\n".encode())


class Dependencies:
    """Mutable state: installations under way by what they make, and refreshes of old resolutions."""

    def __init__(
        self,
        kit: Kit,
        cache: LayerCache,
        registries: Registries,
        admit: Callable[[ExecutionRequest, Environment], Awaitable[Environment]],
        shared: SharedLayers | None = None,
    ) -> None:
        """`admit` makes an environment known to where sandboxes come from, and gives that or one that suits better;
        `shared` is what replicas have in common.
        """
        self._shared = shared
        self._kit = kit
        self._admit = admit
        self._cache = cache
        self._registries = registries
        self._making: dict[str, _Making] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._at_once = asyncio.Semaphore(kit.settings.max_installing)
        self.installations = 0

    async def close(self) -> None:
        """Ends what is under way."""
        tasks = [*self._background, *(making.task for making in self._making.values() if making.task)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def needs_layer(self, request: ExecutionRequest, environment: Environment) -> bool:
        """Whether anything beside the preinstalled packages is asked for."""
        if not request.dependencies:
            return bool(request.lock)
        return bool(self._wanted(request, environment).requirements)

    @contextlib.asynccontextmanager
    async def provide(
        self, request: ExecutionRequest, environment: Environment, on_output: Callable[[bytes], None]
    ) -> AsyncIterator[Provided]:
        """The environment with the layer in it, which is kept for the scope. Raises InstallFailed, SandboxFailed.

        `on_output` is called with nothing when an installation is waited for, then with what the installer prints.
        """
        wanted = self._wanted(request, environment)
        with contextlib.ExitStack() as held:
            kept = await self._hold(wanted, environment, on_output, held)
            layers = (*environment.layers, Layer(kept.path, f"sha256:{kept.digest}", TARGET))
            found = replace(environment, layers=layers, dependencies=kept.digest[:16])
            yield Provided(await self._admit(request, found), kept.lock)

    async def _hold(
        self,
        wanted: Wanted,
        environment: Environment,
        on_output: Callable[[bytes], None],
        held: contextlib.ExitStack,
    ) -> Kept:
        """The layer, which nobody removes as long as it is held. Raises InstallFailed, SandboxFailed."""
        for _ in range(MOST_TRIES):
            kept = await self._find(wanted, environment, on_output)
            with contextlib.suppress(FileNotFoundError):  # removed in this very moment to make room
                held.enter_context(self._cache.in_use(kept))
                return kept
        raise SandboxFailed("no layer stays: dependencies.cache_bytes is too small for what is asked for at once")

    def _wanted(self, request: ExecutionRequest, environment: Environment) -> Wanted:
        recipe = environment.runtime.layer
        ecosystem = recipe.ecosystem if recipe else Ecosystem.PYTHON
        there = dict(environment.packages)
        missing = [each for each in request.dependencies if not specs.is_preinstalled(ecosystem, each, there)]
        preinstalled = environment.packages if ecosystem is Ecosystem.PYTHON else ()
        return Wanted(ecosystem, tuple(sorted(set(missing))), request.lock, preinstalled)

    async def _find(self, wanted: Wanted, environment: Environment, on_output: Callable[[bytes], None]) -> Kept:
        if wanted.lock:
            kept = await self._kept(self._key(wanted, environment, wanted.lock), wanted.lock)
            return kept or await self._make(wanted, environment, on_output)
        resolved = self._cache.resolved(self._request_key(wanted, environment))
        kept = None
        if resolved:
            kept = await self._kept(self._key(wanted, environment, resolved.lock), resolved.lock)
        if resolved is None:
            return await self._make(wanted, environment, on_output)
        if time.time() - resolved.at > self._kit.settings.resolve_ttl:
            if kept is None:
                return await self._make(wanted, environment, on_output)
            self._refresh(wanted, environment)
        return kept or await self._make(replace(wanted, lock=resolved.lock), environment, on_output)

    async def _kept(self, key: str, lock: str) -> Kept | None:
        """A layer that is on this disk, or comes from where the replicas share theirs."""
        kept = self._cache.find(key)
        if kept or self._shared is None:
            return kept
        draft = self._cache.draft()
        try:
            digest = await self._shared.fetch(key, draft)
            return self._cache.publish(key, draft, digest, lock) if digest else None
        except OSError as error:
            log.warning("fetched layer cannot be kept", layer=key, error=str(error))
            return None
        finally:
            draft.unlink(missing_ok=True)

    def _share(self, kept: Kept) -> None:
        if self._shared:
            self._spawn(self._shared.offer(kept.key, kept.path))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _refresh(self, wanted: Wanted, environment: Environment) -> None:
        async def refresh() -> None:
            try:
                await self._make(wanted, environment, lambda _: None)
            except (InstallFailed, SandboxFailed) as error:
                log.warning("dependencies were not resolved again", wanted=wanted.requirements, error=str(error))

        if self._request_key(wanted, environment) not in self._making:
            self._spawn(refresh())

    async def _make(self, wanted: Wanted, environment: Environment, on_output: Callable[[bytes], None]) -> Kept:
        """Waits for the installation, one for all who want the same; the last who goes away ends it."""
        name = self._request_key(wanted, environment)
        making = self._making.get(name)
        if making is None:
            making = self._making[name] = _Making()
            making.task = asyncio.create_task(self._install(wanted, environment, making))
            making.task.add_done_callback(lambda _: self._making.pop(name, None))
        on_output(b"")
        if making.said:
            on_output(bytes(making.said))
        making.listeners.append(on_output)
        making.waiters += 1
        task = making.task
        if task is None:
            raise SandboxFailed("an installation was not started")
        try:
            return await asyncio.shield(task)
        finally:
            making.waiters -= 1
            making.listeners.remove(on_output)
            if making.waiters == 0 and not task.done():
                task.cancel()
                if self._making.get(name) is making:
                    del self._making[name]

    async def _install(self, wanted: Wanted, environment: Environment, making: _Making) -> Kept:
        async with self._at_once:
            self.installations += 1
            began = time.monotonic()
            draft = self._cache.draft()
            visit = Visit(self._registries, self._kit.settings.download_bytes, making.say_unreachable)
            try:
                installed = await self._try(wanted, environment, visit, draft, making)
                kept = self._keep(wanted, environment, installed, draft)
            except InstallFailed as error:
                near: list[str] = []
                if visit.missing and not str(error):
                    here = near_here(visit.missing[0], wanted)
                    near = [here] if here else await existing(self._registries, wanted.ecosystem, visit.missing[0])
                reason, hint = explain(error, visit, wanted, near)
                raise InstallFailed(reason, hint, error.last_lines) from error
            except OSError as error:
                raise SandboxFailed(f"a layer cannot be kept: {error.strerror}") from error
            finally:
                draft.unlink(missing_ok=True)
            log.info(
                "dependencies installed",
                layer=kept.key,
                requirements=wanted.requirements,
                bytes=installed.size,
                downloaded=visit.bytes,
                seconds=round(time.monotonic() - began, 2),
            )
            return kept

    async def _try(
        self, wanted: Wanted, environment: Environment, visit: Visit, draft: Path, making: _Making
    ) -> Installed:
        """Raises InstallFailed; SandboxFailed when it is the sandbox that fails, twice."""

        async def is_kept(lock: str) -> bool:
            return await self._kept(self._key(wanted, environment, lock), lock) is not None

        try:
            return await Installation(self._kit, visit, making.say).install(wanted, is_kept, draft)
        except SandboxFailed as error:
            log.error("installing failed, tried again", error=str(error))  # noqa: TRY400  expected
            draft.unlink(missing_ok=True)
            return await Installation(self._kit, visit, making.say).install(wanted, is_kept, draft)

    def _keep(self, wanted: Wanted, environment: Environment, installed: Installed, draft: Path) -> Kept:
        """Raises OSError."""
        key = self._key(wanted, environment, installed.lock)
        kept = None if installed.digest else self._cache.find(key)
        if kept is None:
            kept = self._cache.publish(key, draft, installed.digest, installed.lock)
            self._share(kept)
        if not wanted.lock:
            self._cache.resolve(self._request_key(wanted, environment), installed.lock)
        with self._cache.in_use(kept):
            self._cache.make_room()
        return kept

    def _request_key(self, wanted: Wanted, environment: Environment) -> str:
        return fingerprint(
            "request",
            wanted.requirements,
            wanted.lock,
            [self._registries.python, self._registries.npm],
            self._platform(wanted, environment),
        )

    def _key(self, wanted: Wanted, environment: Environment, lock: str) -> str:
        return fingerprint("layer", lock, self._platform(wanted, environment))

    def _platform(self, wanted: Wanted, environment: Environment) -> list[object]:
        """What decides, beside the lock, what is in a layer."""
        preinstalled = [layer.digest for layer in environment.layers] if wanted.preinstalled else []
        image = environment.version
        return [FORMAT, wanted.ecosystem.value, image, preinstalled, self._kit.settings.build]
