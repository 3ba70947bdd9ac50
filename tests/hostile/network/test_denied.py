"""What is not allowed is not reached, by no detour, and the code is told so at once (HOSTILE.md 25 to 28)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from belljar_client import ErrorKind, Result
from tests.hostile.network.inside import TRY

Hit = Callable[..., Result]

AT_ONCE = 3.0
"""Seconds; a refusal takes milliseconds, a time-out the ten that the attempts allow."""
REFUSED = {
    "ECONNRESET",
    "ECONNREFUSED",
    "ENETUNREACH",
    "EHOSTUNREACH",
    "EINVAL",
    "EPIPE",
    "RemoteDisconnected",
    "EACCES",
}


def denied(result: Result) -> dict[tuple[str, int], str]:
    """Why what was denied."""
    return {(each.host, each.port): each.reason for each in result.denied_connections}


def is_refused(answer: Any) -> bool:
    """Whether an attempt ended in a refusal that can be read."""
    if isinstance(answer, list):
        return bool(answer[0] == 403)
    told = ("no such name", "TLSV1_ALERT_ACCESS_DENIED")
    return answer in REFUSED or answer in told or answer.startswith("HTTP/1.1 403 Blocked")


@pytest.mark.parametrize(
    "mode", [{"network": "full"}, {"allow": ["*.example.org", "api.example.com", "11.22.33.0/24:*"]}]
)
def test_addresses_that_are_not_public_are_never_reached(hit: Hit, mode: dict[str, Any]) -> None:
    """By number in every notation that a resolver takes, over HTTP, TLS and bare TCP; there is a server behind each."""
    code = (
        TRY
        + """
hosts = ["10.99.0.5", "169.254.169.254", "100.64.0.9", "127.0.0.2", "11.22.33.1", "0.0.0.0", "240.0.0.1",
    "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518", "012.99.5", "198.18.0.16", "198.19.0.1",
    "198.19.255.255", "192.168.0.1", "172.16.0.1"]
answers = {}
for host in hosts:
    answers[host] = [timed(get, f"http://{host}/"), timed(get, f"https://{host}/"), timed(say, host, 25)]
for host in ("::ffff:169.254.169.254", "::ffff:10.99.0.5", "64:ff9b::a9fe:a9fe", "::1", "fe80::1", "2002:a9fe:a9fe::"):
    answers[host] = [timed(say, host, 80, b"GET / HTTP/1.0\\r\\n\\r\\n")]
answers
"""
    )
    result = hit(code, **mode).check()
    for host, attempts in result.value.items():
        for answer, seconds in attempts:
            assert is_refused(answer), (host, answer)
            assert seconds < AT_ONCE, (host, answer)
    reasons = denied(result)
    assert "metadata" in reasons["169.254.169.254", 80]
    assert "private" in reasons["10.99.0.5", 443]
    assert "address of the host" in reasons["11.22.33.1", 80] if "network" in mode else ("11.22.33.1", 80) in reasons


@pytest.mark.parametrize("mode", [{"network": "full"}, {"allow": ["*.example.org"]}])
def test_names_that_lead_to_such_addresses_are_denied_with_the_reason(hit: Hit, mode: dict[str, Any]) -> None:
    """Private, metadata, carrier, loopback, the host's own, mapped, translated; of several the public one is taken."""
    code = (
        TRY
        + """
names = ["private", "metadata", "carrier", "loopback", "host", "mapped", "nat64", "loop6"]
answers = {name: timed(get, f"http://{name}.example.org/") for name in names}
[answers, get("http://mixed.example.org/")]
"""
    )
    result = hit(code, **mode).check()
    answers, mixed = result.value
    for name, (answer, seconds) in answers.items():
        assert answer[0] == 403, (name, answer)
        assert f"{name}.example.org:80: " in answer[1]
        assert "never reached" in answer[1]
        assert seconds < AT_ONCE
    assert mixed["at"] == "11.22.33.45"
    assert "an address of the host" in denied(result)["host.example.org", 80]
    assert all(each.rule == "" for each in result.denied_connections)


def test_a_name_that_points_elsewhere_the_second_time_gains_nothing(hit: Hit) -> None:
    """The address that was judged is the one that is connected to, each time anew."""
    code = (
        TRY
        + """
first = get("http://rebind.example.org/")
time.sleep(1.2)  # the shortest time for which an answer is believed
[first, get("http://rebind.example.org/")]
"""
    )
    first, second = hit(code, network="full").check().value
    assert first["at"] == "11.22.33.44"
    assert second[0] == 403
    assert "169.254.169.254 is a cloud's metadata address" in second[1]


def test_names_around_an_allowed_one_do_not_exist(hit: Hit, asked: Path) -> None:
    """Above, beside, below, look-alikes; upper case and a dot at the end are the same name. Nobody outside is asked."""
    code = (
        TRY
        + """
names = ["api.example.com", "API.Example.COM", "api.example.com.", "a.example.org", "b.a.example.org", "bücher.example",
    "example.com", "x.api.example.com", "xapi.example.com", "api.example.com.evil.com", "example.org", "xexample.org",
    "evil.com", "\\u0430pi.example.com", "localhost.localdomain", "metadata.google.internal", "data.in.a.name.evil.com"]
answers = {}
for name in names:
    try:
        answers[name] = socket.gethostbyname(name)
    except (OSError, UnicodeError) as error:
        answers[name] = str(error)
answers
"""
    )
    before = len(asked.read_text().splitlines())
    result = hit(code, allow=["api.example.com", "*.example.org", "bücher.example"]).check()
    reached = [name for name, answer in result.value.items() if answer.startswith("198.18.")]
    assert reached == [
        "api.example.com",
        "API.Example.COM",
        "api.example.com.",
        "a.example.org",
        "b.a.example.org",
        "bücher.example",
    ]
    assert ("data.in.a.name.evil.com", 0) in denied(result)
    outside = set(asked.read_text().splitlines()[before:])
    assert outside == {"api.example.com", "a.example.org", "b.a.example.org", "xn--bcher-kva.example"}


def test_another_port_is_denied_with_the_rule_that_is_missing(hit: Hit) -> None:
    """A name's rule is for its ports."""
    code = TRY + "[timed(get, 'http://api.example.com:8080/'), timed(say, 'api.example.com', 25)]"
    result = hit(code, allow=["api.example.com"]).check()
    (page, first), (line, second) = result.value
    assert (page[0], line) == (403, "ECONNRESET")
    assert "api.example.com:8080: no rule in network.allow names it" in page[1]
    assert max(first, second) < AT_ONCE
    assert {each.rule for each in result.denied_connections} == {"api.example.com:8080", "api.example.com:25"}


def test_tls_for_another_name_is_refused(hit: Hit) -> None:
    """Another server name, none, or a handshake in crumbs; the right one passes."""
    code = (
        TRY
        + """
def shake(name, crumbs=False):
    try:
        with socket.create_connection(("api.example.com", 443), 10) as plain:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            wrapped = TLS.wrap_bio(incoming, outgoing, server_hostname=name)
            try:
                wrapped.do_handshake()
            except ssl.SSLWantReadError:
                pass
            hello = outgoing.read()
            if crumbs:
                body = hello[5:]
                hello = b"".join(hello[:3] + b"\\0\\1" + body[i:i+1] for i in range(len(body)))
            for at in range(0, len(hello), 100):
                plain.sendall(hello[at:at+100])
            said = plain.recv(7)
            return ["alert", said[6]] if said[0] == 21 else "goes on"
    except OSError as error:
        return name_of(error)
name_of = name
[shake("api.example.com"), shake("api.example.com", True), shake("evil.com"), shake("evil.com", True), shake(None)]
"""
    )
    result = hit(code, allow=["api.example.com"]).check()
    assert result.value == ["goes on", "goes on", ["alert", 49], ["alert", 49], ["alert", 49]]
    assert any("TLS server name is 'evil.com'" in each.reason for each in result.denied_connections)
    assert any("names no server (SNI)" in each.reason for each in result.denied_connections)


def test_http_for_another_host_is_refused(hit: Hit) -> None:
    """Another Host, two of them, an absolute URI, CONNECT; as the first request or the second, pipelined or not."""
    code = (
        TRY
        + """
good = b"GET /good HTTP/1.1\\r\\nHost: api.example.com\\r\\n\\r\\n"
bad = {
    "other": b"GET /bad HTTP/1.1\\r\\nHost: evil.com\\r\\n\\r\\n",
    "two": b"GET /bad HTTP/1.1\\r\\nHost: api.example.com\\r\\nHost: evil.com\\r\\n\\r\\n",
    "absolute": b"GET http://evil.com/bad HTTP/1.1\\r\\nHost: api.example.com\\r\\n\\r\\n",
    "connect": b"CONNECT evil.com:443 HTTP/1.1\\r\\nHost: api.example.com\\r\\n\\r\\n",
}
def talk(*pieces):
    came = b""
    try:
        with socket.create_connection(("api.example.com", 80), 10) as connection:
            for piece in pieces:
                connection.sendall(piece)
                came += connection.recv(65536)
            while more := connection.recv(65536):
                came += more
    except OSError as error:
        came += name(error).encode()
    return came.decode()
{kind: [talk(request), talk(good, request), talk(good + request)] for kind, request in bad.items()}
"""
    )
    result = hit(code, allow=["api.example.com"]).check()
    for kind, (alone, after, pipelined) in result.value.items():
        assert alone.startswith("HTTP/1.1 403 Blocked"), (kind, alone)
        for answer in (after, pipelined):
            assert "/bad" not in answer, (kind, answer)
            assert "evil" not in answer.partition("403")[0]
        assert '"path": "/good"' in after


def test_no_way_to_write_a_request_hides_its_host(hit: Hit) -> None:
    """What lenient servers take for a request is one: empty lines before it, other methods, other spaces, no host."""
    code = (
        TRY
        + """
lines = [b"\\r\\nGET /bad HTTP/1.1", b"LOCK /bad HTTP/1.1", b"get /bad HTTP/1.1", b"GET\\t/bad\\tHTTP/1.1"]
evil = [line + b"\\r\\nHost: evil.com\\r\\n\\r\\n" for line in lines]
evil.append(b"GET /bad HTTP/1.1\\r\\nHost: api.example.com:80@evil.com\\r\\n\\r\\n")
evil.append(b"GET /bad HTTP/1.0\\r\\n\\r\\n")
[say("api.example.com", 80, request) for request in evil]
"""
    )
    result = hit(code, allow=["api.example.com"]).check()
    assert len(result.value) == 6
    for answer in result.value:
        assert is_refused(answer), answer
    assert sum(each.count for each in result.denied_connections) == 6


def test_datagrams_and_other_protocols_are_refused(hit: Hit) -> None:
    """UDP, multicast and broadcast by an error at once, so QUIC falls back; no ICMP, IPv6 or raw sockets."""
    code = (
        TRY
        + """
def udp(host, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connection:
        connection.settimeout(10)
        try:
            connection.connect((host, port))
            connection.send(b"x" * 1200)
            return connection.recv(100).decode("latin-1")
        except OSError as error:
            return name(error)
def ping():
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as connection:
            connection.settimeout(1)
            connection.sendto(b"\\x08\\0\\0\\0\\0\\1\\0\\1", ("11.22.33.44", 0))
            return connection.recv(100).hex()
    except OSError as error:
        return name(error)
def raw(kind):
    try:
        socket.socket(socket.AF_INET, socket.SOCK_RAW, kind).close()
        return "opened"
    except OSError as error:
        return name(error)
[
    [timed(udp, "11.22.33.44", port) for port in (443, 123, 9) * 8],
    timed(ping), [raw(socket.IPPROTO_TCP), raw(socket.IPPROTO_ICMP)], timed(say, "2606:4700::1111", 443),
    [timed(say, host, 7, b"x") for host in ("224.0.0.1", "239.255.255.250", "255.255.255.255", "254.1.2.3", "0.1.2.3")],
]
"""
    )
    result = hit(code, network="full").check()
    datagrams, (ping, _), raws, (six, seconds), many = result.value
    (told,) = [each for each in result.denied_connections if each.host == ""]
    assert (told.port, told.rule) == (0, "")
    assert "UDP" in told.reason
    assert told.count >= len(datagrams)
    for answer, took in datagrams:
        assert answer == "ECONNREFUSED"
        assert took < AT_ONCE
    assert ping in REFUSED | {"EPERM", "TimeoutError", "EPROTONOSUPPORT"}
    assert set(raws) <= {"EPERM", "EPROTONOSUPPORT", "EACCES"}
    assert six in REFUSED
    assert seconds < AT_ONCE
    for answer, took in many:
        assert answer in REFUSED
        assert took < AT_ONCE


def test_the_gateway_and_what_was_never_asked_for_are_no_way_out(hit: Hit) -> None:
    """The proxy's own port, the name server's over TCP, stand-ins that belong to no name or to another execution."""
    code = (
        TRY
        + """
[timed(say, host, port, b"x") for host, port in (("198.19.0.3", 15001), ("198.19.0.3", 53), ("198.19.0.3", 80),
    ("198.19.0.2", 15001), ("198.18.0.16", 80), ("198.18.0.17", 80), ("198.18.255.255", 7), ("198.19.0.1", 7))]
"""
    )
    hit(TRY + "get('http://api.example.com/')", network="full").check()
    for answer, seconds in hit(code, network="full").check().value:
        assert answer in REFUSED
        assert seconds < AT_ONCE


def test_one_sandbox_does_not_reach_another(hit: Hit, run: Hit) -> None:
    """All have the same address, and each sees itself there: what one listens on is not there for the other."""
    from concurrent.futures import ThreadPoolExecutor

    listen = (
        TRY
        + """
server = socket.create_server(("0.0.0.0", 7777))
server.settimeout(4)
try:
    server.accept()
    answer = "somebody came"
except TimeoutError:
    answer = "nobody"
answer
"""
    )
    knock = (
        TRY
        + """
time.sleep(1.5)
[say(f"198.19.0.{last}", 7777, b"x") for last in range(0, 8)] + [say("127.0.0.1", 7777, b"x")]
"""
    )
    with ThreadPoolExecutor(2) as both:
        listening = both.submit(run, listen, network="full")
        knocking = both.submit(hit, knock, network="full")
        assert set(knocking.result().check().value) <= REFUSED
        assert listening.result().check().value == "nobody"


def test_code_that_fails_by_a_denial_gets_its_own_kind(hit: Hit) -> None:
    """With the host and the rule that is missing, in every language, by name, by HTTP and by TLS."""
    programs = [
        ("python", "import urllib.request\\nurllib.request.urlopen('https://evil.com/')", [], "evil.com"),
        (
            "python",
            "import socket\\nsocket.create_connection(('api.example.com', 25)).recv(1)",
            ["api.example.com"],
            "25",
        ),
        ("python", "import urllib.request\\nurllib.request.urlopen('http://11.22.33.66/')", [], "11.22.33.66"),
        ("javascript", "await fetch('https://evil.com/')", [], "evil.com"),
        ("typescript", "const a: Response = await fetch('https://11.22.33.66/')", [], "11.22.33.66"),
    ]
    for runtime, code, allow, word in programs:
        result = hit(code.replace("\\n", "\n"), runtime, network="allowlist", allow=allow)
        assert result.error is not None, code
        assert result.error.kind is ErrorKind.NETWORK_DENIED, (code, result.error, result.denied_connections)
        assert word in result.error.hint
        assert "network.allow" in result.error.hint


def test_nothing_of_one_execution_is_seen_by_the_next(hit: Hit) -> None:
    """No rule, no name and no count goes over."""
    first = hit(TRY + "get('http://api.example.com/')", allow=["api.example.com"]).check()
    second = hit(TRY + "get('http://api.example.com/')", allow=["a.example.org"]).check()
    assert first.value["at"] == "11.22.33.44"
    assert second.value == "no such name"
    assert second.usage.network_connections == 0


def test_doh_is_a_connection_like_any_other(hit: Hit) -> None:
    """DNS over HTTPS or TCP to an address needs a rule for it."""
    code = TRY + "[get('https://11.22.33.53/dns-query'), say('11.22.33.53', 53, b'\\0'), say('11.22.33.53', 853, b'x')]"
    result = hit(code, allow=["api.example.com"]).check()
    assert result.value == ["TLSV1_ALERT_ACCESS_DENIED", "ECONNRESET", "ECONNRESET"]
    assert json.dumps(sorted(denied(result))) == '[["11.22.33.53", 53], ["11.22.33.53", 443], ["11.22.33.53", 853]]'
