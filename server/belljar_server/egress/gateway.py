"""The network of one sandbox: its namespaces and, while it runs code, the proxy and the name server that serve them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from belljar_server.egress import namespace
from belljar_server.egress.budget import Budget
from belljar_server.egress.dial import Dialer
from belljar_server.egress.dns import Responder
from belljar_server.egress.names import Names
from belljar_server.egress.proxy import Proxy
from belljar_server.egress.resolver import Resolver
from belljar_server.egress.rules import Policy, ServerRules
from belljar_server.models import Network, Traffic


@dataclass(frozen=True, slots=True)
class Outside:
    """What all gateways of a server share: its rules, and the ways out."""

    rules: ServerRules
    resolver: Resolver
    dialer: Dialer
    audit: bool = False
    """Whether every connection has a line in the log."""

    async def gateway(self) -> Gateway:
        """A fresh one, closed to everything. Raises SandboxFailed."""
        making = asyncio.ensure_future(asyncio.to_thread(namespace.make))
        try:
            return Gateway(await asyncio.shield(making), self)
        except asyncio.CancelledError:
            making.add_done_callback(_close_unwanted)
            raise


def _close_unwanted(making: asyncio.Future[namespace.Pair]) -> None:
    if not making.cancelled() and not making.exception():
        making.result().close()


class Gateway:
    """Mutable state: the namespaces, and what serves them between `open` and `shut`."""

    def __init__(self, pair: namespace.Pair, outside: Outside) -> None:
        self._pair = pair
        self._outside = outside
        self._names: Names | None = None
        self._responder: Responder | None = None
        self._proxy: Proxy | None = None
        self._budget: Budget | None = None
        self._refused = 0
        self._closed = False

    def __repr__(self) -> str:
        """Whether anything gets through."""
        state = "closed" if self._closed else "open" if self._proxy else "shut"
        return f"<Gateway {state} {self._budget or ''}>"

    @property
    def namespace(self) -> int:
        """The sandbox's network namespace, as an open file."""
        return self._pair.sandbox

    def open(self, network: Network, execution_id: str) -> None:
        """Lets through what one execution may reach. Once in the life of a sandbox."""
        outside = self._outside
        policy = Policy(network, outside.rules)
        self._budget = Budget(network.limits)
        self._names = Names(outside.resolver)
        self._responder = Responder(self._pair.dns, policy, self._names, self._budget)
        audit = execution_id if outside.audit else None
        self._proxy = Proxy(self._pair.proxy, policy, self._names, self._budget, outside.dialer, audit=audit)

    def shut(self) -> Traffic:
        """Lets nothing through any more, and tells what did. Safe to call twice, and before `open`."""
        if self._proxy:
            self._refused = self._pair.count_refused()
        for part in (self._proxy, self._responder, self._names):
            if part:
                part.close()
        self._proxy = self._responder = self._names = None
        return replace(self._budget.traffic(), refused_packets=self._refused) if self._budget else Traffic()

    def close(self) -> None:
        """Lets go of the namespaces. Safe to call twice."""
        self.shut()
        if not self._closed:
            self._closed = True
            self._pair.close()
