"""The spool: whatever the object store does, nothing is lost and nobody waits for long."""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from belljar_server.artifacts import SignedUrl, StoredArtifact, Upload
from belljar_server.artifacts.disk import new_id
from belljar_server.artifacts.spool import SpoolingStore
from belljar_server.errors import NotFound, StoreFailed
from belljar_server.models import ArtifactState

MIB = 1 << 20


async def nothing() -> None:
    """A fault that is none."""


async def fail() -> None:
    raise StoreFailed("the bucket is on fire")


async def hang() -> None:
    await asyncio.Event().wait()


@dataclass
class FakeRemote:
    """An object store in memory whose steps can be made to fail. Mutable state: its objects and faults."""

    objects: dict[str, tuple[StoredArtifact, bytes]] = field(default_factory=dict)
    faults: dict[str, Callable[[], Awaitable[None]]] = field(default_factory=dict)
    poisoned: str = ""
    aborted: list[str] = field(default_factory=list)
    begun: int = 0

    async def fault(self, step: str) -> None:
        await self.faults.get(step, nothing)()

    async def begin(self, name: str, content_type: str) -> Upload:
        return await self.begin_as(new_id(), name, content_type)

    async def begin_as(self, artifact_id: str, name: str, content_type: str) -> Upload:
        self.begun += 1
        await self.fault("begin")
        if name == self.poisoned:
            raise StoreFailed("this one never")
        return FakeUpload(self, StoredArtifact(artifact_id, name, content_type, 0, ""))

    async def open(self, artifact_id: str) -> tuple[StoredArtifact, AsyncIterator[bytes]]:
        if artifact_id not in self.objects:
            raise NotFound("artifact", artifact_id)
        artifact, content = self.objects[artifact_id]

        async def pieces() -> AsyncIterator[bytes]:
            yield content

        return artifact, pieces()

    async def sign(self, artifact: StoredArtifact) -> SignedUrl:
        return SignedUrl(f"https://bucket.invalid/{artifact.id}", dt.datetime.now(dt.UTC))

    async def delete(self, artifact_id: str) -> None:
        if self.objects.pop(artifact_id, None) is None:
            raise NotFound("artifact", artifact_id)

    async def check(self) -> None:
        """Has room."""

    async def aclose(self) -> None:
        """Has nothing to close."""


class FakeUpload(Upload):
    """An upload into the fake."""

    def __init__(self, remote: FakeRemote, artifact: StoredArtifact) -> None:
        self.remote, self.artifact, self.content = remote, artifact, b""

    async def write(self, data: bytes) -> None:
        await self.remote.fault("write")
        self.content += data

    async def commit(self) -> StoredArtifact:
        await self.remote.fault("commit")
        artifact = StoredArtifact(
            self.artifact.id,
            self.artifact.name,
            self.artifact.content_type,
            len(self.content),
            hashlib.sha256(self.content).hexdigest(),
        )
        self.remote.objects[artifact.id] = (artifact, self.content)
        return artifact

    async def abort(self) -> None:
        self.remote.aborted.append(self.artifact.id)
        await self.remote.fault("abort")


@pytest.fixture
def remote() -> FakeRemote:
    return FakeRemote()


@pytest.fixture
async def store(remote: FakeRemote, tmp_path: Path) -> AsyncIterator[SpoolingStore]:
    async with open_store(remote, tmp_path) as opened:
        yield opened


def open_store(remote: FakeRemote, directory: Path) -> SpoolingStore:
    return SpoolingStore(remote, directory, min_free_bytes=0, patience=0.2, first_retry=0.01)


async def keep(store: SpoolingStore, content: bytes, name: str = "a.bin") -> StoredArtifact:
    upload = await store.begin(name, "application/octet-stream")
    for start in range(0, len(content), MIB):
        await upload.write(content[start : start + MIB])
    return await upload.commit()


async def read(store: SpoolingStore, artifact_id: str) -> bytes:
    _, pieces = await store.open(artifact_id)
    return b"".join([piece async for piece in pieces])


async def until_delivered(store: SpoolingStore) -> None:
    async with asyncio.timeout(20):
        while await store.pending() or store.is_down:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("size", [0, 10, 3 * MIB])
async def test_healthy_store_gets_it_at_once_and_the_spool_stays_empty(
    store: SpoolingStore, remote: FakeRemote, tmp_path: Path, size: int
) -> None:
    """Nothing waits, nothing is left on the disk."""
    content = os.urandom(size)
    kept = await keep(store, content)
    assert kept.state is ArtifactState.AVAILABLE
    assert remote.objects[kept.id][1] == content
    assert list(tmp_path.iterdir()) == []
    assert await read(store, kept.id) == content


@pytest.mark.parametrize(
    ("step", "fault"), [("begin", fail), ("write", fail), ("commit", fail), ("write", hang), ("commit", hang)]
)
async def test_artifact_waits_in_the_spool_and_arrives_under_the_same_id(
    store: SpoolingStore, remote: FakeRemote, step: str, fault: Callable[[], Awaitable[None]]
) -> None:
    """Failing or hanging at any step makes it PENDING; it can be read meanwhile, and its URL stays the same."""
    content = os.urandom(2 * MIB)
    remote.faults = {step: fault}
    async with asyncio.timeout(10):
        kept = await keep(store, content)
    url = (await store.sign(kept)).url
    assert kept.state is ArtifactState.PENDING
    assert (kept.size_bytes, kept.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert kept.id not in remote.objects
    assert (await store.open(kept.id))[0] == kept
    assert await read(store, kept.id) == content
    # A delivery that hangs is the remote's to bound; let it go on.
    await store.aclose()
    remote.faults.clear()
    async with open_store(remote, store._disk.directory) as restarted:
        await until_delivered(restarted)
        assert remote.objects[kept.id][1] == content
        assert await read(restarted, kept.id) == content
        assert (await restarted.sign(kept)).url == url


async def test_delivery_goes_on_without_a_restart(store: SpoolingStore, remote: FakeRemote) -> None:
    """When the store is back, all that waits goes there, and new artifacts go there directly."""
    remote.faults = {"begin": fail}
    kept = [await keep(store, b"%d" % number) for number in range(20)]
    assert await store.pending() == 20
    remote.faults.clear()
    await until_delivered(store)
    assert {artifact.id for artifact in kept} == set(remote.objects)
    assert (await keep(store, b"x")).state is ArtifactState.AVAILABLE


async def test_store_known_to_be_down_is_not_waited_for(remote: FakeRemote, tmp_path: Path) -> None:
    """Only the first upload runs out of patience; the others do not even try."""
    store = SpoolingStore(remote, tmp_path, min_free_bytes=0, patience=0.2, first_retry=3600)
    async with store:
        remote.faults = {"commit": hang}
        await keep(store, b"first")
        assert store.is_down
        begun = remote.begun
        for _ in range(50):
            assert (await keep(store, b"x")).state is ArtifactState.PENDING
        # The delivering task may have tried one.
        assert remote.begun <= begun + 1
        assert await store.pending() == 51


async def test_one_artifact_that_is_never_taken_keeps_no_other_back(store: SpoolingStore, remote: FakeRemote) -> None:
    """The others arrive, and the one that cannot stays in the spool."""
    remote.faults = {"begin": fail}
    remote.poisoned = "poison"
    poison = await keep(store, b"p", "poison")
    others = {(await keep(store, b"%d" % number)).id for number in range(10)}
    remote.faults.clear()
    async with asyncio.timeout(20):
        while set(remote.objects) != others:
            await asyncio.sleep(0.01)
    assert await read(store, poison.id) == b"p"


@pytest.mark.parametrize("step", ["write", "commit"])
async def test_cancelled_upload_leaves_nothing(
    store: SpoolingStore, remote: FakeRemote, tmp_path: Path, step: str
) -> None:
    """Cancelled while the remote hangs: neither place keeps anything."""
    reached = asyncio.Event()

    async def hang_here() -> None:
        reached.set()
        await hang()

    remote.faults = {step: hang_here}
    store.patience = 60
    upload = await store.begin("a", "text/plain")

    async def go() -> None:
        await upload.write(bytes(MIB))
        await upload.commit()

    task = asyncio.create_task(go())
    await reached.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    remote.faults.clear()
    await upload.abort()
    assert len(remote.aborted) == 1
    assert list(tmp_path.iterdir()) == []
    assert remote.objects == {}


async def test_deleted_while_it_waits_never_arrives(store: SpoolingStore, remote: FakeRemote) -> None:
    """Deletion wins over delivery, also over one that is under way."""
    remote.faults = {"begin": fail}
    gone = await keep(store, b"gone")
    await store.delete(gone.id)
    with pytest.raises(NotFound):
        await store.open(gone.id)
    caught = await keep(store, b"caught")
    reached, proceed = asyncio.Event(), asyncio.Event()

    async def pause() -> None:
        reached.set()
        await proceed.wait()

    remote.faults = {"commit": pause}
    async with asyncio.timeout(10):
        await reached.wait()
    await store.delete(caught.id)
    proceed.set()
    remote.faults.clear()
    await until_delivered(store)
    async with asyncio.timeout(10):
        while remote.objects:
            await asyncio.sleep(0.01)
    with pytest.raises(NotFound):
        await store.open(caught.id)


async def test_two_servers_that_share_a_spool_deliver_each_artifact_once(remote: FakeRemote, tmp_path: Path) -> None:
    """Whoever delivers holds the lock; the other leaves it alone."""
    async with SpoolingStore(remote, tmp_path, min_free_bytes=0, first_retry=3600) as first:
        remote.faults = {"begin": fail}
        for number in range(50):
            await keep(first, b"%d" % number)
    remote.faults.clear()
    remote.begun = 0
    async with open_store(remote, tmp_path) as second, open_store(remote, tmp_path) as third:
        await until_delivered(second)
        await until_delivered(third)
    assert remote.begun == len(remote.objects) == 50


async def test_damaged_file_is_never_published(store: SpoolingStore, remote: FakeRemote, tmp_path: Path) -> None:
    """Bytes that changed on the disk are kept for people, and nobody gets them as the artifact."""
    remote.faults = {"begin": fail}
    damaged, whole = await keep(store, b"right"), await keep(store, b"whole")
    (tmp_path / damaged.id).write_bytes(b"wrong")
    remote.faults.clear()
    await until_delivered(store)
    assert set(remote.objects) == {whole.id}
    assert damaged.id in remote.aborted
    assert (tmp_path / f"{damaged.id}.damaged").read_bytes() == b"wrong"
    with pytest.raises(NotFound):
        await store.open(damaged.id)
    async with open_store(remote, tmp_path) as restarted:
        assert await restarted.pending() == 0
    assert (tmp_path / f"{damaged.id}.damaged").exists()


async def test_what_else_is_in_the_bucket_is_no_artifact(store: SpoolingStore, remote: FakeRemote) -> None:
    """Names that this service never gave out are not asked for."""
    for name in ("layer-0123456789abcdef0123456789abcdef", "x.json", "../x", ""):
        remote.objects[name] = (StoredArtifact(name, "x", "text/plain", 1, ""), b"x")
        with pytest.raises(NotFound):
            await store.open(name)
        with pytest.raises(NotFound):
            await store.delete(name)
        assert name in remote.objects


async def test_unexpected_error_does_not_end_delivery(store: SpoolingStore, remote: FakeRemote) -> None:
    """A bug in a client library delays, it does not lose."""

    async def bug() -> None:
        raise ZeroDivisionError

    remote.faults = {"begin": fail}
    kept = await keep(store, b"x")
    remote.faults = {"begin": bug}
    tried = remote.begun
    async with asyncio.timeout(10):
        while remote.begun < tried + 3:
            await asyncio.sleep(0.01)
    remote.faults.clear()
    await until_delivered(store)
    assert remote.objects[kept.id][1] == b"x"
