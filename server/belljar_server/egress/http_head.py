"""Follows the requests that a client sends over a plain HTTP/1 connection, and has each one's host judged.

Every request of a connection is looked at, not only the first: a server behind a shared address would else answer for
any host in the second one. The bytes go on as they came. h11 reads heads and chunked bodies; bodies of a known length
are counted and not read. After an upgrade that the server agreed to, the connection is no longer HTTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import h11

LARGEST_HEAD = 64 * 1024
HTTP_2_PREFACE = b"PRI * HTTP/2.0"
_USUAL = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH) ")
_SPACES = b"\t\n\v\f\r\x1c\x1d\x1e\x1f \x85\xa0"
"""What Python's str.split, and so its http.server, takes for space in Latin-1."""
# A token, which a method is (RFC 9110, 5.6.2), and whatever follows it.
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+([" + re.escape(_SPACES) + rb"][^\n]*)?")
VERSION = b"HTTP/"
_HAS_VERSION = re.compile(VERSION + rb"|^GET[" + re.escape(_SPACES) + rb"]", re.IGNORECASE)
_PORT = re.compile(r":[0-9]*\Z")


class Incomplete(Exception):
    """More bytes are needed to tell."""


class Refused(Exception):
    """A request that must not go on; says why."""


def is_usual(data: bytes) -> bool:
    """Whether bytes begin as usual clients' requests do: who wrote them would read an answer in HTTP."""
    return _USUAL.match(data) is not None


def looks_like_http(data: bytes) -> bool:
    """Whether bytes begin an HTTP request, as the most lenient server sees it. Raises Incomplete.

    Any method counts, with any space around it, since servers skip empty lines (RFC 9112, 2.2) and more; a GET without
    a version too.
    """
    line, ended, _ = data.lstrip(_SPACES).partition(b"\n")
    if line and not _REQUEST_LINE.fullmatch(line):
        return False
    if not ended:
        raise Incomplete
    return _HAS_VERSION.search(line) is not None


class RequestFollower:
    """The client's half of one connection. Mutable state: where in which request it is, and what is held back."""

    def __init__(self, judge_host: Callable[[str], None], *, needs_host: bool) -> None:
        """`judge_host` gets the host of each request, and raises Refused for one that is not meant.

        `needs_host`: a request that names none is refused; HTTP/1.0 has such, for whatever host a server likes best.
        """
        self._judge_host = judge_host
        self._needs_host = needs_host
        self._parser = _parser()
        self._held = b""
        self._body_left = 0
        self._in_chunks = False
        self._is_first = True
        self._opaque = False
        self._skip = 0
        self.awaits_upgrade = False
        """Whether all is held until `upgraded` tells what the server said to an upgrade."""

    def skip(self, size: int) -> None:
        """So many of the bytes that will be fed have gone on to the server already."""
        self._skip = size

    def feed(self, data: bytes) -> bytes:
        """What of the bytes so far may go on to the server. Raises Refused."""
        out = []
        while data and not self._opaque and not self.awaits_upgrade:
            if self._body_left:
                passed, data = data[: self._body_left], data[self._body_left :]
                self._body_left -= len(passed)
            else:
                passed, data = self._parse(data)
            out.append(passed)
        if self.awaits_upgrade:
            self._hold(data)
        elif data:
            out.append(data)
        passed = b"".join(out)
        skipped = min(self._skip, len(passed))
        self._skip -= skipped
        return passed[skipped:]

    def upgraded(self, *, agreed: bool) -> bytes:
        """The server has answered the upgrade. Gives what may go on now. Raises Refused."""
        self.awaits_upgrade = False
        self._opaque = agreed
        held, self._held = self._held, b""
        return self.feed(held)

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > LARGEST_HEAD:
            raise Refused(f"a request has a head of more than {LARGEST_HEAD} bytes")

    def _parse(self, data: bytes) -> tuple[bytes, bytes]:
        """Takes bytes of a head or a chunked body. Gives what may go on, and what is left for what comes after."""
        try:
            self._parser.receive_data(data)
            event = self._parser.next_event()
            if not self._in_chunks:
                if event is h11.NEED_DATA:
                    self._hold(data)
                    return b"", b""
                if not isinstance(event, h11.Request):
                    raise Refused("a connection with HTTP ends within a head")
                return self._begin(event, data)
            while isinstance(event, h11.Data):
                event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            raise Refused(f"a request is no valid HTTP/1: {error}") from error
        if event is h11.NEED_DATA:
            return data, b""
        return self._end(data)

    def _begin(self, request: h11.Request, data: bytes) -> tuple[bytes, bytes]:
        """A head is complete: has it judged, and prepares for its body."""
        headers: dict[bytes, list[bytes]] = {}
        for name, value in request.headers:
            headers.setdefault(name, []).append(value)
        if request.method == b"CONNECT" or not request.target.startswith((b"/", b"*")):
            raise Refused("a request is made as to a proxy; connect to the host itself")
        if b"content-length" in headers and b"transfer-encoding" in headers:
            raise Refused("a request has both Content-Length and Transfer-Encoding")
        if self._needs_host and b"host" not in headers:
            raise Refused("a request names no Host, so it cannot be told")
        for host in headers.get(b"host", []):
            self._judge_host(_without_port(host.decode("latin-1")))
        if b"upgrade" in headers:
            if not self._is_first or any(b"h2c" in value.lower() for value in headers[b"upgrade"]):
                raise Refused("an upgrade is asked for that is not the first request, or is to HTTP/2")
            self.awaits_upgrade = True
        self._is_first = False
        if b"transfer-encoding" in headers:
            self._in_chunks = True
            left = bytes(self._parser.trailing_data[0])
            self._parser = _parser_in_chunks()
            return self._held_and(data, left), left
        self._body_left = int(headers.get(b"content-length", [b"0"])[0])
        return self._end(data)

    def _end(self, data: bytes) -> tuple[bytes, bytes]:
        """What the parser has not used belongs to what comes next, which gets a parser of its own."""
        left = bytes(self._parser.trailing_data[0])
        self._parser = _parser()
        self._in_chunks = False
        return self._held_and(data, left), left

    def _held_and(self, data: bytes, left: bytes) -> bytes:
        held, self._held = self._held, b""
        return held + data[: len(data) - len(left)]


def _parser() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=LARGEST_HEAD)


def _parser_in_chunks() -> h11.Connection:
    """A parser that is at the beginning of a chunked body."""
    parser = _parser()
    parser.receive_data(b"POST / HTTP/1.1\r\nHost: -\r\nTransfer-Encoding: chunked\r\n\r\n")
    parser.next_event()
    return parser


def _without_port(host: str) -> str:
    """The host; with anything behind it that is not a port, all of it, which is no host then."""
    return _PORT.sub("", host)
