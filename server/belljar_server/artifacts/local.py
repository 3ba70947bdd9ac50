"""Artifacts on the local disk, downloaded through this server's own HTTP port by signed URLs."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import structlog

from belljar_server.artifacts import SignedUrl, StoredArtifact, Upload
from belljar_server.artifacts.disk import Disk, new_id
from belljar_server.artifacts.urls import UrlSigner
from belljar_server.errors import NotFound, StoreFailed

_SWEEP_SECONDS = 300.0

log = structlog.get_logger()


class LocalStore:
    """The ArtifactStore of a single server. Use it as an async context manager: a janitor runs while it is open.

    An artifact is kept for `retention` seconds, and at least as long as a URL works, `url_ttl` seconds. Set
    `base_url` (scheme, host and port, or where a proxy in front of it listens) once the HTTP port is bound. Mutable
    state is the base URL and the janitor's task; everything else is on the disk.
    """

    def __init__(
        self,
        directory: Path,
        key: bytes,
        *,
        url_ttl: float,
        retention: float,
        min_free_bytes: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.base_url = ""
        self.disk = Disk(directory, min_free_bytes)
        self.signer = UrlSigner(key)
        self.clock = clock
        self._url_ttl = url_ttl
        self._retention = max(retention, url_ttl)
        self._janitor: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"LocalStore({self.disk!r}, base_url={self.base_url!r}, open={self._janitor is not None})"

    async def __aenter__(self) -> Self:
        await self.disk.prepare()
        self._janitor = asyncio.create_task(self._sweep_for_ever(), name="artifact janitor")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def begin(self, name: str, content_type: str) -> Upload:
        """As ArtifactStore."""
        return await self.disk.begin_as(new_id(), name, content_type)

    async def open(self, artifact_id: str) -> tuple[StoredArtifact, AsyncIterator[bytes]]:
        """As ArtifactStore."""
        return await self.disk.open(artifact_id)

    async def sign(self, artifact: StoredArtifact) -> SignedUrl:
        """As ArtifactStore; a URL never promises more time than the artifact has left."""
        if not self.base_url:
            raise StoreFailed("download URLs cannot be made before the HTTP port is open")
        now = self.clock()
        try:
            left = self.disk.committed_at(artifact.id) + self._retention - now
        except NotFound as error:
            raise StoreFailed(f"artifact {artifact.id} does not exist any more") from error
        expires = int(now + min(self._url_ttl, max(left, 0.0)))
        path = self.signer.path(artifact.id, artifact.name, expires)
        return SignedUrl(self.base_url.rstrip("/") + path, dt.datetime.fromtimestamp(expires, dt.UTC))

    async def delete(self, artifact_id: str) -> None:
        """As ArtifactStore."""
        await self.disk.delete(artifact_id)

    async def check(self) -> None:
        """As ArtifactStore."""
        self.disk.check()

    async def aclose(self) -> None:
        """As ArtifactStore; a second call does nothing."""
        janitor, self._janitor = self._janitor, None
        if janitor is not None:
            janitor.cancel()
            await asyncio.wait([janitor])
        await self.disk.aclose()

    async def sweep(self) -> int:
        """Deletes what is older than the retention, and returns how many those were. Raises StoreFailed."""
        return await self.disk.run(self._sweep)

    def _sweep(self) -> int:
        keep_from = self.clock() - self._retention
        swept = 0
        for committed_at, artifact_id in self.disk.listing():
            if committed_at >= keep_from:
                break
            self.disk.remove(artifact_id)
            swept += 1
        return swept

    async def _sweep_for_ever(self) -> None:
        while True:
            try:
                swept = await self.sweep()
            except StoreFailed as error:
                log.warning("artifact_sweep_failed", error=str(error))
            else:
                if swept:
                    log.info("artifacts_swept", count=swept)
            await asyncio.sleep(min(_SWEEP_SECONDS, self._retention))
