"""Which addresses count as public: by table, and by property."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar_server.egress import addresses


def words(text: str) -> list[str]:
    """The table's cells."""
    return text.split()


NOT_PUBLIC = words("""
0.0.0.0 0.1.2.3 10.0.0.0 10.0.0.1 10.255.255.255 100.64.0.0 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.0
127.0.0.1 127.1.2.3 127.255.255.255 168.63.129.16 169.254.0.1 169.254.169.254 169.254.170.2 169.254.255.255
172.16.0.0 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.192 192.0.2.1 192.88.99.1 192.168.0.0 192.168.0.1
192.168.255.255 198.18.0.1 198.19.255.255 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.255 240.0.0.1 255.255.255.254
255.255.255.255
127.1 127.0.1 127.0.0.1. 2130706433 0x7f000001 017700000001 0x7f.1 0177.0.0.1 0177.1 00000177.0x0.00.1 0x7F.0X0.0.1
0 0x0 00 0.0 2852039166 0xa9fea9fe 0251.0376.0251.0376 169.16689662 0xA9.0xFE.0xA9.0xFE 10.1 012.1 0xa.1 167772161
3232235521 0xc0a80001 192.168.1 192.11010049
::1 [::1] 0:0:0:0:0:0:0:1 :: ::127.0.0.1 ::7f00:1 ::ffff:127.0.0.1 ::ffff:7f00:1 ::FFFF:10.0.0.1 ::ffff:169.254.169.254
[::ffff:192.168.0.1] ::ffff:0:127.0.0.1 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::10.0.0.1 64:ff9b:1::1
2002:7f00:1:: 2002:a9fe:a9fe:: 2002:c0a8:1::1 2001::1 2001:0:7f00:1::1 2001:db8::1 fe80::1 fe80::1%eth0 fec0::1
fc00::1 fd00::1 fd00:ec2::254 ff02::1 ff05::1 100::1 3fff::1 5f00::1 4000::1 fe80::5efe:10.0.0.1
2606:4700::5efe:10.0.0.1 2606:4700::200:5efe:127.0.0.1
""")
PUBLIC = words("""
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0 134744072 0x08080808
010.8.8.8 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0 192.167.255.255 192.169.0.0
198.17.255.255 198.20.0.0
203.0.112.255 203.0.114.0 223.255.255.255 ::ffff:8.8.8.8 64:ff9b::8.8.8.8 2606:4700:4700::1111 2001:4860:4860::8888
2a00:1450::1 [2600::1]
""")


@pytest.mark.parametrize("text", NOT_PUBLIC)
def test_what_is_not_public_is_told_in_every_notation(text: str) -> None:
    """Private, loopback, link-local, metadata, multicast, reserved: decimal, octal, hex, short, mapped, translated."""
    address = addresses.parse(text)
    assert address is not None
    assert addresses.problem(address)


@pytest.mark.parametrize("text", PUBLIC)
def test_neighbours_of_what_is_not_public_are(text: str) -> None:
    """The ranges end where they end."""
    address = addresses.parse(text)
    assert address is not None
    assert addresses.problem(address) == ""


@pytest.mark.parametrize(
    "text",
    ["", "example.com", "1.2.3.4.5", "256.1.1.1", "1.2.3.4 ", "127.0.0.1 x", "0x", "08.1.1.1", "::g", "\uff11.1.1.1"],
)
def test_what_no_resolver_takes_for_an_address_is_none(text: str) -> None:
    """So it is judged as a name."""
    assert addresses.parse(text) is None


@given(st.ip_addresses(v=4))
def test_an_ipv4_address_that_python_calls_private_never_passes(address: ipaddress.IPv4Address) -> None:
    """An independent table agrees: ours may be stricter, never laxer."""
    if not address.is_global or address.is_multicast or address.is_reserved:
        assert addresses.problem(address)


@given(st.ip_addresses(v=6))
def test_an_ipv6_address_that_python_calls_private_never_passes(address: ipaddress.IPv6Address) -> None:
    """The same for the other family; what carries an IPv4 address is judged by that one."""
    if addresses.carried(address) is address and (not address.is_global or address.is_multicast or address.is_reserved):
        assert addresses.problem(address)


@given(st.ip_addresses(v=4))
def test_wrapping_a_private_address_does_not_make_it_public(address: ipaddress.IPv4Address) -> None:
    """Mapped, translated, or written as one number: the verdict is the same."""
    number = int(address)
    told = addresses.problem(address)
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}", str(number), hex(number), f"0{number:o}"):
        parsed = addresses.parse(wrapped)
        assert parsed is not None
        assert addresses.problem(parsed) == told


def test_a_trusted_network_is_reached_whatever_it_is() -> None:
    """The operator's interception proxy in a reserved range."""
    trusted = (ipaddress.ip_network("203.0.113.0/24"),)
    assert addresses.problem(ipaddress.ip_address("203.0.113.80"), trusted) == ""
    assert addresses.problem(ipaddress.ip_address("::ffff:203.0.113.80"), trusted) == ""
    assert addresses.problem(ipaddress.ip_address("198.51.100.1"), trusted)
