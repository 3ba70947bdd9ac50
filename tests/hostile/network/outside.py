"""The servers of the outside, one program: DNS, HTTP, HTTPS, WebSocket, HTTP/2, and some that behave in odd ways."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import grpc
from aiohttp import WSMsgType, web

NAMES: dict[str, tuple[str, ...]] = {
    "api.example.com": ("11.22.33.44",),
    "db.example.com": ("11.22.33.44",),
    "a.example.org": ("11.22.33.45",),
    "b.a.example.org": ("11.22.33.45",),
    "example.org": ("11.22.33.45",),
    "xexample.org": ("11.22.33.45",),
    "evil.com": ("11.22.33.66",),
    "xn--bcher-kva.example": ("11.22.33.45",),
    "private.example.org": ("10.99.0.5",),
    "metadata.example.org": ("169.254.169.254",),
    "carrier.example.org": ("100.64.0.9",),
    "loopback.example.org": ("127.0.0.1",),
    "host.example.org": ("11.22.33.1",),
    "mixed.example.org": ("10.99.0.5", "11.22.33.45"),
    "nobody.example.org": ("11.22.33.99",),
}
"""The zone. `rebind.example.org` points to a public address once and to the metadata service ever after."""
SIX = {"mapped.example.org": "::ffff:10.99.0.5", "nat64.example.org": "64:ff9b::a9fe:a9fe", "loop6.example.org": "::1"}
SILENT = "silent.example.org"
"""A name about which the name server says nothing."""


class NameServer(asyncio.DatagramProtocol):
    """Mutable state: what was asked, how often."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._asked: Counter[str] = Counter()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def datagram_received(self, data: bytes, sender: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        with self._log.open("a") as log:
            log.write(f"{name}\n")
        if name == SILENT:
            return
        reply = dns.message.make_response(query, recursion_available=True)
        addresses = NAMES.get(name, ())
        if name == "rebind.example.org":
            self._asked[name] += 1
            addresses = ("11.22.33.44",) if self._asked[name] == 1 else ("169.254.169.254",)
        if question.rdtype == dns.rdatatype.A and addresses:
            reply.answer.append(dns.rrset.from_text(question.name, 0, "IN", "A", *addresses))
        elif question.rdtype == dns.rdatatype.AAAA and name in SIX:
            reply.answer.append(dns.rrset.from_text(question.name, 0, "IN", "AAAA", SIX[name]))
        elif not addresses and name not in SIX:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(reply.to_wire(), sender)


async def echo(request: web.Request) -> web.StreamResponse:
    """Tells what was asked, at which address."""
    told = {"host": request.host, "path": request.path, "at": request.transport.get_extra_info("sockname")[0]}  # type: ignore[union-attr]
    return web.Response(text=json.dumps(told))


async def download(request: web.Request) -> web.StreamResponse:
    """As many MiB as asked for."""
    response = web.StreamResponse()
    response.content_length = int(request.query["mib"]) << 20
    await response.prepare(request)
    piece = bytes(1 << 20)
    for _ in range(int(request.query["mib"])):
        await response.write(piece)
    return response


async def upload(request: web.Request) -> web.StreamResponse:
    """Counts."""
    size = 0
    async for piece in request.content.iter_chunked(1 << 18):
        size += len(piece)
    return web.Response(text=str(size))


async def chat(request: web.Request) -> web.StreamResponse:
    """A WebSocket that says everything back."""
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(f"back: {message.data}")
    return socket


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Speaks first, as mail and MySQL servers do."""
    writer.write(b"220 welcome\r\n")
    line = await reader.readline()
    writer.write(b"250 " + line)
    await writer.drain()
    writer.close()


async def echo_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Says everything back, byte for byte, and ends when the other side does."""
    while data := await reader.read(1 << 18):
        writer.write(data)
        await writer.drain()
    writer.close()


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes everything and never answers."""
    while await reader.read(1 << 18):
        pass
    writer.close()


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Breaks the connection in the middle."""
    await reader.read(1)
    writer.write(b"half an ans")
    await writer.drain()
    writer.transport.abort()


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction of a proxy's tunnel."""
    while data := await reader.read(1 << 18):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


def http_proxy(log: Path) -> Any:
    """A proxy that wants user and password, and notes where it was asked to go."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        if "Proxy-Authorization: Basic dXNlcjpzZWNyZXQ=" not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            writer.close()
            return
        target = head.split()[1]
        with log.open("a") as noted:
            noted.write(f"proxy {target}\n")
        host, _, port = target.rpartition(":")
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(pump(reader, there_writer), pump(there_reader, writer))
        writer.close()

    return serve


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate of its own making, for every name."""
    key, chain = directory / "key.pem", directory / "certificate.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ",".join(f"DNS:{name}" for name in ("api.example.com", "*.example.org", "evil.com", "localhost"))
    argv += ["-subj", "/CN=outside", "-addext", f"subjectAltName={names}", "-keyout", str(key), "-out", str(chain)]
    subprocess.run(argv, check=True, capture_output=True)
    return key, chain


async def main(directory: Path, addresses: list[str]) -> None:
    """Listens everywhere, says so, and serves until it is killed."""
    loop = asyncio.get_running_loop()
    key, chain = certificate(directory)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(chain, key)
    app = web.Application(client_max_size=0)
    app.add_routes([web.get("/download", download), web.post("/upload", upload), web.get("/chat", chat)])
    app.add_routes([web.route("*", "/{path:.*}", echo)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    (directory / "asked").touch()
    for address in addresses:
        for port in (80, 8080):
            await web.TCPSite(runner, address, port, backlog=1024).start()
        await web.TCPSite(runner, address, 443, ssl_context=tls, backlog=1024).start()
        for port, serve in ((25, greet), (7, echo_bytes), (9, say_nothing), (1025, reset)):
            await asyncio.start_server(serve, address, port, backlog=1024)
    await asyncio.start_server(http_proxy(directory / "asked"), "11.22.33.45", 3128)
    await loop.create_datagram_endpoint(lambda: NameServer(directory / "asked"), (addresses[0], 53))
    http2 = grpc.aio.server()
    http2.add_secure_port("11.22.33.44:8443", grpc.ssl_server_credentials([(key.read_bytes(), chain.read_bytes())]))
    http2.add_insecure_port("11.22.33.44:50051")
    await http2.start()
    print("listening", flush=True)
    await http2.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2:]))
