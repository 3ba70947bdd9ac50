"""Imports packages that a request asked for before a snapshot is made, if nothing but time is to be gained by it.

What an import leaves in a snapshot, all copies of it have in common. So it is tried in a child first: one that draws
random numbers, prints, fails, does not end, or leaves more behind than modules must not be in a snapshot, and is
imported by each run for itself. Packages can cheat on all of this, but only whoever runs them.
"""

from __future__ import annotations

import gc
import importlib
import importlib.machinery
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import refusals

SECONDS = 10.0
"""What a trial may take."""
PAUSE = 0.01
GETRANDOM = {"x86_64": 318, "aarch64": 278}
GRND_INSECURE = 4
"""How Rust's standard library asks for the seeds of its hash tables, and for nothing else."""
THIRD_ARGUMENT = 32
"""Offset in struct seccomp_data."""
TRAP = 0x00030000
"""A signal that ends the process; what is called killing ends one thread of it in gVisor."""
NUMPY_RANDOM = "numpy.random"
"""Seeds itself when it is imported; every copy seeds it anew."""


class NotPreloaded(Exception):
    """What is to be imported does more than that, or fails."""


def there(statements: list[str], folders: list[str]) -> list[str]:
    """The statements whose package is installed. Raises NotPreloaded when there are none."""
    names = {each: each.split()[1].partition(".")[0] for each in statements}
    found = [each for each in statements if importlib.machinery.PathFinder.find_spec(names[each], folders)]
    if not found:
        raise NotPreloaded("nothing of it is installed")
    return found


Prepare = Callable[[], Callable[[], bool]]
"""Makes a process ready for imports; what it gives does them, and tells whether they worked."""


def check(prepare: Prepare) -> bool:
    """Tries an import; gives whether numpy.random must be there before.

    Raises NotPreloaded when it must not be done in this process.
    """
    ended = _try(prepare)
    if ended == -signal.SIGSYS and _try(prepare, NUMPY_RANDOM) == 0:
        return True
    if ended == -signal.SIGSYS:
        raise NotPreloaded("it draws random numbers while it is imported")
    if ended:
        raise NotPreloaded(_ENDINGS.get(ended, f"it ends with status {ended}"))
    return False


FAILED, LEFT = 3, 4
_ENDINGS = {FAILED: "it cannot be imported", LEFT: "it does more than to define modules", -signal.SIGKILL: "it hangs"}


def _try(prepare: Prepare, first: str = "") -> int:
    """Runs it in a child; gives its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        _run_and_exit(prepare, first)
    until = time.monotonic() + SECONDS
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(PAUSE)


def _run_and_exit(prepare: Prepare, first: str) -> NoReturn:
    ending = FAILED
    try:
        printed = os.memfd_create("printed")
        for fd in (1, 2):
            os.dup2(printed, fd)
        run = prepare()
        if first:
            importlib.import_module(first)
        before = _state()
        refuse_randomness()
        if run():
            sys.stdout.flush()
            sys.stderr.flush()
            ending = 0 if _state() == before and os.fstat(printed).st_size == 0 else LEFT
    finally:
        os._exit(ending)


def _state() -> list[object]:
    """What an import could change beside modules, and a snapshot or its copies would then keep."""
    numpy = sys.modules.get(NUMPY_RANDOM)
    return [
        random.getstate(),
        numpy.get_state()[1].tobytes() if numpy else b"",
        {fd: target for fd in os.listdir("/proc/self/fd") if (target := _target(fd))},
        [pid for pid in os.listdir("/proc") if pid.isdigit()],
        [sorted(os.listdir(folder)) for folder in ("/dev/shm", "/tmp")],  # noqa: S108  in the sandbox
        os.getcwd(),
        sys.path[:],
        threading.active_count(),
        [signal.getsignal(number) for number in signal.valid_signals()],
        [sys.gettrace(), sys.getprofile(), sys.getrecursionlimit(), sys.getswitchinterval(), gc.isenabled()],
    ]


def _target(fd: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # the one that has listed them
        return ""


def refuse_randomness() -> None:
    """From here on whoever asks the kernel for random numbers ends, but for hash tables. Raises OSError, KeyError."""
    machine = os.uname().machine
    refusals.load(
        [
            (refusals.LOAD, 0, 0, refusals.NUMBER),
            (refusals.EQUAL, 0, 3, GETRANDOM[machine]),
            (refusals.LOAD, 0, 0, THIRD_ARGUMENT),
            (refusals.ANY_BIT, 1, 0, GRND_INSECURE),
            (refusals.RETURN, 0, 0, TRAP),
            (refusals.RETURN, 0, 0, refusals.ALLOW),
        ]
    )
