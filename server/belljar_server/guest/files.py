"""Files into the sandbox before user code runs, and what it made out of it afterwards, without following a link."""

from __future__ import annotations

import base64
import heapq
import os
import stat
from collections.abc import Iterator
from typing import Any

import framing
from host import Host

Identity = tuple[int, int, int, int]

HOME = b"/home/user"
USER = 1000
DEEPEST = 64
"""Folders below /home/user that are nested deeper are not walked."""
SKIPPED_NAMED = 20
"""So many of the files that were left out are named; the rest is counted."""


def become(uid: int) -> None:
    """Makes `uid` the owner of what is written next. Capabilities come back with uid 0."""
    os.seteuid(0)
    os.setegid(uid)
    os.seteuid(uid)


def write_file(host: Host, header: dict[str, Any]) -> Identity:
    """Writes one FILE and returns (device, inode, change time) by which a later change is noticed."""
    root, owner = ("/home/user", USER) if header["root"] == "home" else ("/code", 0)
    path = os.path.join(root, header["path"])
    become(owner)
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        try:
            left = header["size"]
            while left:
                kind, data = host.receive()
                if kind != framing.DATA or len(data) > left:
                    raise framing.BrokenFrame(f"expected {left} bytes of {path}")
                left -= len(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
            return identity(os.fstat(fd))
        finally:
            os.close(fd)
    finally:
        become(0)


def identity(info: os.stat_result) -> Identity:
    """What changes when a file is written or replaced, and cannot be set back by its owner."""
    return info.st_dev, info.st_ino, info.st_ctime_ns, info.st_size


def walk(folder: bytes, depth: int, skipped: Skipped) -> Iterator[tuple[int, bytes, int, Identity]]:
    """Regular files below `folder` as (change time, path, size, identity), without following links."""
    try:
        entries = os.scandir(folder)
    except OSError as error:
        skipped.add(folder, str(error.strerror))
        return
    with entries:
        for entry in entries:
            try:
                info = entry.stat(follow_symlinks=False)
            except OSError as error:  # the name of its folder may be nearly as long as a path can be
                skipped.add(entry.path, str(error.strerror))
                continue
            if stat.S_ISREG(info.st_mode):
                yield info.st_ctime_ns, entry.path, info.st_size, identity(info)
            elif not stat.S_ISDIR(info.st_mode):
                skipped.add(entry.path, "not a regular file")
            elif depth == DEEPEST:
                skipped.add(entry.path, f"nested deeper than {DEEPEST} folders")
            else:
                yield from walk(entry.path, depth + 1, skipped)


class Skipped:
    """What was left out: the first few by name, all by count."""

    def __init__(self) -> None:
        self.named: list[list[str]] = []
        self.count = 0

    def add(self, path: bytes, reason: str) -> None:
        """One file was left out."""
        self.count += 1
        if len(self.named) < SKIPPED_NAMED:
            self.named.append([encode_name(path), reason])


def encode_name(path: bytes) -> str:
    """The path below /home/user, as bytes that survive JSON."""
    return base64.b64encode(os.path.relpath(path, HOME)).decode()


def send_files(host: Host, known: set[Identity], count: int, size: int) -> None:
    """Streams the files that were created or changed, oldest change first, as far as count and size allow."""
    skipped = Skipped()
    seen = 0

    def changed() -> Iterator[tuple[int, bytes, int, Identity]]:
        nonlocal seen
        for item in walk(HOME, 0, skipped):
            if item[3] not in known:
                seen += 1
                yield item

    files = heapq.nsmallest(max(1, count), changed())[:count]  # of none it would not look at any
    skipped.count += seen - len(files)
    if seen > len(files):
        skipped.named.append(["", f"only {count} artifacts are allowed, there were {seen}"])
    buffer = memoryview(bytearray(framing.MAX_PAYLOAD if files else 0))
    for _, path, length, _ in files:
        if length > size:
            skipped.add(path, f"its {length} bytes are above what is left of the {'artifact_bytes'} limit")
            continue
        size -= length
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError as error:
            skipped.add(path, str(error.strerror))
            continue
        host.send(framing.ARTIFACT, {"name": encode_name(path), "size": length})
        left = length
        while left:
            got = os.readv(fd, [buffer[: min(left, len(buffer))]])
            if not got:
                break
            host.send_bytes(framing.DATA, buffer[:got])
            left -= got
        os.close(fd)
        host.send(framing.ARTIFACT_END, {"complete": left == 0})
    host.send(framing.END, {"skipped": skipped.named, "left_out": skipped.count})
