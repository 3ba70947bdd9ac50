"""A pair of network namespaces: one for a sandbox, and beside it a gateway that leads nowhere.

Both have no name: open files hold them, so they and all in them are gone when the server is, however it ends. Nothing
is ever changed in the host's own namespace. Everything here runs in a thread of its own for each call, since a thread
is what enters a namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from belljar_server.egress import netlink
from belljar_server.errors import SandboxFailed

T = TypeVar("T")

GATEWAY = ipaddress.IPv4Interface("198.19.0.3/31")
"""What the sandbox sends to, and its name server (`/etc/resolv.conf` in images)."""
SANDBOX = ipaddress.IPv4Interface("198.19.0.2/31")
ROUTED = tuple(
    ipaddress.IPv4Network(text)
    for text in ("0.0.0.0/1", "128.0.0.0/2", "192.0.0.0/3", "240.0.0.0/5", "248.0.0.0/6", "252.0.0.0/7", "254.0.0.0/8")
)
"""All but multicast and 255.0.0.0/8: no kernel answers TCP to such addresses, so code would wait for nobody. Without a
route it is told at once that they are unreachable."""
PROXY_PORT, DNS_PORT = 15001, 53
MTU = 65535
"""Between two ends of one cable in memory; large packets cost the sandbox less."""
BACKLOG = 256
CLONE_NEWNET = 0x40000000
SOL_IP, IP_TRANSPARENT, IP_PKTINFO, IP_RECVORIGDSTADDR = 0, 19, 8, 20
LOOPBACK = 1
"""Its index in every namespace."""

RULES = f"""
table ip belljar {{
    chain arrive {{
        type filter hook prerouting priority mangle; policy drop;
        iifname "lo" accept
        ip saddr != {SANDBOX.ip} drop
        meta l4proto tcp tproxy to :{PROXY_PORT} accept
        udp dport {DNS_PORT} tproxy to :{DNS_PORT} accept
        meta l4proto {{ udp, icmp }} reject with icmp port-unreachable
    }}
    chain forward {{
        type filter hook forward priority filter; policy drop;
    }}
}}
table ip6 belljar {{
    chain arrive {{
        type filter hook prerouting priority raw; policy drop;
    }}
}}
"""
"""All TCP to the proxy, with the address that was meant; DNS to the responder; the rest is refused at once."""

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two namespaces and the sockets in the gateway: whoever has it closes it."""

    sandbox: int
    """The sandbox's namespace, as an open file."""
    gateway: int
    proxy: socket.socket
    """Accepts every TCP connection; its own address is the one that the sandbox meant."""
    dns: socket.socket
    counters: int
    """The gateway's `/proc/net/snmp`, as an open file."""

    def count_refused(self) -> int:
        """How many packets were refused: nothing but `RULES` makes this namespace say that a port is unreachable."""
        lines = [line.split() for line in os.pread(self.counters, 65536, 0).decode().splitlines()]
        names, values = (line for line in lines if line and line[0] == "Icmp:")
        return int(dict(zip(names, values, strict=False)).get("OutDestUnreachs", 0))

    def close(self) -> None:
        """Lets go of both; the kernel removes them once the sandbox is gone too."""
        self.proxy.close()
        self.dns.close()
        os.close(self.sandbox)
        os.close(self.gateway)
        os.close(self.counters)


def make() -> Pair:
    """A fresh pair. Takes a few milliseconds. Raises SandboxFailed."""
    try:
        return _in_thread(_make)
    except OSError as error:
        raise SandboxFailed(f"no network for a sandbox: {error}") from error


def _in_thread(work: Callable[[], T]) -> T:
    """Runs in a thread that ends afterwards, and takes the namespace that it entered with it."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001  raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="namespace")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _make() -> Pair:
    opened: list[int] = []
    sockets: list[socket.socket] = []
    try:
        _unshare()
        opened.append(_here())
        with netlink.Netlink() as in_sandbox:
            _unshare()
            opened.append(_here())
            sandbox, gateway = opened
            with netlink.Netlink() as here:
                here.request(netlink.veth("gateway", "eth0", sandbox, MTU))
                link = socket.if_nametoindex("gateway")
                _without_ipv6(here, link)
                here.request(
                    netlink.address(link, GATEWAY),
                    netlink.link_up(link),
                    netlink.link_up(LOOPBACK),
                    netlink.everything_is_local(LOOPBACK),
                )
            _filter(RULES)
            with contextlib.suppress(OSError):  # where it is read-only, refusals beyond one a second are silent
                Path("/proc/sys/net/ipv4/icmp_ratelimit").write_text("0")
            sockets.append(_listen(socket.SOCK_STREAM, PROXY_PORT))
            sockets.append(_listen(socket.SOCK_DGRAM, DNS_PORT))
            counters = os.open("/proc/thread-self/net/snmp", os.O_RDONLY | os.O_CLOEXEC)
            opened.append(counters)
            _enter(sandbox)
            peer = socket.if_nametoindex("eth0")
            _without_ipv6(in_sandbox, peer)
            in_sandbox.request(
                netlink.address(peer, SANDBOX),
                netlink.link_up(peer),
                netlink.link_up(LOOPBACK),
                *(netlink.route(network, GATEWAY.ip) for network in ROUTED),
            )
    except BaseException:
        for each in sockets:
            each.close()
        for fd in opened:
            os.close(fd)
        raise
    proxy, dns = sockets
    return Pair(sandbox, gateway, proxy, dns, counters)


def _listen(kind: int, port: int) -> socket.socket:
    """A socket in this thread's namespace that takes what is meant for any address."""
    listener = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    listener.setsockopt(SOL_IP, IP_TRANSPARENT, 1)
    if kind == socket.SOCK_DGRAM:
        listener.setsockopt(SOL_IP, IP_RECVORIGDSTADDR, 1)
    listener.bind(("0.0.0.0", port))
    if kind == socket.SOCK_STREAM:
        listener.listen(BACKLOG)
    return listener


def _without_ipv6(tables: netlink.Netlink, link: int) -> None:
    with contextlib.suppress(OSError):  # a kernel without IPv6 gives no such address anyway
        tables.request(netlink.without_ipv6(link))


def _unshare() -> None:
    if _libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"a network namespace cannot be made: {os.strerror(code)}")


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"a network namespace cannot be entered: {os.strerror(code)}")


def _here() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _filter(rules: str) -> None:
    """Loads nftables rules into this thread's namespace, by the library that the `nft` command is made of."""
    library = ctypes.CDLL("libnftables.so.1")
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    try:
        library.nft_ctx_buffer_error(context)
        if library.nft_run_cmd_from_buffer(context, ctypes.c_char_p(rules.encode())) != 0:
            said = library.nft_ctx_get_error_buffer(context).decode(errors="replace").strip()
            raise OSError(f"nftables refused the gateway's rules: {said}")
    finally:
        library.nft_ctx_free(context)
