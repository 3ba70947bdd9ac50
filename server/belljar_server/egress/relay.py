"""Bytes between two sockets, one direction each, a piece at a time so that no connection keeps the others waiting."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable

PIECE = 256 * 1024
"""Bytes that one connection may move before the next one has its turn."""
READ_PIECE = 16 * 1024
"""The same where somebody reads what it says."""
READING_SHARE = 0.1
"""How much of one core's time reading what one sandbox says may take for long."""
READING_BURST = 0.05
"""Seconds of reading beyond that share at once."""


class Reader:
    """The time that is spent on reading what one sandbox says. Mutable state: until when its share is used up."""

    def __init__(self) -> None:
        self._used_until = 0.0

    def spent(self, seconds: float) -> None:
        """Reading took so long."""
        self._used_until = max(self._used_until, time.monotonic()) + seconds / READING_SHARE

    def wait(self) -> float:
        """Seconds until there is time to read on."""
        return max(0.0, self._used_until - time.monotonic() - READING_BURST / READING_SHARE)


class Pump:
    """One direction. Mutable state: what the other side has not taken yet, and whether it is over."""

    def __init__(
        self,
        source: socket.socket,
        target: socket.socket,
        buffer: bytearray,
        see: Callable[[memoryview], bytes | memoryview],
        reader: Reader | None = None,
    ) -> None:
        """`see` gets every piece and gives what goes on; what it raises ends the pump. `buffer` is shared by pumps.

        `reader`: whose time `see` takes, until it is set to None because nothing is read any more.
        """
        self.reader = reader
        self._resume: asyncio.TimerHandle | None = None
        self._source = source
        self._target = target
        self._buffer = memoryview(buffer)
        self._see = see
        self._left = b""
        self._loop = asyncio.get_running_loop()
        self._reading = self._writing = False
        self.over: asyncio.Future[None] = self._loop.create_future()
        """Done when everything has gone through; has the error when it has not."""

    def start(self) -> None:
        """Begins to move bytes."""
        self._read_on()

    def push(self, data: bytes) -> None:
        """Sends bytes behind those that went before; for what was held back."""
        if not self.over.done():
            self._send(data)

    def stop(self) -> None:
        """Moves nothing more."""
        self._watch(reading=False, writing=False)
        if self._resume:
            self._resume.cancel()
        if not self.over.done():
            self.over.cancel()

    def _readable(self) -> None:
        if self.reader and (wait := self.reader.wait()):
            self._watch(reading=False, writing=False)
            self._resume = self._loop.call_later(wait, self._read_on)
            return
        try:
            size = self._source.recv_into(self._buffer, READ_PIECE if self.reader else 0)
            if size:
                self._send(self._seen(self._buffer[:size]))
                return
        except BlockingIOError:
            return
        except Exception as error:  # noqa: BLE001  handed to whoever waits
            self._end(error)
            return
        with contextlib.suppress(OSError):
            self._target.shutdown(socket.SHUT_WR)
        self._end(None)

    def _seen(self, data: memoryview) -> bytes | memoryview:
        if self.reader is None:
            return self._see(data)
        began = time.monotonic()
        try:
            return self._see(data)
        finally:
            if self.reader:
                self.reader.spent(time.monotonic() - began)

    def _send(self, data: bytes | memoryview) -> None:
        if self._left:
            self._left += bytes(data)
            return
        try:
            sent = self._target.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._end(error)
            return
        if sent < len(data):
            self._left = bytes(data[sent:])
            self._watch(reading=False, writing=True)

    def _writable(self) -> None:
        left, self._left = self._left, b""
        self._watch(reading=False, writing=False)
        self._send(left)
        if not self._left and not self.over.done():
            self._read_on()

    def _read_on(self) -> None:
        self._watch(reading=True, writing=False)

    def _watch(self, *, reading: bool, writing: bool) -> None:
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._source, self._readable)
            else:
                self._loop.remove_reader(self._source)
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._target, self._writable)
            else:
                self._loop.remove_writer(self._target)

    def _end(self, error: Exception | None) -> None:
        self._watch(reading=False, writing=False)
        if self.over.done():
            return
        if error:
            self.over.set_exception(error)
        else:
            self.over.set_result(None)
