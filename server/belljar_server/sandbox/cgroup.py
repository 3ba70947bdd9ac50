"""Control groups of our own, one for each sandbox, on cgroup v1, v2 and hybrid hosts.

runsc is told to ignore cgroups: its own vanish with the out-of-memory counter, which is the only evidence of a memory
kill. So the server makes a group for each sandbox, runsc is started inside it, and limits can be written while it runs.

Where they are made: below the setting `sandbox.cgroup_parent`, else below the service's own group. On cgroup v2 a
group that has processes cannot have limited children, so when the own group is ours alone (a container's, or a
systemd unit with Delegate=yes) its processes move to a leaf `service`; when it is not, the groups go below the root
of the hierarchy.

Long, for it says everything twice: the versions have nothing in common but the idea.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

from belljar_server.errors import SandboxFailed

CONTROLLERS = ("memory", "cpu", "cpuacct", "pids")
SENTRY_BYTES = 32 << 20
"""Memory that gVisor itself needs, added to the limit of a request (measured: GVISOR.md)."""
CPU_PERIOD = 100_000
"""Period of the CPU quota in microseconds."""
NEEDED = {"memory_bytes": "memory", "cpus": "cpu", "cpu_time": "cpuacct"}
"""Limits of the contract that the host enforces by a controller; the others are enforced inside the sandbox."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted cgroup hierarchy: where it is, which part of it is visible there, and where this process is in it."""

    point: Path
    version: int
    controllers: frozenset[str]
    own: Path
    """The directory of this process's own group."""


def read_mounts(proc: Path = Path("/proc/self")) -> list[Mount]:
    """All hierarchies of this process, from mountinfo and cgroup (proc_pid_mountinfo(5), cgroups(7))."""
    paths: dict[frozenset[str], str] = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        paths[frozenset(names.split(",")) - {""}] = path
    mounts = []
    for line in (proc / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        root, point = before.split()[3:5]
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            version, controllers = 2, frozenset[str]()
        elif kind == "cgroup":
            version, controllers = 1, frozenset(options.split(",")) & frozenset(CONTROLLERS)
            if not controllers:
                continue
        else:
            continue
        own = next((path for held, path in paths.items() if (controllers <= held if version == 1 else not held)), None)
        if own is None:
            continue
        inside = os.path.relpath(own, root) if own.startswith(root) else "."
        mounts.append(Mount(Path(point), version, controllers, Path(os.path.normpath(Path(point) / inside))))
    return mounts


@dataclass(frozen=True, slots=True)
class Tree:
    """Where groups of this server go, which controllers they have, and why others are missing."""

    parents: tuple[tuple[Path, int, frozenset[str]], ...]
    """(directory, cgroup version, controllers) of each hierarchy in use."""
    missing: dict[str, str] = field(default_factory=dict)
    """Limit -> why this host cannot enforce it."""

    def create(self, name: str) -> Group:
        """A new group for one sandbox. Raises OSError."""
        group = Group(name, {}, [])
        for parent, version, controllers in self.parents:
            directory = parent / name
            directory.mkdir()
            group.add(directory, version, controllers)
        return group

    def record(self) -> list[list[object]]:
        """What a later server needs to sweep this tree, as plain JSON."""
        return [[str(parent), version, sorted(controllers)] for parent, version, controllers in self.parents]

    @staticmethod
    def recorded(record: list[tuple[str, int, list[str]]]) -> Tree:
        """The tree that `record` described."""
        return Tree(tuple((Path(parent), version, frozenset(controllers)) for parent, version, controllers in record))

    async def sweep(self) -> int:
        """Kills and removes every group below this tree, then the tree itself; returns how many groups there were."""
        names = {
            child.name
            for parent, _, _ in self.parents
            if parent.is_dir()
            for child in parent.iterdir()
            if child.is_dir()
        }
        for name in names:
            group = Group(name, {}, [])
            for parent, version, controllers in self.parents:
                if (parent / name).is_dir():
                    group.add(parent / name, version, controllers)
            await group.destroy()
        for parent, _, _ in self.parents:
            with contextlib.suppress(OSError):
                parent.rmdir()
        return len(names)


@dataclass(slots=True)
class Group:
    """The control group of one sandbox: a directory in each hierarchy."""

    name: str
    _by_controller: dict[str, tuple[Path, int]]
    _directories: list[tuple[Path, int]]

    def add(self, directory: Path, version: int, controllers: frozenset[str]) -> None:
        """Takes a directory of one hierarchy into the group."""
        self._directories.append((directory, version))
        for controller in controllers:
            self._by_controller[controller] = (directory, version)

    @property
    def procs_files(self) -> list[str]:
        """What a process writes "0" to in order to join."""
        return [str(directory / "cgroup.procs") for directory, _ in self._directories]

    def limit_memory(self, size: int) -> None:
        """Memory of the sandbox in bytes; gVisor's own is added. Raises OSError."""
        if "memory" not in self._by_controller:
            return
        directory, version = self._by_controller["memory"]
        value = str(size + SENTRY_BYTES)
        if version == 2:
            write(directory / "memory.max", value)
            write_if_there(directory / "memory.swap.max", "0")
            write_if_there(directory / "memory.oom.group", "1")
        else:
            with_swap = directory / "memory.memsw.limit_in_bytes"  # the kernel wants it never below the other one
            write_if_there(with_swap, value)
            write(directory / "memory.limit_in_bytes", value)
            write_if_there(with_swap, value)

    def limit_cpu(self, cores: float | None) -> None:
        """CPU cores; None lifts the limit. Raises OSError."""
        if "cpu" not in self._by_controller:
            return
        directory, version = self._by_controller["cpu"]
        quota = max(1000, int(cores * CPU_PERIOD)) if cores is not None else None
        if version == 2:
            write(directory / "cpu.max", f"{quota or 'max'} {CPU_PERIOD}")
        else:
            write(directory / "cpu.cfs_quota_us", str(quota or -1))

    def weigh(self, *, background: bool) -> None:
        """Less CPU than others while it only gets ready in the background; its fair share else."""
        if "cpu" not in self._by_controller:
            return
        directory, version = self._by_controller["cpu"]
        if version == 2:
            write_if_there(directory / "cpu.weight", "10" if background else "100")
        else:
            write_if_there(directory / "cpu.shares", "102" if background else "1024")

    def limit_tasks(self, count: int) -> None:
        """Host tasks, as a backstop far above the sandbox's own limit: hitting it kills the sandbox."""
        if "pids" in self._by_controller:
            write(self._by_controller["pids"][0] / "pids.max", str(count))

    def oom_kills(self) -> int:
        """How often the kernel's out-of-memory killer struck here."""
        if "memory" not in self._by_controller:
            return 0
        directory, version = self._by_controller["memory"]
        return read_key(directory / ("memory.events" if version == 2 else "memory.oom_control"), "oom_kill")

    def cpu_time(self) -> float:
        """CPU seconds used so far by all processes of the sandbox, gVisor's included."""
        if "cpuacct" not in self._by_controller:
            return 0.0
        directory, version = self._by_controller["cpuacct"]
        if version == 2:
            return read_key(directory / "cpu.stat", "usage_usec") / 1e6
        return read_number(directory / "cpuacct.usage") / 1e9

    def peak_memory(self) -> int:
        """Most memory held at once, in bytes; 0 where the kernel does not tell (cgroup v2 before Linux 5.19)."""
        if "memory" not in self._by_controller:
            return 0
        directory, version = self._by_controller["memory"]
        return read_number(directory / ("memory.peak" if version == 2 else "memory.max_usage_in_bytes"))

    @property
    def exists(self) -> bool:
        """Whether there is a directory: not where every limit that needs one is waived, and not once destroyed."""
        return bool(self._directories)

    def kill(self) -> None:
        """SIGKILL to everything inside; returns before all of it is gone."""
        for directory, version in self._directories:
            if version == 2 and write_if_there(directory / "cgroup.kill", "1"):
                return
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    async def destroy(self) -> None:
        """Kills what is inside and removes the directories; returns when they are gone."""
        pause = 0.001
        for attempt in range(2000):
            if attempt == 0 or self.pids():
                self.kill()
            if self._remove():
                return
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.02)
        raise SandboxFailed(f"cgroup {self._directories[0][0]} cannot be removed: processes {self.pids()} do not die")

    def _remove(self) -> bool:
        while self._directories:
            directory, _ = self._directories[-1]
            try:
                directory.rmdir()
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno == errno.EBUSY:
                    return False
                raise
            self._directories.pop()
        return True

    def pids(self) -> list[int]:
        """Its processes; none where there is no cgroup."""
        if not self._directories:
            return []
        with contextlib.suppress(OSError):
            return [int(pid) for pid in (self._directories[0][0] / "cgroup.procs").read_text().split()]
        return []


def find_tree(parent: str, instance: str) -> Tree:
    """Makes the parents for a server's groups and says which limits cannot be enforced. Never raises."""
    mounts = read_mounts()
    parents: list[tuple[Path, int, frozenset[str]]] = []
    problems: dict[str, str] = {}
    covered: set[str] = set()
    for mount in mounts:
        try:
            if mount.version == 1:
                base = mount.point / parent.strip("/") if parent else mount.own
                directory = base / "belljar" / instance
                directory.mkdir(parents=True, exist_ok=True)
                have = mount.controllers
            else:
                directory, have = _make_v2(mount, parent, instance)
        except OSError as error:
            for controller in mount.controllers or CONTROLLERS:
                problems[controller] = f"{error.filename or mount.point}: {error.strerror}"
            continue
        parents.append((directory, mount.version, have - covered))
        covered |= have
    missing = {
        limit: problems.get(controller, f"no cgroup hierarchy has the {controller} controller")
        for limit, controller in NEEDED.items()
        if controller not in covered
    }
    return Tree(tuple(parents), missing)


def _make_v2(mount: Mount, parent: str, instance: str) -> tuple[Path, frozenset[str]]:
    wanted = frozenset({"memory", "cpu", "pids"})
    base = _v2_base(mount, parent)
    for directory in (base, base / "belljar"):
        directory.mkdir(exist_ok=True)
        available = set((directory / "cgroup.controllers").read_text().split())
        for controller in sorted(wanted & available):
            with contextlib.suppress(OSError):  # what could not be enabled is missing below, and that is reported
                write(directory / "cgroup.subtree_control", f"+{controller}")
    directory = base / "belljar" / instance
    directory.mkdir(exist_ok=True)
    have = set((directory / "cgroup.controllers").read_text().split()) & wanted
    for controller in sorted(have):
        write(directory / "cgroup.subtree_control", f"+{controller}")
    return directory, frozenset(have | {"cpuacct"} if have else ())


def _v2_base(mount: Mount, parent: str) -> Path:
    if parent:
        return mount.point / parent.strip("/")
    is_root = mount.own == mount.point and not (mount.own / "cgroup.type").exists()
    if is_root:
        return mount.point
    in_container = mount.own == mount.point
    if in_container or _is_delegated(mount.own):
        leaf = mount.own / "service"
        leaf.mkdir(exist_ok=True)
        for pid in (mount.own / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                write(leaf / "cgroup.procs", pid)
        return mount.own
    if mount.own.name == "service" and _is_delegated(mount.own.parent):
        return mount.own.parent
    return mount.point


def _is_delegated(directory: Path) -> bool:
    """Systemd marks what it delegates by these attributes (systemd.resource-control(5), Delegate=)."""
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(directory, name) == b"1":
                return True
    return False


def write(path: Path, value: str) -> None:
    """Writes all at once, as control files want it. Raises OSError that names the file."""
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(fd)


def write_if_there(path: Path, value: str) -> bool:
    """Writes a control file that not every kernel has; tells whether it was there."""
    try:
        write(path, value)
    except OSError:
        return False
    return True


def read_number(path: Path) -> int:
    """The number in a control file, 0 when there is no such file."""
    try:
        return int(path.read_text())
    except OSError:
        return 0


def read_key(path: Path, key: str) -> int:
    """The number after `key` in a flat-keyed control file, 0 when there is none."""
    with contextlib.suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    return 0
