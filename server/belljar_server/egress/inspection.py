"""What a client says on a connection, held to the name that the connection was allowed for. Pure.

The first bytes tell TLS, HTTP/1 and everything else apart. Of TLS the server name must be the one that was resolved; of
HTTP the host of every request. Anything else passes: a rule for a name and a port allows any protocol there.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from belljar_server.egress import client_hello, http_head, rules

LARGEST_BEGINNING = 32 * 1024
OTHER_PROTOCOLS = re.compile(rb"[^\n]*(RTSP|ICE)/", re.IGNORECASE)
"""What some HTTP servers (Node's llhttp) take for a version of HTTP."""
ALERT_ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
"""A fatal TLS alert, access_denied (RFC 8446, 6)."""


class Mismatch(Exception):
    """The client wants another host than the connection is for; says what, as a sentence about it."""


class Inspection:
    """The client's half of one connection. Mutable state: what it is taken for, the bytes held until that is known."""

    def __init__(self, name: str, port: int, *, strict: bool, denied: Callable[[str], bool]) -> None:
        """`strict`: nothing but `name` may be meant. Else any host may that `denied` does not deny."""
        self._name = name
        self._port = port
        self._strict = strict
        self._denied = denied
        self._held = b""
        self._passed = 0
        """So many of the held bytes have passed: a line that may become a request, as far as it means nothing yet."""
        self._long_line: bytes | None = None
        """The last bytes of a first line that is too long to be held, and still not finished."""
        self._http: http_head.RequestFollower | None = None
        self.over = False
        """Whether all that follows passes unseen."""

    @property
    def awaits_server(self) -> bool:
        """Whether the server's next bytes decide how it goes on; they belong to `server_says`."""
        return self._http is not None and self._http.awaits_upgrade

    def feed(self, data: bytes) -> bytes:
        """What may go on to the server. Raises Mismatch."""
        if self.over:
            return data
        try:
            if self._http:
                return self._http.feed(data)
            if self._long_line is not None:
                return self._pass_long(data)
            self._held += data
            return self._begin()
        except http_head.Refused as error:
            raise Mismatch(str(error)) from None

    def server_says(self, data: bytes) -> bytes:
        """The server's answer to an upgrade begins with `data`. Gives what may go on to the server. Raises Mismatch."""
        assert self._http  # noqa: S101  nobody else awaits the server
        agreed = data.startswith((b"HTTP/1.1 101 ", b"HTTP/1.0 101 "))
        try:
            passed = self._http.upgraded(agreed=agreed)
        except http_head.Refused as error:
            raise Mismatch(str(error)) from None
        self.over = agreed
        return passed

    def _begin(self) -> bytes:
        held = self._held
        try:
            self._judge_tls(client_hello.read(held))
        except client_hello.Incomplete:
            if len(held) > LARGEST_BEGINNING:
                raise Mismatch(f"its TLS handshake has not said its name within {LARGEST_BEGINNING} bytes") from None
            return b""
        except client_hello.Malformed as error:
            raise Mismatch(f"the TLS handshake is malformed: {error}") from None
        except client_hello.NotTls:
            return self._begin_plain(held)
        return self._release()

    def _begin_plain(self, held: bytes) -> bytes:
        try:
            if http_head.looks_like_http(held) and not self._is_http_2(held):
                return self._follow(held)
        except http_head.Incomplete:
            return self._pass_line(held)
        if self._port in rules.USUAL_PORTS and OTHER_PROTOCOLS.match(held):
            raise Mismatch("it is RTSP or ICE, which some servers take for HTTP")
        return self._release()

    def _is_http_2(self, held: bytes) -> bool:
        """Raises Mismatch where a front may be that serves many hosts."""
        if not held.startswith(http_head.HTTP_2_PREFACE):
            return False
        if self._strict and self._port in rules.USUAL_PORTS:
            raise Mismatch("it is HTTP/2 without TLS, whose hosts cannot be told")
        return True

    def _follow(self, held: bytes) -> bytes:
        self._http = http_head.RequestFollower(self._judge_host, needs_host=self._strict)
        self._http.skip(self._passed)
        self._held = b""
        return self._http.feed(held)

    def _pass_line(self, held: bytes) -> bytes:
        """Lets an unfinished first line pass: servers of other protocols may answer to it, those of HTTP cannot."""
        passed, self._passed = self._passed, len(held)
        if len(held) > http_head.LARGEST_HEAD:
            self._held, self._long_line = b"", b""
            self._pass_long(held)
        return held[passed:]

    def _pass_long(self, data: bytes) -> bytes:
        """Streams of other protocols may go on like this for ever; what says HTTP before the line ends is a request."""
        assert self._long_line is not None  # noqa: S101  nobody else calls it
        line, ended, _ = (self._long_line + data).partition(b"\n")
        if http_head.VERSION in line.upper():
            raise Mismatch(f"a request has a head of more than {http_head.LARGEST_HEAD} bytes")
        self._long_line = line[1 - len(http_head.VERSION) :]
        self.over = bool(ended)
        return data

    def _release(self) -> bytes:
        self.over = True
        held, self._held = self._held, b""
        return held[self._passed :]

    def _judge_tls(self, hello: client_hello.ClientHello) -> None:
        if self._strict and hello.encrypted:
            raise Mismatch("its TLS server name is encrypted (ECH), so it cannot be told")
        if self._strict and hello.server_name is None:
            raise Mismatch("its TLS handshake names no server (SNI), so it cannot be told")
        if hello.server_name is not None:
            self._judge(hello.server_name, "TLS server name")

    def _judge_host(self, host: str) -> None:
        try:
            self._judge(host, "HTTP Host")
        except Mismatch as error:
            raise http_head.Refused(str(error)) from None

    def _judge(self, meant: str, what: str) -> None:
        name = rules.normalise(meant)
        if self._strict and name != self._name:
            raise Mismatch(f"its {what} is {meant[:100]!r}")
        if name and self._denied(name):
            raise Mismatch(f"its {what} is {meant[:100]!r}, which the server's own rules deny")


def answer(first: bytes, said: str) -> bytes:
    """What a client that begins with `first` can read of a refusal; empty for one that speaks something else."""
    if first[:1] == bytes([client_hello.HANDSHAKE]):
        return ALERT_ACCESS_DENIED
    if not http_head.is_usual(first):
        return b""
    body = f"Blocked by Belljar's network policy: {said}\n".encode()
    head = (
        "HTTP/1.1 403 Blocked By Network Policy\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + (b"" if first.startswith(b"HEAD ") else body)
