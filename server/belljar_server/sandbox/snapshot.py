"""Snapshots: a sandbox of an environment, warmed up and written to disk, from which others are restored.

A snapshot is bound to everything that it was made with; its key is a hash over all of that, so a change of any part
makes another snapshot instead of a restore that fails. It is written beside its place and renamed when whole; its
files are verified by hash once, then by size and time before each use, so that a damaged one is never restored and
always rebuilt.

An environment can have several, told apart by number: what a process cannot renew (CPython's hash seed) is then not
the same in all copies. Several servers can share the directory: one builds at a time, and nobody removes what another
one holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from belljar_server.errors import SandboxFailed
from belljar_server.sandbox.cgroup import Tree
from belljar_server.sandbox.runsc import Launcher, describe
from belljar_server.sandbox.sandbox import RunscSandbox
from belljar_server.sandbox.spec import oci_spec
from belljar_server.sandbox.start import Start

log = structlog.get_logger()

FORMAT = 2
"""Changes when the meaning of a snapshot's files changes."""
MANIFEST = "manifest.json"
DRAFT = ".draft-"
LOCK = ".lock"
LOCK_PAUSE = 0.05
"""Seconds between two looks whether another server has finished building."""
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A verified snapshot on disk."""

    directory: Path
    stamp: Stamp
    """Name, size, inode and change time of its files when they were verified."""
    runsc: Path
    runsc_stamp: Stamp
    """The same of the binary that it is bound to."""

    def is_unchanged(self) -> bool:
        """Whether the files are still those that were verified, and runsc the one that they are for."""
        try:
            return stamp(self.directory) == self.stamp and stamp_file(self.runsc) == self.runsc_stamp
        except OSError:
            return False


def stamp(directory: Path) -> Stamp:
    """What changes when a file is written or replaced. Raises OSError."""
    return tuple(item for entry in sorted(directory.iterdir()) for item in stamp_file(entry))


def stamp_file(file: Path) -> Stamp:
    """The same of one file. Raises OSError."""
    info = file.stat()
    return ((file.name, info.st_size, info.st_ino, info.st_ctime_ns),)


def cpu_features() -> str:
    """What of the CPU a snapshot depends on: gVisor refuses to restore where a feature is missing."""
    wanted = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
    found: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() in wanted:
            found.setdefault(name.strip(), value.strip())
    return json.dumps([platform.machine(), found], sort_keys=True)


class Snapshots:
    """The snapshots of this host.

    Mutable state: the disk, locks on those in use by directory, names of environments whose imports failed, and what
    runsc is.
    """

    def __init__(self, directory: Path, launcher: Launcher, tree: Tree) -> None:
        self._directory = directory
        self._launcher = launcher
        self._tree = tree
        self._held: dict[Path, int] = {}
        self._refused: set[str] = set()
        self._identities: dict[Stamp, str] = {}
        self._asking = threading.Lock()

    def close(self) -> None:
        """Lets others remove what this server held."""
        while self._held:
            os.close(self._held.popitem()[1])

    def key(self, start: Start) -> str:
        """What the snapshots of an environment are bound to. Raises SandboxFailed."""
        parts = [
            FORMAT,
            start.environment.digest,
            [layer.digest for layer in start.environment.layers],
            oci_spec(start.environment, warm=True),
            start.runsc.flags,
            self._identity(start),
            cpu_features(),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def find(self, start: Start, number: int = 0) -> Snapshot | None:
        """A snapshot of an environment if there is one and every byte of it is right. Raises SandboxFailed."""
        runsc_stamp = self._runsc_stamp(start)
        directory = self._place(start, self.key(start), number)
        try:
            manifest = json.loads((directory / MANIFEST).read_text())
            before = stamp(directory)
            names = {name for name, *_ in before} - {MANIFEST}
            if names == set(manifest) and all(digest(directory / name) == manifest[name] for name in names):
                self._hold(directory)
                return Snapshot(directory, before, start.runsc.binary, runsc_stamp)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.error("snapshot cannot be read", snapshot=directory.name, error=str(error))  # noqa: TRY400  expected
            return None
        log.error("snapshot is damaged", snapshot=directory.name)
        return None

    async def build(self, start: Start, number: int = 0, doubted: Snapshot | None = None) -> Snapshot:
        """Boots a sandbox, lets it warm up, and writes the snapshot. Raises SandboxFailed; then nothing is left of it.

        Takes what another server has built meanwhile, unless that is the one that is doubted.
        """
        name = start.environment.name
        try:
            async with self._alone():
                found = await asyncio.to_thread(self.find, start, number)
                if found and found != doubted:
                    return found
                if name in self._refused:
                    raise SandboxFailed("it was tried before")
                return await self._build(start, number)
        except SandboxFailed:
            if start.environment.imports:
                self._refused.add(name)
            raise
        except OSError as error:
            raise SandboxFailed(f"the snapshot of {name} cannot be written: {error}") from error

    async def _build(self, start: Start, number: int) -> Snapshot:
        """Raises SandboxFailed, OSError."""
        runsc_stamp = self._runsc_stamp(start)
        key = await asyncio.to_thread(self.key, start)
        final = self._place(start, key, number)
        draft = self._directory / f"{DRAFT}{secrets.token_hex(6)}"
        began = time.monotonic()
        draft.mkdir(mode=0o700)
        try:
            sandbox = await RunscSandbox.start(start, self._launcher, self._tree, background=True)
            try:
                await self._checkpoint(start, sandbox, draft)
            finally:
                await sandbox.destroy()
            await asyncio.to_thread(_seal, draft)
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
            _fsync(self._directory)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._hold(final)
        self._remove_others(start.environment.name, key)
        log.info("snapshot built", snapshot=final.name, seconds=round(time.monotonic() - began, 1))
        return Snapshot(final, stamp(final), start.runsc.binary, runsc_stamp)

    def _place(self, start: Start, key: str, number: int) -> Path:
        return self._directory / f"{start.environment.name}-{key}-{number}"

    def _identity(self, start: Start) -> str:
        """Asked once for all snapshots: pools that look for theirs at the same time would start dozens of runsc."""
        with self._asking:
            stamp = self._runsc_stamp(start)
            if stamp not in self._identities:
                self._identities[stamp] = start.runsc.identity()
            return self._identities[stamp]

    @staticmethod
    def _runsc_stamp(start: Start) -> Stamp:
        try:
            return stamp_file(start.runsc.binary)
        except OSError as error:
            raise SandboxFailed(f"runsc {start.runsc.binary}: {error}") from error

    @contextlib.asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """While no other server builds in this directory. What one has left that was killed goes. Raises OSError."""
        self._directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(self._directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not _try_lock(lock):
                await asyncio.sleep(LOCK_PAUSE)
            for left in self._directory.glob(f"{DRAFT}*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            os.close(lock)

    def _hold(self, directory: Path) -> None:
        """Keeps other servers from removing a snapshot that they have no use for. Raises OSError."""
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_SH)
        before = self._held.pop(directory, None)
        if before is not None:
            os.close(before)
        self._held[directory] = fd

    def forget(self, name: str = "*-" + "[0-9a-f]" * 16) -> None:
        """Removes the snapshots of an environment, or of all with requested packages, that no other server uses."""
        self._refused.discard(name)
        for place in self._directory.glob(f"{name}-{'[0-9a-f]' * 24}-*"):
            self._remove(place)

    async def _checkpoint(self, start: Start, sandbox: RunscSandbox, draft: Path) -> None:
        argv = start.runsc.checkpoint(sandbox.id, draft)
        errors = draft / "errors"
        null = os.open("/dev/null", os.O_RDWR)
        out = os.open(errors, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            async with asyncio.timeout(start.timeout):
                process = await self._launcher.start(f"{sandbox.id}-checkpoint", argv, [], (null, out, out))
                status = await process.wait()
        except TimeoutError:
            raise SandboxFailed(f"runsc checkpoint did not end within {start.timeout:g} s") from None
        finally:
            os.close(null)
            os.close(out)
        said = errors.read_text(errors="replace")[-2000:]
        errors.unlink()
        if status != 0:
            raise SandboxFailed(f"runsc checkpoint: {describe(status)}: {said}")
        await sandbox.ended()

    def _remove_others(self, name: str, key: str) -> None:
        """Snapshots of this environment with another key, unless another server uses them."""
        for other in self._directory.glob(f"{name}-*"):
            if other.name.startswith(f"{name}-{key}-") or not re.fullmatch(
                r"[0-9a-f]{24}(-[0-9]+)?", other.name[len(name) + 1 :]
            ):
                continue
            self._remove(other)

    def _remove(self, place: Path) -> None:
        held = self._held.pop(place, None)
        if held is not None:
            os.close(held)
        with contextlib.suppress(OSError):
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if _try_lock(fd):
                    shutil.rmtree(place, ignore_errors=True)
            finally:
                os.close(fd)


def _seal(draft: Path) -> None:
    """Writes down what the files of a new snapshot are, and all of it to the disk. Raises OSError."""
    files = [entry.name for entry in os.scandir(draft)]
    (draft / MANIFEST).write_text(json.dumps({file: digest(draft / file) for file in files}))
    for file in (*files, MANIFEST):
        _fsync(draft / file)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def digest(file: Path) -> str:
    """SHA-256 of a file. Raises OSError."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
