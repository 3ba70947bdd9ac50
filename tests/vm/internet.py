"""A small internet for a machine without a network card: a namespace with servers, and the only way leads there."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.hostile.network.world import HOST, OUTSIDE, ROUTER, servers

NAMESPACE = "outside"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def internet(directory: Path) -> Iterator[None]:
    """It exists and its servers listen; their errors and certificate go to a folder."""
    ip("netns", "add", NAMESPACE)
    try:
        ip("link", "add", "wan", "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
        ip("address", "add", str(HOST), "dev", "wan")
        ip("link", "set", "wan", "up")
        ip("-n", NAMESPACE, "address", "add", str(ROUTER), "dev", "eth0")
        for address in OUTSIDE:
            ip("-n", NAMESPACE, "address", "add", f"{address}/32", "dev", "lo")
        for link in ("lo", "eth0"):
            ip("-n", NAMESPACE, "link", "set", link, "up")
        ip("route", "add", "default", "via", str(ROUTER.ip))
        with servers(f"/run/netns/{NAMESPACE}", directory):
            yield
    finally:
        ip("netns", "delete", NAMESPACE)
