"""The agent's end of the channel to the host."""

from __future__ import annotations

import json
import socket

import framing

READ_BYTES = 1 << 16
"""Bytes of one read: a buffer that is a mapping of its own would be made and unmade each time (malloc(3))."""


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
