"""Where artifacts live: the `ArtifactStore` seam and what every store shares. `local` and `s3` implement it.

A store never sees a guest path: it gets bytes, a name that is only a label, and gives back an id of its own making.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

from belljar_server.models import ArtifactState


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """What a store knows about one artifact."""

    id: str
    name: str
    content_type: str
    size_bytes: int
    sha256: str
    state: ArtifactState = ArtifactState.AVAILABLE


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """A URL that gives the content until `expire_time`, to whoever has it."""

    url: str
    expire_time: dt.datetime


class Upload(Protocol):
    """An artifact on its way in. Ends with exactly one of `commit` and `abort`."""

    async def write(self, data: bytes) -> None:
        """Takes the next bytes; waits while the store is slower than the sandbox. Raises StoreFailed."""

    async def commit(self) -> StoredArtifact:
        """Makes the artifact exist, durably; size and SHA-256 are those of the bytes written. Raises StoreFailed."""

    async def abort(self) -> None:
        """Forgets the bytes. Never raises."""


class ArtifactStore(Protocol):
    """Keeps artifacts for a time and hands out URLs for them."""

    async def begin(self, name: str, content_type: str) -> Upload:
        """Opens a new artifact. Raises StoreFailed."""

    async def open(self, artifact_id: str) -> tuple[StoredArtifact, AsyncIterator[bytes]]:
        """The artifact and its bytes in pieces of at most 1 MiB. Raises NotFound, StoreFailed."""

    async def sign(self, artifact: StoredArtifact) -> SignedUrl:
        """A fresh URL. Raises StoreFailed."""

    async def delete(self, artifact_id: str) -> None:
        """Removes it. Raises NotFound, StoreFailed."""

    async def check(self) -> None:
        """Raises Overloaded when a new execution's artifacts would not find room now."""

    async def aclose(self) -> None:
        """Lets go of connections and background work."""
