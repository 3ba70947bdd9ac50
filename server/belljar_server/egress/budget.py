"""How much one execution may do over the network, and the record of what it did and what it was denied."""

from __future__ import annotations

import time

from belljar_server.egress.rules import Denial
from belljar_server.models import DeniedConnection, NetworkLimits, Traffic

MOST_DENIED = 100
"""Different denials that are told; the rest is counted in the last one."""


class Exhausted(Exception):
    """A bound is reached; says which."""


class Budget:
    """One execution's account. Mutable state: what was used so far, and what was denied."""

    def __init__(self, limits: NetworkLimits) -> None:
        self.limits = limits
        self.open = 0
        self.connections = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self.dns_queries = 0
        self._tokens = float(limits.connections_per_second)
        self._tokens_at = time.monotonic()
        self._denied: dict[tuple[str, int, str], tuple[str, int]] = {}

    def __repr__(self) -> str:
        """What was used."""
        used = f"{self.open} open of {self.connections}, {self.bytes_in} in, {self.bytes_out} out"
        return f"<Budget {used}, {self.dns_queries} queries, {len(self._denied)} denied>"

    def connect(self) -> None:
        """A connection begins; `disconnect` ends it. Raises Exhausted."""
        now = time.monotonic()
        rate = self.limits.connections_per_second
        self._tokens = min(float(rate), self._tokens + (now - self._tokens_at) * rate)
        self._tokens_at = now
        if self.open >= self.limits.connections:
            raise Exhausted(f"more than {self.limits.connections} connections at once (network.limits.connections)")
        if self._tokens < 1:
            raise Exhausted(
                f"more than {rate} new connections a second (network.limits.connections_per_second)",
            )
        self._tokens -= 1
        self.open += 1
        self.connections += 1

    def disconnect(self) -> None:
        """A connection is over."""
        self.open -= 1

    def receive(self, size: int) -> None:
        """Bytes for the code. Raises Exhausted."""
        self.bytes_in += size
        if self.bytes_in > self.limits.bytes_in:
            raise Exhausted(f"more than {self.limits.bytes_in} bytes received (network.limits.bytes_in)")

    def send(self, size: int) -> None:
        """Bytes of the code. Raises Exhausted."""
        self.bytes_out += size
        if self.bytes_out > self.limits.bytes_out:
            raise Exhausted(f"more than {self.limits.bytes_out} bytes sent (network.limits.bytes_out)")

    def query(self) -> None:
        """A DNS query. Raises Exhausted."""
        self.dns_queries += 1
        if self.dns_queries > self.limits.dns_queries:
            raise Exhausted(f"more than {self.limits.dns_queries} DNS queries (network.limits.dns_queries)")

    def deny(self, host: str, port: int, denial: Denial) -> None:
        """Notes what was not let through."""
        key = (host, port, denial.reason)
        if key not in self._denied and len(self._denied) >= MOST_DENIED:
            key, denial = ("", 0, "more hosts than are told"), Denial("")
        self._denied[key] = (denial.rule, self._denied.get(key, ("", 0))[1] + 1)

    def traffic(self) -> Traffic:
        """All of it so far."""
        denied = tuple(
            DeniedConnection(host, port, reason, rule, count)
            for (host, port, reason), (rule, count) in self._denied.items()
        )
        return Traffic(self.connections, self.bytes_in, self.bytes_out, self.dns_queries, denied)
