"""Takes artifacts as they stream out of a sandbox and stores them while the next ones come.

Sizes, counts and names are what the sandbox claims: the limits are enforced here again, on what really came. Small
files are stored side by side, large ones as they arrive, so memory stays flat and the order of the files is kept.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

from belljar_server.artifacts import ArtifactStore, StoredArtifact, Upload, content_type
from belljar_server.errors import SandboxFailed, StoreFailed
from belljar_server.models import Artifact, Limits

AT_ONCE = 8
"""Small artifacts that are stored at the same time."""
RESULT_NAME = "result.json"


def show_name(raw: bytes) -> str:
    """A guest's file name as text: what is not UTF-8 becomes %XX."""
    return "".join(
        f"%{ord(character) - 0xDC00:02X}" if "\udc80" <= character <= "\udcff" else character
        for character in raw.decode("utf-8", "surrogateescape")
    )


class Collector:
    """The artifacts of one execution. Mutable state: the one that is coming in, those being stored, those done."""

    def __init__(self, store: ArtifactStore, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._done: dict[int, Artifact] = {}
        self._storing: set[asyncio.Task[None]] = set()
        self._handed_over: dict[asyncio.Task[None] | None, Upload] = {}
        """Uploads of tasks that have not begun: one that is cancelled before that never sees its upload."""
        self._begun = 0
        self._bytes = 0
        self._name = ""
        self._head = b""
        self._upload: Upload | None = None
        self._failed = False
        self.warnings: list[str] = []

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """What was stored, in the order it came."""
        return tuple(self._done[index] for index in sorted(self._done))

    async def begin(self, name: bytes) -> None:
        """An artifact begins. Raises SandboxFailed when there are more than the limit allows."""
        self._begun += 1
        if self._begun > self._limits.artifact_count:
            raise SandboxFailed("the sandbox sent more artifacts than it was told to")
        self._name, self._head, self._upload, self._failed = show_name(name), b"", None, False

    async def write(self, data: bytes) -> None:
        """The next bytes. Raises SandboxFailed when there are more than the limit allows."""
        self._bytes += len(data)
        if self._bytes > self._limits.artifact_bytes:
            raise SandboxFailed("the sandbox sent more artifact bytes than it was told to")
        if self._failed:
            return
        if not self._head:
            self._head = data
            return
        try:
            if self._upload is None:
                self._upload = await self._store.begin(self._name, content_type.decide(self._name, self._head))
                await self._upload.write(self._head)
            await self._upload.write(data)
        except StoreFailed as error:
            upload, self._upload = self._upload, None
            await self._give_up(self._name, upload, error)
            self._failed = True

    async def end(self, *, complete: bool) -> None:
        """The artifact is through; it is stored while the next one comes."""
        if self._failed:
            return
        if not complete:
            await self._forget()
            self.warnings.append(f"{self._name!r} was left out: it could not be read to its end")
            return
        while len(self._storing) >= AT_ONCE:
            await asyncio.wait(self._storing, return_when=asyncio.FIRST_COMPLETED)
        task = asyncio.create_task(self._keep(self._begun, self._name, self._head, self._upload))
        if self._upload:
            self._handed_over[task] = self._upload
        self._upload = None
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)

    async def finish(self) -> None:
        """Waits until all that came is stored; lets go of one that did not come to its end."""
        while self._storing:
            await asyncio.wait(self._storing)
        await self._forget()

    async def abort(self) -> None:
        """Lets go of what is not stored yet. Safe to call twice."""
        await self._forget()
        for task in list(self._storing):
            task.cancel()
        await self.finish()
        while self._handed_over:
            _, upload = self._handed_over.popitem()
            await upload.abort()

    async def _forget(self) -> None:
        upload, self._upload = self._upload, None
        if upload:
            await upload.abort()

    async def _keep(self, index: int, name: str, head: bytes, upload: Upload | None) -> None:
        self._handed_over.pop(asyncio.current_task(), None)
        try:
            if upload is None:
                upload = await self._store.begin(name, content_type.decide(name, head))
                if head:
                    await upload.write(head)
            self._done[index] = await publish(self._store, await upload.commit())
        except StoreFailed as error:
            await self._give_up(name, upload, error)
        except asyncio.CancelledError:
            if upload:
                await upload.abort()
            raise

    async def _give_up(self, name: str, upload: Upload | None, error: StoreFailed) -> None:
        if upload:
            await upload.abort()
        self.warnings.append(f"{name!r} could not be stored: {error}")


async def publish(store: ArtifactStore, stored: StoredArtifact) -> Artifact:
    """The artifact as clients see it, with a fresh URL. Raises StoreFailed."""
    signed = await store.sign(stored)
    return Artifact(
        id=stored.id,
        name=stored.name,
        content_type=stored.content_type,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
        download_url=signed.url,
        expire_time=signed.expire_time,
        state=stored.state,
    )


class ResultSink:
    """The JSON result on its way: in memory up to its limit, an artifact beyond. Mutable state: which of the two."""

    def __init__(self, store: ArtifactStore, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._kept = bytearray()
        self.size = 0
        self._collector: Collector | None = None

    @property
    def text(self) -> bytes | None:
        """The whole result; None when it became an artifact or none came."""
        return bytes(self._kept) if self._kept else None

    @property
    def lost(self) -> bool:
        """Whether it was larger than even an artifact may be."""
        return self.size > max(self._limits.artifact_bytes, self._limits.result_bytes)

    @property
    def too_large(self) -> bool:
        """Whether it is an artifact, or would be if it could be stored."""
        return self._collector is not None

    async def write(self, data: bytes) -> None:
        """The next bytes of the result; what is too large even for an artifact is only counted."""
        self.size += len(data)
        if self.lost:
            self._kept.clear()
            await self.abort()
            return
        if self._collector is None and self.size > self._limits.result_bytes:
            self._collector = Collector(self._store, replace(self._limits, artifact_count=1))
            await self._collector.begin(RESULT_NAME.encode())
            if self._kept:
                await self._collector.write(bytes(self._kept))
            self._kept.clear()
        if self._collector is None:
            self._kept += data
        else:
            await self._collector.write(data)

    async def artifact(self) -> tuple[Artifact | None, list[str]]:
        """The result as an artifact when it was too large, and what there is to say about it."""
        if self._collector is None or self.lost:
            return None, []
        await self._collector.end(complete=True)
        await self._collector.finish()
        warnings = list(self._collector.warnings)
        if self._collector.artifacts:
            warnings.append(
                f"the result has {self.size} bytes, more than limits.result_bytes ({self._limits.result_bytes}):"
                " it is result_artifact"
            )
        return next(iter(self._collector.artifacts), None), warnings

    async def abort(self) -> None:
        """Forgets it."""
        if self._collector:
            await self._collector.abort()
