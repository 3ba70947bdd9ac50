"""From the operator's settings to what all gateways share. Raises HostNotReady naming every setting that is wrong."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from belljar_server.config import Egress
from belljar_server.egress import namespace, rules
from belljar_server.egress.addresses import NetworkRange
from belljar_server.egress.dial import Dialer, UpstreamProxy
from belljar_server.egress.gateway import Outside
from belljar_server.egress.resolver import Resolver
from belljar_server.errors import HostNotReady, SandboxFailed
from belljar_server.models import NetworkMode, Rule


def server_rules(settings: Egress) -> rules.ServerRules:
    """What the server allows at all. Raises HostNotReady."""
    trusted = tuple(_network(text) for text in settings.trusted_upstream_cidrs)
    return rules.ServerRules(
        modes=frozenset({NetworkMode.NONE, *(NetworkMode(mode) for mode in settings.modes)}),
        deny=tuple(_rules("egress.deny", settings.deny, trusted, denies=True)),
        always_allow=tuple(_rules("egress.always_allow", settings.always_allow, trusted, denies=False)),
        max_rules=settings.max_rules,
        trusted=trusted,
    )


def outside(settings: Egress, server: rules.ServerRules) -> Outside | None:
    """The ways out, tried once; None when no request may have a network. Raises HostNotReady."""
    if server.modes == {NetworkMode.NONE}:
        return None
    try:
        namespace.make().close()
    except SandboxFailed as error:
        raise HostNotReady(
            f'{error}. `belljar setup` installs what is missing; or allow no network: egress.modes = ["none"]'
        ) from error
    resolver = Resolver([_server(text) for text in settings.dns_servers])
    return Outside(server, resolver, Dialer(_proxy(settings)), settings.audit)


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
