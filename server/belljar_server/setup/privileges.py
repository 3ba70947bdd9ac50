"""What this process may do to its host, and what is lost where it may not: as found by taking one after the other away.

Containers and systemd units have fewer capabilities than root (capabilities(7)); deploy/README.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Capability:
    """One that is needed: its bit, and for what."""

    bit: int
    needed_for: str
    network_only: bool = False
    """Not needed where no request may have a network."""


NEEDED: Mapping[str, Capability] = {
    "SETGID": Capability(6, "starting sandboxes, which run as nobody"),
    "SETUID": Capability(7, "starting sandboxes, which run as nobody"),
    "KILL": Capability(5, "ending sandboxes where the kernel has no cgroup.kill"),
    "NET_BIND_SERVICE": Capability(10, "answering the sandboxes' DNS queries", network_only=True),
    "NET_ADMIN": Capability(12, "the links and rules of the sandboxes' networks", network_only=True),
    "NET_RAW": Capability(13, "gVisor's side of the sandboxes' networks", network_only=True),
    "SYS_ADMIN": Capability(21, "the sandboxes' network namespaces", network_only=True),
}


def missing(*, network: bool, status: Path = Path("/proc/self/status")) -> dict[str, str]:
    """Capabilities that this process lacks, with what they are needed for. Raises OSError."""
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    held = int(lines["CapEff"], 16)
    return {
        name: capability.needed_for
        for name, capability in NEEDED.items()
        if not held >> capability.bit & 1 and (network or not capability.network_only)
    }


def surroundings() -> str:
    """Where this process runs, as the engines tell it: "in a container of podman", "on a host"."""
    if Path("/run/.containerenv").exists():
        return "in a container of podman"
    if Path("/.dockerenv").exists():
        return "in a container of docker"
    return "on a host"
