"""What was fetched before, kept by the hash of its inputs: a changed worker costs seconds and no download."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

KEPT = 30 * 86400
"""Seconds after its last use that an entry is kept."""


class Cache:
    """A folder of files named by kind and key. Its state is on disk only; callers hold the set-up lock."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, kind: str, inputs: object, make: Callable[[Path], None]) -> Path:
        """The file for these inputs (anything that JSON can hold); `make` writes it when it is not there."""
        path = self._folder / f"{kind}-{fingerprint(inputs)[:16]}"
        if not path.exists():
            fresh = path.with_name(f".{path.name}.new")
            fresh.unlink(missing_ok=True)
            make(fresh)
            os.replace(fresh, path)
        os.utime(path)
        return path

    def prune(self) -> None:
        """Removes what was not used for a month, and what a killed set-up left."""
        oldest = time.time() - KEPT
        for path in self._folder.iterdir():
            if path.name.startswith(".") or path.stat().st_mtime < oldest:
                path.unlink()


def fingerprint(inputs: object) -> str:
    """A hash of plain data: the same for equal data, in hex."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
