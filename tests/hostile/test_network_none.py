"""Without a network there is none, and that is told at once (HOSTILE.md 24)."""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from belljar_client import Limits, Result
from tests.conftest import Server

Hit = Callable[..., Result]

PROBE = """
import errno, socket, time
def main(attempts):
    told = []
    for family, kind, protocol, address in attempts:
        began = time.monotonic()
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.settimeout(10)
                address = tuple(address) if isinstance(address, list) else address
                probe.connect(address)
                if kind != socket.SOCK_STREAM:
                    probe.send(b"x")
                    probe.recv(1)
            answer = "connected"
        except TimeoutError:
            answer = "nothing came"
        except OSError as error:
            answer = errno.errorcode.get(error.errno, str(error))
        told.append([answer, time.monotonic() - began])
    return told
"""
AT_ONCE = 3.0
"""Seconds; a refusal takes microseconds, a time-out the ten that the probe allows."""
REFUSALS = {
    *("ENETUNREACH", "ECONNREFUSED", "EHOSTUNREACH", "EPERM", "EACCES", "EADDRNOTAVAIL"),
    *("EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "ENODEV", "EINVAL", "EPROTOTYPE"),
}


@pytest.fixture
def listener() -> Iterator[tuple[int, list[object]]]:
    """A TCP server on the host's loopback, and who has connected to it."""
    callers: list[object] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            try:
                while True:
                    connection, address = server.accept()
                    callers.append(address)
                    connection.close()
            except OSError:
                pass

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1], callers
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_every_connection_is_refused_at_once(hit: Hit, server: Server, listener: tuple[int, list[object]]) -> None:
    """TCP, UDP, ICMP and raw, IPv4 and IPv6, to the world, to the host and to the server itself."""
    port, callers = listener
    grpc_port, http_port = (int(address.rpartition(":")[2]) for address in (server.address, server.http_address))
    inet, inet6, stream, dgram, raw = 2, 10, 1, 2, 3
    attempts: list[list[object]] = [
        *([inet, stream, 0, ["127.0.0.1", number]] for number in (port, grpc_port, http_port)),
        *([inet, stream, 0, [address, 80]] for address in ("192.0.2.1", "10.0.0.1", "169.254.169.254", "172.17.0.1")),
        *([inet6, stream, 0, [address, 80]] for address in ("::1", "2001:db8::1", "fe80::1", "::ffff:127.0.0.1")),
        *([inet, dgram, 0, [address, 53]] for address in ("127.0.0.1", "192.0.2.53", "255.255.255.255")),
        [inet6, dgram, 0, ["2001:db8::53", 53]],
        [inet, dgram, 1, ["192.0.2.1", 0]],
        [inet, raw, 1, ["192.0.2.1", 0]],
        [inet6, raw, 58, ["2001:db8::1", 0]],
        [17, raw, 3, ["eth0", 0]],
        [40, stream, 0, [2, 1024]],
    ]
    told = hit(PROBE, inputs={"attempts": attempts}, limits=Limits(timeout=100)).check().value
    wrong = [
        (attempt, answer)
        for attempt, answer in zip(attempts, told, strict=True)
        if answer[0] not in REFUSALS or answer[1] > AT_ONCE
    ]
    assert wrong == []
    assert callers == []


def test_node_is_refused_too(hit: Hit, listener: tuple[int, list[object]]) -> None:
    """Sockets, fetch and datagrams of Node meet the same end."""
    port, callers = listener
    code = """
const net = require('net');
const dgram = require('dgram');
async function main({ port }) {
  const told = [];
  for (const [host, to] of [['127.0.0.1', port], ['192.0.2.1', 80], ['::1', port]]) {
    told.push(await new Promise((resolve) => net.connect(to, host).on('connect', () => resolve('connected'))
      .on('error', (error) => resolve(error.code))));
  }
  told.push(await fetch(`http://127.0.0.1:${port}/`).then(() => 'connected', (error) => error.cause.code));
  told.push(await new Promise((resolve) => dgram.createSocket('udp4').send('x', 53, '192.0.2.53',
    (error) => resolve(error ? error.code : 'sent'))));
  return told;
}
"""
    told = hit(code, "javascript", inputs={"port": port}, limits=Limits(timeout=60)).check().value
    assert set(told) <= REFUSALS
    assert callers == []


NAMES = ("localhost.localdomain", "belljar.invalid", "metadata.google.internal", "xn--e1afmkfd.example")


def test_names_do_not_resolve_and_that_is_known_at_once(hit: Hit) -> None:
    """DNS fails without waiting for a server that is not there."""
    code = """
import socket, time
def main(names):
    told = []
    for name in names:
        began = time.monotonic()
        try:
            told.append([name, str(socket.getaddrinfo(name, 80)), 0])
        except OSError as error:
            told.append([name, "refused", time.monotonic() - began])
    return told
"""
    told = hit(code, inputs={"names": NAMES}, limits=Limits(timeout=60)).check().value
    assert [name for name, answer, _ in told if answer != "refused"] == []
    assert [name for name, _, seconds in told if seconds > AT_ONCE] == []
    node = """
async function main({ names }) {
  const began = Date.now();
  const told = await Promise.allSettled(names.map((name) => require('dns').promises.lookup(name)));
  return [told.map((one) => one.status), Date.now() - began];
}
"""
    statuses, milliseconds = hit(node, "javascript", inputs={"names": NAMES}, limits=Limits(timeout=60)).check().value
    assert set(statuses) == {"rejected"}
    assert milliseconds < AT_ONCE * 1000


def test_unix_sockets_of_the_host_are_out_of_reach(hit: Hit) -> None:
    """Abstract sockets of the host have no name in the sandbox; those made inside stay there."""
    name = f"belljar-test-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX) as host:
        host.bind(f"\0{name}")
        host.listen()
        told = hit(PROBE, inputs={"attempts": [[1, 1, 0, f"\0{name}"], [1, 2, 0, f"\0{name}"]]}).check().value
        assert [answer for answer, _ in told] == ["ECONNREFUSED"] * 2
    inside = f"""
import socket
with socket.socket(socket.AF_UNIX) as here:
    here.bind("\\0{name}")
    here.listen()
    socket.socket(socket.AF_UNIX).connect("\\0{name}")
"""
    hit(inside).check()
    with socket.socket(socket.AF_UNIX) as host, pytest.raises(ConnectionRefusedError):
        host.connect(f"\0{name}")


def test_there_is_no_interface_but_loopback(hit: Hit) -> None:
    """No address of the host and no route to anywhere."""
    code = """
import os, socket
def read(path):
    try:
        return open(path).read()
    except OSError:
        return ""
[[name for _, name in socket.if_nameindex()], read("/proc/net/route"), read("/etc/resolv.conf")]
"""
    names, routes, resolvers = hit(code).check().value
    assert set(names) <= {"lo"}
    assert len(routes.splitlines()) <= 1
    assert resolvers == "nameserver 198.19.0.3\n"  # the gateway's, where there is one: the image is the same
