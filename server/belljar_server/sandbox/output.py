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
JOIN = 0.001
"""Seconds that a piece waits for its line to end; Python's print writes the newline by itself."""


class OutputPump:
    """One stream of one sandbox. Mutable state: the read end of the pipe, and whether a pause is on."""

    def __init__(self, stream: Stream, on_output: Callable[[Stream, bytes], None]) -> None:
        self._stream = stream
        self._on_output = on_output
        self._loop = asyncio.get_running_loop()
        self._fd, self._write_fd = os.pipe()
        self._timer: asyncio.TimerHandle | None = None
        self._held = b""
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
        while self._read():
            pass

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
        size = self._read(join=True)
        if self._fd >= 0 and size < READ_BYTES:
            self._loop.remove_reader(self._fd)
            self._timer = self._loop.call_later(JOIN if self._held else PAUSE, self._resume)

    def _resume(self) -> None:
        self._timer = None
        if self._read() and self._fd >= 0:
            self._timer = self._loop.call_later(PAUSE, self._resume)
        elif self._fd >= 0:
            self._loop.add_reader(self._fd, self._readable)

    def _read(self, *, join: bool = False) -> int:
        if self._fd < 0:
            return 0
        is_over = False
        try:
            data = os.read(self._fd, READ_BYTES)
            is_over = not data
        except BlockingIOError:
            data = b""
        data, self._held = self._held + data, b""
        if join and not is_over and len(data) < READ_BYTES and not data.endswith(b"\n"):
            self._held = data
        elif data:
            self._on_output(self._stream, data)
        if is_over:
            self.close()
        return len(data)
