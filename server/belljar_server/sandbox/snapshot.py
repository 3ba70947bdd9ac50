"""Snapshots: a sandbox of an environment, warmed up and written to disk, from which others are restored.

A snapshot is bound to everything that it was made with; its key is a hash over all of that, so a change of any part
makes another snapshot instead of a restore that fails. It is written beside its place and renamed when whole; its
files are verified by hash once, then by size and time before each use, so that a damaged one is never restored and
always rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import structlog

from belljar_server.errors import SandboxFailed
from belljar_server.sandbox.cgroup import Tree
from belljar_server.sandbox.runsc import Launcher, describe
from belljar_server.sandbox.sandbox import RunscSandbox, Start
from belljar_server.sandbox.spec import oci_spec

log = structlog.get_logger()

FORMAT = 1
"""Changes when the meaning of a snapshot's files changes."""
MANIFEST = "manifest.json"
Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A verified snapshot on disk."""

    directory: Path
    stamp: Stamp
    """Name, size, inode and change time of its files when they were verified."""

    def is_unchanged(self) -> bool:
        """Whether the files are still those that were verified."""
        try:
            return stamp(self.directory) == self.stamp
        except OSError:
            return False


def stamp(directory: Path) -> Stamp:
    """What changes when a file is written or replaced. Raises OSError."""
    found = []
    for entry in sorted(os.scandir(directory), key=lambda item: item.name):
        info = entry.stat()
        found.append((entry.name, info.st_size, info.st_ino, info.st_ctime_ns))
    return tuple(found)


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
    """The snapshots of this host. Mutable state: none but the disk."""

    def __init__(self, directory: Path, launcher: Launcher, tree: Tree) -> None:
        self._directory = directory
        self._launcher = launcher
        self._tree = tree

    def key(self, start: Start) -> str:
        """What the snapshot of an environment is bound to. Raises SandboxFailed."""
        parts = [
            FORMAT,
            start.environment.digest,
            oci_spec(start.environment, warm=True),
            start.runsc.flags,
            start.runsc.identity(),
            cpu_features(),
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def find(self, start: Start) -> Snapshot | None:
        """The snapshot of an environment if there is one and every byte of it is right. Raises SandboxFailed."""
        directory = self._directory / f"{start.environment.runtime.name}-{self.key(start)}"
        try:
            manifest = json.loads((directory / MANIFEST).read_text())
            before = stamp(directory)
            names = {name for name, *_ in before} - {MANIFEST}
            if names == set(manifest) and all(digest(directory / name) == manifest[name] for name in names):
                return Snapshot(directory, before)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.error("snapshot cannot be read", snapshot=directory.name, error=str(error))  # noqa: TRY400  expected
            return None
        log.error("snapshot is damaged", snapshot=directory.name)
        return None

    async def build(self, start: Start) -> Snapshot:
        """Boots a sandbox, lets it warm up, writes the snapshot. Raises SandboxFailed; then nothing is left of it."""
        name = start.environment.runtime.name
        key = self.key(start)
        draft = self._directory / f".draft-{secrets.token_hex(6)}"
        began = time.monotonic()
        try:
            draft.mkdir(parents=True, mode=0o700)
            sandbox = await RunscSandbox.start(start, self._launcher, self._tree, background=True)
            try:
                await self._checkpoint(start, sandbox, draft)
            finally:
                await sandbox.destroy()
            files = [entry.name for entry in os.scandir(draft)]
            (draft / MANIFEST).write_text(json.dumps({file: digest(draft / file) for file in files}))
            for file in (*files, MANIFEST):
                _fsync(draft / file)
            final = self._directory / f"{name}-{key}"
            shutil.rmtree(final, ignore_errors=True)
            draft.rename(final)
            _fsync(self._directory)
        except OSError as error:
            raise SandboxFailed(f"the snapshot of {name} cannot be written: {error}") from error
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        self._remove_others(name, final)
        snapshot = Snapshot(final, stamp(final))
        log.info("snapshot built", runtime=name, seconds=round(time.monotonic() - began, 1), key=key)
        return snapshot

    async def _checkpoint(self, start: Start, sandbox: RunscSandbox, draft: Path) -> None:
        argv = start.runsc.checkpoint(sandbox.id, draft)
        errors = draft / "errors"
        null = os.open("/dev/null", os.O_RDWR)
        out = os.open(errors, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            process = await self._launcher.start(f"{sandbox.id}-checkpoint", argv, [], (null, out, out))
            status = await process.wait()
        finally:
            os.close(null)
            os.close(out)
        said = errors.read_text(errors="replace")[-2000:]
        errors.unlink()
        if status != 0:
            raise SandboxFailed(f"runsc checkpoint: {describe(status)}: {said}")
        await sandbox.ended()

    def _remove_others(self, name: str, kept: Path) -> None:
        """Snapshots of this runtime with another key: nothing restores from them any more."""
        for other in self._directory.glob(f"{name}-*"):
            if other != kept:
                shutil.rmtree(other, ignore_errors=True)


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
