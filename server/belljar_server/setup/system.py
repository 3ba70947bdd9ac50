"""Packages of the host's own distribution that building images needs."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

from belljar_server.errors import HostNotReady
from belljar_server.setup.commands import Say, run

PROGRAMS = {"mmdebstrap": "mmdebstrap", "mkfs.erofs": "erofs-utils"}
"""Program -> the Debian and Ubuntu package that has it."""
FILES = {
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"): "debian-archive-keyring",
    Path("/etc/ssl/certs/ca-certificates.crt"): "ca-certificates",
}
"""File -> the package that has it."""
LIBRARIES = {"libnftables.so.1": "libnftables1"}
"""Shared library -> the package that has it."""


def missing_packages() -> list[str]:
    """Names of the packages that are needed and not there."""
    programs = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    return programs + [package for file, package in FILES.items() if not file.exists()]


def missing_libraries() -> list[str]:
    """Names of the packages of shared libraries that a server whose requests may have a network needs."""
    return [package for name, package in LIBRARIES.items() if not _has_library(name)]


def _has_library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def install_missing(say: Say, packages: list[str]) -> None:
    """Installs them with apt-get where that is possible. Raises HostNotReady naming them where it is not."""
    if not packages:
        return
    names = " ".join(packages)
    if shutil.which("apt-get") is None:
        raise HostNotReady(f"missing packages: {names}. This is not Debian or Ubuntu: install what corresponds to them")
    if os.geteuid() != 0:
        raise HostNotReady(f"missing packages: {names}. Run `apt-get install {names}` as root")
    say(f"packages: installing {names}")
    env = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "update", "--quiet"], env=env)
    run(["apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *packages], env=env)
    still = [package for package in (*missing_packages(), *missing_libraries()) if package in packages]
    if still:
        raise HostNotReady(f"apt-get installed {names}, but these are still missing: {' '.join(still)}")


def debian_sources(suite: str) -> list[str]:
    """`deb` lines for a Debian suite from the mirrors that this host uses for Debian; empty when it uses none.

    Empty makes mmdebstrap take its own default. The host's own release is found by its codename: `bookworm`,
    `bookworm-updates` and `bookworm-security` become the same three of `suite`.
    """
    if shutil.which("apt-get") is None:
        return []
    listed = run(
        [
            "apt-get",
            "indextargets",
            "--format",
            "$(ORIGIN)\t$(CODENAME)\t$(COMPONENT)\t$(REPO_URI)",
            "Created-By: Packages",
        ]
    )
    rows = [tuple(line.split("\t")) for line in listed.splitlines()]
    mains = [(row[1], row[3]) for row in rows if len(row) == 4 and row[0] == "Debian" and row[2] == "main"]
    base = {codename for codename, _ in mains if "-" not in codename}
    lines: dict[str, None] = {}
    for codename, uri in mains:
        release, dash, kind = codename.partition("-")
        if release in base and kind in {"", "updates", "security"} and not uri.startswith("cdrom:"):
            lines[f"deb {uri} {suite}{dash}{kind} main"] = None
    return list(lines)
