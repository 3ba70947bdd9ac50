"""A spool in front of an object store: what the store does not take now waits on the disk and arrives later.

Every upload is written twice, to the store and to a spool file. When the store has it, the file goes. When the store
fails, at any point, or takes more than PATIENCE_SECONDS, the file is made durable instead and the artifact is PENDING:
same id, same URL, delivered by a task that tries again until it succeeds, also after a restart. While the store is
known to be down, uploads do not wait for it at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import structlog

from belljar_server.artifacts import ArtifactStore, SignedUrl, StoredArtifact, Upload
from belljar_server.artifacts.disk import Disk, is_id, new_id
from belljar_server.errors import NotFound, StoreFailed
from belljar_server.models import ArtifactState

T = TypeVar("T")

PATIENCE_SECONDS = 20.0
"""How long the store may keep one upload waiting, all its steps together."""
_FIRST_RETRY_SECONDS = 1.0
_LAST_RETRY_SECONDS = 60.0
_LOOK_AGAIN_SECONDS = 60.0
"""How often to look for what another server that shares the directory left."""

log = structlog.get_logger()


class RemoteStore(ArtifactStore, Protocol):
    """An ArtifactStore that can be told which id to use, and signs URLs without asking anybody."""

    async def begin_as(self, artifact_id: str, name: str, content_type: str) -> Upload:
        """As `begin`, under this id; replaces what has it already. Raises StoreFailed."""


class SpoolingStore:
    """An ArtifactStore that loses nothing while `remote` is down. An async context manager, inside the remote's.

    Mutable state: whether the remote is believed to be down, the delivering task, and uploads being given up; what
    waits is on the disk.
    """

    def __init__(
        self,
        remote: RemoteStore,
        directory: Path,
        *,
        min_free_bytes: int,
        patience: float = PATIENCE_SECONDS,
        first_retry: float = _FIRST_RETRY_SECONDS,
    ) -> None:
        self.is_down = False
        self.patience = patience
        self._remote = remote
        self._disk = Disk(directory, min_free_bytes)
        self._first_retry = first_retry
        self._arrived = asyncio.Event()
        self._aborting: set[asyncio.Task[None]] = set()
        self._deliverer: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"SpoolingStore({self._remote!r}, {self._disk!r}, is_down={self.is_down})"

    async def __aenter__(self) -> Self:
        await self._disk.prepare()
        self._deliverer = asyncio.create_task(self._deliver_for_ever(), name="artifact delivery")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def begin(self, name: str, content_type: str) -> Upload:
        """As ArtifactStore."""
        artifact_id = new_id()
        spooled = await self._disk.begin_as(artifact_id, name, content_type)
        return _SpoolingUpload(self, spooled, await self._begin_remote(artifact_id, name, content_type))

    async def open(self, artifact_id: str) -> tuple[StoredArtifact, AsyncIterator[bytes]]:
        """As ArtifactStore; what waits is read from the spool."""
        try:
            artifact = self._disk.find(artifact_id)
        except NotFound:
            if not is_id(artifact_id):  # the bucket may hold more than artifacts
                raise
            return await self._remote.open(artifact_id)
        return replace(artifact, state=ArtifactState.PENDING), self._pieces(artifact_id)

    async def sign(self, artifact: StoredArtifact) -> SignedUrl:
        """As ArtifactStore; the URL of a pending artifact works once it was delivered."""
        return await self._remote.sign(artifact)

    async def delete(self, artifact_id: str) -> None:
        """As ArtifactStore."""
        try:
            await self._disk.delete(artifact_id)
        except NotFound:
            if not is_id(artifact_id):
                raise
            await self._remote.delete(artifact_id)
            return
        # The store may have taken it after all, when its answer was what got lost.
        with suppress(NotFound, StoreFailed):
            await self._remote.delete(artifact_id)

    async def check(self) -> None:
        """As ArtifactStore; what counts is the room in the spool."""
        self._disk.check()

    async def pending(self) -> int:
        """How many artifacts wait. Raises StoreFailed."""
        return len(await self._disk.run(self._disk.listing))

    async def aclose(self) -> None:
        """As ArtifactStore, without the remote, which its owner closes. What waits goes on after the next start."""
        deliverer, self._deliverer = self._deliverer, None
        tasks = [*self._aborting, *([deliverer] if deliverer else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await self._disk.aclose()

    def remote_failed(self, error: Exception, upload: Upload | None = None) -> None:
        """Makes later uploads go to the spool only, until a delivery succeeds, and lets go of the one that failed."""
        if not self.is_down:
            log.warning("artifact_store_down", error=str(error) or type(error).__name__)
        self.is_down = True
        if upload is not None:
            # Not awaited: a store that is down takes its time for this too.
            task = asyncio.create_task(upload.abort(), name="abort of an upload")
            self._aborting.add(task)
            task.add_done_callback(self._aborting.discard)

    def wake(self) -> None:
        """Tells the delivering task that something waits."""
        self._arrived.set()

    async def _begin_remote(self, artifact_id: str, name: str, content_type: str) -> Upload | None:
        if self.is_down:
            return None
        try:
            return await self._remote.begin_as(artifact_id, name, content_type)
        except StoreFailed as error:
            self.remote_failed(error)
            return None

    async def _pieces(self, artifact_id: str) -> AsyncIterator[bytes]:
        """The bytes from the spool, or from the remote when they were delivered before somebody read them."""
        try:
            _, pieces = await self._disk.open(artifact_id)
            async for piece in pieces:
                yield piece
        except NotFound:
            _, pieces = await self._remote.open(artifact_id)
            async for piece in pieces:
                yield piece

    async def _deliver_for_ever(self) -> None:
        delay = self._first_retry
        while True:
            self._arrived.clear()
            delivered = 0
            try:
                async for _ in self._round():
                    delivered += 1
                    self.is_down = False
            except Exception as error:  # noqa: BLE001 - whatever went wrong, what waits must be tried again
                delay = self._first_retry if delivered else min(2 * delay, _LAST_RETRY_SECONDS)
                log.warning(
                    "artifact_delivery_failed", retry_in=round(delay, 1), error=str(error) or type(error).__name__
                )
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                continue
            self.is_down = False
            delay = self._first_retry
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                    await self._arrived.wait()

    async def _round(self) -> AsyncIterator[str]:
        """Delivers what waits, and gives each id. Raises StoreFailed at the first failure."""
        waiting = [artifact_id for _, artifact_id in await self._disk.run(self._disk.listing)]
        # In any order, so that one artifact that the store never takes cannot keep the others back.
        random.shuffle(waiting)
        for artifact_id in waiting:
            await self._deliver(artifact_id)
            yield artifact_id

    async def _deliver(self, artifact_id: str) -> None:
        """Takes one artifact from the spool to the remote. Raises StoreFailed; the spool keeps it then."""
        with self._disk.claim(artifact_id) as is_ours:
            if not is_ours:
                return
            try:
                artifact, pieces = await self._disk.open(artifact_id)
                upload = await self._remote.begin_as(artifact_id, artifact.name, artifact.content_type)
                await _copy(pieces, upload, artifact.sha256)
            except NotFound:
                # Deleted in the meantime; half an upload was aborted.
                return
            except _DamagedError:
                aside = await self._disk.run(self._disk.set_aside, artifact_id)
                log.error("artifact_damaged_in_spool", artifact_id=artifact_id, kept_as=str(aside))  # noqa: TRY400
                return
            try:
                await self._disk.delete(artifact_id)
            except NotFound:
                with suppress(NotFound):
                    await self._remote.delete(artifact_id)
                return
        log.info("artifact_delivered", artifact_id=artifact_id, size_bytes=artifact.size_bytes)


class _SpoolingUpload(Upload):
    """Writes to the spool and to the remote; the remote drops out when it fails or has used up its time."""

    def __init__(self, store: SpoolingStore, spooled: Upload, remote: Upload | None) -> None:
        self._store = store
        self._spooled = spooled
        self._remote = remote
        self._patience = store.patience

    async def write(self, data: bytes) -> None:
        await self._spooled.write(data)
        if self._remote is None:
            return
        try:
            await self._within_patience(self._remote.write(data))
        except (StoreFailed, TimeoutError) as error:
            self._give_up(self._remote, error)

    async def commit(self) -> StoredArtifact:
        if self._remote is not None:
            try:
                artifact = await self._within_patience(self._remote.commit())
            except (StoreFailed, TimeoutError) as error:
                self._give_up(self._remote, error)
            else:
                await self._spooled.abort()
                return artifact
        artifact = await self._spooled.commit()
        self._store.wake()
        return replace(artifact, state=ArtifactState.PENDING)

    async def abort(self) -> None:
        if self._remote is not None:
            await self._remote.abort()
        await self._spooled.abort()

    async def _within_patience(self, step: Coroutine[Any, Any, T]) -> T:
        began = time.monotonic()
        try:
            async with asyncio.timeout(max(self._patience, 0.0)):
                return await step
        finally:
            self._patience -= time.monotonic() - began

    def _give_up(self, remote: Upload, error: Exception) -> None:
        self._remote = None
        self._store.remote_failed(error, remote)


class _DamagedError(Exception):
    """The bytes in the spool are not those that were put there."""


async def _copy(pieces: AsyncIterator[bytes], upload: Upload, sha256: str) -> None:
    """Commits nothing but what has this hash. Raises _DamagedError, StoreFailed, NotFound."""
    found = hashlib.sha256()
    try:
        async for piece in pieces:
            found.update(piece)
            await upload.write(piece)
        if found.hexdigest() != sha256:
            raise _DamagedError
        await upload.commit()
    except BaseException:
        await asyncio.shield(upload.abort())
        raise
