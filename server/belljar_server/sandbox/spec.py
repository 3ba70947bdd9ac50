"""The OCI configuration of a sandbox, as a pure function of its environment.

Nothing of one execution is in it, so one bundle serves all sandboxes of an environment, cold or restored. Every choice
comes from GVISOR.md: EROFS root without a gofer process, no bind mount, no capability that the agent does not need.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from belljar_server.runtimes import Preload, Runtime

AGENT = ("/usr/bin/python3", "-I", "-S", "/opt/belljar/guest/agent.py")
AGENT_CAPABILITIES = (
    "CAP_SETUID",  # start the worker as another user, and write that user's files
    "CAP_SETGID",
    "CAP_KILL",  # end what user code started
    "CAP_SYS_ADMIN",  # mount the disk in the size that the request asks for
    "CAP_SYS_RESOURCE",  # set the worker's limits from outside
    "CAP_DAC_READ_SEARCH",  # read artifacts whatever their mode
)
SNAPSHOTS_WITH_DEPENDENCIES = 2
LOADED_BYTES = 256 << 20
"""Memory of a sandbox in which requested packages are loaded, until it knows what it will run."""
HARD_LIMIT = 1 << 20
"""Open files and processes that the agent may allow; what a request may have is the server's ceiling."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A set of packages as an EROFS image of its own, mounted beside the root."""

    image: Path
    digest: str
    """`sha256:…` of the image."""
    target: str
    """Where it is mounted; an empty folder of the root's."""


@dataclass(frozen=True, slots=True)
class Environment:
    """An image with its layers and what runs in it; what a pool and a snapshot are for."""

    runtime: Runtime
    image: Path
    digest: str
    """`sha256:…` of the image."""
    version: str
    """Exact version of the language in the image."""
    layers: tuple[Layer, ...] = ()
    packages: tuple[tuple[str, str], ...] = ()
    """Names and versions of the packages in the layers."""
    modules: frozenset[str] = frozenset()
    """Top-level names that can be imported from the layers."""
    preload: Preload | None = None
    """What is loaded before the snapshot, beside what always is."""
    dependencies: str = ""
    """What tells its layer of requested packages from others, and what of it is loaded; empty when it has none."""
    imports: tuple[str, ...] = ()
    """Statements that load requested packages before the snapshot."""

    network: bool = False
    """Whether it is linked to a gateway. A snapshot is the same with and without."""

    @property
    def name(self) -> str:
        """What tells its snapshots from those of other environments."""
        special = self.dependencies or (self.preload.name if self.preload else "")
        return f"{self.runtime.name}-{special}" if special else self.runtime.name

    @property
    def key(self) -> str:
        """What tells the pools of a server apart."""
        return f"{self.name}+network" if self.network else self.name

    @property
    def snapshots(self) -> int:
        """How many snapshots it has."""
        if self.dependencies:
            return min(SNAPSHOTS_WITH_DEPENDENCIES, self.runtime.snapshots)
        return self.preload.snapshots if self.preload else self.runtime.snapshots


INSTALLER_CAPABILITIES = (
    "CAP_SETUID",  # run the package managers as another user
    "CAP_SETGID",
    "CAP_KILL",  # end what they leave behind
    "CAP_CHOWN",  # give them their folders
)


def installer_spec(image: Path, command: tuple[str, ...], disk_bytes: int) -> dict[str, Any]:
    """The configuration of the sandbox that installs packages: a disk to work on, and nothing else."""
    capabilities = list(INSTALLER_CAPABILITIES)
    disk = {
        "destination": "/work",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "nodev", "mode=1777", f"size={disk_bytes}"],
    }
    return _spec(image, command, {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}, capabilities, [disk])


def oci_spec(environment: Environment, *, warm: bool = False) -> dict[str, Any]:
    """The content of config.json. With `warm` the worker loads and exercises all it can before it says READY."""
    env = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": "/home/user",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "USER": "user",
        **dict(environment.runtime.worker_env),
        **({"BELLJAR_WARM": "1"} if warm else {}),
        **({"BELLJAR_PRELOAD": " ".join(environment.preload.modules)} if warm and environment.preload else {}),
        **({"BELLJAR_PRELOAD_REQUESTED": "\n".join(environment.imports)} if warm and environment.imports else {}),
    }
    layers = [
        {"destination": layer.target, "type": "erofs", "source": str(layer.image), "options": ["ro", "nosuid", "nodev"]}
        for layer in environment.layers
    ]
    command = (*AGENT, *environment.runtime.worker)
    return _spec(environment.image, command, env, list(AGENT_CAPABILITIES), layers, network=environment.network)


def _spec(
    image: Path,
    command: tuple[str, ...],
    env: dict[str, str],
    capabilities: list[str],
    mounts: list[dict[str, Any]],
    *,
    network: bool = False,
) -> dict[str, Any]:
    return {
        "ociVersion": "1.0.0",
        "hostname": "belljar",
        "root": {"path": "rootfs", "readonly": True},
        "annotations": {
            "dev.gvisor.spec.rootfs.source": str(image),
            "dev.gvisor.spec.rootfs.type": "erofs",
        },
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": list(command),
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": "/",
            "noNewPrivileges": True,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": [
                {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
                # Left out, they are those of the service, and gVisor lets nobody raise them: a limit that the
                # contract allows could not be set on a host with a lower one.
                {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": HARD_LIMIT},
                {"type": "RLIMIT_NPROC", "soft": HARD_LIMIT, "hard": HARD_LIMIT},
            ],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "nodev", "noexec"]},
            {
                "destination": "/dev/shm",  # noqa: S108  in the sandbox
                "type": "tmpfs",
                "source": "tmpfs",
                "options": ["nosuid", "nodev", "mode=1777"],
            },
            *mounts,
        ],
        "linux": {
            "namespaces": [
                *({"type": kind} for kind in ("pid", "mount", "uts", "ipc")),
                # The launcher has put runsc into the sandbox's network namespace before it starts.
                {"type": "network", **({"path": "/proc/self/ns/net"} if network else {})},
            ]
        },
    }
