"""Names to addresses, as the host sees them: asked of DNS servers alone, so that no file of the host adds a name."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass

import dns.asyncresolver
import dns.exception
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver

from belljar_server.egress.addresses import Address
from belljar_server.errors import HostNotReady

LIFETIME = 5.0
"""Seconds that all attempts for one name may take."""
SHORTEST_TTL, LONGEST_TTL = 1.0, 300.0


class NoSuchName(Exception):
    """The name does not exist, or has no address."""


class ResolveFailed(Exception):
    """No server gave an answer."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """The addresses of a name, and until when they may be believed."""

    addresses: tuple[Address, ...]
    until: float
    """By the monotonic clock."""


class Resolver:
    """Asks DNS servers. It keeps no answers: one execution must not see what another one asked."""

    def __init__(self, servers: Sequence[tuple[str, int]] = ()) -> None:
        """`servers` are addresses and ports; none means those of /etc/resolv.conf. Raises HostNotReady."""
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=not servers)
        except dns.resolver.NoResolverConfiguration as error:
            raise HostNotReady(f"network.dns_servers is empty, and the host has none either: {error}") from error
        if servers:
            self._resolver.nameservers = [dns.nameserver.Do53Nameserver(host, port) for host, port in servers]
        self._resolver.cache = None
        self._resolver.lifetime = LIFETIME

    async def resolve(self, name: str) -> Resolved:
        """The IPv4 addresses of a name, else its IPv6 ones. Raises NoSuchName, ResolveFailed."""
        absolute = dns.name.from_text(name + ".")
        for kind in (dns.rdatatype.A, dns.rdatatype.AAAA):
            try:
                answer = await self._resolver.resolve(absolute, kind, search=False, raise_on_no_answer=False)
            except dns.resolver.NXDOMAIN:
                raise NoSuchName(name) from None
            except (dns.exception.DNSException, OSError) as error:
                raise ResolveFailed(f"{name}: {error}") from error
            if answer.rrset:
                ttl = min(max(float(answer.rrset.ttl), SHORTEST_TTL), LONGEST_TTL)
                found = tuple(ipaddress.ip_address(record.address) for record in answer.rrset)
                return Resolved(found, time.monotonic() + ttl)
        raise NoSuchName(name)
