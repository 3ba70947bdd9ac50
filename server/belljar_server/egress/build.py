"""From the operator's settings to what all gateways share. Raises HostNotReady naming every setting that is wrong."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import replace

import structlog

from belljar_server.config import Egress
from belljar_server.egress import namespace, rules
from belljar_server.egress.addresses import NetworkRange
from belljar_server.egress.dial import Dialer, UpstreamProxy
from belljar_server.egress.gateway import Outside
from belljar_server.egress.resolver import Resolver
from belljar_server.errors import HostNotReady, SandboxFailed
from belljar_server.models import NetworkMode, Rule

log = structlog.get_logger()


def server_rules(settings: Egress) -> rules.ServerRules:
    """What the server allows at all. Raises HostNotReady."""
    trusted = tuple(_network(text) for text in settings.trusted_upstream_cidrs)
    modes = frozenset(NetworkMode) if settings.modes is None else {NetworkMode(mode) for mode in settings.modes}
    return rules.ServerRules(
        modes=frozenset({NetworkMode.NONE, *modes}),
        deny=tuple(_rules("egress.deny", settings.deny, trusted, denies=True)),
        always_allow=tuple(_rules("egress.always_allow", settings.always_allow, trusted, denies=False)),
        max_rules=settings.max_rules,
        trusted=trusted,
    )


def build(settings: Egress) -> tuple[rules.ServerRules, Outside | None]:
    """What the server allows, and the ways out, tried once; None when no request may have a network.

    A host that cannot make networks allows none, with a warning. Raises HostNotReady when the settings name modes.
    """
    server = server_rules(settings)
    if server.modes == {NetworkMode.NONE}:
        return server, None
    servers = [_server(text) for text in settings.dns_servers]
    proxy = _proxy(settings)
    try:
        namespace.make().close()
        resolver = Resolver(servers)
    except (SandboxFailed, HostNotReady) as error:
        if settings.modes is not None:
            raise HostNotReady(
                f'{error}; `belljar doctor` tells more. To allow none: egress.modes = ["none"]'
            ) from error
        log.warning("no request can have a network on this host", error=str(error))
        return replace(server, modes=frozenset({NetworkMode.NONE})), None
    return server, Outside(server, resolver, Dialer(proxy), settings.audit)


def _rules(where: str, texts: Iterable[str], trusted: tuple[NetworkRange, ...], *, denies: bool) -> Iterable[Rule]:
    for index, text in enumerate(texts):
        try:
            yield rules.parse(text, trusted, denies=denies)
        except rules.WrongRule as error:
            raise HostNotReady(f"{where}[{index}]: {text!r} {error}") from error


def _network(text: str) -> NetworkRange:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise HostNotReady(f"egress.trusted_upstream_cidrs: {error}") from error


def _server(text: str) -> tuple[str, int]:
    """An IP address, with a port or without."""
    host, port = (text, "53") if text.count(":") != 1 and not text.startswith("[") else text.rsplit(":", 1)
    host = host.removeprefix("[").removesuffix("]")
    try:
        if not 0 < int(port) <= 65535:
            raise ValueError(f"{port} is no port")
        return str(ipaddress.ip_address(host)), int(port)
    except ValueError as error:
        raise HostNotReady(f"egress.dns_servers: {text!r} is no address, with a port or without: {error}") from error


def _proxy(settings: Egress) -> UpstreamProxy | None:
    if not settings.upstream_proxy:
        return None
    user = password = ""
    if settings.upstream_proxy_credentials_file:
        try:
            user, _, password = settings.upstream_proxy_credentials_file.read_text().strip().partition(":")
        except (OSError, UnicodeDecodeError) as error:
            raise HostNotReady(f"egress.upstream_proxy_credentials_file: {error}") from error
    try:
        return UpstreamProxy.parse(settings.upstream_proxy, user, password)
    except ValueError as error:
        raise HostNotReady(f"egress.upstream_proxy: {settings.upstream_proxy!r} {error}") from error
