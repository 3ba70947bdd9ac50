"""Names to addresses, as the host sees them: asked of DNS servers alone, so that no file of the host adds a name."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import dns.asyncquery
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdatatype
import dns.resolver

from belljar_server.egress.addresses import Address
from belljar_server.errors import HostNotReady

LIFETIME = 5.0
"""Seconds that all attempts for one name may take."""
SHORTEST_TTL, LONGEST_TTL = 1.0, 300.0
LARGEST_ANSWER = 1232
"""Bytes that servers are told to keep to: some seventy addresses, in one packet (DNS flag day 2020)."""
MOST_ADDRESSES = 16
"""Addresses of one name that are kept. Whose name it is decides how many there are."""


class NoSuchName(Exception):
    """The name does not exist, or has no address."""


class ResolveFailed(Exception):
    """No server gave an answer."""


class _OverUdp(dns.nameserver.Do53Nameserver):
    """Asks over UDP only, and takes of a truncated answer what there is: 64 KiB over TCP take long to read."""

    async def async_query(self, request: dns.message.QueryMessage, *args: Any, **kwargs: Any) -> dns.message.Message:
        kwargs["max_size"] = False
        try:
            answer = await super().async_query(request, *args, **kwargs)
        except dns.message.Truncated as error:
            return cast("dns.message.Message", error.message())  # type: ignore[no-untyped-call]  # not typed
        if answer.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP) and request.edns >= 0:  # it knows no EDNS
            request.use_edns(False)
            return await self.async_query(request, *args, **kwargs)
        return answer


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
            raise HostNotReady(f"egress.dns_servers is empty, and the host has none either: {error}") from error
        found = servers or [(str(server), 53) for server in self._resolver.nameservers]
        self._resolver.nameservers = [_OverUdp(host, port) for host, port in found]
        self._resolver.use_edns(0, 0, LARGEST_ANSWER)
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
            if answer.rrset is None and answer.response.flags & dns.flags.TC:
                raise ResolveFailed(f"{name}: the answer has more than {LARGEST_ANSWER} bytes")
            if answer.rrset:
                ttl = min(max(float(answer.rrset.ttl), SHORTEST_TTL), LONGEST_TTL)
                found = tuple(ipaddress.ip_address(record.address) for record in islice(answer.rrset, MOST_ADDRESSES))
                return Resolved(found, time.monotonic() + ttl)
        raise NoSuchName(name)
