"""The local store: durable, flat in memory, clean after every failure."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from belljar_server.artifacts import StoredArtifact, Upload, disk
from belljar_server.artifacts.disk import PIECE_BYTES, Disk, new_id
from belljar_server.artifacts.local import LocalStore
from belljar_server.errors import HostNotReady, NotFound, Overloaded, StoreFailed

MIB = 1 << 20


class Clock:
    """A wall clock that tests can set."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def store(tmp_path: Path, clock: Clock) -> AsyncIterator[LocalStore]:
    async with LocalStore(
        tmp_path / "artifacts", b"k" * 32, url_ttl=60, retention=3600, min_free_bytes=0, clock=clock
    ) as opened:
        opened.base_url = "http://127.0.0.1:8080/"
        yield opened


def peak_kib(*, reset: bool = False) -> int:
    """The most memory that this process has had since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])


async def keep(store: LocalStore, content: bytes, name: str = "a.txt") -> StoredArtifact:
    upload = await store.begin(name, "text/plain")
    for start in range(0, len(content), MIB):
        await upload.write(content[start : start + MIB])
    return await upload.commit()


async def read(store: LocalStore, artifact_id: str) -> bytes:
    _, pieces = await store.open(artifact_id)
    return b"".join([piece async for piece in pieces])


def files(store: LocalStore) -> list[str]:
    return sorted(path.name for path in store.disk.directory.iterdir())


@pytest.mark.parametrize("size", [0, 1, 256 * 1024, 256 * 1024 + 1, 5 * MIB + 7])
async def test_artifact_comes_back_as_it_went_in(store: LocalStore, size: int) -> None:
    """Size and SHA-256 are those of the bytes, and pieces are at most 1 MiB."""
    content = os.urandom(size)
    kept = await keep(store, content)
    found, pieces = await store.open(kept.id)
    read_back = [piece async for piece in pieces]
    assert b"".join(read_back) == content
    assert all(len(piece) <= PIECE_BYTES for piece in read_back)
    assert found == kept
    assert (kept.size_bytes, kept.sha256) == (size, hashlib.sha256(content).hexdigest())


async def test_no_byte_of_a_hostile_name_gets_into_a_path(store: LocalStore) -> None:
    """The name is text in the entry; the files are called by our own id."""
    name = "../../etc/\ud800passwd\n\x00"
    kept = await keep(store, b"x", name)
    assert files(store) == [kept.id, f"{kept.id}.json"]
    assert (await store.open(kept.id))[0].name == name


async def test_nothing_exists_before_commit_and_nothing_is_left_after_abort(store: LocalStore) -> None:
    """An upload in progress cannot be read, and an aborted one leaves no file."""
    upload = await store.begin("a.bin", "application/octet-stream")
    await upload.write(bytes(2 * MIB))
    (part,) = files(store)
    with pytest.raises(NotFound):
        await store.open(part.removesuffix(".part"))
    await upload.abort()
    await upload.abort()
    assert files(store) == []
    with pytest.raises(StoreFailed):
        await upload.write(b"late")


async def test_abort_after_commit_keeps_the_artifact(store: LocalStore) -> None:
    """A caller that cleans up on every way out does no harm."""
    upload = await store.begin("a.txt", "text/plain")
    await upload.write(b"kept")
    kept = await upload.commit()
    await upload.abort()
    assert await read(store, kept.id) == b"kept"


@pytest.mark.parametrize("step", ["write", "commit"])
async def test_cancelled_upload_leaves_nothing(store: LocalStore, step: str) -> None:
    """Whenever the caller is cancelled, abort waits for the thread and removes what it made."""
    for rounds in range(20):
        upload = await store.begin("a.bin", "application/octet-stream")
        await upload.write(bytes(MIB))
        task = asyncio.create_task(upload.write(bytes(MIB)) if step == "write" else upload.commit())
        for _ in range(rounds % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if task.cancelled():
            await upload.abort()
            assert files(store) == []


@pytest.mark.parametrize("artifact_id", ["", "..", "../secret", "a" * 32 + "\n", "A" * 32, "g" * 32, new_id()])
async def test_ids_that_are_none_of_ours_do_not_exist(store: LocalStore, artifact_id: str) -> None:
    """Whatever an id looks like, the answer is NotFound and no other path is touched."""
    (store.disk.directory.parent / "secret.json").write_text("{}")
    with pytest.raises(NotFound):
        await store.open(artifact_id)
    with pytest.raises(NotFound):
        await store.delete(artifact_id)


async def test_deleted_artifact_is_gone(store: LocalStore) -> None:
    """A second deletion says so."""
    kept = await keep(store, b"x")
    await store.delete(kept.id)
    assert files(store) == []
    with pytest.raises(NotFound):
        await store.delete(kept.id)
    with pytest.raises(StoreFailed):
        await store.sign(kept)


async def test_link_in_place_of_an_artifact_is_not_followed(store: LocalStore, tmp_path: Path) -> None:
    """Even if somebody could place a link in the directory, it does not lead out."""
    kept = await keep(store, b"x")
    file = store.disk.directory / kept.id
    file.unlink()
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreFailed):
        await read(store, kept.id)


async def test_full_disk_fails_the_upload_and_frees_what_it_took(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC in a write or at the commit is StoreFailed, and the part is gone."""

    def full(fd: int, data: object) -> int:
        del fd, data
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def write_much(upload: Upload) -> None:
        await upload.write(bytes(2 * MIB))

    async def write_little(upload: Upload) -> None:
        await upload.write(b"x")
        await upload.commit()

    monkeypatch.setattr(disk, "os", SimpleNamespace(**vars(os) | {"write": full}))
    for attempt in (write_much, write_little):
        with pytest.raises(StoreFailed, match="No space left"):
            await attempt(await store.begin("a", "text/plain"))
        assert files(store) == []


@pytest.mark.parametrize(
    ("free", "reason"),
    [
        ({"f_bavail": 10}, "full"),
        ({"f_favail": 10}, "inodes"),
        ({"f_flag": os.ST_RDONLY}, "read-only"),
    ],
)
async def test_short_disk_refuses_new_executions_and_recovers(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, free: dict[str, int], reason: str
) -> None:
    """Space, inodes and a read-only disk are told apart, with a time to try again."""
    healthy = {"f_bavail": 10**6, "f_frsize": 4096, "f_files": 10**6, "f_favail": 10**6, "f_flag": 0}
    store.disk._min_free_bytes = MIB

    def report(values: dict[str, int]) -> Callable[[Path], SimpleNamespace]:
        return lambda _: SimpleNamespace(**values)

    monkeypatch.setattr(os, "statvfs", report(healthy | free))
    with pytest.raises(Overloaded, match=reason) as refused:
        await store.check()
    assert refused.value.retry_after > 0
    monkeypatch.setattr(os, "statvfs", report(healthy))
    await store.check()


async def test_artifacts_go_after_the_retention_and_not_before(store: LocalStore, clock: Clock) -> None:
    """The janitor deletes by the wall clock; a jump of an hour back deletes nothing."""
    kept = await keep(store, b"x")
    clock.now -= 3600
    assert await store.sweep() == 0
    clock.now += 2 * 3600 - 5
    assert await store.sweep() == 0
    assert await read(store, kept.id) == b"x"
    clock.now += 10
    assert await store.sweep() == 1
    assert files(store) == []


async def test_url_never_outlives_the_artifact(store: LocalStore, clock: Clock) -> None:
    """An artifact with ten seconds left gets a URL of ten seconds."""
    kept = await keep(store, b"x")
    assert abs((await store.sign(kept)).expire_time.timestamp() - (clock.now + 60)) <= 1
    clock.now += 3590
    assert abs((await store.sign(kept)).expire_time.timestamp() - (clock.now + 10)) <= 2


async def test_url_needs_the_port(store: LocalStore) -> None:
    """Before the HTTP port is bound there is nothing to point at."""
    kept = await keep(store, b"x")
    assert (await store.sign(kept)).url.startswith(f"http://127.0.0.1:8080/artifacts/{kept.id}/a.txt?")
    store.base_url = ""
    with pytest.raises(StoreFailed):
        await store.sign(kept)


async def test_start_sweeps_what_a_dead_server_left_and_spares_the_living(store: LocalStore) -> None:
    """Parts without a writer and halves go; a part that another server writes now and whole artifacts stay."""
    kept = await keep(store, b"x")
    living = await store.begin("a.bin", "application/octet-stream")
    await living.write(bytes(MIB))
    (writing,) = [name for name in files(store) if name.endswith(".part")]
    for name in (f"{new_id()}.part", f"{new_id()}.json.part", new_id()):
        (store.disk.directory / name).write_bytes(b"half")
    other = Disk(store.disk.directory, min_free_bytes=0)
    await other.prepare()
    assert files(store) == sorted([kept.id, f"{kept.id}.json", writing])
    await living.commit()
    await other.aclose()


async def test_damaged_entry_is_a_failure_of_the_store_and_not_a_crash(store: LocalStore) -> None:
    """Whatever is in the entry, the error is ours."""
    kept = await keep(store, b"x")
    for damage in (b"", b"[]", b"null", b"{}", b'{"name": 1, "other": 2}', b"\xff"):
        (store.disk.directory / f"{kept.id}.json").write_bytes(damage)
        with pytest.raises(StoreFailed):
            await store.open(kept.id)


async def test_shortened_file_is_noticed(store: LocalStore) -> None:
    """A reader never takes a truncated file for the whole one."""
    kept = await keep(store, bytes(3 * MIB))
    os.truncate(store.disk.directory / kept.id, MIB)
    with pytest.raises(StoreFailed, match="shorter"):
        await read(store, kept.id)


async def test_entry_on_disk_is_complete_json(store: LocalStore) -> None:
    """What is known survives a restart as plain JSON."""
    kept = await keep(store, b"x", "dir/ü.txt")
    entry = json.loads((store.disk.directory / f"{kept.id}.json").read_text())
    assert entry == {"name": "dir/ü.txt", "content_type": "text/plain", "size_bytes": 1, "sha256": kept.sha256}


async def test_thousand_small_artifacts_and_a_large_one_keep_memory_flat(store: LocalStore) -> None:
    """300 MB go through without being held, and open files do not grow."""
    fds = len(os.listdir("/proc/self/fd"))
    for number in range(1000):
        await keep(store, b"%d" % number)
    before = peak_kib(reset=True)
    large = await store.begin("large.bin", "application/octet-stream")
    piece = os.urandom(MIB)
    for _ in range(300):
        await large.write(piece)
    kept = await large.commit()
    received = 0
    _, pieces = await store.open(kept.id)
    async for got in pieces:
        received += len(got)
    grown_kib = peak_kib() - before
    assert received == kept.size_bytes == 300 * MIB
    assert grown_kib < 32 * 1024
    assert len(store.disk.listing()) == 1001
    assert len(os.listdir("/proc/self/fd")) <= fds + 1


async def test_directory_that_cannot_be_made_stops_the_start(tmp_path: Path) -> None:
    """The message names it."""
    (tmp_path / "file").touch()
    with pytest.raises(HostNotReady, match="file/artifacts"):
        await LocalStore(tmp_path / "file" / "artifacts", b"", url_ttl=1, retention=1, min_free_bytes=0).__aenter__()


async def test_closed_store_says_so(tmp_path: Path) -> None:
    """Closing twice is fine, and the state can be read off."""
    store = LocalStore(tmp_path, b"k" * 32, url_ttl=1, retention=1, min_free_bytes=0)
    async with store:
        assert "open=True" in repr(store)
    await store.aclose()
    assert "open=False" in repr(store)
