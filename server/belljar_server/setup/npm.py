"""The npm part of an image: binaries out of package tarballs, and installed projects."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
import tarfile
from pathlib import Path

from belljar_server.errors import HostNotReady
from belljar_server.runtimes import NpmPackage
from belljar_server.setup import rootfs, tools
from belljar_server.setup.commands import Say, run

CPUS = {"x86_64": "x64", "aarch64": "arm64"}
"""npm's names of machines."""


def fetch_tarball(target: Path, package: NpmPackage, scratch: Path, say: Say) -> None:
    """Fetches the tarball of a package with npm and checks it against the recipe. Raises HostNotReady."""
    npm = tools.npm(scratch, say)
    say(f"image: fetching {package.name}@{package.version} with {npm.origin}")
    folder = scratch / "packed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    run([*npm.argv, "pack", "--silent", "--pack-destination", folder, f"{package.name}@{package.version}"], env=npm.env, cwd=folder)
    tarballs = list(folder.glob("*.tgz"))
    if len(tarballs) != 1:
        raise HostNotReady(f"npm pack {package.name}@{package.version} gave {len(tarballs)} files, expected one")
    check_integrity(tarballs[0], package)
    shutil.move(tarballs[0], target)


def check_integrity(tarball: Path, package: NpmPackage) -> None:
    """Raises HostNotReady when the tarball is not the one that the recipe names."""
    algorithm, _, expected = package.integrity.partition("-")
    if algorithm != "sha512" or not expected:
        raise HostNotReady(f"the recipe's integrity of {package.name} is {package.integrity!r}, expected sha512-…")
    with tarball.open("rb") as file:
        digest = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if not hmac.compare_digest(digest, expected):
        raise HostNotReady(f"{package.name}@{package.version} does not have the integrity of the recipe, sha512-{digest} came")


def extract_member(tarball: Path, package: NpmPackage, root: Path) -> None:
    """Puts the package's binary at its place in the tree, and nothing else. Raises HostNotReady."""
    target = root / package.target.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(tarball, "r:gz") as archive:
        try:
            source = archive.extractfile(package.member)
        except KeyError:
            source = None
        if source is None:
            raise HostNotReady(f"{package.name}@{package.version} has no file {package.member}")
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    target.chmod(0o755)


def project_inputs(project: Path) -> list[object]:
    """Everything that decides what `install_project` makes, as plain data. Raises HostNotReady for a lock without hashes."""
    try:
        package, lock = (json.loads((project / name).read_text()) for name in ("package.json", "package-lock.json"))
    except (OSError, ValueError) as error:
        raise HostNotReady(f"{project}: package.json and package-lock.json are needed: {error}") from error
    for name, entry in lock.get("packages", {}).items():
        if name and not str(entry.get("integrity", "")).startswith("sha512-"):
            raise HostNotReady(f"{project}/package-lock.json has no sha512 integrity for {name}")
    return [package, lock]


def install_project(target: Path, project: Path, machine: str, scratch: Path, say: Say) -> None:
    """Installs a project by its lock, without running any script, and packs node_modules. Raises HostNotReady."""
    npm = tools.npm(scratch, say)
    say(f"image: installing the npm packages of {project.name} with {npm.origin}")
    folder = scratch / "project"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copyfile(project / name, folder / name)
    flags = ["--ignore-scripts", "--omit=dev", "--no-audit", "--no-fund", "--silent"]
    run([*npm.argv, "ci", *flags, "--os=linux", f"--cpu={CPUS[machine]}", "--libc=glibc"], env=npm.env, cwd=folder)
    modules = folder / "node_modules"
    if not modules.is_dir():
        raise HostNotReady(f"npm ci installed nothing for {project}")
    rootfs.remove(modules / ".package-lock.json")  # npm's own note, with addresses of the registry
    for musl in [*modules.glob("*-musl"), *modules.glob("@*/*-musl")]:
        rootfs.remove(musl)
    run(["tar", "--create", "--file", target, "--sort=name", "--numeric-owner", "--directory", folder, "node_modules"])
