"""PID 1 of every sandbox: prepares one execution, lets the worker run it, tells how it ended and hands out its files.

Trusted code of ours, as uid 0 with the few capabilities that `sandbox/spec.py` lists; the worker is uid 1000 and has
none, so it can neither signal nor trace nor read this process. Standard library only, since every image carries it.

The order of things, all on fd 0 with the framing of `framing.py`:

1. Start the worker, wait until it is warm, say READY. Nothing about the execution is known yet: a sandbox may be
   checkpointed here and restored many times.
2. PREPARE, FILE, DATA, JOB: size the disk, set the limits, write the files, hand the job to the worker.
3. Pass on what the worker reports; when it ends, kill all that user code left behind, so that nothing changes any more.
   A worker that has reported and is alone is stopped instead: freeing its memory would take longer than most code runs.
   Between the two it may have LEAVE_SECONDS for what user code wants done at its end.
4. Tell the wait status, then stream every regular file that was created or changed in /home/user.

The other end of fd 0 going away ends this process, and PID 1 takes the whole sandbox along.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import framing
import refusals
from files import USER, Identity, send_files, write_file
from host import READ_BYTES, Hangup, Host
from processes import count_tasks, end_everything, freeze, reap, watch_children
from room import Disk, limit

LEAVE_SECONDS = 2.0
"""Seconds that a worker has after its report for exit handlers, destructors and files that were not closed."""
UNUSED_DEVICES = ("/dev/fuse", "/dev/net/tun")
"""What gVisor puts into every /dev, for privileges that nobody here has."""


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


def read_report(report: bytes) -> tuple[int | None, bool]:
    """The wait status that goes with a report, exit code 0 or 1, and whether the worker is still leaving.

    There is no status for what no worker of ours says: user code shares its process with it, and can find the seal.
    """
    try:
        words = json.loads(report)
    except (ValueError, RecursionError):
        return None, False
    ok = words.get("ok") if isinstance(words, dict) else None
    if not isinstance(ok, bool):
        return None, False
    return 0 if ok else 1 << 8, words.get("leaving") is True


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
        self.leaving_until = 0.0
        """By the monotonic clock: when a worker that is still leaving is ended; 0 when it is not."""
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
            self._take(kind, payload)
            if not self.open:
                return
        if not got:
            self.close()

    def _take(self, kind: bytes, payload: bytes) -> None:
        if self.leaving_until:
            if (kind, payload) == (framing.LEFT, self._seal):
                self._stop_listening()
        elif kind == framing.REPORT and payload.startswith(self._seal):
            self._take_report(payload[len(self._seal) :])
        else:
            if kind in (framing.RESULT, framing.REPORT):
                self._host.send_bytes(kind, payload)
            if kind != framing.RESULT:
                self.close()

    def _take_report(self, report: bytes) -> None:
        if b'"EAGAIN"' in report:
            self.tasks = count_tasks() + self.orphans
        self._host.send_bytes(framing.REPORT, report)
        self.status, leaving = read_report(report)
        if self.status is None:
            self.close()
        elif leaving:
            self.leaving_until = time.monotonic() + LEAVE_SECONDS
        else:
            self._stop_listening()

    @property
    def done(self) -> bool:
        """Whether the worker has reported, and has left."""
        return self.status is not None and not self.leaving_until

    def patience(self) -> float | None:
        """Milliseconds that a worker that is leaving still has; None when it has not come to that."""
        return max(0.0, self.leaving_until - time.monotonic()) * 1000 if self.leaving_until else None

    def _stop_listening(self) -> None:
        """Without closing the socket: the worker would wake up and end by itself."""
        self.leaving_until = 0.0
        self.open = False

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
            self._stop_listening()
            self._sock.close()


def run(  # noqa: C901  one loop
    worker: Worker, host: Host, children: int, job: bytes
) -> dict[str, object]:
    """Hands the job over and stays until nothing of it runs any more; returns what EXIT says."""
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
    while status is None and not relay.done and (wait := relay.patience()) != 0:
        for fd, _ in poll.poll(wait):
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
        if status is None and not relay.done:
            status, orphans = reap(worker.pid)
            relay.orphans += orphans
    leaving = status is None and relay.patience() is not None
    if status is not None or not freeze(worker.pid, children):
        end_everything(worker.pid)
    if relay.status is None:
        relay.drain()
    status = status if relay.status is None else relay.status
    return {"status": status, "tasks": relay.tasks, "leaving": leaving}


def rehearse(worker: Worker, children: int) -> None:
    """Touches what a job will touch, so that a restored copy has its pages in before somebody waits for them."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        seal = os.urandom(framing.SEAL_BYTES)
        relay = Relay(theirs, Host(ours), seal)
        report = framing.pack(framing.REPORT, seal + b'{"ok":true,"leaving":true}')
        ours.sendall(framing.pack(framing.RESULT, b"1") + report + framing.pack(framing.LEFT, seal))
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
    disk = Disk()
    while True:
        kind, payload = host.receive()
        if kind == framing.PREPARE:
            wanted = json.loads(payload)
            disk.fit(wanted["disk_bytes"])
            limit(worker.pid, wanted["processes"], wanted["open_files"])
        elif kind == framing.FILE:
            known.add(write_file(host, json.loads(payload)))
        elif kind == framing.JOB:
            break
        elif kind == framing.WAKE:
            worker.sock.sendall(framing.pack(framing.WAKE, b"{}"))
            disk.fit(json.loads(payload)["disk_bytes"])
            ready = worker.ready()
            rehearse(worker, children)
            host.send_bytes(framing.READY, ready)
        elif kind == framing.PING:
            host.send(framing.PONG, {})
        elif kind == framing.KILL:
            raise Hangup
    host.send(framing.EXIT, run(worker, host, children, payload))
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
