"""Checks of the host: what was found, whether that will do, and what to do about it. It tries, and changes nothing."""

from __future__ import annotations

import enum
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from belljar_server import config, runtimes, setup
from belljar_server.config import Settings
from belljar_server.egress import namespace
from belljar_server.errors import HostNotReady, SandboxFailed
from belljar_server.setup import images, layers, privileges, runsc, system, tools, trial
from belljar_server.setup.commands import run

MIB = 1 << 20
REGISTRY_TIMEOUT = 30.0


class Status(enum.Enum):
    """Whether a finding will do."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    name: str
    status: Status
    found: str
    remedy: str = ""
    """What to do, where there is something to do."""


def examine(settings: Settings) -> Iterator[Finding]:
    """All checks, one after the other; a check that breaks is a finding too."""
    for name, check in CHECKS.items():
        try:
            yield from check(settings)
        except (HostNotReady, OSError) as error:
            yield Finding(name, Status.FAIL, str(error), "see above; `belljar setup` mends what it can")


def _machine(_: Settings) -> Iterator[Finding]:
    try:
        setup.check_machine()
    except HostNotReady as error:
        yield Finding("machine", Status.FAIL, str(error), "use an x86_64 or arm64 Linux host")
        return
    yield Finding("machine", Status.OK, f"Linux {platform.release()} on {platform.machine()}")


def _root(_: Settings) -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield Finding("root", Status.OK, "running as root")
        return
    yield Finding("root", Status.FAIL, f"running as uid {os.geteuid()}", "run as root: cgroups and runsc need it")


def _privileges(settings: Settings) -> Iterator[Finding]:
    where = privileges.surroundings()
    lacking = privileges.missing(network=setup.needs_network(settings))
    if not lacking:
        yield Finding("privileges", Status.OK, f"{where}, with every capability that is needed")
    for name, purpose in lacking.items():
        # Networks that nobody asked for by name are simply not offered.
        status = Status.WARN if privileges.NEEDED[name].network_only and settings.egress.modes is None else Status.FAIL
        remedy = f"add the capability {name} (a container: --cap-add={name}; systemd: CapabilityBoundingSet=)"
        if privileges.NEEDED[name].network_only:
            remedy += ', or allow no network: egress.modes = ["none"]'
        yield Finding("privileges", status, f"{where}, without {name}, which is needed for {purpose}", remedy)


def _kernel(_: Settings) -> Iterator[Finding]:
    """What runsc and the launcher ask of the kernel, by trying each."""
    missing = []
    for name, attempt in (
        ("memfd_create", _try_memfd),
        ("pidfd_open", _try_pidfd),
        ("user namespaces", _try_namespaces),
    ):
        try:
            attempt()
        except (OSError, HostNotReady) as error:
            missing.append(f"{name} ({str(error).splitlines()[-1].strip()})")
    if missing:
        remedy = "a newer kernel, or a container runtime and sysctls (user.max_user_namespaces) that allow it"
        yield Finding("kernel", Status.FAIL, f"refused: {', '.join(missing)}", remedy)
        return
    yield Finding("kernel", Status.OK, "memfd, pidfd and user namespaces work")


def _try_memfd() -> None:
    os.close(os.memfd_create("belljar-doctor", os.MFD_CLOEXEC))


def _try_pidfd() -> None:
    os.close(os.pidfd_open(os.getpid()))


def _try_namespaces() -> None:
    run(["unshare", "--user", "--mount", "--net", "--pid", "--fork", "true"], timeout=30)


def _cgroups(settings: Settings) -> Iterator[Finding]:
    missing = trial.unenforceable(settings)
    if not missing:
        yield Finding("cgroups", Status.OK, "memory, cores and CPU time can be limited")
    for limit, reason in sorted(missing.items()):
        if limit in settings.limits.waived:
            yield Finding("cgroups", Status.WARN, f"limits.{limit} is not enforced, and waived: {reason}")
            continue
        remedy = (
            "give the service a writable cgroup (systemd: Delegate=yes; a container: a writable /sys/fs/cgroup)"
            f', or accept it with limits.waived = ["{limit}"]'
        )
        yield Finding("cgroups", Status.FAIL, f"limits.{limit} cannot be enforced: {reason}", remedy)


def _runsc(settings: Settings) -> Iterator[Finding]:
    try:
        found = runsc.look(settings)
    except HostNotReady as error:
        yield Finding("runsc", Status.FAIL, str(error), "run `belljar setup`")
        return
    yield Finding("runsc", Status.OK, f"{found.version} at {found.path}, from {found.origin}")


def _images(settings: Settings) -> Iterator[Finding]:
    for runtime in runtimes.load().values():
        try:
            image = images.find(settings.built, runtime)
        except HostNotReady as error:
            yield Finding("images", Status.FAIL, str(error), "run `belljar setup`")
            continue
        yield Finding("images", Status.OK, f"{runtime.name} {image.version}: {image.path.name}")
    for runtime in {each.layer.name: each for each in runtimes.load().values() if each.layer}.values():
        try:
            layer = layers.find(settings.built, runtime)
        except HostNotReady as error:
            yield Finding("layers", Status.FAIL, str(error), "run `belljar setup`")
            continue
        if layer:
            yield Finding("layers", Status.OK, f"{runtime.name}, {len(layer.packages)} packages: {layer.path.name}")


def _sandboxes(settings: Settings) -> Iterator[Finding]:
    loaded = list(runtimes.load().values())
    try:
        binary = runsc.find(settings)
        for runtime in loaded:
            images.find(settings.built, runtime)
    except HostNotReady:
        yield Finding("sandboxes", Status.FAIL, "not tried: runsc or an image is missing", "run `belljar setup`")
        return
    started = trial.run_each(settings, binary, loaded)
    shown = ", ".join(f"{name} in {seconds * 1000:.0f} ms" for name, seconds in started.items())
    yield Finding("sandboxes", Status.OK, f"smallest run: {shown}")


def _networks(settings: Settings) -> Iterator[Finding]:
    """What sandboxes with network need, by making the network of one."""
    if not setup.needs_network(settings):
        yield Finding("networks", Status.OK, "no request may have one: egress.modes is none")
        return
    remedy = (
        '`belljar setup` installs libnftables; the kernel needs nf_tables with tproxy; or set egress.modes = ["none"]'
    )
    without = Status.WARN if settings.egress.modes is None else Status.FAIL
    missing = system.missing_libraries()
    if missing:
        yield Finding("networks", without, f"missing packages: {' '.join(missing)}", remedy)
        return
    try:
        began = time.monotonic()
        namespace.make().close()
    except SandboxFailed as error:
        yield Finding("networks", without, str(error), remedy)
        return
    took = (time.monotonic() - began) * 1000
    yield Finding("networks", Status.OK, f"namespaces, links and nftables rules made in {took:.0f} ms")


def _build_tools(_: Settings) -> Iterator[Finding]:
    missing = system.missing_packages()
    if not missing:
        yield Finding("build tools", Status.OK, "mmdebstrap and mkfs.erofs are there")
        return
    names = " ".join(missing)
    yield Finding(
        "build tools",
        Status.WARN,
        f"missing packages: {names}",
        f"`belljar setup` installs them, or apt-get install {names}",
    )


def _space(settings: Settings) -> Iterator[Finding]:
    place = next(path for path in (settings.data_dir, *settings.data_dir.parents) if path.exists())
    free = shutil.disk_usage(place).free
    found = f"{free // MIB} MiB free for {settings.data_dir}"
    if free < settings.artifacts.min_free_bytes:
        least = settings.artifacts.min_free_bytes // MIB
        remedy = f"free some: below artifacts.min_free_bytes, {least} MiB, executions are refused"
        yield Finding("space", Status.FAIL, found, remedy)
        return
    if free < setup.NEEDED_BYTES:
        yield Finding("space", Status.WARN, found, f"`belljar setup` needs {setup.NEEDED_BYTES // MIB} MiB")
        return
    yield Finding("space", Status.OK, found)


def _ports(settings: Settings) -> Iterator[Finding]:
    for name, listen in (("grpc.listen", settings.grpc.listen), ("http.listen", settings.http.listen)):
        host, port = config.split_address(name, listen)
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            yield Finding(
                "ports",
                Status.WARN,
                f"{name} {listen}: {error.strerror}",
                "a server runs already, or choose another port",
            )
            continue
        yield Finding("ports", Status.OK, f"{name} {listen} is free")


def _registries(_: Settings) -> Iterator[Finding]:
    """Through their own clients, so that mirrors and proxies of the host count. Only set-up needs them."""
    npm = shutil.which("npm")
    if npm:
        yield _reached("npm", [npm, "ping"])
    pip = [
        "--disable-pip-version-check",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
        "--dry-run",
        "--target",
    ]
    lock = tools.WHEELS / "node.txt"
    yield _reached(
        "Python", [tools.python(), "-m", "pip", "install", "--quiet", *pip, "/nonexistent", "--requirement", str(lock)]
    )


def _reached(name: str, argv: list[str]) -> Finding:
    try:
        run(argv, timeout=REGISTRY_TIMEOUT)
    except HostNotReady as error:
        reason = str(error).splitlines()[-1].strip()
        return Finding(
            "registries",
            Status.WARN,
            f"the {name} registry: {reason}",
            "set-up and requested packages need it; what is kept works without",
        )
    return Finding("registries", Status.OK, f"the {name} registry answers")


Check = Callable[[Settings], Iterator[Finding]]
CHECKS: dict[str, Check] = {
    "machine": _machine,
    "root": _root,
    "privileges": _privileges,
    "kernel": _kernel,
    "cgroups": _cgroups,
    "runsc": _runsc,
    "images": _images,
    "sandboxes": _sandboxes,
    "networks": _networks,
    "build tools": _build_tools,
    "space": _space,
    "ports": _ports,
    "registries": _registries,
}
"""In the order in which one thing needs the one before."""
