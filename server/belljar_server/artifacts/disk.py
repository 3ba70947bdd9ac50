"""A directory of artifacts: what the local store keeps for good and the spool keeps for a while.

An artifact is two files, `<id>` with the bytes and `<id>.json` with what is known about them, and exists when both do.
Names on disk are made of our own ids; what user code called a file is only text inside the JSON. New files are written
beside, as `<id>.part`, and renamed when they are safe on the disk. Whoever writes or delivers a file holds its lock
(flock), so several servers can share a directory, and a part without a lock is what a dead server left.

Long, for whoever writes, delivers, removes and sweeps must agree about those names and locks.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import re
import secrets
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from belljar_server.artifacts import StoredArtifact, Upload
from belljar_server.errors import HostNotReady, NotFound, Overloaded, StoreFailed

T = TypeVar("T")

PIECE_BYTES = 1 << 20
"""Largest piece that `open` gives."""
_HELD_BYTES = 256 * 1024
"""So many bytes of an upload wait in memory: a small artifact is written in one step, or not at all if dropped."""
_MIN_FREE_INODES = 2000
_THREADS = 8
_RETRY_AFTER = 10.0
_ID = re.compile(r"[0-9a-f]{32}")  # as new_id makes them
_PART, _ENTRY = ".part", ".json"


def is_id(text: str) -> bool:
    """Whether it may be an artifact's id. Other names are no artifacts, whatever a store has under them."""
    return _ID.fullmatch(text) is not None


def new_id() -> str:
    """A fresh artifact id: 128 random bits, not to be guessed."""
    return secrets.token_hex(16)


class Disk:
    """Artifacts in one directory. Mutable state is on the disk only; blocking calls run in threads of its own."""

    def __init__(self, directory: Path, min_free_bytes: int) -> None:
        self.directory = directory
        self._min_free_bytes = min_free_bytes
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="artifacts")

    def __repr__(self) -> str:
        return f"Disk({str(self.directory)!r})"

    async def prepare(self) -> None:
        """Makes the directory and removes what dead servers left half-written. Raises HostNotReady."""

        def prepare() -> None:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sweep(self.directory)

        try:
            await self.run(prepare)
        except StoreFailed as error:
            raise HostNotReady(f"the artifact directory {self.directory}: {error.__cause__}") from error

    async def begin_as(self, artifact_id: str, name: str, content_type: str) -> Upload:
        """Opens a new artifact under an id from `new_id`."""
        return _DiskUpload(self, _Draft(self.directory, artifact_id, name, content_type))

    def find(self, artifact_id: str) -> StoredArtifact:
        """What is known about an artifact. Raises NotFound, StoreFailed."""
        try:
            entry = json.loads(self._entry_file(artifact_id).read_bytes())
            return StoredArtifact(id=artifact_id, **entry)
        except FileNotFoundError as error:
            raise NotFound("artifact", artifact_id) from error
        except (OSError, ValueError, TypeError) as error:
            raise StoreFailed(f"the entry of artifact {artifact_id} on the disk cannot be read: {error}") from error

    def committed_at(self, artifact_id: str) -> float:
        """When it was committed, in seconds since the epoch. Raises NotFound."""
        try:
            return self._entry_file(artifact_id).stat().st_mtime
        except OSError as error:
            raise NotFound("artifact", artifact_id) from error

    def open_file(self, artifact_id: str) -> tuple[StoredArtifact, int]:
        """The artifact and a file descriptor of its bytes, which the caller closes. Raises NotFound, StoreFailed."""
        artifact = self.find(artifact_id)
        try:
            return artifact, os.open(self.directory / artifact_id, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NotFound("artifact", artifact_id) from error
        except OSError as error:
            raise _failed(error) from error

    async def open(self, artifact_id: str) -> tuple[StoredArtifact, AsyncIterator[bytes]]:
        """As ArtifactStore. The file is opened with the first piece, so an iterator that nobody uses leaks nothing."""
        artifact = await self.run(self.find, artifact_id)
        return artifact, self._pieces(artifact)

    async def read(self, fd: int, count: int, offset: int) -> bytes:
        """At most `count` bytes of an open file. Raises StoreFailed when the file is shorter than it was."""
        piece = await self.run(os.pread, fd, min(count, PIECE_BYTES), offset)
        if not piece:
            raise StoreFailed("an artifact on the disk is shorter than it was when it was stored")
        return piece

    async def delete(self, artifact_id: str) -> None:
        """Raises NotFound, StoreFailed."""
        await self.run(self.find, artifact_id)
        await self.run(self.remove, artifact_id)

    def remove(self, artifact_id: str) -> None:
        """Removes both files; the entry first, so that half never looks like a whole one. Raises StoreFailed."""
        try:
            self._entry_file(artifact_id).unlink(missing_ok=True)
            (self.directory / artifact_id).unlink(missing_ok=True)
        except OSError as error:
            raise _failed(error) from error

    def set_aside(self, artifact_id: str) -> Path:
        """Keeps the files of a damaged artifact for people, as none that exists. Raises StoreFailed."""
        aside = self.directory / f"{artifact_id}.damaged"
        try:
            self._entry_file(artifact_id).rename(f"{aside}{_ENTRY}")
            (self.directory / artifact_id).rename(aside)
        except OSError as error:
            raise _failed(error) from error
        return aside

    def listing(self) -> list[tuple[float, str]]:
        """When each artifact here was committed, and its id; the oldest first. Raises StoreFailed."""
        found = []
        try:
            with os.scandir(self.directory) as entries:
                for entry in entries:
                    artifact_id = entry.name.removesuffix(_ENTRY)
                    if artifact_id != entry.name and _ID.fullmatch(artifact_id):
                        with suppress(FileNotFoundError):
                            found.append((entry.stat(follow_symlinks=False).st_mtime, artifact_id))
        except OSError as error:
            raise _failed(error) from error
        return sorted(found)

    @contextmanager
    def claim(self, artifact_id: str) -> Iterator[bool]:
        """Holds the lock of an artifact; gives False when another server (or task) has it, or when it is gone."""
        try:
            fd = os.open(self.directory / artifact_id, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            yield False
            return
        try:
            yield _lock(fd)
        finally:
            os.close(fd)

    def check(self) -> None:
        """Raises Overloaded when space or inodes run short, or nothing can be written."""
        try:
            free = os.statvfs(self.directory)
        except OSError as error:
            raise Overloaded(f"the artifact directory cannot be used: {error.strerror}", _RETRY_AFTER) from error
        if free.f_flag & os.ST_RDONLY:
            raise Overloaded("the disk for artifacts is read-only", _RETRY_AFTER)
        if free.f_bavail * free.f_frsize < self._min_free_bytes:
            raise Overloaded("the disk for artifacts is almost full", _RETRY_AFTER)
        # File systems without an inode table report none at all.
        if free.f_files and free.f_favail < _MIN_FREE_INODES:
            raise Overloaded("the disk for artifacts has almost no inodes left", _RETRY_AFTER)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        """Runs blocking file work in a thread; OSError becomes StoreFailed."""

        def guarded() -> T:
            try:
                return function(*args)
            except OSError as error:
                raise _failed(error) from error

        return await asyncio.get_running_loop().run_in_executor(self._threads, guarded)

    async def aclose(self) -> None:
        """Waits for what is being written."""
        await asyncio.to_thread(self._threads.shutdown)

    def _entry_file(self, artifact_id: str) -> Path:
        if not _ID.fullmatch(artifact_id):
            raise NotFound("artifact", artifact_id)
        return self.directory / f"{artifact_id}{_ENTRY}"

    async def _pieces(self, artifact: StoredArtifact) -> AsyncIterator[bytes]:
        _, fd = self.open_file(artifact.id)
        try:
            offset = 0
            while offset < artifact.size_bytes:
                piece = await self.read(fd, artifact.size_bytes - offset, offset)
                offset += len(piece)
                yield piece
        finally:
            os.close(fd)


class _Draft:
    """An artifact being written, for threads. The lock makes `discard` wait for a write that its caller gave up on.

    Mutable state: what is held in memory, the hash, the open file if there is one, and whether it is over.
    """

    def __init__(self, directory: Path, artifact_id: str, name: str, content_type: str) -> None:
        self._path = directory / artifact_id
        self._id, self._name, self._content_type = artifact_id, name, content_type
        self._lock = threading.Lock()
        self._held = bytearray()
        self._hash = hashlib.sha256()
        self._size = 0
        self._fd = -1
        self._over = False

    def fits_in_memory(self, data: bytes) -> bool:
        return self._fd < 0 and len(self._held) + len(data) <= _HELD_BYTES

    def write(self, data: bytes) -> None:
        with self._lock:
            self._refuse_when_over()
            self._hash.update(data)
            self._size += len(data)
            if self.fits_in_memory(data):
                self._held += data
                return
            self._flush()
            _write_all(self._fd, data)

    def seal(self) -> StoredArtifact:
        """Makes the artifact exist: bytes and entry are on the disk before either has its name."""
        with self._lock:
            self._refuse_when_over()
            artifact = StoredArtifact(self._id, self._name, self._content_type, self._size, self._hash.hexdigest())
            entry = {field: getattr(artifact, field) for field in ("name", "content_type", "size_bytes", "sha256")}
            self._flush()
            os.fsync(self._fd)
            fd = _create(self._part(_ENTRY))
            try:
                _write_all(fd, json.dumps(entry).encode())
                os.fsync(fd)
            finally:
                os.close(fd)
            self._part().rename(self._path)
            self._part(_ENTRY).rename(self._path.with_suffix(_ENTRY))
            _fsync_directory(self._path.parent)
            self._close()
            return artifact

    def discard(self) -> None:
        """Removes every trace, also of an artifact that was sealed while its caller gave up."""
        with self._lock:
            self._close()
            self._held.clear()
            for path in (self._path.with_suffix(_ENTRY), self._path, self._part(), self._part(_ENTRY)):
                with suppress(OSError):
                    path.unlink()

    def _part(self, extension: str = "") -> Path:
        return self._path.with_name(f"{self._id}{extension}{_PART}")

    def _flush(self) -> None:
        if self._fd < 0:
            self._fd = _create(self._part())
        _write_all(self._fd, self._held)
        self._held.clear()

    def _close(self) -> None:
        self._over = True
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _refuse_when_over(self) -> None:
        if self._over:
            raise StoreFailed("this upload is over")


class _DiskUpload(Upload):
    """A draft for the event loop: what touches the disk runs in a thread, and any failure removes the draft."""

    def __init__(self, disk: Disk, draft: _Draft) -> None:
        self._disk = disk
        self._draft = draft
        self._committed = False

    async def write(self, data: bytes) -> None:
        if self._draft.fits_in_memory(data):
            self._draft.write(data)
            return
        try:
            await self._disk.run(self._draft.write, data)
        except StoreFailed:
            await self.abort()
            raise

    async def commit(self) -> StoredArtifact:
        try:
            artifact = await self._disk.run(self._draft.seal)
        except StoreFailed:
            await self.abort()
            raise
        self._committed = True
        return artifact

    async def abort(self) -> None:
        if not self._committed:
            # Shielded: a thread that has not begun would be cancelled with its caller.
            await asyncio.shield(self._disk.run(self._draft.discard))


def _create(path: Path) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    _lock(fd)
    return fd


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write_all(fd: int, data: bytes | bytearray) -> None:
    # Views are released on the way out: while one lives, for example in a traceback, a bytearray cannot be cleared.
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            with view[written:] as rest:
                written += os.write(fd, rest)


def _fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _sweep(directory: Path) -> None:
    for file in directory.iterdir():
        is_half = _ID.fullmatch(file.name) and not file.with_suffix(_ENTRY).exists()
        if file.suffix != _PART and not is_half:
            continue
        # On a read-only disk the server starts, says so in `check`, and recovers by itself.
        with suppress(OSError):
            fd = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                # The entry may have come since; a rename happens under the lock.
                if _lock(fd) and not file.with_suffix(_ENTRY).exists():
                    file.unlink()
            finally:
                os.close(fd)


def _failed(error: OSError) -> StoreFailed:
    return StoreFailed(f"the disk for artifacts: {error.strerror}")
