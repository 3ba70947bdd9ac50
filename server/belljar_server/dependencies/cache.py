"""What is kept on disk: layers by the hash of all that made them, and what the text of a request was resolved to.

Several servers may share the folder: files appear whole by rename, one that is used is held by a lock on it, and
whoever makes room removes only what nobody holds, the least recently used first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

STALE_DRAFT = 3600.0
"""Seconds after which a file that was not finished is one that nobody writes any more."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A layer on disk."""

    key: str
    path: Path
    digest: str
    """SHA-256 of the file when it was written: what snapshots are bound to."""
    lock: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """What the text of a request was resolved to."""

    lock: str
    at: float
    """Seconds since the epoch."""


def fingerprint(*parts: object) -> str:
    """A hash of plain data."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


class LayerCache:
    """The folder. Its state is on disk only."""

    def __init__(self, directory: Path, budget: int) -> None:
        self._layers = directory / "layers"
        self._resolved = directory / "resolved"
        self._budget = budget

    def open(self) -> None:
        """Makes the folders, and removes what a killed server left. Raises OSError."""
        for folder in (self._layers, self._resolved):
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(".*"):
                with contextlib.suppress(OSError):
                    if left.stat().st_mtime < time.time() - STALE_DRAFT:
                        left.unlink()

    def resolved(self, request: str) -> Resolved | None:
        """What a request was resolved to, however long ago."""
        try:
            entry = json.loads((self._resolved / f"{request}.json").read_text())
            return Resolved(str(entry["lock"]), float(entry["at"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def resolve(self, request: str, lock: str) -> None:
        """Notes what a request was resolved to. Raises OSError."""
        self._replace(self._resolved / f"{request}.json", json.dumps({"lock": lock, "at": time.time()}))

    def find(self, key: str) -> Kept | None:
        """A layer, if it is there."""
        path = self._layers / f"{key}.erofs"
        try:
            entry = json.loads((self._layers / f"{key}.json").read_text())
            os.utime(path)
            return Kept(key, path, str(entry["digest"]), str(entry["lock"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def draft(self) -> Path:
        """A name for a file that is being written."""
        return self._layers / f".{os.getpid()}-{time.monotonic_ns()}"

    def publish(self, key: str, draft: Path, digest: str, lock: str) -> Kept:
        """Puts a finished layer in its place. Raises OSError."""
        path = self._layers / f"{key}.erofs"
        os.replace(draft, path)
        self._replace(self._layers / f"{key}.json", json.dumps({"digest": digest, "lock": lock}))
        return Kept(key, path, digest, lock)

    @contextlib.contextmanager
    def in_use(self, kept: Kept) -> Iterator[None]:
        """Keeps a layer from being removed. Raises OSError when it was already."""
        with kept.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            yield

    def used_bytes(self) -> int:
        """What all layers take."""
        return sum(size for _, size, _ in self._by_age())

    def make_room(self, budget: int | None = None) -> int:
        """Removes the layers that were not used for longest until the rest fits; returns how many."""
        entries = self._by_age()
        used = sum(size for _, size, _ in entries)
        removed = 0
        for _, size, path in entries:
            if used <= (self._budget if budget is None else budget):
                break
            if self._remove(path):
                used -= size
                removed += 1
        return removed

    def everything(self) -> list[tuple[str, int, float, str]]:
        """Key, bytes, time of last use and lock of every layer, the latest used first."""
        found = []
        for used, size, path in reversed(self._by_age()):
            with contextlib.suppress(OSError, ValueError, KeyError):
                lock = str(json.loads(path.with_suffix(".json").read_text())["lock"])
                found.append((path.stem, size, used, lock))
        return found

    def _by_age(self) -> list[tuple[float, int, Path]]:
        entries = []
        for path in self._layers.glob("*.erofs"):
            with contextlib.suppress(OSError):
                info = path.stat()
                entries.append((info.st_mtime, info.st_size, path))
        return sorted(entries)

    @staticmethod
    def _remove(path: Path) -> bool:
        try:
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                path.with_suffix(".json").unlink(missing_ok=True)
        except OSError:  # held, or gone
            return False
        return True

    @staticmethod
    def _replace(path: Path, content: str) -> None:
        draft = path.with_name(f".{path.name}-{os.getpid()}-{time.monotonic_ns()}")
        draft.write_text(content)
        os.replace(draft, path)
