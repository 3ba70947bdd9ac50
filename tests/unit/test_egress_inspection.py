"""What a client says first: TLS, HTTP/1, or neither; held to the name of its connection."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar_server.egress import client_hello, http_head
from belljar_server.egress.client_hello import ClientHello, Incomplete, Malformed, NotTls
from belljar_server.egress.inspection import Inspection, Mismatch, answer


def hello(name: str | None = "example.com") -> bytes:
    """What OpenSSL says to a server of this name."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def record(message: bytes, *cuts: int) -> bytes:
    """A handshake message in as many records as there are cuts, and one more."""
    out = b""
    for start, end in zip((0, *cuts), (*cuts, len(message)), strict=True):
        out += b"\x16\x03\x01" + (end - start).to_bytes(2) + message[start:end]
    return out


def made_hello(*extensions: tuple[int, bytes]) -> bytes:
    """A ClientHello message with these extensions."""
    listed = b"".join(kind.to_bytes(2) + len(body).to_bytes(2) + body for kind, body in extensions)
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0" + len(listed).to_bytes(2) + listed
    return b"\x01" + len(body).to_bytes(3) + body


def server_name(*names: str, kind: int = 0) -> tuple[int, bytes]:
    """The extension that names a server."""
    listed = b"".join(bytes([kind]) + len(name).to_bytes(2) + name.encode() for name in names)
    return 0, len(listed).to_bytes(2) + listed


def inspection(name: str = "example.com", port: int = 443, *, strict: bool = True, denied: str = "") -> Inspection:
    """The client's half of a connection to a name."""
    return Inspection(name, port, strict=strict, denied=lambda asked: asked == denied)


def test_the_name_in_a_real_handshake_is_read() -> None:
    """As OpenSSL writes it, with a name and without one."""
    assert client_hello.read(hello()) == ClientHello("example.com", encrypted=False)
    assert client_hello.read(hello(None)) == ClientHello(None, encrypted=False)


def test_a_handshake_in_pieces_is_read_when_it_is_whole() -> None:
    """Cut at any byte, and into records at any byte, as tools do that try to hide the name."""
    whole = hello()
    for size in range(len(whole)):
        with pytest.raises(Incomplete):
            client_hello.read(whole[:size])
    message = whole[5:]
    for cut in (1, 3, 4, 50, len(message) - 1):
        assert client_hello.read(record(message, cut)).server_name == "example.com"


@pytest.mark.parametrize(
    "data",
    [
        record(b"\x02" + made_hello()[1:]),
        record(made_hello(server_name("a.com"), server_name("b.com"))),
        record(made_hello(server_name("a.com", "b.com"))),
        record(made_hello(server_name(""))),
        record(made_hello(server_name("a.com", kind=1))),
        record(made_hello((0, b"\xff\xff\0\0\x05a.com"))),
        record(made_hello(server_name("\u00e4.com"))),
        record(made_hello()[:4] + b"\xff" * (len(made_hello()) - 4)),
        b"\x16\x03\x01\xff\xff" + bytes(100),
        b"\x16\x03\x01\0\0" + bytes(100),
        record(made_hello(server_name("a.com")), 20)[: 5 + 20] + b"\x17\x03\x03\0\x05hello",
        record(b"\x01\xff\xff\xff" + bytes(100)),
    ],
)
def test_a_malformed_handshake_is_told_as_such(data: bytes) -> None:
    """Other messages, doubled or empty names, wrong lengths, other records in between, 16 MiB."""
    with pytest.raises(Malformed):
        client_hello.read(data)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1", b"\x80\x2e\x01", b"\x16\x02\x01", b"SSH-2.0-x", b"\0"])
def test_other_protocols_are_not_taken_for_tls(data: bytes) -> None:
    """By their first bytes."""
    with pytest.raises(NotTls):
        client_hello.read(data)


@given(st.binary(max_size=200), st.booleans(), st.integers(0, 600))
def test_no_bytes_break_the_reader(noise: bytes, begins_well: bool, at: int) -> None:
    """Noise, and a real handshake with noise in it, give one of the four answers."""
    data = noise
    if begins_well:
        real = record(made_hello(server_name("example.com"), (0xFE0D, b"\0"), (43, b"\x02\x03\x04")))
        data = real[:at] + noise + real[at + len(noise) :]
    with contextlib.suppress(Incomplete, NotTls, Malformed):
        found = client_hello.read(data)
        assert found.server_name is None or found.server_name.isascii()


def test_tls_must_name_the_host() -> None:
    """Another name, none, or an encrypted one is refused; case and a dot at the end make no difference."""
    for good in (hello("example.com"), hello("EXAMPLE.com"), record(made_hello(server_name("example.com.")))):
        seen = inspection()
        assert seen.feed(good[:10]) == b""
        assert seen.feed(good[10:]) == good
        assert seen.over
    encrypted = record(made_hello(server_name("example.com"), (0xFE0D, b"\0\0\0")))
    for bad, word in ((hello("evil.com"), "evil.com"), (hello(None), "SNI"), (encrypted, "ECH")):
        with pytest.raises(Mismatch, match=word):
            inspection().feed(bad)


def test_full_holds_clients_to_the_servers_denials_only() -> None:
    """Another name is fine when all are; a denied one is not."""
    data = hello("other.com")
    assert inspection(strict=False).feed(data) == data
    with pytest.raises(Mismatch, match="deny"):
        inspection(strict=False, denied="evil.com").feed(hello("evil.com"))


GOOD = b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"
EVIL = GOOD.replace(b"example.com", b"evil.com")


@pytest.mark.parametrize(
    "request_bytes",
    [
        GOOD,
        GOOD * 3,
        b"GET / HTTP/1.1\r\nHost: EXAMPLE.com:80\r\n\r\n",
        b"GET / HTTP/1.0\r\nHost: example.com\r\n\r\n",
        b"QUERY / HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 5\r\n\r\nhello" + GOOD,
        b"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: %d\r\n\r\n" % len(EVIL) + EVIL + GOOD,
        b"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + GOOD,
        b"OPTIONS * HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"SSH-2.0-OpenSSH_9\r\n",
        b"\0\0\0\x08\x04\xd2\x16\x2f",
        b"EHLO evil.com\r\n",
        b"PING\r\nGET\r\n",
        b"OPTIONS rtsp://example.com/ RTSP/1.0\r\n\r\n",
        b"Q\0\0\0\x0dSELECT 1\0" * 10_000,
    ],
)
def test_what_is_meant_for_the_host_passes_unchanged(request_bytes: bytes) -> None:
    """Whole or byte by byte: bodies are not taken for requests, other protocols are left alone."""
    assert inspection(port=8080).feed(request_bytes) == request_bytes
    slowly = inspection(port=8080)
    assert b"".join(slowly.feed(request_bytes[at : at + 1]) for at in range(len(request_bytes))) == request_bytes


@pytest.mark.parametrize(
    "bad",
    [
        EVIL,
        b"GET / HTTP/1.1\r\nHost: example.com\r\nHost: evil.com\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: example.com:80@evil.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: example.com:80:80\r\n\r\n",
        b"GET http://evil.com/ HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"CONNECT evil.com:443 HTTP/1.1\r\nHost: example.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: example.com@evil.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: example.com.evil.com\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost:\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: example.com\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"GET / HTTP/1.1\r\nHost: example.com\r\nUpgrade: h2c\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000,
        b"GET /\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + EVIL,
        b"POST / HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
@pytest.mark.parametrize("before", [b"", GOOD], ids=["first", "second"])
def test_a_request_for_another_host_goes_no_further(bad: bytes, before: bytes) -> None:
    """First in its connection or second, and by every way to name two hosts at once."""
    seen = inspection(port=80)
    passed: list[bytes] = []
    with pytest.raises(Mismatch):
        passed.extend(seen.feed(data) for data in (before + bad, b"\r\n\r\n"))
    assert b"evil" not in b"".join(passed)


@pytest.mark.parametrize(
    "line",
    [
        b"\r\nGET / HTTP/1.1",
        b"\n\n \t\x1fGET / HTTP/1.1",
        b"get / http/1.1",
        b"GET\t/\tHTTP/1.1",
        b"GET\x0b/\xa0HTTP/1.1",
        b"LOCK / HTTP/1.1",
        b"X-ANY / HTTP/1.1",
        b"A" * 5000 + b" / HTTP/1.1",
        b"GET /" + b"a" * 5000 + b" HTTP/1.1",
        b"SOURCE / ICE/1.0",
        b"GET / RTSP/1.0",
    ],
)
def test_every_way_to_begin_a_request_is_known(line: bytes) -> None:
    """Of some server each is taken; no way to write it leads past the rule, whole or byte by byte."""
    data = line + b"\r\nHost: evil.com\r\n\r\n"
    with pytest.raises(Mismatch):
        inspection(port=80).feed(data)
    slowly = inspection(port=80)
    passed: list[bytes] = []
    with pytest.raises(Mismatch):
        passed.extend(slowly.feed(data[at : at + 1]) for at in range(len(data)))
    assert b"\n" not in b"".join(passed).lstrip()


def test_a_line_that_is_not_finished_passes_and_is_held_to_the_rules_later() -> None:
    """Servers of other protocols answer to it, so it must not be kept back."""
    seen = inspection(port=7)
    assert seen.feed(b"PING") == b"PING"
    assert seen.feed(b" / HTTP") == b" / HTTP"
    with pytest.raises(Mismatch, match=r"evil\.com"):
        seen.feed(b"/1.1\r\nHost: evil.com\r\n\r\n")


@pytest.mark.parametrize("cut", range(1, 9))
def test_a_line_without_end_passes_until_it_turns_out_to_be_a_request(cut: int) -> None:
    """No server takes a request line of more than 64 KiB, but some take one of a megabyte; others echo for ever."""
    endless = inspection(port=7)
    piece = b"abcd" * 256
    for _ in range(1000):
        assert endless.feed(piece) == piece
    version = b" HTTP/1.1"
    with pytest.raises(Mismatch, match="65536"):
        [endless.feed(each) for each in (b" /", version[:cut], version[cut:])]
    ended = inspection(port=7)
    for _ in range(100):
        ended.feed(piece)
    assert ended.feed(b"\nEHLO") == b"\nEHLO"
    assert ended.over


def test_http_2_without_tls_is_refused_where_a_front_may_be() -> None:
    """Its hosts are packed; on another port it is one more protocol."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    with pytest.raises(Mismatch, match="HTTP/2"):
        inspection(port=80).feed(preface)
    assert inspection(port=50051).feed(preface) == preface


UPGRADE = b"GET /chat HTTP/1.1\r\nHost: example.com\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


def test_after_an_upgrade_that_the_server_took_anything_goes() -> None:
    """Frames of a WebSocket are no requests; what comes before the answer is held."""
    seen = inspection(port=80)
    assert seen.feed(UPGRADE) == UPGRADE
    assert seen.awaits_server
    assert seen.feed(b"\x81\x02hi") == b""
    assert seen.server_says(b"HTTP/1.1 101 Switching Protocols\r\n") == b"\x81\x02hi"
    assert seen.feed(b"\x81\x02ho") == b"\x81\x02ho"


def test_after_an_upgrade_that_the_server_refused_requests_are_still_read() -> None:
    """Asking for an upgrade is no way to smuggle a second host past."""
    seen = inspection(port=80)
    seen.feed(UPGRADE)
    assert seen.feed(EVIL) == b""
    with pytest.raises(Mismatch, match=r"evil\.com"):
        seen.server_says(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(Mismatch, match="upgrade"):
        inspection(port=80).feed(GOOD + UPGRADE)


@given(st.lists(st.binary(max_size=60), max_size=6), st.sampled_from([b"", GOOD, GOOD[:20], EVIL, UPGRADE]))
def test_no_bytes_break_the_inspection(noise: list[bytes], start: bytes) -> None:
    """Everything passes, waits or is refused."""
    seen = inspection(port=80)
    with contextlib.suppress(Mismatch):
        for data in (start, *noise):
            passed = seen.server_says(data) if seen.awaits_server and data else seen.feed(data)
            assert b"Host: evil.com" not in passed


def test_a_refusal_is_in_the_clients_own_language() -> None:
    """HTTP gets a response, TLS an alert, everything else nothing."""
    said = answer(b"GET / HTTP/1.1\r\n", "evil.com:80: no rule")
    assert said.startswith(b"HTTP/1.1 403 ")
    assert said.endswith(b"evil.com:80: no rule\n")
    assert answer(b"HEAD / HTTP/1.1\r\n", "x").endswith(b"\r\n\r\n")
    assert answer(hello(), "x") == b"\x15\x03\x03\0\x02\x02\x31"
    assert answer(b"SSH-2.0", "x") == answer(b"", "x") == b""


def test_beginnings_of_requests_wait_for_more() -> None:
    """Two letters are not enough to tell."""
    with pytest.raises(http_head.Incomplete):
        http_head.looks_like_http(b"GE")
    assert not http_head.looks_like_http(b"GETTING on\r\n")
