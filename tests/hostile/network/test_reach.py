"""What is allowed works, whatever it speaks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from belljar_client import ErrorKind, Result
from tests.conftest import Server
from tests.hostile.conftest import metric
from tests.hostile.network.inside import TRY

Hit = Callable[..., Result]


def test_http_and_https_reach_the_allowed_name(hit: Hit, server: Server) -> None:
    """Over both usual ports, with the name that was asked for; what went over is counted."""
    counted = metric(server, "belljar_network_connections_total")
    code = TRY + "[get('http://api.example.com/a'), get('https://api.example.com/b')]"
    result = hit(code, allow=["api.example.com"]).check()
    assert result.value == [
        {"host": "api.example.com", "path": "/a", "at": "11.22.33.44"},
        {"host": "api.example.com", "path": "/b", "at": "11.22.33.44"},
    ]
    assert result.denied_connections == ()
    assert result.usage.network_connections == 2
    assert metric(server, "belljar_network_connections_total") == counted + 2
    assert result.usage.network_bytes_in > 1000
    assert result.usage.network_bytes_out > 500


@pytest.mark.parametrize("runtime", ["javascript", "typescript"])
def test_fetch_works_in_node(hit: Hit, runtime: str) -> None:
    """Its own resolver, its own HTTP client."""
    code = "const answer = await fetch('http://api.example.com/x'); return (await answer.json()).path"
    assert hit(code, runtime, allow=["api.example.com"]).check().value == "/x"


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "import urllib.request\nurllib.request.urlopen('http://nowhere.invalid/')"),
        ("javascript", "await fetch('http://nowhere.invalid/')"),
    ],
)
def test_a_name_that_does_not_exist_is_told_as_that(hit: Hit, runtime: str, code: str) -> None:
    """Neither as denied, nor with the hint that there is no network."""
    result = hit(code, runtime, network="full")
    assert result.error is not None
    assert result.error.kind is ErrorKind.EXCEPTION
    assert result.error.hint == ""
    assert result.denied_connections == ()


def test_a_server_that_speaks_first_is_heard(hit: Hit) -> None:
    """The client waits for a greeting; nobody waits for the client."""
    code = (
        TRY
        + """
with socket.create_connection(("db.example.com", 25), 10) as connection:
    first = connection.recv(100)
    connection.sendall(b"hello\\r\\n")
    second = connection.recv(100)
[first.decode(), second.decode()]
"""
    )
    assert hit(code, allow=["db.example.com:25"]).check().value == ["220 welcome\r\n", "250 hello\r\n"]


def test_half_closed_connections_carry_the_rest(hit: Hit) -> None:
    """Ten MiB go out and come back after the client has shut its half, byte for byte."""
    code = (
        TRY
        + """
import hashlib, os, threading
sent = os.urandom(10 << 20)
connection = socket.create_connection(("api.example.com", 7), 10)
def send():
    connection.sendall(sent)
    connection.shutdown(socket.SHUT_WR)
threading.Thread(target=send).start()
came = hashlib.sha256()
size = 0
while data := connection.recv(1 << 18):
    came.update(data)
    size += len(data)
[size, came.hexdigest() == hashlib.sha256(sent).hexdigest()]
"""
    )
    result = hit(code, allow=["api.example.com:7"]).check()
    assert result.value == [10 << 20, True]
    assert (result.usage.network_bytes_in, result.usage.network_bytes_out) == (10 << 20, 10 << 20)


def test_websocket_is_carried(hit: Hit) -> None:
    """Node's own client, over the upgrade of a plain connection."""
    code = """
const socket = new WebSocket("ws://api.example.com/chat")
return await new Promise((resolve, reject) => {
  socket.onopen = () => socket.send("hello")
  socket.onmessage = (event) => resolve(event.data)
  socket.onerror = () => reject(new Error("broken"))
})
"""
    assert hit(code, "javascript", allow=["api.example.com"]).check().value == "back: hello"


def test_http_2_is_carried(hit: Hit) -> None:
    """Over TLS, negotiated, with Node's own client; the server is gRPC's."""
    code = """
const http2 = await import("node:http2")
const session = http2.connect("https://api.example.com:8443", { rejectUnauthorized: false })
const stream = session.request({
  ":method": "POST", ":path": "/none/none", "content-type": "application/grpc", te: "trailers"
})
stream.end(Buffer.alloc(5))
const headers = await new Promise((resolve, reject) => {
  stream.on("response", resolve)
  for (const each of [stream, session]) each.on("error", reject)
})
session.close()
return [session.alpnProtocol, headers[":status"], headers["grpc-status"]]
"""
    assert hit(code, "javascript", allow=["api.example.com:8443"]).check().value == ["h2", 200, "12"]


def test_full_reaches_public_names_and_addresses(hit: Hit) -> None:
    """By name, by address, on any port, and with another TLS name than was resolved."""
    code = (
        TRY
        + """
def other():
    with socket.create_connection(("api.example.com", 443), 10) as plain:
        with TLS.wrap_socket(plain, server_hostname="evil.com") as connection:
            connection.sendall(b"GET /t HTTP/1.1\\r\\nHost: evil.com\\r\\nConnection: close\\r\\n\\r\\n")
            return connection.recv(4096).decode()[:12]
[get("http://evil.com/")["at"], get("http://11.22.33.45:8080/")["at"], say("11.22.33.44", 25), other()]
"""
    )
    assert hit(code, network="full").check().value == ["11.22.33.66", "11.22.33.45", "220 welcome\r\n", "HTTP/1.1 200"]


def test_rules_by_network_and_by_port(hit: Hit) -> None:
    """An address that a rule holds needs no name; another port does not go with it."""
    code = TRY + "[say('11.22.33.44', 25), say('11.22.33.44', 9, b'x'), get('http://11.22.33.66:8080/')]"
    result = hit(code, allow=["11.22.33.40/29:25"]).check()
    assert result.value[0] == "220 welcome\r\n"
    assert result.value[1] == "ECONNRESET"
    assert result.value[2][0] == 403
    assert {(denied.host, denied.port, denied.rule) for denied in result.denied_connections} == {
        ("11.22.33.44", 9, "11.22.33.44:9"),
        ("11.22.33.66", 8080, "11.22.33.66:8080"),
    }
