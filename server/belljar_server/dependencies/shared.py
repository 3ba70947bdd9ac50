"""Layers in the artifact bucket: what one replica has installed, another one only fetches.

A layer is stored under its key, which is a hash of its lock; its SHA-256 is checked when it comes back. The bucket's
own life-cycle rules remove old ones. Whatever fails here, the set is installed instead.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from belljar_server.errors import NotFound, StoreFailed

log = structlog.get_logger()

CONTENT_TYPE = "application/vnd.belljar.layer"
PIECE = 1 << 20


class Stored(Protocol):
    """What a store knows of an object."""

    @property
    def sha256(self) -> str:
        """In hex."""


class Upload(Protocol):
    """An object on its way."""

    async def write(self, data: bytes) -> None:
        """Takes the next bytes."""

    async def commit(self) -> object:
        """Makes it exist."""

    async def abort(self) -> None:
        """Forgets it."""


class Objects(Protocol):
    """A store of objects by names of the caller's choice; the S3 store is one."""

    async def begin_as(self, artifact_id: str, name: str, content_type: str) -> Upload:
        """A new object."""

    async def open(self, artifact_id: str) -> tuple[Stored, AsyncIterator[bytes]]:
        """Its label and its bytes. Raises NotFound, StoreFailed."""


@dataclass(frozen=True, slots=True)
class SharedLayers:
    """The layers that all replicas see."""

    objects: Objects

    async def fetch(self, key: str, target: Path) -> str | None:
        """Writes a layer to `target` and gives its SHA-256; None when there is none that is whole."""
        digest = hashlib.sha256()
        try:
            stored, pieces = await self.objects.open(_name(key))
            with target.open("xb") as file:
                async for piece in pieces:
                    digest.update(piece)
                    file.write(piece)
                await asyncio.to_thread(os.fsync, file.fileno())
        except NotFound:
            return None
        except (StoreFailed, OSError) as error:
            log.warning("layer not fetched", layer=key, error=str(error))
            return None
        if digest.hexdigest() != stored.sha256:
            log.error("layer in the bucket is damaged", layer=key)
            return None
        return stored.sha256

    async def offer(self, key: str, path: Path) -> None:
        """Stores a layer for the others; a failure is logged and nothing else."""
        try:
            upload = await self.objects.begin_as(_name(key), f"{key}.erofs", CONTENT_TYPE)
            try:
                with path.open("rb") as file:
                    while piece := file.read(PIECE):
                        await upload.write(piece)
                await upload.commit()
            except BaseException:
                await upload.abort()
                raise
        except (StoreFailed, OSError) as error:
            log.warning("layer not stored", layer=key, error=str(error))


def _name(key: str) -> str:
    return f"layer-{key}"
