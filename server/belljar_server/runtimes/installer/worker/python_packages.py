"""Python packages: resolved and installed by uv, compiled by the Python that will import them."""

from __future__ import annotations

import os
import re
from typing import Any, Protocol

import protocol

INDEX = "http://127.0.0.1:4873/simple/"
PYTHON = "/usr/bin/python3"
USER = 1000
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)")


class Steps(Protocol):
    """Runs programs."""

    def run(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> None:
        """Runs one to its end."""


def install_python(job: dict[str, Any], host: protocol.Host, steps: Steps, work: str, layer: str) -> None:
    """Installs what the job asks for into `layer`, without what is preinstalled at the version that was chosen."""
    preinstalled: dict[str, str] = job["preinstalled"]
    env = {"UV_CACHE_DIR": f"{work}/cache", "UV_HTTP_TIMEOUT": "600", "UV_NO_CONFIG": "1", "UV_NO_PROGRESS": "1"}
    env["UV_HTTP_RETRIES"] = "3"  # for files that break off: the host has tried all else again already
    common = ["--index-url", INDEX, "--python", PYTHON, "--color", "never"]
    common += [] if job["builds"] else ["--only-binary", ":all:"]
    lock = job["lock"]
    if not lock:
        wanted, locked = f"{work}/requirements.in", f"{work}/lock.txt"
        write(wanted, "".join(f"{line}\n" for line in job["requirements"]))
        # uv takes the versions of an earlier output where it can: what is preinstalled is used, not installed again.
        write(locked, "".join(f"{name}=={version}\n" for name, version in preinstalled.items()))
        plain = ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--quiet"]
        steps.run("resolve", ["/usr/local/bin/uv", "pip", "compile", *common, *plain, "-o", locked, wanted], env)
        lock = read(locked)
    host.send_bytes(protocol.LOCK, lock.encode())
    chosen = [entry for entry in entries(lock) if not is_there(entry, preinstalled)]
    if not chosen:
        return
    os.chown(layer, USER, USER)
    write(f"{work}/install.txt", "\n".join(chosen) + "\n")
    where = ["--target", layer, "--no-deps", "--require-hashes", "--link-mode", "hardlink"]
    argv = ["/usr/local/bin/uv", "pip", "install", *common, *where, "-r", f"{work}/install.txt"]
    steps.run("install", argv, env)
    quiet = ["-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    steps.run("compile", [PYTHON, "-I", "-c", COMPILE, *quiet, layer])


COMPILE = "import compileall\ncompileall.main()"
"""A package may hold files of another Python, which do not compile and are never imported."""


def entries(lock: str) -> list[str]:
    """The requirements of a lock, each with the lines of its hashes."""
    found: list[str] = []
    for line in lock.splitlines():
        if line.startswith((" ", "\t")) and found:
            found[-1] += "\n" + line
        elif line.strip() and not line.startswith("#"):
            found.append(line)
    return found


def is_there(entry: str, preinstalled: dict[str, str]) -> bool:
    """Whether the very version of a requirement is preinstalled."""
    match = PIN.match(entry)
    return match is not None and preinstalled.get(re.sub(r"[-_.]+", "-", match[1]).lower()) == match[2]


def write(path: str, text: str) -> None:
    """Writes a file that is the user's: the package managers replace some."""
    with open(path, "w") as file:
        file.write(text)
        os.fchown(file.fileno(), USER, USER)


def read(path: str) -> str:
    """What a program left in a file. Raises OSError, ValueError."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), encoding="utf-8") as file:
        return file.read(MOST_LOCK)


MOST_LOCK = 1 << 20
"""Characters of a lock; the host takes no more either."""
