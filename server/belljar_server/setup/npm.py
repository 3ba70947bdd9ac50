"""The npm part of an image: package tarballs, checked against the integrity in recipe or lock file, and unpacked.

npm only fetches. It installs nothing, so no package script ever runs, and a lock file made where the registry lacks
some other platform's binaries (which `npm ci` refuses) does as well.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from belljar_server.errors import HostNotReady
from belljar_server.runtimes import NpmPackage
from belljar_server.setup import tools
from belljar_server.setup.commands import Say, run

CPUS = {"x86_64": "x64", "aarch64": "arm64"}
"""npm's names of machines."""


@dataclass(frozen=True, slots=True)
class Tarball:
    """One published package, by what it must hash to."""

    name: str
    version: str
    integrity: str
    """Subresource integrity, `sha512-…`."""


@dataclass(frozen=True, slots=True)
class Locked:
    """A package of a lock file: where below the project it goes, and its tarball."""

    place: str
    tarball: Tarball


def tarball_of(package: NpmPackage) -> Tarball:
    """The tarball that holds a recipe's binary."""
    return Tarball(package.name, package.version, package.integrity)


def fetch(target: Path, tarball: Tarball, scratch: Path, say: Say) -> None:
    """Fetches a tarball with npm and checks it. Raises HostNotReady."""
    npm = tools.npm(scratch, say)
    wanted = f"{tarball.name}@{tarball.version}"
    say(f"image: fetching {wanted} with {npm.origin}")
    folder = scratch / "packed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run([*npm.argv, "pack", "--silent", "--ignore-scripts", wanted], env=npm.env, cwd=folder)
    packed = list(folder.rglob("*.tgz"))
    if len(packed) != 1:
        raise HostNotReady(f"npm pack {wanted} gave {len(packed)} files, expected one")
    check(packed[0], tarball)
    shutil.move(packed[0], target)


def check(file: Path, tarball: Tarball) -> None:
    """Raises HostNotReady when the file is not the tarball that is meant."""
    algorithm, _, expected = tarball.integrity.partition("-")
    if algorithm != "sha512" or not expected:
        raise HostNotReady(f"the integrity of {tarball.name} is {tarball.integrity!r}, expected sha512-…")
    with file.open("rb") as opened:
        digest = base64.b64encode(hashlib.file_digest(opened, "sha512").digest()).decode()
    if not hmac.compare_digest(digest, expected):
        raise HostNotReady(
            f"{tarball.name}@{tarball.version} should have {tarball.integrity}, but what came has sha512-{digest}"
        )


def extract_binary(file: Path, package: NpmPackage, root: Path) -> None:
    """Puts the package's binary at its place in the tree, and nothing else. Raises HostNotReady."""
    target = root / package.target.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "r:gz") as archive:
        try:
            source = archive.extractfile(package.member)
        except KeyError:
            source = None
        if source is None:
            raise HostNotReady(f"{package.name}@{package.version} has no file {package.member}")
        with source, target.open("wb") as opened:
            shutil.copyfileobj(source, opened, 1 << 20)
    target.chmod(0o755)


def read_lock(project: Path, machine: str) -> list[Locked]:
    """The packages of a project that its lock names for this machine. Raises HostNotReady."""
    try:
        lock = json.loads((project / "package-lock.json").read_text())
        entries = dict[str, dict[str, Any]](lock["packages"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HostNotReady(
            f"{project}/package-lock.json cannot be read ({error}), a lock file of version 3 is needed"
        ) from error
    return [
        _locked(project, place, entry)
        for place, entry in sorted(entries.items())
        # What is bundled comes in the tarball of the package that bundles it.
        if place and not entry.get("dev") and not entry.get("inBundle") and _is_for(entry, machine)
    ]


def _locked(project: Path, place: str, entry: dict[str, Any]) -> Locked:
    parts = PurePosixPath(place).parts
    if parts[0] != "node_modules" or ".." in parts:
        raise HostNotReady(f"{project}/package-lock.json has a package at {place}, expected below node_modules")
    if not str(entry.get("integrity", "")).startswith("sha512-"):
        raise HostNotReady(f"{project}/package-lock.json has no sha512 integrity for {place}")
    name = entry.get("name") or place.rpartition("node_modules/")[2]
    return Locked(place, Tarball(name, entry["version"], entry["integrity"]))


def _is_for(entry: dict[str, Any], machine: str) -> bool:
    """Whether a package is for Linux with glibc on this machine, by the fields of its package.json."""
    here = {"os": "linux", "cpu": CPUS[machine], "libc": "glibc"}
    return all(_allows(entry.get(field), value) for field, value in here.items())


def _allows(listed: list[str] | None, value: str) -> bool:
    if not listed:
        return True
    if f"!{value}" in listed:
        return False
    return value in listed or all(name.startswith("!") for name in listed)


def install(target: Path, packages: list[Locked], tarball: Callable[[Tarball], Path]) -> None:
    """Unpacks the packages of a lock below `target`; `tarball` gives the checked file of each. Raises HostNotReady."""
    for package in packages:
        with tarfile.open(tarball(package.tarball), "r:gz") as archive:
            for member in archive:
                if member.isreg():
                    _extract(archive, member, target / package.place, package.tarball)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path, tarball: Tarball) -> None:
    """Writes one file below the folder; links and devices have no business in a package and never get here.

    Everything in a tarball stands below one folder, usually `package`, whose name says nothing.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or len(path.parts) < 2:
        raise HostNotReady(f"{tarball.name}@{tarball.version} has a file outside of the package: {member.name!r}")
    place = folder.joinpath(*path.parts[1:])
    place.parent.mkdir(parents=True, exist_ok=True)
    source = archive.extractfile(member)
    if source is None:
        raise HostNotReady(f"{tarball.name}@{tarball.version} is damaged at {member.name!r}")
    with source, place.open("wb") as opened:
        shutil.copyfileobj(source, opened, 1 << 20)
    place.chmod(0o755 if member.mode & 0o111 else 0o644)
