"""How much may be done over the network, and what is told of denials."""

from __future__ import annotations

from dataclasses import replace

import pytest

from belljar_server.config import Egress
from belljar_server.egress.budget import MOST_DENIED, Budget, Exhausted
from belljar_server.egress.rules import Denial
from belljar_server.models import DeniedConnection, ErrorKind, Traffic
from belljar_server.sandbox import Ending
from belljar_server.verdict import judge
from tests.unit.test_verdict import LIMITS

BOUNDS = Egress().default.as_limits()


def test_each_bound_is_named_when_it_is_reached() -> None:
    """The message carries the field to raise."""
    budget = Budget(replace(BOUNDS, connections=2, bytes_in=10, bytes_out=10, dns_queries=1))
    budget.connect()
    budget.connect()
    with pytest.raises(Exhausted, match=r"network\.limits\.connections\)"):
        budget.connect()
    budget.disconnect()
    budget.connect()
    budget.receive(10)
    with pytest.raises(Exhausted, match="bytes_in"):
        budget.receive(1)
    with pytest.raises(Exhausted, match="bytes_out"):
        budget.send(11)
    budget.query()
    with pytest.raises(Exhausted, match="dns_queries"):
        budget.query()
    assert budget.traffic() == Traffic(3, 11, 11, 2)


def test_new_connections_are_rationed_by_the_second() -> None:
    """As many at once as a second allows, and no more."""
    budget = Budget(replace(BOUNDS, connections_per_second=3))
    for _ in range(3):
        budget.connect()
    with pytest.raises(Exhausted, match="connections_per_second"):
        budget.connect()


def test_denials_are_counted_and_bounded() -> None:
    """The same one twice is one with a count; a flood of different ones does not grow for ever."""
    budget = Budget(BOUNDS)
    for _ in range(3):
        budget.deny("a.com", 443, Denial("no rule", "a.com"))
    for number in range(1000):
        budget.deny(f"{number}.com", 443, Denial("no rule"))
    denied = budget.traffic().denied
    assert denied[0] == DeniedConnection("a.com", 443, "no rule", "a.com", 3)
    assert len(denied) == MOST_DENIED + 1
    assert sum(each.count for each in denied) == 1003


def blamed(message: str, *hosts: str, traceback: str = "") -> tuple[ErrorKind, str]:
    """Kind and hint of code that failed with this message after these hosts were denied."""
    denied = tuple(DeniedConnection(host, 443, "no rule in network.allow names it", host) for host in hosts)
    report = b'{"ok": false, "error": {"kind": "EXCEPTION", "message": "%s", "traceback": "%s"}}'
    ending = Ending(256, report % (message.encode(), traceback.encode()), started=True, traffic=Traffic(denied=denied))
    failure = judge(ending, LIMITS, "main.py").failure
    assert failure is not None
    return failure.kind, failure.hint


def test_code_that_fails_by_a_denial_is_told_so() -> None:
    """By the host in its words, or by a broken connection after a denial; with the rule that is missing."""
    kind, hint = blamed("HTTPError: https://evil.com/ gave 403", "other.com", "evil.com")
    assert kind is ErrorKind.NETWORK_DENIED
    assert hint == 'evil.com:443 was denied: no rule in network.allow names it. Add "evil.com" to network.allow.'
    assert blamed("ConnectionResetError: [Errno 104]", "a.com")[0] is ErrorKind.NETWORK_DENIED
    assert blamed("TypeError: fetch failed", "a.com")[0] is ErrorKind.NETWORK_DENIED


def test_code_that_fails_otherwise_is_not() -> None:
    """A denial that was survived, a name that only looks alike, an error of the network without any denial."""
    assert blamed("ValueError: 3", "a.com") == (ErrorKind.EXCEPTION, "")
    assert blamed("ValueError: xa.com and a.company", "a.com") == (ErrorKind.EXCEPTION, "")
    assert blamed("ConnectionResetError: [Errno 104]") == (ErrorKind.EXCEPTION, "")
