"""Connections to the outside, to addresses that were judged before, straight or through the operator's own proxy."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from belljar_server.egress import netlink
from belljar_server.egress.addresses import Address

CONNECT_SECONDS = 10.0
MOST_TRIED = 4
"""Addresses of one name that are tried, one after the other."""
LARGEST_ANSWER = 8192
LONGEST_SOCKS_WORD = 255


@dataclass(frozen=True, slots=True)
class UpstreamProxy:
    """A proxy that the operator wants all connections to go through."""

    kind: str
    """`http` (CONNECT) or `socks5`."""
    host: str
    port: int
    user: str = ""
    password: str = ""

    @classmethod
    def parse(cls, url: str, user: str, password: str) -> UpstreamProxy:
        """From `http://host:port` or `socks5://host:port`. Raises ValueError."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "socks5") or not parts.hostname or not parts.port or parts.username:
            raise ValueError("is not http://host:port or socks5://host:port")
        if parts.scheme == "socks5" and max(len(user.encode()), len(password.encode())) > LONGEST_SOCKS_WORD:
            raise ValueError(f"takes user and password of at most {LONGEST_SOCKS_WORD} bytes each (RFC 1929)")
        return cls(parts.scheme, parts.hostname, parts.port, user, password)


class Dialer:
    """Makes connections from the namespace that the server is in."""

    def __init__(self, proxy: UpstreamProxy | None = None) -> None:
        self._proxy = proxy

    def is_own(self, address: Address) -> bool:
        """Whether an address is one of this host's, by the kernel's own routing: no list that could be old."""
        with netlink.Netlink() as tables:
            try:
                return tables.route_type(address) != netlink.UNICAST
            except OSError:  # unreachable: a connection will say so
                return False

    async def connect(self, addresses: tuple[Address, ...], port: int) -> tuple[socket.socket, Address]:
        """A connection to the first address that takes one, and which. Raises OSError with the last one's reason."""
        last: OSError = OSError("there is no address")
        for address in addresses[:MOST_TRIED]:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    return await self._one(address, port), address
            except TimeoutError:
                last = TimeoutError(f"{address}:{port} did not answer within {CONNECT_SECONDS:g} s")
            except OSError as error:
                last = error
        raise last

    async def _one(self, address: Address, port: int) -> socket.socket:
        if self._proxy is None:
            return await _connect(str(address), port)
        sock = await _connect(self._proxy.host, self._proxy.port)
        try:
            await (_http_connect if self._proxy.kind == "http" else _socks_connect)(sock, self._proxy, address, port)
        except BaseException:
            sock.close()
            raise
        return sock


async def _connect(host: str, port: int) -> socket.socket:
    loop = asyncio.get_running_loop()
    family, _, _, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


async def _http_connect(sock: socket.socket, proxy: UpstreamProxy, address: Address, port: int) -> None:
    """RFC 9110, 9.3.6. Raises OSError."""
    loop = asyncio.get_running_loop()
    target = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.user:
        lines.append(
            f"Proxy-Authorization: Basic {base64.b64encode(f'{proxy.user}:{proxy.password}'.encode()).decode()}"
        )
    await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await _exactly(sock, 1)  # byte by byte: what follows belongs to the connection
        if len(answer) > LARGEST_ANSWER:
            raise OSError("the upstream proxy's answer has no end")
    status, _, _ = answer.partition(b"\r\n")
    if not status.startswith(b"HTTP/1.") or status.split(b" ")[1:2] != [b"200"]:
        raise OSError(f"the upstream proxy refused: {status.decode('latin-1')}")


async def _socks_connect(sock: socket.socket, proxy: UpstreamProxy, address: Address, port: int) -> None:
    """RFC 1928 and 1929. Raises OSError."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"\x05\x01\x02" if proxy.user else b"\x05\x01\x00")
    version, method = await _exactly(sock, 2)
    if version != 5 or method not in (0, 2):
        raise OSError("the upstream proxy wants another way to log in")
    if method == 2:
        user, password = proxy.user.encode(), proxy.password.encode()
        await loop.sock_sendall(sock, bytes([1, len(user)]) + user + bytes([len(password)]) + password)
        if (await _exactly(sock, 2))[1] != 0:
            raise OSError("the upstream proxy refused user and password")
    kind = b"\x01" if isinstance(address, ipaddress.IPv4Address) else b"\x04"
    await loop.sock_sendall(sock, b"\x05\x01\x00" + kind + address.packed + port.to_bytes(2))
    _, code, _, bound = await _exactly(sock, 4)
    size = (await _exactly(sock, 1))[0] if bound == 3 else {1: 4, 4: 16}.get(bound, 0)  # 3 is a name with its length
    await _exactly(sock, size + 2)
    if code != 0:
        raise OSError(f"the upstream proxy refused with code {code}")


async def _exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        piece = await loop.sock_recv(sock, size - len(data))
        if not piece:
            raise OSError("the upstream proxy closed the connection")
        data += piece
    return data


def reset(sock: socket.socket) -> None:
    """Closes so that the other side sees an error, not an end."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    sock.close()
