"""Which addresses are public, and which are private, of the host, or of a cloud's metadata service. Pure.

IPv4 has a table of what is not public; of IPv6 only what is global unicast is taken for public, so that what is given a
meaning later is not reached by accident. An IPv6 address that carries an IPv4 one is judged by that one.
"""

from __future__ import annotations

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
NetworkRange = ipaddress.IPv4Network | ipaddress.IPv6Network

_KINDS = {
    # IANA's special-purpose registries (RFC 6890 and what updates it), and addresses that clouds gave a meaning.
    "this network": ("0.0.0.0/8",),
    "a private address": ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"),
    "a carrier's shared address": ("100.64.0.0/10",),
    "a loopback address": ("127.0.0.0/8",),
    "a cloud's metadata address": ("169.254.169.254/32", "168.63.129.16/32", "192.0.0.192/32", "100.100.100.200/32"),
    "a link-local address": ("169.254.0.0/16",),
    "a reserved address": ("192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.175.48.0/24"),
    "an address for documentation": ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"),
    "an address for benchmarks": ("198.18.0.0/15",),
    "a multicast address": ("224.0.0.0/4",),
    "the broadcast address": ("255.255.255.255/32",),
    "an address reserved for the future": ("240.0.0.0/4",),
}
_NOT_PUBLIC = sorted(
    ((ipaddress.IPv4Network(text), kind) for kind, texts in _KINDS.items() for text in texts),
    key=lambda row: -row[0].prefixlen,
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(text)
    for text in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP = (0x00005EFE, 0x02005EFE)
"""Upper half of an interface identifier whose lower half is an IPv4 address (RFC 5214)."""


def parse(text: str) -> Address | None:
    """The address in any notation that some resolver takes for one (`127.1`, `0x7f000001`, `017700000001`, `::1`)."""
    try:
        return ipaddress.ip_address(text.removeprefix("[").removesuffix("]").partition("%")[0])
    except ValueError:
        pass
    if not text or not text.isascii() or any(character.isspace() for character in text):
        return None  # glibc reads as far as the first space
    try:
        return ipaddress.IPv4Address(socket.inet_aton(text.removesuffix(".")))
    except OSError:
        return None


def carried(address: Address) -> Address:
    """The IPv4 address in an IPv6 one that means it (mapped, NAT64), else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


def problem(address: Address, trusted: tuple[NetworkRange, ...] = ()) -> str:
    """What kind of address it is when it is not public, as words after "is"; else an empty string."""
    address = carried(address)
    if any(address in network for network in trusted if network.version == address.version):
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return next((kind for network, kind in _NOT_PUBLIC if address in network), "")
    if address not in _GLOBAL_UNICAST or any(network for network in _NOT_PUBLIC_6 if address in network):
        return "a loopback address" if address.is_loopback else "not a public address"
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        return problem(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF), trusted)
    return ""


def range_problem(network: ipaddress.IPv4Network, trusted: tuple[NetworkRange, ...] = ()) -> str:
    """The same for a whole range: what in it is not public."""
    if any(network.subnet_of(each) for each in trusted if isinstance(each, ipaddress.IPv4Network)):
        return ""
    return next((kind for other, kind in _NOT_PUBLIC if network.overlaps(other)), "")
