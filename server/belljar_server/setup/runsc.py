"""Finding gVisor's runsc, or making it: never one older than the pinned release.

`find` is what the service uses; `find_or_install` is what `belljar setup` does when there is none. Distributions carry
packages that are years old (Debian trixie's leaves TCP secrets in checkpoints), so none is ever installed from there.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from belljar_server.config import Settings
from belljar_server.errors import HostNotReady
from belljar_server.setup import tools
from belljar_server.setup.commands import Say, run

RELEASE_DATE = 20260905
RELEASE = f"release-{RELEASE_DATE}.0"
MODULE = "gvisor.dev/gvisor/runsc"
MODULE_VERSION = "v0.0.0-20260905035102-160fafc42237"
"""The commit of RELEASE on the branch that `go install` can build; Go's checksum database verifies it."""
RELEASES_URL = "https://storage.googleapis.com/gvisor/releases/release"
"""Where the project publishes its binaries (gvisor.dev/docs/user_guide/install)."""
CONNECT_TIMEOUT = 10.0
"""Seconds without a byte after which a download is given up and the binary is built instead."""
LARGEST_BINARY = 512 << 20


@dataclass(frozen=True, slots=True)
class Found:
    """A runsc that runs: where it is, the version it tells, and where it came from."""

    path: Path
    version: str
    origin: str


def version_of(binary: Path) -> str:
    """What `runsc --version` says after "version". Raises HostNotReady when the binary does not run."""
    said = run([binary, "--version"], timeout=30)
    match = re.match(r"runsc version (\S+)", said)
    if not match:
        raise HostNotReady(f"{binary} --version says {said[:100]!r}, that is not runsc")
    return match[1]


def release_date(version: str) -> int | None:
    """The date of a release as a number, None for what is no release of gVisor's: a distribution's, one's own build."""
    match = re.fullmatch(r"release-(\d{8})\.\d+(?:-.*)?", version)
    return int(match[1]) if match else None


def find(settings: Settings) -> Path:
    """The runsc to use. Raises HostNotReady saying what was found instead and what to do."""
    return look(settings).path


def look(settings: Settings) -> Found:
    """The runsc of the settings, else the one on PATH, else the one an earlier set-up made. Raises HostNotReady."""
    if settings.sandbox.runsc:
        return _of_settings(settings.sandbox.runsc)
    refused = []
    candidates = [("PATH", shutil.which("runsc")), ("an earlier set-up", str(installed(settings)))]
    for origin, path in candidates:
        if path is None or not Path(path).exists():
            continue
        version = version_of(Path(path))
        date = release_date(version)
        if date is not None and date >= RELEASE_DATE:
            return Found(Path(path), version, origin)
        refused.append(f"{path} is {version}, older than {RELEASE} or no release of gVisor, so it is not used")
    raise HostNotReady("; ".join([*refused, "there is no runsc to use: run `belljar setup`"]))


def installed(settings: Settings) -> Path:
    """Where set-up puts runsc."""
    return settings.built / "bin" / "runsc"


def find_or_install(settings: Settings, scratch: Path, say: Say, releases_url: str = RELEASES_URL) -> Found:
    """A runsc that runs, made if need be: the official release, else built with Go. Raises HostNotReady."""
    if settings.sandbox.runsc:
        return _of_settings(settings.sandbox.runsc)
    try:
        return look(settings)
    except HostNotReady as reason:
        say(f"runsc: {reason}")
    target = installed(settings)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = scratch / "runsc"
    origin = download(fresh, releases_url, say) or build(fresh, scratch, say)
    fresh.chmod(0o755)
    version = version_of(fresh)
    if version != RELEASE:
        raise HostNotReady(f"runsc from {origin} says it is {version}, expected {RELEASE}")
    beside = target.with_name(".runsc.new")
    shutil.copy2(fresh, beside)
    os.replace(beside, target)
    return Found(target, version, origin)


def download(target: Path, releases_url: str, say: Say) -> str | None:
    """Fetches the official binary and checks its SHA-512; returns where from, or None when it cannot be reached.

    Raises HostNotReady when what came is not what the project published: that must not pass in silence.
    """
    url = f"{releases_url}/{RELEASE_DATE}/{platform.machine()}/runsc"
    say(f"runsc: trying the official release {RELEASE}")
    try:
        with urllib.request.urlopen(f"{url}.sha512", timeout=CONNECT_TIMEOUT) as response:
            expected = response.read(1024).decode("ascii", "replace").split(maxsplit=1)[:1]
        digest, size = hashlib.sha512(), 0
        with urllib.request.urlopen(url, timeout=CONNECT_TIMEOUT) as response, target.open("wb") as file:
            while piece := response.read(1 << 20):
                digest.update(piece)
                size += len(piece)
                if size > LARGEST_BINARY:
                    raise HostNotReady(f"{url} is larger than {LARGEST_BINARY >> 20} MiB, that is not runsc")
                file.write(piece)
    except (urllib.error.URLError, OSError) as error:
        say(f"runsc: the release cannot be downloaded here ({getattr(error, 'reason', error)})")
        return None
    if expected != [digest.hexdigest()]:
        raise HostNotReady(
            f"{url} does not have the published SHA-512; run `belljar setup` again, and do not use this file"
        )
    return "the official release, SHA-512 verified"


def build(target: Path, scratch: Path, say: Say) -> str:
    """Builds the pinned module version with Go; returns what with. Raises HostNotReady."""
    go = tools.go(scratch, say)
    say(f"runsc: building {RELEASE} with {go.origin}; about 75 s on two cores")
    env = {
        **go.env,
        "CGO_ENABLED": "0",
        "GOBIN": str(scratch / "bin"),
        "GOPATH": str(scratch / "gopath"),
        "GOCACHE": str(scratch / "gocache"),
        "GOTOOLCHAIN": "local",  # the one that was chosen, not one that the module asks Go to fetch
        "GOOS": "linux",
        "GOARCH": "",
        "GOFLAGS": "-modcacherw",
    }
    ldflags = f"-X {MODULE}/version.version={RELEASE}"
    run([*go.argv, "install", "-ldflags", ldflags, f"{MODULE}@{MODULE_VERSION}"], env=env, cwd=scratch, timeout=1800)
    os.replace(scratch / "bin" / "runsc", target)
    return f"the pinned module, built with {go.origin}"


def _of_settings(path: Path) -> Found:
    if not path.is_file():
        raise HostNotReady(f"sandbox.runsc is {path}, which does not exist")
    version = version_of(path)
    date = release_date(version)
    if date is not None and date < RELEASE_DATE:
        raise HostNotReady(f"sandbox.runsc is {path}, which is {version}; {RELEASE} or later is needed")
    return Found(path, version, "the settings")
