"""Where a network lives, and that nothing of it outlives its server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from belljar_client import Client, Result
from belljar_server.egress.dial import Dialer
from belljar_server.egress.gateway import Outside
from belljar_server.egress.resolver import Resolver
from belljar_server.egress.rules import ServerRules
from tests.conftest import Server, running_server, wait_until
from tests.hostile.network import world as worlds
from tests.hostile.network.inside import TRY

Hit = Callable[..., Result]


def namespace_of(pid: int) -> int:
    """The network namespace of a process."""
    return os.stat(f"/proc/{pid}/ns/net").st_ino


def processes() -> list[int]:
    """All that there are."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def namespaces_of(pids: Iterable[int]) -> set[int]:
    """The network namespaces that processes are in, and those that they hold open."""
    found = set()
    for pid in pids:
        try:
            found.add(namespace_of(pid))
            for fd in os.listdir(f"/proc/{pid}/fd"):
                target = os.readlink(f"/proc/{pid}/fd/{fd}")
                if target.startswith("net:["):
                    found.add(int(target[5:-1]))
        except OSError:  # it has ended
            continue
    return found


def test_sandboxes_live_in_namespaces_of_their_own(hit: Hit, server: Server, world: worlds.World) -> None:
    """No sandbox is in the server's namespace, no two sandboxes share one, and the server's is as it was."""
    hit(TRY + "get('http://api.example.com/')", network="full").check()
    own = namespace_of(server.process.pid)
    supervisors = []
    for pid in server.children():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            entered = namespace_of(pid)
        except OSError:  # it has ended
            continue
        if b"boot" in words:
            assert entered != own, words
            supervisors.append(entered)
    assert len(supervisors) == len(set(supervisors)) > 1
    server_links = worlds.in_namespace(world.host, socket.if_nameindex)
    assert {name for _, name in server_links} == {"lo", "eth0"}


async def test_a_start_that_is_cancelled_leaves_no_files(hit: Hit) -> None:
    """Whenever that is: while the namespaces are made, or after."""
    outside = Outside(ServerRules(), Resolver([(worlds.DNS, 53)]), Dialer())
    before = len(os.listdir("/proc/self/fd"))
    for moments in range(6):
        making = asyncio.create_task(outside.gateway())
        for _ in range(moments):
            await asyncio.sleep(0.001)
        making.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            (await making).close()
    async with asyncio.timeout(20):
        while len(os.listdir("/proc/self/fd")) > before:
            await asyncio.sleep(0.01)


def test_a_killed_server_leaves_no_namespace(world: worlds.World, asked: Path) -> None:
    """With sandboxes waiting and one in the middle of a transfer: the kernel takes everything down with it."""
    with (
        running_server(
            prefix=("nsenter", f"--net={world.host_path}"), EGRESS__WAITING="1", EGRESS__DNS_SERVERS=worlds.DNS_SERVERS
        ) as doomed,
        worlds.way_in(world, int(doomed.address.rpartition(":")[2])) as address,
        Client(address) as client,
    ):
        code = TRY + "print('on', flush=True)\nget('http://api.example.com/download?mib=100000')"
        events = client.stream(code, network="full")
        for event in events:
            if type(event).__name__ == "Output":
                break
        own = namespaces_of([doomed.process.pid, *doomed.children()]) - {namespace_of(doomed.process.pid)}
        assert len(own) >= 4
        doomed.stop(signal.SIGKILL)
        wait_until(lambda: not own & namespaces_of(processes()), "its namespaces are gone")
        events.close()
