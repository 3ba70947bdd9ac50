"""A small internet in namespaces of its own: an outside with servers, and a host whose only way leads there.

Nothing of it has a name or touches the machine's own network; it is gone when its files are closed.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from belljar_server.egress import namespace, netlink

T = TypeVar("T")

HOST = ipaddress.IPv4Interface("11.22.33.1/24")
"""The host's own address; public, as a cloud machine's may be."""
ROUTER = ipaddress.IPv4Interface("11.22.33.254/24")
DNS = "11.22.33.53"
DNS_SERVERS = f'["{DNS}"]'
"""As the setting has it."""
OUTSIDE = (DNS, "11.22.33.44", "11.22.33.45", "11.22.33.66", "10.99.0.5", "169.254.169.254", "100.64.0.9")
"""Where the outside's servers listen: a name server, three public hosts, and three that nobody must reach."""
FRESH = ("11.22.33.99",)
"""An address of the outside at which nobody listens."""


@dataclass(frozen=True)
class World:
    """The two namespaces, as open files."""

    host: int
    outside: int

    @property
    def host_path(self) -> str:
        """For `nsenter --net=…`."""
        return f"/proc/{os.getpid()}/fd/{self.host}"

    @property
    def outside_path(self) -> str:
        """The same of the outside."""
        return f"/proc/{os.getpid()}/fd/{self.outside}"


@contextlib.contextmanager
def world() -> Iterator[World]:
    """Both namespaces, with links, addresses and routes."""
    made = in_namespace(None, _make)
    try:
        yield made
    finally:
        os.close(made.host)
        os.close(made.outside)


def in_namespace(entered: int | None, work: Callable[[], T]) -> T:
    """Runs in a thread in that namespace, or in a thread that makes its own."""

    def enter_and_work() -> T:
        if entered is not None:
            namespace._enter(entered)
        return work()

    return namespace._in_thread(enter_and_work)


def _make() -> World:
    namespace._unshare()
    host = namespace._here()
    with netlink.Netlink() as on_host:
        namespace._unshare()
        outside = namespace._here()
        with netlink.Netlink() as here:
            here.request(netlink.veth("outside", "eth0", host, 1500))
            link = socket.if_nametoindex("outside")
            here.request(netlink.address(link, ROUTER), netlink.link_up(link), netlink.link_up(namespace.LOOPBACK))
            for text in (*OUTSIDE, *FRESH):
                here.request(netlink.address(namespace.LOOPBACK, ipaddress.IPv4Interface(f"{text}/32")))
        namespace._enter(host)
        link = socket.if_nametoindex("eth0")
        on_host.request(
            netlink.address(link, HOST),
            netlink.link_up(link),
            netlink.link_up(namespace.LOOPBACK),
            netlink.route(ipaddress.IPv4Network("0.0.0.0/0"), ROUTER.ip),
        )
    return World(host, outside)


@contextlib.contextmanager
def servers(outside: str, directory: Path) -> Iterator[None]:
    """The outside's servers, in the namespace at that path, with their log and certificate in a folder."""
    program = [sys.executable, "-m", "tests.hostile.network.outside", str(directory), *OUTSIDE]
    with (directory / "errors").open("wb") as errors:
        process = subprocess.Popen(
            ["nsenter", f"--net={outside}", *program],
            cwd=Path(__file__).parents[3],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "listening\n", (directory / "errors").read_text()
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextlib.contextmanager
def way_in(place: World, port: int) -> Iterator[str]:
    """An address on the machine's loopback that leads to a port on the loopback of the world's host."""
    listener = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 18):
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def carry(here: socket.socket, there: socket.socket) -> None:
        with here, there:
            back = threading.Thread(target=pump, args=(there, here), daemon=True)
            back.start()
            pump(here, there)
            back.join()

    def serve() -> None:
        namespace._enter(place.host)  # what this thread makes from here on is there
        with contextlib.suppress(OSError):
            while True:
                here, _ = listener.accept()
                try:
                    there = socket.create_connection(("127.0.0.1", port))
                except OSError:
                    here.close()
                    continue
                threading.Thread(target=carry, args=(here, there), daemon=True).start()

    thread = threading.Thread(target=serve, name="way in", daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        listener.close()
