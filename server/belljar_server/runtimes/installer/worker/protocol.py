"""The connection to the host. Frames that only an installer sends and gets, beside those of `guest/framing.py`."""

from __future__ import annotations

import json
import socket
import threading

import framing

FETCH = b"g"  # {"id": n, "path": "/simple/numpy/", "range": "bytes=0-9" or "", "head": only the head}: ask the registry
HEAD = b"H"  # {"id": n, "status": 200, "size": bytes or -1, "headers": {name: value}}: its answer begins
BODY = b"B"  # four bytes of id, then bytes of the answer; none: that was all
BROKEN = b"X"  # {"id": n}: the rest of the answer will not come
LOCK = b"c"  # bytes: what was resolved, as text
IMAGE = b"i"  # {"size": n}: DATA frames with the image follow, then END
FAILED = b"F"  # {"step": name, "message": text}: this is how far it came


class Host:
    """The channel to the host; threads may send at the same time. State: what was received but not read yet."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._unpacker = framing.Unpacker(framing.MAX_TRUSTED_PAYLOAD)
        self._frames: list[tuple[bytes, bytes]] = []
        self._sending = threading.Lock()

    def receive(self) -> tuple[bytes, bytes]:
        """The next frame; an empty kind when the host has gone. One thread only."""
        while not self._frames:
            data = self._sock.recv(1 << 20)
            if not data:
                return b"", b""
            self._frames += self._unpacker.feed(data)
        return self._frames.pop(0)

    def send(self, kind: bytes, message: object) -> None:
        """Sends a frame with a JSON payload."""
        self.send_bytes(kind, json.dumps(message).encode())

    def send_bytes(self, kind: bytes, payload: bytes) -> None:
        """Sends a frame."""
        with self._sending:
            self._sock.sendall(framing.HEADER.pack(kind, len(payload)))
            self._sock.sendall(payload)
