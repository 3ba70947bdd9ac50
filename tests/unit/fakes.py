"""Fakes of the seams for unit tests: a sandbox that does what a script says, and a store in memory."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from belljar_server.artifacts import SignedUrl, StoredArtifact
from belljar_server.errors import NotFound, SandboxFailed
from belljar_server.models import Accepted
from belljar_server.runtimes import ImageRecipe, Runtime
from belljar_server.sandbox import Ending, Job, Listener, Stop
from belljar_server.sandbox.spec import Environment

Behaviour = Callable[["FakeSandbox", Job, Listener], Awaitable[Ending]]

ENVIRONMENT = Environment(
    Runtime("python", "3.13", "main.py", ImageRecipe("python"), ("/bin/false",)), Path("/nowhere"), "sha256:0", "3.13.5"
)


async def succeed(sandbox: FakeSandbox, job: Job, listener: Listener) -> Ending:
    """Prints its code and returns 1."""
    from belljar_server.models import Stream

    del sandbox
    listener.on_prepared()
    listener.on_running()
    listener.on_output(Stream.STDOUT, job.code.encode())
    await listener.on_result(b"1")
    listener.on_collecting()
    return Ending(0, report=b'{"ok": true}', started=True)


async def hang(sandbox: FakeSandbox, job: Job, listener: Listener) -> Ending:
    """Runs until somebody stops it."""
    del job
    listener.on_prepared()
    listener.on_running()
    await sandbox.stopping.wait()
    return Ending(9, stop=sandbox.stopped, started=True)


class FakeSandbox:
    """A sandbox that behaves as told. Mutable state: whether and why it was stopped, whether it was destroyed."""

    id = "fake"
    warm = False

    def __init__(self, behave: Behaviour) -> None:
        self._behave = behave
        self.stopped: Stop | None = None
        self.stopping = asyncio.Event()
        self.destroyed = False

    async def run(self, job: Job, listener: Listener) -> Ending:
        """Does what it was told."""
        return await self._behave(self, job, listener)

    def stop(self, reason: Stop) -> None:
        """Remembers the first reason."""
        self.stopped = self.stopped or reason
        self.stopping.set()

    async def destroy(self) -> None:
        """Remembers that."""
        self.destroyed = True


class FakeSource:
    """Gives out fake sandboxes; `failures` of the first ones do not start."""

    def __init__(self, behave: Behaviour = succeed, failures: int = 0) -> None:
        self.behave = behave
        self.failures = failures
        self.given: list[FakeSandbox] = []

    @asynccontextmanager
    async def acquire(self, environment: Environment) -> AsyncIterator[FakeSandbox]:
        """A sandbox for the scope."""
        del environment
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise SandboxFailed("no luck")
        sandbox = FakeSandbox(self.behave)
        self.given.append(sandbox)
        try:
            yield sandbox
        finally:
            await sandbox.destroy()


class MemoryUpload:
    """An upload into a `MemoryStore`."""

    def __init__(self, store: MemoryStore, name: str, content_type: str) -> None:
        self._store, self._name, self._type, self._data = store, name, content_type, bytearray()

    async def write(self, data: bytes) -> None:
        """Keeps the bytes."""
        await asyncio.sleep(0)
        self._data += data

    async def commit(self) -> StoredArtifact:
        """Makes it exist."""
        data = bytes(self._data)
        stored = StoredArtifact(
            f"id{len(self._store.kept)}", self._name, self._type, len(data), hashlib.sha256(data).hexdigest()
        )
        self._store.kept[stored.id] = (stored, data)
        return stored

    async def abort(self) -> None:
        """Counts."""
        self._store.aborted += 1


class MemoryStore:
    """An artifact store without a disk. Mutable state: what it keeps, how many uploads were given up."""

    def __init__(self) -> None:
        self.kept: dict[str, tuple[StoredArtifact, bytes]] = {}
        self.aborted = 0

    async def begin(self, name: str, content_type: str) -> MemoryUpload:
        """As the protocol says."""
        return MemoryUpload(self, name, content_type)

    async def open(self, artifact_id: str) -> tuple[StoredArtifact, AsyncIterator[bytes]]:
        """As the protocol says."""
        if artifact_id not in self.kept:
            raise NotFound("artifact", artifact_id)
        stored, data = self.kept[artifact_id]

        async def chunks() -> AsyncIterator[bytes]:
            yield data

        return stored, chunks()

    async def sign(self, artifact: StoredArtifact) -> SignedUrl:
        """As the protocol says."""
        return SignedUrl(f"memory:{artifact.id}", dt.datetime.now(dt.UTC))

    async def delete(self, artifact_id: str) -> None:
        """As the protocol says."""
        del self.kept[artifact_id]

    async def check(self) -> None:
        """There is always room."""

    async def aclose(self) -> None:
        """Nothing to let go of."""


class MemoryJournal:
    """Notes of executions. Mutable state: those under way, and all that ever were."""

    def __init__(self) -> None:
        self.open: set[str] = set()
        self.all: list[str] = []

    def accepted(self, accepted: Accepted) -> None:
        """Notes it."""
        self.open.add(accepted.execution_id)
        self.all.append(accepted.execution_id)

    def ended(self, execution_id: str) -> None:
        """Strikes it out."""
        self.open.remove(execution_id)
