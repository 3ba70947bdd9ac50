"""One server in a world of its own; the three questions of the folder above are asked about it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from belljar_client import Client, Result
from tests.conftest import Server, running_server
from tests.hostile.network import world as worlds


def port_of(address: str) -> int:
    """The port of `host:port`."""
    return int(address.rpartition(":")[2])


def traces() -> dict[str, str]:
    """What there is to see of networks in the namespace that the tests run in."""
    found = {"links": "\n".join(sorted(name for _, name in socket.if_nameindex()))}
    for argv in (["ip", "-o", "address"], ["ip", "rule"], ["ip", "route", "show", "table", "all"], ["ip", "netns"]):
        found[" ".join(argv)] = said_by(argv)
    found["nft"] = said_by(["nft", "list", "ruleset"])
    return found


def said_by(argv: list[str]) -> str:
    """What a tool says, where it is installed."""
    if shutil.which(argv[0]) is None:
        return ""
    said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout
    return re.sub(r"(valid|preferred)_lft \S+", "", said)


@pytest.fixture(scope="session", autouse=True)
def no_trace() -> Iterator[None]:
    """When all is over, the machine's own network is as it was before."""
    before = traces()
    yield
    assert traces() == before


@pytest.fixture(scope="session")
def world(no_trace: None) -> Iterator[worlds.World]:
    """The namespaces."""
    with worlds.world() as made:
        yield made


@pytest.fixture(scope="session")
def outside(world: worlds.World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The outside's servers run; the folder with their certificate."""
    folder = tmp_path_factory.mktemp("outside")
    with worlds.servers(world.outside_path, folder):
        yield folder


@pytest.fixture(scope="session")
def asked(outside: Path) -> Path:
    """The log of the names that the outside's name server was asked for, and of where its proxy was sent."""
    return outside / "asked"


@pytest.fixture(scope="session")
def server(world: worlds.World, asked: Path) -> Iterator[Server]:
    """A server whose host is in the world."""
    prefix = ("nsenter", f"--net={world.host_path}")
    with (
        running_server(prefix=prefix, EGRESS__WAITING="2", EGRESS__DNS_SERVERS=worlds.DNS_SERVERS) as running,
        worlds.way_in(world, port_of(running.address)) as address,
        worlds.way_in(world, port_of(running.http_address)) as http_address,
    ):
        yield replace(running, address=address, http_address=http_address)


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[Client]:
    """A client of it."""
    with Client(server.address) as connected:
        yield connected


@pytest.fixture(scope="session")
def run(client: Client) -> Callable[..., Result]:
    """Runs code on it."""

    def execute(code: str, runtime: str = "python", **options: Any) -> Result:
        return client.execute(code, runtime=runtime, **options)

    return execute
