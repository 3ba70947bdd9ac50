"""Containers of the image under test, in podman with runc, as a user starts them."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import wait_until
from tests.hostile.network.world import World, way_in

IMAGE = os.environ.get("BELLJAR_TEST_IMAGE", "localhost/belljar:test")
BELLJAR = str(Path(sys.executable).with_name("belljar"))
START_SECONDS = 300.0
"""The first start makes the snapshots."""

PRIVILEGED = ("--privileged",)
SMALLEST = (
    *("--cap-drop=all", "--cap-add=SETUID,SETGID,KILL,NET_ADMIN,NET_BIND_SERVICE,NET_RAW,SYS_ADMIN"),
    # This host has cgroup v1: the engine mounts it read-only unless it is asked not to.
    *("--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw", "--security-opt=seccomp=unconfined"),
)
ENGINE_DEFAULTS = ()


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Runs podman; the limits of open files and processes are those that runc may set inside a virtual machine too."""
    command = ["podman", "--storage-driver=vfs", "--runtime=runc", *arguments]
    return subprocess.run(command, check=check, capture_output=True, text=True, timeout=600)


@dataclass(frozen=True)
class Container:
    """A container that was started."""

    name: str
    address: str
    http_address: str

    def logs(self) -> str:
        """What the server wrote to its log so far."""
        done = podman("logs", self.name)
        return done.stdout + done.stderr

    def is_serving(self) -> bool:
        """Asked from outside."""
        asked = subprocess.run([BELLJAR, "health", "--address", self.address], check=False, capture_output=True)
        return asked.returncode == 0

    def wait_until_serving(self) -> None:
        """Fails with the log when it does not serve."""
        wait_until(self.is_serving, self.logs, START_SECONDS)


@contextmanager
def volume() -> Iterator[str]:
    """A volume for /var/lib/belljar."""
    name = f"belljar-test-{secrets.token_hex(4)}"
    podman("volume", "create", name)
    try:
        yield name
    finally:
        podman("volume", "rm", "--force", name)


def run_options(privileges: tuple[str, ...], data: str, settings: dict[str, str], network: str = "host") -> list[str]:
    """Options of `podman run` for this image. The network is the host's: there is no bridge on every test machine."""
    return [
        *(f"--network={network}", "--ulimit=nofile=1024:1024", "--ulimit=nproc=4096:4096"),
        *(f"--volume={data}:/var/lib/belljar", *privileges),
        *(f"--env=BELLJAR_{name}={value}" for name, value in settings.items()),
        IMAGE,
    ]


@contextmanager
def running(privileges: tuple[str, ...], data: str, place: World | None = None, **settings: str) -> Iterator[Container]:
    """A container that serves, on this machine or in another place, removed in the end."""
    name = f"belljar-test-{secrets.token_hex(4)}"
    ports = [free_port(), free_port()]
    grpc, http = (f"127.0.0.1:{port}" for port in ports)
    chosen = {"GRPC__LISTEN": grpc, "HTTP__LISTEN": http, "POOL__MAX": "2", "POOL__MIN": "1"} | settings
    network = f"ns:{place.host_path}" if place else "host"
    podman("run", "--detach", f"--name={name}", *run_options(privileges, data, chosen, network))
    with ExitStack() as stack:
        stack.callback(podman, "rm", "--force", "--time=0", name)
        if place:
            grpc, http = (stack.enter_context(way_in(place, port)) for port in ports)
        container = Container(name, grpc, http)
        container.wait_until_serving()
        yield container


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
