"""The names that one execution has asked for: their stand-in addresses inside, and their real ones outside."""

from __future__ import annotations

import asyncio
import ipaddress
import time

from belljar_server.egress.resolver import Resolved, Resolver

STAND_INS = ipaddress.IPv4Network("198.18.0.0/16")
"""What the sandbox gets for names: addresses that no host has (RFC 2544), so one that is used says which name it is."""
FIRST = 16
MOST_NAMES = 4096


class TooManyNames(Exception):
    """The execution has asked for more names than are kept."""


class Names:
    """Mutable state: the stand-in of each name, and its real addresses for as long as they may be believed."""

    def __init__(self, resolver: Resolver) -> None:
        self._resolver = resolver
        self._stand_ins: dict[str, ipaddress.IPv4Address] = {}
        self._names: dict[ipaddress.IPv4Address, str] = {}
        self._resolved: dict[str, Resolved] = {}
        self._resolving: dict[str, asyncio.Task[Resolved]] = {}

    def stand_in(self, name: str) -> ipaddress.IPv4Address:
        """The address that the sandbox gets for a name. Raises TooManyNames."""
        known = self._stand_ins.get(name)
        if known:
            return known
        if len(self._stand_ins) >= MOST_NAMES:
            raise TooManyNames(f"more than {MOST_NAMES} names")
        address = STAND_INS[FIRST + len(self._stand_ins)]
        self._stand_ins[name] = address
        self._names[address] = name
        return address

    def name_of(self, address: ipaddress.IPv4Address) -> str | None:
        """The name that an address stands in for."""
        return self._names.get(address)

    async def resolve(self, name: str) -> Resolved:
        """The real addresses; many who ask at once share one question.

        Raises NoSuchName, ResolveFailed, TooManyNames.
        """
        known = self._resolved.get(name)
        if known and time.monotonic() < known.until:
            return known
        if known is None and len(self._resolved) + len(self._resolving) >= MOST_NAMES:
            raise TooManyNames(f"more than {MOST_NAMES} names")
        task = self._resolving.get(name)
        if task is None:
            task = asyncio.create_task(self._resolver.resolve(name))
            self._resolving[name] = task
            task.add_done_callback(lambda done: self._keep(name, done))
        return await asyncio.shield(task)

    def _keep(self, name: str, task: asyncio.Task[Resolved]) -> None:
        del self._resolving[name]
        if not task.cancelled() and not task.exception():
            self._resolved[name] = task.result()

    def close(self) -> None:
        """Asks no more."""
        for task in self._resolving.values():
            task.cancel()
