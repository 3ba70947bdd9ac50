"""Connections to the outside: straight, through an HTTP proxy, through SOCKS."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from belljar_server.egress.dial import Dialer, UpstreamProxy

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LOOPBACK = (ipaddress.ip_address("127.0.0.1"),)
TARGET = (ipaddress.ip_address("192.0.2.7"),)


@asynccontextmanager
async def listening(serve: Serve) -> AsyncIterator[int]:
    """A server on loopback; its port."""

    async def serve_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve_and_close, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def hear(dialer: Dialer, port: int) -> bytes:
    """What the other side says through a connection to the target."""
    sock, address = await dialer.connect(TARGET, port)
    assert address == TARGET[0]
    with sock:
        return await asyncio.get_running_loop().sock_recv(sock, 100)


async def test_the_first_address_that_answers_is_taken() -> None:
    """One where nobody listens is passed over."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")

    async with listening(greet) as port:
        sock, address = await Dialer().connect((ipaddress.ip_address("127.0.0.2"), *LOOPBACK), port)
        sock.close()
        assert address == LOOPBACK[0]
    with pytest.raises(ConnectionRefusedError):
        await Dialer().connect(LOOPBACK, port)


async def test_an_http_proxy_is_asked_for_the_address() -> None:
    """Whatever follows its answer belongs to the connection."""
    heads = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nhello")

    async with listening(proxy) as port:
        upstream = UpstreamProxy.parse(f"http://127.0.0.1:{port}", "me", "pass")
        assert await hear(Dialer(upstream), 443) == b"hello"
    assert heads[0].startswith(b"CONNECT 192.0.2.7:443 HTTP/1.1\r\nHost: 192.0.2.7:443\r\n")
    assert b"Proxy-Authorization: Basic bWU6cGFzcw==\r\n" in heads[0]


async def test_a_socks_proxy_may_name_where_it_is_bound() -> None:
    """RFC 1928, 6: an address of type 3 is a name with its length; what follows it belongs to the connection."""

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(3)
        writer.write(b"\x05\x00")
        await reader.readexactly(10)
        writer.write(b"\x05\x00\x00\x03\x09localhost\x04\xd2" + b"hello")

    async with listening(proxy) as port:
        assert await hear(Dialer(UpstreamProxy.parse(f"socks5://127.0.0.1:{port}", "", "")), 443) == b"hello"


def test_a_user_that_socks_cannot_say_is_refused_at_once() -> None:
    """Its length has one byte."""
    with pytest.raises(ValueError, match="255 bytes"):
        UpstreamProxy.parse("socks5://127.0.0.1:1", "u" * 256, "")


@pytest.mark.parametrize("answer", [b"HTTP/1.1 403 No\r\n\r\n", b"", b"x" * 10_000, b"HTTP/1.1 2000 OK\r\n\r\n"])
async def test_a_proxy_that_refuses_is_a_failed_connection(answer: bytes) -> None:
    """Also one that hangs up or talks nonsense."""

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    async with listening(proxy) as port:
        with pytest.raises(OSError, match="upstream proxy"):
            await hear(Dialer(UpstreamProxy.parse(f"http://127.0.0.1:{port}", "", "")), 443)


@pytest.mark.parametrize(("user", "code"), [("", 0), ("me", 0), ("", 2), ("wrong", 0)])
async def test_socks_is_spoken(user: str, code: int) -> None:
    """With a password and without, allowed and refused."""
    asked = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        version, count = await reader.readexactly(2)
        method = 2 if user else 0
        assert version == 5
        assert method in await reader.readexactly(count)
        writer.write(bytes([5, method]))
        if user:
            _, size = await reader.readexactly(2)
            name = await reader.readexactly(size)
            await reader.readexactly((await reader.readexactly(1))[0])
            writer.write(bytes([1, name != b"me"]))
            if name != b"me":
                return
        asked.append(await reader.readexactly(10))
        writer.write(bytes([5, code, 0, 1]) + bytes(6) + b"hello")

    async with listening(proxy) as port:
        dialer = Dialer(UpstreamProxy.parse(f"socks5://127.0.0.1:{port}", user, "pass"))
        if code or user == "wrong":
            with pytest.raises(OSError, match="upstream proxy refused"):
                await hear(dialer, 5432)
        else:
            assert await hear(dialer, 5432) == b"hello"
    assert asked == ([] if user == "wrong" else [b"\x05\x01\0\x01" + bytes([192, 0, 2, 7]) + (5432).to_bytes(2)])


@pytest.mark.parametrize("url", ["proxy:3128", "ftp://a:1", "http://proxy", "http://user:pw@proxy:1", ""])
def test_a_wrong_proxy_is_refused(url: str) -> None:
    """Passwords belong into a file."""
    with pytest.raises(ValueError, match="is not http"):
        UpstreamProxy.parse(url, "", "")


def test_own_addresses_are_known_by_routing() -> None:
    """Loopback is this host's, also the parts of it that no list names."""
    assert Dialer().is_own(ipaddress.ip_address("127.0.0.1"))
    assert Dialer().is_own(ipaddress.ip_address("127.99.99.99"))
