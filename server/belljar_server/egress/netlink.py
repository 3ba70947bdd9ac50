"""The few requests to the kernel's routing tables that a gateway needs, as raw rtnetlink (rtnetlink(7)).

Libraries for this cost 60 ms a namespace and `ip` a process each; these messages take one.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import Self

NETLINK_ROUTE = 0
REQUEST, ACK, CREATE, EXCLUSIVE = 0x1, 0x4, 0x400, 0x200
ERROR = 2
NEW_LINK, NEW_ADDRESS, NEW_ROUTE, GET_ROUTE = 16, 20, 24, 26
IFLA_IFNAME, IFLA_MTU, IFLA_LINKINFO, IFLA_AF_SPEC, IFLA_NET_NS_FD = 3, 4, 18, 26, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER, IFLA_INET6_ADDR_GEN_MODE = 1, 2, 1, 8
ADDR_GEN_MODE_NONE = 1
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY = 1, 4, 5
IFF_UP = 1
NESTED = 0x8000
RT_TABLE_MAIN, RTPROT_STATIC = 254, 4
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_HOST = 0, 253, 254
UNICAST, LOCAL = 1, 2
"""Types of routes."""

_HEADER = struct.Struct("=IHHII")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")

Request = tuple[int, int, bytes]


class Netlink:
    """A socket to the tables of the network namespace that this thread is in. Mutable state: the sequence number."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def request(self, *requests: Request) -> None:
        """Makes the requests in their order. Raises OSError for the first that the kernel refuses."""
        for kind, flags, body in requests:
            self._send(kind, flags | ACK, body)
            self._answer()

    def route_type(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> int:
        """Where packets to an address would go: LOCAL is this host itself. Raises OSError when they go nowhere."""
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        bits = address.max_prefixlen
        self._send(GET_ROUTE, 0, _ROUTE.pack(family, bits, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_DST, address.packed))
        kind, body = self._answer()
        return body[7] if kind == NEW_ROUTE else 0

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        self._socket.send(_HEADER.pack(_HEADER.size + len(body), kind, flags | REQUEST, self._sequence, 0) + body)

    def _answer(self) -> tuple[int, bytes]:
        data = self._socket.recv(65536)
        length, kind, *_ = _HEADER.unpack_from(data)
        body = data[_HEADER.size : length]
        if kind == ERROR:
            (code,) = struct.unpack_from("=i", body)
            if code:
                raise OSError(-code, os.strerror(-code))
        return kind, body


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | NESTED, b"".join(attributes))


def veth(name: str, peer: str, peer_namespace: int, mtu: int) -> Request:
    """A pair of links: one here, its peer in another namespace."""
    size = attribute(IFLA_MTU, struct.pack("=I", mtu))
    other = _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, peer.encode() + b"\0") + size
    other += attribute(IFLA_NET_NS_FD, struct.pack("=I", peer_namespace))
    body = _LINK.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, name.encode() + b"\0") + size
    body += nested(
        IFLA_LINKINFO,
        attribute(IFLA_INFO_KIND, b"veth\0"),
        nested(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, other)),
    )
    return NEW_LINK, CREATE | EXCLUSIVE, body


def without_ipv6(index: int) -> Request:
    """A link that is not up yet gets no IPv6 address by itself. Refused where the kernel has no IPv6."""
    mode = attribute(IFLA_INET6_ADDR_GEN_MODE, bytes([ADDR_GEN_MODE_NONE]))
    return NEW_LINK, 0, _LINK.pack(0, 0, index, 0, 0) + nested(IFLA_AF_SPEC, nested(socket.AF_INET6, mode))


def link_up(index: int) -> Request:
    """Takes a link into use."""
    return NEW_LINK, 0, _LINK.pack(0, 0, index, IFF_UP, IFF_UP)


def address(index: int, interface: ipaddress.IPv4Interface) -> Request:
    """Gives a link an address."""
    packed = interface.ip.packed
    body = _ADDRESS.pack(socket.AF_INET, interface.network.prefixlen, 0, SCOPE_UNIVERSE, index)
    return NEW_ADDRESS, CREATE | EXCLUSIVE, body + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed)


def route(network: ipaddress.IPv4Network, gateway: ipaddress.IPv4Address) -> Request:
    """What is for a network goes to a neighbour."""
    length = network.prefixlen
    body = _ROUTE.pack(socket.AF_INET, length, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, SCOPE_UNIVERSE, UNICAST, 0)
    body += attribute(RTA_DST, network.network_address.packed) + attribute(RTA_GATEWAY, gateway.packed)
    return NEW_ROUTE, CREATE | EXCLUSIVE, body


def everything_is_local(loopback: int) -> Request:
    """Packets to addresses that no other route names are taken as for this namespace itself."""
    body = _ROUTE.pack(socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, SCOPE_HOST, LOCAL, 0)
    return NEW_ROUTE, CREATE | EXCLUSIVE, body + attribute(RTA_OIF, struct.pack("=I", loopback))
