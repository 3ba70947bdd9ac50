"""What may be reached: rules by name or network and port, parsed once and matched. Pure.

A rule is `example.com` (ports 443 and 80), `example.com:5432`, `example.com:*`, `*.example.com` (what is below, not the
name itself), `203.0.113.7:22` or `203.0.113.0/24:443`. Names are compared in lower-case ASCII (IDNA 2008 with the
mapping of UTS 46), without the dot at the end. A network is matched against addresses that code connects to by number.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

import idna

from belljar_server.egress import addresses
from belljar_server.models import Network, NetworkMode, Rule

USUAL_PORTS = frozenset({443, 80})
LONGEST_RULE = 300
WIDEST_NETWORK = 8
"""Shortest prefix of a network: whoever wants everything says FULL, and is judged by that."""
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")


class WrongRule(ValueError):
    """A rule that cannot be understood or is never allowed; says why, as words after the rule."""


def parse(text: str, trusted: tuple[addresses.NetworkRange, ...] = (), *, denies: bool = False) -> Rule:
    """The rule in a text. `denies`: it takes away, so private networks and wide ones are fine. Raises WrongRule."""
    _check_form(text)
    host, colon, port = text.partition(":")
    ports = _ports(port) if colon else None if denies else USUAL_PORTS
    network = _network(host)
    if network:
        if not denies:
            _check_network(network, trusted)
        return Rule(text, ports, network=network)
    if "/" in host:
        raise WrongRule("is neither a network like 203.0.113.0/24 nor a host without a path")
    name, below = _name(host)
    if below and "." not in name and not denies:
        raise WrongRule("is too wide: at least two parts must follow the *, as in *.example.com")
    return Rule(text, ports, name=name, below=below)


def _check_form(text: str) -> None:
    if len(text) > LONGEST_RULE:
        raise WrongRule(f"has {len(text)} characters; at most {LONGEST_RULE} are allowed")
    if not text or any(character.isspace() or not character.isprintable() for character in text):
        raise WrongRule("is empty or has spaces or control characters")
    if "://" in text or "@" in text or "?" in text or "#" in text:
        raise WrongRule("is a URL; write the host alone, like example.com or example.com:5432")
    if text.count(":") > 1 or "[" in text:
        raise WrongRule("is an IPv6 address; sandboxes speak IPv4, and reach IPv6 hosts by their name")


def _name(host: str) -> tuple[str, bool]:
    """A normalised name, and whether what is below it is meant."""
    bare = host.removeprefix("*.")
    if "*" in bare:
        raise WrongRule("has a * that is not the whole first part, as in *.example.com")
    name = normalise(bare)
    if not name:
        raise WrongRule("has no valid host name")
    return name, bare != host


def _ports(text: str) -> frozenset[int] | None:
    if text == "*":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 5 or not 0 < int(text) < 65536:
        raise WrongRule("has a port that is neither a number from 1 to 65535 nor *")
    return frozenset({int(text)})


def _network(host: str) -> ipaddress.IPv4Network | None:
    base, slash, prefix = host.partition("/")
    address = addresses.parse(base)
    if not isinstance(address, ipaddress.IPv4Address):
        return None
    if slash and not (prefix.isascii() and prefix.isdigit() and int(prefix) <= 32):
        raise WrongRule("has a prefix that is not a number from 0 to 32")
    try:
        return ipaddress.IPv4Network((address, int(prefix) if slash else 32))
    except ValueError:
        raise WrongRule("is no network: it has bits set behind its prefix") from None


def _check_network(network: ipaddress.IPv4Network, trusted: tuple[addresses.NetworkRange, ...]) -> None:
    kind = addresses.range_problem(network, trusted)
    if kind and network.prefixlen == 32:
        raise WrongRule(f"is {kind}, which is never reached")
    if network.prefixlen < WIDEST_NETWORK:
        raise WrongRule(f"is too wide: a prefix of at least {WIDEST_NETWORK} is wanted")
    if kind and any(addresses.problem(end, trusted) for end in (network.network_address, network.broadcast_address)):
        raise WrongRule(f"is or holds {kind}, which is never reached")


def normalise(name: str) -> str:
    """A host name in lower-case ASCII without the dot at the end; an empty string when it is none."""
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode()
        except (idna.IDNAError, UnicodeError):
            return ""
    name = name.lower().removesuffix(".")
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        return ""
    if labels[-1].isdigit() or addresses.parse(name):  # no top-level domain is a number: this is an address, or none
        return ""
    return name


def matches_name(rule: Rule, name: str, port: int | None) -> bool:
    """Whether a rule means a normalised name at a port; without a port, at any."""
    same = name.endswith(f".{rule.name}") if rule.below else name == rule.name
    return bool(rule.name) and same and (port is None or rule.ports is None or port in rule.ports)


def matches_address(rule: Rule, address: addresses.Address, port: int) -> bool:
    """Whether a rule means an address at a port."""
    return rule.network is not None and address in rule.network and (rule.ports is None or port in rule.ports)


def denied_by(rule: Rule, deny: tuple[Rule, ...]) -> Rule | None:
    """The denying rule that takes away all that a rule would allow, if there is one."""
    for other in deny:
        if other.ports is not None and (rule.ports is None or not rule.ports <= other.ports):
            continue
        if rule.network and other.network and rule.network.subnet_of(other.network):
            return other
        same = rule.name == other.name and rule.below == other.below
        if rule.name and other.name and (same or (other.below and rule.name.endswith(f".{other.name}"))):
            return other
    return None


@dataclass(frozen=True, slots=True)
class ServerRules:
    """What the operator of a server allows at all."""

    modes: frozenset[NetworkMode] = frozenset({NetworkMode.NONE})
    deny: tuple[Rule, ...] = ()
    always_allow: tuple[Rule, ...] = ()
    """In force for every execution with ALLOWLIST."""
    max_rules: int = 0
    trusted: tuple[addresses.NetworkRange, ...] = ()
    """Networks that count as public whatever they are."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why something is not let through, and the rule that would have allowed it (empty when none can)."""

    reason: str
    rule: str = ""


class Policy:
    """What one execution may reach: its own rules and the server's together."""

    def __init__(self, network: Network, server: ServerRules) -> None:
        self.mode = network.mode
        self._allow = (*network.allow, *server.always_allow)
        self._server = server

    @property
    def denies_names(self) -> bool:
        """Whether the server has rules against names."""
        return any(rule.name for rule in self._server.deny)

    def name(self, name: str, port: int | None) -> Denial | None:
        """Why a normalised name may not be reached at a port (or at any, when it is only asked for), or None."""
        denied = self.denies(name, port)
        if denied:
            return denied
        if self.mode is NetworkMode.FULL or any(matches_name(rule, name, port) for rule in self._allow):
            return None
        return Denial("no rule in network.allow names it", _suggested(name, port))

    def denies(self, name: str, port: int | None) -> Denial | None:
        """Why the server's own rules deny a normalised name, or None."""
        for rule in self._server.deny:
            if matches_name(rule, name, port) and (port is not None or rule.ports is None):
                return Denial(f"the server's own rule {rule.text} denies it")
        return None

    def address(self, address: ipaddress.IPv4Address, port: int) -> Denial | None:
        """Why an address that the code names itself may not be reached, or None."""
        denial = self.resolved(address, port)
        if denial or self.mode is NetworkMode.FULL:
            return denial
        if any(matches_address(rule, address, port) for rule in self._allow):
            return None
        return Denial("no rule in network.allow holds this address", _suggested(str(address), port))

    def resolved(self, address: addresses.Address, port: int) -> Denial | None:
        """Why an address must not be connected to, wherever it comes from, or None."""
        kind = addresses.problem(address, self._server.trusted)
        if kind:
            return Denial(f"{address} is {kind}, which is never reached")
        address = addresses.carried(address)
        for rule in self._server.deny:
            if matches_address(rule, address, port):
                return Denial(f"the server's own rule {rule.text} denies {address}")
        return None

    def is_trusted(self, address: addresses.Address) -> bool:
        """Whether the operator has called it an upstream, whatever it is."""
        return any(address in network for network in self._server.trusted if network.version == address.version)


def _suggested(host: str, port: int | None) -> str:
    return host if port in (None, 443, 80) else f"{host}:{port}"
