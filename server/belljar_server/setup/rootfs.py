"""The Debian part of an image: what every runtime has under it, as a cached tarball.

`mmdebstrap --variant=extract` unpacks packages and runs no maintainer script. What those would have done is done here:
accounts, the CA bundle, the linker's cache, compiled Python files. Nothing in it depends on the host or the hour.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from belljar_server.errors import HostNotReady
from belljar_server.setup import system
from belljar_server.setup.commands import Say, run

SUITE = "trixie"
CA_BUNDLE = "etc/ssl/certs/ca-certificates.crt"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
BASE_PACKAGES = (
    "base-files",
    "bash",
    "ca-certificates",
    "coreutils",
    "dash",
    "findutils",
    "grep",
    "libatomic1",
    "libc-bin",
    "libgcc-s1",
    "libstdc++6",
    "media-types",
    "netbase",
    "python3",  # the agent is Python in every image
    "sed",
    "tzdata",
    "zlib1g",
)
UNWANTED = (
    "boot",
    "etc/apt",
    "etc/cron.daily",
    "etc/dpkg",
    "etc/fstab",
    "etc/machine-id",
    "etc/logrotate.d",
    "usr/games",
    "usr/include",
    "usr/lib/*-linux-gnu/gconv",
    "usr/lib/*-linux-gnu/perl*",
    "usr/share/bash-completion",
    "usr/share/common-licenses",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/menu",
    "usr/share/perl*",
    "usr/share/pixmaps",
    "var/cache/*",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/log/*",
)
FOLDERS = (
    "code",
    "deps",
    "dev/shm",
    "home/user",
    "mnt",
    "opt",
    "proc",
    "run",
    "srv",
    "sys",
    "tmp",
    "usr/local/bin",
    "usr/local/lib",
    "var/tmp",
)
"""Mount points of the sandbox, and what the base-files package makes in its script."""
FILES = {
    "etc/passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        "user:x:1000:1000:user:/home/user:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    "etc/group": "root:x:0:\nuser:x:1000:\nnogroup:x:65534:\n",
    "etc/hosts": "127.0.0.1 localhost belljar\n::1 localhost\n",
    "etc/hostname": "belljar\n",
    # The gateway of a sandbox with network (egress/namespace.py); without one nothing is there, which is told at once.
    "etc/resolv.conf": "nameserver 198.19.0.3\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
}
"""Small files that maintainer scripts or an administrator would write."""


def packages(extra: Iterable[str]) -> list[str]:
    """All packages of an image, sorted."""
    return sorted({*BASE_PACKAGES, *extra})


def inputs(extra: Iterable[str]) -> list[object]:
    """Everything that decides what `make_tarball` makes, beside this module's code, as plain data."""
    return [SUITE, packages(extra), UNWANTED, FOLDERS, FILES]


def make_tarball(target: Path, extra: Iterable[str], scratch: Path, say: Say) -> None:
    """Builds the tree from Debian's packages and packs it. Raises HostNotReady."""
    root = scratch / "debian"
    say(f"image: fetching Debian {SUITE} packages")
    _bootstrap(root, packages(extra), say)
    finish(root)
    run(["tar", "--create", "--file", target, "--sort=name", "--numeric-owner", "--directory", root, "."])
    shutil.rmtree(root)


def _bootstrap(root: Path, names: list[str], say: Say) -> None:
    command: list[str | Path] = ["mmdebstrap", "--quiet", "--mode=root", "--variant=extract", "--skip=chroot/mount"]
    if Path(KEYRING).exists():
        command.append(f"--keyring={KEYRING}")
    command += ["--include=" + ",".join(names), SUITE, root]
    mirrors = system.debian_sources(SUITE)
    if mirrors:
        try:
            run([*command, *mirrors])
        except HostNotReady as error:
            reason = str(error).splitlines()[-1].strip()
            say(f"image: this host's own mirror did not do ({reason}), taking mmdebstrap's default")
            shutil.rmtree(root, ignore_errors=True)
        else:
            return
    run(command)


def finish(root: Path) -> None:
    """Does what maintainer scripts would have done and removes what no program needs. Raises HostNotReady."""
    for pattern in UNWANTED:
        for path in sorted(root.glob(pattern)):
            remove(path)
    remove(root / "dev")
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("tmp", "var/tmp"):
        (root / name).chmod(0o1777)
    for name, text in FILES.items():
        path = root / name
        path.unlink(missing_ok=True)
        path.write_text(text)
    certificates = sorted((root / "usr/share/ca-certificates").rglob("*.crt"))
    if not certificates:
        raise HostNotReady("the ca-certificates package has no certificates: its layout has changed")
    (root / CA_BUNDLE).write_bytes(b"".join(path.read_bytes() for path in certificates))
    run(["ldconfig", "-r", root])
    remove(root / "var/cache/ldconfig")
    compile_python(root, [f"/{path.relative_to(root)}" for path in sorted((root / "usr/lib").glob("python3*"))])


def compile_python(root: Path, folders: list[str]) -> None:
    """Compiles Python files with the image's own Python, trusted without a look at times, which an image has not.

    One process and a fixed hash seed: the same files give the same bytes. Raises HostNotReady.
    """
    if folders:
        compileall = ["/usr/bin/python3", "-I", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
        run_inside(root, [*compileall, *folders])


def version_inside(root: Path, program: str) -> str:
    """What a program of the image says is its version, for example 3.13.5; empty when it does not know `--version`."""
    try:
        said = run_inside(root, [program, "--version"])
    except HostNotReady:
        return ""
    match = re.search(r"\d+(\.\d+)+", said)
    return match[0] if match else ""


def run_inside(root: Path, argv: list[str]) -> str:
    """Runs a program in the image, with its own /proc and nothing of the host's environment. Raises HostNotReady.

    Where namespaces are refused, as in the build of a container image, it is a plain chroot: that is confined already.
    """
    clean = ["env", "-i", "PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8", "PYTHONHASHSEED=0", "HOME=/tmp"]
    if not _can_unshare():
        return _run_in_chroot(root, [*clean, *argv])
    return run(["unshare", "--mount", "--pid", "--fork", "--mount-proc", f"--root={root}", *clean, *argv])


def _run_in_chroot(root: Path, argv: list[str]) -> str:
    """Without /proc, but for a mount table: swc looks there whether its files lie on a disk of this machine."""
    table = root / "proc" / "self" / "mountinfo"
    table.parent.mkdir()
    try:
        table.write_text("1 1 0:1 / / rw - ext4 /dev/root rw\n")
        return run(["chroot", root, *argv])
    finally:
        shutil.rmtree(table.parent)


@functools.cache
def _can_unshare() -> bool:
    try:
        run(["unshare", "--mount", "--pid", "--fork", "--mount-proc", "true"])
    except HostNotReady:
        return False
    return True


def remove(path: Path) -> None:
    """Removes a file, a link (never what it points to) or a tree; nothing there is fine."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
