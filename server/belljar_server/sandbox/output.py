"""Reads what user code prints, as it prints it, and never slower than it prints.

The pipe is always drained, so a client that does not read cannot block the code, and code cannot block the server: a
piece is read at once when it comes after a pause, and while more keeps coming at most every few milliseconds, so that
a flood of single bytes does not become a flood of events. A line that is written in two pieces is one event.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable

from belljar_server.models import Stream

PIPE_BYTES = 1 << 20
READ_BYTES = 1 << 18
PAUSE = 0.004
"""Seconds between two reads while the code prints without a pause."""
JOIN = 0.02
"""Seconds that a piece waits for its line to end; Python's print writes the newline by itself."""


class OutputPump:
    """One stream of one sandbox.

    Mutable state: the read end of the pipe, what was read and not given on, and the wait for the end of a line or for
    more of a flood. During the latter the pipe is not watched.
    """

    def __init__(self, stream: Stream, on_output: Callable[[Stream, bytes], None]) -> None:
        self._stream = stream
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        self._fd, self._write_fd = os.pipe()
        self._timer: asyncio.TimerHandle | None = None
        self._held = b""
        self._joining = False
        os.set_blocking(self._fd, False)
        with contextlib.suppress(PermissionError):  # above the user's pipe quota: the default size is slower, not wrong
            fcntl.fcntl(self._fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    @property
    def write_fd(self) -> int:
        """The end that the sandbox writes to."""
        return self._write_fd

    def start(self) -> None:
        """Begins to read; the sandbox has its end by now."""
        os.close(self._write_fd)
        self._write_fd = -1
        self._loop.add_reader(self._fd, self._readable)

    def drain(self) -> None:
        """Reads all that is in the pipe; when nobody is left to write, that is everything."""
        while self._fill():
            self._deliver()
        self._deliver()

    def close(self) -> None:
        """Reads no more."""
        if self._timer:
            self._timer.cancel()
        for fd in (self._fd, self._write_fd):
            if fd >= 0:
                self._loop.remove_reader(fd)
                os.close(fd)
        self._fd = self._write_fd = -1

    def _readable(self) -> None:
        self._fill()
        if self._fd < 0:
            return
        if len(self._held) >= READ_BYTES:
            self._deliver()
        elif self._is_whole():
            self._deliver()
            self._wait(PAUSE)
        elif not self._joining:
            self._wait(JOIN)

    def _wait_is_over(self) -> None:
        is_late, self._timer, self._joining = self._joining, None, False
        self._fill()
        if self._fd < 0:
            return
        if self._held and (is_late or self._is_whole()):
            self._deliver()
            self._wait(PAUSE)
        elif self._held:
            self._wait(JOIN)
        else:
            self._loop.add_reader(self._fd, self._readable)

    def _wait(self, seconds: float) -> None:
        """For the end of a line, which is noticed when it comes, or for more of a flood."""
        if self._timer:
            self._timer.cancel()
        self._joining = seconds == JOIN
        if self._joining:
            self._loop.add_reader(self._fd, self._readable)
        else:
            self._loop.remove_reader(self._fd)
        self._timer = self._loop.call_later(seconds, self._wait_is_over)

    def _is_whole(self) -> bool:
        return self._held.endswith(b"\n") or len(self._held) >= READ_BYTES

    def _deliver(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._on_output(self._stream, data)

    def _fill(self) -> int:
        if self._fd < 0:
            return 0
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return 0
        self._held += data
        if not data:
            self._deliver()
            self.close()
        return len(data)
