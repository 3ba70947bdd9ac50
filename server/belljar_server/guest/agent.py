"""PID 1 of every sandbox: prepares one execution, lets the worker run it, tells how it ended and hands out its files.

Trusted code of ours, as uid 0 with the few capabilities that `sandbox/spec.py` lists; the worker is uid 1000 and has
none, so it can neither signal nor trace nor read this process. Standard library only, since every image carries it.

The order of things, all on fd 0 with the framing of `framing.py`:

1. Start the worker, wait until it is warm, say READY. Nothing about the execution is known yet: a sandbox may be
   checkpointed here and restored many times.
2. PREPARE, FILE, DATA, JOB: size the disk, set the limits, write the files, hand the job to the worker.
3. Pass on what the worker reports; when it ends, kill all that user code left behind, so that nothing changes any more.
   A worker that has reported and is alone is stopped instead: freeing its memory would take longer than most code runs.
4. Tell the wait status, then stream every regular file that was created or changed in /home/user.

The other end of fd 0 going away ends this process, and PID 1 takes the whole sandbox along.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import errno
import heapq
import json
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any, NoReturn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import framing
import refusals

Identity = tuple[int, int, int, int]

HOME = b"/home/user"
USER = 1000
DISK = "/mnt"
MOUNTS = (("home", "/home/user"), ("tmp", "/tmp"), ("code", "/code"))  # noqa: S108  of the sandbox
"""Folders of the one sized tmpfs, and where they are seen: one budget for all that user code writes."""
UNUSED_DEVICES = ("/dev/fuse", "/dev/net/tun")
"""What gVisor puts into every /dev, for privileges that nobody here has."""
MS_NOSUID, MS_NODEV, MS_BIND, MNT_DETACH = 2, 4, 4096, 2
FREEZE_SECONDS = 0.05
"""A worker that does not stop in this time is killed."""
READ_BYTES = 1 << 16
"""Bytes of one read: a buffer that is a mapping of its own would be made and unmade each time (malloc(3))."""
DEEPEST = 64
"""Folders below /home/user that are nested deeper are not walked."""
SKIPPED_NAMED = 20
"""So many of the files that were left out are named; the rest is counted."""

_libc = ctypes.CDLL(None, use_errno=True)


class Hangup(Exception):
    """The host has closed the channel."""


class Host:
    """The channel to the host. Its state is what was received but not read yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._unpacker = framing.Unpacker(framing.MAX_TRUSTED_PAYLOAD)
        self._frames: list[tuple[bytes, bytes]] = []

    def receive(self) -> tuple[bytes, bytes]:
        """The next frame; waits for it. Raises Hangup."""
        while not self._frames:
            self.fill()
        return self._frames.pop(0)

    def fill(self) -> None:
        """Reads once from the socket. Raises Hangup."""
        got = self.sock.recv_into(self._buffer)
        if not got:
            raise Hangup
        self._frames += self._unpacker.feed(self._buffer[:got])

    def pending(self) -> list[tuple[bytes, bytes]]:
        """All frames that are there already."""
        frames, self._frames = self._frames, []
        return frames

    def send(self, kind: bytes, message: object) -> None:
        """Sends a frame with a JSON payload."""
        self.sock.sendall(framing.pack(kind, json.dumps(message).encode()))

    def send_bytes(self, kind: bytes, payload: bytes | memoryview) -> None:
        """Sends a frame without copying its payload."""
        self.sock.sendall(framing.HEADER.pack(kind, len(payload)))
        self.sock.sendall(payload)


class Worker:
    """The process that runs user code, and the socket to it."""

    def __init__(self, argv: list[str]) -> None:
        self.sock, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            self._exec(argv, theirs)
        theirs.close()

    def ready(self) -> bytes:
        """Waits until the worker says READY and returns what it said. Raises BrokenFrame when it does not."""
        try:
            kind, payload = Host(self.sock).receive()
        except Hangup:
            raise framing.BrokenFrame("the worker ended before it was ready") from None
        if kind != framing.READY:
            raise framing.BrokenFrame(f"the worker said {kind!r} instead of READY")
        return payload

    @staticmethod
    def _exec(argv: list[str], sock: socket.socket) -> NoReturn:
        try:
            os.setsid()
            null = os.open("/dev/null", os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(sock.fileno(), 3)
            os.closerange(4, 64)
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
            refusals.install()
            os.execv(argv[0], argv)  # noqa: S606  no shell is the point
        finally:
            os._exit(127)


def become(uid: int) -> None:
    """Makes `uid` the owner of what is written next. Capabilities come back with uid 0."""
    os.seteuid(0)
    os.setegid(uid)
    os.seteuid(uid)


def mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    """Attaches a file system to a folder. Raises OSError."""
    if _libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"mount {target}: {os.strerror(code)}")


class Prepared:
    """What the sandbox is ready for: disk and limits as they were last wanted, so that only a difference costs time."""

    def __init__(self) -> None:
        self._disk_bytes = 0
        self._limits: tuple[int, int] | None = None

    def get(self, worker_pid: int, wanted: dict[str, int]) -> None:
        """Makes it ready for a job with these limits. Raises OSError."""
        if self._disk_bytes != wanted["disk_bytes"]:
            if self._disk_bytes:
                drop_disk()
                self._disk_bytes = 0
            prepare_disk(wanted["disk_bytes"])
            self._disk_bytes = wanted["disk_bytes"]
        limits = wanted["processes"], wanted["open_files"]
        if self._limits != limits:
            limit(worker_pid, *limits)
            self._limits = limits


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
    os.chmod(DISK, 0o700)
    for name, target in MOUNTS:
        mount(f"{DISK}/{name}", target, "none", MS_BIND, "")


def limit(pid: int, processes: int, open_files: int) -> None:
    """Sets the limits that the kernel keeps for each process; children of the worker inherit them."""
    for what, value in (
        (resource.RLIMIT_NPROC, processes),
        (resource.RLIMIT_NOFILE, open_files),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.prlimit(pid, what, (value, value))


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


def count_tasks() -> int:
    """Processes and threads of the user, as /proc tells; one that has ended counts until its parent has asked."""
    tasks = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            threads = 1
            with contextlib.suppress(OSError):
                threads = max(1, len(os.listdir(f"/proc/{name}/task")))
            tasks += threads
    return tasks


def watch_children() -> int:
    """A file descriptor that becomes readable when a child ends."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    return reader


def reap(worker_pid: int) -> tuple[int | None, int]:
    """Collects children that have ended: the worker's wait status once it is among them, and how many others."""
    status, others = None, 0
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, value = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == worker_pid:
                status = value
            else:
                others += 1
    return status, others


def end_everything(worker_pid: int) -> int | None:
    """Kills every process but this one until none is left; returns the worker's wait status if it was among them.

    A fork that runs during the kill can escape it, but then its parent is among the dead, and one more round follows.
    """
    status = None
    while True:
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, signal.SIGKILL)
        found, _ = reap(worker_pid)
        status = found if found is not None else status
        try:
            pid, value = os.waitpid(-1, 0)
        except ChildProcessError:
            return status
        if pid == worker_pid:
            status = value


def freeze(worker_pid: int, children: int) -> bool:
    """Stops the worker with all its threads; tells whether nothing runs any more: not so when there are others."""
    os.kill(worker_pid, signal.SIGSTOP)
    until = time.monotonic() + FREEZE_SECONDS
    while True:
        pid, status = os.waitpid(worker_pid, os.WNOHANG | os.WUNTRACED)
        if pid:  # if nobody else is there, nobody can start another process any more
            return os.WIFSTOPPED(status) and is_alone(worker_pid)
        left = until - time.monotonic()
        if left <= 0:  # a thread in vfork stops only when its child goes on
            return False
        select.select([children], [], [], left)
        with contextlib.suppress(BlockingIOError):
            os.read(children, 4096)


def is_alone(worker_pid: int) -> bool:
    """Whether there is no process but the worker and this one."""
    return {name for name in os.listdir("/proc") if name.isdigit()} <= {"1", str(worker_pid)}


def status_of(report: bytes) -> int:
    """The wait status that goes with a report: exit code 0 or 1."""
    return 0 if json.loads(report)["ok"] else 1 << 8


class Relay:
    """Passes the worker's result and report on to the host, and nothing else.

    User code can write to the worker's socket; what is not a frame of these two kinds ends the relay.
    """

    def __init__(self, sock: socket.socket, host: Host, seal: bytes) -> None:
        self._seal = seal
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._sock = sock
        self._host = host
        self._unpacker = framing.Unpacker()
        self.open = True
        self.status: int | None = None
        """The wait status that the worker's report stands for, once it has reported."""
        self.orphans = 0
        """Processes that ended after their parents. Those of a fork bomb are gone a moment after it met the limit."""
        self.tasks = 0

    def pump(self) -> None:
        """Reads once. After the report, or anything that is not a frame, the socket is shut."""
        try:
            got = self._sock.recv_into(self._buffer, 0, socket.MSG_DONTWAIT)
            frames = self._unpacker.feed(self._buffer[:got])
        except BlockingIOError:
            return
        except (OSError, framing.BrokenFrame):
            self.close()
            return
        for kind, payload in frames:
            if kind == framing.REPORT and payload.startswith(self._seal):
                self._take_report(payload[len(self._seal) :])
                return
            if kind in (framing.RESULT, framing.REPORT):
                self._host.send_bytes(kind, payload)
            if kind != framing.RESULT:
                self.close()
                return
        if not got:
            self.close()

    def _take_report(self, report: bytes) -> None:
        if b'"EAGAIN"' in report:
            self.tasks = count_tasks() + self.orphans
        self._host.send_bytes(framing.REPORT, report)
        self.status = status_of(report)
        self.open = False  # without closing the socket: the worker would wake up and end by itself

    def drain(self) -> None:
        """Reads what is left once the worker has ended."""
        while self.open:
            if not select.select([self._sock], [], [], 0)[0]:
                self.close()
                return
            self.pump()

    def close(self) -> None:
        """Listens no more."""
        if self.open:
            self.open = False
            self._sock.close()


def run(  # noqa: C901  one loop
    worker: Worker, host: Host, children: int, job: bytes
) -> tuple[int | None, int]:
    """Hands the job over and stays until nothing of it runs any more; returns (wait status, tasks)."""
    seal = os.urandom(framing.SEAL_BYTES)
    host.send(framing.STARTED, {})
    with contextlib.suppress(OSError):  # the worker is dead already: its wait status tells
        worker.sock.sendall(framing.pack(framing.JOB, seal + job))
    relay = Relay(worker.sock, host, seal)
    poll = select.poll()
    for fd in (host.sock.fileno(), worker.sock.fileno(), children):
        poll.register(fd, select.POLLIN)
    worker_fd = worker.sock.fileno()
    status, relay.orphans = reap(worker.pid)
    while status is None and relay.status is None:
        for fd, _ in poll.poll():
            if fd == worker_fd and relay.open:
                relay.pump()
                if not relay.open:
                    poll.unregister(worker_fd)
            elif fd == children:
                with contextlib.suppress(BlockingIOError):
                    os.read(children, 4096)
            elif fd == host.sock.fileno():
                host.fill()
                if any(kind == framing.KILL for kind, _ in host.pending()):
                    status = end_everything(worker.pid)
        if status is None and relay.status is None:
            status, orphans = reap(worker.pid)
            relay.orphans += orphans
    if status is not None or not freeze(worker.pid, children):
        end_everything(worker.pid)
    relay.drain()
    return (status if relay.status is None else relay.status), relay.tasks


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


def rehearse(worker: Worker, children: int) -> None:
    """Touches what a job will touch, so that a restored copy has its pages in before somebody waits for them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        seal = os.urandom(framing.SEAL_BYTES)
        relay = Relay(theirs, Host(ours), seal)
        ours.sendall(framing.pack(framing.RESULT, b"1") + framing.pack(framing.REPORT, seal + b'{"ok":true}'))
        poll = select.poll()
        poll.register(theirs.fileno(), select.POLLIN)
        poll.poll(0)
        relay.pump()
        reap(worker.pid)
        send_files(Host(ours), set(), 1, 1)
    freeze(worker.pid, children)
    os.kill(worker.pid, signal.SIGCONT)  # also when it has not stopped yet: it would later


def serve(host: Host, argv: list[str]) -> None:
    """One execution from start to end. Raises Hangup when the host goes away."""
    os.umask(0o022)
    for device in UNUSED_DEVICES:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(device)
    children = watch_children()
    worker = Worker(argv)
    host.send_bytes(framing.READY, worker.ready())
    os.closerange(1, 3)  # the logs belong to user code alone

    known: set[Identity] = set()
    wanted: dict[str, int] = {}
    prepared = Prepared()
    while True:
        kind, payload = host.receive()
        if kind == framing.PREPARE:
            wanted = json.loads(payload)
            prepared.get(worker.pid, wanted)
        elif kind == framing.FILE:
            known.add(write_file(host, json.loads(payload)))
        elif kind == framing.JOB:
            break
        elif kind == framing.WAKE:
            worker.sock.sendall(framing.pack(framing.WAKE, b"{}"))
            prepared.get(worker.pid, json.loads(payload))
            ready = worker.ready()
            rehearse(worker, children)
            host.send_bytes(framing.READY, ready)
        elif kind == framing.PING:
            host.send(framing.PONG, {})
        elif kind == framing.KILL:
            raise Hangup
    status, tasks = run(worker, host, children, payload)
    host.send(framing.EXIT, {"status": status, "tasks": tasks})
    send_files(host, known, wanted["artifact_count"], wanted["artifact_bytes"])
    with contextlib.suppress(Hangup):
        while True:  # PID 1 going away ends the sandbox; the host decides when
            host.receive()


def main(argv: list[str]) -> NoReturn:
    """Serves one execution; tells the host when it cannot."""
    host = Host(socket.socket(fileno=0))
    os.set_inheritable(0, False)
    try:
        serve(host, argv)
    except Hangup:
        pass
    except Exception as error:  # noqa: BLE001  the host must learn of every failure of ours
        code = error.errno if isinstance(error, OSError) else None
        name = errno.errorcode.get(code, "") if code else ""
        with contextlib.suppress(OSError):
            host.send(framing.FAULT, {"message": f"{type(error).__name__}: {error}"[:2000], "errno": name})
            host.sock.shutdown(socket.SHUT_WR)
            while host.sock.recv(1 << 16):
                pass
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
