"""The place of one running server on its host, and the sweep of what dead ones left.

Every server works in a directory of its own below `runtime_dir` and holds a lock in it. A directory whose lock is
free belonged to a server that is dead: its sandboxes, cgroups and files go, and the executions it had accepted are
told as lost, to the log and to clients that repeat their request. So several servers can share a host, and a restart
after SIGKILL needs nobody's help.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

import structlog

from belljar_server.errors import HostNotReady
from belljar_server.models import Accepted
from belljar_server.sandbox import cgroup

log = structlog.get_logger()

LARGEST_NOTE = 1024
"""Bytes of a note: a request_id of 128 characters and a fingerprint take a quarter."""
LONGEST_PATH = 60
"""Bytes that runtime_dir may have: runsc makes sockets below it, and their paths are limited to 108 bytes (unix(7))."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a dead server had left."""

    instance: str
    sandboxes: int
    lost: tuple[Accepted, ...]


class Instance:
    """The directory of this server. Mutable state: the lock it holds, and the executions noted in it."""

    def __init__(self, directory: Path, tree: cgroup.Tree, lock: int) -> None:
        self.directory = directory
        self.tree = tree
        self._lock = lock
        self._executions = directory / "executions"

    @property
    def runsc_root(self) -> Path:
        """Where runsc keeps its state."""
        return self.directory / "runsc"

    def bundle(self, runtime: str) -> Path:
        """Where the OCI bundle of a runtime goes."""
        return self.directory / "bundles" / runtime

    def accepted(self, accepted: Accepted) -> None:
        """Notes an execution, so that the next server can tell it as lost when this one is killed."""
        note = json.dumps({"request_id": accepted.request_id, "fingerprint": accepted.fingerprint.hex()})
        with contextlib.suppress(OSError):  # on a full disk the execution still runs; only the note is missing
            (self._executions / accepted.execution_id).write_text(note)

    def ended(self, execution_id: str) -> None:
        """Removes the note: the execution has its terminal event."""
        with contextlib.suppress(OSError):  # at worst the next server tells it as lost
            os.unlink(self._executions / execution_id)

    async def close(self) -> None:
        """Removes everything of this server."""
        await self.tree.sweep()
        shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)


def claim(runtime_dir: Path, cgroup_parent: str) -> Instance:
    """Makes the directory and the cgroup parents of a new server. Raises HostNotReady."""
    if len(os.fsencode(runtime_dir)) > LONGEST_PATH:
        raise HostNotReady(
            f"runtime_dir {runtime_dir} is longer than {LONGEST_PATH} bytes; socket paths below it would not fit"
        )
    name = secrets.token_hex(4)
    directory = runtime_dir / name
    try:
        directory.mkdir(parents=True, mode=0o700)
        lock = os.open(directory / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for part in ("runsc", "bundles", "executions"):
            (directory / part).mkdir()
    except OSError as error:
        raise HostNotReady(
            f"runtime_dir {error.filename}: {error.strerror}; the service needs root and a writable /run"
        ) from error
    tree = cgroup.find_tree(cgroup_parent, name)
    (directory / "cgroups.json").write_text(json.dumps(tree.record()))
    return Instance(directory, tree, lock)


async def sweep(runtime_dir: Path) -> list[Swept]:
    """Ends and removes what servers left that are dead. Raises SandboxFailed when a process does not die."""
    swept = []
    for directory in sorted(runtime_dir.iterdir()) if runtime_dir.is_dir() else []:
        try:
            lock = os.open(directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            swept.append(await _sweep_one(directory))
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
    return swept


async def _sweep_one(directory: Path) -> Swept:
    sandboxes = 0
    with contextlib.suppress(OSError, ValueError):  # killed before it was written: then there was no sandbox either
        sandboxes = await cgroup.Tree.recorded(json.loads((directory / "cgroups.json").read_text())).sweep()
    lost: tuple[Accepted, ...] = ()
    with contextlib.suppress(OSError):
        lost = tuple(map(_read_note, sorted((directory / "executions").iterdir())))
    shutil.rmtree(directory, ignore_errors=True)
    return Swept(directory.name, sandboxes, lost)


def _read_note(path: Path) -> Accepted:
    """What was noted; of a note that cannot be read, at least whose it is."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_NOTE + 1)
        if len(text) > LARGEST_NOTE:
            raise ValueError(f"more than {LARGEST_NOTE} bytes")
        note = json.loads(text)
        return Accepted(path.name, str(note["request_id"]), bytes.fromhex(note["fingerprint"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("the note of a lost execution cannot be read", execution_id=path.name, error=str(error))
        return Accepted(path.name)
