"""What a job may use: one disk of its size, and the limits that the kernel of the sandbox keeps for each process."""

from __future__ import annotations

import ctypes
import os
import resource

from files import USER, become

DISK = "/mnt"
MOUNTS = (("home", "/home/user"), ("tmp", "/tmp"), ("code", "/code"))  # noqa: S108  of the sandbox
"""Folders of the one sized tmpfs, and where they are seen: one budget for all that user code writes."""
DEPENDENCIES = "/deps"
"""Where the layer of requested packages is mounted, when there is one."""
MS_NOSUID, MS_NODEV, MS_BIND, MNT_DETACH = 2, 4, 4096, 2

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """Attaches a file system to a folder. Raises OSError."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {target}: {os.strerror(code)}")


class Disk:
    """The disk, in the size that was wanted last, so that only another size costs time."""

    def __init__(self) -> None:
        self._size = 0

    def fit(self, size: int) -> None:
        """Makes it `size` bytes large; it is empty then. Raises OSError."""
        if self._size == size:
            return
        if self._size:
            drop_disk()
            self._size = 0
        prepare_disk(size)
        self._size = size


def drop_disk() -> None:
    """Takes the disk away again; nothing was written to it yet."""
    for target in (*(target for _, target in MOUNTS), DISK):
        if _libc.umount2(target.encode(), MNT_DETACH) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"umount {target}: {os.strerror(code)}")


def prepare_disk(size: int) -> None:
    """One tmpfs of `size` bytes behind home, /tmp and /code."""
    mount("tmpfs", DISK, "tmpfs", MS_NOSUID | MS_NODEV, f"size={size},mode=0777")
    become(USER)
    os.mkdir(f"{DISK}/home", 0o755)
    become(0)
    os.mkdir(f"{DISK}/tmp")  # noqa: S108  of the sandbox
    os.chmod(f"{DISK}/tmp", 0o1777)  # noqa: S103, S108  as every /tmp is
    os.mkdir(f"{DISK}/code", 0o755)
    if os.path.isdir(f"{DEPENDENCIES}/node_modules"):  # where Node looks first
        os.symlink(f"{DEPENDENCIES}/node_modules", f"{DISK}/code/node_modules")
    os.chmod(DISK, 0o700)
    for name, target in MOUNTS:
        mount(f"{DISK}/{name}", target, "none", MS_BIND, "")


def limit(pid: int, processes: int, open_files: int) -> None:
    """Sets the limits that the kernel keeps for each process; children of the worker inherit them.

    Works once: gVisor lets nobody raise a hard limit of another process again.
    """
    for what, value in (
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.prlimit(pid, what, (value, value))
