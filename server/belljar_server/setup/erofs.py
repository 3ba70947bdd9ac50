"""Making an EROFS image out of a tree: the same tree gives the same bytes, whenever and wherever it is made."""

from __future__ import annotations

import hashlib
import os
import stat
import uuid
from pathlib import Path

from belljar_server.setup.commands import run

TIMESTAMP = 1_700_000_000
"""The time of every file in an image: any fixed one, not 0, which some programs take for no time."""
NAMESPACE = uuid.UUID("8f2b0c53-5d0e-4f0a-9c77-6d2e6f1c1b10")


def seal(root: Path) -> None:
    """Takes away what user code could use against the sandbox and what depends on the builder's umask.

    No setuid and setgid bit, nothing that others can write but folders with the sticky bit, no device, pipe or socket.
    """
    for folder, names, files in os.walk(root):
        for name in [*names, *files]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                continue
            if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
                path.unlink()
                continue
            path.chmod(_sealed(mode))
    root.chmod(0o755)


def _sealed(mode: int) -> int:
    if stat.S_ISDIR(mode):
        return 0o1777 if mode & stat.S_ISVTX else 0o755
    return 0o755 if mode & 0o111 else 0o644


def tree_hash(root: Path) -> str:
    """SHA-256 over paths, kinds, modes, link targets and contents of a sealed tree, in hex; not owners, not times."""
    digest = hashlib.sha256()
    for folder, names, files in os.walk(root):
        names.sort()
        for name in sorted([*names, *files]):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                content = os.readlink(path).encode("utf-8", "surrogateescape")
            elif stat.S_ISDIR(mode):
                content = b""
            else:
                with path.open("rb") as file:
                    content = hashlib.file_digest(file, "sha256").digest()
            shown = str(path.relative_to(root)).encode("utf-8", "surrogateescape")
            digest.update(b"%d:%s %o %d:%s\n" % (len(shown), shown, mode, len(content), content))
    return digest.hexdigest()


def make(root: Path, target: Path) -> str:
    """Writes the image of a sealed tree and returns its SHA-256 in hex. Raises HostNotReady.

    `noinline_data`, because gVisor refuses inline data ("bad address"). The UUID comes from the tree's hash: snapshots
    are bound to it, so they fit every image of the same content and no other.
    """
    identity = uuid.uuid5(NAMESPACE, tree_hash(root))
    same_bytes = ["-x-1", f"-T{TIMESTAMP}", f"-U{identity}", "--all-root"]
    run(["mkfs.erofs", "--quiet", "-E", "noinline_data", *same_bytes, target, root])
    with target.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
