"""A folder of built files: `<name>-<digest>.erofs`, and `<name>.json`, the manifest that says which is current."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

SUPERSEDED_KEPT = 3600.0
"""Seconds that a file stays after another took its place: a starting server may have read the old manifest."""


class Published(Protocol):
    """A dataclass that names the file it describes, and can be told as JSON."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def file(self) -> str:
        """Name of the file, in the same folder."""


P = TypeVar("P", bound=Published)


def read(kind: type[P], path: Path) -> P | None:
    """A manifest, or None when there is none that can be read."""
    try:
        return kind(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def publish(folder: Path, name: str, fresh: Path, manifest: Published) -> None:
    """Puts file and manifest in place, the file first; who reads in between sees the old pair. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    before = _named(folder / f"{name}.json")
    if before:
        with contextlib.suppress(OSError):
            os.utime(folder / before)  # from now on it is superseded
    with fresh.open("rb") as file:
        os.fsync(file.fileno())
    fresh.chmod(0o644)
    os.replace(fresh, folder / manifest.file)
    beside = folder / f".{name}.json.new"
    beside.write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    os.replace(beside, folder / f"{name}.json")


def remove_superseded(folder: Path) -> None:
    """Removes files that no manifest names, unless they are young or some server holds them."""
    current = {_named(path) for path in folder.glob("*.json")}
    for path in folder.glob("*.erofs"):
        if path.name in current or path.stat().st_mtime > time.time() - SUPERSEDED_KEPT:
            continue
        with path.open("rb") as file, contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _named(manifest: Path) -> str:
    """The file that a manifest names; empty when it cannot be read."""
    try:
        return str(json.loads(manifest.read_text())["file"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
