"""An HTTP/2 client of a few frames, for what no gRPC library would send (RFC 9113; header fields never indexed)."""

from __future__ import annotations

import socket
import struct
from types import TracebackType
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
CANCEL = 8
EXECUTE = "/belljar.v1.SandboxService/Execute"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def headers(path: str = EXECUTE) -> bytes:
    """The header block of a gRPC call, as literals without indexing."""
    block = b""
    for name, value in (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "localhost"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ):
        block += bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return block


def message(payload: bytes) -> bytes:
    """A gRPC message, not compressed."""
    return struct.pack(">BI", 0, len(payload)) + payload


class Connection:
    """A connection on which frames are sent by hand. Mutable state: what was read but is no whole frame yet."""

    def __init__(self, address: str, window: int | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.sock = socket.create_connection((host, int(port)), timeout=30)
        self._buffer = b""
        settings = struct.pack(">HI", INITIAL_WINDOW_SIZE, window) if window is not None else b""
        self.sock.sendall(PREFACE + frame(SETTINGS, 0, 0, settings))

    def begin(self, stream: int, path: str = EXECUTE) -> None:
        """Opens a stream."""
        self.sock.sendall(frame(HEADERS, END_HEADERS, stream, headers(path)))

    def send(self, stream: int, payload: bytes, *, end: bool = True) -> None:
        """Sends bytes of a message on a stream."""
        self.sock.sendall(frame(DATA, END_STREAM if end else 0, stream, payload))

    def reset(self, stream: int) -> None:
        """Cancels a stream."""
        self.sock.sendall(frame(RST_STREAM, 0, stream, struct.pack(">I", CANCEL)))

    def allow(self, stream: int, size: int) -> None:
        """Lets the server send so many more bytes on a stream."""
        self.sock.sendall(frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", size)))

    def read(self) -> tuple[int, int, int, bytes]:
        """The next frame as (kind, flags, stream, payload); answers pings and settings. Raises EOFError, OSError."""
        while True:
            while len(self._buffer) < 9 or len(self._buffer) < 9 + int.from_bytes(self._buffer[:3], "big"):
                data = self.sock.recv(1 << 16)
                if not data:
                    raise EOFError
                self._buffer += data
            size = int.from_bytes(self._buffer[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", self._buffer[3:9])
            payload, self._buffer = self._buffer[9 : 9 + size], self._buffer[9 + size :]
            if kind in (PING, SETTINGS) and not flags & ACK:
                self.sock.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
            return kind, flags, stream, payload

    def close(self) -> None:
        """Closes it, with a FIN."""
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
