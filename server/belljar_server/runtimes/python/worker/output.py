"""stdout and stderr of user code: quick to write to, and soon seen.

A system call for each print is what makes printing slow in a sandbox, so output is buffered. What comes after a pause
is flushed at once, as often as a program prints that is no flood, so that it is seen even if the process dies the next
moment; from then on a thread flushes every 50 ms until nothing comes any more, and sleeps. What would end this process,
or let another one write to the same streams, flushes before.
"""

from __future__ import annotations

import _posixsubprocess
import builtins
import functools
import io
import os
import signal
import sys
import warnings
from _thread import allocate_lock, start_new_thread
from collections.abc import Callable
from typing import Any

globals()["__builtins__"] = vars(builtins).copy()  # user code may replace builtins; functions below keep these

INTERVAL = 0.05
"""Seconds that output may wait."""
BUFFER_BYTES = 64 * 1024
DIRECT_WRITES = 64
"""Writes after a pause that are flushed at once; a print has two."""
FLUSHING = (
    (os, ("_exit", "abort", "kill", "killpg", "system", "execv", "execve", "posix_spawn", "posix_spawnp")),
    (signal, ("raise_signal", "pthread_kill")),
    (_posixsubprocess, ("fork_exec",)),
)
"""Functions before which output is flushed."""


class _Pipe(io.FileIO):
    """A stream's file descriptor. Its state is how often it was written to."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, "wb", closefd=False)
        self.name = name
        self.writes = 0

    def write(self, data: Any, /) -> int:
        self.writes += 1
        return super().write(data)


class _Buffer(io.BufferedWriter):
    """Is quick by getting out of the way: while output flows, `write` is the one written in C.

    At rest the instance has another `write` in its dict, which is then called instead.
    """

    def __init__(self, pipe: _Pipe, wake: Callable[[], bool]) -> None:
        super().__init__(pipe, BUFFER_BYTES)
        self._wake = wake
        self._pipe = pipe
        self.rest()

    def rest(self) -> None:
        """From now on the next writes are flushed at once."""
        self._direct = DIRECT_WRITES
        self.__dict__["write"] = self._write_through

    def _write_through(self, data: Any, /) -> int:
        written = super().write(data)
        self._direct -= 1
        if self._wake() and self._direct <= 0:
            self.__dict__.pop("write", None)
        super().flush()
        return written

    def drain(self) -> bool:
        """Flushes; says whether there was anything. Does not fail: user code may have closed the stream."""
        before = self._pipe.writes
        try:
            super().flush()
        except (OSError, ValueError):
            pass
        return self._pipe.writes != before


class Streams:
    """Both streams and the thread that flushes them.

    Mutable state: what the buffers hold, whether the thread runs, and whether it has work. A forked child starts with
    empty buffers and without the thread, which comes back with its first output.
    """

    def __init__(self) -> None:
        self._running = False
        self._starting = allocate_lock()
        self._flushing = allocate_lock()
        """Held while the thread flushes, and during a fork, so that no lock of a buffer is held then."""
        self._idle = allocate_lock()
        """Held while there is nothing to flush."""
        self._idle.acquire()
        self._buffers = tuple(_Buffer(_Pipe(fd, name), self._wake) for fd, name in ((1, "<stdout>"), (2, "<stderr>")))
        self._texts = tuple(
            io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", write_through=True)
            for buffer in self._buffers
        )

    def install(self) -> None:
        """Makes these the process's streams."""
        sys.stdout, sys.stderr = self._texts
        sys.__stdout__, sys.__stderr__ = self._texts  # type: ignore[misc]
        os.register_at_fork(
            before=self._before_fork, after_in_parent=self._flushing.release, after_in_child=self._in_child
        )
        # Python 3.12 and later warn of every fork beside a thread; this one is no danger.
        warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
        for module, names in FLUSHING:
            for name in names:
                setattr(module, name, self._flush_before(getattr(module, name)))
        self._start()

    def flush(self, last_words: str = "") -> None:
        """Hands everything to the pipes, also what sits in streams that user code has put in place of these."""
        if last_words:
            try:
                sys.stderr.write(last_words)
            except BaseException:
                pass
        for stream in (getattr(sys, "stdout", None), getattr(sys, "stderr", None), *self._texts):
            self._flush(stream)
        self._drain()

    @staticmethod
    def _flush(stream: Any) -> None:
        try:
            stream.flush()
        except BaseException:
            pass  # it is closed, or no stream at all

    def _drain(self) -> bool:
        return sum([buffer.drain() for buffer in self._buffers]) > 0

    def _wake(self) -> bool:
        """Has the thread flush in a moment; says whether there is one."""
        if not self._running and not self._start():
            return False
        try:
            self._idle.release()
        except RuntimeError:
            pass  # it is awake already
        return True

    def _start(self) -> bool:
        if not self._starting.acquire(blocking=False):
            return False
        try:
            if not self._running:
                start_new_thread(self._run, ())
                self._running = True
        except RuntimeError:  # the limit of processes is reached: every line is flushed at once then
            return False
        finally:
            self._starting.release()
        return True

    def _run(self) -> None:
        never = allocate_lock()
        never.acquire()
        while True:
            self._idle.acquire()
            busy = True
            while busy:
                never.acquire(timeout=INTERVAL)  # not time.sleep, which user code may have replaced
                with self._flushing:
                    busy = self._drain()
                    if not busy:
                        for buffer in self._buffers:
                            buffer.rest()
                        self._drain()

    def _before_fork(self) -> None:
        self._flushing.acquire()
        self._drain()

    def _in_child(self) -> None:
        self._running = False
        self._flushing.release()
        for buffer in self._buffers:
            buffer.rest()

    def _flush_before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def flushing(*args: Any, **kwargs: Any) -> Any:
            self._drain()
            return function(*args, **kwargs)

        return flushing
