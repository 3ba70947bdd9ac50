"""Rules: how they are read, what they mean, and what the server's own make of them."""

from __future__ import annotations

import ipaddress

import pytest

from belljar_server.config import Egress, LimitSettings
from belljar_server.egress import build, rules
from belljar_server.egress.rules import Policy, ServerRules, WrongRule, parse
from belljar_server.errors import HostNotReady, InvalidRequest, SandboxFailed
from belljar_server.models import Network, NetworkMode
from belljar_server.policy import Draft, NetworkSettings, judge

LIMITS = Egress().default.as_limits()


def allowlist(*texts: str, **server: object) -> Policy:
    """What an execution with these rules may reach."""
    network = Network(NetworkMode.ALLOWLIST, LIMITS, tuple(parse(text) for text in texts))
    return Policy(network, ServerRules(**server))  # type: ignore[arg-type]  # each by its name


def reaches(policy: Policy, host: str, port: int) -> bool:
    """Whether a connection would be let through, before its address is known."""
    try:
        return policy.address(ipaddress.IPv4Address(host), port) is None
    except ValueError:
        return policy.name(host, port) is None


@pytest.mark.parametrize(
    ("rule", "host", "port", "expected"),
    [
        ("example.com", "example.com", 443, True),
        ("example.com", "example.com", 80, True),
        ("example.com", "example.com", 8080, False),
        ("example.com:5432", "example.com", 5432, True),
        ("example.com:5432", "example.com", 443, False),
        ("example.com:*", "example.com", 65535, True),
        ("example.com", "www.example.com", 443, False),
        ("example.com", "com", 443, False),
        ("www.example.com", "example.com", 443, False),
        ("example.com", "xexample.com", 443, False),
        ("example.com", "example.com.evil.net", 443, False),
        ("*.example.com", "a.example.com", 443, True),
        ("*.example.com", "b.a.example.com", 443, True),
        ("*.example.com", "example.com", 443, False),
        ("*.example.com", "xexample.com", 443, False),
        ("*.example.com:22", "a.example.com", 22, True),
        ("EXAMPLE.com.", "example.com", 443, True),
        ("bücher.example", "xn--bcher-kva.example", 443, True),
        ("BÜCHER.example", "xn--bcher-kva.example", 443, True),
        ("example。com", "example.com", 443, True),
        ("8.8.8.8", "8.8.8.8", 443, True),
        ("8.8.8.8:53", "8.8.8.8", 53, True),
        ("8.8.8.8:53", "8.8.8.9", 53, False),
        ("8.8.8.0/24:53", "8.8.8.9", 53, True),
        ("8.8.8.0/24", "8.8.9.1", 443, False),
        ("0x08080808:53", "8.8.8.8", 53, True),
        ("8.8.8.8", "example.com", 443, False),
    ],
)
def test_a_rule_means_what_it_says(rule: str, host: str, port: int, *, expected: bool) -> None:
    """Names with and without what is below, ports, networks, case, dots and other scripts."""
    assert reaches(allowlist(rule), host, port) is expected


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ("", "empty"),
        ("a b.com", "spaces"),
        ("exa\nmple.com", "control"),
        ("https://example.com", "URL"),
        ("user@example.com", "URL"),
        ("example.com/path", "network"),
        ("example.com:0", "port"),
        ("example.com:65536", "port"),
        ("example.com:http", "port"),
        ("example.com:٤٤٣", "port"),
        ("example.com:", "port"),
        ("*", "*"),
        ("*.com", "too wide"),
        ("*.*.example.com", "*"),
        ("a*.example.com", "*"),
        ("foo.*.com", "*"),
        ("-a.example.com", "host name"),
        ("a..example.com", "host name"),
        ("a" * 64 + ".com", "host name"),
        ("a." * 130 + "com", "host name"),
        ("example.123", "host name"),
        ("[::1]:443", "IPv6"),
        ("2606:4700::1", "IPv6"),
        ("10.0.0.1", "private"),
        ("127.0.0.1:80", "loopback"),
        ("0x7f.1", "loopback"),
        ("2852039166", "metadata"),
        ("192.168.0.0/16", "private"),
        ("0.0.0.0/0", "wide"),
        ("8.0.0.0/7", "wide"),
        ("8.8.8.8/24", "bits"),
        ("8.8.8.0/33", "prefix"),
        ("8.8.8.0/x", "prefix"),
        ("a" * 301, "301"),
        ("xn--\u00fc.com", "host name"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_reason(rule: str, word: str) -> None:
    """Never read as something else, and never silently less."""
    with pytest.raises(WrongRule, match=word.replace("*", r"\*")):
        parse(rule)


def test_a_homograph_is_another_name() -> None:
    """A Cyrillic letter that looks like ours makes another name."""
    policy = allowlist("apple.com")
    lookalike = rules.normalise("\u0430pple.com")
    assert lookalike.startswith("xn--")
    assert policy.name(lookalike, 443) is not None


def test_the_servers_rules_win_and_are_named() -> None:
    """A denied name or network stays denied, in every mode; what is always allowed needs no rule."""
    deny = tuple(parse(text, denies=True) for text in ("evil.com", "*.evil.com", "9.9.9.0/24", "10.0.0.0/8"))
    always = (parse("mirror.example"),)
    policy = allowlist("a.evil.com", "9.9.9.9", "good.com", deny=deny, always_allow=always)
    full = Policy(Network(NetworkMode.FULL, LIMITS), ServerRules(deny=deny))
    for each in (policy, full):
        denial = each.name("a.evil.com", 443)
        assert denial is not None
        assert "*.evil.com" in denial.reason
        assert each.resolved(ipaddress.ip_address("9.9.9.1"), 443) is not None
    assert policy.name("mirror.example", 443) is None
    assert policy.name("other.example", 443) is not None
    assert full.name("other.example", 443) is None


def test_full_never_reaches_what_is_not_public() -> None:
    """The mode opens names and public addresses alone."""
    full = Policy(Network(NetworkMode.FULL, LIMITS), ServerRules())
    assert full.address(ipaddress.IPv4Address("8.8.8.8"), 22) is None
    for text in ("10.0.0.1", "127.0.0.1", "169.254.169.254", "224.0.0.1"):
        denial = full.address(ipaddress.IPv4Address(text), 80)
        assert denial is not None
        assert denial.rule == ""


def test_a_denial_names_the_rule_that_is_missing() -> None:
    """It can be pasted into network.allow."""
    policy = allowlist()
    for host, port, rule in (("a.com", 443, "a.com"), ("a.com", 5432, "a.com:5432")):
        denial = policy.name(host, port)
        assert denial is not None
        assert denial.rule == rule
        assert allowlist(rule).name(host, port) is None


def networks(**settings: object) -> NetworkSettings:
    """What a server with these settings allows."""
    egress = Egress(**settings)  # type: ignore[arg-type]  # each by its name
    return NetworkSettings(build.server_rules(egress), egress)


def refusal(draft: Draft, settings: NetworkSettings) -> dict[str, str]:
    """What is wrong with a request, by field."""
    with pytest.raises(InvalidRequest) as caught:
        judge(draft, LimitSettings(), ["python"], settings)
    return {violation.field: violation.description for violation in caught.value.violations}


def draft(mode: NetworkMode | None = NetworkMode.ALLOWLIST, *allow: str, **limits: float) -> Draft:
    """A request for a network."""
    return Draft(runtime="python", code="1", network_mode=mode, allow=allow, network_limits=dict(limits))


def test_every_wrong_rule_is_named_by_its_place() -> None:
    """The second of three is network.allow[1]."""
    found = refusal(draft(NetworkMode.ALLOWLIST, "a.com", "10.0.0.1", "b.com:x"), networks())
    assert set(found) == {"network.allow[1]", "network.allow[2]"}
    assert "'10.0.0.1' is a private address" in found["network.allow[1]"]


def test_more_than_the_server_allows_is_refused() -> None:
    """Modes, number of rules, denied rules, limits above the ceiling or below the floor; never silently less."""
    only = networks(modes=["allowlist"], max_rules=1, deny=["*.evil.com", "9.0.0.0/8"])
    assert "this server allows NONE, ALLOWLIST" in refusal(draft(NetworkMode.FULL), only)["network.mode"]
    assert "at most 1" in refusal(draft(NetworkMode.ALLOWLIST, "a.com", "b.com"), only)["network.allow"]
    assert "'*.evil.com'" in refusal(draft(NetworkMode.ALLOWLIST, "a.evil.com"), only)["network.allow[0]"]
    assert "'9.0.0.0/8'" in refusal(draft(NetworkMode.ALLOWLIST, "9.9.9.9:53"), only)["network.allow[0]"]
    assert "for ALLOWLIST" in refusal(draft(NetworkMode.FULL, "a.com"), networks())["network.allow"]
    assert "for ALLOWLIST" in refusal(draft(NetworkMode.NONE, "a.com"), networks())["network.allow"]
    assert set(refusal(draft(None), networks())) == {"network.mode"}
    for value in (0, -1, 1025, float("nan"), float("inf")):
        assert "1 to 1024" in refusal(draft(connections=value), networks())["network.limits.connections"]


def test_what_was_asked_for_is_what_comes_out() -> None:
    """Rules and limits of the request, the server's defaults for the rest; NONE has no network at all."""
    accepted = judge(draft(NetworkMode.ALLOWLIST, "a.com", bytes_in=5), LimitSettings(), ["python"], networks())
    assert accepted.network is not None
    assert [rule.text for rule in accepted.network.allow] == ["a.com"]
    assert (accepted.network.limits.bytes_in, accepted.network.limits.connections) == (5, 256)
    assert judge(draft(NetworkMode.NONE), LimitSettings(), ["python"], networks()).network is None


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"deny": ["a.com", "b c"]}, r"egress.deny\[1\]"),
        ({"always_allow": ["10.0.0.1"]}, r"egress.always_allow\[0\].*private"),
        ({"trusted_upstream_cidrs": ["10.0.0.1/8"]}, "egress.trusted_upstream_cidrs"),
    ],
)
def test_a_wrong_setting_keeps_the_server_from_starting(settings: dict[str, list[str]], word: str) -> None:
    """It is named with its place."""
    with pytest.raises(HostNotReady, match=word):
        networks(**settings)


def test_a_host_that_cannot_make_networks_allows_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a warning; named modes are a promise, and then it is a refusal to start."""

    def fail() -> None:
        raise SandboxFailed("no network for a sandbox: not permitted")

    monkeypatch.setattr("belljar_server.egress.namespace.make", fail)
    allowed, outside = build.build(Egress())
    assert allowed.modes == frozenset({NetworkMode.NONE})
    assert outside is None
    with pytest.raises(HostNotReady, match="not permitted"):
        build.build(Egress(modes=frozenset({"full"})))
    assert build.build(Egress(modes=frozenset({"none"})))[1] is None
