"""Reads which server a TLS client wants, out of the first bytes it sends (RFC 8446, 4.1.2 and 5.1; RFC 6066, 3).

A reader of our own: libraries that read handshakes want to take part in them. It looks at nothing but the extension for
the name and the one that hides it, trusts no length, and is fuzzed.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

HANDSHAKE = 0x16
CLIENT_HELLO = 1
SERVER_NAME, ENCRYPTED_CLIENT_HELLO = 0, 0xFE0D
LARGEST_RECORD = 16384 + 256
LARGEST_HELLO = 65536
"""Bytes of a ClientHello; with post-quantum keys it has 2 KiB."""


@dataclass(frozen=True, slots=True)
class ClientHello:
    """What a client said before anything is encrypted."""

    server_name: str | None
    """None: it named no server."""
    encrypted: bool
    """Whether it hides the name it really means (ECH)."""


class Incomplete(Exception):
    """More bytes are needed to tell."""


class NotTls(Exception):
    """These bytes begin no TLS connection."""


class Malformed(Exception):
    """They begin one, but not as the standard says."""


def read(data: bytes) -> ClientHello:
    """The ClientHello that `data` begins with. Raises Incomplete, NotTls, Malformed."""
    message = _handshake(data)
    try:
        return _hello(_Cursor(message))
    except (IndexError, struct.error, UnicodeDecodeError):
        raise Malformed("the ClientHello is cut short or has wrong lengths") from None


def _handshake(data: bytes) -> bytes:
    """The body of the first handshake message, out of as many records as it takes."""
    if not data:
        raise Incomplete
    if data[0] != HANDSHAKE or (len(data) > 1 and data[1] != 3):
        raise NotTls
    message = bytearray()
    at = 0
    while True:
        if len(message) >= 4:
            if message[0] != CLIENT_HELLO:
                raise Malformed("the first message is no ClientHello")
            length = int.from_bytes(message[1:4])
            if length > LARGEST_HELLO:
                raise Malformed(f"the ClientHello has {length} bytes")
            if len(message) >= 4 + length:
                return bytes(message[4 : 4 + length])
        if len(data) < at + 5:
            raise Incomplete
        kind, major, _, size = struct.unpack_from("!BBBH", data, at)
        if kind != HANDSHAKE or major != 3 or not 0 < size <= LARGEST_RECORD:
            raise Malformed("a record within the ClientHello is of another kind")
        message += data[at + 5 : at + 5 + size]
        at += 5 + size


class _Cursor:
    """Reads a byte string from front to back. Raises IndexError beyond its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise IndexError
        self._at += size
        return self._data[self._at - size : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, size: int) -> bytes:
        """What follows a length of `size` bytes."""
        return self.take(self.number(size))


def _hello(cursor: _Cursor) -> ClientHello:
    cursor.take(2 + 32)  # version, random
    cursor.vector(1)  # session id
    cursor.vector(2)  # cipher suites
    cursor.vector(1)  # compression methods
    name: str | None = None
    encrypted = False
    seen: set[int] = set()
    extensions = _Cursor(cursor.vector(2) if cursor.left else b"")
    while extensions.left:
        kind, body = extensions.number(2), extensions.vector(2)
        if kind in seen:
            raise Malformed("an extension is there twice")
        seen.add(kind)
        if kind == SERVER_NAME:
            name = _server_name(_Cursor(body))
        elif kind == ENCRYPTED_CLIENT_HELLO:
            encrypted = True
    return ClientHello(name, encrypted)


def _server_name(cursor: _Cursor) -> str:
    names = _Cursor(cursor.vector(2))
    kind, name = names.number(1), names.vector(2)
    if kind != 0 or not name or names.left or cursor.left:
        raise Malformed("the server name is not one host name")
    return name.decode("ascii").lower().removesuffix(".")
