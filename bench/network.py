"""The rows about networks, measured in the small internet of the tests: nothing but loopback and own namespaces."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tests.hostile.network import world as worlds

from belljar_client import Client, Limits, NetworkLimits
from bench.table import Row, serving, spread

TRIVIAL = "def main(a, b):\n    return a + b\n"
MEASURES = """
import http.client, json, socket, ssl, time
def clock(work, times):
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return taken
def down():
    connection = socket.create_connection(("api.example.com", 80))
    connection.sendall(b"GET /download?mib=%d HTTP/1.1\\r\\nHost: api.example.com\\r\\n\\r\\n" % mib)
    buffer, left = bytearray(1 << 20), mib << 20
    while left > 0:
        left -= connection.recv_into(buffer)
def up():
    connection = socket.create_connection(("api.example.com", 9))
    piece = bytes(1 << 20)
    for _ in range(mib):
        connection.sendall(piece)
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
kept = http.client.HTTPConnection("api.example.com")
def again():
    kept.request("GET", "/")
    kept.getresponse().read()
def anew():
    connection = socket.create_connection(("api.example.com", 80))
    connection.close()
tls = ssl._create_unverified_context()
def secure():
    with socket.create_connection(("api.example.com", 443)) as plain:
        tls.wrap_socket(plain, server_hostname="api.example.com").close()
again(), secure()
answer = {
    "down": clock(down, 3), "up": clock(up, 3), "again": clock(again, 300), "anew": clock(anew, 100),
    "secure": clock(secure, 100),
}
held = [socket.create_connection(("api.example.com", 7)) for _ in range(200)]
def round_trip():
    for connection in held:
        connection.sendall(b"x")
    for connection in held:
        connection.recv(1)
answer["held"] = clock(round_trip, 10)
answer
"""


@contextmanager
def serving_there() -> Iterator[Client]:
    """A client of a server whose outside is the small internet."""
    with tempfile.TemporaryDirectory(prefix="belljar-bench-") as scratch, worlds.world() as place:
        prefix = ("nsenter", f"--net={place.host_path}")
        with (
            worlds.servers(place.outside_path, Path(scratch)),
            serving(prefix=prefix, EGRESS__DNS_SERVERS=worlds.DNS_SERVERS, EGRESS__WAITING="2") as (there, _),
            worlds.way_in(place, int(there.rpartition(":")[2])) as address,
            Client(address) as client,
        ):
            yield client


def measure(runs: int) -> Iterator[Row]:
    """Throughput, latencies, and what a network costs a warm run."""
    with serving_there() as client:
        time.sleep(5)  # until its pools are full
        generous = NetworkLimits(connections_per_second=1000, bytes_in=8 << 30, bytes_out=8 << 30)
        result = client.execute(
            MEASURES,
            inputs={"mib": 400},
            allow=["api.example.com:*"],
            network_limits=generous,
            limits=Limits(timeout=120, cpus=2),
        )
        taken = result.check().value
        for what, way in (("down", "to the code"), ("up", "from the code")):
            yield Row(f"network throughput {way}, 400 MiB", f"{400 / statistics.median(taken[what]):.0f} MiB/s")
        yield Row("HTTP request over a kept connection", spread(taken["again"]))
        yield Row("new TCP connection", spread(taken["anew"]))
        yield Row("new HTTPS connection, with handshake", spread(taken["secure"]))
        each = statistics.median(taken["held"]) / 200
        yield Row("200 connections held, a byte to and fro over each", f"{each * 1e3:.2f} ms each")
        without: list[float] = []
        with_network: list[float] = []
        modes: tuple[tuple[list[float], Literal["none", "full"]], ...] = ((without, "none"), (with_network, "full"))
        for _ in range(runs):
            for seconds, mode in modes:
                time.sleep(0.7)
                began = time.perf_counter()
                client.execute(TRIVIAL, inputs={"a": 1, "b": 2}, network=mode).check()
                seconds.append(time.perf_counter() - began)
        more = statistics.median(with_network) - statistics.median(without)
        yield Row("Execute, warm, python, without network", spread(without))
        yield Row("the same with network", spread(with_network), f"{more * 1e3:+.1f} ms")


if __name__ == "__main__":
    for row in measure(10):
        print(f"| {row.what} | {row.value} | {row.beside} |")
