"""The processes of user code: when one ends, how many there are, and how all of them come to a stop."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

FREEZE_SECONDS = 0.05
"""A worker that does not stop in this time is killed."""


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
